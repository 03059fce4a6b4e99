"""Equation (13): the three terms, their weights, and their separate denominators."""

import pytest
import torch
import torch.nn.functional as F

from losses import IGNORE_INDEX, WEIGHTS, cosine_loss, distillation_loss, mlm_loss, soft_label_loss


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    student_logits, teacher_logits = torch.randn(2, 3, 6, 11, dtype=torch.float64)
    student_hidden, teacher_hidden = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    real = torch.arange(6) < torch.tensor([[6], [4], [1]])
    labels = torch.full((3, 6), IGNORE_INDEX)
    labels[0, 2], labels[0, 4], labels[1, 1] = 3, 9, 0
    return dict(
        student_logits=student_logits.requires_grad_(), teacher_logits=teacher_logits,
        student_hidden=student_hidden.requires_grad_(), teacher_hidden=teacher_hidden, labels=labels, real=real,
    )  # fmt: skip


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
    for actual, wanted in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs)):
        assert (actual - wanted).norm() / wanted.norm() < 1e-12


def test_by_hand():
    """One token each: KL 0.25 ln 0.5 + 0.75 ln 1.5, cosine 0 hence 1, cross-entropy ln 4."""
    from math import log

    loss = distillation_loss(
        torch.tensor([[0.0, log(3.0)]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]),
        torch.tensor([0]), torch.tensor([True]),
    )  # fmt: skip
    expected = 0.5 * (0.25 * log(0.5) + 0.75 * log(1.5)) + 0.3 * 1 + 0.2 * log(4)
    assert loss.total().item() == pytest.approx(expected, rel=1e-6)


def test_the_printed_weights():
    assert WEIGHTS == (0.5, 0.3, 0.2)


def test_the_terms_are_those_of_equations_10_to_12(tensors):
    loss = distillation_loss(**tensors, direction="teacher-student", temperature=2.0)
    soft = soft_label_loss(
        tensors["student_logits"], tensors["teacher_logits"], tensors["real"],
        direction="teacher-student", temperature=2.0,
    )  # fmt: skip
    cosine = cosine_loss(tensors["student_hidden"], tensors["teacher_hidden"], tensors["real"])
    mlm = mlm_loss(tensors["student_logits"], tensors["labels"])
    assert (loss.soft_label, loss.real_tokens) == soft
    assert (loss.cosine, loss.real_tokens) == cosine
    assert (loss.mlm, loss.masked_tokens) == mlm
    assert loss.total((1, 0, 0)) == soft[0] / 11
    assert loss.total((0, 1, 0)) == cosine[0] / 11
    assert loss.total((0, 0, 1)) == mlm[0] / 3


def test_gradcheck(tensors):
    def total(student_logits, student_hidden):
        changed = {**tensors, "student_logits": student_logits, "student_hidden": student_hidden}
        return distillation_loss(**changed).total()

    assert torch.autograd.gradcheck(total, (tensors["student_logits"], tensors["student_hidden"]))


def test_padding_changes_nothing(tensors):
    expected = distillation_loss(**tensors).total()
    padding = ~tensors["real"]
    changed = {}
    for name, value in tensors.items():
        changed[name] = value.detach().clone()
        if value.is_floating_point():
            changed[name][padding] = float("nan")
    changed["student_logits"].requires_grad_(), changed["student_hidden"].requires_grad_()
    total = distillation_loss(**changed).total()
    total.backward()
    assert torch.equal(total, expected)
    for name in ("student_logits", "student_hidden"):
        assert (changed[name].grad[padding] == 0).all() and changed[name].grad.abs().max() > 0


def test_student_equal_to_teacher_leaves_the_masked_lm_alone(tensors):
    same = {**tensors, "teacher_logits": tensors["student_logits"].detach(),
            "teacher_hidden": tensors["student_hidden"].detach()}  # fmt: skip
    loss = distillation_loss(**same)
    assert loss.soft_label.abs() < 1e-12 and loss.cosine.abs() < 1e-12
    loss.total((0.5, 0.3, 0.0)).backward()
    assert tensors["student_logits"].grad.abs().max() < 1e-12
    assert tensors["student_hidden"].grad.abs().max() < 1e-12
    expected = F.cross_entropy(tensors["student_logits"].flatten(0, 1), tensors["labels"].flatten())
    assert loss.total().item() == pytest.approx(0.2 * expected.item(), rel=1e-10)


def test_parts_of_a_batch_add_up(tensors):
    """Global means: with the counts of all, the parts' totals and gradients add up to those of one batch."""
    whole = distillation_loss(**tensors)
    inputs = [tensors["student_logits"], tensors["student_hidden"]]
    wanted = torch.autograd.grad(whole.total(), inputs)
    parts = [distillation_loss(**{name: value[b : b + 1] for name, value in tensors.items()}) for b in range(3)]
    assert len({int(part.masked_tokens) for part in parts}) == 3  # or means of means would pass too
    total = sum(part.total(real_tokens=whole.real_tokens, masked_tokens=whole.masked_tokens) for part in parts)
    assert total.item() == pytest.approx(whole.total().item(), rel=1e-12)
    for actual, expected in zip(torch.autograd.grad(total, inputs), wanted):
        assert (actual - expected).norm() / expected.norm() < 1e-12
    for summed, one in zip(map(sum, zip(*parts)), whole):
        assert summed.item() == pytest.approx(one.item(), rel=1e-12)


def test_no_token_at_all_is_zero_and_not_nan(tensors):
    nothing = {**tensors, "real": torch.zeros(3, 6, dtype=torch.bool), "labels": torch.full((3, 6), IGNORE_INDEX)}
    total = distillation_loss(**nothing).total()
    total.backward()
    assert total == 0 and (tensors["student_logits"].grad == 0).all()
