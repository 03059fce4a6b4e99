"""Figures against scikit-learn and seqeval, intervals against scipy and a plain resampling, reports as a whole."""

import json
import time
import warnings

import numpy
import pytest
import scipy.stats
import seqeval.metrics
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from data import DataError
from eval.tasks.bootstrap import bootstrap, precision_recall_f1
from eval.tasks.ner import entities, entity_words, ner_report, span_counts
from eval.tasks.sequences import (
    accuracy,
    classification_report,
    confusions,
    in_top_k,
    label_counts,
    macro_f1,
    matthews,
    weighted_f1,
)

TAGS = ("O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-LOC", "B-MISC", "I-MISC")


@pytest.fixture(autouse=True)
def quiet():
    """Both oracles warn where a figure is undefined, and scikit-learn where there is one label only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        warnings.filterwarnings("ignore", message="A single label was found")
        yield


def labelled(random: numpy.random.Generator):
    """-> gold, predicted, C; often with labels that gold, predictions or both lack, sometimes all right"""
    num_labels, number = random.integers(2, 7), random.integers(1, 40)
    gold = random.choice(random.integers(num_labels, size=random.integers(1, 8)), size=number)
    predicted = random.choice(random.integers(num_labels, size=random.integers(1, 8)), size=number)
    return gold, numpy.where(random.random(number) < random.choice([0, 0.5, 1]), gold, predicted), int(num_labels)


def tagged(random: numpy.random.Generator, sentences: int, noise: float = 0.3):
    """-> gold and predicted tags of sentences of 0 to 14 words, any tag after any other"""
    gold = [[str(tag) for tag in random.choice(TAGS, size=random.integers(15))] for _ in range(sentences)]
    predicted = [[str(random.choice(TAGS)) if random.random() < noise else tag for tag in tags] for tags in gold]
    return gold, predicted


def plain_types(sentences):
    return [[tag[2:] or "O" for tag in tags] for tags in sentences]


def flat(sentences):
    return [kind for kinds in sentences for kind in kinds]


# ---- one label a text --------------------------------------------------------------------------------------------


def test_figures_of_a_confusion_matrix_are_scikit_learns():
    random = numpy.random.default_rng(0)
    missing = undefined = 0
    for _ in range(400):
        gold, predicted, num_labels = labelled(random)
        matrix = confusions(gold, predicted, num_labels).sum(axis=0)
        labels = range(num_labels)
        numpy.testing.assert_array_equal(matrix, confusion_matrix(gold, predicted, labels=labels))
        options = dict(zero_division=0)
        assert accuracy(matrix) == pytest.approx(accuracy_score(gold, predicted), abs=1e-12)
        assert macro_f1(matrix) == pytest.approx(f1_score(gold, predicted, average="macro", **options), abs=1e-12)
        weighted = f1_score(gold, predicted, average="weighted", **options)
        assert weighted_f1(matrix) == pytest.approx(weighted, abs=1e-12)
        assert matthews(matrix) == pytest.approx(matthews_corrcoef(gold, predicted), abs=1e-12)
        *expected, support = precision_recall_fscore_support(gold, predicted, labels=labels, **options)
        figures = precision_recall_f1(label_counts(matrix))
        numpy.testing.assert_allclose(list(figures.values()), expected, atol=1e-12)
        numpy.testing.assert_array_equal(label_counts(matrix)[:, 2], support)
        missing += len({*gold, *predicted}) < num_labels
        undefined += len({*gold}) == 1
    assert missing > 150 and undefined > 50  # the cases in which conventions differ were there


def test_figures_of_a_stack_are_those_of_its_matrices():
    stack = numpy.random.default_rng(0).integers(3, size=(50, 4, 4))
    for figure in (accuracy, macro_f1, weighted_f1, matthews, lambda matrix: weighted_f1(matrix, leave_out=2)):
        numpy.testing.assert_allclose(figure(stack), [figure(matrix) for matrix in stack], rtol=1e-12)


def test_a_label_left_out_of_the_weighted_mean_still_counts_in_the_other_labels():
    matrix = numpy.array([[1, 9], [1, 9]])  # of label 1: 9 right of 10, but 9 more that are label 0's
    assert weighted_f1(matrix, leave_out=0) == pytest.approx(2 * 9 / (18 + 10))
    random = numpy.random.default_rng(1)
    for _ in range(300):
        gold, predicted, num_labels = labelled(random)
        without = weighted_f1(confusions(gold, predicted, num_labels).sum(axis=0), leave_out=0)
        labels = range(1, num_labels)  # scikit-learn weights by support among these
        expected = f1_score(gold, predicted, labels=labels, average="weighted", zero_division=0)
        assert without == pytest.approx(expected, abs=1e-12)


def test_top_k_is_scikit_learns_but_among_equal_scores_the_label_named_first_is_better():
    """scikit-learn takes the last one: with the columns in reverse the two must agree on any ties."""
    assert in_top_k([0, 1, 2], numpy.zeros((3, 3))).tolist() == [True, True, False]
    random = numpy.random.default_rng(0)
    ties = 0
    for number in range(400):
        gold, k = random.integers(5, size=20), 1 + number % 4
        scores = random.integers(random.choice([3, 10**6]), size=(20, 5))
        expected = top_k_accuracy_score(4 - gold, scores[:, ::-1], k=k, labels=range(5))
        assert in_top_k(gold, scores, k).mean() == pytest.approx(expected)
        ties += expected != top_k_accuracy_score(gold, scores, k=k, labels=range(5))
    assert 100 < ties < 200


# ---- named entities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-PER I-PER O", [("PER", 0, 2)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # WikiNER has no B-
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-PER I-LOC I-LOC B-LOC", [("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)]),
        ("", []),
    ],
)
def test_entities_by_hand(tags, expected):
    assert entities(tags.split()) == expected


@pytest.mark.parametrize("tag", ["", "PER", "B-", "I", "o", "E-PER", "b-PER", "B_PER"])
def test_what_is_no_tag_is_said(tag):
    for read in (entities, entity_words):
        with pytest.raises(DataError, match="B-TYPE or I-TYPE, not '"):
            read(["O", tag])


def test_entities_are_seqevals():
    random = numpy.random.default_rng(0)
    for tags in tagged(random, 3000)[0]:
        assert entities(tags) == [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


def test_entity_figures_are_seqevals():
    random = numpy.random.default_rng(0)
    empty = 0
    for _ in range(300):
        gold, predicted = tagged(random, random.integers(1, 5), random.choice([0, 0.3, 1]))
        if not any(gold):
            continue
        spans = [entities(tags) for tags in gold], [entities(tags) for tags in predicted]
        types = sorted({kind for kind, _, _ in flat(flat(spans))})
        counts = span_counts(*spans, types).sum(axis=0)
        micro = precision_recall_f1(counts.sum(axis=0))
        for name, oracle in (("precision", "precision_score"), ("recall", "recall_score"), ("f1", "f1_score")):
            expected = getattr(seqeval.metrics, oracle)(gold, predicted, zero_division=0)
            assert micro[name] == pytest.approx(expected, abs=1e-12)
        if not types:
            empty += 1
            continue
        report = seqeval.metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
        for place, kind in enumerate(types):
            expected = report[kind]
            shares = [expected[name] for name in ("precision", "recall", "f1-score")]
            assert list(precision_recall_f1(counts[place]).values()) == pytest.approx(shares, abs=1e-12)
            assert counts[place, 2] == expected["support"]
    assert empty  # also no entity at all was there


def test_overlap_is_scikit_learns_micro_f1_over_words_without_o():
    kinds = ["LOC", "MISC", "PER"]
    random = numpy.random.default_rng(0)
    for _ in range(300):
        gold, predicted = tagged(random, random.integers(4, 9), random.choice([0, 0.3, 1]))
        counts = span_counts(*([entity_words(tags) for tags in side] for side in (gold, predicted)), kinds)
        *expected, _ = precision_recall_fscore_support(
            flat(plain_types(gold)), flat(plain_types(predicted)), labels=kinds, average="micro", zero_division=0
        )
        assert list(precision_recall_f1(counts.sum(axis=(0, 1))).values()) == pytest.approx(expected, abs=1e-12)


# ---- intervals ---------------------------------------------------------------------------------------------------


def test_an_interval_is_the_percentiles_of_figures_of_resampled_items():
    """The same items drawn, the figures worked out anew by scikit-learn."""
    random = numpy.random.default_rng(0)
    gold = random.choice(4, size=60, p=[0.6, 0.3, 0.08, 0.02])  # the last label is missing in many resamples
    predicted = numpy.where(random.random(60) < 0.5, gold, random.integers(4, size=60))
    oracles = {
        "macro": (macro_f1, lambda *pair: f1_score(*pair, average="macro", zero_division=0)),
        "mcc": (matthews, matthews_corrcoef),
    }
    report = bootstrap(
        confusions(gold, predicted, 4), lambda sums: {name: of(sums) for name, (of, _) in oracles.items()}, 7, 200
    )
    for name, (_, oracle) in oracles.items():
        draws = numpy.random.default_rng(7)
        resampled = [draws.integers(60, size=60) for _ in range(200)]
        low, high = numpy.percentile([oracle(gold[items], predicted[items]) for items in resampled], [2.5, 97.5])
        expected = {"value": oracle(gold, predicted), "low": low, "high": high}
        assert report[name] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("number", [20, 500])
def test_the_interval_of_a_mean_is_scipys(number):
    """A resampled percentile p has the standard error sqrt(p (1 - p) / repetitions) / density; the density is close
    to a normal one with the mean's own standard error, s. With 20,000 repetitions on either side the difference
    of two is 0.027 s, and 4 of these are allowed; an interval of 90 % would be off by 0.31 s."""
    sample = numpy.random.default_rng(number).normal(size=number)
    found = bootstrap(sample, lambda sums: {"mean": sums / number}, 1, 20_000)["mean"]
    theirs = scipy.stats.bootstrap(
        (sample,), numpy.mean, n_resamples=20_000, method="percentile", rng=numpy.random.default_rng(2)
    ).confidence_interval
    error = numpy.sqrt(0.025 * 0.975) / scipy.stats.norm.pdf(1.96) * numpy.sqrt(2 / 20_000)
    allowed = 4 * error * sample.std() / numpy.sqrt(number)
    assert found["value"] == pytest.approx(sample.mean())
    assert found["low"] == pytest.approx(theirs.low, abs=allowed)
    assert found["high"] == pytest.approx(theirs.high, abs=allowed)


# ---- reports -----------------------------------------------------------------------------------------------------


def some_texts(number: int, labels, seed: int = 0):
    random = numpy.random.default_rng(seed)
    scores = random.normal(size=(number, len(labels)))
    gold = random.choice(len(labels), size=number)
    scores[numpy.arange(number), gold] += 1
    return [labels[i] for i in gold], [labels[i] for i in scores.argmax(axis=-1)], scores


def in_order(report: dict):
    """Every figure of a report, and that it lies in its interval."""
    for figure in report.values():
        if isinstance(figure, dict) and "value" in figure:
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
            yield figure
        elif isinstance(figure, dict):
            yield from in_order(figure)


def test_the_report_of_a_classification():
    labels = ["c", "a", "b", "never"]
    gold, predicted, scores = some_texts(300, labels[:3])
    scores = numpy.concatenate([scores, numpy.full((300, 1), -9.0)], axis=1)
    report = classification_report(gold, predicted, scores, labels)
    assert report == json.loads(json.dumps(report))
    assert report["count"] == 300 and len(list(in_order(report))) == 5 + 3 * 4
    expected = {
        "accuracy": accuracy_score(gold, predicted),
        "macro_f1": f1_score(gold, predicted, average="macro"),
        "weighted_f1": f1_score(gold, predicted, average="weighted"),
        "mcc": matthews_corrcoef(gold, predicted),
        "top_2_accuracy": top_k_accuracy_score([labels.index(i) for i in gold], scores, k=2, labels=range(4)),
    }
    assert {name: report[name]["value"] for name in expected} == pytest.approx(expected)
    by_label = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    for label, *figures, support in zip(labels, *by_label):
        found = report["by_label"][label]
        assert [found[name]["value"] for name in ("precision", "recall", "f1")] == pytest.approx(figures)
        assert found["support"] == support
    other = classification_report(gold, predicted, scores, labels, seed=1)
    assert all(report[name] != other[name] for name in ("mcc", "top_2_accuracy"))
    assert "top_2_accuracy" not in classification_report(*some_texts(20, "ny"), "ny")


def test_the_report_of_named_entities():
    gold, predicted = tagged(numpy.random.default_rng(0), 200)
    sub_gold, sub_predicted = ([2 * kinds for kinds in plain_types(tags)] for tags in (gold, predicted))
    report = ner_report(gold, predicted, sub_gold, sub_predicted)
    assert report == json.loads(json.dumps(report)) and report["count"] == 200
    three = ("precision", "recall", "f1")
    assert report.keys() == {
        *(f"{prefix}_{name}" for prefix in ("entity", "overlap") for name in (*three, "by_type")),
        "subword_f1", "subword_f1_without_o", "subword_by_type", "count",
    }  # fmt: skip
    assert len(list(in_order(report))) == 3 * (1 + 3) * 2 + 2 + 3 * 4
    assert report["entity_f1"]["value"] == pytest.approx(seqeval.metrics.f1_score(gold, predicted))
    kinds = ["LOC", "MISC", "PER"]
    assert list(report["entity_by_type"]) == list(report["overlap_by_type"]) == kinds
    assert list(report["subword_by_type"]) == ["O", *kinds]
    theirs = seqeval.metrics.classification_report(gold, predicted, output_dict=True)["PER"]
    found = report["entity_by_type"]["PER"]
    assert (found["recall"]["value"], found["support"]) == pytest.approx((theirs["recall"], theirs["support"]))
    words = flat(plain_types(gold)), flat(plain_types(predicted))
    assert report["overlap_f1"]["value"] == pytest.approx(f1_score(*words, labels=kinds, average="micro"))
    per = report["overlap_by_type"]["PER"]["f1"]["value"]
    assert per == pytest.approx(f1_score(*words, labels=["PER"], average="macro"))
    # every word counts twice, so the shares over sub-words are those over words
    assert report["subword_f1"]["value"] == pytest.approx(f1_score(*words, average="weighted"))
    without = f1_score(*words, labels=kinds, average="weighted")
    assert report["subword_f1_without_o"]["value"] == pytest.approx(without)
    assert report["subword_by_type"]["O"]["support"] == 2 * words[0].count("O")
    other = ner_report(gold, predicted, sub_gold, sub_predicted, seed=1)
    assert all(report[name] != other[name] for name in ("entity_f1", "overlap_f1", "subword_f1"))


def test_sentences_are_what_is_resampled():
    gold, predicted = tagged(numpy.random.default_rng(0), 12)
    report = ner_report(gold, predicted, plain_types(gold), plain_types(predicted), seed=5)
    draws = numpy.random.default_rng(5)
    resampled = [
        seqeval.metrics.f1_score(*([side[i] for i in items] for side in (gold, predicted)))
        for items in (draws.integers(12, size=12) for _ in range(1000))
    ]
    low, high = numpy.percentile(resampled, [2.5, 97.5])
    assert (report["entity_f1"]["low"], report["entity_f1"]["high"]) == pytest.approx((low, high))


def test_the_same_as_gold_is_1_and_so_are_both_ends():
    gold, _, scores = some_texts(60, "abc")
    report = classification_report(gold, gold, scores, "abc")
    del report["top_2_accuracy"]  # of scores that are not perfect
    tags, _ = tagged(numpy.random.default_rng(0), 40)
    types = plain_types(tags)
    for perfect in (report, ner_report(tags, tags, types, types)):
        figures = list(in_order(perfect))
        assert len(figures) > 10
        assert all(figure == pytest.approx({"value": 1, "low": 1, "high": 1}) for figure in figures)


def test_without_an_entity_the_figures_are_0():
    report = ner_report([["O"], []], [["O"], []], [["O"], []], [["O"], []])
    assert report["entity_f1"] == report["overlap_recall"] == {"value": 0, "low": 0, "high": 0}
    assert report["subword_f1_without_o"]["value"] == 0 and report["subword_f1"]["value"] == 1
    assert report["entity_by_type"] == {}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(predicted=["a"]), "differ in number: 2 and 1 labels"),
        (dict(gold=[], predicted=[], scores=[]), "nothing to measure"),
        (dict(gold=["a", "z"]), "label 'z' is none of the model's: a, b, c"),
        (dict(predicted=["z", "a"]), "label 'z'"),
        (dict(scores=numpy.zeros((2, 2))), r"2 rows \(texts\) of 3 \(labels\); their shape is \(2, 2\)"),
        (dict(scores=[[0, 0, 0], [0, numpy.nan, 1]]), "text 2 are not all numbers"),
    ],
)
def test_what_is_wrong_with_a_classification_is_said(change, message):
    right = dict(gold=["a", "b"], predicted=["a", "c"], scores=numpy.zeros((2, 3)), labels=["a", "b", "c"])
    classification_report(**right)
    with pytest.raises(DataError, match=message):
        classification_report(**(right | change))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(predicted=[["O"]]), "differ in number: 2 and 1 sentences"),
        (dict(predicted=[["O", "O"], []]), "2 and 1 words in sentence 2|0 words in sentence 2"),
        (dict(subword_predicted=[["O"], ["O"]]), "2 and 1 sub-words in sentence 1"),
        (dict(subword_gold=[["O"]], subword_predicted=[["O"]]), "2 sentences of words, but 1 of sub-words"),
        (dict(gold=[], predicted=[]), "nothing to measure: not one sentence has words"),
        (dict(subword_gold=[[], []], subword_predicted=[[], []]), "nothing to measure: .* sub-words"),
        (dict(gold=[["O", "PER"], ["O"]]), "not 'PER'"),
    ],
)
def test_what_is_wrong_with_named_entities_is_said(change, message):
    right = dict(
        gold=[["O", "B-PER"], ["O"]], predicted=[["O", "O"], ["O"]],
        subword_gold=[["O", "PER"], ["O"]], subword_predicted=[["O", "O"], ["O"]],
    )  # fmt: skip
    ner_report(**right)
    with pytest.raises(DataError, match=message):
        ner_report(**(right | change))


def test_reports_of_5000_items_take_a_moment():
    """Some tenths of a second of processor time when measured; the bounds leave room for a slow machine."""
    texts = some_texts(5000, "12345")
    gold, predicted = tagged(numpy.random.default_rng(0), 5000)
    types = plain_types(gold), plain_types(predicted)
    start = time.process_time()
    classification_report(*texts, "12345")
    between = time.process_time()
    ner_report(gold, predicted, *types)
    assert between - start < 2
    assert time.process_time() - between < 4
