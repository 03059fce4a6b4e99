"""Several labels per text: decoding and loss against torch, metrics against scikit-learn."""

import json

import numpy
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sk

from data import DataError
from data.tasks import TextExample
from eval.tasks.batching import TaskSettings
from eval.tasks.finetune import SoftLabels, task_loss
from eval.tasks.multi_label import MultiLabelTask, multi_label_report
from tests.eval.tasks.shared import TOKENIZER, ignore
from tests.helpers import relative_norm

LABELS = ("joie", "peur", "colère")
TASK = MultiLabelTask(TaskSettings(TOKENIZER, 16, windows=True), LABELS)
EXAMPLES = [TextExample("Le film", ("peur",)), TextExample("Oui", ()), TextExample("Non", ("joie", "colère"))]


def test_labels_are_those_above_one_half():
    features = TASK.encode(EXAMPLES, ignore)
    outputs = [torch.tensor([0.1, -0.1, 0.0]), torch.tensor([-5.0, -5.0, -5.0]), torch.tensor([1.0, 1.0, 1.0])]
    predictions = TASK.decode(outputs, features, EXAMPLES)
    assert [prediction.labels for prediction in predictions] == [("joie",), (), LABELS]
    for output, prediction in zip(outputs, predictions):
        assert torch.equal(prediction.scores, output.sigmoid())


def test_the_windows_of_a_text_are_averaged():
    examples = [TextExample("Le film est long. " * 10, "")]
    features = TASK.encode(examples, ignore)
    assert len(features) > 2 and {feature.target for feature in features} == {None}
    outputs = list(torch.randn(len(features), 3, generator=torch.Generator().manual_seed(0)))
    (prediction,) = TASK.decode(outputs, features, examples)
    assert torch.allclose(prediction.scores, torch.stack(outputs).sigmoid().mean(dim=0))


@pytest.mark.parametrize("weight", [None, 0.7], ids=str)
def test_the_loss_is_binary_cross_entropy(weight):
    """With a teacher, also T² times the divergence of each label's two probabilities."""
    features = TASK.encode(EXAMPLES, ignore)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    targets = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(student, targets)
    if weight is not None:
        p, q = (torch.stack([-x / 2, x / 2]).softmax(dim=0).log() for x in (teacher / 2, student / 2))
        divergence = (p.exp() * (p - q)).sum(dim=0).mean()
        expected = (1 - weight) * expected + weight * 4 * divergence
    soft_labels = SoftLabels(weight, 2.0, "teacher-student")
    loss = task_loss(list(student), list(teacher) if weight else None, features, TASK, soft_labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradient, wanted = (torch.autograd.grad(each, student)[0] for each in (loss, expected))
    assert relative_norm(gradient, wanted) < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learns(seed):
    random = numpy.random.default_rng(seed)
    labels = [f"L{i}" for i in range(5)]
    gold = random.random((40, 5)) < [0.5, 0.3, 0.2, 0.1, 0.0]  # the last is never gold, and in two seeds not predicted
    predicted = gold ^ (random.random((40, 5)) < [0.2, 0.2, 0.2, 0.2, 0.02 * (seed % 2)])
    names = [[[name for name, has in zip(labels, row) if has] for row in side] for side in (gold, predicted)]
    report = multi_label_report(*names, labels, seed)
    assert report == json.loads(json.dumps(report)) and report["count"] == 40
    occurring = [i for i in range(5) if gold[:, i].any() or predicted[:, i].any()]
    expected = {
        "micro_f1": sk.f1_score(gold, predicted, average="micro"),
        "macro_f1": sk.f1_score(gold, predicted, average="macro", labels=occurring, zero_division=0),
        "exact_match": sk.accuracy_score(gold, predicted),
    }
    assert {name: report[name]["value"] for name in expected} == pytest.approx(expected)
    columns = sk.precision_recall_fscore_support(gold, predicted, zero_division=0)
    for label, *wanted, support in zip(labels, *columns, strict=True):
        found = report["by_label"][label]
        assert [found[name]["value"] for name in ("precision", "recall", "f1")] == pytest.approx(wanted)
        assert found["support"] == support
    if seed == 0:
        draws = numpy.random.default_rng(seed)
        resamples = [draws.integers(40, size=40) for _ in range(1000)]
        micro = [sk.f1_score(gold[drawn], predicted[drawn], average="micro") for drawn in resamples]
        interval = numpy.percentile(micro, (2.5, 97.5))
        assert [report["micro_f1"][end] for end in ("low", "high")] == pytest.approx(interval)


@pytest.mark.parametrize(
    "gold, predicted, message",
    [
        ([["joie"]], [], "differ in number"),
        ([], [], "nothing to measure"),
        ([["x"]], [["joie"]], "label 'x' is not one of the model's: joie, peur, colère"),
    ],
)
def test_invalid_reports(gold, predicted, message):
    with pytest.raises(DataError, match=message):
        multi_label_report(gold, predicted, LABELS)
