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
from .encoder import Encoder


def encode_packed(encoder: Encoder, input_ids: Tensor, seqlens: Sequence[int], first_only: bool = False) -> Tensor:
    """The last hidden state H_L of packed sequences, (T, d_h). No sequence attends to another.

    input_ids: (T,) int64; seqlens: number of tokens of each of the B sequences, which sum to T.
    first_only: -> (B, d_h), the state of each sequence's first token only; the last layer then computes no other.
    Runs of equal length are computed together, so sorted sequences are fastest on a CPU.
    Raises ModelError for a sequence longer than the positions.
    """
    embeddings = encoder.embeddings
    embeddings.check_length(max(seqlens))
    bounds = torch.tensor([0, *accumulate(seqlens)], dtype=torch.int32, pin_memory=input_ids.is_cuda)
    cu_seqlens = bounds.to(input_ids.device, non_blocking=True)  # (B + 1,)
    positions = packed_position_ids(input_ids, cu_seqlens, embeddings.pad_id)
    hidden = embeddings.embed(input_ids, positions)[None]  # (1, T, d_h)
    for layer in encoder.layers[:-1]:
        hidden = layer.after_attention(hidden, packed_attention(layer.attention, hidden, hidden, seqlens, cu_seqlens))
    last, asking = encoder.layers[-1], hidden
    if first_only:
        asking = hidden[:, cu_seqlens[:-1]]  # (1, B, d_h)
    return last.after_attention(asking, packed_attention(last.attention, asking, hidden, seqlens, cu_seqlens))[0]


def packed_position_ids(input_ids: Tensor, cu_seqlens: Tensor, pad_id: int) -> Tensor:
    """`position_ids` of packed sequences, (T,): the k-th token of each that is not padding has position pad_id + k."""
    is_token = (input_ids != pad_id).long()
    counts = is_token.cumsum(dim=0)
    before = F.pad(counts, (1, 0))[cu_seqlens[:-1]]  # (B,): the number of tokens in front of each sequence
    before = before.repeat_interleave(cu_seqlens.diff(), output_size=len(input_ids))  # (T,)
    return (counts - before) * is_token + pad_id


def packed_attention(
    attention: MultiHeadAttention, asking: Tensor, hidden: Tensor, seqlens: Sequence[int], cu_seqlens: Tensor
) -> Tensor:
    """Equations (2) to (6) on packed sequences: MultiHead_l(H) for the tokens whose queries are computed.

    hidden: (1, T, d_h), which gives keys and values; asking: the states that give queries, all T of them or the
    first of each sequence; cu_seqlens: (B + 1,) int32, where each sequence begins, and T -> (1, T or B, d_h)
    """
    queries, keys, values = (projected[0] for projected in attention.project(asking, hidden))
    all_ask = asking.shape[1] == hidden.shape[1]
    if has_varlen_kernel(queries, attention.dropout.p if attention.training else 0.0):
        from torch.nn.attention.varlen import varlen_attn  # imports 70 MB of PyTorch's compiler: not on a CPU

        cu_queries = cu_seqlens if all_ask else torch.arange(len(cu_seqlens), dtype=torch.int32, device=hidden.device)
        longest = max(seqlens)
        parts = (part.transpose(0, 1) for part in (queries, keys, values))  # (T or B, J, d_h / J)
        heads = varlen_attn(*parts, cu_queries, cu_seqlens, longest if all_ask else 1, longest)
        return attention.out(heads.flatten(1)[None])
    runs = [(length, len(list(same))) for length, same in groupby(seqlens)]  # neighbours of equal length
    key_sizes = [length * count for length, count in runs]
    query_sizes = key_sizes if all_ask else [count for _, count in runs]
    results = []
    for (_, count), *parts in zip(
        runs, queries.split(query_sizes, 1), keys.split(key_sizes, 1), values.split(key_sizes, 1)
    ):
        batch = (part.unflatten(1, (count, -1)).transpose(0, 1) for part in parts)  # (count, J, n or 1, d_h / J)
        results.append(attention.concatenate_heads(attention.attend(*batch)).flatten(0, 1))  # (count · n, d_h)
    return attention.out(torch.cat(results)[None])


def has_varlen_kernel(queries: Tensor, dropout: float) -> bool:
    """Whether one kernel takes all sequences, whatever their lengths: flash attention's, which has no dropout here.

    It needs an Ampere GPU or a newer one, half precision, and heads of a multiple of 8 up to 256.
    """
    fits = queries.dtype in (torch.float16, torch.bfloat16) and queries.shape[-1] % 8 == 0 and queries.shape[-1] <= 256
    return queries.is_cuda and fits and not dropout and torch.cuda.get_device_capability(queries.device) >= (8, 0)
