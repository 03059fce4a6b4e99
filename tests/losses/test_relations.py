"""MiniLMv2's relations against a literal computation with PyTorch's KL divergence in float64."""

import pytest
import torch
import torch.nn.functional as F

from losses import attention_relation_loss
from tests.helpers import relative_norm

LENGTHS, HEADS = (5, 3, 1), 4
REAL = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


@pytest.fixture
def student():
    """Queries, keys and values, (3, 5, 12) each."""
    torch.manual_seed(0)
    return [x.requires_grad_() for x in 3 * torch.randn(3, 3, 5, 12, dtype=torch.float64)]


@pytest.fixture
def teacher():
    """Twice as wide."""
    torch.manual_seed(1)
    return list(3 * torch.randn(3, 3, 5, 24, dtype=torch.float64))


def literal(student, teacher):
    """One sequence, relation and head at a time, without padding; a sum over the rows."""
    total = 0
    for pair in zip(student, teacher):
        for sequence, length in enumerate(LENGTHS):
            for head in range(HEADS):
                given = []
                for x in pair:
                    size = x.shape[-1] // HEADS
                    x = x[sequence, :length, head * size : (head + 1) * size]
                    given.append((x @ x.T / size**0.5).log_softmax(-1))
                total = total + F.kl_div(*given, log_target=True, reduction="sum")
    return total / (3 * HEADS)


def test_value_and_gradient_are_those_of_the_literal_form(student, teacher):
    total, count = attention_relation_loss(student, teacher, REAL, HEADS)
    expected = literal(student, teacher)
    assert count == sum(LENGTHS) and total.item() == pytest.approx(expected.item(), rel=1e-12) and total > 1
    for gradients in zip(torch.autograd.grad(total, student), torch.autograd.grad(expected, student)):
        assert relative_norm(*gradients) < 1e-12


def test_autocast_does_not_round_the_scores(student, teacher):
    student, teacher = ([x.detach().bfloat16() for x in each] for each in (student, teacher))
    exact = ([x.double() for x in each] for each in (student, teacher))
    expected = attention_relation_loss(*exact, REAL, HEADS)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = attention_relation_loss(student, teacher, REAL, HEADS)
    assert total.dtype == torch.float32 and total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("width", "heads", "real"), [(12, 5, REAL), (24, 8, REAL), (12, 4, REAL[0]), (12, 4, REAL[:2])]
)
def test_what_does_not_fit_is_refused(student, width, heads, real):
    teacher = [torch.ones(3, 5, width)] * 3
    with pytest.raises(ValueError, match=f"a width that is a multiple of the {heads} relation heads"):
        attention_relation_loss(student, teacher, real, heads)
