"""Equations (1), (7) and (8): one layer, and the stack of L layers."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .config import EncoderConfig, ModelError
from .embeddings import Embeddings


def activation(x: Tensor, name: str) -> Tensor:
    """Equation (8), section 2.  The paper prints ReLU, max(0, x), here "relu".

    The released weights were trained with the exact GELU, x Φ(x) with Φ by erf: "gelu", the default.
    """
    return F.relu(x) if name == "relu" else F.gelu(x)


class FeedForward(nn.Module):
    """Equation (7), section 2.  W_2 σ(W_1 h + b_1) + b_2, the same for every token, σ by equation (8).

    hidden: (B, n, d_h) -> (B, n, d_h), through (B, n, E).
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.activation = config.activation
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.contract(activation(self.expand(hidden), self.activation))


class Layer(nn.Module):
    """One layer: H_{l-1} -> H_l.  A = LayerNorm(H + mix(H)), then LayerNorm(A + feed_forward(A)).

    The paper leaves the residual sums and the normalisation out of equations (6) and (7) on purpose. They
    are post-LayerNorm blocks (the norm is taken after the sum), as the released weights need, with dropout
    on each block's output before the sum.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = MultiHeadAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        asking: Tensor | None = None,
    ) -> Tensor:
        mixed = self.dropout(self.attention(hidden, attention_mask, lengths, asking))
        hidden = self.attention_norm((hidden if asking is None else asking) + mixed)
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))


class Encoder(nn.Module):
    """Equation (1), section 2.  H_l = layer_l(H_{l-1}) for l = 1 … L; the output is H_L.

    input_ids: (B, n) int64; attention_mask: (B, n) bool, true on real tokens. Without a mask, padding is
    found by pad_id. Positions are always counted over the tokens that are not pad_id.
    Raises ModelError for a text longer than the positions, or a mask of floating-point numbers.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        initialise(self, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """-> the last hidden state H_L, (B, n, d_h)."""
        attention_mask = self.mask(input_ids, attention_mask)
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return hidden

    def packed(self, input_ids: Tensor, lengths: Sequence[int], first_only: bool = False) -> Tensor:
        """The same for texts without padding, one after the other: no arithmetic is spent on padding.

        input_ids: (T,) int64; lengths: tokens of each of B texts, Σ = T -> H_L, (T, d_h).  No text sees another.
        first_only: the state of each text's `<s>` alone, (B, d_h), for which the last layer has less to do.
        Neighbours of equal length are fastest, so callers sort.  Raises ModelError as forward does.
        """
        hidden = self.embeddings.packed(input_ids, lengths)[None]  # (1, T, d_h)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, lengths=lengths)
        starts = torch.tensor([0, *accumulate(lengths[:-1])], device=hidden.device) if first_only else None
        return self.layers[-1](hidden, lengths=lengths, asking=hidden[:, starts] if first_only else None)[0]

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """-> [H_0, …, H_L], each (B, n, d_h)."""
        attention_mask = self.mask(input_ids, attention_mask)
        states = [self.embeddings(input_ids)]
        for layer in self.layers:
            states.append(layer(states[-1], attention_mask))
        return states

    def attention_maps(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """-> the maps of equation (5), one (B, J, n, n) a layer: which token looks where."""
        attention_mask = self.mask(input_ids, attention_mask)
        states = self.hidden_states(input_ids, attention_mask)
        return [layer.attention.maps(hidden, attention_mask) for layer, hidden in zip(self.layers, states)]

    def mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mask given, as bool; without one, true where the token is not pad_id.  (B, n)"""
        if attention_mask is None:
            return input_ids != self.config.pad_id
        if attention_mask.is_floating_point():  # 0 and -inf, to be added to scores, would be turned round by bool()
            raise ModelError(
                "attention_mask must be true (or 1) on real tokens and false (or 0) on padding, no fraction."
            )
        return attention_mask.bool()


def initialise(model: nn.Module, hidden_size: int) -> None:
    """Initial values: matrices N(0, σ), biases 0, padding rows 0; LayerNorms are 1 and 0 already.

    σ = 0.02 sqrt(768 / d_h): BERT's 0.02 at the width that it was chosen for, and at any other width the σ
    that gives projections of the same size (a model of 128 started at 0.02 does not leave the unigram plateau).
    """
    deviation = 0.02 * (768 / hidden_size) ** 0.5
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight.data[module.padding_idx])
