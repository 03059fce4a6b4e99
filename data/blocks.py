"""Blocks of equal length, as RoBERTa packs them, and the micro-batches made of them."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .errors import DataError
from .masking import mask_tokens
from .tokenizer import Tokenizer

LINES_AT_ONCE = 4096  # handed to SentencePiece together


class Batch(NamedTuple):
    """One micro-batch. Each tensor is (B, n)."""

    input_ids: Tensor  # int64, corrupted
    labels: Tensor  # int64, the original token where it was chosen, else -100
    real: Tensor  # bool, false on padding

    def to(self, device: torch.device) -> "Batch":
        """The batch there. To a GPU by pinned memory, so that the CPU goes on meanwhile."""
        pinned = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in pinned))


def pack_blocks(texts: Iterable[str], tokenizer: Tokenizer, block_size: int) -> Tensor:
    """Texts -> (blocks, block_size) token ids, without padding, every block `<s>` and then a stretch of the text.

    The texts follow one another, `</s>` at the end of each; the stream is cut every block_size - 1 tokens, so a
    block may begin inside a text and cross into the next. The last, incomplete block is left out.
    The ids are kept in 2 bytes where the vocabulary allows it: indexing gives int64.
    Raises DataError if there is no text, or less than one block.
    """
    narrow = len(tokenizer) <= 1 << 16
    stream = array("H" if narrow else "i")
    texts, words = iter(texts), 0
    while lines := list(islice(texts, LINES_AT_ONCE)):
        for ids in tokenizer.encode_plain(lines):
            stream.extend(ids)
            words += len(ids)
            stream.append(tokenizer.eos_id)
    if not words:
        raise DataError("The corpus has no usable line of text.")
    num_blocks = len(stream) // (block_size - 1)
    if not num_blocks:
        raise DataError(
            f"The corpus has only {len(stream)} tokens, less than one block of {block_size}: "
            "add text, or choose a smaller block size."
        )
    body = numpy.frombuffer(stream, dtype=numpy.uint16 if narrow else numpy.int32)
    blocks = numpy.empty((num_blocks, block_size), dtype=body.dtype)
    blocks[:, 0] = tokenizer.bos_id
    blocks[:, 1:] = body[: num_blocks * (block_size - 1)].reshape(num_blocks, block_size - 1)
    return torch.from_numpy(blocks)


def hold_out(blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """-> (training blocks, held-out blocks): about `count` spread evenly, so that every source has its share.

    The choice depends on the corpus alone, not on a seed. At most one block in ten is held out, at least one.
    Raises DataError if there are not two blocks.
    """
    if len(blocks) < 2:
        raise DataError("The corpus is one block long: a second one is needed to measure on. Add text.")
    stride = max(10, len(blocks) // count)
    places = torch.arange(len(blocks))
    held_out = places % stride == min(stride, len(blocks)) // 2
    return blocks[~held_out], blocks[held_out]


def make_batch(blocks: Tensor, tokenizer: Tokenizer, generator: torch.Generator) -> Batch:
    """Blocks (B, n) -> the corrupted micro-batch."""
    input_ids = blocks.long()
    corrupted, labels = mask_tokens(input_ids, tokenizer, generator)
    return Batch(corrupted, labels, input_ids != tokenizer.pad_id)


def training_batches(
    blocks: Tensor, tokenizer: Tokenizer, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Micro-batches for ever. Each epoch has its own order; a batch at its end is filled from the next one."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        epochs = max(0, -(-(batch_size - len(order)) // len(blocks)))  # that are needed to fill this batch
        order = torch.cat([order, *(torch.randperm(len(blocks), generator=generator) for _ in range(epochs))])
        chosen, order = order[:batch_size], order[batch_size:]
        yield make_batch(blocks[chosen], tokenizer, generator)
