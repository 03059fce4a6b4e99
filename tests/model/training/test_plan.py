"""train.py --plan: its figures by hand, and that it writes nothing."""

import itertools
import re
from collections import namedtuple

import pytest
import torch

from model import MaskedLM, count_parameters
from model.training import plan
from model.training.device import Runtime
from model.training.distributed import SINGLE
from model.training.run_state import CheckpointWriter
from tests.model.training.runs import Run
from tests.train_runs import AT_ONCE, make_teacher, run, write_inputs


@pytest.fixture
def place(tmp_path):
    return write_inputs(tmp_path)


@pytest.mark.parametrize(("first", "last", "every"), itertools.product((0, 3, 4, 7), (8, 9), (0, 1, 3, 4, 100)))
def test_the_number_of_validations_is_that_of_the_loop(first, last, every):
    in_loop = sum(step == last or bool(every and step % every == 0) for step in range(first + 1, last + 1))
    assert plan.Work(first, last, 1, 1, every).validations() == in_loop + (first == 0)


@pytest.mark.parametrize(("seconds", "timed"), [(1.0, 5), (25.0, 3), (1000.0, 2)])
def test_slow_steps_are_timed_fewer_times(monkeypatch, seconds, timed):
    clock, calls = [0.0], []

    def step():
        clock[0] += seconds
        calls.append("step")

    monkeypatch.setattr(plan.time, "monotonic", lambda: clock[0])
    measured = plan.measure(step, lambda: calls.append("validation"), Runtime(torch.device("cpu")), SINGLE)
    assert measured.steps == [seconds] * timed and calls == ["step"] * (timed + 1) + ["validation"]
    assert measured.memory > 10**8  # of a process with torch: in bytes


def test_the_time_and_its_spread(capsys):
    measured = plan.Measured([2.0, 1.0, 4.0], 90.0, 3 * 10**9)
    work = plan.Work(first=0, last=3600, blocks=8, block_size=128, eval_every=1800)
    teacher = make_teacher()
    plan.print_work(work, measured, MaskedLM(teacher.config), teacher)
    out = capsys.readouterr().out
    assert "3,600 of 1,024 tokens: 3,686,400 tokens" in out
    assert "512 tokens/s (256 to 1,024 in 3 timed steps)" in out
    assert (
        "2.08 hours (1.07 hours to 4.08 hours at these speeds), with 3 validations of 90.0 s" in out
    )  # 3600 × 2 s + 3 × 90 s
    plan.print_work(work._replace(first=3595), measured, MaskedLM(teacher.config), None)
    assert (
        "1.67 minutes (1.58 minutes to 1.83 minutes at these speeds), with 1 validation of 90.0 s"
        in capsys.readouterr().out
    )
    assert out.count(f"{count_parameters(teacher.config):,} are equation (9)") == 2


def test_what_is_written_and_whether_there_is_room(capsys, monkeypatch, tmp_path):
    distiller, usage = torch.nn.Module(), namedtuple("usage", "free")
    distiller.student = torch.nn.Linear(10**6, 50, bias=False)  # 200 MB
    for free, verdict in ((2.3e9, "2.30 GB are free\n"), (2.1e9, "2.10 GB are free, WHICH IS TOO LITTLE")):
        monkeypatch.setattr(plan.shutil, "disk_usage", lambda path, free=free: usage(free))
        disk = plan.Disk.of(tmp_path / "a" / "b", distiller, keep=2)
        plan.print_files(tmp_path / "a" / "b", disk, every=500, keep=2)
        out = capsys.readouterr().out
        assert f"2.20 GB at most; {verdict}" in out  # 3 × 600 MB, and two students
        assert "every 500 steps, 0.60 GB each; the last 2 are kept" in out


@pytest.mark.parametrize(
    ("size", "on_gpu", "ranks", "fits"),
    [(31, False, 1, True), (29, False, 1, False), (31, False, 2, False), (51, False, 2, True), (21, True, 8, True)],
)
def test_whether_the_memory_is_large_enough(capsys, size, on_gpu, ranks, fits):
    plan.print_memory(20 * 10**9, 10 * 10**9, size * 10**9, on_gpu, ranks)
    out, where = capsys.readouterr().out, "the GPU" if on_gpu else "this machine"
    each = " per rank" if ranks > 1 else ""
    assert f"20.00 GB{each} at the peak of the timed steps, 10.00 GB of main memory more" in out
    assert f"; {where} has {size}.00 GB" in out and ("WHICH IS TOO LITTLE: use a smaller --batch" in out) != fits


def test_the_memory_of_a_container_is_its_limit(monkeypatch, tmp_path):
    whole = plan.memory_size(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("123456789\n")
    (tmp_path / "unlimited").write_text("max\n")
    limits = (tmp_path / "none", tmp_path / "unlimited", tmp_path / "memory.max")
    monkeypatch.setattr(plan, "CGROUP_LIMITS", limits)
    assert plan.memory_size(torch.device("cpu")) == 123456789 < whole


def test_the_foreseen_checkpoint_is_as_large_as_the_written_one(place):
    """With a projection, which the optimiser trains too."""
    run_ = Run().train()
    writer = CheckpointWriter(place, 2)
    written = sum(path.stat().st_size for path in run_.save(writer).iterdir())
    foreseen = plan.Disk.of(place, run_.distiller, keep=2).checkpoint
    assert foreseen < written < foreseen + 20_000  # names, shapes, and the JSON


@pytest.mark.parametrize(
    ("seconds", "compiled", "device"),
    [
        *(((0.5, 0.25), False, "cpu"), ((9.0,), False, "cpu"), ((9.0, 4.0), True, "cpu")),
        *(((0.5, 0.25), False, "cuda"), ((9.0, 5.0, 0.1), True, "cuda")),  # the second records CUDA graphs
    ],
)
def test_a_step_is_timed_by_its_last_micro_batch_unless_it_is_slow(monkeypatch, seconds, compiled, device):
    clock, left = [0.0], list(seconds)
    monkeypatch.setattr(plan.time, "monotonic", lambda: clock[0])

    def micro_batch():
        clock[0] += left.pop(0)

    runtime = Runtime(torch.device(device), compiled=compiled)
    assert plan.time_step(micro_batch, 3, runtime, SINGLE) == pytest.approx(3 * seconds[-1]) and not left


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.2, "1 second"),
        (42.4, "42 seconds"),
        (90, "1.5 minutes"),
        (3599, "60 minutes"),
        (5 * 86400, "120 hours"),
        (1.23456e7, "3,429 hours"),
    ],
)
def test_times_in_words(seconds, text):
    assert plan.time_text(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(250, "0.2 kB"), (5e6, "5.0 MB"), (2.5e11, "250.00 GB")])
def test_sizes_in_words(size, text):
    assert plan.gigabytes(size) == text


def test_the_time_left_counts_validations():
    work = plan.Work(first=0, last=100, blocks=1, block_size=1, eval_every=30)
    assert work.seconds(2.0, 10.0) == 100 * 2 + 5 * 10
    assert work._replace(first=60).seconds(2.0, 10.0) == 40 * 2 + 2 * 10
    assert work._replace(first=100).seconds(2.0, 10.0) == 0


def test_the_plan_of_a_run_trains_and_writes_nothing(place):
    before = sorted(place.rglob("*"))
    result = run(place, plan=True, steps=40, eval_every=10)
    assert "40 of 64 tokens" in result.stdout and "with 5 validations" in result.stdout
    assert re.search(r"tokens    64 a step, 2,560 in all: [\d.]+ epochs of [\d,]+ blocks of 32, estim", result.stdout)
    assert "step 1" not in result.stdout and "Nothing was trained or written" in result.stdout
    assert sorted(place.rglob("*")) == before


def test_the_plan_of_a_run_that_was_stopped(place):
    run(place, max_hours=AT_ONCE)
    files = {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}
    assert "3 of 64 tokens, after the 1 that are done: 192 tokens" in run(place, plan=True).stdout
    assert {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()} == files
    assert "different --lr" in run(place, plan=True, lr=0.1, status=2).stderr
