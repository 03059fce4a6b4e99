"""Equation (11) against values computed by hand and PyTorch's CosineEmbeddingLoss."""

import pytest
import torch

from losses import cosine_loss
from tests.helpers import relative_norm


def test_by_hand():
    """Angles of 60°, 90° and 180°: 1 − cos is 1/2, 1 and 2, whatever the norms."""
    student = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[0.5, 3**0.5 / 2], [2.0, 0.0], [-7.0, -7.0], [1.0, 0.0]])
    total, count = cosine_loss(student, teacher, torch.tensor([True, True, True, False]))
    assert count == 3 and total.item() == pytest.approx(3.5, rel=1e-6)


def test_value_and_gradient_agree_with_cosine_embedding_loss(tensors):
    student, teacher, real = tensors
    student.requires_grad_()
    total, count = cosine_loss(student, teacher, real)
    expected = torch.nn.CosineEmbeddingLoss(reduction="sum")(student[real], teacher[real], torch.ones(7))
    assert count == 7 and total.item() == pytest.approx(expected.item(), rel=1e-10)
    assert relative_norm(*torch.autograd.grad(total, student), *torch.autograd.grad(expected, student)) < 1e-10


def test_gradient_descent_turns_the_student_towards_the_teacher(tensors):
    """The sign: minimising the mean cosine, as printed, would push the two apart."""
    student, teacher, real = tensors
    cosine_loss(student.requires_grad_(), teacher, real)[0].backward()
    cosine = torch.nn.functional.cosine_similarity
    with torch.no_grad():
        before, after = cosine(student, teacher, dim=-1), cosine(student - 0.1 * student.grad, teacher, dim=-1)
    assert (after > before)[real].all()


def test_different_widths_are_refused():
    with pytest.raises(ValueError, match="must have the same shape"):
        cosine_loss(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, dtype=torch.bool))
