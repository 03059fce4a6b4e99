"""Several ranks as one run: the reduction of gradients, torchrun with two processes, a rank that dies."""

import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from losses import LossSettings
from model import initialise_student
from model.training import distributed
from model.training.device import Runtime
from model.training.watch import LOST
from tests import train_runs
from tests.helpers import DEVICE, assert_close, relative_norm
from tests.train_runs import LONGER, Command, arguments, metrics, run_longer, state_dict, steps_kept

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
TWO_RANKS = (*TORCHRUN, "2", "train.py")
BACKEND = "nccl" if DEVICE.type == "cuda" else "gloo"
needs_backend = pytest.mark.skipif(
    not torch.distributed.is_backend_available(BACKEND), reason=f"this PyTorch has no {BACKEND}"
)
LONG = dict(steps=50, log_every=1, eval_every=20)


class Reduced(torch.nn.Module):
    """Like DistributedDataParallel: records for which micro-batches it would have reduced the gradients."""

    def __init__(self, distiller):
        super().__init__()
        self.distiller, self.reduces, self.calls = distiller, True, []

    def forward(self, *arguments):
        self.calls.append(self.reduces)
        return self.distiller(*arguments)

    @contextlib.contextmanager
    def no_sync(self):
        self.reduces = False
        yield
        self.reduces = True


def test_gradients_are_reduced_with_the_last_micro_batch_only():
    """Each rank's gradient counts twice, since the mean over both is taken: here, of two equal ranks."""
    batches, teacher = train_runs.uneven_batches()[:3], train_runs.make_teacher()
    found = []
    for world in (distributed.SINGLE, SimpleNamespace(rank=0, size=2, sum=lambda values: 2 * values)):
        student = initialise_student(teacher, [0, 2])
        engine = Reduced(train.Distiller(student, teacher, LossSettings(), Runtime(torch.device("cpu"))))
        train.backward(engine, teacher, batches, train_runs.DISABLED, world)
        assert engine.calls == ([True] * 3 if world.size == 1 else [False, False, True])
        found.append(torch.cat([parameter.grad.flatten() for parameter in student.parameters()]))
    assert relative_norm(*found) < 1e-6


@pytest.mark.gpu
@needs_backend
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gradient_is_the_same_within_distributed_data_parallel(tmp_path, precision):
    """In one process, over the backend of the device."""
    teacher, batches, found = train_runs.make_teacher().to(DEVICE), train_runs.uneven_batches(), []
    torch.distributed.init_process_group(BACKEND, init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for wrap in (torch.nn.parallel.DistributedDataParallel, lambda distiller: distiller):
            student = initialise_student(teacher, [0, 2])
            engine = wrap(train.Distiller(student, teacher, LossSettings(), Runtime(DEVICE, precision)).to(DEVICE))
            train.backward(engine, teacher, batches, Runtime(DEVICE, precision).grad_scaler())
            found.append(torch.cat([parameter.grad.flatten() for parameter in student.parameters()]))
    finally:
        torch.distributed.destroy_process_group()
    assert relative_norm(*found) < 1e-6


def assert_close_runs(out, whole):
    """Two runs are the same to rounding."""
    assert_close(state_dict(out), state_dict(whole))
    for line, expected in zip(metrics(out), metrics(whole), strict=True):
        for name in ("step", "tokens", "learning_rate", "skipped"):
            assert line[name] == expected[name]
        for name in ("loss", "highest_loss", "soft_label_loss", "cosine_loss", "mlm_loss", "gradient_norm"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5), (line["step"], name)
        assert line.get("held_out", {}) == pytest.approx(expected.get("held_out", {}), rel=1e-5)


def test_two_ranks_equal_one_and_resume_as_one_or_as_two(place, tmp_path):
    whole, out, one = tmp_path / "whole", tmp_path / "out", tmp_path / "one"
    run_longer(place, whole, **LONG)
    with Command(*TWO_RANKS, *arguments(place, out=out, **LONGER | LONG)) as command:
        command.wait_for("step  9/50")
        command.send_signal(signal.SIGTERM)
        assert command.end() != 0
    (step,) = steps_kept(out)
    assert 9 <= step < 50 and f"Stopped after step {step:,}; saved {out}/checkpoints" in command.output, command.output
    assert "2 ranks" in command.output and command.output.count("Stopped after") == 1
    shutil.copytree(out, one)
    run_longer(place, one, **LONG)
    assert_close_runs(one, whole)
    with Command(*TWO_RANKS, *arguments(place, out=out, **LONGER | LONG)) as command:
        assert command.end() == 0, command.output
    assert f"resumed   after step {step}," in command.output and command.output.count("Written to ") == 1
    assert_close_runs(out, whole)


@pytest.mark.gpu
@needs_backend
def test_torchrun_with_one_process_equals_a_run_without_it(place, tmp_path):
    options = LONGER | dict(device=DEVICE.type)
    with Command(*TORCHRUN, "1", "train.py", *arguments(place, out=tmp_path / "one", **options)) as command:
        assert command.end() == 0, command.output
    train_runs.run(place, out=tmp_path / "out", **options)
    assert_close_runs(tmp_path / "one", tmp_path / "out")


# ---- errors, deaths and stalls: with a watch that says within two seconds what it otherwise says after fifteen ----

ENDLESS = LONGER | dict(steps=10**6, log_every=1, eval_every=0, checkpoint_every=5, compile="off", accumulate=4)


class Ranks(Command):
    """Ranks of train.py with an impatient watch."""

    def __init__(self, number, place, out, **changed):
        options = arguments(place, out=out, **ENDLESS | changed)
        super().__init__(*TORCHRUN, str(number), "tests/quick_ranks.py", *options)

    def of_ours(self):
        """The output without what torchrun itself says of its children."""
        launcher = r"(?s)(^[EW]\d{4} .*?$|^Traceback .*ChildFailedError:.*)"
        return re.sub(launcher, "", self.output, flags=re.MULTILINE)

    def end_with(self, status, *sentences):
        """All ranks end with this status, or by torchrun's SIGTERM, having said these sentences once each."""
        assert self.end(60) not in (0, None)
        found = set(re.findall(r"exitcode +: (-?\d+)", self.output))
        assert str(status) in found and found <= {str(status), "-9", "-15"}, self.output
        for sentence in sentences:
            assert len(re.findall(sentence, self.output)) == 1, (sentence, self.output)
        assert "Traceback" not in self.of_ours(), self.output
        assert self.output.count("train.py: ") == 1, self.output


@pytest.mark.parametrize("number, victim", [(2, 0), (2, 1), (4, 2)])
def test_a_rank_that_is_killed_is_named_once_and_the_run_goes_on_with_fewer_ranks(place, tmp_path, number, victim):
    out = tmp_path / "out"
    with Ranks(number, place, out) as command:
        command.wait_for("step       7/")
        ranks = train_runs.ranks_of(command.pid)
        assert sorted(ranks) == list(range(number))
        os.kill(ranks[victim], signal.SIGKILL)
        begun = time.monotonic()
        name = (
            rf"train.py: rank {victim} on host \S+ \(process {ranks[victim]}\) has died. It has not answered since step"
        )
        numbers = "1, 2" if number == 2 else "1, 2, 4"
        rest = rf" \d+\. The same command resumes after step \d+, also with another number of ranks: {numbers}\.$"
        command.end_with(LOST, "(?m)" + name + rest)
        assert time.monotonic() - begun < 30 and not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    step = steps_kept(out)[-1]
    assert f"resumes after step {step}" in command.output


def test_accumulate_must_be_a_multiple_of_the_ranks(place, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def three(device):
        yield distributed.World(0, 3), device

    monkeypatch.setattr(distributed, "join_world", three)
    result = run_longer(place, tmp_path / "out", status=2)
    assert "--accumulate 2 must be a multiple of the 3 ranks." in result.stderr
    assert not (tmp_path / "out").exists()
