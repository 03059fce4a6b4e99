"""Blocks of equal length, as RoBERTa packs them, out of a prepared corpus, and the micro-batches made of them.

The documents follow one another, </s> at the end of each; the stream is cut every block_size - 1 tokens, and <s> is
put before each stretch. So a block may begin inside a document and cross into the next, and there is no padding.
"""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .errors import DataError
from .masking import Masking
from .shards import HELD_OUT, MANIFEST, TRAIN, open_manifest
from .shuffle import key_of, permute
from .tokenizer import Tokenizer

AHEAD = 64  # micro-batches whose order is computed together: that costs little more than one's
ENDS_AT_ONCE = 1 << 16  # documents, of which one place is remembered


class Batch(NamedTuple):
    """One micro-batch. Each tensor is (B, n)."""

    input_ids: Tensor  # int64, corrupted
    labels: Tensor  # int64, the original token where it was chosen, else -100
    real: Tensor  # bool, false on padding

    def to(self, device: torch.device) -> "Batch":
        """The batch there. To a GPU by pinned memory, so that the CPU goes on meanwhile."""
        pinned = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in pinned))


class Blocks:
    """The full blocks of one part of a prepared corpus, each read from disk when it is asked for.

    within_documents: no block crosses from one document into the next; what is left over of each is not trained on.
    Memory holds a number or two a shard (with within_documents, one for 65,536 documents).
    Raises DataError for a folder that holds no such corpus, or whose files are not those of its manifest.
    """

    def __init__(self, folder: str | Path, part: str, block_size: int, bos_id: int, within_documents: bool = False):
        self.folder, self.part, self.block_size, self.bos_id = Path(folder), part, block_size, bos_id
        manifest = open_manifest(self.folder)
        shards = manifest["shards"][part]
        self.dtype = numpy.dtype(manifest["dtype"])
        self.tokens, self.ends, self.starts = [], [], [0]
        for shard in shards:
            self.tokens.append(self._map(shard["name"] + ".bin", self.dtype, shard["tokens"]))
            self.ends.append(self._map(shard["name"] + ".ends", numpy.dtype("<u8"), shard["documents"]))
            self.starts.append(self.starts[-1] + shard["tokens"])
        self.within_documents = within_documents
        self.length = self.starts[-1] // (block_size - 1)
        if within_documents:
            self.length, self.groups = 0, []  # a stretch of documents: its first block, its shard, its first document
            for shard, ends in enumerate(self.ends):
                for first in range(0, len(ends), ENDS_AT_ONCE):
                    self.groups.append((self.length, shard, first))
                    self.length += int(self._blocks_of(shard, first).sum())

    def _map(self, name: str, dtype: numpy.dtype, count: int) -> numpy.ndarray:
        path = self.folder / name
        try:
            if path.stat().st_size == count * dtype.itemsize:
                return numpy.memmap(path, dtype, mode="r") if count else numpy.empty(0, dtype)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. Prepare the corpus anew.") from None
        raise DataError(f"{path} has not the size that {MANIFEST} says. Copy it, or prepare the corpus anew.")

    def __len__(self) -> int:
        return self.length

    def read(self, numbers: numpy.ndarray) -> Tensor:
        """(B,) numbers of blocks -> (B, block_size) int64"""
        result = numpy.empty((len(numbers), self.block_size), numpy.int64)
        result[:, 0] = self.bos_id
        for row, number in zip(result, numbers.tolist()):
            row[1:] = self._within(number) if self.within_documents else self._stretch(number * (self.block_size - 1))
        return torch.from_numpy(result)

    def _stretch(self, start: int) -> numpy.ndarray:
        """block_size - 1 tokens from a place in the stream of all shards."""
        shard, stop = bisect_right(self.starts, start) - 1, start + self.block_size - 1
        pieces = []
        while start < stop:
            piece = self.tokens[shard][start - self.starts[shard] : stop - self.starts[shard]]
            pieces.append(piece)
            start, shard = start + len(piece), shard + 1
        return pieces[0] if len(pieces) == 1 else numpy.concatenate(pieces)

    def _within(self, number: int) -> numpy.ndarray:
        before, shard, first = self.groups[bisect_right(self.groups, (number, len(self.starts), 0)) - 1]
        counts = self._blocks_of(shard, first)
        sums = numpy.cumsum(counts)
        place = int(numpy.searchsorted(sums, number - before, side="right"))
        inside = number - before - int(sums[place] - counts[place])
        document = first + place
        start = (int(self.ends[shard][document - 1]) if document else 0) + inside * (self.block_size - 1)
        return self.tokens[shard][start : start + self.block_size - 1]

    def _blocks_of(self, shard: int, first: int) -> numpy.ndarray:
        """How many full blocks each of a stretch of documents has."""
        ends = numpy.asarray(self.ends[shard][first : first + ENDS_AT_ONCE]).astype(numpy.int64)
        before = int(self.ends[shard][first - 1]) if first else 0
        return numpy.diff(ends, prepend=before) // (self.block_size - 1)


def is_prepared(path: str | Path) -> bool:
    return (Path(path) / MANIFEST).is_file()


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises DataError if the corpus was prepared with another tokenizer."""
    if open_manifest(folder)["tokenizer"]["sha256"] != tokenizer.sha256():
        raise DataError(
            f"The corpus {folder} was prepared with another tokenizer than {tokenizer.path}, the teacher's: its "
            "numbers stand for other words. Prepare it with the teacher's."
        )


def open_blocks(
    folder: Path, tokenizer: Tokenizer, block_size: int, within_documents: bool = False
) -> tuple[Blocks, Blocks]:
    """-> blocks to train on, blocks to measure on.  Raises DataError, also where either has not one block."""
    check_tokenizer(folder, tokenizer)
    train, held_out = (
        Blocks(folder, part, block_size, tokenizer.bos_id, within_documents) for part in (TRAIN, HELD_OUT)
    )
    for blocks in (train, held_out):
        if not len(blocks):
            more = "text" if blocks is train else "text, prepare it with a larger --held-out,"
            raise DataError(
                f"The corpus has only {blocks.starts[-1]} {blocks.part} tokens, less than one block of {block_size}. "
                f"Add {more} or choose a smaller --block-size."
            )
    return train, held_out


# ---- micro-batches ---------------------------------------------------------------------------------------------


def make_batch(blocks: Tensor, masking: Masking, keys: numpy.ndarray) -> Batch:
    """Blocks (B, n) -> the corrupted micro-batch."""
    corrupted, labels = masking(blocks, keys)
    return Batch(corrupted, labels, blocks != masking.tokenizer.pad_id)


def training_batches(
    blocks: Blocks, masking: Masking, batch_size: int, seed: int, position: int = 0, stride: int | None = None
) -> Iterator[Batch]:
    """Micro-batches for ever, from a position in the stream of all epochs.

    Position p is block p of the order of its epoch, p // len(blocks); each epoch has its own order, and a block its own
    mask in each. stride: blocks from one micro-batch's first to the next one's (default: batch_size). So what stands
    at a position depends on the seed alone, and not on who reads it, or what was read before.
    """
    stride = stride or batch_size
    while True:
        firsts = position + stride * numpy.arange(AHEAD)
        positions = firsts[:, None] + numpy.arange(batch_size)  # (AHEAD, B)
        epochs, places = numpy.divmod(positions.flatten(), len(blocks))
        numbers = permute(places, len(blocks), key_of(seed, epochs))
        keys = key_of(seed, epochs, numbers)
        for batch, own in zip(numbers.reshape(positions.shape), keys.reshape(positions.shape)):
            yield make_batch(blocks.read(batch), masking, own)
        position += AHEAD * stride


def measuring_batches(blocks: Blocks, masking: Masking, count: int, batch_size: int = 16) -> list[Batch]:
    """At most `count` blocks spread evenly, with the same masks for every seed, so that runs can be compared."""
    numbers = numpy.unique(numpy.linspace(0, len(blocks) - 1, min(count, len(blocks))).astype(numpy.int64))
    parts = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    return [make_batch(blocks.read(part), masking, key_of(0, 0, part)) for part in parts]
