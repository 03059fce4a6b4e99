"""Equation (12) against values computed by hand and scikit-learn's log_loss."""

from math import log

import numpy
import pytest
import torch
from sklearn.metrics import log_loss

from losses import IGNORE_INDEX, mlm_loss


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    logits = 3 * torch.randn(3, 5, 11, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 5))
    labels[:, 1:4] = IGNORE_INDEX
    return logits, labels


def test_by_hand():
    """softmax(0, ln 3) = (1/4, 3/4): label 0 costs ln 4, label 1 ln 4/3, IGNORE_INDEX nothing."""
    logits = torch.tensor([[0.0, log(3.0)]] * 3)
    total, count = mlm_loss(logits, torch.tensor([0, 1, IGNORE_INDEX]))
    assert count == 2
    assert total.item() == pytest.approx(log(4) + log(4 / 3), rel=1e-6)


def test_the_value_agrees_with_scikit_learn(tensors):
    logits, labels = tensors
    total, count = mlm_loss(logits, labels)
    masked = labels != IGNORE_INDEX
    probabilities = logits[masked].softmax(dim=-1).numpy()
    expected = log_loss(labels[masked].numpy(), probabilities, normalize=False, labels=numpy.arange(11))
    assert count == 6
    assert total.item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_is_softmax_minus_one_hot(tensors):
    logits, labels = tensors
    logits.requires_grad_()
    mlm_loss(logits, labels)[0].backward()
    masked = labels != IGNORE_INDEX
    expected = logits.detach().softmax(dim=-1)
    expected[masked] -= torch.nn.functional.one_hot(labels[masked], 11)
    expected[~masked] = 0
    assert (logits.grad - expected).norm() / expected.norm() < 1e-12


def test_a_perfect_prediction_gives_no_loss_and_no_gradient():
    labels = torch.tensor([2, 0, IGNORE_INDEX])
    logits = torch.zeros(3, 4, dtype=torch.float64)
    logits[0, 2] = logits[1, 0] = 1e3
    logits.requires_grad_()
    total, _ = mlm_loss(logits, labels)
    total.backward()
    assert total == 0 and logits.grad.abs().max() == 0


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="without the vocabulary"):
        mlm_loss(torch.ones(2, 3), torch.zeros(3, dtype=torch.long))
