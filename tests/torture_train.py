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
from tests.train_runs import LONGER, Command, arguments, assert_same_run, steps_kept, weights

STEPS_PER_KILL = 60  # more than a run does before it is killed, on average, so that it does not end too early
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


def torture(place: Path, kills: int) -> None:
    """A run that is killed this number of times must end like one that is not."""
    chance, begun = random.Random(0), time.monotonic()
    options = LONGER | dict(steps=STEPS_PER_KILL * kills, log_every=1, compile="off")
    whole, out = place / "whole", place / "out"
    with Command("train.py", *arguments(place, out=whole, **options)) as command:  # one thread, as the killed ones
        assert command.end(3600) == 0, command.output
    print(f"{options['steps']} steps in {time.monotonic() - begun:.1f} s without a kill: {weights(whole)}", flush=True)
    killed = resumed = writing = 0
    begun = time.monotonic()
    while not (out / "student.safetensors").exists():
        words = arguments(place, out=out, checkpoint_every=chance.choice([1, 1, 2]), **options)
        with Command("train.py", *words) as command:
            if killed < kills:
                wait_for_a_moment(command, out, chance)
                command.send_signal(signal.SIGKILL)
            status = command.end(3600)
        assert status in (0, -signal.SIGKILL), f"status {status}:\n{command.output}"
        resumed += "resumed   after step" in command.output
        if status:
            killed += 1
            writing += any(out.glob("checkpoints/.*"))
            step = max(steps_kept(out), default=0)
            print(f"{killed} kills, {writing} while a checkpoint was written; step {step}", flush=True)
    kinds = f"{killed} kills, {writing} while a checkpoint was written, {resumed} resumptions"
    print(f"{kinds}, {time.monotonic() - begun:.0f} s: {weights(out)}", flush=True)
    assert_same_run(out, whole)
    assert killed == kills


def watch_memory(place: Path) -> None:
    """A long run must stay as large as it was after a tenth of its steps."""
    early = MEMORY_STEPS // 10
    settings = dict(accumulate=1, log_every=early, checkpoint_every=100, eval_every=100)
    sizes = train_runs.memory_of_run(place, place / "long", steps=MEMORY_STEPS, **settings)
    before, after = sizes[early], sizes[MEMORY_STEPS]
    print(f"resident memory {before:.1f} MB after {early} steps, {after:.1f} MB after {MEMORY_STEPS}", flush=True)
    assert after - before < GROWTH


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = train_runs.write_inputs(Path(folder))
        watch_memory(place)
        torture(place, int(sys.argv[1]) if len(sys.argv) > 1 else 30)
