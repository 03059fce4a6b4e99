"""Beyond the paper: the student's last self-attention relates the tokens as the teacher's does.

MiniLMv2 (Wang et al. 2021, arXiv:2012.15828): relations of queries with queries, keys with keys, values with values.

Shapes: B sequences, n tokens, d_h hidden size (d_s of the student, d_t of the teacher), A relation heads of size
d_r = d_h / A.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .soft_label import at_least_float32


def attention_relation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], real: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    """RelationLoss = 1/Σ_k n_k · Σ_k Σ_i 1/(3A) · Σ_X Σ_a D_KL(R_{X,a,k,i}^t ‖ R_{X,a,k,i}^s), X ∈ {Q, K, V}

    R_{X,a} = softmax(X_a X_a^T / sqrt(d_r)), one distribution over the tokens for each token i, in nats.
    No equation of the paper: a term that later work adds to (13).
    student: queries, keys and values of all heads side by side, (B, n, d_s) each; teacher: likewise (B, n, d_t);
    real: (B, n) bool; num_heads A: X is cut into A relation heads, whatever the number of attention heads, so that
    student and teacher may differ in width
    -> the sum over the real tokens of the mean over relations and heads, (), and the number of real tokens, ().

    - Tokens: every real one, related to all real tokens of its sequence. Padding is neither read nor counted.
    - Denominator: Σ_k n_k, the number of real tokens, returned as the count.
    - Direction: D_KL(teacher ‖ student), as in MiniLM. Temperature: 1.

    Computed in float32 for half-precision inputs, under autocast too. One relation at a time holds some A × n numbers
    per token. Raises ValueError for shapes that do not match, or a width that is not a multiple of A.
    """
    for x in (*student, *teacher):
        if x.shape[:-1] != real.shape or real.ndim != 2 or x.shape[-1] % num_heads:
            raise ValueError(
                f"queries, keys and values {tuple(x.shape)} must have the shape of real {tuple(real.shape)} and a "
                f"width that is a multiple of the {num_heads} relation heads."
            )
    divergences = []
    with torch.autocast(real.device.type, enabled=False):
        for of_student, of_teacher in zip(student, teacher, strict=True):
            log_s, log_t = (log_relations(x, real, num_heads) for x in (of_student, of_teacher))  # (B, A, n, n)
            divergences.append((log_t.exp() * (log_t - log_s)).sum(dim=-1).mean(dim=1))  # (B, n)
    return torch.where(real, torch.stack(divergences).mean(dim=0), 0).sum(), real.sum()


def log_relations(x: Tensor, real: Tensor, num_heads: int) -> Tensor:
    """log softmax(X X^T / sqrt(d_r)) of each relation head.  (B, n, d_h), (B, n) -> (B, A, n, n)"""
    x = at_least_float32(x).masked_fill(~real[..., None], 0)
    heads = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, A, n, d_r)
    scores = heads @ heads.transpose(-2, -1) / math.sqrt(heads.shape[-1])
    return scores.masked_fill(~real[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(dim=-1)
