"""The models that are compared, what is stored about their making, and in what they differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.cli import DataError, OptionError, check, dashed, note, warn
from data.download.models import local_path
from model import Encoder, ModelError, SequenceClassifier
from model.checkpoints.load import WEIGHTS, load_checkpoint
from model.checkpoints.native import fingerprint
from model.checkpoints.provenance import read_provenance
from model.training.run_state import NAME, RUN, hash_json, step_of

from .run_folders import (
    TABLE,
    complete_checkpoints,
    dict_in,
    is_number,
    printable,
    read_json,
    run_folder_of,
)

WIDTH = 36  # characters of a value on screen
UNKNOWN = "–"
HASH = "hash of "


class Run(NamedTuple):
    """A model, and what is stored about its making."""

    name: str  # as given
    path: str  # of the model; of an unfinished run, its checkpoint
    kind: type
    problem_type: str | None  # of a sequence classifier
    parameters: int
    weights: str  # fingerprint
    task: str | None  # that it was fine-tuned on
    options: dict  # of the command that made it; {} if unknown
    facts: dict  # hashes of its inputs, its step, versions: those that are known


def open_run(name: str) -> Run:
    """Reads a model and what is stored beside it.  Raises OptionError, ModelError, DataError."""
    place = local_path(name)
    paths = [name]
    if place.is_dir():
        has_weights = any((place / each).is_file() for each in WEIGHTS)
        if (place / TABLE).is_file() and not has_weights:
            examples = " ".join(str(place / "nli" / each) for each in ("teacher", "student"))
            raise OptionError(f"{name} is a folder of table2. Name the models of one task in it, such as {examples}.")
        paths = [name] * has_weights + [str(path) for path in complete_checkpoints(place)] or paths
    for path in paths:
        try:
            model = load_checkpoint(path)
            break
        except ModelError as error:
            if path == paths[-1]:
                raise
            warn(f"{error} A checkpoint of the run is taken instead.")
    if path != name:
        note(f"{name} is not finished: its checkpoint {Path(path).name} is compared.")
    check(not isinstance(model, Encoder), f"{name} is a bare encoder: it has no head that could be compared.")
    stored, options, facts = stored_about(local_path(path))
    problem_type = model.problem_type if isinstance(model, SequenceClassifier) else None
    parameters = sum(each.numel() for each in model.parameters())
    task = stored.get("task") if isinstance(stored.get("task"), str) else None
    return Run(name, path, type(model), problem_type, parameters, fingerprint(model), task, options, facts)


def stored_about(place: Path) -> tuple[dict, dict, dict]:
    """-> the provenance in the model's file, the options of the command that made it, and the other facts"""
    file = next((place / each for each in WEIGHTS if (place / each).is_file()), place) if place.is_dir() else place
    stored = read_provenance(file) if file.is_file() else {}
    identity, folder = {}, run_folder_of(place)
    if folder is not None:
        try:
            identity = read_json(folder / RUN)
        except DataError as error:
            warn(f"{error} The options of {place} are unknown.")
    facts = {"precision": dict_in(stored, "runtime").get("precision")}
    facts |= {name: dict_in(stored, "versions").get(name) for name in ("python", "torch")}
    facts["schedules"] = stored.get("schedules")  # several if the run was extended
    facts["step"] = step_of(place) if NAME.fullmatch(place.name) else stored.get("step")
    made_from = {name: stored.get(name) for name in ("model", "teacher", "tokenizer", "examples")}  # by finetune
    inputs = known(dict_in(identity, "inputs")) | known(made_from)
    hashes = {HASH + name: each if isinstance(each, str) else hash_json(each) for name, each in inputs.items()}
    return stored, dict_in(stored, "options") or dict_in(identity, "options"), known(facts) | hashes


def known(values: dict) -> dict:
    return {name: value for name, value in values.items() if value is not None}


def differing(runs: Sequence[Run]) -> dict[str, list]:
    """{option or fact: its value in each run, UNKNOWN where it is not stored}, where two stored values differ.

    --out is left out: it is the run's name.
    """
    tables = [{dashed(name): value for name, value in run.options.items() if name != "out"} | run.facts for run in runs]
    names = list(dict.fromkeys(name for each in tables for name in each))
    stored = {name: [each[name] for each in tables if name in each] for name in names}
    names = [name for name, values in stored.items() if any(value != values[0] for value in values)]
    return {name: [each.get(name, UNKNOWN) for each in tables] for name in names}


def cell(name: str, value: object) -> str:
    """A value on screen: the beginning of a hash, the end of an option that is long."""
    if name.startswith(HASH) and value != UNKNOWN:
        return printable(value)[:12]
    if isinstance(value, list):
        text = " ".join(map(str, value))
    elif is_number(value):
        text = f"{value:g}" if isinstance(value, float) else str(value)
    else:
        text = {None: "none", True: "yes", False: "no"}.get(value) if isinstance(value, bool | None) else str(value)
    text = printable(text)
    return text if len(text) <= WIDTH else f"…{text[1 - WIDTH :]}"


def check_one_kind(runs: Sequence[Run]) -> None:
    """Raises OptionError unless all models are of one kind."""
    first = runs[0]
    for run in runs[1:]:
        kinds = [f"{each.name} is a {each.kind.__name__}" for each in (first, run)]
        check(run.kind is first.kind, f"{kinds[0]}, {kinds[1]}: models of one kind can be compared.")
        types = f"{first.name} is a {first.problem_type} model, {run.name} a {run.problem_type} model"
        check(run.problem_type == first.problem_type, f"{types}: their figures cannot be compared.")
