"""A run that is killed at random moments, over and over, and one of 2,000 steps whose memory is watched.

    python -m tests.torture_train [KILLS]

The run writes a checkpoint every step or every second one. Of the kills (30 if not said) one in ten falls into the
start, and half of the others into the writing of a checkpoint. Its weights and its metrics.jsonl must be, to the last
bit, those of a run that nothing interrupted. Exit status 1 if they are not, or if the memory grows.
"""

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.test_resume import Command, arguments, lines, make_place, memory, run, steps_kept, weights

STEPS_A_KILL = 15  # on average a kill comes after fewer, so that the run does not end before the last one
MEMORY_STEPS, GROWTH = 2000, 30  # megabytes


def wait_for_a_moment(command: Command, out: Path, chance: random.Random) -> None:
    if chance.random() < 0.1:
        time.sleep(chance.uniform(0, 4))  # while it starts
        return
    command.wait_for("step ")
    time.sleep(chance.uniform(0, 0.5))
    if chance.random() < 0.5:
        until = time.monotonic() + 1
        while not any(out.glob("checkpoints/.*")) and time.monotonic() < until:
            time.sleep(0.0002)
        time.sleep(chance.uniform(0, 0.005))  # which it takes, or longer


def torture(place: Path, kills: int, say=print, seed: int = 0) -> bool:
    """Whether a run that was killed so many times ends as one that was not."""
    chance, options, begun = random.Random(seed), dict(steps=STEPS_A_KILL * kills, log_every=1), time.monotonic()
    whole, out = place / "whole", place / "out"
    result = run(place, whole, **options)
    assert result.returncode == 0, result.stderr
    say(f"{options['steps']} steps in {time.monotonic() - begun:.1f} s without a kill: {weights(whole)}", flush=True)
    killed = resumed = writing = 0
    begun = time.monotonic()
    while not (out / "student.safetensors").exists():
        every = chance.choice([1, 1, 2])
        with Command("train.py", *arguments(place, out, checkpoint_every=every, **options)) as command:
            if killed < kills:
                wait_for_a_moment(command, out, chance)
                command.send(signal.SIGKILL)
            status = command.end(3600)
        resumed += "resumed   after step" in command.output
        if status == -signal.SIGKILL:
            killed += 1
            writing += any(out.glob("checkpoints/.*"))
            done = steps_kept(out)[-1] if (out / "checkpoints").exists() and steps_kept(out) else 0
            say(f"{killed} kills, {writing} while a checkpoint was written; step {done}", flush=True)
        elif status:
            say(f"status {status}:\n{command.output}")
            return False
    equal = weights(out) == weights(whole) and lines(out) == lines(whole) and not list(out.rglob(".*"))
    say(
        f"{killed} kills, {writing} while a checkpoint was written, {resumed} resumptions, "
        f"{time.monotonic() - begun:.0f} s: {weights(out)}, {'equal' if equal else 'NOT EQUAL'}",
        flush=True,
    )
    return equal and killed == kills


def watch_memory(place: Path, say=print) -> bool:
    """Whether a long run stays as large as it was after a tenth of its steps."""
    early = MEMORY_STEPS // 10
    sizes = memory(place, place / "long", steps=MEMORY_STEPS, accumulate=1, log_every=early, checkpoint_every=100)
    growth = sizes[MEMORY_STEPS] - sizes[early]
    say(f"VmRSS {sizes[early]:.1f} MB after {early} steps, {sizes[MEMORY_STEPS]:.1f} MB after {MEMORY_STEPS}: "
        f"{growth:+.1f} MB")  # fmt: skip
    return growth < GROWTH


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder))
        good = watch_memory(place)
        sys.exit(0 if torture(place, int(sys.argv[1]) if len(sys.argv) > 1 else 30) and good else 1)
