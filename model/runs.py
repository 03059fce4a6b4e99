"""Runs: neighbouring sequences of a packed batch that share one call of attention, padded to the longest of them.

Shapes: B sequences of a run, n rows of its longest, J heads, d_h hidden size, T rows of the whole packed tensor.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

MOST_SCORES = 1 << 20  # B · J · n² of a run of several sequences on a CPU: what a cache holds
REACH = 24  # a run has at most so many different neighbours, so that choosing takes linear time


class Costs(NamedTuple):
    """Of attention on a CPU, in microseconds: of a call; per head, of a sequence, a token and a score (B · n²).

    padding: of a padded run, whose rows are copied into place and back; padded_value: per token and hidden unit of it.
    Only the ratios matter. `python -m eval attention` fits them; eval/LOG.md has the processor.
    """

    call: float
    sequence: float
    token: float
    score: float
    padding: float
    padded_value: float


FULL = Costs(27.0, 0.21, 0.060, 0.00135, 21.0, 0.00025)  # fp32
HALF = Costs(61.0, 0.15, 0.043, 0.00056, 17.0, 0.00019)  # bf16


def run_cost(count: int, longest: int, is_padded: bool, num_heads: int, hidden_size: int, costs: Costs) -> float:
    """Of a call for `count` sequences, the longest of this many tokens; is_padded: whether others are shorter."""
    per_head = costs.sequence + longest * (costs.token + longest * costs.score)
    copies = costs.padding + costs.padded_value * hidden_size * count * longest
    return costs.call + num_heads * count * per_head + copies * is_padded


@lru_cache(maxsize=2)  # the last layer, with other queries, has the same runs
def choose_runs(seqlens: tuple[int, ...], num_heads: int, hidden_size: int, costs: Costs) -> list[range]:
    """The runs, as ranges of sequences in their order, whose costs have the smallest sum: dynamic programming.

    A run of more than one sequence has at most MOST_SCORES scores. Sequences of equal length are taken together first.
    """
    groups = []  # ranges of equal length
    for length, same in groupby(range(len(seqlens)), key=seqlens.__getitem__):
        equal, step = list(same), max(1, MOST_SCORES // (num_heads * length**2))
        groups += [range(each[0], each[-1] + 1) for each in (equal[i : i + step] for i in range(0, len(equal), step))]
    best, runs = [0.0], [[]]
    for stop, group in enumerate(groups, 1):
        options, longest, shortest = [], seqlens[group.start], seqlens[group.start]
        for start in range(stop - 1, max(-1, stop - 1 - REACH), -1):
            length, count = seqlens[groups[start].start], group.stop - groups[start].start
            longest, shortest = max(longest, length), min(shortest, length)
            if start < stop - 1 and count * num_heads * longest**2 > MOST_SCORES:
                break
            cost = run_cost(count, longest, shortest < longest, num_heads, hidden_size, costs)
            options.append((best[start] + cost, start))
        cost, start = min(options)
        best.append(cost)
        runs.append([*runs[start], range(groups[start].start, group.stop)])
    return runs[-1]


class Rows:
    """Rows of a packed tensor as a batch (B, n): those of the B sequences of a run, one after the other.

    Rows of equal number are viewed as a batch. Others are copied, the shorter ones padded by the row before their end.
    """

    def __init__(self, start: int, lengths: Sequence[int], device: torch.device):
        """start: of the first sequence; lengths: of each of the B, possibly 0"""
        self.start, self.stop, self.shape = start, start + sum(lengths), (len(lengths), max(lengths))
        self.shortest = min(lengths)
        if self.shortest < max(lengths):
            starts = torch.tensor([*accumulate(lengths[:-1], initial=start)])[:, None]
            offsets, ends = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
            self.real = (offsets < ends).to(device)  # (B, n)
            index = (starts + offsets.minimum(ends - 1)).clamp(min=0)
            self.index = index.flatten().to(device)  # (B · n,)
            self.inside = self.real.flatten().nonzero().flatten()  # (stop − start,), of these B · n

    @property
    def is_padded(self) -> bool:
        return self.shortest < self.shape[1]

    def batch(self, heads: Tensor) -> Tensor:
        """(J, T, d_h / J) -> (B, J, n, d_h / J)"""
        if self.is_padded:
            return heads.transpose(0, 1).index_select(0, self.index).unflatten(0, self.shape).transpose(1, 2)
        return heads[:, self.start : self.stop].unflatten(1, self.shape).transpose(0, 1)

    def pack(self, states: Tensor) -> Tensor:
        """(B, n, d_h) -> (stop − start, d_h)"""
        packed = states.flatten(0, 1)
        return packed.index_select(0, self.inside) if self.is_padded else packed


class Run(NamedTuple):
    """One call of attention: the rows that give queries, and those that give keys and values."""

    queries: Rows
    keys: Rows


class Packing:
    """Where the rows of B packed sequences begin, and in which runs attention takes them.

    seqlens: rows of each sequence that give keys and values; query_lens: those that give queries, possibly none
    """

    def __init__(self, seqlens: Sequence[int], query_lens: Sequence[int], device: torch.device):
        self.seqlens, self.query_lens = tuple(seqlens), tuple(query_lens)
        bounds = torch.tensor([[0, *accumulate(lens)] for lens in (seqlens, query_lens)], dtype=torch.int32)
        if device.type == "cuda":
            bounds = bounds.pin_memory()
        self.cu_seqlens, self.cu_queries = bounds.to(device, non_blocking=True)  # (B + 1,): where each begins; the end
        self._runs: list[Run] = []

    def runs(self, queries: Tensor) -> list[Run]:
        """queries: (J, R, d_h / J), of any layer

        The costs are a CPU's. In training on a GPU, a step waits for the host, and all sequences are one run.
        """
        if not self._runs:
            num_heads, _, size = queries.shape
            costs = HALF if queries.dtype.itemsize == 2 else FULL
            key_starts, query_starts = ([0, *accumulate(lens)] for lens in (self.seqlens, self.query_lens))
            ranges = [range(len(self.seqlens))]
            if not (queries.is_cuda and queries.requires_grad):
                ranges = choose_runs(self.seqlens, num_heads, num_heads * size, costs)
            for run in ranges:
                part = slice(run.start, run.stop)
                of_queries = Rows(query_starts[run.start], self.query_lens[part], queries.device)
                self._runs.append(Run(of_queries, Rows(key_starts[run.start], self.seqlens[part], queries.device)))
        return self._runs
