"""Texts and pairs to features and back; metrics against scikit-learn."""

import json
import time
from functools import partial

import numpy
import pytest
import torch
from sklearn import metrics as sk

from data import DataError
from data.tasks import PairExample, TextExample
from eval.tasks.batching import Feature, TaskSettings
from eval.tasks.bootstrap import precision_recall_f1
from eval.tasks.sequences import (
    SequenceTask,
    accuracy,
    classification_report,
    confusion_matrices,
    in_top_k,
    label_counts,
    macro_f1,
    matthews_correlation,
    weighted_f1,
)
from losses import IGNORE_INDEX
from tests.eval.tasks.shared import TOKENIZER, checked_metrics

pytestmark = pytest.mark.filterwarnings(  # scikit-learn's
    "ignore::sklearn.exceptions.UndefinedMetricWarning", "ignore:A single label was found"
)


# ---- features and predictions ----------------------------------------------------------------------------------


def test_features_of_texts_and_pairs():
    task = SequenceTask(TaskSettings(TOKENIZER, 20), ("bon", "nul"))
    text = "Le film se passe à Brest."
    reports = []
    examples = [TextExample(text, "nul"), PairExample(text, "Il est long.", "bon"), TextExample("", "inconnu")]
    features = task.encode(examples, reports.append)
    assert features == [
        Feature(TOKENIZER.encode(text), 0, 1),
        Feature(TOKENIZER.encode(text, "Il est long."), 1, 0),
        Feature([5, 6], 2, None),
    ]
    assert reports == []
    ((logits, targets),) = task.logits_and_targets([torch.ones(2), torch.zeros(2), torch.ones(2)], features)
    assert logits.tolist() == [[1, 1], [0, 0], [1, 1]] and targets.tolist() == [1, 0, IGNORE_INDEX]


def test_truncation_is_reported():
    long = "Le film se passe à Brest. " * 9
    examples = [TextExample(long, "a"), TextExample("Le film", "a"), PairExample(long, long, "a")]
    reports = []
    features = SequenceTask(TaskSettings(TOKENIZER, 16), ("a",)).encode(examples, reports.append)
    assert [len(feature.ids) for feature in features][::2] == [16, 16] and len(features) == 3
    assert reports == ["2 of 3 texts are longer than 16 tokens: truncated."]
    reports.clear()
    features = SequenceTask(TaskSettings(TOKENIZER, 16, windows=True), ("a",)).encode(examples[:2], reports.append)
    assert reports == [] and [feature.example for feature in features] == [0] * (len(features) - 1) + [1]
    assert [i for feature in features[:-1] for i in feature.ids[1:-1]] == TOKENIZER.encode(long)[1:-1]
    assert {feature.target for feature in features} == {0}


def test_probabilities_are_averaged_over_windows():
    task = SequenceTask(TaskSettings(TOKENIZER, 16, windows=True), ("a", "b", "c"))
    outputs = [torch.tensor(x).log() for x in ([0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2])]
    features = [Feature([5, 6], 0), Feature([5, 6], 0), Feature([5, 6], 1)]
    first, second = task.decode(outputs, features, [None, None])
    assert first.label == "c" and torch.allclose(first.scores, torch.tensor([0.35, 0.25, 0.4]))
    assert second.label == "b" and torch.allclose(second.scores, torch.tensor([0.2, 0.6, 0.2]))
    metrics = task.metrics([first, second], [TextExample("", "c"), TextExample("", "a")], 0)
    assert metrics["accuracy"]["value"] == 0.5


# ---- metrics ---------------------------------------------------------------------------------------------------


def random_labels(random: numpy.random.Generator):
    """-> gold, predicted, C; often with labels that gold, predicted or both lack, sometimes all correct"""
    num_labels, number = random.integers(2, 7), random.integers(1, 40)
    gold = random.choice(random.integers(num_labels, size=random.integers(1, 8)), size=number)
    predicted = random.choice(random.integers(num_labels, size=random.integers(1, 8)), size=number)
    return gold, numpy.where(random.random(number) < random.choice([0, 0.5, 1]), gold, predicted), int(num_labels)


def test_metrics_of_a_confusion_matrix_equal_scikit_learns():
    random = numpy.random.default_rng(0)
    missing = undefined = 0
    for _ in range(400):
        gold, predicted, num_labels = random_labels(random)
        matrix = confusion_matrices(gold, predicted, num_labels).sum(axis=0)
        labels = range(num_labels)
        numpy.testing.assert_array_equal(matrix, sk.confusion_matrix(gold, predicted, labels=labels))
        options = dict(zero_division=0)
        assert accuracy(matrix) == pytest.approx(sk.accuracy_score(gold, predicted), abs=1e-12)
        assert macro_f1(matrix) == pytest.approx(sk.f1_score(gold, predicted, average="macro", **options), abs=1e-12)
        weighted = sk.f1_score(gold, predicted, average="weighted", **options)
        assert weighted_f1(matrix) == pytest.approx(weighted, abs=1e-12)
        assert matthews_correlation(matrix) == pytest.approx(sk.matthews_corrcoef(gold, predicted), abs=1e-12)
        *expected, support = sk.precision_recall_fscore_support(gold, predicted, labels=labels, **options)
        scores = precision_recall_f1(label_counts(matrix))
        numpy.testing.assert_allclose(list(scores.values()), expected, atol=1e-12)
        numpy.testing.assert_array_equal(label_counts(matrix)[:, 2], support)
        missing += len({*gold, *predicted}) < num_labels
        undefined += len({*gold}) == 1
    assert missing > 150 and undefined > 50  # the cases in which conventions differ occurred


def test_metrics_of_a_stack_are_those_of_its_matrices():
    stack = numpy.random.default_rng(0).integers(3, size=(50, 4, 4))
    for metric in (accuracy, macro_f1, weighted_f1, matthews_correlation, partial(weighted_f1, leave_out=2)):
        numpy.testing.assert_allclose(metric(stack), [metric(matrix) for matrix in stack], rtol=1e-12)


def test_a_label_left_out_of_the_weighted_mean_still_counts_in_the_other_labels():
    matrix = numpy.array([[1, 9], [1, 9]])  # of label 1: 9 of 10 are correct, and 9 more belong to label 0
    assert weighted_f1(matrix, leave_out=0) == pytest.approx(2 * 9 / (18 + 10))
    random = numpy.random.default_rng(1)
    for _ in range(300):
        gold, predicted, num_labels = random_labels(random)
        without = weighted_f1(confusion_matrices(gold, predicted, num_labels).sum(axis=0), leave_out=0)
        labels = range(1, num_labels)  # scikit-learn weights by support among these
        expected = sk.f1_score(gold, predicted, labels=labels, average="weighted", zero_division=0)
        assert without == pytest.approx(expected, abs=1e-12)


def test_top_k_equals_scikit_learns_but_the_first_of_equal_scores_wins():
    """In scikit-learn the last one wins: with the columns in reverse the two must agree on any ties."""
    assert in_top_k([0, 1, 2], numpy.zeros((3, 3))).tolist() == [True, True, False]
    random = numpy.random.default_rng(0)
    ties = 0
    for number in range(400):
        gold, k = random.integers(5, size=20), 1 + number % 4
        scores = random.integers(random.choice([3, 10**6]), size=(20, 5))
        expected = sk.top_k_accuracy_score(4 - gold, scores[:, ::-1], k=k, labels=range(5))
        assert in_top_k(gold, scores, k).mean() == pytest.approx(expected)
        ties += expected != sk.top_k_accuracy_score(gold, scores, k=k, labels=range(5))
    assert 100 < ties < 200


def random_scores(number: int, labels):
    """-> gold, predicted, scores: the prediction is the label with the highest score"""
    random = numpy.random.default_rng(0)
    scores = random.normal(size=(number, len(labels)))
    gold = random.choice(len(labels), size=number)
    scores[numpy.arange(number), gold] += 1
    return [labels[i] for i in gold], [labels[i] for i in scores.argmax(axis=-1)], scores


def test_the_report():
    labels = ["c", "a", "b", "never"]
    gold, predicted, scores = random_scores(300, labels[:3])
    scores = numpy.concatenate([scores, numpy.full((300, 1), -9.0)], axis=1)
    report = classification_report(gold, predicted, scores, labels)
    assert report == json.loads(json.dumps(report))
    assert report["count"] == 300 and len(list(checked_metrics(report))) == 5 + 3 * 4
    expected = {
        "accuracy": sk.accuracy_score(gold, predicted),
        "macro_f1": sk.f1_score(gold, predicted, average="macro"),
        "weighted_f1": sk.f1_score(gold, predicted, average="weighted"),
        "mcc": sk.matthews_corrcoef(gold, predicted),
        "top_2_accuracy": sk.top_k_accuracy_score([labels.index(i) for i in gold], scores, k=2, labels=range(4)),
    }
    assert {name: report[name]["value"] for name in expected} == pytest.approx(expected)
    by_label = sk.precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    for label, *expected, support in zip(labels, *by_label):
        found = report["by_label"][label]
        assert [found[name]["value"] for name in ("precision", "recall", "f1")] == pytest.approx(expected)
        assert found["support"] == support
    other = classification_report(gold, predicted, scores, labels, seed=1)
    assert all(report[name] != other[name] for name in ("mcc", "top_2_accuracy"))
    assert "top_2_accuracy" not in classification_report(*random_scores(20, "ny"), "ny")


def test_perfect_predictions_score_1_with_both_ends_of_the_interval():
    gold, _, scores = random_scores(60, "abc")
    report = classification_report(gold, gold, scores, "abc")
    del report["top_2_accuracy"]  # the scores are not perfect
    metrics = list(checked_metrics(report))
    assert len(metrics) > 10
    assert all(metric == pytest.approx({"value": 1, "low": 1, "high": 1}) for metric in metrics)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(predicted=["a"]), "differ in number: 2 and 1 labels"),
        (dict(gold=[], predicted=[], scores=[]), "nothing to measure"),
        (dict(gold=["a", "z"]), "label 'z' is not one of the model's: a, b, c"),
        (dict(predicted=["z", "a"]), "label 'z'"),
        (dict(scores=numpy.zeros((2, 2))), r"shape \(2 texts, 3 labels\), not \(2, 2\)"),
        (dict(scores=[[0, 0, 0], [0, numpy.nan, 1]]), "text 2 contain NaN"),
    ],
)
def test_invalid_reports(change, message):
    valid = dict(gold=["a", "b"], predicted=["a", "c"], scores=numpy.zeros((2, 3)), labels=["a", "b", "c"])
    classification_report(**valid)
    with pytest.raises(DataError, match=message):
        classification_report(**(valid | change))


def test_a_report_of_5000_texts_is_fast():
    texts = random_scores(5000, "12345")
    start = time.process_time()
    classification_report(*texts, "12345")
    assert time.process_time() - start < 2  # some tenths when measured: room for a slow machine
