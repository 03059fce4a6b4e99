"""How many tokens each run gets, what the jobs are, and how long they are expected to take."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from data.cli import check, count, say
from model import EncoderConfig
from model.training.device import training_flops
from model.training.plan import time_text
from model.training.run_state import FOLDER as CHECKPOINTS
from model.training.run_state import STUDENT, list_checkpoints, step_of

from ..benchmarks.harness import table_on_screen
from ..tasks.finetune import Options as FinetuneOptions
from ..tasks.table2 import Options as Table2Options
from ..tasks.table2 import TaskData, finetune_settings
from ..validation import VALIDATION_BLOCKS
from . import work
from .jobs import Job
from .variants import FINE_TUNED, MAIN, PAPER, RANDOM, TEACHER, Variant

VALIDATIONS = 6  # of each run, for its curve, beside the first
VALIDATION_COST = 0.5  # of a token of validation, in tokens of training
START_SECONDS = 4.0  # of a process, with its imports
TEACHER_SHARE = 0.5  # of the time that can be shared out: for pre-training a teacher
TEACHER_TOKENS = 4  # times a student's, without a limit of time
MARGIN = 0.9  # of the minutes, for what is planned
REPORT_SECONDS = 25.0  # with what is needed to stop a job
TIMING_SECONDS = 8.0  # per task
TASKS_SHARE, MEASURING_SHARE = 0.25, 0.1  # likewise, at most: for fine-tuning, and on held-out text
LEAST_BLOCKS, LEAST_EXAMPLES = 64, 50
BLOCK = 128  # tokens, of a text for the cost of attention
CHARACTERS = 4  # of a token, roughly
SMALL_BATCHES = 1.5  # fine-tuning's products are smaller than those of distillation
LAUNCH_SECONDS = 0.01  # per layer and step of fine-tuning on a GPU, which waits for its host: 6 to 10 ms on an H200


class Sizes(NamedTuple):
    """What the cost of a run depends on."""

    teacher: EncoderConfig
    student: EncoderConfig
    block_size: int
    step_tokens: int
    masked: float

    def flops(self, kind: str) -> float:
        """Operations per token of: distilling; a student from random numbers; pre-training the teacher."""
        student, teacher = {
            "distil": (self.student, self.teacher),
            "random": (self.student, None),
            "teacher": (self.teacher, None),
        }[kind]
        return training_flops(student, teacher, self.block_size, self.masked)


class TaskSize(NamedTuple):
    """What the cost of fine-tuning on a task depends on."""

    examples: int  # of train
    tokens: dict[str, float]  # of each part, roughly

    @classmethod
    def of(cls, data: TaskData) -> "TaskSize":
        tokens = {part: len(json.dumps(examples)) / CHARACTERS for part, examples in data.parts.items()}
        return cls(len(data.parts["train"]), tokens)


class Speed(NamedTuple):
    """Of one process, beside as many others as will run at the same time, or alone."""

    flops: float  # per second
    overhead: float  # seconds of a run beside its steps, with two validations
    flops_alone: float

    def run(self, sizes: Sizes, kind: str, tokens: int) -> float:
        """Seconds of a run of train.py, with its validations.  kind: as of Sizes.flops; the teacher is trained alone"""
        tokens += VALIDATION_COST * (VALIDATIONS - 1) * VALIDATION_BLOCKS * sizes.block_size
        return self.overhead + tokens * sizes.flops(kind) / (self.flops_alone if kind == "teacher" else self.flops)

    def measuring(self, sizes: Sizes, config: EncoderConfig, blocks: int) -> float:
        flops = training_flops(config, None, sizes.block_size, sizes.masked) / 3
        return START_SECONDS + blocks * sizes.block_size * flops / self.flops

    def finetuning(
        self, config: EncoderConfig, task: TaskSize, settings: FinetuneOptions, limit: int | None, on_gpu: bool
    ) -> float:
        """Seconds of a fine-tuning with its evaluations."""
        share = min(1.0, limit / task.examples) if limit else 1.0
        tokens = settings.epochs * share * task.tokens["train"]
        passes = tokens + settings.epochs * task.tokens["dev"] / 3 + task.tokens["test"] / 3
        seconds = SMALL_BATCHES * passes * training_flops(config, None, BLOCK, 0.0) / self.flops
        return seconds + on_gpu * LAUNCH_SECONDS * config.num_layers * tokens / settings.step_tokens


def speed_of(alone: Mapping[str, float], together: Sequence[Mapping[str, float]], sizes: Sizes, kind: str) -> Speed:
    """Of what time_training found: of a run alone (of any, if no teacher is trained), and of runs beside others."""
    slowest = max(timing["seconds_per_token"] for timing in together)
    overhead = max(timing["overhead"] for timing in together)
    return Speed(sizes.flops(kind) / slowest, overhead, sizes.flops(kind) / alone["seconds_per_token"])


class Setup(NamedTuple):
    """What all jobs share."""

    out: Path
    device: torch.device
    is_demo: bool
    teacher: str  # path of the masked LM, which may still have to be pre-trained
    pretrained: tuple[str, ...]  # arguments of train.py that pre-train it; () if it is given
    measuring: work.Measuring
    variants: Sequence[Variant]
    seeds: tuple[int, ...]
    arguments: tuple[str, ...]  # of train.py, that all runs have
    lr: float  # of the runs with a teacher
    sizes: Sizes
    data: Sequence[TaskData]
    task_sizes: Sequence[TaskSize]  # of data
    data_folder: str
    finetuning: Table2Options | None  # options of fine-tuning, with data
    command: str  # of the shell, for the provenance


class Lengths(NamedTuple):
    """Chosen once for a folder, so that all runs in it can be compared."""

    tokens: int  # of each run
    teacher_tokens: int  # 0 if the teacher is given
    limit: int | None  # of training examples per task
    blocks: int  # held out, to measure on


def run_name(variant: str, seed: int) -> str:
    return f"{variant}-{seed}"


def make_jobs(setup: Setup, speed: Speed, lengths: Lengths) -> list[Job]:
    """In the order of their importance: if time is short, the last ones are not done."""
    sizes, folder = setup.sizes, Path(setup.measuring.teacher)
    jobs, needs = [], ()
    if setup.pretrained:
        steps = lengths.teacher_tokens // sizes.step_tokens
        arguments = [*setup.pretrained, *length(steps)]
        done = (folder / work.TRAINED,)
        seconds = speed.run(sizes, "teacher", tokens_left(folder, lengths.teacher_tokens, sizes))
        jobs.append(Job("teacher", work.pretrain, (arguments, str(folder)), done, seconds, alone=True))
        needs = ("teacher",)
    seconds = speed.measuring(sizes, sizes.teacher, lengths.blocks)
    what = setup.teacher, setup.measuring._replace(blocks=lengths.blocks)
    done = folder / work.FIGURES, folder / work.PREDICTIONS
    jobs.append(Job("teacher-held-out", work.measure_teacher, what, done, seconds, needs, alone=True))
    main = [variant for variant in setup.variants if variant.name in MAIN]
    others = [variant for variant in setup.variants if variant.name not in MAIN]
    jobs += [distillation(setup, speed, lengths, variant, seed) for seed in setup.seeds for variant in main]
    students = [variant.name for variant in main if variant.name in FINE_TUNED]
    if setup.data and students:
        models = [TEACHER, *students]
        jobs += [finetuning(setup, speed, lengths, model, seed) for seed in setup.seeds for model in models]
        jobs += [timing(setup)] if PAPER in models else []
    return jobs + [distillation(setup, speed, lengths, variant, seed) for seed in setup.seeds for variant in others]


def tokens_left(out: Path, tokens: int, sizes: Sizes) -> int:
    """Of a run, those after its last checkpoint: it may have been stopped."""
    checkpoints = list_checkpoints(out / CHECKPOINTS)
    return max(0, tokens - step_of(checkpoints[0]) * sizes.step_tokens) if checkpoints else tokens


def length(steps: int) -> list[str]:
    between = str(math.ceil(steps / VALIDATIONS))  # rounded up: rounded down, there is one more, just before the end
    return ["--steps", str(steps), "--log-every", "50", "--eval-every", between, "--checkpoint-every", between]


def distilling(setup: Setup) -> tuple[str, ...]:
    """The arguments of train.py with the teacher."""
    given = setup.is_demo and not setup.pretrained
    return "--teacher", "demo" if given else setup.teacher, "--lr", str(setup.lr), *setup.arguments


def distillation(setup: Setup, speed: Speed, lengths: Lengths, variant: Variant, seed: int) -> Job:
    name, sizes = run_name(variant.name, seed), setup.sizes
    out = setup.out / "runs" / name
    steps = lengths.tokens // sizes.step_tokens
    shared = setup.arguments if variant.name == RANDOM else distilling(setup)
    arguments = [*shared, *variant.arguments, *length(steps), "--seed", str(seed), "--out", str(out)]
    left = tokens_left(out, lengths.tokens, sizes)
    seconds = speed.run(sizes, "random" if variant.name == RANDOM else "distil", left)
    seconds += speed.measuring(sizes, sizes.student, lengths.blocks)
    what = arguments, setup.measuring._replace(blocks=lengths.blocks)
    done = out / work.FIGURES, out / work.COUNTS
    return Job(name, work.train_and_measure, what, done, seconds, ("teacher-held-out",))


def task_folder(setup: Setup, task: str, model: str, seed: int) -> Path:
    """Of a fine-tuned model."""
    return setup.out / "tasks" / task / run_name(model, seed)


def finetuning(setup: Setup, speed: Speed, lengths: Lengths, model: str, seed: int) -> Job:
    """Of a model on all tasks."""
    of_teacher = model == TEACHER
    config = setup.sizes.teacher if of_teacher else setup.sizes.student
    path = setup.teacher if of_teacher else str(setup.out / "runs" / run_name(model, seed) / STUDENT)
    folders = {data.task: str(task_folder(setup, data.task, model, seed)) for data in setup.data}
    options = replace(setup.finetuning, seeds=(seed,), limit=lengths.limit)
    what = path, setup.data_folder, folders, options, setup.command
    settings = [finetune_settings(options, data, path, folders[data.task]) for data in setup.data]
    on_gpu = setup.device.type == "cuda"
    seconds = START_SECONDS + sum(
        speed.finetuning(config, size, own, lengths.limit, on_gpu) for size, own in zip(setup.task_sizes, settings)
    )
    needs = ("teacher-held-out",) if of_teacher else (run_name(model, seed),)
    done = tuple(Path(folder) / work.FIGURES for folder in folders.values())
    return Job(f"tasks-{run_name(model, seed)}", work.finetune_on_all, what, done, seconds, needs)


def timing(setup: Setup) -> Job:
    """Of the first seed's models on all tasks."""
    seed, folder = setup.seeds[0], setup.out / "tasks"
    done = tuple(folder / data.task / work.SPEEDS for data in setup.data)
    pairs = {
        data.task: [str(task_folder(setup, data.task, model, seed) / "model.safetensors") for model in (TEACHER, PAPER)]
        for data in setup.data
    }
    what = pairs, setup.data_folder, str(folder), setup.finetuning
    needs = tuple(f"tasks-{run_name(model, seed)}" for model in (TEACHER, PAPER))
    seconds = START_SECONDS + TIMING_SECONDS * len(pairs)
    return Job("speed", work.time_on_all, what, done, seconds, needs, alone=True)


def seconds_of(jobs: Sequence[Job], number: int) -> float:
    """Of what is not done, so many at a time."""
    left = [job for job in jobs if not job.is_done()]
    alone = sum(job.seconds for job in left if job.alone)
    return alone + sum(job.seconds for job in left if not job.alone) / number


def choose_lengths(
    setup: Setup, speed: Speed, tokens: int, limit: int | None, seconds: float | None, number: int
) -> Lengths:
    """-> Lengths: of the tokens given, or, with seconds, so that all jobs fit in them, so many at a time.

    Raises OptionError if they do not.
    """
    step, blocks = setup.sizes.step_tokens, setup.measuring.blocks
    pretrains = bool(setup.pretrained)
    if seconds is None:
        teacher_tokens = rounded(TEACHER_TOKENS * tokens, step) if pretrains else 0
        return Lengths(rounded(tokens, step), teacher_tokens, limit, blocks)

    def cost(**changed) -> float:
        return seconds_of(make_jobs(setup, speed, least._replace(**changed)), number)

    least = Lengths(0, 0, min(limit or LEAST_EXAMPLES, LEAST_EXAMPLES), min(blocks, LEAST_BLOCKS))
    free = MARGIN * seconds - REPORT_SECONDS - cost()
    check(
        free > 0,
        f"--minutes is too little: {time_text(MARGIN * seconds - free)} are needed beside the steps of the runs. Give "
        "more, or fewer --seeds, --variants or --tasks.",
    )
    if (measuring := cost(blocks=blocks) - cost()) > MEASURING_SHARE * free:
        blocks = least.blocks + int((blocks - least.blocks) * MEASURING_SHARE * free / measuring)
    if (tuning := cost(limit=limit) - cost()) > TASKS_SHARE * free:
        most = limit or max(size.examples for size in setup.task_sizes)
        limit = least.limit + int((most - least.limit) * TASKS_SHARE * free / tuning)
    teacher_tokens = 0
    if pretrains:
        teacher_tokens = rounded(TEACHER_SHARE * free * speed.flops_alone / setup.sizes.flops("teacher"), step)
    free -= cost(teacher_tokens=teacher_tokens, limit=limit, blocks=blocks) - cost()
    tokens = free / (cost(tokens=10**6) - cost()) * 10**6
    return Lengths(rounded(tokens, step), teacher_tokens, limit, blocks)


def rounded(tokens: float, step: int) -> int:
    return max(1, round(tokens / step)) * step


def print_plan(setup: Setup, lengths: Lengths, jobs: Sequence[Job], number: int, threads: int) -> None:
    """What is left to do, and the time that it is expected to take."""
    groups: dict[str, list[Job]] = {}
    kinds = {
        work.pretrain: "pre-training of the teacher",
        work.measure_teacher: "the teacher on held-out text",
        work.train_and_measure: "distillation",
        work.finetune_on_all: "fine-tuning on the tasks",
        work.time_on_all: "speed on the tasks",
    }
    for job in jobs:
        groups.setdefault(kinds[job.run], []).append(job)
    rows = [["part", "jobs", "done", "expected for the rest"]]
    for kind, own in groups.items():
        done = sum(job.is_done() for job in own)
        at_once = 1 if own[0].alone else min(number, len(own) - done or 1)
        rows.append([kind, str(len(own)), str(done), time_text(seconds_of(own, at_once))])
    say(f"\nPlan, {number} at a time, {count(threads, 'thread')} each; {lengths.tokens:,} tokens for each student:")
    say(table_on_screen(*rows))
    say(f"About {time_text(seconds_of(jobs, number))} in all.\n")
