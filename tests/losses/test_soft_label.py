"""Equation (10) against values computed by hand and torch.distributions."""

from math import log

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from losses import DIRECTIONS, soft_label_loss
from tests.helpers import relative_norm

BY_HAND = {
    "student-teacher": 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5),
    "teacher-student": 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75),
}


@pytest.mark.parametrize("direction", BY_HAND)
def test_by_hand(direction):
    """student softmax(0, ln 3) = (1/4, 3/4), teacher softmax(0, 0) = (1/2, 1/2)"""
    student, teacher = torch.tensor([[0.0, log(3.0)]] * 2), torch.zeros(2, 2)
    total, count = soft_label_loss(student, teacher, torch.tensor([True, False]), direction=direction)
    assert count == 1 and total.item() == pytest.approx(BY_HAND[direction], rel=1e-6)


def test_the_temperature_by_hand():
    """At T = 2, softmax((0, 2 ln 3) / 2) = (1/4, 3/4), and the factor is 4."""
    student, teacher = torch.tensor([[0.0, 2 * log(3.0)]]), torch.zeros(1, 2)
    total, _ = soft_label_loss(student, teacher, torch.tensor([True]), temperature=2.0)
    assert total.item() == pytest.approx(4 * (0.25 * log(0.5) + 0.75 * log(1.5)), rel=1e-6)


def test_the_default_is_the_printed_form(tensors):
    printed, _ = soft_label_loss(*tensors, direction="student-teacher", temperature=1.0)
    other, _ = soft_label_loss(*tensors, direction="teacher-student")
    assert other != soft_label_loss(*tensors)[0] == printed


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
def test_value_and_gradient_agree_with_torch_distributions(tensors, direction, temperature):
    student, teacher, real = tensors
    student.requires_grad_()
    total, count = soft_label_loss(student, teacher, real, direction=direction, temperature=temperature)
    p, q = (Categorical(logits=logits[real] / temperature) for logits in (student, teacher))
    divergence = kl_divergence(p, q) if direction == "student-teacher" else kl_divergence(q, p)
    expected = temperature**2 * divergence.sum()
    assert count == 7 and total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative_norm(*torch.autograd.grad(total, student), *torch.autograd.grad(expected, student)) < 1e-12


def test_extreme_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    total, _ = soft_label_loss(student, -student.detach(), torch.tensor([True]))
    total.backward()
    assert total.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(direction="reverse"), "not 'reverse'"),
        (dict(temperature=0.0), "above 0"),
        (dict(temperature=float("nan")), "above 0"),
        (dict(teacher_logits=torch.zeros(2, 3)), "must have the same shape"),
        (dict(real=torch.ones(1, dtype=torch.bool)), "without the vocabulary"),
    ],
)
def test_invalid_arguments_are_refused(wrong, message):
    logits, real = torch.zeros(2, 4), torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        soft_label_loss(**dict(student_logits=logits, teacher_logits=logits, real=real) | wrong)
