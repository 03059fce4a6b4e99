"""A run's folder: one run at a time, whose options and inputs stay the same when it resumes.

OUT/run.json holds these; so does every checkpoint, in case that file is lost.
"""

import contextlib
import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from torch import nn

from data.cli import DataError, check, dashed, warn
from data.outputs import check_folder, remove_tree
from data.tokenizer import Tokenizer

from ..checkpoints.native import atomic_file, is_whole, read_metadata, save_model
from ..checkpoints.provenance import as_dict, read_provenance
from ..config import ModelError
from .curves import CURVES
from .options import MAY_DIFFER, Options
from .run_state import BEST, FOLDER, METRICS, RUN, STUDENT, list_checkpoints, read_values, step_of
from .state import TrainState

SAME_STEP = ("batch_size", "accumulate")  # may differ if their product does not: a step has the same blocks
DEFAULTS = {field.name: field.default for field in fields(Options)}  # of options that an older run.json lacks

# ---- what identifies a run -------------------------------------------------------------------------------------


def find_run(out: Path, run: Mapping) -> dict | None:
    """The folder's run; None for a new one.  Raises OptionError if it, or one of its checkpoints, is another run's.

    run: {"options": …, "inputs": …} of the command line.
    """
    stored = read_run(out, warn)
    if stored is not None:
        check_same_run(out, stored, run)
    for checkpoint in list_checkpoints(out / FOLDER):
        with contextlib.suppress(DataError, KeyError, TypeError):  # damaged, or of an older version
            check_same_run(checkpoint, checked(read_values(checkpoint)["run"]), run)
    return stored


def read_run(out: Path, report: Callable[[str], None]) -> dict | None:
    """{"options": …, "inputs": …} of the folder's run: of run.json, else of its newest readable checkpoint, else None.

    report: called with a sentence if run.json is missing beside a checkpoint, or damaged.
    """
    path = out / RUN
    try:
        return checked(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        lost = "cannot be read" if path.exists() else "is missing"
    for checkpoint in list_checkpoints(out / FOLDER):
        with contextlib.suppress(DataError, KeyError, TypeError):
            found = checked(read_values(checkpoint)["run"])
            report(f"{path} {lost}; the options in {checkpoint} take its place.")
            return found
    return None


def checked(run: dict) -> dict:
    """Raises KeyError or TypeError for anything but a run's options and inputs."""
    if type(run["options"]) is not dict or type(run["inputs"]) is not dict:
        raise TypeError(RUN)
    return run


def check_free(out: Path, resume: bool) -> None:
    """Raises OptionError if the folder holds files of a run that this one would overwrite, not resume.

    Raises DataError if its checkpoints would be written through a link.
    """
    check_folder(out / FOLDER)
    if resume and read_run(out, lambda sentence: None) is not None:
        return
    names = [name for name in (STUDENT, BEST, METRICS, RUN) if (out / name).exists()]
    names += [f"{FOLDER}/{path.name}" for path in list_checkpoints(out / FOLDER)]
    unknown = "" if not resume else f", and no readable {RUN} to resume it"
    check(not names, f"{out} already holds the {names and names[0]} of a run{unknown}. Choose another --out.")


def check_same_run(out: Path, stored: Mapping, run: Mapping) -> None:
    """Raises OptionError for the folder of another run, naming what differs.

    stored, run: {"options": …, "inputs": …}, of the folder and of the command line. Inputs are compared by content:
    their paths may differ. A run can be extended to more steps.
    """
    run = json.loads(json.dumps(run))
    old, new = json.loads(json.dumps(DEFAULTS)) | stored["options"], run["options"]
    by_content = stored["inputs"].keys() & run["inputs"].keys()
    differ = [name for name in new if name not in {*MAY_DIFFER, *by_content} and old.get(name) != new[name]]
    with contextlib.suppress(KeyError, TypeError):
        if old["batch_size"] * old["accumulate"] == new["batch_size"] * new["accumulate"]:
            differ = [name for name in differ if name not in SAME_STEP]
        if old["steps"] < new["steps"]:
            differ = [name for name in differ if name != "steps"]
    found = f"{out} holds a run with different {', '.join(map(dashed, differ))}."
    check(not differ, f"{found} Use the same options to resume it, or choose another --out.")
    for name in sorted(by_content):
        changed, cure = (
            (", which has changed since", "Restore it") if old.get(name) == new.get(name) else ("", "Use that one")
        )
        message = f"{out} holds a run with another {name}{changed}. {cure}, or choose another --out."
        check(stored["inputs"][name] == run["inputs"][name], message)


def write_run(out: Path, run: Mapping) -> None:
    """Writes run.json if its content is new.  Raises ModelError if it cannot."""
    content = (json.dumps(run, indent=1) + "\n").encode()
    with contextlib.suppress(OSError):
        if (out / RUN).read_bytes() == content:
            return
    with atomic_file(out / RUN) as partial:
        partial.write_bytes(content)


def is_finished(out: Path, steps: int, report: Callable[[str], None]) -> bool:
    """Whether the folder holds the student after all these steps.

    report: called with a sentence if it is damaged, and a checkpoint can take its place. Raises OptionError if the run
    has ended after fewer steps, and left no checkpoint from which it could be extended.
    """
    path = out / STUDENT
    if not path.exists():
        return False
    has_checkpoint = bool(list_checkpoints(out / FOLDER))
    try:
        read_metadata(path)  # of a complete file
        done = as_dict(read_provenance(path).get("options")).get("steps")
    except ModelError as error:
        if has_checkpoint:
            report(f"{error} It is written again from the last checkpoint.")
            return False
        raise
    if type(done) is not int or done >= steps:
        return True
    further = f"--student {shlex.quote(str(path))} --steps {steps - done} and another --out"
    message = f"The run in {out} has ended after {done:,} steps and has no checkpoint from which it could be extended."
    check(has_checkpoint, f"{message} To train its student further, begin a new run: the same options with {further}.")
    return False


def how_to_go_on(out: Path, accumulate: int, ranks: int) -> str:
    """What to do after a rank was lost."""
    kept = list_checkpoints(out / FOLDER)
    start = f"resumes after step {step_of(kept[0]):,}" if kept else "begins again (there is no checkpoint yet)"
    numbers = [str(number) for number in range(1, ranks + 1) if accumulate % number == 0]
    return f"The same command {start}, also with another number of ranks: {', '.join(numbers)}."


# ---- the files -------------------------------------------------------------------------------------------------


def keep_best(
    out: Path, student: nn.Module, tokenizer: Tokenizer, state: TrainState, held_out: Mapping, about: Mapping
) -> None:
    """best.safetensors: the student with the lowest validation loss so far.

    held_out: of the validation after this step; about: provenance, {} on ranks that write nothing.
    """
    if state.best_loss is None or held_out["loss"] < state.best_loss:
        state.best_loss, state.best_step = held_out["loss"], state.step
        if about:
            save_model(student, out / BEST, {**about, "step": state.step, **figures(state, held_out)}, tokenizer)


def figures(state: TrainState, held_out: Mapping) -> dict:
    """Of a student's validation, for its provenance."""
    return {"held_out_accuracy": {**state.baseline, "student after": held_out["accuracy"]}, "held_out": dict(held_out)}


def restore_best(out: Path, state: TrainState) -> None:
    """Writes a lost or damaged best.safetensors again from the checkpoint of its step.  Warns."""
    if state.best_loss is None or is_whole(out / BEST):
        return
    lost = "is damaged" if (out / BEST).exists() else "is missing"
    of_best = out / FOLDER / f"step-{state.best_step:09}" / STUDENT
    if of_best.exists():
        with atomic_file(out / BEST) as partial:
            shutil.copyfile(of_best, partial)
        warn(f"{out / BEST} {lost}, and is written again from {of_best.parent}.")
    else:
        warn(f"{out / BEST}, the student of step {state.best_step:,}, {lost}. The best of what follows is kept.")
        state.best_loss = None


def remove_partial_files(out: Path) -> None:
    """Removes the temporary files of a killed run."""
    for path in (out / FOLDER).glob(".step-*"):
        remove_tree(path)
    for name in (STUDENT, BEST, RUN, METRICS, CURVES):
        for path in out.glob(f".{name}.*"):
            path.unlink(missing_ok=True)
