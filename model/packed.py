"""The encoder of equations (1) to (8) on packed sequences: one after the other, without padding.

No product of a layer is spent on padding; attention pads neighbours of unequal length by a few tokens, where `runs.py`
finds that cheaper than a call for each, and in training on a GPU all to the longest. A test holds every state equal to
`Encoder.forward`'s.
Shapes: B sequences, T tokens of all sequences together, R of them whose states are wanted, d_h hidden size, J heads.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import MultiHeadAttention
from .encoder import Encoder
from .runs import Packing, Run

LONG = 256  # tokens: above, scaled_dot_product_attention is faster in fp32 on a CPU (eval/LOG.md)


def encode_packed(
    encoder: Encoder, input_ids: Tensor, seqlens: Sequence[int], wanted: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """The last hidden state H_L of packed sequences, (T, d_h). No sequence attends to another.

    input_ids: (T,) int64; seqlens: number of tokens of each of the B sequences, which sum to T.
    wanted: of each sequence, the positions whose states are wanted, [0] for `<s>` -> (R, d_h), in this order; the last
    layer then computes queries, feed-forward network and sums of these only.
    Sorted sequences are fastest on a CPU.  Raises ModelError for a sequence longer than the positions.
    """
    embeddings = encoder.embeddings
    embeddings.check_length(max(seqlens))
    packing = Packing(seqlens, seqlens, input_ids.device)
    positions = packed_position_ids(input_ids, packing.cu_seqlens, embeddings.pad_id)
    hidden = embeddings.embed(input_ids, positions)[None]  # (1, T, d_h)
    for layer in encoder.layers[:-1]:
        hidden = layer.after_attention(hidden, packed_attention(layer.attention, hidden, hidden, packing))
    last, asking = encoder.layers[-1], hidden
    if wanted is not None:
        packing = Packing(seqlens, [len(each) for each in wanted], input_ids.device)
        starts = accumulate(seqlens, initial=0)
        rows = [start + position for start, each in zip(starts, wanted) for position in each]
        if not rows:
            return hidden[0, :0]
        asking = hidden[:, torch.tensor(rows, dtype=torch.int64).to(input_ids.device)]  # (1, R, d_h)
    return last.after_attention(asking, packed_attention(last.attention, asking, hidden, packing))[0]


def packed_position_ids(input_ids: Tensor, cu_seqlens: Tensor, pad_id: int) -> Tensor:
    """`position_ids` of packed sequences, (T,): the k-th token of each that is not padding has position pad_id + k."""
    is_token = (input_ids != pad_id).long()
    counts = is_token.cumsum(dim=0)
    before = F.pad(counts, (1, 0))[cu_seqlens[:-1]]  # (B,): the number of tokens in front of each sequence
    before = before.repeat_interleave(cu_seqlens.diff(), output_size=len(input_ids))  # (T,)
    return (counts - before) * is_token + pad_id


def packed_attention(attention: MultiHeadAttention, asking: Tensor, hidden: Tensor, packing: Packing) -> Tensor:
    """Equations (2) to (6) on packed sequences: MultiHead_l(H) for the tokens whose queries are computed.

    hidden: (1, T, d_h), which gives keys and values; asking: the states that give queries, all T of them or the R
    that are wanted -> (1, T or R, d_h)
    """
    queries, keys, values = (projected[0] for projected in attention.project(asking, hidden))  # (J, T or R, d_h / J)
    if has_varlen_kernel(queries, attention.dropout.p if attention.training else 0.0):
        from torch.nn.attention.varlen import varlen_attn  # imports 70 MB of PyTorch's compiler: not on a CPU

        parts = (part.transpose(0, 1) for part in (queries, keys, values))  # (T or R, J, d_h / J)
        longest = max(packing.query_lens), max(packing.seqlens)
        heads = varlen_attn(*parts, packing.cu_queries, packing.cu_seqlens, *longest)
        return attention.out(heads.flatten(1)[None])
    results = []
    for run in packing.runs(queries):
        batch = run.queries.batch(queries), run.keys.batch(keys), run.keys.batch(values)
        results.append(run.queries.pack(attention.concatenate_heads(attend(attention, *batch, run))))
    heads = results[0] if len(results) == 1 else torch.cat(results)
    return attention.out(heads[None])


def attend(attention: MultiHeadAttention, queries: Tensor, keys: Tensor, values: Tensor, run: Run) -> Tensor:
    """The heads of a run in their fastest form: on a CPU, most are two products of all heads at once.

    queries: (B, J, m, d_h / J); keys, values: (B, J, n, d_h / J) -> (B, J, m, d_h / J)
    """
    is_half, (count, num_heads, longest, size) = queries.dtype.itemsize == 2, keys.shape
    if attention.training or not (is_half or longest <= LONG) or queries.device.type != "cpu":
        return attention.attend(queries, keys, values, run.keys.real if run.keys.is_padded else None)
    if is_half:  # scaled in the product
        parts = queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)
        scores = torch.baddbmm(queries.new_empty(1), *parts, beta=0, alpha=size**-0.5).unflatten(0, (count, num_heads))
    else:
        scores = (queries @ keys.transpose(-2, -1)).mul_(size**-0.5)  # (B, J, m, n)
    if run.keys.is_padded:
        shortest = run.keys.shortest  # no column before it is padding
        scores[..., shortest:].masked_fill_(~run.keys.real[:, None, None, shortest:], -torch.inf)
    if is_half:  # three to six times as fast as in bf16, if rows are short
        return scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype) @ values
    return scores.softmax(dim=-1) @ values


def has_varlen_kernel(queries: Tensor, dropout: float) -> bool:
    """Whether one kernel takes all sequences, whatever their lengths: flash attention's, which has no dropout here.

    It needs an Ampere GPU or a newer one, half precision, and heads of a multiple of 8 up to 256.
    """
    fits = queries.dtype in (torch.float16, torch.bfloat16) and queries.shape[-1] % 8 == 0 and queries.shape[-1] <= 256
    return queries.is_cuda and fits and not dropout and torch.cuda.get_device_capability(queries.device) >= (8, 0)
