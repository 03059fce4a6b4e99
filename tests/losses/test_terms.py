"""What all terms, those beyond the paper too, have in common: gradients, padding, half precision, no token to count."""

from functools import partial

import pytest
import torch

from losses import (
    IGNORE_INDEX,
    attention_relation_loss,
    cosine_loss,
    distillation_loss,
    hidden_state_loss,
    mlm_loss,
    soft_label_loss,
)


def labels(teacher, real):
    """Every real token is masked, and the teacher's most likely token is its label."""
    return teacher.argmax(dim=-1).where(real, IGNORE_INDEX)


def total(student, teacher, real):
    """Equation (13), with the same tensors as logits and as last hidden states."""
    loss = distillation_loss(student, teacher, student, teacher, labels(teacher, real), real)
    return loss.total(), loss.real_tokens


def hidden(student, teacher, real):
    """Of two layers."""
    return hidden_state_loss([student, student.flip(-1)], [teacher, teacher.flip(-1)], real)


def relations(student, teacher, real):
    """The same tensors as queries, keys and values."""
    student, teacher = (x.reshape(-1, *x.shape[-2:]) for x in (student, teacher))
    return attention_relation_loss([student] * 3, [teacher] * 3, real.reshape(-1, real.shape[-1]), 1)


TERMS = {
    "soft label": soft_label_loss,
    "soft label, teacher-student": partial(soft_label_loss, direction="teacher-student", temperature=1.5),
    "cosine": cosine_loss,
    "hidden states": hidden,
    "attention relations": relations,
    "masked LM": lambda student, teacher, real: mlm_loss(student, labels(teacher, real)),
    "total": total,
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


@every_term
def test_gradcheck(tensors, term):
    student, teacher, real = tensors
    assert torch.autograd.gradcheck(lambda student: term(student, teacher, real)[0], student.requires_grad_())


@every_term
def test_padding_changes_nothing(tensors, term):
    student, teacher, real = tensors
    expected, _ = term(student, teacher, real)
    student[~real], teacher[~real] = float("nan"), 1e4
    student.requires_grad_()
    loss, count = term(student, teacher, real)
    loss.backward()
    assert torch.equal(loss, expected) and count == 7
    assert (student.grad[~real] == 0).all() and student.grad[real].abs().max() > 0


@every_term
def test_without_tokens_the_loss_is_0(tensors, term):
    student, teacher, real = tensors
    loss, count = term(student.requires_grad_(), teacher, torch.zeros_like(real))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0 and count == 0 and (gradient == 0).all()


@every_term
def test_half_precision_is_summed_in_float32(term):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 400, 50).bfloat16()
    real = torch.ones(400, dtype=torch.bool)
    (loss, _), (expected, _) = term(student, teacher, real), term(student.double(), teacher.double(), real)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", list(TERMS)[:5])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(tensors, name):
    _, teacher, real = tensors
    student = teacher.clone().requires_grad_()
    loss, _ = TERMS[name](student, teacher, real)
    loss.backward()
    assert loss.abs() < 1e-12 and student.grad.abs().max() < 1e-12
