"""What a run would do, cost and write: the report of train.py --plan."""

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

from data.cli import MB

from ..config import count_parameters
from .distributed import World
from .run_state import BEST, FOLDER, METRICS, RUN, STUDENT

TIMED, BUDGET = 5, 60.0  # steps to time; seconds after which only two are
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

    def validations(self) -> int:
        """Their number: before the first step, in between, and at the end."""
        between = (self.last - 1) // self.eval_every - self.first // self.eval_every if self.eval_every else 0
        return (self.first == 0) + between + 1


def measure(step: Callable[[], object], validate: Callable[[], object], device: torch.device, world: World) -> Measured:
    """Times some steps, after one that compiles and allocates, and a validation.

    step: an optimiser step that has ended on the device when it returns. The ranks agree on the number of steps.
    """

    def seconds(call: Callable[[], object]) -> float:
        start = time.monotonic()
        call()
        return world.max(time.monotonic() - start)

    step()
    steps = [seconds(step), seconds(step)]
    while len(steps) < TIMED and sum(steps) < BUDGET:
        steps.append(seconds(step))
    return Measured(steps, seconds(validate), int(world.max(peak_memory(device))))


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's tensors, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def print_work(work: Work, measured: Measured, student: nn.Module, teacher: nn.Module | None) -> None:
    """Parameters, steps, speed and time."""
    steps, tokens = work.last - work.first, work.blocks * work.block_size
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
    validations = work.validations()
    seconds = [steps * each + validations * measured.validation for each in (median, low, high)]
    size, unit = (3600, "hours") if seconds[0] >= 3600 else (60, "minutes")
    expected, shortest, longest = (f"{each / size:,.3g}" for each in seconds)
    checks = f"{validations} validation{'s' * (validations > 1)} of {measured.validation:.1f} s"
    print_line("time", f"{expected} {unit} ({shortest} to {longest} at these speeds), with {checks}")


def print_corpus(work: Work, blocks: float | None, counted: str) -> None:
    """blocks: of the corpus, for training, None if unknown; counted: how, or what is known instead."""
    if blocks is None:
        print_line("epochs", f"unknown until the corpus is fetched and prepared: {counted}")
    else:
        epochs = f"{work.last * work.blocks / blocks:.3g} of {blocks:,.0f} blocks of {work.block_size} tokens"
        print_line("epochs", f"{epochs}, {counted}")


def print_files(out: Path, student: nn.Module, state: Iterable[Tensor], memory: int, every: int, keep: int) -> None:
    """state: the tensors of a checkpoint beside the student; every: steps between checkpoints, 0: only when stopped."""
    weights = size_of(student.state_dict().values())
    checkpoint = weights + size_of(state)
    more = f"{gigabytes(checkpoint)} of main memory more while a checkpoint is written"
    print_line("memory", f"{gigabytes(memory)} per rank at the peak of the timed steps, {more}")
    needed = (keep + 1) * checkpoint + 2 * weights
    free = shutil.disk_usage(next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())).free
    verdict = "free" if free > needed else "free, WHICH IS TOO LITTLE: make room, or choose another --out"
    print_line("disk", f"{gigabytes(needed)} at most; {gigabytes(free)} are {verdict}")
    when = f"every {every:,} steps" if every else "when the run is stopped"
    files = {
        f"{FOLDER}/step-N/": f"{when}, {gigabytes(checkpoint)} each; the last {keep} are kept",
        BEST: f"the student with the lowest validation loss, {gigabytes(weights)}",
        STUDENT: f"the student at the end, {gigabytes(weights)}",
        METRICS: f"losses and speed; {RUN}: options and hashes of the inputs",
    }
    print_line("writes", f"{out}/")
    for name, words in files.items():
        print_line("", f"  {name:<22}{words}")
    print("Nothing was trained or written. The same command without --plan starts the run.")


def print_line(name: str, words: str) -> None:
    print(f"  {name:<8}  {words}")


def gigabytes(size: float) -> str:
    return f"{size / GB:,.2f} GB" if size >= GB / 10 else f"{size / MB:,.1f} MB"
