"""Equation (13): the three terms, their weights, and their separate denominators."""

from math import log

import pytest
import torch
import torch.nn.functional as F

from losses import IGNORE_INDEX, WEIGHTS, cosine_loss, distillation_loss, mlm_loss, soft_label_loss
from tests.helpers import relative_norm


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    student_logits, teacher_logits = torch.randn(2, 3, 6, 11, dtype=torch.float64)
    student_hidden, teacher_hidden = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    real = torch.arange(6) < torch.tensor([[6], [4], [1]])
    labels = torch.full((3, 6), IGNORE_INDEX)
    labels[0, 2], labels[0, 4], labels[1, 1] = 3, 9, 0
    student = dict(student_logits=student_logits.requires_grad_(), student_hidden=student_hidden.requires_grad_())
    return student | dict(teacher_logits=teacher_logits, teacher_hidden=teacher_hidden, labels=labels, real=real)


def naive(student_logits, teacher_logits, student_hidden, teacher_hidden, labels, real):
    """Equations (10) to (13), one token at a time."""
    soft, cosine, mlm = [], [], []
    for b in range(3):
        for i in range(6):
            if real[b, i]:
                p, q = student_logits[b, i].softmax(-1), teacher_logits[b, i].softmax(-1)
                soft.append(sum(p[w] * (p[w].log() - q[w].log()) for w in range(11)))
                h, k = student_hidden[b, i], teacher_hidden[b, i]
                cosine.append(1 - (h @ k) / (h @ h).sqrt() / (k @ k).sqrt())
            if labels[b, i] != IGNORE_INDEX:
                mlm.append(-student_logits[b, i].softmax(-1)[labels[b, i]].log())
    assert len(soft) == len(cosine) == 11 and len(mlm) == 3
    return 0.5 * sum(soft) / 11 + 0.3 * sum(cosine) / 11 + 0.2 * sum(mlm) / 3


def test_equation_13_token_by_token(tensors):
    inputs = [tensors["student_logits"], tensors["student_hidden"]]
    total, expected = distillation_loss(**tensors).total(), naive(**tensors)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    for gradients in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs)):
        assert relative_norm(*gradients) < 1e-12


def test_by_hand():
    """One token: D_KL is 0.25 ln 0.5 + 0.75 ln 1.5, 1 − cos is 1, the cross-entropy ln 4."""
    logits = torch.tensor([[0.0, log(3.0)]]), torch.zeros(1, 2)
    hidden = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    loss = distillation_loss(*logits, *hidden, torch.tensor([0]), torch.tensor([True]))
    expected = 0.5 * (0.25 * log(0.5) + 0.75 * log(1.5)) + 0.3 * 1 + 0.2 * log(4)
    assert loss.total().item() == pytest.approx(expected, rel=1e-6)


def test_the_printed_weights():
    assert WEIGHTS == (0.5, 0.3, 0.2)


def test_the_terms_are_those_of_equations_10_to_12(tensors):
    settings = dict(direction="teacher-student", temperature=2.0)
    loss = distillation_loss(**tensors, **settings)
    soft = soft_label_loss(tensors["student_logits"], tensors["teacher_logits"], tensors["real"], **settings)
    cosine = cosine_loss(tensors["student_hidden"], tensors["teacher_hidden"], tensors["real"])
    mlm = mlm_loss(tensors["student_logits"], tensors["labels"])
    assert (loss.soft_label, loss.real_tokens) == soft and loss.total((1, 0, 0)) == soft[0] / 11
    assert (loss.cosine, loss.real_tokens) == cosine and loss.total((0, 1, 0)) == cosine[0] / 11
    assert (loss.mlm, loss.masked_tokens) == mlm and loss.total((0, 0, 1)) == mlm[0] / 3


def test_a_student_equal_to_its_teacher_has_the_masked_lm_loss_only(tensors):
    same = {f"teacher_{name}": tensors[f"student_{name}"].detach() for name in ("logits", "hidden")}
    loss = distillation_loss(**tensors | same)
    assert loss.soft_label.abs() < 1e-12 and loss.cosine.abs() < 1e-12
    loss.total((0.5, 0.3, 0.0)).backward()
    assert max(tensors[f"student_{name}"].grad.abs().max() for name in ("logits", "hidden")) < 1e-12
    expected = F.cross_entropy(tensors["student_logits"].flatten(0, 1), tensors["labels"].flatten())
    assert loss.total().item() == pytest.approx(0.2 * expected.item(), rel=1e-10)


def test_micro_batches_add_up_to_one_batch(tensors):
    """Global means: divided by the counts of the whole batch, totals and gradients of its parts add up."""
    whole = distillation_loss(**tensors)
    inputs = [tensors["student_logits"], tensors["student_hidden"]]
    wanted = torch.autograd.grad(whole.total(), inputs)
    parts = [distillation_loss(**{name: value[b : b + 1] for name, value in tensors.items()}) for b in range(3)]
    assert len({int(part.masked_tokens) for part in parts}) == 3  # else the mean of means would pass too
    total = sum(part.total(real_tokens=whole.real_tokens, masked_tokens=whole.masked_tokens) for part in parts)
    assert total.item() == pytest.approx(whole.total().item(), rel=1e-12)
    for gradients in zip(torch.autograd.grad(total, inputs), wanted):
        assert relative_norm(*gradients) < 1e-12
    for summed, one in zip(map(sum, zip(*parts)), whole):
        assert summed.item() == pytest.approx(one.item(), rel=1e-12)
