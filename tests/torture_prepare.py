"""Kills data.prepare at random moments, over and over, and compares what it ends with, byte by byte.

    python -m tests.torture_prepare [KILLS]

Each start has one, two or three workers. A kill ends all processes, or the first one alone, whose workers must end
by themselves. When a run finishes before its kill, its folder is compared with that of a run that nothing
interrupted, and the next one begins in an empty folder.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data import demo
from tests.helpers import REPOSITORY

OPTIONS = ["--shard-tokens", "100000", "--duplicates-mb", "1", "--held-out", "0.1", "--min-tokens", "5"]


def write_corpus(folder: Path, copies: int) -> None:
    """Some files of every packing; copies: how many times the demo's texts (1.9 MB), in a new order of sentences, are
    in the largest, which must be cut into parts of 4 MB.
    """
    chance = random.Random(0)
    folder.mkdir(parents=True)
    texts = list(demo.texts())
    sentences = [sentence for text in texts for sentence in text.split(". ")]

    def shuffled(count: int) -> list[str]:
        """That many texts, one in twenty of which are paragraphs that may come twice."""
        again = (". ".join(chance.sample(sentences, 6)) for _ in range(count))
        return [chance.choice(texts) if chance.random() < 0.05 else text for text in again]

    lines = "".join(f"{text}\n" for text in shuffled(4000)).encode()
    (folder / "a.txt").write_text("".join(f"{text}\n" for text in shuffled(len(texts) * copies)), encoding="utf-8")
    (folder / "b.txt").write_text("\n\n".join("\n".join(shuffled(3)) for _ in range(700)), encoding="utf-8")
    (folder / "c.jsonl.gz").write_bytes(
        gzip.compress("".join(f'{{"text": {json.dumps(text)}}}\n' for text in shuffled(2000)).encode(), 1)
    )
    (folder / "d.txt.xz").write_bytes(lzma.compress(lines[:600_000], preset=0))
    (folder / "e.txt.bz2").write_bytes(bz2.compress(lines[600_000:]))
    damaged = bytearray(gzip.compress(lines * 8, 1))
    damaged[len(damaged) * 9 // 10] ^= 64
    (folder / "f.txt.gz").write_bytes(damaged)
    (folder / "g.txt").write_bytes(b"")
    (folder / "h.txt").write_bytes(lines[:50_000] + b"\xff\n" + lines[:50_000])


def command(inputs: Path, out: Path, workers: int, *options: str) -> list[str]:
    start = [sys.executable, "-m", "data.prepare", "--tokenizer", str(demo.FOLDER), "--out", str(out)]
    return [*start, "--workers", str(workers), *(options or OPTIONS), str(inputs)]


def start(*arguments) -> subprocess.Popen:
    """In a session of its own, so that its workers are known by their group."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(*arguments), cwd=REPOSITORY, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    )


def run(*arguments) -> float:
    """To its end -> the seconds it took."""
    begun = time.monotonic()
    process = start(*arguments)
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    return time.monotonic() - begun


def group(leader: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


def wait_until_gone(leader: int, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while left := group(leader):
        assert time.monotonic() < until, f"processes {left} outlive the one that started them"
        time.sleep(0.005)


def kill(process: subprocess.Popen, alone: bool) -> None:
    """The whole group, or the first process alone; either way, all of them are gone afterwards."""
    if alone:
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    wait_until_gone(process.pid)
    process.communicate()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def differences(folder: Path, expected: dict[str, bytes]) -> list[str]:
    found = content(folder)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def torture(place: Path, kills: int, say=print, copies: int = 10, seed: int = 0) -> int:
    """-> how many files of finished runs were not as they should be."""
    chance = random.Random(seed)
    write_corpus(place / "corpus", copies)
    seconds = run(place / "corpus", place / "whole", 1)
    expected = content(place / "whole")
    say(f"{len(expected)} files, {sum(map(len, expected.values())) / 1e6:.1f} MB, in {seconds:.1f} s without a kill")
    killed = finished = wrong = 0
    while killed < kills or (place / "out").exists():
        process = start(place / "corpus", place / "out", chance.choice([1, 2, 2, 3]))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=chance.uniform(0, 1.2 * seconds) if killed < kills else None)
        if process.poll() is None:
            kill(process, alone=chance.random() < 0.3)
            killed += 1
            if killed % 20 == 0:
                say(f"{killed} kills, {finished} finished runs, {wrong} differences", flush=True)
            continue
        wait_until_gone(process.pid)
        finished += 1
        names = differences(place / "out", expected)
        if process.returncode or names:
            wrong += max(1, len(names))
            say(f"status {process.returncode}, differences: {', '.join(names)}", flush=True)
        shutil.rmtree(place / "out")
    say(f"{killed} kills, {finished} finished runs, {wrong} differences")
    return wrong


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.exit(torture(Path(place), int(sys.argv[1]) if len(sys.argv) > 1 else 200) > 0)
