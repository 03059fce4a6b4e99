"""Kills data.prepare at random moments and checks that the output has the same bytes as without kills.

    python -m tests.torture_prepare [KILLS]

Each run has one to three workers. A kill ends all of its processes, or only the main process, whose workers must end by
themselves. A run that finishes before its kill is compared with an uninterrupted one, and the next starts from nothing.
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
import tarfile
import tempfile
import textwrap
import time
import zipfile
from pathlib import Path

from data import demo
from tests.helpers import REPOSITORY

OPTIONS = ["--shard-tokens", "100000", "--duplicates-mb", "1", "--held-out", "0.1", "--min-tokens", "5"]


def write_corpus(folder: Path, copies: int) -> None:
    """Files of every form.  copies: size of the largest, in multiples of the demo's texts (1.9 MB)."""
    chance = random.Random(0)
    folder.mkdir(parents=True)
    texts = list(demo.texts())
    sentences = [sentence for text in texts for sentence in text.split(". ")]

    def shuffled(count: int) -> list[str]:
        """Texts of random sentences; one in twenty is a text of the demo, so that there are duplicates."""
        mixed = (". ".join(chance.sample(sentences, 6)) for _ in range(count))
        return [chance.choice(texts) if chance.random() < 0.05 else text for text in mixed]

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
    (folder / "i.json").write_text(json.dumps([{"text": text} for text in shuffled(2000)], indent=1))
    rows = "".join(f'{number},"{text}"\n' for number, text in enumerate(shuffled(2000)))
    (folder / "j.csv").write_text(f"id,text\n{rows}", encoding="utf-8")
    (folder / "k.txt").write_text("\n\n".join(map(textwrap.fill, shuffled(700))), encoding="utf-16")
    with zipfile.ZipFile(folder / "l.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("b.txt", "c.jsonl.gz", "k.txt"):
            archive.write(folder / name, name)
    with tarfile.open(folder / "m.tar.gz", "w:gz") as archive:
        for name in ("d.txt.xz", "h.txt", "i.json", "j.csv"):
            archive.add(folder / name, name)


def command(inputs: Path, out: Path, workers: int, *options: str) -> list[str]:
    start = [sys.executable, "-m", "data.prepare", "--tokenizer", str(demo.FOLDER), "--out", str(out)]
    return [*start, "--workers", str(workers), *(options or OPTIONS), str(inputs)]


def start(*arguments) -> subprocess.Popen:
    """In its own session, so that its workers can be found by their process group."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(*arguments), cwd=REPOSITORY, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    )


def run(*arguments) -> float:
    """Runs the command to its end -> seconds"""
    begun = time.monotonic()
    process = start(*arguments)
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    return time.monotonic() - begun


def group(leader: int) -> list[int]:
    """The running processes of a group."""
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
        assert time.monotonic() < until, f"processes {left} outlive their main process"
        time.sleep(0.005)


def kill(process: subprocess.Popen, alone: bool) -> None:
    """Kills the whole group, or the main process alone, and waits until all processes have ended."""
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


def torture(folder: Path, kills: int, copies: int = 10, seed: int = 0) -> int:
    """-> the number of wrong files in all finished runs"""
    chance = random.Random(seed)
    write_corpus(folder / "corpus", copies)
    seconds = run(folder / "corpus", folder / "whole", 1)
    expected = content(folder / "whole")
    print(f"{len(expected)} files, {sum(map(len, expected.values())) / 1e6:.1f} MB, in {seconds:.1f} s without a kill")
    killed = finished = wrong = 0
    while killed < kills or (folder / "out").exists():
        process = start(folder / "corpus", folder / "out", chance.choice([1, 2, 2, 3]))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=chance.uniform(0, 1.2 * seconds) if killed < kills else None)
        if process.poll() is None:
            kill(process, alone=chance.random() < 0.3)
            killed += 1
            if killed % 20 == 0:
                print(f"{killed} kills, {finished} finished runs, {wrong} differences", flush=True)
            continue
        wait_until_gone(process.pid)
        finished += 1
        names = differences(folder / "out", expected)
        if process.returncode or names:
            wrong += max(1, len(names))
            print(f"status {process.returncode}, differences: {', '.join(names)}", flush=True)
        shutil.rmtree(folder / "out")
    print(f"{killed} kills, {finished} finished runs, {wrong} differences")
    return wrong


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(torture(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 200) > 0)
