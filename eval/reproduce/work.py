"""What the jobs of the command do: distil or pre-train a model and measure it, fine-tune it, time it."""

import json
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy
from numpy import ndarray

import train
from data.cli import parse_options
from data.outputs import make_folder, remove_tree
from model import MaskedLM
from model.checkpoints.load import load_teacher, load_tokenizer
from model.checkpoints.native import atomic_file, fingerprint
from model.training.device import Runtime, choose_device, choose_precision
from model.training.options import Options as TrainOptions
from model.training.run_state import BEST, FOLDER, METRICS, STUDENT

from ..results import write_json
from ..tasks.baselines import baseline_report
from ..tasks.bootstrap import bootstrap, ratio
from ..tasks.finetune import finetune
from ..tasks.table2 import Options as Table2Options
from ..tasks.table2 import finetune_settings, read_parts
from ..tasks.table2_speed import speeds
from .held_out import COLUMNS, HeldOut, count_by_block, predict, read_held_out

FIGURES, COUNTS, PREDICTIONS = "figures.json", "counts.npy", "predictions.npy"
SPEEDS, BASELINE, TRAINED, TIMING = "speed.json", "baseline.json", "trained.json", "timing.json"


class Measuring(NamedTuple):
    """The held-out text, and how models are run on it."""

    corpus: Path  # prepared
    tokenizer: str
    block_size: int
    blocks: int
    device: str
    precision: str
    teacher: str  # its folder in --out, for PREDICTIONS

    def open(self) -> tuple[HeldOut, Runtime]:
        tokenizer = load_tokenizer(self.tokenizer)
        device = choose_device(self.device)
        runtime = Runtime(device, choose_precision(self.precision, device))
        return read_held_out(self.corpus, tokenizer, self.block_size, self.blocks), runtime


# ---- masked LMs ------------------------------------------------------------------------------------------------


def run(arguments: Sequence[str]) -> tuple[TrainOptions, list[dict]]:
    """A run of train.py -> its options and the lines of METRICS.  A stopped one exits with its status."""
    options = parse_options(TrainOptions, [*arguments, "--wait"], "train.py", "")
    if status := train.train(options):
        sys.exit(status)
    lines = (Path(options.out) / METRICS).read_text(encoding="utf-8").splitlines()
    return options, [json.loads(line) for line in lines]


def save_array(path: Path, array: ndarray) -> None:
    """Writes atomically.  Raises ModelError if it cannot."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        numpy.save(file, array)


def time_training(arguments: Sequence[str], out: str) -> None:
    """A short run, to know the speed: TIMING, its seconds per token in its last half, and those beside its steps."""
    begun = time.monotonic()
    options, lines = run([*arguments, "--out", out])
    seconds = time.monotonic() - begun
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    per_token = 1 / statistics.median(speeds[len(speeds) // 2 :])
    tokens = options.steps * options.batch_size * options.accumulate * options.block_size
    overhead = max(0.0, seconds - tokens * per_token)
    write_json(Path(out) / TIMING, {"seconds_per_token": per_token, "overhead": overhead})


def pretrain(arguments: Sequence[str], out: str) -> None:
    """The teacher: a run of train.py by masked LM alone."""
    options, lines = run([*arguments, "--out", out])
    write_json(Path(out) / TRAINED, {"steps": options.steps, "seconds": seconds_of_steps(lines)})
    remove_tree(Path(out) / FOLDER)


def train_and_measure(arguments: Sequence[str], measuring: Measuring) -> None:
    """A run of train.py, and then what its student predicts on the held-out text: COUNTS and FIGURES in its folder."""
    options, lines = run(arguments)
    folder = Path(options.out)
    held_out, runtime = measuring.open()
    student = load_teacher(str(folder / STUDENT), MaskedLM, runtime.device)
    predictions = predict(student, held_out, runtime)
    teacher_tokens = numpy.load(Path(measuring.teacher) / PREDICTIONS)
    counts = count_by_block(held_out, predictions.tokens, teacher_tokens)
    save_array(folder / COUNTS, counts)
    tokens = options.batch_size * options.accumulate * options.block_size
    validations = [line for line in lines if "held_out" in line]
    curve = [[line["step"] * tokens, line["held_out"]["accuracy"]] for line in validations]
    masked, right, as_teacher, _ = counts.sum(axis=0)
    figures = {"seed": options.seed, "tokens": options.steps * tokens, "seconds": seconds_of_steps(lines)}
    figures |= {"accuracy": right / masked, "agreement": as_teacher / masked, "mlm_loss": predictions.mlm_loss}
    figures["command"] = f"python train.py {shlex.join(arguments)}"
    on_curve = validations[-1]["held_out"].get("teacher_accuracy")  # of a run with one, on the curve's blocks
    write_json(folder / FIGURES, {**figures, "curve": curve, "teacher_on_curve": on_curve})
    remove_tree(folder / FOLDER)  # the checkpoints, from which nothing goes on
    (folder / BEST).unlink(missing_ok=True)


def seconds_of_steps(lines: Sequence[Mapping]) -> float:
    """Of a run, also one that was resumed.  lines: of METRICS"""
    return sum(line["tokens"] / line["tokens_per_second"] for line in lines if line.get("tokens_per_second"))


def measure_teacher(path: str, measuring: Measuring) -> None:
    """What the teacher predicts on the held-out text: PREDICTIONS and FIGURES in its folder of --out."""
    folder = Path(measuring.teacher)
    folder.mkdir(parents=True, exist_ok=True)
    held_out, runtime = measuring.open()
    teacher = load_teacher(path, MaskedLM, runtime.device)
    weights = fingerprint(teacher)  # before they are rounded to the precision
    predictions = predict(teacher, held_out, runtime)
    save_array(folder / PREDICTIONS, predictions.tokens)
    counts = count_by_block(held_out, predictions.tokens, predictions.tokens)
    accuracy = bootstrap(counts, lambda sums: {"accuracy": ratio(sums[..., 1], sums[..., 0])})["accuracy"]
    about = {"blocks": held_out.blocks, "masked_tokens": len(held_out.labels), "runtime": runtime.to_json()}
    about |= {"config": asdict(teacher.config), "columns": COLUMNS, "weights": weights}
    write_json(folder / FIGURES, {"accuracy": accuracy, "mlm_loss": predictions.mlm_loss, **about})


# ---- the four tasks --------------------------------------------------------------------------------------------


def finetune_on_all(
    model: str, data_folder: str, folders: Mapping[str, str], options: Table2Options, command: str
) -> None:
    """Fine-tunes a model on each task, as table2 does, and tests it: FIGURES in the folder of each, {task: folder}.

    Beside the folders, once for all models: BASELINE, without a model.
    """
    for task, folder in folders.items():
        figures, baseline = Path(folder) / FIGURES, Path(folder).parent / BASELINE
        if not figures.exists():
            data = read_parts(task, Path(data_folder) / task, options)
            if not baseline.exists():
                make_folder(baseline.parent)
                write_json(baseline, baseline_report(data.parts["train"], data.parts["test"], options.language))
            result = finetune(task, finetune_settings(options, data, model, folder), command, data.parts)
            write_json(figures, result["runs"][0])


def time_on_all(pairs: Mapping[str, tuple[str, str]], data_folder: str, folder: str, options: Table2Options) -> None:
    """Of each task, {task: its fine-tuned teacher and student}: milliseconds per text and the student in int8, as
    SPEEDS in its folder."""
    for task, (teacher, student) in pairs.items():
        path = Path(folder) / task / SPEEDS
        if not path.exists():
            test = read_parts(task, Path(data_folder) / task, options).parts["test"]
            write_json(path, speeds(task, teacher, student, test, options))
