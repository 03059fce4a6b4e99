"""A run that is killed at random moments, over and over, and one of 2,000 steps whose memory is watched.

    python -m tests.torture_train [KILLS]

The killed run writes a checkpoint after every step or every second one. Of the kills (default: 30) one in ten comes
during the start, and half of the others while a checkpoint is written. Weights and metrics.jsonl must be, to the last
bit, those of a run that nothing interrupted. Exit status 1 if they are not, or if the memory grows.
"""

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests import train_runs
from tests.train_runs import LONGER, Command, arguments, run, steps_kept, untimed_metrics, weights

STEPS_PER_KILL = 15  # more than a run does before it is killed, on average, so that it does not end too early
MEMORY_STEPS, GROWTH = 2000, 30  # megabytes


def wait_for_a_moment(command: Command, out: Path, chance: random.Random) -> None:
    if chance.random() < 0.1:
        time.sleep(chance.uniform(0, 4))  # during the start
        return
    command.wait_for("step ")
    time.sleep(chance.uniform(0, 0.5))
    if chance.random() < 0.5:
        until = time.monotonic() + 1
        while not any(out.glob("checkpoints/.*")) and time.monotonic() < until:
            time.sleep(0.0002)
        time.sleep(chance.uniform(0, 0.005))  # about as long as writing it takes


def torture(place: Path, kills: int, report=print, seed: int = 0) -> bool:
    """Whether a run that is killed this number of times ends like one that is not."""
    chance, begun = random.Random(seed), time.monotonic()
    options = LONGER | dict(steps=STEPS_PER_KILL * kills, log_every=1)
    whole, out = place / "whole", place / "out"
    result = run(place, out=whole, **options)
    assert result.returncode == 0, result.stderr
    report(f"{options['steps']} steps in {time.monotonic() - begun:.1f} s without a kill: {weights(whole)}", flush=True)
    killed = resumed = writing = 0
    begun = time.monotonic()
    while not (out / "student.safetensors").exists():
        words = arguments(place, out=out, checkpoint_every=chance.choice([1, 1, 2]), **options)
        with Command("train.py", *words) as command:
            if killed < kills:
                wait_for_a_moment(command, out, chance)
                command.send(signal.SIGKILL)
            status = command.end(3600)
        resumed += "resumed   after step" in command.output
        if status == -signal.SIGKILL:
            killed += 1
            writing += any(out.glob("checkpoints/.*"))
            done = steps_kept(out)[-1] if (out / "checkpoints").exists() and steps_kept(out) else 0
            report(f"{killed} kills, {writing} while a checkpoint was written; step {done}", flush=True)
        elif status:
            report(f"status {status}:\n{command.output}")
            return False
    equal = weights(out) == weights(whole) and untimed_metrics(out) == untimed_metrics(whole)
    equal = equal and not list(out.rglob(".*"))
    kinds = f"{killed} kills, {writing} while a checkpoint was written, {resumed} resumptions"
    seconds = time.monotonic() - begun
    report(f"{kinds}, {seconds:.0f} s: {weights(out)}, {'equal' if equal else 'NOT EQUAL'}", flush=True)
    return equal and killed == kills


def watch_memory(place: Path, report=print) -> bool:
    """Whether a long run stays as large as it was after a tenth of its steps."""
    early = MEMORY_STEPS // 10
    settings = dict(accumulate=1, log_every=early, checkpoint_every=100, eval_every=100)
    sizes = train_runs.memory_of_run(place, place / "long", steps=MEMORY_STEPS, **settings)
    before, after = sizes[early], sizes[MEMORY_STEPS]
    growth = f"{before:.1f} MB after {early} steps, {after:.1f} MB after {MEMORY_STEPS}: {after - before:+.1f} MB"
    report(f"resident memory {growth}")
    return after - before < GROWTH


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = train_runs.write_inputs(Path(folder))
        good = watch_memory(place)
        sys.exit(0 if torture(place, int(sys.argv[1]) if len(sys.argv) > 1 else 30) and good else 1)
