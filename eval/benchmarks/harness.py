"""Rows that are measured side by side: each in a process of its own, in turn, round by round; and their tables.

What else the machine does so falls on all of them alike.
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
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from data import OptionError
from model import EncoderConfig
from model.training.device import Runtime, choose_device

from ..results import command_line

LOG = Path(__file__).with_name("LOG.md")
HUGE_PAGES = (("THP_MEM_ALLOC_ENABLE", "1"),)  # what train.py sets for itself


def configs(small: bool) -> tuple[EncoderConfig, EncoderConfig]:
    """-> student, teacher."""
    if small:
        teacher = EncoderConfig(2, 64, 2, 128, 1005)
        return replace(teacher, num_layers=1), teacher
    return EncoderConfig.distilcamembert(), EncoderConfig.camembert()


# ---- a row and its process -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a process makes ready, and then runs again and again."""

    name: str
    make: Callable[..., Callable[[], None]]  # make(options, machine, *arguments) -> run
    precision: str
    arguments: tuple = ()
    environment: tuple[tuple[str, str], ...] = ()  # variables of its process
    compiled: bool = False


@dataclass
class Row:
    """What came of a job."""

    name: str
    first: float  # seconds of the first run, with compiling
    seconds: list[float]  # of the others
    peak: int  # bytes, the most that the process ever held
    extra: int  # bytes, the most above what it held before its first run


def work(connection, job: Job, options) -> None:
    """A job's process: makes ready, then runs whenever it is asked to, and answers with what it took.

    options: the command's; of theirs, threads and device are used here.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = choose_device(options.device)
    try:
        run = job.make(options, Runtime(device, job.precision, job.compiled), *job.arguments)
    except ImportError as error:
        connection.send(f"{error.name or error} is missing")
        return
    connection.send("ready")
    peak = peak_memory(device)
    before = forget_peak(device)
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # the end of the parent is the end of this
        while True:
            connection.recv()
            start = time.monotonic()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds, most = time.monotonic() - start, peak_memory(device)
            connection.send((seconds, max(peak, most), most - before))


def measure(jobs: Sequence[Job], options) -> list[Row]:
    """Each job in a process of its own; first runs, then options.repetitions rounds in which each runs once.

    Says what cannot run for a package that is missing.  Raises OptionError.
    """
    context = multiprocessing.get_context("spawn")
    rows, lines, started, processes = [], [], [], []
    try:
        for job in jobs:  # all are made ready at once, and run one at a time
            line, far_end = context.Pipe()
            process = context.Process(target=work, args=(far_end, job, options), daemon=True)
            with environment(job.environment):
                process.start()
            far_end.close()
            processes.append(process)
            started.append(line)
        for job, line in zip(jobs, started):
            if (answer := line.recv()) == "ready":
                lines.append(line)
                rows.append(Row(job.name, 0.0, [], 0, 0))
            else:
                print(f"note: no row for {job.name}: {answer}.")
        for row, line in zip(rows, lines):
            line.send("run")
            row.first = line.recv()[0]
        for _ in range(options.repetitions):
            for row, line in zip(rows, lines, strict=True):
                line.send("run")
                seconds, row.peak, row.extra = line.recv()
                row.seconds.append(seconds)
    except EOFError:
        raise OptionError("A process of the measurement died; there may be too little memory for it.") from None
    finally:
        for line in started:
            line.close()  # at which a process ends
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return rows


@contextlib.contextmanager
def environment(variables: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Processes started in here have these variables."""
    before = {name: os.environ.pop(name, None) for name in dict(HUGE_PAGES)}
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held since the peak was last forgotten."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_of_process("VmHWM")


def forget_peak(device: torch.device) -> int:
    """-> the bytes held now, from which the peak counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of_process("VmRSS")


def memory_of_process(key: str) -> int:
    """A line of Linux's /proc/self/status, in bytes."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


# ---- tables ----------------------------------------------------------------------------------------------------


def table(*rows: list[str]) -> str:
    """Markdown, the first row its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def ratio(numerator: Row, denominator: Row) -> float:
    """The median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True))


def heading(command: str, options, arguments: Sequence[str] | None) -> list[str]:
    """What a report begins with: the command, the machine, the versions; sets the number of threads.

    Raises OptionError for a device, or a memory, that cannot be measured.
    """
    device = choose_device(options.device)
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise OptionError("Memory of a process on the CPU is read from Linux's /proc, which this system lacks.")
    if options.threads:
        torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.runtime()
    return [
        f"## {date.today()}: {command_line(command, arguments)}",
        f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')}. Medians of "
        f"{options.repetitions} rounds, ratios round by round.",
    ]


def append_to(log: Path, report: Sequence[str]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n\n".join(report) + "\n")
    print(f"\nAppended to {log}.")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
