"""The training state as JSON, and the losses that wait on the device."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from data import DataError
from model.training.distributed import SINGLE
from model.training.state import Diverged, PendingLosses, TrainState

WEIGHTS = (0.5, 0.3, 0.2)


def test_json_keeps_every_number_to_the_last_bit():
    sums, baseline = (1 / 3, -0.0, 1e308, 2.0**53 + 2, 1e-17), {"teacher": 0.1, "student before": 2 / 3}
    state = TrainState(1, 0.1 + 0.2, 5e-324, sums, math.inf, (1, 10**9), 2, 10**15, baseline)
    restored = TrainState.from_json(json.loads(json.dumps(state.to_json())))
    assert repr(restored) == repr(state)  # repr distinguishes -0.0 from 0.0, and shows the order of the baseline


@pytest.mark.parametrize("values", [{}, {"train_state": None}, {"train_state": {"steps": 3}}])
def test_a_state_of_another_version_is_refused(values):
    with pytest.raises(DataError, match="written by another version of this program"):
        TrainState.from_json(values)


def steps(*skipped):
    """Sums and counts of eight steps; skipped: the numbers of those that were."""
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 9):
        yield torch.rand(5, generator=generator, dtype=torch.float64) + 1, torch.tensor(number in skipped)


def read(read_at, *skipped, max_skipped=20, world=SINGLE):
    state, pending = TrainState(), PendingLosses(WEIGHTS)
    for state.step, (sums, is_skipped) in enumerate(steps(*skipped), start=1):
        pending.add(sums * math.nan if is_skipped else sums, is_skipped)
        if state.step in read_at:
            pending.read_into(state, max_skipped, world)
    return state


def test_the_sums_do_not_depend_on_when_they_are_read():
    once, counted = read({8}, 3, 4), [sums for sums, is_skipped in steps(3, 4) if not is_skipped]
    assert once == read(set(range(1, 9)), 3, 4) and once.sums == pytest.approx(sum(counted).tolist(), rel=1e-12)
    totals = [(0.5 * s[0] + 0.3 * s[1]) / s[3].clamp(min=1) + 0.2 * s[2] / s[4].clamp(min=1) for s in counted]
    assert once.highest == pytest.approx(max(totals).item(), rel=1e-12)
    assert once.skipped == (3, 4) and once.skipped_in_a_row == 0


def test_the_sums_are_those_of_all_ranks():
    one, two = read({8}), read({8}, world=SimpleNamespace(sum=lambda values: 2 * values))  # two equal ranks
    assert two.sums == tuple(2 * value for value in one.sums)
    assert two.highest == pytest.approx(one.highest)  # a mean


@pytest.mark.parametrize("read_at", [{8}, set(range(1, 9))], ids=["at the end", "after each step"])
def test_too_many_skipped_steps_in_a_row_end_the_run(read_at):
    assert read(read_at, 2, 3, 5, 6, 8, max_skipped=3).skipped_in_a_row == 1
    with pytest.raises(Diverged, match="3 steps in a row, up to step 6, had a non-finite gradient. Try a smaller --lr"):
        read(read_at, 4, 5, 6, max_skipped=3)
