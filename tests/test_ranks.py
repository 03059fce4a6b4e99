"""Several ranks as one run: the reduction of gradients, torchrun with two processes, a rank that dies."""

import contextlib
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from losses import LossSettings
from model import initialise_student
from model.training import distributed
from model.training.device import Runtime, prepare_models
from model.training.optim import make_optimiser
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
LONG = dict(steps=50, log_every=1, eval_every=20, accumulate=4)


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The run with LONG in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run_longer(place, out, **LONG)
    return out


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
@pytest.mark.parametrize(("precision", "compiled"), [("fp32", False), ("bf16", False), ("fp32", True)])
def test_the_gradient_is_the_same_within_distributed_data_parallel(tmp_path, precision, compiled):
    """In one process, over the backend of the device; compiled in four steps, which record and replay CUDA graphs."""
    if compiled and DEVICE.type != "cuda":
        pytest.skip("CUDA graphs run on a GPU only")
    torch._dynamo.reset()
    runtime = Runtime(DEVICE, precision, compiled)
    teacher, batches, found = train_runs.make_teacher().to(DEVICE), train_runs.uneven_batches(), []
    torch.distributed.init_process_group(BACKEND, init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for wrap in (torch.nn.parallel.DistributedDataParallel, lambda distiller: distiller):
            student = initialise_student(teacher, [0, 2])
            distiller = train.Distiller(student, teacher, LossSettings(), runtime).to(DEVICE)
            optimiser = make_optimiser(distiller, 1e-3, 0.01, keeps_gradients=runtime.uses_graphs)
            if compiled:
                prepare_models(student, teacher, runtime)
            engine = wrap(distiller)
            for _ in range(4 if compiled else 1):
                optimiser.zero_grad()
                train.backward(engine, teacher, batches, runtime.grad_scaler())
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


def test_two_ranks_equal_one_and_resume_as_one_or_as_two(place, whole, tmp_path):
    out, one = tmp_path / "out", tmp_path / "one"
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
FINITE = ENDLESS | LONG


class Ranks(Command):
    """Ranks of train.py with an impatient watch."""

    def __init__(self, number, place, out, max_restarts=0, only=(), **changed):
        """only: a rank, with an option and its value that it alone is given; or with an error that it alone meets."""
        launcher = (*TORCHRUN, str(number), "--max-restarts", str(max_restarts), "tests/quick_ranks.py")
        super().__init__(*launcher, len(only), *only, *arguments(place, out=out, **ENDLESS | changed))

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


def test_a_rank_that_is_killed_is_named_once_and_torchrun_starts_all_again(place, whole, tmp_path):
    out = tmp_path / "out"
    with Ranks(2, place, out, max_restarts=1, **FINITE) as command:
        command.wait_for("step  8/50")
        ranks = train_runs.ranks_of(command.pid)
        assert sorted(ranks) == [0, 1]
        os.kill(ranks[0], signal.SIGKILL)
        command.wait_for("resumed   after step ")
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
        assert command.end() == 0, command.output
    name = rf"^train.py: rank 0 on host {socket.gethostname()} \(process {ranks[0]}\) has died\. "
    step = re.search("resumed   after step ([0-9]+),", command.output)[1]
    since = rf"It has not answered since step \d+\. The same command resumes after step {step}, "
    said = re.findall(name + since + r"also with another number of ranks: 1, 2\.$", command.output, flags=re.MULTILINE)
    assert len(said) == 1 and command.output.count("train.py: ") == 1, command.output
    assert_close_runs(out, whole)


def test_four_ranks_of_which_one_is_killed_go_on_as_two(place, whole, tmp_path):
    out, finite = tmp_path / "out", FINITE | dict(checkpoint_every=3)
    with Ranks(4, place, out, **finite) as command:
        command.wait_for("step  8/50")
        os.kill(train_runs.ranks_of(command.pid)[3], signal.SIGKILL)
        begun = time.monotonic()
        command.end_with(LOST, r"rank 3 on host .* has died\. .* another number of ranks: 1, 2, 4\.\n")
        assert time.monotonic() - begun < 30
    step = steps_kept(out)[-1]
    with Ranks(2, place, out, **finite) as command:
        assert command.end() == 0 and f"resumed   after step {step}," in command.output, command.output
    assert_close_runs(out, whole)


def test_a_rank_that_is_stopped_and_continued_does_no_harm(place, whole, tmp_path):
    victim, out = 0, tmp_path / "out"
    with Ranks(2, place, out, **FINITE) as command:
        command.wait_for("step  8/50")
        pid = train_runs.ranks_of(command.pid)[victim]
        os.kill(pid, signal.SIGSTOP)
        command.wait_for(
            f"warning: rank {victim} on host {socket.gethostname()} (process {pid}) has not answered since"
        )
        os.kill(pid, signal.SIGCONT)
        command.wait_for(f"warning: rank {victim} on host {socket.gethostname()} (process {pid}) answers again.")
        assert command.end() == 0, command.output
    assert command.output.count("warning: ") == 2, command.output
    assert_close_runs(out, whole)


def test_a_rank_that_stays_away_ends_the_run_by_timeout(place, tmp_path):
    number, victim = 3, 1
    with Ranks(number, place, tmp_path / "out", accumulate=6, timeout=4) as command:
        command.wait_for("step       7/")
        pid = train_runs.ranks_of(command.pid)[victim]
        os.kill(pid, signal.SIGSTOP)
        command.wait_for(f"rank {victim} on host {socket.gethostname()} (process {pid}) has not answered since step")
        assert "The others wait for it, 4 seconds in all (--timeout)." in command.output
        command.wait_for(
            f"train.py: rank {victim} on host {socket.gethostname()} (process {pid}) has not answered since"
        )
        os.kill(pid, signal.SIGKILL)  # torchrun would, half a minute later
        command.end_with(
            LOST, "The same command resumes after step", "warning: rank", "warning: the corpus is repeated"
        )


@pytest.mark.parametrize("cause", ["an unknown option", "accumulate"])
def test_an_error_of_all_ranks_is_printed_once(place, tmp_path, cause):
    changed, sentence = {
        "an unknown option": (dict(stepps=5), "train.py: There is no option --stepps"),
        "accumulate": (dict(accumulate=3), "train.py: --accumulate 3 must be a multiple of the 2 ranks."),
    }[cause]
    with Ranks(2, place, tmp_path / "out", **changed) as command:
        command.end_with(2, sentence)
    assert "ends the run" not in command.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option, content, sentence",
    [
        ("--corpus", "corpus", r"Rank 1 on host \S+ and rank 0 on host \S+ have read different things \(corpus: "),
        ("--out", "out", r"have read different things \(checkpoint: none, not step 5, "),
        ("--corpus", None, r"rank 1 on host \S+ \(process \d+\) ends the run:\ntrain.py: There is no corpus"),
    ],
)
def test_a_rank_with_other_files_or_options_ends_all(place, tmp_path, option, content, sentence):
    if content == "corpus":
        content = tmp_path / "other.txt"
        content.write_text("\n".join(train_runs.TEXTS[:250]), encoding="utf-8")
    out = tmp_path / "out"
    if content == "out":
        content = tmp_path / "elsewhere"
        run_longer(place, out, **ENDLESS | dict(steps=5))
        (out / "student.safetensors").unlink()
    with Ranks(
        2, place, out, steps=5 if option == "--out" else 50, only=[1, option, content or tmp_path / "none"]
    ) as command:
        command.end_with(2, sentence)


def test_an_error_of_one_rank_in_a_step_ends_all(place, tmp_path):
    with Ranks(2, place, tmp_path / "out", only=[1, "out of memory"]) as command:
        command.end_with(2, r"rank 1 on host \S+ \(process \d+\) ends the run:\ntrain.py: out of memory: ")
    assert steps_kept(tmp_path / "out")
