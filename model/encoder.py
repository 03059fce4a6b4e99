"""Equations (1), (7) and (8): the feed-forward network, the layer, the stack of L layers.

Shapes: B sequences, n tokens, d_h hidden size, E intermediate size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .config import EncoderConfig, ModelError
from .dropout import Dropout
from .embeddings import Embeddings


class FeedForward(nn.Module):
    """Equation (8), section 2.  FF_l(H) = W_l^forward ReLu(W_l^feed H + 1_{1×n} ⊗ b_l^feed) + 1_{1×n} ⊗ b_l^forward

    hidden: (B, n, d_h) -> (B, n, d_h), through (B, n, E). `feed` is W^feed with b^feed, `forward_proj` is W^forward
    with b^forward. The released weights were trained with the exact GELU, x Φ(x) with Φ by erf: "gelu" is the
    default activation, "relu" is the equation as printed.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.activation = F.relu if config.activation == "relu" else F.gelu
        self.feed = nn.Linear(config.hidden_size, config.intermediate_size)
        self.forward_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.forward_proj(self.activation(self.feed(hidden)))


class TransformerLayer(nn.Module):
    """Equation (7), section 2.  Transformer_l(H) = FF_l(MultiHead_l(H))

    hidden: (B, n, d_h); attention_mask: (B, n) bool or None -> (B, n, d_h)

    With the residual sums and the normalisations that section 2 leaves out on purpose. The released weights need
    post-LayerNorm blocks, each normalised after its sum:

        A   = LayerNorm(H + dropout(MultiHead_l(H)))
        H_l = LayerNorm(A + dropout(FF_l(A)))
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = MultiHeadAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.after_attention(hidden, self.attention(hidden, attention_mask))

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """H and MultiHead_l(H) -> H_l: the two residual sums with their LayerNorms.  (…, d_h), (…, d_h) -> (…, d_h)"""
        hidden = self.attention_norm(hidden + self.dropout(attended))  # A
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))


class Encoder(nn.Module):
    """Equation (1), section 2.  H_l = Transformer_l(H_{l−1}), l = 1 … L

    input_ids: (B, n) int64; attention_mask: (B, n) bool, true on real tokens -> the last hidden state H_L, (B, n, d_h)

    Without a mask, padding is found by pad_id. has_padding=False promises that no token is padding: no mask is
    built, so that a GPU can use flash attention. Positions always count the tokens that are not pad_id.
    Raises ModelError for a sequence longer than the positions, or a floating-point mask.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        initialise(self, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, has_padding: bool = True) -> Tensor:
        attention_mask = self.real_tokens(input_ids, attention_mask) if has_padding else None
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return hidden

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, has_padding: bool = True
    ) -> list[Tensor]:
        """-> [H_0, …, H_L], each (B, n, d_h)."""
        attention_mask = self.real_tokens(input_ids, attention_mask) if has_padding else None
        states = [self.embeddings(input_ids)]
        for layer in self.layers:
            states.append(layer(states[-1], attention_mask))
        return states

    def attention_maps(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """-> the maps of equation (5), one (B, J, n, n) per layer."""
        attention_mask = self.real_tokens(input_ids, attention_mask)
        states = self.hidden_states(input_ids, attention_mask)
        return [layer.attention.attention_maps(hidden, attention_mask) for layer, hidden in zip(self.layers, states)]

    def real_tokens(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The given mask as bool; without one, true where the token is not pad_id.  (B, n)"""
        if attention_mask is None:
            return input_ids != self.config.pad_id
        if attention_mask.is_floating_point():  # an additive mask of 0 and -inf would be inverted by bool()
            raise ModelError("attention_mask must be bool or 0/1, true on real tokens; an additive float mask is not.")
        return attention_mask.bool()


def initialise(model: nn.Module, hidden_size: int) -> None:
    """Initial values: matrices N(0, σ), biases 0, padding rows 0; LayerNorms keep PyTorch's 1 and 0.

    σ = 0.02 sqrt(768 / d_h): BERT's 0.02 at the width it was chosen for; at other widths, the σ that gives
    projections of the same size (a model of width 128 started at 0.02 does not leave the unigram plateau).
    """
    deviation = 0.02 * (768 / hidden_size) ** 0.5
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight.data[module.padding_idx])
