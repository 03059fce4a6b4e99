"""Paragraphs that came before, found in bounded memory."""

import hashlib

import numpy

from ..cli import DataError


def text_hash(text: str) -> int:
    """Of 64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


class Seen:
    """Which paragraphs came before, in bounded memory: a table with one hash a slot, the newest.

    So what is dropped did come before; of what came before, something can be forgotten when the table is full.
    Raises DataError where there is no such memory.
    """

    def __init__(self, megabytes: int):
        try:
            self.table = numpy.zeros(1 << ((megabytes << 20) // 8).bit_length() - 1, numpy.uint64)
        except MemoryError:
            raise DataError(f"There is no room for {megabytes:,} MB. Choose a smaller --duplicates-mb.") from None

    def first_times(self, hashes: numpy.ndarray) -> numpy.ndarray:
        """Which of them, in order, did not come before. (N,) uint64, 0 for what is always kept -> (N,) bool"""
        slots = hashes & numpy.uint64(len(self.table) - 1)
        fresh = self.table[slots] != hashes
        first = numpy.zeros(len(hashes), bool)
        first[numpy.unique(hashes, return_index=True)[1]] = True
        fresh = (fresh & first) | (hashes == 0)
        kept = fresh & (hashes != 0)
        self.table[slots[kept]] = hashes[kept]
        return fresh
