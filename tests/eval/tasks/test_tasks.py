"""Targets, decoding and losses of the tasks: on made-up outputs, against torch and transformers, and there and back."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from seqeval.metrics import f1_score
from transformers import TokenClassificationPipeline

from data import OptionError, Tokenizer, demo
from data.features import Pieces, Window
from data.tasks import Answer, PairExample, QuestionExample, TextExample, WordsExample, labels_of, read_task
from eval.tasks.batching import Feature, TaskSettings
from eval.tasks.evaluate import check_labels, merged, read_label_map
from eval.tasks.finetune import losses_of, task_loss
from eval.tasks.ner import NerTask, Tags, entities_in, piece_tag
from eval.tasks.qa import QaTask, answer_f1, best_span
from eval.tasks.sequences import SequenceTask
from losses import IGNORE_INDEX
from tests.helpers import REAL_TOKENIZER, SHARED, needs, relative_norm

WIKINEURAL, PIAF = SHARED / "data/ner/wikineural.fr.val.conllu", SHARED / "data/qa/piaf-v1.0.json"
SURE = 30.0


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(demo.FOLDER)


@pytest.fixture(scope="module")
def real():
    return Tokenizer(REAL_TOKENIZER)


def ignore(sentence: str) -> None:
    pass


def sure_outputs(items, num_labels: int) -> list[torch.Tensor]:
    """Outputs of a model that is sure of every target."""
    outputs = []
    for item in items:
        if isinstance(item.target, int):
            output = F.one_hot(torch.tensor(item.target), num_labels)
        elif item.window is not None:
            output = torch.zeros(len(item.ids), 2)
            output[list(item.target), [0, 1]] = 1
        else:
            output = torch.zeros(len(item.ids), num_labels)
            for place, target in enumerate(item.target):
                if target != IGNORE_INDEX:
                    output[place, target] = 1
        outputs.append(SURE * output.float())
    return outputs


# ---- sentiment and inference -----------------------------------------------------------------------------------


def test_texts_and_pairs_as_items(tokenizer):
    task = SequenceTask(TaskSettings(tokenizer, 20), ("bon", "nul"))
    text = "Le film se passe à Brest."
    reports = []
    examples = [TextExample(text, "nul"), PairExample(text, "Il est long.", "bon"), TextExample("", "inconnu")]
    items = task.encode(examples, reports.append)
    assert items == [
        Feature(tokenizer.encode(text), 0, 1),
        Feature(tokenizer.encode(text, "Il est long."), 1, 0),
        Feature([5, 6], 2, None),
    ]
    assert reports == []
    ((logits, targets),) = task.logits_and_targets([torch.ones(2), torch.zeros(2), torch.ones(2)], items)
    assert logits.tolist() == [[1, 1], [0, 0], [1, 1]] and targets.tolist() == [1, 0, IGNORE_INDEX]


def test_what_is_cut_is_said(tokenizer):
    long = "Le film se passe à Brest. " * 9
    examples = [TextExample(long, "a"), TextExample("Le film", "a"), PairExample(long, long, "a")]
    reports = []
    items = SequenceTask(TaskSettings(tokenizer, 16), ("a",)).encode(examples, reports.append)
    assert [len(item.ids) for item in items][::2] == [16, 16] and len(items) == 3
    assert reports == ["2 of 3 texts are longer than 16 tokens and were cut."]
    reports.clear()
    items = SequenceTask(TaskSettings(tokenizer, 16, windows=True), ("a",)).encode(examples[:2], reports.append)
    assert reports == [] and [item.example for item in items] == [0] * (len(items) - 1) + [1]
    assert [i for item in items[:-1] for i in item.ids[1:-1]] == tokenizer.encode(long)[1:-1]
    assert {item.target for item in items} == {0}


def test_the_probabilities_of_windows_are_averaged(tokenizer):
    task = SequenceTask(TaskSettings(tokenizer, 16, windows=True), ("a", "b", "c"))
    outputs = [torch.tensor(x).log() for x in ([0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2])]
    items = [Feature([5, 6], 0), Feature([5, 6], 0), Feature([5, 6], 1)]
    first, second = task.decode(outputs, items, [None, None])
    assert first.label == "c" and torch.allclose(first.scores, torch.tensor([0.35, 0.25, 0.4]))
    assert second.label == "b" and torch.allclose(second.scores, torch.tensor([0.2, 0.6, 0.2]))
    examples = [TextExample("", "c"), TextExample("", "a")]
    figures = task.report([first, second], examples, 0)
    assert figures["accuracy"]["value"] == 0.5


def test_labels_by_other_names():
    labels = ("1 star", "2 stars", "3 stars")
    assert read_label_map(["0=1 star,2 stars", "1=3 stars"], labels) == {"0": ["1 star", "2 stars"], "1": ["3 stars"]}
    wrong = [["0"], ["=1 star"], ["0=4 stars"], ["0=1 star", "0=2 stars"], ["0=1 star", "1=1 star"], ["0="]]
    for pairs in wrong:
        with pytest.raises(OptionError, match="--label-map"):
            read_label_map(pairs, labels)
    logits = torch.tensor([0.1, 0.2, 0.7]).log() + 3
    assert torch.allclose(merged(logits, [[0, 1], [2]]).softmax(dim=0), torch.tensor([0.3, 0.7]))
    check_labels(labels, ["3 stars"], "Do this.")
    with pytest.raises(OptionError, match=r"the label 'x', which the model does not know: .*3 stars\. Do this\.$"):
        check_labels(labels, ["3 stars", "x"], "Do this.")


# ---- named entities --------------------------------------------------------------------------------------------


def test_tags_of_pieces(tokenizer):
    assert piece_tag("B-LOC", True) == "B-LOC" and piece_tag("B-LOC", False) == "I-LOC"
    assert piece_tag("I-SUB-LOC", False) == "I-SUB-LOC" and piece_tag("O", False) == "O"
    words, tags = ("Jean", "habite", "Landerneau", "."), ("B-PER", "O", "B-LOC", "O")
    example = WordsExample(words, tags)
    labels = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    task = NerTask(TaskSettings(tokenizer, 64), labels)
    (item,) = task.encode([example], ignore)
    pieces = task.pieces(example)
    assert item.ids == [5, *pieces.ids, 6] and item.target[0] == item.target[-1] == IGNORE_INDEX
    found = [labels[i] for i in item.target[1:-1]]
    assert pieces.words.count(2) > 1  # so that there is a second piece to tag
    for place, (word, tag) in enumerate(zip(pieces.words, found)):
        first = place == 0 or pieces.words[place - 1] != word
        assert tag == (tags[word] if first else tags[word].replace("B-", "I-"))
    only_inside = NerTask(TaskSettings(tokenizer, 64), ("O", "I-LOC"))  # as the released model: no B-, and here no PER
    (item,) = only_inside.encode([example], ignore)
    assert [i for i, word in zip(item.target[1:-1], pieces.words) if word == 2] == [1] * pieces.words.count(2)
    assert {i for i, word in zip(item.target[1:-1], pieces.words) if word == 0} == {IGNORE_INDEX}


def test_a_word_has_the_tag_of_its_first_piece(tokenizer):
    example = WordsExample(("Landerneau", "Brest"), ("B-LOC", "O"))
    task = NerTask(TaskSettings(tokenizer, 64), ("O", "B-LOC", "I-LOC"))
    (item,) = task.encode([example], ignore)
    pieces = task.pieces(example)
    output = torch.zeros(len(item.ids), 3)
    output[0, 2] = output[-1, 2] = 9  # <s> and </s> are nobody's
    output[1, 1] = 5
    output[2, 2] = 7
    (prediction,) = task.decode([output], [item], [example])
    assert prediction.tags == ["B-LOC", "O"] and prediction.pieces == pieces
    assert torch.allclose(prediction.scores, output[1:-1].softmax(dim=-1))
    figures = task.report([prediction], [example], 0)
    assert figures["entity_f1"]["value"] == 1
    assert figures["subword_f1"]["value"] < 1  # the other pieces of Landerneau were said to be O


@needs(REAL_TOKENIZER, WIKINEURAL)
@pytest.mark.parametrize("most", [512, 20])
def test_every_tag_comes_back(real, most):
    """Words and tags to pieces, by windows, and what a model that is sure of each piece says: the same."""
    examples = read_task("ner", [WIKINEURAL], ignore)
    assert len(examples) == 12_600
    labels = labels_of(examples)
    examples = examples if most == 512 else examples[::4]  # for time
    task = NerTask(TaskSettings(real, most), labels)
    items = task.encode(examples, ignore)
    assert max(len(item.ids) for item in items) <= most
    assert (len(items) > 1.5 * len(examples)) == (most == 20)
    tags = [prediction.tags for prediction in task.decode(sure_outputs(items, len(labels)), items, examples)]
    gold = [list(example.tags) for example in examples]
    assert tags == gold
    if most == 512:
        assert f1_score(gold, tags) == 1


def pipeline_of(labels) -> TokenClassificationPipeline:
    """Only what groups its entities."""
    pipeline = TokenClassificationPipeline.__new__(TokenClassificationPipeline)
    pipeline.model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(labels))))
    pipeline.tokenizer = SimpleNamespace(convert_tokens_to_string=" ".join)
    return pipeline


LABELS = [("O", "B-LOC", "B-PER", "I-LOC", "I-PER"), ("O", "I-LOC", "I-PER")]


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_entities_are_those_of_the_pipeline(labels):
    pipeline, generator = pipeline_of(labels), torch.Generator().manual_seed(0)
    for _ in range(300):
        count = int(torch.randint(0, 12, (), generator=generator))
        scores = (3 * torch.randn(count, len(labels), generator=generator)).softmax(dim=-1)
        spans = [(4 * place, 4 * place + 3) for place in range(count)]
        prediction = Tags([], Pieces([9] * count, list(range(count)), spans), scores)
        tokens = [
            {"scores": row.numpy(), "start": start, "end": end, "index": place, "word": "x"}
            for place, (row, (start, end)) in enumerate(zip(scores, spans))
        ]
        expected = [e for e in pipeline.aggregate(tokens, "simple") if e["entity_group"] != "O"] if count else []
        actual = entities_in(prediction, labels)
        assert [(e.type, e.start, e.end) for e in actual] == [
            (e["entity_group"], e["start"], e["end"]) for e in expected
        ]
        assert all(math.isclose(a.score, e["score"], rel_tol=1e-5) for a, e in zip(actual, expected))


# ---- questions -------------------------------------------------------------------------------------------------


def brute_force(logits, spans, most):
    pairs = [(i, j) for i in range(len(spans)) for j in range(i, min(i + most, len(spans)))]
    return max((float(logits[i, 0]) + float(logits[j, 1]), spans[i][0], spans[j][1]) for i, j in pairs)


@pytest.mark.parametrize("most", [1, 2, 5, 30, 10_000])
def test_the_best_span_is_the_best_of_all(most):
    generator = torch.Generator().manual_seed(most)
    for _ in range(100):
        count = int(torch.randint(1, 40, (), generator=generator))
        logits = torch.randn(count, 2, generator=generator)
        spans = [(5 * place, 5 * place + 4) for place in range(count)]
        assert best_span(logits, spans, most) == pytest.approx(brute_force(logits, spans, most))
    assert best_span(torch.zeros(0, 2), [], most)[0] == float("-inf")


def windows_by_hand():
    """A question on a context of five letters, in two windows that share the third."""
    context, head = "a b c d e", [5, 9, 6, 6]
    spans = [(2 * i, 2 * i + 1) for i in range(5)]
    windows = [Window([*head, 20, 21, 22, 6], 4, spans[:3]), Window([*head, 22, 23, 24, 6], 4, spans[2:])]
    return QuestionExample("1", context, "?", (Answer("d", 6),)), [Feature(w.ids, 0, None, w) for w in windows]


def test_the_answer_of_several_windows(tokenizer):
    example, items = windows_by_hand()
    task = QaTask(TaskSettings(tokenizer, 16, max_answer=2))
    outputs = [torch.zeros(8, 2), torch.zeros(8, 2)]
    for output in outputs:
        output[[0, 1, 7]] = 50.0  # <s>, question and </s> are no answers
    outputs[0][4, 0] = 2.0  # from a …
    outputs[0][6, 1] = 2.5  # … to c would be three tokens
    outputs[1][5, 0] = outputs[1][6, 1] = 1.8  # from d to e
    (prediction,) = task.decode(outputs, items, [example])
    starts = math.exp(2) + math.exp(1.8) + 4
    ends = math.exp(2.5) + math.exp(1.8) + 4
    assert prediction[:3] == ("d e", 6, 9)
    assert prediction.score == pytest.approx(math.exp(1.8) / starts * math.exp(1.8) / ends, rel=1e-6)
    (longer,) = QaTask(TaskSettings(tokenizer, 16, max_answer=3)).decode(outputs, items, [example])
    assert longer.answer == "a b c"
    assert longer.score == pytest.approx(math.exp(4.5) / starts / ends, rel=1e-6)


def test_an_empty_context_has_no_answer(tokenizer):
    example = QuestionExample("1", "", "Où ?", (Answer("x", None),))
    task = QaTask(TaskSettings(tokenizer, 32))
    items = task.encode([example], ignore)
    assert [item.target for item in items] == [None]
    assert task.decode([torch.zeros(len(items[0].ids), 2)], items, [example]) == [("", 0, 0, 0.0)]


def test_the_targets_of_windows(tokenizer):
    context = " ".join(itertools.islice(demo.texts(), 3))
    start = context.index(" ", len(context) // 2) + 1
    answer = context[start : context.index(" ", start)].rstrip(",.")
    example = QuestionExample("1", context, "Où ?", (Answer("faux", None), Answer(answer, start)))
    reports = []
    items = QaTask(TaskSettings(tokenizer, 32, doc_stride=5)).encode([example], reports.append)
    assert reports == [] and len(items) > 3
    inside = [item for item in items if item.target != (0, 0)]
    assert 1 <= len(inside) <= 2
    for item in items:
        first, last = item.target
        covered = [item.window.spans[i - item.window.first] for i in (first, last)] if item in inside else None
        assert covered is None or context[covered[0][0] : covered[1][1]].strip(",.") == answer
        assert (item in inside) == any(a <= start < b for a, b in item.window.spans) or len(inside) == 1
    reports.clear()
    QaTask(TaskSettings(tokenizer, 32)).encode([example._replace(answers=(Answer(context, 0),))], reports.append)
    assert len(reports) == 1 and "1 of 1 answers begin or end inside a token, or are longer than a window" in reports[0]


def border_is_inside(tokenizer, context, start, end) -> bool:
    """Whether letters or digits of a token that holds part of the answer are outside the answer."""
    for first, after in tokenizer.encode_spans(context)[1]:
        if first < end and after > start:
            outside = context[first : max(first, start)] + context[min(after, end) : after]
            if any(c.isalnum() for c in outside):
                return True
    return False


@needs(REAL_TOKENIZER, PIAF)
def test_every_answer_comes_back(real):
    """But for those that no token begins or ends with, and those whose offset is wrong in the file."""
    examples = read_task("qa", [PIAF], ignore)
    task = QaTask(TaskSettings(real, 512))
    items = task.encode(examples, ignore)
    longest = max(item.target[1] - item.target[0] for item in items if item.target) + 1
    known = [item._replace(target=item.target or (0, 0)) for item in items]
    predictions = QaTask(TaskSettings(real, 512, max_answer=longest)).decode(sure_outputs(known, 2), known, examples)
    wrong, inside, no_offset = set(), set(), set()
    for example, prediction in zip(examples, predictions, strict=True):
        (answer,) = example.answers
        if answer_f1(prediction.answer, [answer.text], "fr") < 1:
            wrong.add(example.id)
        if answer.start is None:
            no_offset.add(example.id)
        elif border_is_inside(real, example.context, answer.start, answer.start + len(answer.text)):
            inside.add(example.id)
    assert wrong == inside | no_offset
    assert (len(examples), len(inside), len(no_offset)) == (3835, 5, 2)


@needs(REAL_TOKENIZER, PIAF)
def test_every_answer_comes_back_from_windows(real):
    """Of 100 tokens: every one that fits in what two windows share."""
    examples = [example for example in read_task("qa", [PIAF], ignore)[::8] if example.answers[0].start is not None]
    settings = TaskSettings(real, 100, doc_stride=30, max_answer=30)
    items = QaTask(settings).encode(examples, ignore)
    assert len(items) > 1.5 * len(examples)
    predictions = QaTask(settings).decode(sure_outputs(items, 2), items, examples)
    checked = 0
    for example, prediction in zip(examples, predictions):
        (answer,) = example.answers
        end = answer.start + len(answer.text)
        short = len(real.encode(answer.text)) < 28 and len(real.encode(example.question)) < 30
        if short and not border_is_inside(real, example.context, answer.start, end):
            assert answer_f1(prediction.answer, [answer.text], "fr") == 1, example.id
            checked += 1
    assert checked > 400


# ---- losses ----------------------------------------------------------------------------------------------------


def options(**values):
    return SimpleNamespace(**dict(soft_weight=0.7, temperature=2.0, direction="teacher-student") | values)


def of_task(name, tokenizer):
    """A task with three or so items, and float64 outputs of two models."""
    generator = torch.Generator().manual_seed(0)
    settings = TaskSettings(tokenizer, 32, doc_stride=4)
    if name == "texts":
        task = SequenceTask(settings, ("a", "b", "c"))
        examples = [TextExample("Le film", "b"), TextExample("Il est long", "c"), TextExample("Oui", "b")]
        shape = lambda item: (3,)  # noqa: E731
    elif name == "words":
        task = NerTask(settings, ("O", "B-LOC", "I-LOC"))
        examples = [
            WordsExample(("Brest", "est", "Landerneau"), ("B-LOC", "O", "B-LOC")),
            WordsExample(("Oui",), ("O",)),
        ]
        shape = lambda item: (len(item.ids), 3)  # noqa: E731
    else:
        task = QaTask(settings)
        context = " ".join(itertools.islice(demo.texts(), 2))
        examples = [QuestionExample("1", context, "Où ?", (Answer(context[:4], 0),))]
        shape = lambda item: (len(item.ids), 2)  # noqa: E731
    items = task.encode(examples, ignore)
    ours, theirs = (
        [torch.randn(shape(item), generator=generator, dtype=torch.float64, requires_grad=True) for item in items]
        for _ in range(2)
    )
    return task, items, ours, [output.detach() for output in theirs]


def classifications(name, outputs, items):
    """Every classification that is learnt, one by one: its logits (C,) and its target."""
    for output, item in zip(outputs, items):
        if name == "texts":
            yield output, item.target
        elif name == "words":
            yield from ((row, target) for row, target in zip(output, item.target) if target != IGNORE_INDEX)
        else:
            yield from ((output[:, side], item.target[side]) for side in (0, 1))


def plain_loss(name, outputs, taught, items, given):
    """(1 - a) cross-entropy + a T² KL in float64, one classification at a time."""
    hard, soft = [], []
    theirs = classifications(name, taught, items) if taught else itertools.repeat((None, None))
    for (logits, target), (their_logits, _) in zip(classifications(name, outputs, items), theirs):
        hard.append(-logits.log_softmax(0)[target])
        if taught:
            p, q = ((x / given.temperature).log_softmax(0) for x in (logits, their_logits))
            p, q = (q, p) if given.direction == "teacher-student" else (p, q)
            soft.append(given.temperature**2 * (p.exp() * (p - q)).sum())
    if not taught:
        return sum(hard) / len(hard)
    return (1 - given.soft_weight) * sum(hard) / len(hard) + given.soft_weight * sum(soft) / len(soft)


NAMES = ("texts", "words", "questions")


@pytest.mark.parametrize("name", NAMES)
def test_cross_entropy_is_summed_over_the_targets(tokenizer, name):
    task, items, outputs, _ = of_task(name, tokenizer)
    total, count = losses_of(task.logits_and_targets(outputs, items))
    expected = [F.cross_entropy(z[None], torch.tensor([t])) for z, t in classifications(name, outputs, items)]
    assert count == len(expected)
    assert total.item() == pytest.approx(sum(expected).item(), rel=1e-6)


def test_cross_entropy_by_hand():
    logits_and_targets = [
        (torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([1, 0])),
        (torch.tensor([[5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]]), torch.tensor([2, IGNORE_INDEX])),
    ]
    total, count = losses_of(logits_and_targets)
    assert count == 3
    assert total.item() == pytest.approx(math.log(2) + math.log(4 / 3) + math.log(4), rel=1e-6)


@pytest.mark.parametrize("direction", ["student-teacher", "teacher-student"])
@pytest.mark.parametrize("weight", [None, 0.0, 0.7, 1.0], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_its_gradient_are_those_of_the_plain_form(tokenizer, name, weight, direction):
    """Both are means over the same targets. The loss computes in float32, the plain form in float64."""
    task, items, outputs, taught = of_task(name, tokenizer)
    taught = None if weight is None else taught
    given = options(direction=direction, soft_weight=weight)
    found = []
    for loss in (task_loss(outputs, taught, items, task, given), plain_loss(name, outputs, taught, items, given)):
        gradients = torch.autograd.grad(loss, outputs)
        found.append((loss.item(), torch.cat([gradient.flatten() for gradient in gradients])))
    (loss, gradient), (expected, expected_gradient) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    assert relative_norm(gradient, expected_gradient) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_student_that_is_its_teacher_learns_nothing(tokenizer, name):
    task, items, outputs, _ = of_task(name, tokenizer)
    taught = [output.detach() for output in outputs]
    loss = task_loss(outputs, taught, items, task, options(soft_weight=1.0))
    assert abs(loss.item()) < 1e-7
    assert max(gradient.abs().max() for gradient in torch.autograd.grad(loss, outputs)) < 1e-7


def test_what_no_target_says_of_a_token_its_teacher_does_not_teach_either(tokenizer):
    """<s> and </s> have no tag: what a token classifier gives there was never learnt, and is noise."""
    task, items, outputs, taught = of_task("words", tokenizer)
    other = [output.clone() for output in taught]
    for output in other:
        output[0] += torch.tensor([5.0, 0.0, -5.0])
        output[-1] -= torch.tensor([5.0, 0.0, -5.0])
    losses = [task_loss(outputs, theirs, items, task, options()) for theirs in (taught, other)]
    assert losses[0] == losses[1]
    gradients = torch.autograd.grad(losses[0], outputs)
    assert all(gradient[0].abs().max() == gradient[-1].abs().max() == 0 for gradient in gradients)
