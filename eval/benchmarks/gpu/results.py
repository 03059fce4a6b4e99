"""What the parts of the GPU benchmark share: options, and results that are written as soon as they are measured."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data.cli import check, check_bounds, option
from data.outputs import open_to_append
from model.training.device import DEVICE_HELP

from ..harness import Failure, Row, Run, synchronise

PARTS = ("environment", "correctness", "demo", "step", "loss", "inference", "profile")
RECORDS = "results.jsonl"
CHECK = "check: "  # how the keys of checks begin
COMPILE_THREADS = (("TORCHINDUCTOR_COMPILE_THREADS", "4"),)  # of each process, since several compile in parallel
MAKE_SECONDS = 90  # for a row to compile and warm up
RESERVE = 5  # seconds before a part's deadline at which what it runs is stopped, so that it can report

PARTS_HELP = f"parts of the benchmark to run (default: {', '.join(PARTS)})"


@dataclass(frozen=True)
class Options:
    """Every option with its default."""

    out: str = option("runs/gpu", "folder for summary.md, results.jsonl and log.txt", "output", metavar="FOLDER")

    only: tuple[str, ...] = option(PARTS, PARTS_HELP, "benchmark", nargs="+", choices=PARTS, metavar="PART")
    repetitions: int = option(3, "rounds, of which the median is reported", least=1, most=1000)
    small: bool = option(False, "use tiny models and sizes, for a quick test of the command")

    device: str = option("auto", DEVICE_HELP, "device")
    threads: int = option(0, "CPU threads, 0: PyTorch's default", least=0, most=4096)

    def __post_init__(self):
        check_bounds(self)
        check(len(self.only) == len(set(self.only)), f"--only {' '.join(self.only)} has duplicates.")


@dataclass(frozen=True)
class Results:
    """Where a part writes what it has measured, and when it must have ended."""

    folder: Path
    part: str
    deadline: float  # of time.monotonic(), which is the same for all processes

    def write(self, key: str, text: str, **values) -> None:
        """A finished block of Markdown, which replaces the part's earlier one of this key, and the numbers in it."""
        self._append({"key": key, "text": text, **values})
        print(f"\n{text}", flush=True)

    def check(self, sentence: str, passed: bool) -> None:
        """A correctness check: a failed one determines the command's exit status."""
        self.write(f"{CHECK}{sentence}", f"- {sentence}: {'passed' if passed else 'FAILED'}", passed=passed)

    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def has_time_for(self, what: str, needed: float) -> bool:
        """Whether so many seconds are left; if not, the report says what is not measured."""
        if needed + RESERVE < self.seconds_left():
            return True
        self.write(f"left out: {what}", f"{what}: not measured: {self.seconds_left():.0f} s were left")
        return False

    def find(self, name: str):
        """The newest value of this name that any part has written, None without one."""
        found = [record[name] for record in read_records(self.folder) if name in record]
        return found[-1] if found else None

    def _append(self, values: dict) -> None:
        with open_to_append(self.folder / RECORDS) as file:
            file.write((json.dumps({"part": self.part, **values}, ensure_ascii=False) + "\n").encode())


def read_records(folder: Path) -> list[dict]:
    """All finished records; a part that was killed may have left half a line."""
    path, records = folder / RECORDS, []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def target(what: str, value: float, least: float = 0.0, most: float | None = None) -> str:
    """A list item: a measured ratio, what it should be, and whether it is."""
    aim, reached = (f"at least {least:g}", value >= least) if most is None else (f"at most {most:g}", value <= most)
    return f"- {what}: {value:.2f} (target: {aim}): {'reached' if reached else 'not reached'}"


def seconds_per_run(run: Callable[[], object], device: torch.device, least: float) -> float:
    """The median of three measurements of at least so many seconds each, after a run that does not count."""

    def measure(count: int) -> float:
        synchronise(device)
        start = time.monotonic()
        for _ in range(count):
            run()
        synchronise(device)
        return (time.monotonic() - start) / count

    run()
    count = max(1, round(least / max(measure(2), 1e-6)))
    return sorted(measure(count) for _ in range(3))[1]


# ---- rows ------------------------------------------------------------------------------------------------------


def repeat(run: Run, times: int) -> None:
    for _ in range(times):
        run()


def median(row: Row) -> float:
    return statistics.median(row.seconds)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def not_measured(name: str, failure: Failure, columns: int) -> list[str]:
    """A row of a table."""
    return [name, f"not measured: {failure.reason}", *[""] * (columns - 2)]


def records(rows: Mapping[object, Row | Failure]) -> list[dict]:
    """For results.jsonl: every measurement of each row, or why there is none."""
    return [{"row": key, **asdict(row)} for key, row in rows.items()]
