"""Equation (11) against numbers worked by hand, torch's CosineEmbeddingLoss and gradcheck."""

import pytest
import torch

from losses import cosine_loss


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    real = torch.arange(5) < torch.tensor([[5], [2], [0]])
    return student, teacher, real


def test_by_hand():
    """cos(60°) = 1/2, a right angle, opposite: 1 - cos is 1/2, 1, 2; lengths do not matter."""
    student = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[0.5, 3**0.5 / 2], [2.0, 0.0], [-7.0, -7.0], [1.0, 0.0]])
    total, count = cosine_loss(student, teacher, torch.tensor([True, True, True, False]))
    assert count == 3
    assert total.item() == pytest.approx(3.5, rel=1e-6)


def test_value_and_gradient_agree_with_torchs_embedding_loss(tensors):
    student, teacher, real = tensors
    student.requires_grad_()
    total, count = cosine_loss(student, teacher, real)
    ones = torch.ones(7)
    expected = torch.nn.CosineEmbeddingLoss(reduction="sum")(student[real], teacher[real], ones)
    assert count == 7
    assert total.item() == pytest.approx(expected.item(), rel=1e-10)
    (actual,) = torch.autograd.grad(total, student)
    (wanted,) = torch.autograd.grad(expected, student)
    assert (actual - wanted).norm() / wanted.norm() < 1e-10


def test_gradcheck(tensors):
    student, teacher, real = tensors
    student = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda hidden: cosine_loss(hidden, teacher, real)[0], student)


def test_a_step_against_the_gradient_turns_the_student_towards_the_teacher(tensors):
    """The sign: minimised as the paper prints it, the two would be pushed apart."""
    student, teacher, real = tensors
    student = student.clone().requires_grad_()
    total, _ = cosine_loss(student, teacher, real)
    total.backward()
    cosine = torch.nn.functional.cosine_similarity
    with torch.no_grad():
        before, after = cosine(student, teacher, dim=-1), cosine(student - 0.1 * student.grad, teacher, dim=-1)
    assert (after > before)[real].all()


def test_padding_changes_nothing(tensors):
    student, teacher, real = tensors
    expected, _ = cosine_loss(student, teacher, real)
    student, teacher = student.clone(), teacher.clone()
    student[~real], teacher[~real] = float("nan"), 1e4
    student.requires_grad_()
    total, _ = cosine_loss(student, teacher, real)
    total.backward()
    assert torch.equal(total, expected)
    assert (student.grad[~real] == 0).all() and student.grad[real].abs().max() > 0


def test_student_equal_to_teacher_has_no_loss_and_no_gradient(tensors):
    teacher, _, real = tensors
    student = teacher.clone().requires_grad_()
    total, _ = cosine_loss(student, teacher, real)
    total.backward()
    assert total.abs() < 1e-12 and student.grad.abs().max() < 1e-12


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 400, 16).bfloat16()
    real = torch.ones(400, dtype=torch.bool)
    total, _ = cosine_loss(student, teacher, real)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(cosine_loss(student.double(), teacher.double(), real)[0].item(), rel=1e-5)


def test_no_token_is_no_loss():
    total, count = cosine_loss(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, dtype=torch.bool))
    assert total == 0 and count == 0


def test_other_widths_are_a_sentence():
    with pytest.raises(ValueError, match="must be alike"):
        cosine_loss(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, dtype=torch.bool))
