"""Table 2 of the paper: fine-tunes teacher and student on the four tasks and compares their metrics and their speed.

Without options it runs on the demo: its teacher, a student that is distilled first, and generated examples.

For real models, give --teacher, --student and --data: a folder with a subfolder for each task (sentiment, ner, nli,
qa; missing ones are skipped). Below it, one of the words train, dev (validation, trial) and test in the name of each
file or of its folder says what the file is for; which file was taken for what is printed first. A missing dev or test
is drawn from train, a tenth of it at random, the questions on one context together. If no name has such a word, all
files of the task are joined and divided so. data/README.md has the formats.

If the command is stopped, running it again continues after the last fine-tuning that was finished.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import train
from data import demo
from data.cli import DataError, check, check_bounds, check_paths, option, parse_options, say, warn
from data.corpus.files import files_below
from data.demo.tasks import write_tasks
from data.download.models import fetch_models
from data.locks import WAIT_HELP, own
from data.outputs import check_folder, make_folder
from data.tasks import TASKS, Example, QuestionExample
from data.tasks.contents import is_about, open_member
from data.tasks.parts import PARTS, in_other_languages, parts_of_files
from data.tasks.read import read_file
from data.tasks.sequences import Labels
from model.checkpoints.load import load_checkpoint
from model.checkpoints.native import atomic_file
from model.training.bounds import DROPOUT, LR, SEED
from model.training.options import Options as TrainOptions

from ..benchmarks.harness import table
from ..results import command_line, provenance, write_json
from .baselines import baseline_report
from .checks import warn_of_shared_examples
from .evaluate import InferenceOptions, task_settings, training_names
from .finetune import Options as FinetuneOptions
from .finetune import finetune
from .table2_chart import draw
from .table2_speed import speeds

MEASURES = {  # rows of the table for each task
    "sentiment": ("accuracy", "macro_f1"),
    "ner": ("entity_f1", "overlap_f1", "subword_f1"),
    "nli": ("accuracy", "macro_f1", "mcc"),
    "qa": ("exact_match", "f1", "inclusion"),
}
PAPER = {  # Table 2 of the paper, F1 in percent: CamemBERT, DistilCamemBERT
    ("sentiment", "macro_f1"): (95.74, 97.57),
    ("ner", "overlap_f1"): (88.93, 89.12),
    ("nli", "macro_f1"): (81.68, 77.48),
    ("qa", "f1"): (79.57, 62.65),
}
PAPER_SPEED_UP = (1, 2)
CARDS = {  # the released models' cards, by the paper's authors, in percent: CamemBERT, DistilCamemBERT
    ("sentiment", "accuracy"): (95.69, 97.52),  # two classes, Allociné; the CamemBERT is tblard/tf-allocine
    ("ner", "subword_f1"): (None, 98.18),  # with O
    ("nli", "accuracy"): (81.72, 77.45),
    ("qa", "exact_match"): (59.76, 25.66),
    ("qa", "f1"): (79.57, 62.65),
    ("qa", "inclusion"): (69.23, 59.82),
}
CARDS_MILLISECONDS = {"ner": (88.49, 43.44), "nli": (105.0, 51.35), "qa": (432.17, 216.96)}
DEMO_COUNTS = {"sentiment": 5000, "ner": 5000, "nli": 7000, "qa": 8000}
DEMO_SETTINGS = {"epochs": 1, "lr": 3e-4, "dropout": 0.0}
DEMO_LR = {"nli": 4e-4, "qa": 1e-3}  # where it is another: at 4e-4 the teacher hardly learns the questions
TASK_NAMES_HELP = "label or entity type in a task's data = its name: nli:0=entailment nli:1=neutral"
MODELS = ("teacher", "student", "distilled")


def finetune_help(name: str) -> str:
    """The help of an option of finetune, with its default and the demo's."""
    field = FinetuneOptions.__dataclass_fields__[name]
    text = field.metadata["help"] + ("" if field.default is None else f" (default: {field.default})")
    others = "".join(f", {task} {lr}" for task, lr in DEMO_LR.items()) if name == "lr" else ""
    return f"{text[:-1]}; demo: {DEMO_SETTINGS[name]}{others})" if name in DEMO_SETTINGS else text


@dataclass(frozen=True)
class Options(InferenceOptions):
    teacher: str = option("demo", "masked LM: path, or owner/name on the hub", "input and output", metavar="MODEL")
    student: str | None = option(None, "masked LM distilled from it (default: the demo's)", metavar="MODEL")
    data: str | None = option(None, "folder with one subfolder per task (default: the demo's)", metavar="FOLDER")
    out: str = option("runs/table2", "folder for the table, its chart and the fine-tuned models", metavar="FOLDER")
    wait: bool = option(False, WAIT_HELP)
    tasks: tuple[str, ...] = option(TASKS, "tasks to compare on", nargs="+", choices=TASKS)
    distil: bool = option(True, "also fine-tune the student with task distillation ")
    limit: int | None = option(None, "maximum number of training examples per task", type=int, least=1, most=10**9)
    label_map: tuple[str, ...] = option((), TASK_NAMES_HELP, nargs="+", metavar="TASK:DATA=NAME")
    split_seed: int = option(0, "of the random split and of --limit's sample", **SEED)

    epochs: int | None = option(None, finetune_help("epochs"), "fine-tuning", type=int, least=1, most=10**4)
    step_tokens: int | None = option(None, finetune_help("step_tokens"), type=int, least=16, most=10**7)
    lr: float | None = option(None, finetune_help("lr"), type=float, **LR)
    dropout: float | None = option(None, finetune_help("dropout"), type=float, **DROPOUT)
    seeds: tuple[int, ...] = option((0,), "one fine-tuning per seed", nargs="+", type=int, **SEED)

    def __post_init__(self):
        check_bounds(self)
        for pair in self.label_map:
            named = pair.partition(":")[0] in TASKS[:3]
            check(
                named, f"--label-map {pair!r} must begin with its task: {', '.join(TASKS[:3])}, as in nli:0=entailment."
            )
        if self.teacher == "demo":
            check(self.student is None and self.data is None, "--student and --data need --teacher.")
        else:
            check(self.student is not None and self.data is not None, "--teacher needs --student and --data.")


class TaskData(NamedTuple):
    """A task's examples of train, dev and test, and the files they were read from."""

    task: str
    parts: dict[str, list[Example]]
    files: tuple[str, ...]


# ---- data ------------------------------------------------------------------------------------------------------


def find_files(folder: Path) -> dict[str, str | None]:
    """{file: its part by the words of its path below the folder}; None for all if there are no such words.

    Raises DataError without files, or if it is not clear what a file is for.
    """
    files = (path for path in sorted(files_below(folder)) if path.is_file())
    below = {path: path.relative_to(folder).as_posix() for path in files}
    paths = [path for path, name in below.items() if not is_about(name)]
    labels = {
        path.with_name(path.name.replace("_text.txt", "_labels.txt")) for path in paths if "_text.txt" in path.name
    }
    names = {}
    for path in map(str, (path for path in paths if path not in labels)):
        with open_member(path) as member:  # of an archive, its only file also has a name
            names[path] = member.name.removeprefix(str(folder)).strip("/")
    if not names:
        raise DataError(f"There is no file in {folder}.")
    parts = parts_of_files(str(folder), names.values())
    if others := in_other_languages(names.values()):
        warn(f"{folder}: {others[0]} and {len(others) - 1} other files seem to be in other languages. Move them out.")
    return {path: parts[name] for path, name in names.items()}


def split(examples: Sequence[Example], seed: int, fractions: dict[str, float]) -> dict[str, list[Example]]:
    """A random split: a fraction of the examples for each part, at least one, and the rest for train.

    Questions on one context stay together.
    """
    groups: dict[object, list[Example]] = {}
    for index, example in enumerate(examples):
        key = example.context if isinstance(example, QuestionExample) else index
        groups.setdefault(key, []).append(example)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    parts: dict[str, list[Example]] = {}
    for part, fraction in fractions.items():
        wanted, parts[part] = max(1, round(fraction * len(examples))), []
        while order and len(parts[part]) < wanted:
            parts[part] += order.pop()
    parts["train"] = [example for group in order for example in group]
    return parts


def read_parts(task: str, folder: Path, options: Options) -> TaskData:
    """Reads all files and prints what each was taken for; a missing dev or test is drawn from train.

    A file with the same examples as another (XNLI's .tsv and .jsonl) is left out: drawn parts would have them twice.
    Raises DataError if there is nothing to train on, or if it is not clear what is for training.
    """
    files, names = find_files(folder), training_names(pairs_for(task, options.label_map))
    parts: dict[str, list[Example]] = {}
    read: dict[tuple[Example, ...], tuple[str, str | None]] = {}  # examples -> file and part
    say(f"{task}: {folder}")
    for path, part in files.items():
        for own_part, found in read_file_by_part(task, path, names, part).items():
            other, other_part = read.setdefault(tuple(found), (path, own_part))
            if other_part != own_part and "train" in (other_part, own_part):
                raise DataError(f"{path} ({own_part}) has the same examples as {other} ({other_part}). Remove one.")
            again = other != path and other_part == own_part
            taken = "left out" if again else own_part or "in one piece"
            say(f"  {taken:<12} {len(found):>9,} examples  {path}" + f", the same as {other}" * again)
            if again:
                continue
            parts.setdefault(own_part or "whole", []).extend(found)
    whole = parts.pop("whole", None)
    if whole and parts:
        raise DataError(
            f"Some rows of {folder} say that they are of {', '.join(parts)}, others nothing. Mark all or none."
        )
    if not whole and "train" not in parts:
        raise DataError(f"{folder} has examples for {' and '.join(parts)}, but none for train.")
    if missing := {part: 0.1 for part in ("dev", "test") if part not in parts}:
        parts |= split(whole or parts["train"], options.split_seed, missing)
        drawn = ", ".join(f"{len(parts[part]):,} {part}" for part in missing)
        say(
            f"  Drawn at random (--split-seed {options.split_seed}): {drawn}; {len(parts['train']):,} remain for train."
        )
    if not parts["train"]:
        raise DataError(f"{folder} has too few examples: none is left to train on.")
    warn_of_shared_examples(parts)
    if options.limit and len(parts["train"]) > options.limit:
        parts["train"] = random.Random(options.split_seed).sample(parts["train"], options.limit)
    return TaskData(task, {part: parts[part] for part in PARTS}, tuple(files))


def read_file_by_part(task: str, path: str, names: dict[str, str], part: str | None) -> dict[str | None, list[Example]]:
    """The examples by the part that their rows name, None if they name none; for a file with a part, only those of it.

    Raises DataError if none is.
    """
    by_part: dict[str | None, list[Example]] = {}
    for own_part, example in read_file(task, path, warn, Labels(names=names)):
        by_part.setdefault(own_part or part, []).append(example)
    if part and part not in by_part:
        raise DataError(f"{path} is for {part} by its name, but for {' and '.join(by_part)} by its rows.")
    if part and len(by_part) > 1:
        warn(f"{path}: only its rows of {part} are read.")
    return {part: by_part[part]} if part else by_part


def pairs_for(task: str, label_map: Sequence[str]) -> tuple[str, ...]:
    """Those of --label-map TASK:DATA=NAME that are for a task, without it."""
    return tuple(pair.partition(":")[2] for pair in label_map if pair.startswith(f"{task}:"))


# ---- the table -------------------------------------------------------------------------------------------------


def percent(metric: dict | None) -> str:
    if metric is None:
        return ""
    spread = "" if metric.get("deviation") is None else f" ± {100 * metric['deviation']:.1f}"
    return f"{100 * metric['mean']:.2f}{spread}"


def retained(student: float | None, teacher: float | None) -> str:
    return f"{student / teacher:.1%}" if student is not None and teacher else ""


def published(figures: tuple[float | None, float] | None) -> str:
    """The cell for the figures of CamemBERT and DistilCamemBERT, in percent; empty for None."""
    if figures is None:
        return ""
    teacher, student = figures
    return f"{teacher:.2f} → {student:.2f} ({retained(student, teacher)})" if teacher else f"– → {student:.2f}"


def rows_of(task: str, result: dict) -> list[list[str]]:
    """A task's rows of the table: its measures, milliseconds, speed-up."""
    rows = []
    for measure in MEASURES[task]:
        metrics = {name: result[name]["over_seeds"]["test"][measure] for name in MODELS if name in result}
        means = {name: metric["mean"] for name, metric in metrics.items()}
        baseline = percent({"mean": result["baseline"][measure]["value"]})
        cells = [baseline, percent(metrics["teacher"])]
        for name in ("student", "distilled"):
            cells += [percent(metrics.get(name)), retained(means.get(name), means["teacher"])]
        cells.append(int8_cell(result, measure))
        sources = [published(source.get((task, measure))) for source in (PAPER, CARDS)]
        rows.append([task, measure.replace("_", " "), *cells, *sources])
    teacher, student = result["milliseconds"]["teacher"], result["milliseconds"]["student"]
    cards = CARDS_MILLISECONDS.get(task)
    card = f"{cards[0]:.2f} → {cards[1]:.2f} (×{cards[0] / cards[1]:.2f})" if cards else ""
    paper = "×{} → ×{}".format(*PAPER_SPEED_UP)
    int8 = result["milliseconds"].get("student, int8")
    cell, ratio = (f"{int8:.2f}", f"×{teacher / int8:.2f}") if int8 else ("", "")
    rows.append([task, "ms per text", "", f"{teacher:.2f}", f"{student:.2f}", "", "", "", cell, "", card])
    rows.append([task, "speed-up", "", "×1", f"×{teacher / student:.2f}", "", "", "", ratio, paper, ""])
    if int8:
        equal = f"{result['student_int8']['equal_to_fp32']:.2%}"
        rows.append([task, "labels as in fp32", "", "", "", "", "", "", equal, "", ""])
    return rows


def int8_cell(result: dict, measure: str) -> str:
    """The student's figure in int8, in percent, and its difference from the same model's in fp32; "" without it."""
    if "student_int8" not in result:
        return ""
    int8, fp32 = (100 * result["student_int8"]["figures"][name][measure]["value"] for name in ("int8", "fp32"))
    return f"{int8:.2f} ({int8 - fp32:+.2f})"


def markdown(results: dict[str, dict], about: dict) -> str:
    head = ["task", "measure", "baseline", "teacher", "student", "retained", "student, task distilled", "retained"]
    head += ["student, int8", "paper, Table 2", "model cards"]
    seeds = ", ".join(map(str, about["seeds"]))
    return (
        f"{table(head, *(row for task, result in results.items() for row in rows_of(task, result)))}\n\n"
        f"Measured on the test examples, in percent. Seeds: {seeds}; mean ± standard deviation if there are several. "
        "Baseline, without a model: the majority label, no entities, or the context words with most of the question's "
        "around them. Retained: relative to the teacher. Student, int8: the student of the best seed on dev in int8, "
        "and the difference from the same model in fp32.\n\n"
        "The last two columns are published figures, CamemBERT → DistilCamemBERT, of other fine-tuned models on other "
        "data. Paper: F1 (for NER and QA, overlap as in SQuAD; the average over labels is not specified), and one "
        "speed-up for all tasks. Model cards: those of the models that its authors released on Hugging Face (data: "
        "Allociné, WikiNER, XNLI, FQuAD and PIAF).\n"
    )


# ---- the command -----------------------------------------------------------------------------------------------


def demo_student(folder: Path) -> str:
    """-> the path of the demo's student, distilled now by train.py if it does not exist."""
    path = folder / "student" / "student.safetensors"
    if not path.exists():
        say("Distilling the demo's student with train.py:")
        check_folder(path.parent)
        train.train(TrainOptions(out=str(path.parent), cache=str(folder / "corpora"), log_every=50))
    return str(path)


def compare(data: TaskData, teacher: str, student: str, options: Options, command: str) -> dict:
    """Fine-tunes teacher and student on a task -> the baseline, their results, and their milliseconds per text."""
    folder = Path(options.out) / data.task
    make_folder(folder)
    say(f"\n--- {data.task}")
    of_teacher, of_student = (
        finetune_settings(options, data, model, str(folder / name))
        for name, model in (("teacher", teacher), ("student", student))
    )
    result = {"baseline": baseline_report(data.parts["train"], data.parts["test"], options.language)}
    tuned_teacher, tuned_student = (str(folder / name / "model.safetensors") for name in ("teacher", "student"))
    of_distilled = replace(of_student, teacher=tuned_teacher, out=str(folder / "distilled"))
    runs = {"teacher": of_teacher, "student": of_student} | ({"distilled": of_distilled} if options.distil else {})
    result |= {name: finetune(data.task, settings, command, data.parts) for name, settings in runs.items()}
    return result | speeds(data.task, tuned_teacher, tuned_student, data.parts["test"], options, options.seeds[0])


def finetune_settings(options: Options, data: TaskData, model: str, out: str) -> FinetuneOptions:
    """The options of finetune for a model on a task."""
    shared = {f.name: getattr(options, f.name) for f in fields(InferenceOptions)}
    if options.precision == "int8":  # for inference only
        shared["precision"] = "auto"
    if options.teacher == "demo":
        shared |= DEMO_SETTINGS | ({"lr": DEMO_LR[data.task]} if data.task in DEMO_LR else {})
    given = {name: getattr(options, name) for name in ("epochs", "step_tokens", "lr", "dropout", "seeds", "wait")}
    shared |= {name: value for name, value in given.items() if value is not None}
    shared["label_map"] = pairs_for(data.task, options.label_map)
    return FinetuneOptions(**shared, model=model, train=data.files, dev=data.files, out=out)


def main(arguments: list[str]) -> None:
    """The command `python -m eval table2`.  Raises OptionError, DataError, ModelError, Diverged."""
    usage = "python -m eval table2 [--teacher PATH --student PATH --data FOLDER] [OPTIONS]"
    options = fetch_models(parse_options(Options, arguments, usage, __doc__), "teacher", "student", "tokenizer")
    check_paths(options, "data")
    all_data = read_tasks(Path(options.data), options) if options.data else None
    with own(Path(options.out), options.wait):
        make_table(all_data, options, command_line("table2", arguments))


def read_tasks(folder: Path, options: Options) -> list[TaskData]:
    """Raises DataError if there are none."""
    tasks = [task for task in options.tasks if (folder / task).is_dir()]
    if not tasks:
        raise DataError(f"{folder} has no subfolder {', '.join(options.tasks)}.")
    return [read_parts(task, folder / task, options) for task in tasks]


def make_table(all_data: list[TaskData] | None, options: Options, command: str) -> None:
    """The command in a locked folder.  all_data: None for the demo's, which is written there"""
    folder, start = Path(options.out), time.monotonic()
    is_demo = all_data is None
    if is_demo:
        write_tasks(folder / "data", DEMO_COUNTS)
        all_data = read_tasks(folder / "data", options)
    teacher, student = (str(demo.TEACHER), demo_student(folder)) if is_demo else (options.teacher, options.student)
    for path in (teacher, student):  # before anything is fine-tuned
        task_settings(options, path, load_checkpoint(path).config)
    results, files = {}, []
    for task_data in all_data:
        files += task_data.files
        results[task_data.task] = compare(task_data, teacher, student, options, command)
        about = provenance(command, options, files, options.seeds)
        write_json(folder / "table2.json", {**about, "results": results})
    text = markdown(results, about)
    with atomic_file(folder / "table2.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw(results, PAPER, folder / "table2.png", is_demo)
    print(f"\n{text}")
    print(f"Written: {folder / 'table2.md'} and table2.json, in {(time.monotonic() - start) / 60:.1f} minutes.")
