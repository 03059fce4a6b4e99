"""The fit of the costs of attention: what is timed is a run of packed attention, and the fit is scipy's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.benchmarks import attention
from eval.benchmarks.attention import cases, fit
from model.runs import FULL, MOST_SCORES, Costs, run_cost

SOME = cases()[::7]


def microseconds(costs: Costs) -> np.ndarray:
    """What a machine of these costs would take."""
    return np.array([run_cost(len(n), max(n), min(n) < max(n), heads, heads * 64, costs) for heads, n in SOME])


@pytest.mark.parametrize("expected", [FULL, FULL._replace(sequence=0.0, padding=0.0)], ids=["all", "two are 0"])
def test_costs_that_are_known(expected):
    costs, error = fit(SOME, microseconds(expected))
    assert costs == pytest.approx(expected, rel=1e-6, abs=1e-9) and error < 1e-9


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_the_fit_is_scipys(seed):
    """Of noisy times, where unconstrained least squares would make some costs negative."""
    optimize = pytest.importorskip("scipy.optimize")
    times = microseconds(Costs(0.1, 0.01, 0.06, 0.0013, 0.1, 0.0002))
    times *= np.random.default_rng(seed).uniform(0.5, 1.5, len(times))
    columns = np.array([microseconds(Costs(*unit)) for unit in np.eye(6)]).T / times[:, None]
    expected, _ = optimize.nnls(columns, np.ones(len(times)))
    costs, error = fit(SOME, times)
    assert costs == pytest.approx(tuple(expected), rel=1e-6, abs=1e-9) and 0 in expected
    assert error == pytest.approx(np.abs(columns @ expected - 1).mean())


def test_the_runs_are_of_equal_and_of_unequal_lengths_and_fit_the_cache():
    found = cases()
    assert len(found) == len({(heads, tuple(lengths)) for heads, lengths in found}) > 200
    assert all(len(n) == 1 or heads * len(n) * max(n) ** 2 <= MOST_SCORES for heads, n in found)
    assert 0.3 < sum(min(lengths) < max(lengths) for _, lengths in found) / len(found) < 0.5
    assert all(4 * max(lengths) <= 5 * (min(lengths) + 1) and max(lengths) == lengths[0] for _, lengths in found)


@pytest.mark.parametrize("lengths", [[9, 9, 9], [9, 7, 8]], ids=str)
def test_what_is_timed_is_attention(monkeypatch, lengths):
    states = torch.randn(3, 4, sum(lengths), 64)
    monkeypatch.setattr(torch, "randn", lambda *shape: states)
    parts = (part.split(lengths, dim=1) for part in states)
    expected = [F.scaled_dot_product_attention(*each).transpose(0, 1).flatten(1) for each in zip(*parts)]
    assert torch.allclose(attention.attention_call(torch.float32, 4, lengths)(), torch.cat(expected), atol=1e-5)


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(attention, "cases", lambda: SOME[:8])
    attention.main(["--repetitions", "1"])
    output = capsys.readouterr().out
    assert "8 runs" in output and "| fp32, in model/runs.py | 27   | 0.21 " in output and "%" in output
