"""Equations (2) to (6): multi-head attention.

Shapes: B sequences, n tokens, d_h hidden size, J heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig
from .dropout import Dropout


def scaled_dot_product(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attention_mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """Equation (5), section 2.  Head_{j,l}(H) = V_{j,l} softmax(Q_{j,l}^T K_{j,l} / sqrt(d_h / J))^T

    The literal form, for all J heads at once; it also returns the attention maps. PyTorch's
    scaled_dot_product_attention, which need not hold the n × n maps, is what runs, except where it has no fast form
    with dropout; a test holds the two equal.

    queries, keys, values: (B, J, n, d_h / J); attention_mask: (B, n) bool, true on real tokens; dropout: of the maps
    -> heads (B, J, n, d_h / J), attention maps (B, J, n, n), softmax over the last dimension, the keys.

    Padding gets the lowest finite score instead of -inf, so that a sequence of padding alone gives a uniform
    average, not NaN (PyTorch's form gives zeros there; such rows are left out of every loss).
    """
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])  # (B, J, n, n)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None, None, :], torch.finfo(scores.dtype).min)
    attention_maps = scores.softmax(dim=-1)
    weights = dropout(attention_maps) if dropout else attention_maps
    return weights @ values, attention_maps


class MultiHeadAttention(nn.Module):
    """Equation (6), section 2.  MultiHead_l(H) = W_l^out [Head_{1,l}^T, …, Head_{J,l}^T]^T + 1_{1×n} ⊗ b_l^out

    hidden: (B, n, d_h); attention_mask: (B, n) bool, true on real tokens, or None -> (B, n, d_h)

    The matrices W_{1,l}^Q … W_{J,l}^Q are the rows of one d_h × d_h matrix, `query.weight`; likewise K and V.
    Equations (2) to (4) print their biases without a head index: each is one vector of size d_h of which every head
    has a slice, and only so does equation (9) come out at 9 d_h. `out` is W^out with b^out.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = Dropout(config.dropout)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def queries(self, hidden: Tensor) -> Tensor:
        """Equation (2), section 2.  Q_{j,l}(H) = W_{j,l}^Q H + 1_{1×n} ⊗ b_l^Q.  (B, n, d_h) -> (B, J, n, d_h / J)"""
        return self.split_heads(self.query(hidden))

    def keys(self, hidden: Tensor) -> Tensor:
        """Equation (3), section 2.  K_{j,l}(H) = W_{j,l}^K H + 1_{1×n} ⊗ b_l^K.  (B, n, d_h) -> (B, J, n, d_h / J)"""
        return self.split_heads(self.key(hidden))

    def values(self, hidden: Tensor) -> Tensor:
        """Equation (4), section 2.  V_{j,l}(H) = W_{j,l}^V H + 1_{1×n} ⊗ b_l^V.  (B, n, d_h) -> (B, J, n, d_h / J)"""
        return self.split_heads(self.value(hidden))

    def project(self, asking: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the tokens that ask, keys and values of all tokens."""
        return self.queries(asking), self.keys(hidden), self.values(hidden)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.out(self.concatenate_heads(self.attend(*self.project(hidden, hidden), attention_mask)))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The heads of (5) in their fastest form, with dropout in training.  -> (B, J, n, d_h / J)"""
        if self.dropout.acts_on_cpu(queries):
            return scaled_dot_product(queries, keys, values, attention_mask, self.dropout)[0]
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        dropout_p = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout_p)

    def attention_maps(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The maps of equation (5), one per head: (B, n, d_h) -> (B, J, n, n); row i is where token i looks."""
        return scaled_dot_product(self.queries(hidden), self.keys(hidden), self.values(hidden), attention_mask)[1]

    def split_heads(self, projected: Tensor) -> Tensor:
        """(B, n, d_h) -> (B, J, n, d_h / J)"""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def concatenate_heads(self, heads: Tensor) -> Tensor:
        """(B, J, n, d_h / J) -> (B, n, d_h)"""
        return heads.transpose(1, 2).flatten(2)
