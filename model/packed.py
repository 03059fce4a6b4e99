"""The encoder of equations (1) to (8) on packed sequences: one after the other, without padding.

No arithmetic is spent on padding. A test holds every state equal to `Encoder.forward`'s.
Shapes: B sequences, T tokens of all sequences together, d_h hidden size, J heads.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import MultiHeadAttention
from .embeddings import position_ids
from .encoder import Encoder


def encode_packed(encoder: Encoder, input_ids: Tensor, seqlens: Sequence[int], first_only: bool = False) -> Tensor:
    """The last hidden state H_L of packed sequences, (T, d_h). No sequence attends to another.

    input_ids: (T,) int64; seqlens: number of tokens of each of the B sequences, which sum to T.
    first_only: -> (B, d_h), the state of each sequence's first token only; the last layer then computes no other.
    Runs of equal length are computed together, so sorted sequences are fastest.
    Raises ModelError for a sequence longer than the positions.
    """
    embeddings = encoder.embeddings
    embeddings.check_length(max(seqlens))
    sequences = input_ids.split(list(seqlens))
    positions = torch.cat([position_ids(sequence[None], embeddings.pad_id)[0] for sequence in sequences])
    hidden = embeddings.embed(input_ids, positions)[None]  # (1, T, d_h)
    for layer in encoder.layers[:-1]:
        hidden = layer.after_attention(hidden, packed_attention(layer.attention, hidden, hidden, seqlens))
    last, asking = encoder.layers[-1], hidden
    if first_only:
        asking = hidden[:, torch.tensor([0, *accumulate(seqlens[:-1])], device=hidden.device)]  # (1, B, d_h)
    return last.after_attention(asking, packed_attention(last.attention, asking, hidden, seqlens))[0]


def packed_attention(attention: MultiHeadAttention, asking: Tensor, hidden: Tensor, seqlens: Sequence[int]) -> Tensor:
    """Equations (2) to (6) on packed sequences: MultiHead_l(H) for the tokens whose queries are computed.

    hidden: (1, T, d_h), which gives keys and values; asking: the states that give queries, all T of them or the
    first of each sequence -> (1, T or B, d_h)
    """
    queries, keys, values = attention.queries(asking)[0], attention.keys(hidden)[0], attention.values(hidden)[0]
    runs = [(length, len(list(same))) for length, same in groupby(seqlens)]  # neighbours of equal length
    key_sizes = [length * count for length, count in runs]
    query_sizes = key_sizes if asking.shape[1] == hidden.shape[1] else [count for _, count in runs]
    dropout = attention.dropout if attention.training else 0.0
    results = []
    for (_, count), *parts in zip(
        runs, queries.split(query_sizes, 1), keys.split(key_sizes, 1), values.split(key_sizes, 1)
    ):
        batch = (part.unflatten(1, (count, -1)).transpose(0, 1) for part in parts)  # (count, J, n or 1, d_h / J)
        heads = F.scaled_dot_product_attention(*batch, dropout_p=dropout)
        results.append(attention.concatenate_heads(heads).flatten(0, 1))  # (count · n, d_h)
    return attention.out(torch.cat(results)[None])
