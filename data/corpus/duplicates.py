"""Duplicate paragraphs, found in bounded memory."""

from collections import Counter

import numpy

from ..cli import DataError
from .encode import EncodedPart


class SeenHashes:
    """Hashes of earlier paragraphs, in a table of fixed size.

    Each slot keeps its latest hash only. So a duplicate is missed if another paragraph has taken its slot since, but a
    new paragraph is never reported as a duplicate. Raises DataError if there is not enough memory.
    """

    def __init__(self, megabytes: int):
        try:
            self.table = numpy.zeros(1 << ((megabytes << 20) // 8).bit_length() - 1, numpy.uint64)
        except MemoryError:
            raise DataError(f"There is no memory for {megabytes:,} MB. Choose a smaller --duplicates-mb.") from None

    def first_occurrences(self, hashes: numpy.ndarray) -> numpy.ndarray:
        """(N,) uint64, in order -> (N,) bool, false for hashes seen before; 0 counts as never seen."""
        slots = hashes & numpy.uint64(len(self.table) - 1)
        new = self.table[slots] != hashes
        first = numpy.zeros(len(hashes), bool)
        first[numpy.unique(hashes, return_index=True)[1]] = True
        new = (new & first) | (hashes == 0)
        stored = new & (hashes != 0)
        self.table[slots[stored]] = hashes[stored]
        return new


def drop_duplicates(part: EncodedPart, seen: SeenHashes, dtype: numpy.dtype) -> EncodedPart:
    """The part without duplicate paragraphs, and without the documents that have no other text.

    dtype: of the ids in memory.
    """
    new = seen.first_occurrences(part.hashes)
    dropped = int(numpy.count_nonzero(~new))
    if not dropped:
        return part
    is_end = part.hashes == 0
    document = numpy.cumsum(is_end) - is_end  # of each segment
    kept = numpy.bincount(document, part.segments * (new & ~is_end), len(part.lengths)) > 0  # of each document
    keep = new & kept[document]  # of each segment
    ids = numpy.frombuffer(part.ids, dtype)[numpy.repeat(keep, part.segments)]
    lengths = numpy.bincount(document, part.segments * keep, len(part.lengths)).astype(numpy.int64)
    counts = part.counts + Counter({"paragraphs dropped, having come before": dropped})
    if not kept.all():
        counts["documents dropped, all of them having come before"] += int(numpy.count_nonzero(~kept))
    return part._replace(ids=ids.tobytes(), lengths=lengths[kept], held_out=part.held_out[kept], counts=counts)
