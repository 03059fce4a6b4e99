"""The loss of fine-tuning, with and without a teacher, against a plain float64 form."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from data import demo
from data.tasks import Answer, QuestionExample, TextExample, WordsExample
from eval.tasks.batching import TaskSettings
from eval.tasks.finetune import SoftLabels, cross_entropy_sum, task_loss
from eval.tasks.ner import NerTask
from eval.tasks.qa import QaTask
from eval.tasks.sequences import SequenceTask
from losses import IGNORE_INDEX
from tests.eval.tasks.shared import TOKENIZER, ignore
from tests.helpers import relative_norm

FORMS = ("texts", "words", "questions")


def random_outputs(name):
    """-> a task, its features of a few examples, and random float64 outputs of a student and a teacher"""
    generator = torch.Generator().manual_seed(0)
    settings = TaskSettings(TOKENIZER, 32, doc_stride=4)
    if name == "texts":
        task = SequenceTask(settings, ("a", "b", "c"))
        examples = [TextExample("Le film", "b"), TextExample("Il est long", "c"), TextExample("Oui", "b")]
    elif name == "words":
        task = NerTask(settings, ("O", "B-LOC", "I-LOC"))
        words = ("Brest", "est", "Landerneau")
        examples = [WordsExample(words, ("B-LOC", "O", "B-LOC")), WordsExample(("Oui",), ("O",))]
    else:
        task = QaTask(settings)
        context = " ".join(itertools.islice(demo.texts(), 2))
        examples = [QuestionExample("1", context, "Où ?", (Answer(context[:4], 0),))]
    features = task.encode(examples, ignore)

    def draw(feature):
        shape = (3,) if name == "texts" else (len(feature.ids), 2 if name == "questions" else 3)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    student = [draw(feature).requires_grad_() for feature in features]
    return task, features, student, [draw(feature) for feature in features]


def classifications(name, outputs, features):
    """Every classification with a target, one by one: its logits (C,) and its target."""
    for output, feature in zip(outputs, features):
        if name == "texts":
            yield output, feature.target
        elif name == "words":
            yield from ((row, target) for row, target in zip(output, feature.target) if target != IGNORE_INDEX)
        else:
            yield from ((output[:, side], feature.target[side]) for side in (0, 1))


def plain_loss(name, outputs, teacher_outputs, features, soft_labels):
    """(1 - a) cross-entropy + a T² KL in float64, one classification at a time."""
    hard, soft = [], []
    teacher = classifications(name, teacher_outputs, features) if teacher_outputs else itertools.repeat((None, None))
    for (logits, target), (teacher_logits, _) in zip(classifications(name, outputs, features), teacher):
        hard.append(-logits.log_softmax(0)[target])
        if teacher_outputs:
            p, q = ((x / soft_labels.temperature).log_softmax(0) for x in (logits, teacher_logits))
            p, q = (q, p) if soft_labels.direction == "teacher-student" else (p, q)
            soft.append(soft_labels.temperature**2 * (p.exp() * (p - q)).sum())
    if not teacher_outputs:
        return sum(hard) / len(hard)
    return (1 - soft_labels.weight) * sum(hard) / len(hard) + soft_labels.weight * sum(soft) / len(soft)


@pytest.mark.parametrize("name", FORMS)
def test_cross_entropy_is_summed_over_the_targets(name):
    task, features, outputs, _ = random_outputs(name)
    total, count = cross_entropy_sum(task.logits_and_targets(outputs, features))
    expected = [F.cross_entropy(z[None], torch.tensor([t])) for z, t in classifications(name, outputs, features)]
    assert count == len(expected)
    assert total.item() == pytest.approx(sum(expected).item(), rel=1e-6)


def test_cross_entropy_by_hand():
    logits_and_targets = [
        (torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([1, 0])),
        (torch.tensor([[5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]]), torch.tensor([2, IGNORE_INDEX])),
    ]
    total, count = cross_entropy_sum(logits_and_targets)
    assert count == 3
    assert total.item() == pytest.approx(math.log(2) + math.log(4 / 3) + math.log(4), rel=1e-6)


@pytest.mark.parametrize("direction", ["student-teacher", "teacher-student"])
@pytest.mark.parametrize("weight", [None, 0.0, 0.7, 1.0], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_the_loss_and_its_gradient_equal_the_plain_form(name, weight, direction):
    """Both are means over the same targets. The loss computes in float32, the plain form in float64."""
    task, features, outputs, teacher_outputs = random_outputs(name)
    teacher_outputs = None if weight is None else teacher_outputs
    soft_labels = SoftLabels(weight, 2.0, direction)
    actual = task_loss(outputs, teacher_outputs, features, task, soft_labels)
    found = []
    for loss in (actual, plain_loss(name, outputs, teacher_outputs, features, soft_labels)):
        gradients = torch.autograd.grad(loss, outputs)
        found.append((loss.item(), torch.cat([gradient.flatten() for gradient in gradients])))
    (loss, gradient), (expected, expected_gradient) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    assert relative_norm(gradient, expected_gradient) < 1e-5


@pytest.mark.parametrize("name", FORMS)
def test_a_student_that_equals_its_teacher_has_no_gradient(name):
    task, features, outputs, _ = random_outputs(name)
    teacher_outputs = [output.detach() for output in outputs]
    loss = task_loss(outputs, teacher_outputs, features, task, SoftLabels(1.0, 2.0, "teacher-student"))
    assert abs(loss.item()) < 1e-7
    assert max(gradient.abs().max() for gradient in torch.autograd.grad(loss, outputs)) < 1e-7


def test_tokens_without_a_target_are_not_distilled():
    """<s> and </s> have no tag: a token classifier's outputs there were never trained."""
    task, features, outputs, teacher_outputs = random_outputs("words")
    other = [output.clone() for output in teacher_outputs]
    for output in other:
        output[0] += torch.tensor([5.0, 0.0, -5.0])
        output[-1] -= torch.tensor([5.0, 0.0, -5.0])
    soft_labels = SoftLabels(0.7, 2.0, "teacher-student")
    losses = [task_loss(outputs, each, features, task, soft_labels) for each in (teacher_outputs, other)]
    assert losses[0] == losses[1]
    gradients = torch.autograd.grad(losses[0], outputs)
    assert all(gradient[0].abs().max() == gradient[-1].abs().max() == 0 for gradient in gradients)
