"""Table 2 of the paper: teacher and student, fine-tuned on the four tasks, and how fast they answer.

Without options: the demo's teacher, a student distilled from it now, the tasks of the demo's made-up world.

With --data, a folder that has one for each task (sentiment, ner, nli, qa; those that are missing are left out), and in
it files whose names say train, dev (or val, trial) or test. Where no file is for training, all are put together, and
a tenth each is taken for dev and test, by --split-seed (questions on one text stay together).

Killed and started again, it goes on after the last fine-tuning that was finished.
"""

import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import nn

import train
from data import DataError, demo
from data.cli import check, check_bounds, option, parse_options
from data.demo.tasks import write_tasks
from data.tasks import TASKS, Example, QuestionExample, read_task
from model.checkpoints.load import load_checkpoint
from model.checkpoints.native import atomic_file

from ..benchmarks.harness import table
from ..results import command_line, provenance, warn, write_json
from .baselines import baseline_report
from .batching import infer
from .evaluate import TASK_CLASSES, InferenceOptions, open_model, task_settings
from .finetune import Options as FinetuneOptions
from .finetune import finetune

MEASURES = {  # what is shown of each task
    "sentiment": ("accuracy", "macro_f1"),
    "ner": ("entity_f1", "subword_f1"),
    "nli": ("accuracy", "mcc"),
    "qa": ("exact_match", "f1", "inclusion"),
}
PUBLISHED = {  # teacher, student: of the released models' cards, by the paper's authors, in percent
    ("sentiment", "accuracy"): (95.69, 97.52),  # two classes, Allociné; the teacher is tblard/tf-allocine
    ("ner", "subword_f1"): (None, 98.18),  # over sub-words, O included
    ("nli", "accuracy"): (81.72, 77.45),
    ("qa", "exact_match"): (59.76, 25.66),
    ("qa", "f1"): (79.57, 62.65),
    ("qa", "inclusion"): (69.23, 59.82),
}
PUBLISHED_MS = {"ner": (88.49, 43.44), "nli": (105.0, 51.35), "qa": (432.17, 216.96)}
DEMO_COUNTS = {"sentiment": 3000, "ner": 2500, "nli": 5000, "qa": 2000}
DEMO_SETTINGS = {"epochs": 2, "lr": 3e-4, "dropout": 0.0}
TIMED_TEXTS, TIMED_ROUNDS = 40, 3
ROWS = ("teacher", "student", "distilled")


@dataclass(frozen=True)
class Options(InferenceOptions):
    """What is compared on what."""

    teacher: str = option("demo", "a masked LM", "what is compared", metavar="FILE")
    student: str | None = option(None, "its student, a masked LM (the demo distils its own)", metavar="FILE")
    data: str | None = option(None, "folder with the tasks' data, see above (default: the demo's)", metavar="FOLDER")
    out: str = option("runs/table2", "folder for the fine-tuned models, table2.md, table2.json", metavar="FOLDER")
    tasks: tuple[str, ...] = option(TASKS, "which tasks", nargs="+", choices=TASKS)
    distil: bool = option(True, "a third model: the student, taught the task by the fine-tuned teacher")
    limit: int | None = option(None, "examples of a task to train on, at most", type=int, least=1)
    split_seed: int = option(0, "of the split of data that come in one piece", least=0, most=2**62)
    epochs: int | None = option(None, "as in finetune; the demo has its own default", "fine-tuning", type=int, least=1,
                                most=10**4)  # fmt: skip
    step_tokens: int | None = option(None, "likewise", type=int, least=16, most=10**7)
    lr: float | None = option(None, "likewise", type=float, above=0, most=1e30)
    dropout: float | None = option(None, "likewise", type=float, least=0, below=1)
    seeds: tuple[int, ...] = option((0,), "as in finetune", nargs="+", type=int, least=0, most=2**62)

    def __post_init__(self):
        check_bounds(self)
        if self.teacher == "demo":
            check(self.student is None and self.data is None, "--student and --data go with --teacher.")
        else:
            check(self.student is not None and self.data is not None, "--teacher goes with --student and --data.")


# ---- data ------------------------------------------------------------------------------------------------------


def part_of(name: str) -> str:
    """train, dev, test or, where the name has no word that begins so, whole."""
    begins = {"train": "train", "dev": "dev", "val": "dev", "trial": "dev", "test": "test"}
    words = re.split(r"[^a-z]+", name.lower())
    return next((part for begin, part in begins.items() for word in words if word.startswith(begin)), "whole")


def find_files(folder: Path) -> dict[str, list[str]]:
    """The files of a task by what they are for.  Raises DataError if there is none."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith((".", "README", "LICEN")) and "_labels." not in path.name:
            found.setdefault(part_of(path.name), []).append(str(path))
    if not found:
        raise DataError(f"There is no file in {folder}.")
    return found


def split(examples: Sequence[Example], seed: int, shares: dict[str, float]) -> dict[str, list[Example]]:
    """At random, by the seed, what is not in the shares to train; questions on one context stay together."""
    groups: dict[object, list[Example]] = {}
    for number, example in enumerate(examples):
        key = example.context if isinstance(example, QuestionExample) else number
        groups.setdefault(key, []).append(example)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    parts: dict[str, list[Example]] = {}
    for part, share in shares.items():
        wanted, parts[part] = max(1, round(share * len(examples))), []
        while order and len(parts[part]) < wanted:
            parts[part] += order.pop()
    parts["train"] = [example for group in order for example in group]
    return parts


def read_parts(task: str, folder: Path, options: Options) -> tuple[dict[str, list[Example]], list[str]]:
    """train, dev and test, and the files they came from.  Raises DataError."""
    files = find_files(folder)
    names = [name for group in files.values() for name in group]
    read = {part: read_task(task, paths, warn) for part, paths in files.items()}
    if "train" not in read:
        parts = split([e for part in read.values() for e in part], options.split_seed, {"dev": 0.1, "test": 0.1})
    else:
        read["train"] += read.pop("whole", [])
        missing = {part: 0.1 for part in ("dev", "test") if part not in read}
        parts = read | (split(read["train"], options.split_seed, missing) if missing else {})
    if not parts["train"]:
        raise DataError(f"{folder} has too few examples: none is left to train on.")
    if options.limit and len(parts["train"]) > options.limit:
        parts["train"] = random.Random(options.split_seed).sample(parts["train"], options.limit)
    return parts, names


# ---- speed -----------------------------------------------------------------------------------------------------


def milliseconds(
    models: dict[str, nn.Module], texts: Sequence[list[int]], options: Options, runtime
) -> dict[str, float]:
    """Of a text, one by one, the median; the models take turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(TIMED_ROUNDS + 1):
        for name, model in models.items():
            for text in texts:
                start = time.perf_counter()
                infer(model, [text], runtime)
                if round_number:  # the first is to warm up
                    times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


# ---- the table -------------------------------------------------------------------------------------------------


def percent(figure: dict | None) -> str:
    if figure is None:
        return ""
    spread = "" if figure.get("deviation") is None else f" ± {100 * figure['deviation']:.1f}"
    return f"{100 * figure['mean']:.2f}{spread}"


def kept(student: float | None, teacher: float | None) -> str:
    return f"{student / teacher:.1%}" if student is not None and teacher else ""


def rows_of(task: str, result: dict) -> list[list[str]]:
    """A task's lines of the table."""
    lines = []
    for measure in MEASURES[task]:
        figures = {name: result[name]["over_seeds"]["test"][measure] for name in ROWS if name in result}
        means = {name: figure["mean"] for name, figure in figures.items()}
        theirs = PUBLISHED.get((task, measure), (None, None))
        lines.append([
            task, measure.replace("_", " "), f"{100 * result['baseline'][measure]['value']:.2f}",
            percent(figures["teacher"]), percent(figures["student"]), kept(means["student"], means["teacher"]),
            percent(figures.get("distilled")), kept(means.get("distilled"), means["teacher"]),
            *("" if value is None else f"{value:.2f}" for value in theirs), kept(theirs[1], theirs[0]),
        ])  # fmt: skip
    speed, theirs = result["milliseconds"], PUBLISHED_MS.get(task)
    lines.append([
        task, "ms a text", "", f"{speed['teacher']:.2f}", f"{speed['student']:.2f}",
        f"{speed['teacher'] / speed['student']:.2f} × faster", "", "",
        *([f"{theirs[0]:.2f}", f"{theirs[1]:.2f}", f"{theirs[0] / theirs[1]:.2f} × faster"] if theirs else [""] * 3),
    ])  # fmt: skip
    return lines


def markdown(results: dict[str, dict], about: dict) -> str:
    head = ["task", "measure (test)", "no model", "teacher", "student", "kept", "student, task distilled", "kept",
            "published teacher", "published student", "kept"]  # fmt: skip
    seeds = ", ".join(map(str, about["seeds"]))
    return (
        f"{table(head, *(line for task, result in results.items() for line in rows_of(task, result)))}\n\n"
        f"In percent; over the seeds {seeds}, mean ± deviation. No model: the majority label, no entity, the words "
        "with most of the question around them. Published: the released models' cards, by the paper's authors, on "
        "their own data (Allociné, WikiNER, XNLI, FQuAD and PIAF), to be read beside, not against.\n"
    )


def draw(results: dict[str, dict], path: Path) -> None:
    """A chart, where matplotlib is installed."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        print("no table2.png: pip install matplotlib", file=sys.stderr)
        return
    figure, axis = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    headlines = {task: TASK_CLASSES[task].headline for task in results}
    names = [f"{task}\n{headline.replace('_', ' ')}" for task, headline in headlines.items()]
    shown = [name for name in ROWS if all(name in result for result in results.values())]
    for place, name in enumerate(shown):
        figures = [results[task][name]["over_seeds"]["test"][headline] for task, headline in headlines.items()]
        heights, errors = [100 * f["mean"] for f in figures], [100 * (f["deviation"] or 0) for f in figures]
        at = [number + (place - len(shown) / 2 + 0.5) * 0.27 for number in range(len(results))]
        bars = axis.bar(at, heights, 0.25, yerr=errors, label=name.replace("distilled", "student, task distilled"))
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set(xticks=range(len(results)), xticklabels=names, ylabel="percent, test", ylim=(0, 112))
    axis.legend(ncols=3, loc="upper center", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


# ---- the command -----------------------------------------------------------------------------------------------


def demo_student(folder: Path) -> str:
    """Distilled now by train.py, unless it is there."""
    path = folder / "student" / "student.safetensors"
    if not path.exists():
        print("A student for the demo, by train.py:")
        train.train(train.Options(out=str(path.parent), cache=str(folder / "corpora"), log_every=50))
    return str(path)


def compare(
    task: str,
    parts: dict[str, list[Example]],
    files: tuple[str, ...],
    teacher: str,
    student: str,
    options: Options,
    command: str,
) -> dict:
    """A task's fine-tunings and its speed."""
    folder = Path(options.out) / task
    shared = {f.name: getattr(options, f.name) for f in fields(InferenceOptions)}
    own = DEMO_SETTINGS if options.teacher == "demo" else {}
    given = {name: getattr(options, name) for name in ("epochs", "step_tokens", "lr", "dropout", "seeds")}
    shared |= own | {name: value for name, value in given.items() if value is not None}
    print(f"\n--- {task}")
    base = FinetuneOptions(**shared, model=teacher, train=files, dev=files, out=str(folder / "teacher"))
    result = {"baseline": baseline_report(parts["train"], parts["test"], options.language)}
    result["teacher"] = finetune(task, base, command, parts)
    result["student"] = finetune(task, replace(base, model=student, out=str(folder / "student")), command, parts)
    tuned = str(folder / "teacher" / "model.safetensors")
    if options.distil:
        taught = replace(base, model=student, teacher=tuned, out=str(folder / "distilled"))
        result["distilled"] = finetune(task, taught, command, parts)
    models = {}
    for name in ("teacher", "student"):
        path = str(folder / name / "model.safetensors")
        models[name], reader, runtime = open_model(path, task, replace(options, tokenizer=None))
    items = reader.encode(parts["test"][:TIMED_TEXTS], lambda line: None)
    result["milliseconds"] = milliseconds(models, [item.ids for item in items[:TIMED_TEXTS]], options, runtime)
    return result


def main(arguments: list[str]) -> None:
    """The command.  Raises OptionError, DataError, ModelError, Diverged."""
    options = parse_options(
        Options, arguments, "python -m eval table2 [--teacher T --student S --data FOLDER]", __doc__
    )
    folder, command, start = Path(options.out), command_line("table2", arguments), time.monotonic()
    if options.teacher == "demo":
        teacher, student, data = str(demo.TEACHER), demo_student(folder), folder / "data"
        write_tasks(data, DEMO_COUNTS)
    else:
        teacher, student, data = options.teacher, options.student, Path(options.data)
    tasks = [task for task in options.tasks if (data / task).is_dir()]
    if not tasks:
        raise DataError(f"{data} has no folder {', '.join(options.tasks)}.")
    for path in (teacher, student):  # before anything is computed
        task_settings(options, path, load_checkpoint(path).config)
    results, files = {}, []
    for task in tasks:
        parts, names = read_parts(task, data / task, options)
        files += names
        results[task] = compare(task, parts, tuple(names), teacher, student, options, command)
        about = provenance(command, options, files, options.seeds)
        write_json(folder / "table2.json", {**about, "results": results})
    text = markdown(results, about)
    with atomic_file(folder / "table2.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}")
    draw(results, folder / "table2.png")
    print(f"Written: {folder / 'table2.md'} and table2.json, in {(time.monotonic() - start) / 60:.1f} minutes.")
