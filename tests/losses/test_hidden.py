"""The loss on hidden states in between, against PyTorch's cosine similarity in float64."""

import pytest
import torch
import torch.nn.functional as F

from losses import hidden_state_loss
from tests.helpers import relative_norm


def test_value_and_gradient_token_by_token():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 5, 11, dtype=torch.float64)  # two layers each
    student.requires_grad_()
    real = torch.arange(5) < torch.tensor([[5], [2], [0]])
    total, count = hidden_state_loss(list(student), list(teacher), real)
    tokens = real.nonzero().tolist()
    pairs = [(student[layer, b, i], teacher[layer, b, i]) for b, i in tokens for layer in range(2)]
    expected = sum(1 - F.cosine_similarity(*pair, dim=0) for pair in pairs) / 2
    assert count == len(tokens) == 7 and total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative_norm(*torch.autograd.grad(total, student), *torch.autograd.grad(expected, student)) < 1e-12


@pytest.mark.parametrize(("student", "teacher"), [(1, 2), (2, 1), (0, 0)])
def test_as_many_layers_of_both(student, teacher):
    real = torch.ones(4, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"{student} and {teacher} states"):
        hidden_state_loss([torch.ones(4, 3)] * student, [torch.ones(4, 3)] * teacher, real)
