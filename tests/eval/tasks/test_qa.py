"""Answers to tokens and back; metrics by hand and against a literal reading of SQuAD's rules, and French."""

import itertools
import json
import math
import random
import re
import statistics
import string

import numpy
import pytest
import torch

from data import DataError, Tokenizer, demo
from data.features import Window
from data.tasks import Answer, QuestionExample, read_task
from eval.tasks.batching import Feature, TaskSettings
from eval.tasks.qa import QaTask, answer_f1, best_span, exact_match, inclusion, normalise, qa_report
from tests.eval.tasks.shared import TOKENIZER, asked, confident_outputs, ignore
from tests.helpers import REAL_TOKENIZER, SHARED, needs

PIAF = SHARED / "data/qa/piaf-v1.0.json"


# ---- the best span ---------------------------------------------------------------------------------------------


def brute_force(logits, spans, max_answer):
    pairs = [(i, j) for i in range(len(spans)) for j in range(i, min(i + max_answer, len(spans)))]
    return max((float(logits[i, 0]) + float(logits[j, 1]), spans[i][0], spans[j][1]) for i, j in pairs)


@pytest.mark.parametrize("max_answer", [1, 2, 5, 30, 10_000])
def test_the_best_span_is_the_best_of_all(max_answer):
    generator = torch.Generator().manual_seed(max_answer)
    for _ in range(100):
        count = int(torch.randint(1, 40, (), generator=generator))
        logits = torch.randn(count, 2, generator=generator)
        spans = [(5 * i, 5 * i + 4) for i in range(count)]
        assert best_span(logits, spans, max_answer) == pytest.approx(brute_force(logits, spans, max_answer))
    assert best_span(torch.zeros(0, 2), [], max_answer)[0] == float("-inf")


def test_the_answer_from_several_windows():
    """A context of five letters in two windows that share the third."""
    example = QuestionExample("1", "a b c d e", "?", (Answer("d", 6),))
    head, spans = [5, 9, 6, 6], [(2 * i, 2 * i + 1) for i in range(5)]
    windows = [Window([*head, 20, 21, 22, 6], 4, spans[:3], 0), Window([*head, 22, 23, 24, 6], 4, spans[2:], 2)]
    features = [Feature(window.ids, 0, None, window, asked=(0, 4, 5, 6)) for window in windows]
    outputs = [torch.zeros(8, 2), torch.zeros(8, 2)]
    for output in outputs:
        output[[0, 1, 7]] = 50.0  # <s>, question and </s> are not answers
    outputs[0][4, 0] = 2.0  # from a …
    outputs[0][6, 1] = 2.5  # … to c would be three tokens
    outputs[1][5, 0] = outputs[1][6, 1] = 1.8  # from d to e
    outputs = asked(outputs, features)
    (prediction,) = QaTask(TaskSettings(TOKENIZER, 16, max_answer=2)).decode(outputs, features, [example])
    starts = math.exp(2) + math.exp(1.8) + 3  # c once, with the higher of its logits
    ends = math.exp(2.5) + math.exp(1.8) + 3
    assert prediction[:3] == ("d e", 6, 9)
    assert prediction.score == pytest.approx(math.exp(1.8) / starts * math.exp(1.8) / ends, rel=1e-6)
    (longer,) = QaTask(TaskSettings(TOKENIZER, 16, max_answer=3)).decode(outputs, features, [example])
    assert longer.answer == "a b c"
    assert longer.score == pytest.approx(math.exp(4.5) / starts / ends, rel=1e-6)


# ---- the score -------------------------------------------------------------------------------------------------


def long_question(stride):
    """-> a task with unlimited answers, a long context as features, and each window's position in the context"""
    context = "Le film est long. " * 50
    example = QuestionExample("1", context, "Où ?", (Answer("faux", None),))
    task = QaTask(TaskSettings(TOKENIZER, 96, doc_stride=stride, max_answer=10_000))
    features, spans = task.encode([example], ignore), TOKENIZER.encode_spans(context)[1]
    assert len(features) > 4 and len(set(spans)) == len(spans)
    return task, example, features, [spans.index(feature.window.spans[0]) for feature in features], len(spans)


def test_the_score_does_not_depend_on_the_stride_if_the_windows_agree():
    """A token that two windows share counts once in the softmaxes of start and end."""
    predictions = []
    for stride in (0, 16, 32):
        task, example, features, offsets, number = long_question(stride)
        logits = torch.randn(number, 2, generator=torch.Generator().manual_seed(0))
        logits[50, 0] = logits[52, 1] = 4.0  # the answer, inside a window for each of the strides
        outputs = [torch.zeros(len(feature.ids), 2) for feature in features]
        for output, feature, offset in zip(outputs, features, offsets):
            of_window = logits[offset : offset + len(feature.window.spans)]
            output[feature.window.context_start :][: len(of_window)] = of_window
        (prediction,) = task.decode(asked(outputs, features), features, [example])
        starts, ends = logits.double().softmax(dim=0).T
        assert prediction.score == pytest.approx((starts[50] * ends[52]).item(), rel=1e-5)
        predictions.append(prediction[:3])
    assert predictions[0] == predictions[1] == predictions[2]


@pytest.mark.parametrize("stride", [0, 16, 32])
def test_the_probabilities_of_all_spans_sum_to_at_most_1_if_the_windows_disagree(stride):
    task, example, features, offsets, _ = long_question(stride)
    generator = torch.Generator().manual_seed(1)
    outputs = [torch.randn(len(feature.ids), 2, generator=generator) for feature in features]
    (prediction,) = task.decode(asked(outputs, features), features, [example])
    best = {}  # span -> the highest sum of its logits over the windows
    for output, feature, offset in zip(outputs, features, offsets):
        starts, ends = output[feature.window.context_start : -1].T.tolist()
        for i, j in itertools.combinations_with_replacement(range(len(starts)), 2):
            span = (offset + i, offset + j)
            best[span] = max(best.get(span, -math.inf), starts[i] + ends[j])
    log_normaliser = max(best.values()) - math.log(prediction.score)
    assert 0 < sum(math.exp(value - log_normaliser) for value in best.values()) <= 1


def test_the_score_in_a_single_window():
    example = QuestionExample("1", "Le film est long.", "Quoi ?", (Answer("film", 3),))
    task = QaTask(TaskSettings(TOKENIZER, 64))
    (feature,) = task.encode([example], ignore)
    output = torch.randn(len(feature.ids), 2, generator=torch.Generator().manual_seed(0))
    (prediction,) = task.decode(asked([output], [feature]), [feature], [example])
    logits = output[feature.window.context_start : -1]
    best, *_ = brute_force(logits, feature.window.spans, 30)
    assert prediction.score == (best - logits.logsumexp(dim=0).sum()).exp().item()  # to the last bit


def test_an_empty_context_has_no_answer():
    example = QuestionExample("1", "", "Où ?", (Answer("x", None),))
    task = QaTask(TaskSettings(TOKENIZER, 32))
    features = task.encode([example], ignore)
    assert [feature.target for feature in features] == [None]
    assert task.decode([torch.zeros(1, 2)], features, [example]) == [("", 0, 0, 0.0, math.inf)]


# ---- targets ---------------------------------------------------------------------------------------------------


def test_the_targets_of_windows():
    context = " ".join(itertools.islice(demo.texts(), 3))
    start = context.index(" ", len(context) // 2) + 1
    answer = context[start : context.index(" ", start)].rstrip(",.")
    example = QuestionExample("1", context, "Où ?", (Answer("faux", None), Answer(answer, start)))
    reports = []
    features = QaTask(TaskSettings(TOKENIZER, 32, doc_stride=5)).encode([example], reports.append)
    assert reports == [] and len(features) > 3
    inside = [feature for feature in features if feature.target != (0, 0)]
    assert 1 <= len(inside) <= 2
    for feature in features:
        if feature in inside:
            spans, context_start = feature.window.spans, feature.window.context_start
            (first, _), (_, end) = (spans[i - context_start] for i in feature.target)
            assert context[first:end].strip(",.") == answer
        contained = any(a <= start < b for a, b in feature.window.spans)
        assert (feature in inside) == contained or len(inside) == 1
    reports.clear()
    QaTask(TaskSettings(TOKENIZER, 32)).encode([example._replace(answers=(Answer(context, 0),))], reports.append)
    assert len(reports) == 1 and "1 of 1 answers start or end inside a token, or are longer than a window" in reports[0]


def boundary_is_inside_a_token(tokenizer, context, start, end) -> bool:
    """Whether a token that contains part of the answer has letters or digits outside the answer."""
    for first, after in tokenizer.encode_spans(context)[1]:
        if first < end and after > start:
            outside = context[first : max(first, start)] + context[min(after, end) : after]
            if any(c.isalnum() for c in outside):
                return True
    return False


@needs(REAL_TOKENIZER, PIAF)
def test_confident_outputs_give_every_answer_of_real_data():
    """Except those that do not start or end with a token, and those whose offset in the file is wrong."""
    real, examples = Tokenizer(REAL_TOKENIZER), read_task("qa", [PIAF], ignore)
    features = QaTask(TaskSettings(real, 512)).encode(examples, ignore)
    longest = max(feature.target[1] - feature.target[0] for feature in features if feature.target) + 1
    features = [feature._replace(target=feature.target or (0, 0)) for feature in features]
    task = QaTask(TaskSettings(real, 512, max_answer=longest))
    predictions = task.decode(confident_outputs(features, 2), features, examples)
    wrong, inside, no_offset = set(), set(), set()
    for example, prediction in zip(examples, predictions, strict=True):
        (answer,) = example.answers
        if answer_f1(prediction.answer, [answer.text], "fr") < 1:
            wrong.add(example.id)
        if answer.start is None:
            no_offset.add(example.id)
        elif boundary_is_inside_a_token(real, example.context, answer.start, answer.start + len(answer.text)):
            inside.add(example.id)
    assert wrong == inside | no_offset
    assert (len(examples), len(inside), len(no_offset)) == (3835, 5, 2)


@needs(REAL_TOKENIZER, PIAF)
def test_confident_outputs_give_every_answer_from_short_windows():
    """In windows of 100 tokens: every answer that fits into the overlap of two windows."""
    real = Tokenizer(REAL_TOKENIZER)
    examples = [example for example in read_task("qa", [PIAF], ignore)[::8] if example.answers[0].start is not None]
    task = QaTask(TaskSettings(real, 100, doc_stride=30, max_answer=30))
    features = task.encode(examples, ignore)
    assert len(features) > 1.5 * len(examples)
    predictions = task.decode(confident_outputs(features, 2), features, examples)
    checked = 0
    for example, prediction in zip(examples, predictions):
        (answer,) = example.answers
        end = answer.start + len(answer.text)
        short = len(real.encode(answer.text)) < 28 and len(real.encode(example.question)) < 30
        if short and not boundary_is_inside_a_token(real, example.context, answer.start, end):
            assert answer_f1(prediction.answer, [answer.text], "fr") == 1, example.id
            checked += 1
    assert checked > 400


# ---- metrics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "language, text, expected",
    [
        ("en", "The Cat, an  animal", "cat animal"),
        ("en", "A", ""),
        ("en", "theatre another a.n", "theatre another"),  # punctuation is removed first: a.n becomes an
        ("en", "\tU.S.A.\u00a0!", "usa"),
        ("en", "don't", "dont"),
        ("en", "the-end", "theend"),
        ("en", "«the» 3,000 $ 5 €", "« » 3000 5 €"),  # ASCII punctuation only
        ("en", "l'été le", "lété le"),  # French articles stay
        ("en", "don’t…", "don’t…"),
        ("fr", "L'été", "été"),
        ("fr", "L’été", "été"),
        ("fr", "à l'École, le soir", "à école soir"),
        ("fr", "Le la les l'x du des au aux un une x", "x x"),
        ("fr", "LES Unes", "unes"),
        ("fr", "de la Loire", "de loire"),  # "de" is not on FQuAD's list
        ("fr", "d'été aujourd’hui", "dété aujourdhui"),
        ("fr", "« dix-huit » – 1914–1918…", "dixhuit 19141918"),
        ("fr", "l'", ""),
        ("fr", "mal'x", "malx"),
        ("fr", "the a an", "the a an"),
        ("fr", "5\u202f000 €", "5 000 €"),
    ],
)
def test_normalisation_by_hand(language, text, expected):
    assert normalise(text, language) == expected


def test_an_unknown_language():
    with pytest.raises(DataError, match="French .* or English .*, not in 'de'"):
        normalise("x", "de")


def squads_words(text: str) -> list[str]:
    """SQuAD's rules a second time, from its paper: one substitution per rule."""
    text = re.sub("[" + re.escape(string.punctuation) + "]", "", text.lower())
    return [word for word in re.split(r"\s+", re.sub(r"(?<!\w)(the|an|a)(?!\w)", " ", text)) if word]


def test_english_equals_squads_rules_on_random_texts():
    rng = random.Random(0)
    pieces = ["the", "The", "a", "an", "cat", "CAT", "été", "’s", "«", "\u00a0", "\t", "3", "theatre", "İ", "ß"]
    pieces = [*4 * pieces, *string.punctuation, " "]
    partial = 0
    for number in range(5000):
        separator = ["", " "][number % 2]
        prediction, answer = (separator.join(rng.choices(pieces, k=rng.randrange(12))) for _ in range(2))
        words, gold = squads_words(prediction), squads_words(answer)
        assert normalise(prediction, "en").split() == words
        assert exact_match(prediction, [answer], "en") == (words == gold)
        common = sum(min(words.count(word), gold.count(word)) for word in set(words))
        precision_recall = [common / max(len(words), 1), common / max(len(gold), 1)]
        f1 = statistics.harmonic_mean(precision_recall) if words and gold else float(words == gold)
        assert answer_f1(prediction, [answer], "en") == pytest.approx(f1)
        partial += 0 < f1 < 1
    assert partial > 300


@pytest.mark.parametrize(
    "prediction, answers, exact, f1, included",
    [
        ("l'été 1914", ["Été 1914."], 1, 1, 1),
        ("en été 1914", ["l’été 1914"], 0, 4 / 5, 1),
        ("1914", ["l’été 1914"], 0, 2 / 3, 0),  # the prediction must contain the answer, not the reverse
        ("Paris Paris", ["Paris"], 0, 2 / 3, 1),  # words are compared as multisets
        ("Paris Paris Lyon", ["Paris Nice Paris"], 0, 2 / 3, 0),
        ("Lyon", ["Paris", "Lyon", "à Lyon"], 1, 1, 1),
        ("à Lyon", ["Paris", "Lyon"], 0, 2 / 3, 1),
        ("1996", ["6"], 0, 0, 1),  # inclusion compares characters
        ("Lyon", ["Paris"], 0, 0, 0),
        ("", [""], 1, 1, 1),
        ("le", [""], 1, 1, 1),
        ("Lyon", [""], 0, 0, 0),  # every string contains the empty one; here it does not count
        ("", ["Lyon"], 0, 0, 0),
        ("Lyon", ["", "Lyon"], 1, 1, 1),
    ],
)
def test_metrics_by_hand(prediction, answers, exact, f1, included):
    assert exact_match(prediction, answers, "fr") == exact
    assert answer_f1(prediction, answers, "fr") == pytest.approx(f1)
    assert inclusion(prediction, answers, "fr") == included
    report = qa_report([prediction], [answers], "fr")
    expected = {"exact_match": exact, "f1": f1, "inclusion": included}
    assert {name: report[name]["value"] for name in expected} == pytest.approx(expected)


def test_the_language_is_respected():
    assert [exact_match("the cat", ["cat"], language) for language in ("en", "fr")] == [1, 0]
    assert [answer_f1("le chat", ["chat"], language) for language in ("en", "fr")] == pytest.approx([2 / 3, 1])
    assert [inclusion("l'un", ["l'un l'"], language) for language in ("en", "fr")] == [0, 1]
    assert qa_report(["the cat"], [["cat"]], "en")["exact_match"]["value"] == 1


def test_the_report_has_means_over_questions_with_intervals():
    rng = random.Random(0)
    words = ["un", "chat", "chien", "été", "l'eau", "3"]
    predictions = [" ".join(rng.choices(words, k=2)) for _ in range(400)]
    lengths = [[rng.randrange(1, 4) for _ in range(rng.randrange(1, 4))] for _ in range(400)]
    answers = [[" ".join(rng.choices(words, k=k)) for k in each] for each in lengths]
    report = qa_report(predictions, answers, "fr")
    assert list(report) == ["exact_match", "f1", "inclusion", "count"] and report["count"] == 400
    assert report == json.loads(json.dumps(report))
    for name, measure in (("exact_match", exact_match), ("f1", answer_f1), ("inclusion", inclusion)):
        scores = [measure(prediction, gold, "fr") for prediction, gold in zip(predictions, answers)]
        found, mean, error = report[name], numpy.mean(scores), numpy.std(scores) / 20
        assert found["value"] == pytest.approx(mean) and 0.05 < mean < 0.95
        # a mean of 400 is nearly normal; the ends of an interval of 1,000 resamples vary by about 0.08 errors
        assert found["low"] == pytest.approx(mean - 1.96 * error, abs=0.35 * error)
        assert found["high"] == pytest.approx(mean + 1.96 * error, abs=0.35 * error)
    assert report["exact_match"]["value"] <= min(report["f1"]["value"], report["inclusion"]["value"])
    assert qa_report(predictions, answers, "fr", seed=1) != report


def test_the_gold_answers_score_1():
    for language in ("fr", "en"):
        texts = ["L'été", "« Oui »", "the end", "", "le", "a", "3,5 %"]
        report = qa_report(texts, [["autre", text] for text in texts], language)
        assert all(report[name] == {"value": 1, "low": 1, "high": 1} for name in ("exact_match", "f1", "inclusion"))


@pytest.mark.parametrize(
    "predictions, answers, message",
    [
        (["a"], [["a"], ["b"]], "1 predictions, but answers to 2 questions"),
        ([], [], "nothing to measure"),
        (["a", "b"], [["a"], []], "no gold answer"),
    ],
)
def test_invalid_reports(predictions, answers, message):
    with pytest.raises(DataError, match=message):
        qa_report(predictions, answers, "fr")
