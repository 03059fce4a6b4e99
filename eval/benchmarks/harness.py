"""Benchmarks whose rows are measured in alternation, each in its own process, and the tables of the results.

Each round runs every row once, so that other load on the machine affects all rows alike.
"""

import contextlib
import gc
import importlib.metadata
import math
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import torch

from data.cli import OptionError, first_line
from data.outputs import open_to_append
from model import EncoderConfig
from model.training.device import Runtime, choose_device

from ..results import command_line

LOG = Path(__file__).parent.parent / "LOG.md"
Run = Callable[[], None]  # the function that a job measures
INSTRUCTIONS = "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "bf16", "i8mm"  # in /proc/cpuinfo
HUGE_PAGES = (("THP_MEM_ALLOC_ENABLE", "1"),)  # as train.py and eval set it


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


@dataclass
class Failure:
    """A job that could not be measured."""

    name: str
    reason: str
    missing_package: bool = False


class Worker(NamedTuple):
    """The process of a job, and this end of its connection."""

    job: Job
    process: SpawnProcess
    connection: Connection


def worker_process(connection: Connection, job: Job, options) -> None:
    """Answers each message of `rounds`, with a Failure for an exception, and goes on.

    ("make", sizes): makes the job's function -> None;  "run": runs it -> (seconds, peak, extra);  "free": forgets it.
    Uses the command's options threads and device.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    device, run, peak_before, before = choose_device(options.device), None, 0, 0
    runtime = Runtime(device, job.precision, job.compiled)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent has ended
        while True:
            answer = None
            try:
                match connection.recv():
                    case "run":
                        start = time.monotonic()
                        run()
                        synchronise(device)
                        seconds, peak = time.monotonic() - start, peak_memory(device)
                        answer = seconds, max(peak_before, peak), peak - before
                    case "free":
                        run = None
                        free_memory(device)
                    case ("make", sizes):
                        torch.manual_seed(0)
                        run = job.make(options, runtime, *job.arguments, *sizes)
                        peak_before, before = peak_memory(device), reset_peak(device)
            except EOFError:
                raise
            except ImportError as error:
                answer = Failure(job.name, f"{error.name or error} is not installed", missing_package=True)
            except Exception as error:  # the other jobs go on
                traceback.print_exc()
                answer = Failure(job.name, f"{type(error).__name__}: {first_line(error)}")
            connection.send(answer)


@contextlib.contextmanager
def started(jobs: Sequence[Job], options) -> Iterator[list[Worker]]:
    """The processes of the jobs, which start together."""
    context = multiprocessing.get_context("spawn")
    workers = []
    try:
        for job in jobs:
            connection, child = context.Pipe()
            process = context.Process(target=worker_process, args=(child, job, options), daemon=True)
            with environment(job.environment):
                process.start()
            child.close()
            workers.append(Worker(job, process, connection))
        yield workers
    finally:
        for worker in workers:
            worker.connection.close()  # ends the process
        for worker in workers:
            worker.process.join(timeout=10)
            worker.process.kill()


def tell(worker: Worker, message) -> None:
    with contextlib.suppress(OSError):  # if the process has died, `answer_of` says so
        worker.connection.send(message)


def answer_of(worker: Worker, deadline: float = math.inf):
    """The answer to a message; a Failure if the process has died, or is killed at the deadline (of time.monotonic)."""
    try:
        if worker.connection.poll(None if deadline == math.inf else max(0.0, deadline - time.monotonic())):
            return worker.connection.recv()
        worker.process.kill()
        return Failure(worker.job.name, "not ready in time")
    except (EOFError, OSError):
        return Failure(worker.job.name, "its process died, probably of too little memory")


def rounds(
    workers: Sequence[Worker], options, sizes: tuple = (), together: bool = True, seconds: float = math.inf
) -> list[Row | Failure]:
    """Each job's function is made with these further arguments; then, in each round, each runs once.

    The first round does not count, options.repetitions rounds follow. A job that fails takes part in no later round.
    together: the functions are made in parallel, else one after the other; seconds: limit for it, and for each run.
    """
    results: list[Row | Failure] = []
    deadline = time.monotonic() + seconds
    for worker in workers if together else ():
        tell(worker, ("make", sizes))
    for worker in workers:
        if not together:
            tell(worker, ("make", sizes))
        results.append(answer_of(worker, deadline) or Row(worker.job.name, 0.0, [], 0, 0))
    for _ in range(1 + options.repetitions):
        for i, (worker, row) in enumerate(zip(workers, results)):
            if isinstance(row, Row):
                tell(worker, "run")
                answer = answer_of(worker, time.monotonic() + seconds)
                if isinstance(answer, Failure):
                    results[i] = answer
                else:
                    time_taken, row.peak, row.extra = answer
                    row.seconds.append(time_taken)
    for worker, row in zip(workers, results):
        if isinstance(row, Row):
            row.first = row.seconds.pop(0)
        tell(worker, "free")
        answer_of(worker, time.monotonic() + seconds)
    return results


def measure(jobs: Sequence[Job], options) -> list[Row]:
    """Each job in its own process: first runs, then options.repetitions rounds in which each runs once.

    Skips a job that needs a package that is not installed, and says so.  Raises OptionError for another failure.
    """
    with started(jobs, options) as workers:
        results = rounds(workers, options)
    for failure in results:
        if isinstance(failure, Failure):
            if not failure.missing_package:
                raise OptionError(f"{failure.name} could not be measured: {failure.reason}. Choose smaller sizes.")
            print(f"note: skipped {failure.name}: {failure.reason}.")
    return [row for row in results if isinstance(row, Row)]


@contextlib.contextmanager
def environment(variables: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Environment variables for processes started inside; HUGE_PAGES only if given."""
    given = dict(variables)
    before = {name: os.environ.pop(name, None) for name in {*dict(HUGE_PAGES), *given}}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Gives what is no longer used back to the GPU, which other processes share."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


def table_on_screen(*rows: list[str]) -> str:
    """The same; on a terminal that is narrower than the table, a paragraph for each row."""
    text, (_, *names) = table(*rows), rows[0]
    if not sys.stdout.isatty() or text.index("\n") <= shutil.get_terminal_size().columns:
        return text
    width = max(map(len, names))
    return "\n\n".join(
        "\n".join([first, *(f"  {name:<{width}}  {cell}" for name, cell in zip(names, cells))])
        for first, *cells in rows[1:]
    )


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
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    others = ", ".join(f"{package} {installed_version(package)}" for package in ("transformers", "onnxruntime"))
    return [
        f"## {date.today()}: {command_line(command, arguments)}",
        f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {others}. Medians of {options.repetitions} "
        "rounds; ratios are medians of the ratios of each round.",
    ]


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, and its instructions for products in bf16 and int8, as Linux says it."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*: (.+)", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)", text, re.MULTILINE)
    found = [flag for flag in INSTRUCTIONS if flags and flag in flags[1].split()]
    return f"{name[1] if name else platform.machine()} ({', '.join(found) or 'no bf16 or int8 instructions known'})"


def installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def append_to_log(log: Path, report: Sequence[str]) -> None:
    with open_to_append(log) as file:
        file.write(("\n" + "\n\n".join(report) + "\n").encode())
    print(f"\nAppended to {log}.")
