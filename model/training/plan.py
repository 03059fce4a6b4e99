"""What a run would do, cost and write: the report of train.py --plan."""

import contextlib
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.cli import MB, count, say

from ..config import count_parameters
from .device import Runtime
from .distributed import World
from .run_state import BEST, FOLDER, METRICS, RUN, STUDENT

TIMED, BUDGET = 5, 60.0  # steps to time; seconds after which only two are
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
SLOW = 2.0  # seconds
GB = 1e9


class Measured(NamedTuple):
    """Of one rank: the slowest and the largest."""

    steps: list[float]  # seconds of each timed step
    validation: float  # seconds
    memory: int  # bytes at the peak: of its GPU, else of its process


class Work(NamedTuple):
    """What the run consists of, in optimiser steps."""

    first: int  # done already
    last: int
    blocks: int  # per step, over all ranks
    block_size: int
    eval_every: int  # between validations; 0: only at the end

    @property
    def tokens(self) -> int:
        """Per step."""
        return self.blocks * self.block_size

    def validations(self) -> int:
        """Their number: before the first step, in between, and at the end."""
        if self.first == self.last:
            return 0
        between = (self.last - 1) // self.eval_every - self.first // self.eval_every if self.eval_every else 0
        return (self.first == 0) + between + 1

    def seconds(self, step: float, validation: float) -> float:
        """Of the steps and validations that are left; step, validation: the seconds of one."""
        return (self.last - self.first) * step + self.validations() * validation


class Disk(NamedTuple):
    """What a run writes at most, and how much room there is, in bytes."""

    weights: int  # of one student
    checkpoint: int
    needed: int
    free: int

    @classmethod
    def of(cls, out: Path, distiller: nn.Module, keep: int) -> "Disk":
        """keep: checkpoints. AdamW's two moments are as large as what is trained: the student and its projection."""
        weights, trained = size_of(distiller.student.state_dict().values()), size_of(distiller.parameters())
        checkpoint = 3 * trained
        place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        return cls(weights, checkpoint, (keep + 1) * checkpoint + 2 * weights, shutil.disk_usage(place).free)


def measure(step: Callable[[], object], validate: Callable[[], object], runtime: Runtime, world: World) -> Measured:
    """Times some steps, after one that compiles and allocates and one that records CUDA graphs, and a validation.

    step: an optimiser step that has ended on the device when it returns. The ranks agree on the number of steps.
    """

    for _ in range(1 + runtime.uses_graphs):
        step()
    steps = [seconds_of(step, world), seconds_of(step, world)]
    while len(steps) < TIMED and sum(steps) < BUDGET:
        steps.append(seconds_of(step, world))
    return Measured(steps, seconds_of(validate, world), int(world.max(peak_memory(runtime.device))))


def seconds_of(call: Callable[[], object], world: World) -> float:
    """Of the slowest rank."""
    start = time.monotonic()
    call()
    return world.max(time.monotonic() - start)


def time_step(micro_batch: Callable[[], object], number: int, runtime: Runtime, world: World) -> float:
    """Expected seconds of an optimiser step with this number of micro-batches on each rank.

    micro_batch: the gradient of one. It runs twice, and the second time counts, unless nothing is compiled and the
    first is so slow that its allocations hardly matter. With CUDA graphs, which are recorded in between, three times.
    """
    seconds = seconds_of(micro_batch, world)
    if runtime.compiled:
        say(f"compiled  the first gradient took {seconds:.0f} s")
    if runtime.uses_graphs:
        micro_batch()
    if seconds < SLOW or runtime.compiled:
        seconds = seconds_of(micro_batch, world)
    return number * seconds


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's tensors, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_size(device: torch.device) -> int:
    """Bytes for all ranks of this machine: of the GPU, else of main memory or of the container's share of it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            sizes.append(int(Path(path).read_text()))
    return min(sizes)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def print_work(work: Work, measured: Measured, student: nn.Module, teacher: nn.Module | None) -> None:
    """Parameters, steps, speed and time."""
    steps, tokens = work.last - work.first, work.tokens
    print("\nThe plan of this run:")
    for name, model in {"student": student, "teacher": teacher}.items():
        if model is not None:
            total, encoder = sum(each.numel() for each in model.parameters()), count_parameters(model.config)
            print_line(name, f"{total:,} parameters; the encoder's {encoder:,} are equation (9)")
    done = f", after the {work.first:,} that are done" if work.first else ""
    print_line("steps", f"{steps:,} of {tokens:,} tokens{done}: {steps * tokens:,} tokens")
    median, low, high = statistics.median(measured.steps), min(measured.steps), max(measured.steps)
    speeds = f"{tokens / high:,.0f} to {tokens / low:,.0f} in {len(measured.steps)} timed steps"
    print_line("speed", f"{tokens / median:,.0f} tokens/s ({speeds})")
    expected, shortest, longest = (work.seconds(each, measured.validation) for each in (median, low, high))
    checks = f"{count(work.validations(), 'validation')} of {measured.validation:.1f} s"
    at_these = f"({time_text(shortest)} to {time_text(longest)} at these speeds)"
    print_line("time", f"{time_text(expected)} {at_these}, with {checks}")


def print_memory(peak: int, checkpoint: int, size: int, on_gpu: bool, ranks: int) -> None:
    """peak: of one rank; checkpoint: of its copy in main memory; size: of what all ranks of this machine share."""
    needed = peak if on_gpu else peak * ranks + checkpoint  # each rank on a GPU has its own
    more = f"{gigabytes(checkpoint)} of main memory more while a checkpoint is written"
    verdict = "" if needed < size else ", WHICH IS TOO LITTLE: use a smaller --batch-size, a larger --accumulate"
    where = "the GPU" if on_gpu else "this machine"
    each = " per rank" if ranks > 1 else ""
    words = f"{gigabytes(peak)}{each} at the peak of the timed steps, {more}"
    print_line("memory", f"{words}; {where} has {gigabytes(size)}{verdict}")


def print_files(out: Path, disk: Disk, every: int, keep: int) -> None:
    """every: steps between checkpoints, 0: only when stopped."""
    room = disk.free > disk.needed
    verdict = "free" if room else "free, WHICH IS TOO LITTLE: make room, or choose another --out"
    print_line("disk", f"{gigabytes(disk.needed)} at most; {gigabytes(disk.free)} are {verdict}")
    when = f"every {every:,} steps" if every else "when the run is stopped"
    files = {
        f"{FOLDER}/step-N/": f"{when}, {gigabytes(disk.checkpoint)} each; the last {keep} are kept",
        BEST: f"the student with the lowest validation loss, {gigabytes(disk.weights)}",
        STUDENT: f"the student at the end, {gigabytes(disk.weights)}",
        METRICS: f"losses and speed; {RUN}: options and hashes of the inputs",
    }
    print_line("writes", f"{out}/")
    for name, words in files.items():
        print_line("", f"  {name:<22}{words}")
    print("Nothing was trained or written. The same command without --plan starts the run.")


def print_line(name: str, words: str) -> None:
    print(f"  {name:<8}  {words}")


def time_text(seconds: float) -> str:
    if seconds < 60:
        return count(round(seconds), "second")
    if seconds < 3600:
        return f"{seconds / 60:.3g} minutes"
    hours = seconds / 3600
    return f"{hours:.3g} hours" if hours < 100 else f"{hours:,.0f} hours"


def gigabytes(size: float) -> str:
    """Or megabytes, or kilobytes."""
    if size < MB / 10:
        return f"{size / 1e3:,.1f} kB"
    return f"{size / GB:,.2f} GB" if size >= GB / 10 else f"{size / MB:,.1f} MB"
