"""Reproduces the paper: teacher, distillation and its variants, the four tasks, with a report of what came out.

python -m eval reproduce
    all of it on the demo's invented world, in less than 20 minutes on two cores
python -m eval reproduce --teacher camembert.safetensors --corpus texts/ --data tasks/ --tokens 2000000
    a real teacher; every student sees the same tokens in the same order
python -m eval reproduce --teacher none --tokenizer sentencepiece.bpe.model --corpus texts/ --data tasks/ --minutes 60
    first pre-trains a teacher, and chooses how many tokens to train on, so that all ends in an hour

The plan is printed first. Stopped and started again, the command goes on where it was; more --seeds or --variants with
the same --out extend it. It writes report.md and results.json after every finished job, and pictures at the end.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from data import demo
from data.blocks import open_blocks
from data.cache import DEMO, prepared_folder
from data.cli import OptionError, check, check_bounds, check_paths, count, dashed, option, parse_options, say
from data.corpus.files import check_corpus
from data.demo.tasks import write_tasks
from data.download.models import fetch_models
from data.locks import WAIT_HELP, own
from data.masking import TRAINING_RATE
from data.outputs import remove_tree, write_file
from data.tasks import TASKS
from data.tokenizer import FILE_NAME, Tokenizer
from model import EncoderConfig, MaskedLM
from model.checkpoints.load import TOKENIZER_HELP, check_vocabulary, load_checkpoint, load_tokenizer
from model.checkpoints.native import fingerprint
from model.student import choose_layers
from model.training.bounds import LR, SEED
from model.training.device import DEVICE_HELP, PRECISION_HELP, choose_device, choose_precision
from model.training.optim import default_lr
from model.training.options import DEMO_TEXT_STEPS, MAY_DIFFER, PER_HOST, STEPS
from model.training.options import Options as TrainOptions
from model.training.run_state import STUDENT, hash_json

from ..results import command_line, provenance, write_json
from ..tasks.table2 import DEMO_COUNTS, TaskData, finetune_settings, read_tasks
from ..tasks.table2 import Options as Table2Options
from . import work
from .collect import REPORT, RESULTS, input_files, write_report
from .jobs import FAILED, Job, Pool, run_jobs
from .plan import (
    REPORT_SECONDS,
    Lengths,
    Setup,
    Sizes,
    Speed,
    TaskSize,
    choose_lengths,
    distilling,
    make_jobs,
    print_plan,
    rounded,
    speed_of,
)
from .variants import NAMES, Variant, make_variants, random_start

PLAN = "plan.json"
DEMO_TOKENS, TOKENS = STEPS * TrainOptions.batch_size * TrainOptions.block_size, 2_000_000
SMALL = {**demo.STUDENT, "num_layers": 6}  # of a teacher that is pre-trained: the demo's size
TIMED_STEPS, TIMED_STEPS_GPU = (8, 1), (60, 10)  # and those between two lines; the first ones compile
TIMING_SECONDS = 30.0
MOST_AT_ONCE = 4  # runs on a CPU, unless --jobs says so
STORED_ELSEWHERE = (  # options that may differ when the command goes on, or that are compared by content
    *("out", "cache", "wait", "minutes", "tokens", "seeds", "variants", "tasks", "device", "jobs"),
    *("teacher", "tokenizer", "corpus", "data", "precision", "lr"),
)
TUNING = ("epochs", "step_tokens", "lr", "warmup", "weight_decay", "clip", "dropout")  # of finetune
VARIANTS_HELP = f"what to compare: {', '.join(NAMES)} (default: all)"
JOBS_HELP = f"processes at the same time (default: 1 on a GPU, else one per core, at most {MOST_AT_ONCE})"


@dataclass(frozen=True)
class Options:
    teacher: str = option(
        "demo", "masked LM: path, or owner/name; demo; none: pre-trained first", "input and output", metavar="MODEL"
    )
    tokenizer: str | None = option(None, TOKENIZER_HELP, metavar="PATH")
    corpus: tuple[str, ...] = option(DEMO, "prepared folder, text, hub:owner/dataset", nargs="+", metavar="PATH")
    cache: str = option("runs/corpora", "folder where text given as --corpus is prepared", metavar="FOLDER")
    data: str | None = option(
        None, "folder with one subfolder per task (default: the demo's; else none)", metavar="FOLDER"
    )
    out: str = option("runs/reproduce", "folder for the report, the runs and their models", metavar="FOLDER")
    wait: bool = option(False, WAIT_HELP)

    minutes: float | None = option(
        None, "time for all of it; chooses the tokens", "scale", type=float, least=1, most=1e6
    )
    tokens: int | None = option(
        None, f"for each student (default: {TOKENS:,}; demo: {DEMO_TOKENS:,})", type=int, least=1000, most=10**12
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "one run of each variant per seed", nargs="+", type=int, **SEED)
    variants: tuple[str, ...] = option(NAMES, VARIANTS_HELP, nargs="+", choices=NAMES, metavar="NAME")
    tasks: tuple[str, ...] = option(TASKS, "tasks to fine-tune on", nargs="+", choices=TASKS)
    blocks: int = option(8192, "held-out blocks to measure on, at most", least=1, most=10**6)
    small: bool = option(False, "with --teacher none: a teacher of the demo's size, as a test of the command")

    batch_size: int = option(8, "blocks per step", "training", least=1, most=10**6)
    lr: float | None = option(None, "peak learning rate (default: train.py's)", type=float, **LR)
    block_size: int = option(128, "tokens per block", least=3, most=10**5)
    limit: int | None = option(None, "maximum number of training examples per task", type=int, least=1, most=10**9)
    task_epochs: int | None = option(None, "epochs of fine-tuning (default: as table2)", type=int, least=1, most=10**4)
    task_lr: float | None = option(None, "peak learning rate of fine-tuning (default: as table2)", type=float, **LR)

    device: str = option("auto", DEVICE_HELP, "device")
    precision: str = option("auto", PRECISION_HELP, choices=("auto", "fp32", "bf16", "fp16"))
    jobs: int | None = option(None, JOBS_HELP, type=int, least=1, most=1000)

    def __post_init__(self):
        check_bounds(self)
        check(self.minutes is None or self.tokens is None, "--minutes chooses the tokens: give one of them.")
        for name in ("seeds", "variants", "tasks"):
            values = getattr(self, name)
            check(len(set(values)) == len(values), f"--{name} {' '.join(map(str, values))} has duplicates.")
        own_text = self.corpus != DEMO
        check(own_text or self.teacher in ("demo", "none"), "--corpus is missing: text to distil the teacher on.")
        check(not own_text or self.teacher != "demo", "--corpus needs --teacher: the demo's knows only its own world.")
        check(not own_text or self.teacher != "none" or self.tokenizer, "--teacher none needs --tokenizer.")
        check(own_text or self.tokenizer is None, "--tokenizer needs --corpus: the demo has its own.")
        check(not self.small or self.teacher == "none", "--small needs --teacher none: a given teacher has its size.")

    @property
    def is_demo(self) -> bool:
        return self.corpus == DEMO


def main(arguments: list[str]) -> int:
    """The command -> exit status.  Raises OptionError, DataError, ModelError."""
    begun = time.monotonic()
    options = parse_options(Options, arguments, "python -m eval reproduce [OPTIONS]", __doc__)
    options = fetch_models(options, "teacher", "tokenizer")
    check_paths(options, "data")
    if not options.is_demo:
        check_corpus(options.corpus)
    with own(Path(options.out), options.wait):
        return reproduce(options, command_line("reproduce", arguments), begun)


def reproduce(options: Options, command: str, begun: float) -> int:
    """The command in a locked folder.  begun: of time.monotonic()"""
    out, deadline = Path(options.out), begun + 60 * (options.minutes or math.inf)
    setup, identity = set_up(options, command)
    number = options.jobs or (1 if setup.device.type == "cuda" else min(os.cpu_count(), MOST_AT_ONCE))
    pool = Pool(number, torch.get_num_threads(), out / "logs", deadline - REPORT_SECONDS)
    tokens = options.tokens and rounded(options.tokens, setup.sizes.step_tokens)
    speed, lengths = stored_plan(out / PLAN, identity, tokens) or plan(setup, options, identity, pool, deadline)
    jobs = make_jobs(setup, speed, lengths)
    print_plan(setup, lengths, jobs, pool.number, pool.threads_each)
    update = partial(write_report, setup, provenance(command, options, input_files(setup), setup.seeds), lengths)
    lost = run_jobs(jobs, pool, update)
    print(f"\n{update(lost, pictures=True)}")
    print(f"Written: {out / REPORT} and {RESULTS}, in {(time.monotonic() - begun) / 60:.1f} minutes.")
    return int(any(reason.startswith(FAILED) for reason in lost.values()))


# ---- what all jobs share ---------------------------------------------------------------------------------------


def set_up(options: Options, command: str) -> tuple[Setup, dict]:
    """-> what the jobs share; the inputs that must stay the same.  Raises DataError, ModelError."""
    out, device = Path(options.out), choose_device(options.device)
    path = demo.TEACHER if options.teacher == "demo" else None if options.teacher == "none" else options.teacher
    tokenizer = load_tokenizer(options.tokenizer or (demo.FOLDER if options.is_demo else None), path)
    config, of_teacher = teacher_config(path, tokenizer, options)
    corpus = prepared_folder(options.corpus, tokenizer, options.cache)
    blocks, held_out = open_blocks(corpus, tokenizer, options.block_size)
    own_tokenizer = out / FILE_NAME  # also of a tokenizer inside a tarball, which only its model can be read from
    if not ((out / PLAN).exists() and own_tokenizer.exists()):  # else the plan says whether it is the same one
        write_file(own_tokenizer, tokenizer.content)
    folder, arguments = out / "teacher", training_arguments(options, own_tokenizer, device)
    teacher = str(path) if path else str(folder / STUDENT)
    data, data_folder, finetuning = read_data(options, teacher)
    identity = of_teacher | {"tokenizer": tokenizer.sha256(), "corpus": hash_json(blocks.hashes())}
    identity["precision"] = choose_precision(options.precision, device)
    identity |= identity_of_options(options, data, finetuning)
    student = replace(config, num_layers=len(choose_layers("alternate", config.num_layers)))
    lr = options.lr or default_lr(config.hidden_size, has_teacher=True)
    chosen = choose_variants(options.variants, config, options.lr)
    identity |= {"learning rate": lr} | {f"variant {each.name}": each.arguments for each in chosen}
    what = corpus, str(own_tokenizer), options.block_size, min(options.blocks, len(held_out))
    setup = Setup(
        out=out,
        device=device,
        is_demo=options.is_demo,
        teacher=teacher,
        pretrained=() if path else (*arguments, *random_start(config, options.lr)),
        measuring=work.Measuring(*what, options.device, options.precision, str(folder)),
        variants=chosen,
        seeds=options.seeds,
        arguments=arguments,
        lr=lr,
        sizes=Sizes(config, student, options.block_size, options.batch_size * options.block_size, TRAINING_RATE),
        data=data,
        task_sizes=[TaskSize.of(each) for each in data],
        data_folder=data_folder,
        finetuning=finetuning,
        command=command,
    )
    return setup, identity


def training_arguments(options: Options, tokenizer: Path, device: torch.device) -> tuple[str, ...]:
    """Of train.py, that all runs have."""
    found = ["--corpus", *options.corpus, "--cache", options.cache, "--device", options.device]
    found += [] if options.is_demo else ["--tokenizer", str(tokenizer)]
    found += ["--precision", options.precision, "--batch-size", str(options.batch_size)]
    found += ["--block-size", str(options.block_size), "--keep", "1"]
    return (*found, *(["--compile", "on"] if device.type == "cuda" else []))


def identity_of_options(options: Options, data: Sequence[TaskData], finetuning: Table2Options | None) -> dict:
    """What must stay the same: options, the defaults of train.py, and of each task its data and settings."""
    found = {name: value for name, value in asdict(options).items() if name not in STORED_ELSEWHERE}
    defaults = asdict(TrainOptions()).items()
    found |= {f"train.py {dashed(name)}": value for name, value in defaults if name not in (*PER_HOST, *MAY_DIFFER)}
    for each in data:
        settings = finetune_settings(finetuning, each, finetuning.teacher, options.out)
        found[f"data of {each.task}"] = hash_json(json.dumps(each.parts))
        found |= {f"{name} of {each.task}": getattr(settings, name) for name in TUNING}
    return found


def choose_variants(names: Sequence[str], teacher: EncoderConfig, lr: float | None) -> list[Variant]:
    """Says which of them such a teacher does not have.  Raises OptionError if it has none."""
    found = make_variants(teacher, lr)
    if lost := [name for name in names if name not in found]:
        say(f"With a teacher of {count(teacher.num_layers, 'layer')} there is no variant {', '.join(lost)}.")
    check(len(lost) < len(names), "--variants: name others, such as paper.")
    return [variant for name, variant in found.items() if name in names]


def teacher_config(path: str | Path | None, tokenizer: Tokenizer, options: Options) -> tuple[EncoderConfig, dict]:
    """-> the teacher's sizes, and what identifies it: its weights, None if it has yet to be pre-trained."""
    if path is None:
        sizes = SMALL if options.small or options.is_demo else {}
        config = EncoderConfig(**{**asdict(EncoderConfig.camembert()), **sizes, "vocab_size": len(tokenizer)})
        return config, {"teacher": None}
    model = load_checkpoint(path, kind=MaskedLM)
    check_vocabulary(model.config, tokenizer)
    longest = model.config.max_tokens
    check(options.block_size <= longest, f"--block-size {options.block_size} exceeds the model's {longest} tokens.")
    return model.config, {"teacher": fingerprint(model)}


def read_data(options: Options, teacher: str) -> tuple[list[TaskData], str, Table2Options | None]:
    """The examples of each task, their folder, the options of fine-tuning; none without --data, but for the demo."""
    shared = {"tasks": options.tasks, "limit": options.limit, "epochs": options.task_epochs, "lr": options.task_lr}
    shared |= {"device": options.device, "precision": options.precision, "tokenizer": options.tokenizer, "wait": True}
    if options.data is not None:
        settings = Table2Options(teacher=teacher, student=teacher, data=options.data, **shared)
        return read_tasks(Path(options.data), settings), options.data, settings
    if not options.is_demo:
        say("Without --data, nothing is fine-tuned: section 4 is left out.")
        return [], "", None
    folder, settings = Path(options.out) / "data", Table2Options(**shared)
    write_tasks(folder, DEMO_COUNTS)
    return read_tasks(folder, settings), str(folder), settings


# ---- the plan --------------------------------------------------------------------------------------------------


def stored_plan(path: Path, identity: dict, tokens: int | None) -> tuple[Speed, Lengths] | None:
    """The plan of an earlier start in this folder, to which the data of further tasks are added.

    tokens: those asked for.  Raises OptionError if it belongs to other inputs.
    """
    if not path.exists():
        lost = f"{path.parent} has runs, but no {path.name}, which says of what they are. Choose another --out."
        check(not (path.parent / "runs").exists(), lost)
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        known, speed, lengths = dict(stored["identity"]), Speed(**stored["speed"]), Lengths(**stored["lengths"])
    except (OSError, ValueError, KeyError, TypeError):
        raise OptionError(f"{path} is damaged or of another version. Choose another --out.") from None
    new = json.loads(json.dumps(identity))
    differing = [name for name, value in known.items() if new.get(name, value) != value]
    check(not differing, f"{path} belongs to other inputs ({', '.join(differing)}). Choose another --out.")
    others = f"{path} is of students that read {lengths.tokens:,} tokens. Choose another --out for other --tokens."
    check(tokens in (None, lengths.tokens), others)
    if new.keys() - known.keys():
        write_json(path, {**stored, "identity": known | new})
    return speed, lengths


def plan(setup: Setup, options: Options, identity: dict, pool: Pool, deadline: float) -> tuple[Speed, Lengths]:
    """Times a few steps, in as many processes as will run beside one another, and of a teacher also in one that is
    alone; chooses the tokens of each run."""
    most = math.inf
    if options.is_demo and setup.pretrained:
        most = DEMO_TEXT_STEPS * setup.sizes.step_tokens  # which train.py allows on the demo's text
    tokens = options.tokens or min(DEMO_TOKENS if options.is_demo else TOKENS, most)
    limit = f"--tokens {tokens:,} are too many for the demo's text: at most {most:,}. Name a corpus with --corpus."
    check(tokens <= most, limit)
    say("Timing a few steps …")
    folder, kind = setup.out / "timing", "teacher" if setup.pretrained else "distil"
    remove_tree(folder)  # of a start that was killed, perhaps with other options
    on_gpu = setup.device.type == "cuda"
    steps, between = TIMED_STEPS_GPU if on_gpu else TIMED_STEPS
    arguments = *(setup.pretrained or distilling(setup)), "--steps", str(steps), "--log-every", str(between)

    def timed(name: str, alone: bool) -> Job:
        done = (folder / name / work.TIMING,)
        return Job(name, work.time_training, (arguments, str(folder / name)), done, TIMING_SECONDS, alone=alone)

    # the teacher is pre-trained alone; on a GPU the first one also fills the compiler's cache, as the runs will find it
    jobs = [timed("alone", True)] if on_gpu or setup.pretrained or pool.number == 1 else []
    jobs += [timed(f"timing-{index}", False) for index in range(pool.number)] if on_gpu or pool.number > 1 else []
    lost = run_jobs(jobs, pool)
    check(not lost, "The timing of a step did not succeed: " + "; ".join(lost.values()))
    timings = [json.loads(job.done[0].read_text(encoding="utf-8")) for job in jobs]
    speed = speed_of(timings[0], timings[-pool.number :], setup.sizes, kind)
    seconds = None if options.minutes is None else deadline - time.monotonic()
    lengths = choose_lengths(setup, speed, tokens, options.limit, seconds, pool.number)
    lengths = lengths._replace(tokens=min(lengths.tokens, most))
    write_json(setup.out / PLAN, {"identity": identity, "speed": speed._asdict(), "lengths": lengths._asdict()})
    remove_tree(folder)
    return speed, lengths
