"""H_0: the input of the first layer.

Shapes: B sequences, n tokens, d_h hidden size.
"""

import torch
from torch import Tensor, nn

from .config import EncoderConfig, ModelError
from .dropout import Dropout


def position_ids(input_ids: Tensor, pad_id: int) -> Tensor:
    """RoBERTa's positions: the k-th token (k = 1, 2, …) has position pad_id + k, padding has pad_id.

    input_ids: (B, n) -> (B, n).  With CamemBERT's pad_id 1 the first token is at 2, and row 0 is never read.
    """
    is_token = (input_ids != pad_id).long()
    return is_token.cumsum(dim=1) * is_token + pad_id


class Embeddings(nn.Module):
    """H_0, section 2.  The word embedding of each token summed with the embedding of its position.

    As printed: the paper concatenates the n columns of the matrix, one per token; each is a sum. LayerNorm and
    dropout follow, which section 2 leaves out on purpose. The positions are learnt, as in BERT and RoBERTa.
    Hugging Face adds a third row, the token type, which is the same for every token: it is added to the position
    rows on import, so that this module has exactly the parameters that equation (9) counts.

    input_ids: (B, n) int64 -> (B, n, d_h).  Raises ModelError for a sequence longer than the positions.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pad_id = config.pad_id
        self.max_tokens = config.max_tokens
        # padding_idx: the row starts at zero and gets no gradient here, as in Hugging Face's model
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_id)
        self.position = nn.Embedding(config.max_positions, config.hidden_size, padding_idx=config.pad_id)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            found = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
            raise ModelError(f"input_ids must be integers of shape (batch, tokens), not {found}.")
        self.check_length(input_ids.shape[1])
        return self.embed(input_ids, position_ids(input_ids, self.pad_id))

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """(…), (…) -> (…, d_h)"""
        return self.dropout(self.norm(self.word(input_ids) + self.position(positions)))

    def check_length(self, length: int) -> None:
        if length > self.max_tokens:
            found = f"A sequence of {length} tokens is longer than the model's maximum of {self.max_tokens}"
            raise ModelError(f"{found}: truncate it or split it into windows.")
