"""Random tensors for the tests of the three losses."""

import pytest
import torch


@pytest.fixture
def tensors():
    """student, teacher (3, 5, 11), as logits or as hidden states, and which of their tokens are real (3, 5)."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 11, dtype=torch.float64)
    return 3 * student, 3 * teacher, torch.arange(5) < torch.tensor([[5], [2], [0]])
