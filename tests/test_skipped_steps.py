"""Steps with a non-finite gradient: skipped, reported, and too many of them end the run."""

import importlib
import itertools
import math

import pytest
import torch

import losses
from model.training.run_state import read
from tests.helpers import DEVICE
from tests.train_runs import AT_ONCE, assert_same_run, metrics, state_dict, steps_kept
from tests.train_runs import run_longer as run


@pytest.fixture
def poison(monkeypatch):
    """poison(calls): the losses of these micro-batches, counted from 0, are NaN, and so are the gradients."""
    importlib.import_module("eval.validation")  # which takes the original, so that validations are not counted
    monkeypatch.setattr("model.training.plan.time_step", lambda *arguments: 1.0)  # nor is what is timed before step 1
    original = losses.fused_distillation_loss

    def spoil(calls):
        count = itertools.count()

        def poisoned(*tensors, **settings):
            total, terms = original(*tensors, **settings)
            if next(count) in calls:
                return total * math.nan, type(terms)(*(term * math.nan for term in terms[:3]), *terms[3:])
            return total, terms

        monkeypatch.setattr(losses, "fused_distillation_loss", poisoned)

    return spoil


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("bad", [3, 1, 8], ids=["a step", "the first", "the last"])
def test_a_step_with_a_non_finite_gradient_is_skipped_and_reported(place, tmp_path, poison, bad, precision):
    poison({2 * bad - 1})  # the second micro-batch of the step
    result, lines = run(place, tmp_path, log_every=4, precision=precision, max_skipped=2), metrics(tmp_path)
    skipped = [each for line in lines for each in line["skipped"]]
    assert skipped == [{"step": bad, "first_block": (bad - 1) * 4}] and f"skipped {bad}" in result.stdout
    assert [line["tokens"] for line in lines] == [128 * (4 - len(line["skipped"])) for line in lines]
    for line in lines:
        assert 0 < line["loss"] <= line["highest_loss"] < 10
        assert (line["gradient_norm"] is None) == (line["step"] == bad)
    assert all(tensor.isfinite().all() for tensor in state_dict(tmp_path).values())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_skipped_step_changes_no_weight_and_no_optimiser_state(place, tmp_path, poison, precision):
    poison({4, 5})
    run(place, tmp_path, checkpoint_every=1, keep=9, precision=precision, device=DEVICE.type)
    assert [each["step"] for line in metrics(tmp_path) for each in line["skipped"]] == [3]
    before, after, later = (read(tmp_path / "checkpoints" / f"step-{step:09}") for step in (2, 3, 4))
    assert all(torch.equal(after.student[name], tensor) for name, tensor in before.student.items())
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert not all(torch.equal(later.student[name], tensor) for name, tensor in before.student.items())


def test_a_metrics_line_with_skipped_steps_only(place, tmp_path, poison):
    poison({4, 5, 6, 7})
    run(place, tmp_path, log_every=1)
    assert [line["tokens"] for line in metrics(tmp_path)] == [128, 128, 0, 0, 128, 128, 128, 128]


def test_skipped_steps_are_part_of_the_checkpoint(place, tmp_path, poison):
    """For their metrics line, and for the number in a row."""
    poison({4, 5})
    run(place, tmp_path / "whole", steps=4, log_every=4)
    for start in range(4):
        poison({0, 1} if start == 2 else set())
        run(place, tmp_path / "out", steps=4, log_every=4, max_hours=AT_ONCE)
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    assert [each["step"] for line in metrics(tmp_path / "out") for each in line["skipped"]] == [3]
    poison(range(100))
    for status in (0, 0, 3):
        run(place, tmp_path / "lost", status=status, max_skipped=3, max_hours=AT_ONCE)


def test_too_many_in_a_row_end_with_status_3_and_the_last_checkpoint(place, tmp_path, poison, monkeypatch):
    out, options = tmp_path / "out", dict(log_every=1, eval_every=0, checkpoint_every=4, max_skipped=3)
    poison(range(10, 1000))  # from step 6 on
    result = run(place, out, status=3, **options)
    assert "3 steps in a row, up to step 8, had a non-finite gradient. Try a smaller --lr" in result.stderr
    assert steps_kept(out) == [4] and not (out / "student.safetensors").exists()
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.undo()
    for folder in (out, tmp_path / "whole"):
        run(place, folder, **options)
    assert_same_run(out, tmp_path / "whole")


def test_skipped_steps_that_are_not_in_a_row_do_not_end_the_run(place, tmp_path, poison):
    poison({2, 6, 10, 14})
    run(place, tmp_path, max_skipped=2)
    assert [each["step"] for line in metrics(tmp_path) for each in line["skipped"]] == [2, 4, 6, 8]
