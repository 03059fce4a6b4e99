"""Equation (12): the student also learns the teacher's own task, to guess the hidden tokens."""

import torch.nn.functional as F
from torch import Tensor

from .soft_label import at_least_float32

IGNORED = -100  # the label of a token that was not chosen by the corruption


def mlm_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (12), section 3.2.  - log softmax(z)_label, summed over masked tokens.

    logits z: (…, |W|); labels: (…) int64, the original token where the corruption chose one, else -100
    -> sum (), count ().  In nats.

    - Which tokens count: those that the corruption chose, also the ones that it kept or replaced at random.
    - Denominator: their number, returned as the count (not the number of all tokens).
    - Direction: the label against the student. Temperature: always 1.

    Raises ValueError for shapes that do not fit.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels {tuple(labels.shape)} must be logits {tuple(logits.shape)} without the vocabulary.")
    masked = labels != IGNORED
    return F.cross_entropy(at_least_float32(logits[masked]), labels[masked], reduction="sum"), masked.sum()
