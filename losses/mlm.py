"""Equation (12): the teacher's own pre-training task, masked language modelling.

Shapes: |W| vocabulary size; … any leading dimensions, for example (B, n).
"""

import torch.nn.functional as F
from torch import Tensor

from .soft_label import at_least_float32

IGNORE_INDEX = -100  # the label of a token that does not count in a cross-entropy


def mlm_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (12), section 3.2.  MLMLoss = −1 / Σ_k |M_k| · Σ_k Σ_{i ∈ M_k} p_{k,i}^w log(p_{k,i}^s)

    p^w is the hard label, so each term is − log softmax(z)_label, in nats.
    logits z: (…, |W|); labels: (…) int64, the original token where it was masked, else IGNORE_INDEX
    -> the sum over the masked tokens, (), and their number, ().

    - Tokens: those chosen by the corruption, also those that it kept or replaced at random.
    - Denominator: Σ_k |M_k|, the number of masked tokens (not of all tokens), returned as the count.
    - Direction: the label against the student. Temperature: always 1.

    Raises ValueError for shapes that do not match.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the shape of logits {tuple(logits.shape)} without the vocabulary."
        )
    masked = labels != IGNORE_INDEX
    return F.cross_entropy(at_least_float32(logits[masked]), labels[masked], reduction="sum"), masked.sum()
