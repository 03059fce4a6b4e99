"""Equations (2) to (6): the heads, and how they are mixed."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig


def scaled_dot_product(
    queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Equation (5), section 2.  V softmax(Q^T K / sqrt(d_h / J))^T, for every head at once, as printed.

    queries, keys, values: (B, J, n, d_h / J); attention_mask: (B, n) bool, true on real tokens
    -> context (B, J, n, d_h / J), attention map (B, J, n, n), whose row i says where token i looks.

    This is the form to read, and the one that gives the maps. What runs is PyTorch's
    scaled_dot_product_attention (below), which need not hold the n × n maps; a test keeps the two equal.
    Padding gets the lowest finite score rather than -inf, so that a text of padding alone gives a
    uniform average instead of NaN (PyTorch's gives zeros there; such rows stay out of every loss).
    """
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])  # (B, J, n, n)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None, None, :], torch.finfo(scores.dtype).min)
    attention_map = scores.softmax(dim=-1)
    return attention_map @ values, attention_map


def packed_attention(
    queries: Tensor, keys: Tensor, values: Tensor, lengths: Sequence[int], dropout: float = 0.0
) -> Tensor:
    """Equation (5) for texts that lie one after the other without padding.

    keys, values: (1, J, T, d_h / J); lengths: of the texts, Σ = T; queries: as many, or one a text, (1, J, B, d_h / J)
    -> (1, J, T or B, d_h / J).  Neighbours of equal length are computed together: sorted texts take few calls.
    """
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    asked = [length * count for length, count in runs] if queries.shape[2] == keys.shape[2] else [n for _, n in runs]
    sizes = [length * count for length, count in runs]
    contexts = []
    for (_, count), *parts in zip(runs, queries[0].split(asked, 1), keys[0].split(sizes, 1), values[0].split(sizes, 1)):
        rows = (part.unflatten(1, (count, -1)).transpose(0, 1) for part in parts)  # (texts, J, n or 1, d_h / J)
        context = F.scaled_dot_product_attention(*rows, dropout_p=dropout)
        contexts.append(context.transpose(1, 2).flatten(0, 1))  # (texts n, J, d_h / J)
    return torch.cat(contexts).transpose(0, 1)[None]


class MultiHeadAttention(nn.Module):
    """Equations (2) to (6), section 2: from H_{l-1} to the mix of the J heads, without residual or norm.

    hidden: (B, n, d_h); attention_mask: (B, n) bool or None -> (B, n, d_h)
    With `lengths`, hidden is (1, T, d_h): texts of these lengths one after the other, none of which sees another.
    With `asking`, (…, d_h), only these of the states ask, and get an answer.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)

    def heads(self, hidden: Tensor, asking: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Equations (2), (3), (4), section 2.  Q_{l,j} = W^Q_{l,j} H + b^Q_l, and so K and V.

        hidden: (B, n, d_h) -> three of (B, J, n, d_h / J).
        The matrices of the J heads are the rows of one d_h × d_h matrix. The paper prints the bias without
        a head index: it is one vector of size d_h, each head has its slice, and only so does equation (9)
        come out at 9 d_h.
        """

        def split(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, J, n, d_h / J)

        return (
            split(self.query(hidden if asking is None else asking)),
            split(self.key(hidden)),
            split(self.value(hidden)),
        )

    def mix_heads(self, context: Tensor) -> Tensor:
        """Equation (6), section 2.  W^O [context_1; …; context_J] + b^O.  (B, J, n, d_h / J) -> (B, n, d_h)"""
        return self.mix(context.transpose(1, 2).flatten(2))

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        asking: Tensor | None = None,
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if lengths is not None:
            return self.mix_heads(packed_attention(*self.heads(hidden, asking), lengths, dropout))
        context = F.scaled_dot_product_attention(  # equation (5); the scale 1 / sqrt(d_h / J) is its default
            *self.heads(hidden),
            attn_mask=None if attention_mask is None else attention_mask[:, None, None, :],
            dropout_p=dropout,
        )
        return self.mix_heads(context)

    def maps(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The attention maps of equation (5), one a head: (B, n, d_h) -> (B, J, n, n)."""
        return scaled_dot_product(*self.heads(hidden), attention_mask)[1]
