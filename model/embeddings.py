"""H_0: what goes into the first layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import EncoderConfig, ModelError


def position_ids(input_ids: Tensor, pad_id: int) -> Tensor:
    """RoBERTa's positions: the k-th real token (k = 1, 2, …) is at pad_id + k, padding is at pad_id.

    input_ids: (B, n) -> (B, n). With CamemBERT's pad_id 1 the first token is at 2, and row 0 is never read.
    """
    real = (input_ids != pad_id).long()
    return real.cumsum(dim=1) * real + pad_id


class Embeddings(nn.Module):
    """H_0, section 2.  LayerNorm(W[x] + P[position]), then dropout.

    The paper prints a concatenation of the word embeddings "plus" a position encoder: it is the sum of one
    word row and one learned position row a token, as the released weights need. Hugging Face adds a third
    row, the token type, which is the same for every token: we fold it into the position rows on import
    (convert_weights.py), so that the parameters of this module are those that equation (9) counts.

    input_ids: (B, n) int64 -> (B, n, d_h).  Raises ModelError for a text longer than the positions.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pad_id = config.pad_id
        self.max_tokens = config.max_tokens
        # padding_idx: the row is zero at the start and gets no gradient from here, as in Hugging Face's model
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_id)
        self.position = nn.Embedding(config.max_positions, config.hidden_size, padding_idx=config.pad_id)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ModelError(
                f"input_ids must be (batch, tokens) whole numbers, not {input_ids.dtype} of shape "
                f"{tuple(input_ids.shape)}."
            )
        self.check_length(input_ids.shape[1])
        return self.at(input_ids, position_ids(input_ids, self.pad_id))

    def packed(self, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Texts one after the other, (T,) -> (T, d_h).  Raises ModelError if one is longer than the positions."""
        self.check_length(max(lengths))
        texts = input_ids.split(list(lengths))
        return self.at(input_ids, torch.cat([position_ids(text[None], self.pad_id)[0] for text in texts]))

    def at(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.dropout(self.norm(self.word(input_ids) + self.position(positions)))

    def check_length(self, length: int) -> None:
        if length > self.max_tokens:
            raise ModelError(
                f"A text of {length} tokens is longer than the model's {self.max_tokens}: cut it, or read it by "
                "windows."
            )
