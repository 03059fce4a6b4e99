"""Benchmarks whose rows are measured in alternation, each in its own process, and the tables of the results.

Each round runs every row once, so that other load on the machine affects all rows alike.
"""

import contextlib
import importlib.metadata
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from data.cli import OptionError
from model import EncoderConfig
from model.training.device import Runtime, choose_device

from ..results import command_line

LOG = Path(__file__).parent.parent / "LOG.md"
Run = Callable[[], None]  # the function that a job measures
HUGE_PAGES = (("THP_MEM_ALLOC_ENABLE", "1"),)  # as train.py sets it


def configs(small: bool) -> tuple[EncoderConfig, EncoderConfig]:
    """-> student, teacher."""
    if small:
        return EncoderConfig(1, 64, 2, 128, 1005), EncoderConfig(2, 64, 2, 128, 1005)
    return EncoderConfig.distilcamembert(), EncoderConfig.camembert()


# ---- jobs and their processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A function to measure, which runs in its own process."""

    name: str
    make: Callable[..., Run]  # make(options, runtime, *arguments)
    precision: str
    arguments: tuple = ()
    environment: tuple[tuple[str, str], ...] = ()  # variables of its process
    compiled: bool = False


@dataclass
class Row:
    """The measurements of a job."""

    name: str
    first: float  # seconds of the first run, which may compile
    seconds: list[float]  # of the later runs
    peak: int  # bytes, peak memory of the process
    extra: int  # bytes, peak memory of the runs minus the memory before the first run


def worker(connection, job: Job, options) -> None:
    """The process of a job: makes its function, then runs it for each message and answers (seconds, peak, extra).

    Uses the command's options threads and device. Without a package that the job needs, it answers the reason.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = choose_device(options.device)
    try:
        run = job.make(options, Runtime(device, job.precision, job.compiled), *job.arguments)
    except ImportError as error:
        connection.send(f"{error.name or error} is not installed")
        return
    connection.send("ready")
    peak_before, before = peak_memory(device), reset_peak(device)
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # the parent has ended
        while True:
            connection.recv()
            start = time.monotonic()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds, peak = time.monotonic() - start, peak_memory(device)
            connection.send((seconds, max(peak_before, peak), peak - before))


def measure(jobs: Sequence[Job], options) -> list[Row]:
    """Each job in its own process: first runs, then options.repetitions rounds in which each runs once.

    Skips a job that needs a package that is not installed, and says so.  Raises OptionError if a process dies.
    """
    context = multiprocessing.get_context("spawn")
    rows, processes = [], []
    try:
        for job in jobs:  # they start together, but run one at a time
            connection, child = context.Pipe()
            process = context.Process(target=worker, args=(child, job, options), daemon=True)
            with environment(job.environment):
                process.start()
            child.close()
            processes.append((process, connection))
        for job, (_, connection) in zip(jobs, processes):
            if (answer := connection.recv()) == "ready":
                rows.append((Row(job.name, 0.0, [], 0, 0), connection))
            else:
                print(f"note: skipped {job.name}: {answer}.")
        for _ in range(1 + options.repetitions):
            for row, connection in rows:
                connection.send("run")
                seconds, row.peak, row.extra = connection.recv()
                row.seconds.append(seconds)
        for row, _ in rows:
            row.first = row.seconds.pop(0)
    except EOFError:
        raise OptionError("A benchmark process died, probably of too little memory. Choose smaller sizes.") from None
    finally:
        for process, connection in processes:
            connection.close()  # ends the process
            process.join(timeout=10)
            process.kill()
    return [row for row, _ in rows]


@contextlib.contextmanager
def environment(variables: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Environment variables for processes started inside; HUGE_PAGES only if given."""
    before = {name: os.environ.pop(name, None) for name in dict(HUGE_PAGES)}
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process since the last reset_peak, in bytes: allocated on the GPU, or resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_of_process("VmHWM")


def reset_peak(device: torch.device) -> int:
    """Resets the peak -> the memory of this process now, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of_process("VmRSS")


def memory_of_process(key: str) -> int:
    """A size in Linux's /proc/self/status, in bytes."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


# ---- tables ----------------------------------------------------------------------------------------------------


def table(*rows: list[str]) -> str:
    """A Markdown table; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def ratio(numerator: Row, denominator: Row) -> float:
    """The median over the rounds of the ratio of the two times."""
    return statistics.median(a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True))


def heading(command: str, options, arguments: Sequence[str] | None) -> list[str]:
    """The beginning of a report: command, machine, versions. Also sets the number of threads.

    Raises OptionError for a device that is not available or whose memory cannot be measured.
    """
    device = choose_device(options.device)
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise OptionError("On a CPU, memory is measured through Linux's /proc, which this system does not have.")
    if options.threads:
        torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    try:
        transformers = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        transformers = "not installed"
    return [
        f"## {date.today()}: {command_line(command, arguments)}",
        f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers}. Medians of "
        f"{options.repetitions} rounds; ratios are medians of the ratios of each round.",
    ]


def append_to_log(log: Path, report: Sequence[str]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n\n".join(report) + "\n")
    print(f"\nAppended to {log}.")
