"""Measures what attention of packed sequences costs on this CPU, and fits the costs by which `model/runs.py` chooses.

Prints a Costs for fp32 and one for bf16, the latter only where the processor has it. Run it while nothing else runs:
other work on the cores makes the fit useless, which its mean error then shows (14 % and 9 % were measured).
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from data.cli import check_bounds, option, parse_options, say
from model.attention import MultiHeadAttention
from model.config import EncoderConfig
from model.inference import can_pack
from model.packed import attend
from model.runs import FULL, HALF, MOST_SCORES, Costs, Rows, Run, run_cost

from .harness import processor, table

HEAD_SIZE = 64
NUM_HEADS = 4, 12
LONGEST = 6, 9, 12, 18, 24, 36, 48, 64, 96, 128, 160  # tokens
COUNTS = 1, 2, 4, 8, 16, 32, 64, 128, 200  # sequences


@dataclass(frozen=True)
class Options:
    repetitions: int = option(12, "rounds, of which the fastest counts", least=1, most=1000)
    threads: int = option(0, "CPU threads, 0: PyTorch's default", least=0, most=4096)

    def __post_init__(self):
        check_bounds(self)


Case = tuple[int, list[int]]  # heads, tokens of each sequence


def cases() -> list[Case]:
    """Runs of equal lengths and, of several sequences, also of lengths that differ by up to a fifth."""
    rng, found = random.Random(0), []
    for num_heads in NUM_HEADS:
        for longest in LONGEST:
            for count in COUNTS:
                if count == 1 or count * num_heads * longest**2 <= MOST_SCORES:
                    found.append((num_heads, [longest] * count))
                if count > 1 and count * num_heads * longest**2 <= MOST_SCORES:
                    shorter = [rng.randint(longest - longest // 5 - 1, longest - 1) for _ in range(count - 1)]
                    found.append((num_heads, [longest, *shorter]))
    return found


@torch.inference_mode()
def attention_call(dtype: torch.dtype, num_heads: int, lengths: Sequence[int]) -> Callable[[], object]:
    """One run as `packed_attention` computes it: rows to a batch, attention of all heads, and rows again."""
    hidden_size = num_heads * HEAD_SIZE
    config = EncoderConfig(1, hidden_size, num_heads, hidden_size, 8)
    attention, rows = MultiHeadAttention(config).eval(), Rows(0, lengths, torch.device("cpu"))
    states = torch.randn(3, num_heads, sum(lengths), HEAD_SIZE).to(dtype)

    @torch.inference_mode()
    def call():
        heads = attend(attention, *map(rows.batch, states), Run(rows, rows))
        return rows.pack(attention.concatenate_heads(heads))

    return call


def measure(calls: Sequence[Callable[[], object]], repetitions: int) -> np.ndarray:
    """The least microseconds of each call, over rounds in which each runs once, after one that does not count."""
    times = np.empty((1 + repetitions, len(calls)))
    for of_round in times:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            of_round[i] = 1e6 * (time.perf_counter() - start)
    return times[1:].min(axis=0)


def fit(measured: Sequence[Case], microseconds: np.ndarray) -> tuple[Costs, float]:
    """The costs of the least squares of relative errors, none negative, and the mean relative error.

    Of all subsets of the costs, the others 0, one has the solution: with six, all are tried.
    """
    units = [Costs(*row) for row in np.eye(len(Costs._fields))]
    columns = [
        [run_cost(len(lens), max(lens), min(lens) < max(lens), heads, heads * HEAD_SIZE, unit) for unit in units]
        for heads, lens in measured
    ]
    relative = np.array(columns) / microseconds[:, None]  # (cases, 6), whose product with the costs should be 1
    best, least = np.zeros(len(units)), np.inf
    for number in range(1, len(units) + 1):
        for chosen in map(list, combinations(range(len(units)), number)):
            costs = np.zeros(len(units))
            costs[chosen] = np.linalg.lstsq(relative[:, chosen], np.ones(len(relative)), rcond=None)[0]
            error = np.square(relative @ costs - 1).sum()
            if costs.min() >= 0 and error < least:
                best, least = costs, error
    return Costs(*map(float, best)), float(np.abs(relative @ best - 1).mean())


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m eval attention`.  Raises OptionError."""
    options = parse_options(Options, arguments, "python -m eval attention [OPTIONS]", __doc__)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    measured = cases()
    say(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {len(measured)} runs\n")
    lines = [["microseconds", *Costs._fields, "mean error"]]
    for name, dtype, constants in (("fp32", torch.float32, FULL), ("bf16", torch.bfloat16, HALF)):
        if not can_pack(dtype):
            continue
        calls = [attention_call(dtype, *case) for case in measured]
        costs, error = fit(measured, measure(calls, options.repetitions))
        lines.append([name, *(f"{cost:.3g}" for cost in costs), f"{error:.1%}"])
        lines.append([f"{name}, in model/runs.py", *(f"{cost:.3g}" for cost in constants), ""])
    say(table(*lines))
