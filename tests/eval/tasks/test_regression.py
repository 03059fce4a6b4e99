"""Models whose output is a value: decoding and loss by hand, metrics and intervals against scipy and scikit-learn."""

import json
import warnings

import numpy
import pytest
import scipy.stats
import torch
from sklearn import metrics as sk

from data import DataError, OptionError
from data.tasks import TextExample
from eval.tasks.batching import TaskSettings
from eval.tasks.finetune import SoftLabels, task_loss
from eval.tasks.regression import RegressionTask, regression_report
from tests.eval.tasks.shared import TOKENIZER, ignore

TASK = RegressionTask(TaskSettings(TOKENIZER, 16, windows=True), ("LABEL_0",))
EXAMPLES = [TextExample("Le film", 0.5), TextExample("Oui", -2.0), TextExample("Non", 4.0)]


def test_values_are_the_outputs_and_the_mean_over_windows():
    examples = [TextExample("Le film", ""), TextExample("Le film est long. " * 10, "")]
    features = TASK.encode(examples, ignore)
    assert len(features) > 3 and {feature.target for feature in features} == {None}
    outputs = [torch.tensor([float(i)]) for i in range(len(features))]
    first, second = TASK.decode(outputs, features, examples)
    assert first.values.tolist() == [0.0] and second.values.tolist() == [len(features) / 2]


@pytest.mark.parametrize("weight", [None, 0.7], ids=str)
def test_the_loss_is_the_mean_squared_error(weight):
    features = TASK.encode(EXAMPLES, ignore)
    assert [feature.target for feature in features] == [0.5, -2.0, 4.0]
    student, teacher = [torch.tensor([x]) for x in (1.0, 0.0, 4.5)], [torch.tensor([x]) for x in (1.0, 1.0, 1.5)]
    labels, soft = (0.25 + 4 + 0.25) / 3, (0 + 1 + 9) / 3
    expected = labels if weight is None else 0.3 * labels + 0.7 * soft
    loss = task_loss(student, teacher if weight else None, features, TASK, SoftLabels(weight, 2.0, "teacher-student"))
    assert loss.item() == pytest.approx(expected)


def oracle(gold, predicted):
    with warnings.catch_warnings():  # of scipy for constant values, whose correlation is not defined there
        warnings.simplefilter("ignore")
        correlations = scipy.stats.pearsonr(gold, predicted)[0], scipy.stats.spearmanr(gold, predicted)[0]
    return {
        "pearson": numpy.nan_to_num(correlations[0]),
        "spearman": numpy.nan_to_num(correlations[1]),
        "mse": sk.mean_squared_error(gold, predicted),
        "mae": sk.mean_absolute_error(gold, predicted),
    }


@pytest.mark.parametrize("shift, scale", [(0, 1), (1e6, 1), (0, 1e-150), (0, 1e150)])
def test_metrics_and_intervals_equal_scipys(shift, scale):
    random = numpy.random.default_rng(3)
    gold = scale * (shift + random.integers(0, 6, size=30))  # with ties, as in STS-B
    predicted = gold + scale * random.normal(size=30).round(1)
    report = regression_report(gold, predicted, seed=7)
    assert report == json.loads(json.dumps(report)) and report["count"] == 30
    values = oracle(gold / scale, predicted / scale)
    draws = numpy.random.default_rng(7)
    resamples = [draws.integers(30, size=30) for _ in range(1000)]
    resampled = [oracle(gold[drawn] / scale, predicted[drawn] / scale) for drawn in resamples]
    for name, value in values.items():
        unit = {"mse": scale**2, "mae": scale}.get(name, 1)
        low, high = numpy.percentile([each[name] for each in resampled], (2.5, 97.5))
        found = [report[name][end] / unit for end in ("value", "low", "high")]
        assert found == pytest.approx([value, low, high], rel=1e-6), name


@pytest.mark.parametrize("predicted", [[0.1] * 7, [3.0, 1.0, 2.0, 1.5, 0.0, 9.0, 4.0]])
def test_a_constant_has_no_correlation(predicted):
    report = regression_report([0.1] * 7, predicted)
    assert report["pearson"] == report["spearman"] == {"value": 0, "low": 0, "high": 0}
    single = regression_report([1.0], [2.0])
    assert single["pearson"]["value"] == 0 and single["mae"] == {"value": 1, "low": None, "high": None}


@pytest.mark.parametrize(
    "gold, predicted, message",
    [
        ([1.0], [], "differ in number: 1 and 0 values"),
        ([], [], "nothing to measure"),
        ([1.0, 2.0], [1.0, float("nan")], "not finite"),
    ],
)
def test_invalid_reports(gold, predicted, message):
    with pytest.raises(DataError, match=message):
        regression_report(gold, predicted)


def test_several_values_cannot_be_measured():
    task = RegressionTask(TASK.settings, ("valence", "arousal"))
    features = task.encode(EXAMPLES[:1], ignore)
    predictions = task.decode([torch.tensor([1.0, 2.0])], features, EXAMPLES[:1])
    assert predictions[0].values.tolist() == [1.0, 2.0]
    with pytest.raises(OptionError, match="2 outputs"):
        task.metrics(predictions, EXAMPLES[:1], 0)
