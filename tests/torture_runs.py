"""Runs that are hurt in every way: two in one folder, killed; out of memory at every stage; each of their files lost.

    python -m tests.torture_runs [two|memory|lost|ranks] [NUMBER]

two: two runs are started in one folder at random moments, and killed at random moments (default: 30 kills). memory:
the address space is limited to more and more. lost: each file of a stopped and of a finished run is deleted. ranks:
ranks of two- and four-process runs are killed or stopped (default: 20 times). By default all of these, in this order.
Nothing may be lost beyond the last checkpoint, the final weights must be those of an undisturbed run (bit for bit; with
several ranks to rounding), every end must have its status and its message, and no message may be false. Exit status 1
otherwise.
"""

import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests import train_runs
from tests.test_ranks import TORCHRUN, assert_close_runs
from tests.train_runs import AT_ONCE, LONGER, Command, arguments, assert_same_run, ranks_of, steps_kept, weights

STEPS_PER_KILL = 40  # more than a run does before it is killed, on average, so that it does not end too early
REFUSED = re.compile(r"train.py: \S+ is in use by another process \(host \S+, process \d+\)\. Wait for its end")
LARGE = dict(batch_size=48, block_size=128, steps=4, checkpoint_every=1, compile="off")  # tensors of many megabytes
LIMITED = """
import resource, sys
import torch, train
import model.training.curves, numpy, safetensors.torch
from data.cli import run_command
from model import ModelError
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
run_command("train.py", train.main, ModelError, train.Diverged, on_memory=train.ON_MEMORY)
"""


def start(place: Path, out: Path, chance: random.Random, **options) -> Command:
    return Command("train.py", *arguments(place, out=out, checkpoint_every=chance.choice([1, 2]), **options))


def two(place: Path, kills: int = 30) -> None:
    """Of two runs in one folder, one is refused or waits; whichever is killed, nothing is lost."""
    chance, options = random.Random(1), LONGER | dict(steps=STEPS_PER_KILL * kills, log_every=1, compile="off")
    whole, out = place / "whole", place / "out"
    with Command("train.py", *arguments(place, out=whole, **options)) as command:
        assert command.end(3600) == 0, command.output
    killed = refused = waited = 0
    begun = time.monotonic()
    while not (out / "student.safetensors").exists():
        waits = chance.random() < 0.3
        with start(place, out, chance, **options) as one:
            time.sleep(chance.choice([0.0, chance.uniform(0, 5)]))
            with start(place, out, chance, wait=waits, **options) as other:
                if killed < kills:
                    time.sleep(chance.uniform(2, 7))
                    for command in chance.choice([(one,), (other,), (one, other)]):
                        killed += command.poll() is None
                        command.kill()
                    if killed < kills:  # else one of them ends the run
                        time.sleep(chance.uniform(0, 1))
                        killed += (one.poll() is None) + (other.poll() is None)
                        one.kill()
                        other.kill()
                statuses = [one.end(3600), other.end(3600)]
        for command, status in zip((one, other), statuses):
            assert status in (0, 2, -signal.SIGKILL), f"status {status}:\n{command.output}"
            assert "Traceback" not in command.output, command.output
            if status == 2:
                assert REFUSED.search(command.output), command.output
                refused += 1
        waited += "Waiting for its end" in other.output
        print(
            f"{killed} kills, {refused} refusals, {waited} waited; step {max(steps_kept(out), default=0)}", flush=True
        )
    print(f"two runs in one folder: {time.monotonic() - begun:.0f} s, {weights(out)}", flush=True)
    assert_same_run(out, whole)


def memory(place: Path, stride: int = 8) -> None:
    """With a limit that grows by this number of megabytes, until the run succeeds."""
    whole, out = place / "large", place / "limited"
    with Command("train.py", *arguments(place, out=whole, **LARGE)) as command:  # one thread, as the limited ones
        assert command.end(600) == 0, command.output
    ends: dict[str, int] = {}
    for megabytes in range(0, 4096, stride):
        before = steps_kept(out) if out.exists() else []
        with Command(
            "-c", LIMITED, megabytes, *arguments(place, out=out, **LARGE | dict(max_hours=AT_ONCE))
        ) as command:
            status = command.end(600)
        lines = [line for line in command.output.splitlines() if not line.startswith("warning: ")]
        assert status in (0, 2) and "Traceback" not in command.output, f"status {status}:\n{command.output}"
        kept = steps_kept(out) if out.exists() else []
        assert set(before[-1:]) <= set(kept) or kept, "a checkpoint is lost"
        if status:
            assert "out of memory: " in lines[-1] or "annot allocate memory" in lines[-1], command.output
            reason = lines[-2].split()[0] if len(lines) > 1 else "the start"
        else:
            reason = "success"
        ends[f"after {reason!r}"] = ends.get(f"after {reason!r}", 0) + 1
        if (out / "student.safetensors").exists():
            break
    print(f"out of memory, by what was printed last: {ends}; enough with {megabytes} MB more", flush=True)
    assert_same_run(out, whole)


def lost(place: Path) -> None:
    """Each file of a run, and each folder, is deleted from a stopped and from a finished run."""
    whole, half = place / "of-lost", place / "half"
    options = LONGER | dict(eval_every=2, checkpoint_every=2, keep=2)
    train_runs.run(place, out=whole, **options)
    for _ in range(5):
        train_runs.run(place, out=half, **options | dict(max_hours=AT_ONCE))
    for name, folder in (("stopped", half), ("finished", whole)):
        for path in sorted(folder.rglob("*")):
            out = place / "deleted"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(folder, out)
            victim = out / path.relative_to(folder)
            shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
            result = train_runs.run(place, out=out, **options)
            words = (result.stderr.strip().splitlines() or result.stdout.strip().splitlines())[0][:150]
            print(f"{name}, without {path.relative_to(folder)}: {words.replace(str(out), 'OUT')}", flush=True)
            assert weights(out) == weights(whole)
            assert "remove" not in result.stderr


def ranks(place: Path, number: int = 20) -> None:
    """A rank is killed, or stopped for a while or for ever: the others say so and end, and the command goes on."""
    chance, counts = random.Random(number), dict(killed=0, stopped=0, continued=0)
    settings = LONGER | dict(accumulate=4, steps=60 * number, log_every=1, checkpoint_every=2, eval_every=0)
    whole, out = place / "whole-of-ranks", place / "ranks"
    train_runs.run(place, out=whole, **settings)
    while sum(counts.values()) < number:
        size = chance.choice([2, 4])
        with Command(*TORCHRUN, size, "train.py", *arguments(place, out=out, timeout=40, **settings)) as command:
            command.wait_for("step ")
            time.sleep(chance.uniform(0, 1))
            rank, pid = chance.choice(sorted(ranks_of(command.pid).items()))
            how, begun = chance.choice(list(counts)), time.monotonic()
            os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            counts[how] += 1
            command.wait_for("has died." if how == "killed" else "has not answered since step")
            said = time.monotonic() - begun
            if how == "continued":
                os.kill(pid, signal.SIGCONT)
                command.wait_for("answers again")
                command.send_signal(signal.SIGTERM)
            elif how == "stopped":
                command.wait_for("The same command resumes after step")
                os.kill(pid, signal.SIGKILL)  # torchrun would, half a minute later
            assert command.end(120) != 0
        assert f"rank {rank} on host" in command.output and said < 30, command.output
        assert ("Stopped after step" in command.output) == (how == "continued"), command.output
        step = max(steps_kept(out), default=0)
        print(f"{counts}: rank {rank} of {size}, said after {said:.0f} s; step {step}", flush=True)
    with Command(*TORCHRUN, 2, "train.py", *arguments(place, out=out, **settings)) as command:
        assert command.end(600) == 0, command.output
    print(f"ranks: {counts}, {weights(out)}", flush=True)
    assert_close_runs(out, whole)


PARTS = {"two": two, "memory": memory, "lost": lost, "ranks": ranks}

if __name__ == "__main__":
    chosen, numbers = sys.argv[1:2] or list(PARTS), map(int, sys.argv[2:3])
    with tempfile.TemporaryDirectory() as folder:
        place = train_runs.write_inputs(Path(folder))
        for name in chosen:
            print(f"--- {name}", flush=True)
            PARTS[name](place, *numbers)
