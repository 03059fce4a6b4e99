"""A table of the runs below a folder: of train.py, finetune and table2, with their state, figures, time and size.

Nothing is written, no checkpoint is read, and symbolic links are not followed.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from data.cli import MB, DataError, check_bounds, option, parse_options
from data.locks import LOCK, holder_of
from model.checkpoints.native import is_whole
from model.training.run_state import FOLDER, METRICS, RUN, STUDENT, list_checkpoints, step_of

from ..benchmarks.harness import table_on_screen
from .run_folders import (
    MODEL,
    RESULTS,
    TABLE,
    complete_checkpoints,
    dict_in,
    is_number,
    printable,
    read_json,
    read_records,
)

TABLE_TEXT = "table2.md"  # written last
NAMES = frozenset({RUN, STUDENT, METRICS, FOLDER, RESULTS, MODEL, TABLE, TABLE_TEXT, LOCK})
FIGURES = ("accuracy", "macro_f1", "entity_f1", "overlap_f1", "exact_match", "f1", "micro_f1", "pearson", "spearman")


@dataclass(frozen=True)
class Options:
    folder: str = option(
        "runs", "searched with its subfolders (default: runs)", positional=True, nargs="?", metavar="FOLDER"
    )

    def __post_init__(self):
        check_bounds(self)


class Folder(NamedTuple):
    """A folder of the tree."""

    path: Path
    names: frozenset[str]  # of those in NAMES
    others: bool  # whether it holds anything else
    size: int  # bytes of all files below
    updated: float  # the newest file in it, in seconds since 1970


class Row(NamedTuple):
    kind: str
    state: str
    figures: str = ""


# ---- the tree --------------------------------------------------------------------------------------------------


def folders_below(root: Path) -> list[Folder]:
    """The root and all folders below, by name; what cannot be read is empty.  Raises DataError for the root."""
    found: dict[Path, list] = {}
    pending = [root]
    while pending:
        path = pending.pop()
        names, others, size, updated = set(), False, 0, 0.0
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    names |= {entry.name} & NAMES
                    others |= entry.name not in NAMES
                    try:
                        state = entry.stat(follow_symlinks=False)
                    except OSError:  # removed meanwhile
                        continue
                    if stat.S_ISDIR(state.st_mode):
                        pending.append(path / entry.name)
                    else:
                        size += state.st_size
                    updated = max(updated, state.st_mtime)
        except OSError as error:
            if path == root:
                raise DataError(f"The folder {root} cannot be read: {error.strerror}.") from None
        found[path] = [frozenset(names), others, size, updated]
    for path in reversed(found):  # a folder comes before those in it
        if path != root:
            found[path.parent][2] += found[path][2]
    return [Folder(path, *values) for path, values in sorted(found.items())]


# ---- the runs --------------------------------------------------------------------------------------------------


def describe(folder: Folder) -> Row | None:
    """None for a folder that is not a run's."""
    path, names = folder.path, folder.names
    if path.parent.name == FOLDER:
        return None  # a checkpoint
    try:
        held = holder_of(path) if LOCK in names else None
    except OSError:
        held = None
    running = None if held is None else f"running{printable(held)}"
    try:
        if TABLE in names:
            return describe_table(path, names, running)
        if RESULTS in names:
            return describe_finetuning(path, names, running)
        if names & {RUN, STUDENT} or {METRICS, FOLDER} <= names:
            return describe_training(path, names, running)
    except (DataError, OSError) as error:
        return Row("", running or f"damaged: {sentence(error, path)}")
    return Row("", f"{running}, nothing written yet") if running and not folder.others else None


def sentence(error: Exception, folder: Path) -> str:
    """An error's message, with the names of files alone: the folder stands beside it."""
    return printable(str(error).replace(f"{folder}{os.sep}", ""))


def describe_training(path: Path, names: frozenset[str], running: str | None) -> Row:
    """A run of train.py."""
    records = read_records(path / METRICS) if METRICS in names else []
    held_out = next((record for record in reversed(records) if dict_in(record, "held_out")), {})
    shown = {"loss": "{:.4f}", "accuracy": "{:.1%}", "pseudo_perplexity": "{:.2f}"}
    values = dict_in(held_out, "held_out")
    present = [name for name in shown if is_number(values.get(name))]
    parts = [f"{name.replace('pseudo_', 'pseudo-')} {shown[name].format(values[name])}" for name in present]
    figures = printable(f"held-out {', '.join(parts)} at step {held_out['step']}") if parts else ""
    damage = ""
    try:
        options = dict_in(read_json(path / RUN), "options")
    except DataError as error:
        options, damage = {}, sentence(error, path)
    if RUN in names and not options and not damage:
        damage = f"{RUN} holds no options"
    kind = "masked LM" if options.get("teacher") == "none" else "distillation" if options else "training"
    of_all = f" of {options['steps']:,}" if is_number(options.get("steps")) else ""
    last = records[-1]["step"] if records else 0
    if running:
        return Row(kind, f"{running}, step {last:,}{of_all}", figures)
    if STUDENT in names and is_whole(path / STUDENT):
        return Row(kind, f"finished{f', {damage}' * bool(damage)}", figures)
    lost = f"{STUDENT} is not complete" if STUDENT in names else ""
    checkpoints = complete_checkpoints(path)
    if checkpoints:
        state = f"stopped, resumes after step {step_of(checkpoints[0]):,}{of_all}{f', {lost}' * bool(lost)}"
        return Row(kind, f"damaged: {damage}" if damage else state, figures)
    damage = damage or lost
    if list_checkpoints(path / FOLDER):
        damage = damage or f"no checkpoint in {FOLDER} has all of its files"
    if damage:
        return Row(kind, f"damaged: {damage}", figures)
    return Row(kind, f"stopped at step {last:,}{of_all}, before a checkpoint" if records else "not started", figures)


def describe_finetuning(path: Path, names: frozenset[str], running: str | None) -> Row | None:
    """A folder of finetune, None for another results.json.  Raises DataError if it is damaged."""
    values = read_json(path / RESULTS)
    runs, seeds = values.get("runs"), values.get("seeds")
    if not (isinstance(runs, list) and isinstance(seeds, list) and isinstance(values.get("task"), str)):
        return None
    kind = f"{printable(values['task'])}, fine-tuned"
    over_seeds = {part: dict_in(values, "over_seeds", part) for part in ("test", "dev")}
    figures = next((f"{part} {of}" for part, metrics in over_seeds.items() if (of := means(metrics))), "")
    done = f"{len(runs)} of {len(seeds)} seed{'s' * (len(seeds) != 1)}"
    if running:
        return Row(kind, f"{running}, {done} done", figures)
    if not runs:
        return Row(kind, "not started", figures)
    if MODEL not in names:
        raise DataError(f"{MODEL} is missing.")
    if not is_whole(path / MODEL):
        raise DataError(f"{MODEL} is not complete.")
    return Row(kind, f"finished, {done}" if len(runs) >= len(seeds) else f"stopped after {done}", figures)


def describe_table(path: Path, names: frozenset[str], running: str | None) -> Row | None:
    """A folder of table2, None for another table2.json.  Raises DataError if it is damaged."""
    values = read_json(path / TABLE)
    results, tasks = dict_in(values, "results"), dict_in(values, "options").get("tasks")
    if not results:
        return None
    parts = []
    for task in results:
        of_models = {
            name: means(dict_in(results, task, name, "over_seeds", "test"), 1) for name in ("teacher", "student")
        }
        if all(of_models.values()):
            parts.append(f"{printable(task)} {of_models['teacher']} → {of_models['student'].split()[-1]}")
    done = f"{len(results)} of {len(tasks)} tasks" if isinstance(tasks, list) else f"{len(results)} tasks"
    state = running or ("finished" if TABLE_TEXT in names else "stopped")
    return Row("table 2", f"{state}, {done}", "; ".join(parts))


def means(metrics: Mapping, most: int = 2) -> str:
    """The means over the seeds of the first metrics of FIGURES that are there."""
    found = {name: dict_in(metrics, name).get("mean") for name in FIGURES}
    shown = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items() if is_number(value)]
    return ", ".join(shown[:most])


def cells(folder: Folder, row: Row) -> list[str]:
    try:
        updated = f"{datetime.fromtimestamp(folder.updated):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # a date beyond all calendars
        updated = ""
    return [printable(folder.path), row.kind, row.state, row.figures, updated, f"{folder.size / MB:,.1f} MB"]


def main(arguments: list[str]) -> None:
    """The command `python -m eval runs`.  Raises DataError, OptionError."""
    options = parse_options(Options, arguments, "python -m eval runs [FOLDER]", __doc__)
    root = Path(options.folder)
    rows = [cells(folder, row) for folder in folders_below(root) if (row := describe(folder))]
    if not rows:
        raise DataError(f"There is no run below {root}.")
    print(table_on_screen(["run", "kind", "state", "figures", "updated", "size"], *rows))
