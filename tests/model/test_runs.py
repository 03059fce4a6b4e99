"""The choice of runs: the cheapest of all, in order, each sequence once; and the model of their costs."""

import random
from itertools import combinations, pairwise
from unittest.mock import Mock

import pytest
import torch

from model.runs import FULL, HALF, MOST_SCORES, Packing, choose_runs, run_cost


def total(seqlens, cuts, costs):
    """The cost of the runs between these cuts, 12 heads of 64; infinite for one that is larger than a run may be."""
    cost = 0.0
    for start, stop in pairwise([0, *cuts, len(seqlens)]):
        part = seqlens[start:stop]
        if len(part) > 1 and len(part) * 12 * max(part) ** 2 > MOST_SCORES:
            return float("inf")
        cost += run_cost(len(part), max(part), min(part) < max(part), 12, 768, costs)
    return cost


@pytest.mark.parametrize("costs", [FULL, HALF], ids=["fp32", "half"])
@pytest.mark.parametrize("longest", [12, 60, 500])
@pytest.mark.parametrize("is_sorted", [True, False], ids=["sorted", "unsorted"])
def test_the_runs_are_the_cheapest_of_all(costs, longest, is_sorted):
    rng = random.Random(0)
    several = 0
    for _ in range(20):
        seqlens = [rng.randint(1, longest) for _ in range(8)]
        seqlens = tuple(sorted(seqlens) if is_sorted else seqlens)
        runs = choose_runs(seqlens, 12, 768, costs)
        assert [i for run in runs for i in run] == list(range(8))  # every sequence once, in order
        cuts = [run.stop for run in runs[:-1]]
        every = (cuts for number in range(8) for cuts in combinations(range(1, 8), number))
        assert total(seqlens, cuts, costs) == pytest.approx(min(total(seqlens, each, costs) for each in every))
        several += any(len({*seqlens[run.start : run.stop]}) > 1 for run in runs)
    assert several > 2 or longest == 500  # neighbours of unequal length do share calls


def test_the_costs_of_a_run():
    """By hand: a call, 24 heads of 0.21 + 10 (0.06 + 10 · 0.00135), and the copies of 20 rows of 768."""
    assert run_cost(2, 10, False, 12, 768, FULL) == pytest.approx(27 + 24 * 0.945)
    assert run_cost(2, 10, True, 12, 768, FULL) == pytest.approx(27 + 24 * 0.945 + 21 + 3.84)


@pytest.mark.parametrize("costs", [FULL, HALF], ids=["fp32", "half"])
def test_runs_are_no_larger_than_a_cache_and_long_sequences_stay_alone(costs):
    for seqlens in ((36,) * 200, tuple(range(20, 90)) * 3, (128,) * 32):
        runs = choose_runs(seqlens, 12, 768, costs)
        assert [i for run in runs for i in run] == list(range(len(seqlens)))
        assert all(12 * len(run) * max(seqlens[run.start : run.stop]) ** 2 <= MOST_SCORES for run in runs)
    assert choose_runs((20, 400), 12, 768, costs) == [range(1), range(1, 2)]
    assert choose_runs((512, 512), 12, 768, costs) == [range(1), range(1, 2)]


def test_in_training_on_a_gpu_all_sequences_are_one_run():
    seqlens, on_cpu = (3, 400, 30, 7), torch.device("cpu")
    for is_cuda, requires_grad, number in ((True, True, 1), (True, False, 3), (False, True, 3)):
        queries = Mock(shape=(12, 440, 64), dtype=torch.bfloat16, device=on_cpu)
        queries.is_cuda, queries.requires_grad = is_cuda, requires_grad
        runs = Packing(seqlens, seqlens, on_cpu).runs(queries)
        assert len(runs) == number and sum(len(run.keys.batch(torch.zeros(12, 440, 64))) for run in runs) == 4
