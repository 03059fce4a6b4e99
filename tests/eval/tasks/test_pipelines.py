"""Predictions on real texts equal those of transformers: its pipelines, and for QA its tokenizer and model.

The models are transformers' own on the mini CamemBERT, with a random head. Each is loaded by this project, exported
again, and both files are opened by transformers.
"""

import random
from collections import Counter

import pytest
import torch
import transformers

from data import Tokenizer
from data.features import text_words, trim_answer, word_ranges
from data.tasks import TextExample, read_task
from eval.tasks.batching import TaskSettings, infer
from eval.tasks.evaluate import predict
from eval.tasks.ner import NerTask
from eval.tasks.qa import QaTask
from eval.tasks.sequences import SequenceTask
from model.checkpoints.export import export_huggingface
from model.checkpoints.load import load_checkpoint
from tests.eval.tasks.shared import RUNTIME, asked, ignore
from tests.helpers import MINI, REAL_TOKENIZER, SHARED, needs, transformers_tokenizer

DATA = SHARED / "data"
TWEETS, XNLI = DATA / "sentiment/xlm-t_french/test_text.txt", DATA / "nli/xnli.fr.dev.tsv"
WIKINEURAL, PIAF = DATA / "ner/wikineural.fr.val.conllu", DATA / "qa/piaf-v1.0.json"
pytestmark = needs(MINI, REAL_TOKENIZER, TWEETS, XNLI, WIKINEURAL, PIAF)
COUNT, EXPORTED_COUNT = 500, 100  # examples; fewer for the exported model
TOLERANCE = 1e-4
STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
RELATIONS = ["entailment", "neutral", "contradiction"]
TAGS = ["O", "I-LOC", "I-PER", "I-MISC", "I-ORG"]  # as the released model
TASK_CLASSES = {
    "sentiment": (transformers.AutoModelForSequenceClassification, STARS),
    "nli": (transformers.AutoModelForSequenceClassification, RELATIONS),
    "ner": (transformers.AutoModelForTokenClassification, TAGS),
    "qa": (transformers.AutoModelForQuestionAnswering, None),
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(REAL_TOKENIZER)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Task -> the folder of transformers' save_pretrained, and that of this project's export of it."""
    tokenizer = transformers_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    found = {}
    for name, (kind, labels) in TASK_CLASSES.items():
        names = {} if labels is None else {"id2label": dict(enumerate(labels)), "num_labels": len(labels)}
        model = kind.from_pretrained(MINI, num_hidden_layers=3, **names).eval()  # half of its layers, for time
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "roberta" not in key:
                    size = 3 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
            if name == "sentiment":  # so that no label is predicted for nearly all tweets
                tweets = [example.text for example in sample("sentiment", TWEETS, 40)]
                logits = [model(**tokenizer(tweet, return_tensors="pt")).logits for tweet in tweets]
                model.classifier.out_proj.bias -= torch.cat(logits).mean(dim=0)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder / "theirs")
        tokenizer.save_pretrained(folder / "theirs")
        ours = load_checkpoint(folder / "theirs", ignore)
        export_huggingface(ours, folder / "exported", Tokenizer(REAL_TOKENIZER), "")
        found[name] = folder / "theirs", folder / "exported"
    return found


def sample(task: str, path, count: int = COUNT):
    return random.Random(0).sample(read_task(task, [path], ignore), count)


def pipeline(task: str, folder):
    return transformers.pipeline(task, model=str(folder), device="cpu")


def predictions(folder, task, examples):
    return predict(load_checkpoint(folder, ignore), task, examples, RUNTIME, 4096)


def check_scores(ours, theirs, labels):
    """theirs: a list of {label, score} for each text, the best first"""
    assert len(ours) == len(theirs)
    for prediction, found in zip(ours, theirs):
        scores = {one["label"]: one["score"] for one in found}
        assert scores.keys() == set(labels)
        assert all(abs(scores[label] - score) < TOLERANCE for label, score in zip(labels, prediction.scores.tolist()))
        assert prediction.label == found[0]["label"]


def is_spread(names) -> bool:
    """Whether no class is predicted nearly always, which would make the comparison meaningless."""
    counts = Counter(names)
    return len(counts) > 1 and counts.most_common(1)[0][1] < 0.9 * counts.total()


@pytest.mark.parametrize("name, path, labels", [("sentiment", TWEETS, STARS), ("nli", XNLI, RELATIONS)])
def test_labels(folders, tokenizer, name, path, labels):
    examples = sample(name, path)
    ours = predictions(folders[name][0], SequenceTask(TaskSettings(tokenizer, 512), labels), examples)
    assert is_spread(prediction.label for prediction in ours)
    texts = [e.text if name == "sentiment" else {"text": e.premise, "text_pair": e.hypothesis} for e in examples]
    for folder, count in zip(folders[name], (COUNT, EXPORTED_COUNT)):
        check_scores(ours[:count], pipeline("text-classification", folder)(texts[:count], top_k=None), labels)


def test_long_texts_are_truncated_alike(folders, tokenizer):
    tweets = [example.text for example in sample("sentiment", TWEETS)]
    texts = [" ".join(tweets[start : start + 40]) for start in range(0, 120, 40)]
    task = SequenceTask(TaskSettings(tokenizer, 128), STARS)
    ours = predictions(folders["sentiment"][0], task, [TextExample(text, "") for text in texts])
    options = {"truncation": True, "max_length": 128}
    check_scores(ours, pipeline("text-classification", folders["sentiment"][0])(texts, top_k=None, **options), STARS)


@pytest.mark.parametrize("labels", [TAGS, [tag.removeprefix("I-") for tag in TAGS]], ids=["I-", "no prefix"])
def test_entities_of_sentences(folders, tokenizer, labels):
    """Type, score and characters. For the pipeline a word is what stands between spaces, so the texts have letters and
    digits only; it takes what follows a lone ▁ and an <unk> for words of their own, so words with these are left out.
    """
    task = NerTask(TaskSettings(tokenizer, 512), labels)
    apart = set(tokenizer.encode("🙂")[1:-1])  # ▁ and <unk>
    texts = []
    for example in sample("ner", WIKINEURAL):
        words = [word for word in example.words if word.isalnum() and not apart & set(tokenizer.encode(word))]
        texts.append(" ".join(words))
    ours = predictions(folders["ner"][0], task, [TextExample(text, "") for text in texts])
    assert is_spread(entity.type for prediction in ours for entity in prediction.entities)
    assert sum(len(prediction.entities) for prediction in ours) > COUNT
    for folder, count in zip(folders["ner"], (COUNT, EXPORTED_COUNT)):
        theirs = pipeline("token-classification", folder)(texts[:count], aggregation_strategy="average")
        ties = 0
        for text, prediction, expected in zip(texts[:count], ours[:count], theirs, strict=True):
            words = word_ranges(prediction.pieces.spans, text_words(text))
            means = torch.stack([prediction.scores[word.start : word.stop].mean(dim=0) for word in words])
            best, second = means.topk(2).values.T
            if (best - second).min() < 1e-5:  # rounding decides which label is the best
                ties += 1
                continue
            places = [(one["entity_group"], one["start"], one["end"]) for one in expected]
            assert [(entity.type, entity.start, entity.end) for entity in prediction.entities] == places
            scores = zip((entity.score for entity in prediction.entities), (one["score"] for one in expected))
            assert all(abs(one - other) < TOLERANCE for one, other in scores)
        assert ties <= count / 50


def best_answer(starts, ends, offsets, max_answer: int) -> tuple[float, int, int]:
    """From the logits of a window's context -> the best sum, its start and end in the context"""
    count = len(starts)
    sums = starts[:, None] + ends[None, :]
    lengths = torch.arange(count)[None, :] - torch.arange(count)[:, None] + 1
    sums[(lengths < 1) | (lengths > max_answer)] = -torch.inf
    first, last = divmod(sums.argmax().item(), count)
    return sums.max().item(), offsets[first][0], offsets[last][1]


@torch.no_grad()
def test_answers_to_questions(folders, tokenizer):
    """transformers 5 has no pipeline for QA: its tokenizer's windows, its model's logits, the best span of all."""
    examples = [example._replace(context=example.context[:300]) for example in sample("qa", PIAF)]  # for time
    max_length, stride, max_answer = 80, 16, 20  # more than twice the longest question, which we would truncate
    for folder, count in zip(folders["qa"], (COUNT, EXPORTED_COUNT)):
        theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        task = QaTask(TaskSettings(tokenizer, max_length, doc_stride=stride, max_answer=max_answer))
        features = task.encode(examples[:count], ignore)
        model = load_checkpoint(folders["qa"][0], ignore)
        outputs = infer(model, [feature.ids for feature in features], RUNTIME)
        answers = task.decode(asked(outputs, features), features, examples[:count])
        pairs = [[example.question for example in examples[:count]], [example.context for example in examples[:count]]]
        options = dict(truncation="only_second", return_overflowing_tokens=True, return_offsets_mapping=True)
        encoded = their_tokenizer(*pairs, max_length=max_length, stride=stride, **options)
        assert len(encoded["input_ids"]) == len(features) > 1.5 * count
        best = {}
        order = sorted(range(len(features)), key=lambda i: len(features[i].ids))
        for begin in range(0, len(order), 16):
            batch = order[begin : begin + 16]
            input_ids = [encoded["input_ids"][i] for i in batch]
            result = theirs(**their_tokenizer.pad({"input_ids": input_ids}, return_tensors="pt"))
            for row, index in enumerate(batch):
                feature, output = features[index], outputs[index]
                assert feature.ids == encoded["input_ids"][index]
                assert feature.example == encoded["overflow_to_sample_mapping"][index]
                length = len(feature.ids)
                assert (output[:, 0] - result.start_logits[row, :length]).abs().max() < TOLERANCE
                assert (output[:, 1] - result.end_logits[row, :length]).abs().max() < TOLERANCE
                context = [i for i, part in enumerate(encoded.sequence_ids(index)) if part == 1]
                offsets = [encoded["offset_mapping"][index][i] for i in context]
                starts, ends = result.start_logits[row, context], result.end_logits[row, context]
                found = best_answer(starts, ends, offsets, max_answer)
                best[feature.example] = max(best.get(feature.example, found), found)
        for number, answer in enumerate(answers):
            context = examples[number].context
            start, end = trim_answer(context, *best[number][1:])
            assert (answer.answer, answer.start, answer.end) == (context[start:end], start, end)
        assert len({answer.start for answer in answers}) > count / 10
