"""Blocks of equal length from a prepared corpus, as RoBERTa packs them, and the micro-batches made of them.

The documents are concatenated, each with </s> at its end; the stream is split every block_size - 1 tokens, and each
piece gets <s> in front. A block may begin inside a document and continue into the next, and there is no padding.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .cli import DataError, warn
from .corpus.shards import BLOCKS, HELD_OUT, MANIFEST, TRAIN, open_manifest
from .corpus.shuffle import key_of, permute
from .masking import Masking
from .tokenizer import Tokenizer

AHEAD = 64  # micro-batches whose order is computed together, for little more than the cost of one
PREFETCHED = 4  # micro-batches made ahead for a GPU
RESTORE = "Copy it again; or the command of data.prepare that made the corpus makes it again, to the same bytes."
GROUP = 1 << 16  # documents per index entry of within_documents


class Batch(NamedTuple):
    """One micro-batch. Each tensor is (B, n)."""

    input_ids: Tensor  # int64, corrupted
    labels: Tensor  # int64, the original id of each chosen token, elsewhere IGNORE_INDEX
    real: Tensor  # bool, false on padding
    has_padding: bool = True  # false: every token is real, and no attention mask is needed

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; copies to a GPU are asynchronous, from pinned memory."""
        pinned = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self[:3])
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in pinned), self.has_padding)


class Blocks:
    """The full blocks of one part (train, held-out) of a prepared corpus, read from disk on access.

    by_block: evenly spaced blocks of the whole corpus are held out, instead of documents; by default as the manifest
    says, which data.prepare decides by the number of documents.
    within_documents: no block continues into the next document; the rest of each document is not used.
    Memory holds one or two numbers per shard (with within_documents, one per 65,536 documents), or one per block.
    Raises DataError for a folder without a prepared corpus, or files that do not match its manifest.
    """

    def __init__(
        self,
        folder: str | Path,
        part: str,
        block_size: int,
        bos_id: int,
        within_documents: bool = False,
        by_block: bool | None = None,
    ):
        self.folder, self.part, self.block_size, self.bos_id = Path(folder), part, block_size, bos_id
        self.manifest = open_manifest(self.folder)
        self.dtype = numpy.dtype(self.manifest["dtype"])
        self.tokens, self.ends, self.starts = [], [], [0]
        self.by_block = self.manifest["hold_out"] == BLOCKS if by_block is None else by_block
        parts = (TRAIN, HELD_OUT) if self.by_block else (part,)
        for shard in chain.from_iterable(self.manifest["shards"][each] for each in parts):
            self.tokens.append(self._map(shard["name"] + ".bin", self.dtype, shard["tokens"]))
            self.ends.append(self._map(shard["name"] + ".ends", numpy.dtype("<u8"), shard["documents"]))
            self.starts.append(self.starts[-1] + shard["tokens"])
        self.within_documents = within_documents
        self.length = self.starts[-1] // (block_size - 1)
        if within_documents:
            self.length, self.groups = 0, []  # for each GROUP of documents: first block, shard, first document
            for shard, ends in enumerate(self.ends):
                for first in range(0, len(ends), GROUP):
                    self.groups.append((self.length, shard, first))
                    self.length += int(self._count_blocks(shard, first).sum())
        if self.by_block:
            held_out = held_out_blocks(self.length, self.manifest["options"]["held_out"])
            self.chosen = held_out if part == HELD_OUT else numpy.delete(numpy.arange(self.length), held_out)
            self.length = len(self.chosen)

    def _map(self, name: str, dtype: numpy.dtype, count: int) -> numpy.ndarray:
        path = self.folder / name
        try:
            if path.stat().st_size == count * dtype.itemsize:
                return numpy.memmap(path, dtype, mode="r") if count else numpy.empty(0, dtype)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. {RESTORE}") from None
        raise DataError(f"{path} does not have the size given in {MANIFEST}. {RESTORE}")

    def __len__(self) -> int:
        return self.length

    def hashes(self) -> list[str]:
        """The sha256 of every shard of both parts, which identify the corpus."""
        return [shard["sha256"] for part in self.manifest["shards"].values() for shard in part]

    def read(self, numbers: numpy.ndarray) -> Tensor:
        """Block numbers (B,) -> (B, block_size) int64"""
        result = numpy.empty((len(numbers), self.block_size), numpy.int64)
        result[:, 0] = self.bos_id
        read = self._read_within_document if self.within_documents else self._read_from_stream
        for row, number in zip(result, (self.chosen[numbers] if self.by_block else numbers).tolist()):
            row[1:] = read(number)
        return torch.from_numpy(result)

    def _read_from_stream(self, number: int) -> numpy.ndarray:
        """The block_size - 1 tokens of a block, which may lie in several shards."""
        start = number * (self.block_size - 1)
        shard, stop = bisect_right(self.starts, start) - 1, start + self.block_size - 1
        pieces = []
        while start < stop:
            piece = self.tokens[shard][start - self.starts[shard] : stop - self.starts[shard]]
            pieces.append(piece)
            start, shard = start + len(piece), shard + 1
        return pieces[0] if len(pieces) == 1 else numpy.concatenate(pieces)

    def _read_within_document(self, number: int) -> numpy.ndarray:
        """The same within documents: finds the group, the document, and the block's start in it."""
        before, shard, first = self.groups[bisect_right(self.groups, (number, len(self.starts), 0)) - 1]
        counts = self._count_blocks(shard, first)
        sums = numpy.cumsum(counts)
        index = int(numpy.searchsorted(sums, number - before, side="right"))  # of the document in its group
        block = number - before - int(sums[index] - counts[index])  # in the document
        document = first + index
        start = (int(self.ends[shard][document - 1]) if document else 0) + block * (self.block_size - 1)
        return self.tokens[shard][start : start + self.block_size - 1]

    def _count_blocks(self, shard: int, first: int) -> numpy.ndarray:
        """The number of full blocks in each document of the group that begins with document `first`."""
        ends = numpy.asarray(self.ends[shard][first : first + GROUP]).astype(numpy.int64)
        before = int(self.ends[shard][first - 1]) if first else 0
        return numpy.diff(ends, prepend=before) // (self.block_size - 1)


def held_out_blocks(count: int, share: float) -> numpy.ndarray:
    """The numbers of the blocks held out of `count`: a share of them, evenly spaced; at least one, if one is left."""
    number = min(max(round(count * share), 1), max(count - 1, 0))
    return (2 * numpy.arange(number) + 1) * count // (2 * max(number, 1))


def open_blocks(
    folder: Path, tokenizer: Tokenizer, block_size: int, within_documents: bool = False
) -> tuple[Blocks, Blocks]:
    """-> training blocks, held-out blocks.  Raises DataError for another tokenizer, or a part without a full block."""
    settings = block_size, tokenizer.bos_id, within_documents
    train, held_out = (Blocks(folder, part, *settings) for part in (TRAIN, HELD_OUT))
    if train.manifest["tokenizer"]["sha256"] != tokenizer.sha256():
        message = f"The corpus {folder} was prepared with another tokenizer than the teacher's, {tokenizer.path}."
        raise DataError(f"{message} Prepare it with the teacher's.")
    share = train.manifest["options"]["held_out"]
    if not (len(train) and len(held_out)) and share and not train.by_block:
        train, held_out = (Blocks(folder, part, *settings, by_block=True) for part in (TRAIN, HELD_OUT))
        if len(held_out):
            warn(f"The held-out documents of {folder} fill no block of {block_size}, so blocks are held out instead.")
    for blocks in (train, held_out):
        if not len(blocks):
            wanted = f"a {blocks.part} block of {block_size}"
            if blocks.by_block:
                wanted = f"two blocks of {block_size}, one to train on and one held out"
            cure = "Add text" if share else "Prepare it again with --held-out"
            cure += ", leave out --within-documents" if within_documents else ""
            message = f"The corpus {folder} has too few tokens, {blocks.starts[-1]:,}, for {wanted}."
            raise DataError(f"{message} {cure}, or choose a smaller --block-size.")
    return train, held_out


# ---- micro-batches ---------------------------------------------------------------------------------------------


def make_batch(blocks: Tensor, masking: Masking, keys: numpy.ndarray) -> Batch:
    """Blocks (B, n) int64, one key (B,) for the mask of each -> the corrupted micro-batch."""
    corrupted, labels = masking(blocks, keys)
    real = blocks != masking.tokenizer.pad_id  # all of it, unless the text contains a literal <pad>
    return Batch(corrupted, labels, real, has_padding=not real.all())


def training_batches(
    blocks: Blocks, masking: Masking, batch_size: int, seed: int, position: int = 0, stride: int | None = None
) -> Iterator[Batch]:
    """Endless micro-batches of `batch_size` blocks, from a position in the stream of all epochs.

    Position p is in epoch p // len(blocks). Each epoch has its own order and its own masks. The block and the mask at
    a position depend on the seed alone, not on the rank that reads it or on what was read before.
    stride: distance between the first positions of successive micro-batches (default: batch_size).
    """
    stride = stride or batch_size
    while True:
        firsts = position + stride * numpy.arange(AHEAD)
        positions = firsts[:, None] + numpy.arange(batch_size)  # (AHEAD, B)
        epochs, indices = numpy.divmod(positions.flatten(), len(blocks))
        numbers = permute(indices, len(blocks), key_of(seed, epochs))
        keys = key_of(seed, epochs, numbers)
        for batch, own in zip(numbers.reshape(positions.shape), keys.reshape(positions.shape)):
            yield make_batch(blocks.read(batch), masking, own)
        position += AHEAD * stride


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same micro-batches, made by a thread while a GPU computes, in pinned memory: copies from it do not wait."""

    def make() -> Batch | None:
        batch = next(batches, None)  # None at their end
        return batch and Batch(*(tensor.pin_memory() for tensor in batch[:3]), batch.has_padding)

    with ThreadPoolExecutor(max_workers=1) as executor:  # one thread: their order stays
        pending = deque(executor.submit(make) for _ in range(PREFETCHED))
        while (batch := pending.popleft().result()) is not None:
            pending.append(executor.submit(make))
            yield batch


def validation_batches(blocks: Blocks, masking: Masking, count: int, batch_size: int = 16) -> list[Batch]:
    """At most `count` evenly spaced blocks, masked in the same way for every seed, so that runs are comparable."""
    numbers = numpy.unique(numpy.linspace(0, len(blocks) - 1, min(count, len(blocks))).astype(numpy.int64))
    parts = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    return [make_batch(blocks.read(part), masking, key_of(0, 0, part)) for part in parts]
