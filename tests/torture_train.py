"""python -m tests.torture_train [KILLS]: a run killed so many times (30) at random moments, and one of 2,000 steps.

Every step writes a checkpoint, so that many kills fall into the writing. The weights at the end must be those of an
undisturbed run to the last bit, and the memory of the long run must not grow.
"""

import random
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from data import demo
from model import EncoderConfig, MaskedLM, save_model
from tests.test_resume import digest, lines, start

LONG = 2000


def finish(process) -> None:
    _, said = process.communicate()
    if process.returncode:
        sys.exit(said)


def kill_again_and_again(place: Path, kills: int) -> bool:
    """Whether the killed run equals the other."""
    settings = dict(steps=max(60, 2 * kills), checkpoint_every=1, accumulate=2)
    finish(start(place, "undisturbed", **settings))
    chance, done, begun = random.Random(0), 0, time.monotonic()
    while done < kills:
        process = start(place, "killed", **settings)
        seen = set((place / "killed/checkpoints").glob("step-*"))
        moment = None  # once it trains: at most some steps later, so that it is killed before its end
        while process.poll() is None and (moment is None or time.monotonic() < moment):
            if moment is None and set((place / "killed/checkpoints").glob("step-*")) - seen:
                moment = time.monotonic() + chance.random() * 0.05
            time.sleep(0.001)
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        done += 1
        print(f"{done} kills, {time.monotonic() - begun:.0f} s", flush=True)
    finish(start(place, "killed", **settings))
    equal = digest(place / "killed") == digest(place / "undisturbed")
    equal = equal and lines(place / "killed") == lines(place / "undisturbed") and done == kills
    print(f"{done} kills, {time.monotonic() - begun:.0f} s: weights and metrics {'equal' if equal else 'DIFFER'}")
    return equal


def watch_memory(place: Path) -> bool:
    """Whether a long run stays as large as it was after a tenth."""
    process = start(place, "long", steps=LONG, accumulate=1, checkpoint_every=100, eval_every=500, log_every=10)
    sizes = {}
    while process.poll() is None:
        done = len(lines(place / "long")) * 10 if (place / "long/metrics.jsonl").exists() else 0
        for step in (LONG // 10, LONG - 50):
            if done >= step and step not in sizes:
                fields = Path(f"/proc/{process.pid}/statm").read_text().split()
                sizes[step] = int(fields[1]) * 4096 / 1e6
        time.sleep(0.05)
    finish(process)
    print(", ".join(f"{size:.1f} MB after {step} steps" for step, size in sizes.items()))
    return len(sizes) == 2 and max(sizes.values()) - min(sizes.values()) < 30


def main(kills: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        torch.manual_seed(0)
        save_model(MaskedLM(EncoderConfig(4, 32, 2, 64, 1005)).eval(), place / "teacher.safetensors")
        (place / "corpus.txt").write_text("\n".join(islice(demo.texts(), 300)), encoding="utf-8")
        good = kill_again_and_again(place, kills)
        return 0 if watch_memory(place) and good else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 30))
