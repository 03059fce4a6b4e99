"""Equation (12) against values computed by hand and scikit-learn's log_loss."""

from math import log

import numpy
import pytest
import torch
from sklearn.metrics import log_loss

from losses import IGNORE_INDEX, mlm_loss
from tests.helpers import relative_norm

LABELS = torch.full((3, 5), IGNORE_INDEX)
LABELS[:, [0, 4]] = torch.tensor([[3, 0], [7, 10], [7, 1]])


def test_by_hand():
    """softmax(0, ln 3) = (1/4, 3/4): label 0 costs ln 4, label 1 ln 4/3, IGNORE_INDEX nothing."""
    logits = torch.tensor([[0.0, log(3.0)]] * 3)
    total, count = mlm_loss(logits, torch.tensor([0, 1, IGNORE_INDEX]))
    assert count == 2 and total.item() == pytest.approx(log(4) + log(4 / 3), rel=1e-6)


def test_the_value_agrees_with_scikit_learn(tensors):
    logits, _, _ = tensors
    total, count = mlm_loss(logits, LABELS)
    masked = LABELS != IGNORE_INDEX
    probabilities = logits[masked].softmax(dim=-1).numpy()
    expected = log_loss(LABELS[masked].numpy(), probabilities, normalize=False, labels=numpy.arange(11))
    assert count == 6 and total.item() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_is_softmax_minus_one_hot(tensors):
    logits, _, _ = tensors
    mlm_loss(logits.requires_grad_(), LABELS)[0].backward()
    masked = LABELS != IGNORE_INDEX
    expected = logits.detach().softmax(dim=-1) * masked[..., None]
    expected[masked] -= torch.nn.functional.one_hot(LABELS[masked], 11)
    assert relative_norm(logits.grad, expected) < 1e-12


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
