"""The part `predict` of `speed.py`: `python -m eval predict sentiment`, from a file to JSON lines, against its model.

Three rows in alternation: the command on all lines; on one line, which is its start-up; and the model alone, in a
process of its own, on the same chunks already tokenised. The share is the model's time over the command's without the
start-up: what reading, tokenising, the answers and JSON leave of the model's own rate.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data.cli import warn
from data.tokenizer import Tokenizer
from data.versions import REPOSITORY
from model import Encoder, SequenceClassifier, save_model
from model.training.device import Runtime

from ..tasks.batching import infer_asked
from ..tasks.evaluate import InferenceOptions, open_model
from ..tasks.predict import Lines, open_lines, read_chunks
from .harness import Job, Row, Run, table

WHOLE, START_UP, MODEL = "predict", "predict, start-up", "the model alone"
SHARE, SHARE_AIM = 0.85, 0.95  # of the model's own rate
LABELS = 3


def write_inputs(student: Encoder, tokenizer: Tokenizer, lines: Sequence[str], count: int, folder: Path) -> None:
    """Writes `count` evenly spread lines, each several times if there are fewer; and a random classifier."""
    spread = [lines[i * len(lines) // count] for i in range(count)]
    for name, chosen in ((WHOLE, spread), (START_UP, spread[:1])):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8")
    model = SequenceClassifier(student.config, LABELS)
    model.encoder.load_state_dict(student.state_dict())
    for precision in ("fp32", "int8"):
        save_model(model, classifier(folder, precision), tokenizer=tokenizer, int8=precision == "int8")


def classifier(folder: Path, precision: str) -> Path:
    """The file of the classifier that is run in this precision."""
    return folder / f"classifier-{'int8' if precision == 'int8' else 'float'}.safetensors"


def command_row(options, runtime: Runtime, folder: Path, name: str) -> Run:
    """The command in a process of its own, with its answers in a file.  The run raises RuntimeError if it fails."""
    path = classifier(folder, runtime.precision)
    settings = {"precision": runtime.precision, "device": options.device, "batch-tokens": options.batch_tokens}
    words = [sys.executable, "-m", "eval", "predict", "sentiment", folder / f"{name}.txt", "--model", path]
    words += [f"--{key}={value}" for key, value in settings.items()]
    threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}

    def run() -> None:
        with (folder / f"{name}.jsonl").open("wb") as answers:
            process = subprocess.run(
                words, stdout=answers, stderr=subprocess.PIPE, cwd=REPOSITORY, env={**os.environ, **threads}
            )
        if process.returncode:
            raise RuntimeError(process.stderr.decode(errors="replace").strip().split("\n")[-1])

    return run


def model_row(options, runtime: Runtime, folder: Path) -> Run:
    """The model alone on the command's chunks."""
    settings = InferenceOptions(device=options.device, precision=runtime.precision)
    model, task, runtime = open_model(str(classifier(folder, runtime.precision)), "sentiment", settings)
    with open_lines(str(folder / f"{WHOLE}.txt")) as lines:
        chunks = [[example for _, example in chunk] for chunk in read_chunks(lines, "sentiment", Lines())]
    encoded = [task.encode(chunk, warn) for chunk in chunks]

    def run() -> None:
        for features in encoded:
            infer_asked(model, features, runtime, options.batch_tokens)

    return run


def predict_jobs(folder: Path, precision: str) -> list[Job]:
    """The three rows in a precision, of the files of write_inputs."""
    commands = [Job(name, command_row, precision, (folder, name)) for name in (WHOLE, START_UP)]
    return [*commands, Job(MODEL, model_row, precision, (folder,))]


def share_of_model(rows: dict[str, Row]) -> float:
    """The median over the rounds of the model's time over the command's without its start-up."""
    columns = (rows[name].seconds for name in (WHOLE, START_UP, MODEL))
    return statistics.median(model / (whole - start_up) for whole, start_up, model in zip(*columns, strict=True))


def predict_table(count: int, by_precision: dict[str, dict[str, Row]]) -> str:
    """A table of the rates in lines per second, and their ratio."""
    lines = [[f"predict sentiment, {count:,} lines", "rate", MODEL, "share", "start-up"]]
    for precision, rows in by_precision.items():
        whole, start_up, model = (statistics.median(rows[name].seconds) for name in (WHOLE, START_UP, MODEL))
        rates = (f"{count / seconds:,.0f} lines/s" for seconds in (whole - start_up, model))
        lines.append([precision, *rates, f"{share_of_model(rows):.1%}", f"{start_up:.2f} s"])
    return table(*lines)


def predict_verdicts(by_precision: dict[str, dict[str, Row]]) -> list[dict]:
    """The share that is to be reached in each precision; it counts as printed."""
    about = {"part": "predict", "row": WHOLE, "least": SHARE, "aim": SHARE_AIM}
    shares = {precision: share_of_model(rows) for precision, rows in by_precision.items()}
    return [
        {**about, "precision": precision, "share": share, "reached": round(share, 3) >= SHARE}
        for precision, share in shares.items()
    ]
