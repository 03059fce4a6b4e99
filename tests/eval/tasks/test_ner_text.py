"""Entities of running text: by hand, of random scores, and of real sentences joined to a text."""

import random
import re
from bisect import bisect_right
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from data import Tokenizer, demo
from data.demo.tasks import write_tasks
from data.features import join_words, text_words
from data.tasks import TextExample, labels_of, read_task
from eval.tasks.batching import TaskSettings
from eval.tasks.evaluate import Options, evaluate, open_model, predict
from eval.tasks.finetune import Options as FinetuneOptions
from eval.tasks.finetune import finetune
from eval.tasks.ner import EntityPrediction, NerTask
from tests.eval.tasks.shared import TOKENIZER, ignore
from tests.helpers import REAL_TOKENIZER, SHARED, needs

WIKINEURAL = SHARED / "data/ner/wikineural.fr.val.conllu"
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def entities(text: str, tags: str, labels: str, tokenizer=TOKENIZER) -> list[str]:
    """The entities if the model is certain of a tag for each word of the text and each run of other characters."""
    task = NerTask(TaskSettings(tokenizer, 512), labels.split())
    pieces = task.pieces(TextExample(text, ""))
    units = [match.span() for match in re.finditer(r"[^\W_]+|[^\w\s]+", text)]
    assert len(units) == len(tags.split())
    scores = torch.zeros(len(pieces.ids), len(task.labels))
    scores[:, 0] = 1.0
    for (start, end), tag in zip(units, tags.split()):
        for i, (first, after) in enumerate(pieces.spans):
            if first < end and after > start:
                inside = tag.replace("B-", "I-") if first > start else tag
                scores[i] = torch.eye(len(task.labels))[task.labels.index(inside)]
    found = task.find_entities(text, pieces, scores)
    assert all(one.end <= two.start for one, two in pairwise(found))
    assert all(entity.score == pytest.approx(1) for entity in found)
    return [f"{entity.type} {text[entity.start : entity.end]}" for entity in found]


IO = "O PER LOC"


@pytest.mark.parametrize(
    ("text", "tags", "labels", "expected"),
    [
        ("Anne Roc vit à Brest.", "B-PER I-PER O O B-LOC O", None, ["PER Anne Roc", "LOC Brest"]),
        ("Anne Roc vit à Brest.", "PER PER O O LOC O", IO, ["PER Anne Roc", "LOC Brest"]),
        ("Anne Roc Brest", "B-PER B-PER I-LOC", None, ["PER Anne", "PER Roc", "LOC Brest"]),
        ("à l'Élysée", "O O O B-LOC", None, ["LOC Élysée"]),
        ("Jean-Pierre", "B-PER O I-PER", None, ["PER Jean-Pierre"]),  # whatever the hyphen is
        ("d’Artagnan", "B-PER I-PER I-PER", None, ["PER d’Artagnan"]),
        ("Saint - Pierre", "LOC LOC LOC", IO, ["LOC Saint - Pierre"]),
        ("Brest - Aix", "LOC O LOC", IO, ["LOC Brest", "LOC Aix"]),  # a dash
        ("Prusse d'Orient", "B-LOC I-LOC I-LOC O", None, ["LOC Prusse"]),
        ("l'été", "B-LOC O O", None, []),
        ("M. Roc, Anne", "B-PER I-PER I-PER O I-PER", None, ["PER M. Roc", "PER Anne"]),
        ("Brest, Aix", "LOC O LOC", IO, ["LOC Brest", "LOC Aix"]),
        ("Brest, Aix", "B-LOC I-LOC I-LOC", None, ["LOC Brest, Aix"]),
        ("Brest Aix", "B-LOC B-LOC", None, ["LOC Brest", "LOC Aix"]),
        ("la S.N.C.F. va", "O B-LOC I-LOC I-LOC I-LOC I-LOC I-LOC I-LOC O O", None, ["LOC S.N.C.F."]),
        ("👍 , !", "B-PER I-LOC B-LOC", None, []),  # no letter
        ("Anne 👍 Roc", "B-PER O I-PER", None, ["PER Anne", "PER Roc"]),
        ("Anne Roc", "E-PER E-PER", "O E-PER", ["PER Anne Roc"]),
        ("Anne Roc", "S-PER S-PER", "O S-PER E-PER I-PER", ["PER Anne", "PER Roc"]),
        ("", "", None, []),
    ],
)
def test_entities_of_running_text_by_hand(text, tags, labels, expected):
    assert entities(text, tags, labels or " ".join(LABELS)) == expected


@needs(REAL_TOKENIZER)
def test_a_word_is_one_entity_whatever_its_pieces_are():
    """Pieces of one word with different labels, an emoji and its lone ▁: the issue's case."""
    task, text = (
        NerTask(TaskSettings(Tokenizer(REAL_TOKENIZER), 512), LABELS),
        "Benveniste dort 👍",
    )
    pieces = task.pieces(TextExample(text, ""))
    scores = torch.full((len(pieces.ids), 5), 0.1)
    first = [i for i, (start, _) in enumerate(pieces.spans) if start < 10]
    assert len(first) == 3
    for i, label in zip(first, (1, 3, 4)):
        scores[i, label] = 0.6
    scores[3:, 0] = 0.6
    # the ▁ and the <unk> of the emoji
    scores[-2:] = torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.6, 0.1]])
    ((kind, score, start, end),) = task.find_entities(text, pieces, scores)
    assert (kind, start, end) == ("LOC", 0, 10) and score == pytest.approx((0.2 + 0.7 + 0.7) / 3)


def test_random_scores_give_entities_of_whole_words():
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    parts = [
        "l'",
        "Élysée",
        "Jean-",
        "Pierre",
        ", ",
        ". ",
        " ",
        " ",
        "👍",
        "« ",
        " »",
        "(",
        ")",
        "S.N.C.F.",
        "e\u0301",
        "3,5",
    ]
    task = NerTask(TaskSettings(TOKENIZER, 512), LABELS)
    count = 0
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randrange(12)))
        pieces = task.pieces(TextExample(text, ""))
        scores = (3 * torch.randn(len(pieces.ids), 5, generator=generator)).softmax(dim=-1)
        found = task.find_entities(text, pieces, scores)
        count += len(found)
        starts, ends = zip(*text_words(text)) if text_words(text) else ((), ())
        for entity in found:
            assert entity.start in starts
            assert entity.end in ends or text[entity.end - 1] in ").»"
        assert all(one.end <= two.start for one, two in pairwise(found))
    assert count > 300


@needs(REAL_TOKENIZER, WIKINEURAL)
def test_entities_of_real_sentences_are_found_in_their_text():
    """If every piece has the tag of its word, the text gives nearly all entities: 99.8 % of those in the whole file."""
    examples = read_task("ner", [WIKINEURAL], ignore)[:500]
    task = NerTask(TaskSettings(Tokenizer(REAL_TOKENIZER), 512), labels_of(examples))
    predictions = []
    for example in examples:
        text, starts = join_words(example.words)
        pieces = task.pieces(TextExample(text, ""))
        word_ids = [bisect_right(starts, start) - 1 for start, _ in pieces.spans]
        scores = torch.eye(len(task.labels))[task.targets(example.tags, word_ids)]
        predictions.append(EntityPrediction(task.find_entities(text, pieces, scores), pieces, scores))
    report = task.text_metrics(predictions, examples, 0)
    assert 0.99 < report["entity_f1"]["value"] < 1 and report["count"] == 500
    assert report["overlap_f1"]["value"] > 0.99 and report["subword_f1"]["value"] == 1


def test_a_fine_tuned_model_agrees_on_text_and_on_words(tmp_path):
    """Within a point of F1, and no entity cuts a word. eval/LOG.md has the figures of real sentences."""
    write_tasks(tmp_path, {"ner": 900})
    train, dev, test = (str(tmp_path / f"ner/{part}.conllu") for part in ("train", "dev", "test"))
    settings = dict(model=str(demo.TEACHER), train=(train,), dev=(dev,), out=str(tmp_path / "out"), device="cpu")
    settings |= dict(precision="fp32", epochs=1, lr=1e-3, dropout=0.0)
    finetune("ner", FinetuneOptions(**settings), "")
    examples = read_task("ner", [test], ignore)
    options = Options(model=str(tmp_path / "out"), test=(test,), device="cpu", precision="fp32")
    model, task, runtime = open_model(options.model, "ner", options)
    on_words = evaluate(model, task, examples, runtime, options)
    on_text = evaluate(model, task, examples, runtime, replace(options, as_text=True))
    for name in ("entity_f1", "overlap_f1", "subword_f1"):
        assert on_text[name]["value"] == pytest.approx(on_words[name]["value"], abs=0.01)
    assert on_words["entity_f1"]["value"] > 0.6 and on_text["count"] == on_words["count"] == len(examples)
    texts = [TextExample(join_words(example.words)[0], "") for example in examples]
    predictions = predict(model, task, texts, runtime, 2048)
    found = [(text, entity) for (text, _), (entities, _, _) in zip(texts, predictions) for entity in entities]
    borders = [text[place - 1 : place + 1] for text, e in found for place in (e.start, e.end) if place]
    assert len(borders) > 300 and not any(len(border) == 2 and border.isalnum() for border in borders)
