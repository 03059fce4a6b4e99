"""How a model was made, as its file says: the models and data sets on the hub that it comes from, and no local path.

What is stored may come from a damaged or hostile file: every function takes any JSON value for it.
"""

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from data import DataError, demo
from data.cache import DEMO
from data.cli import dashed
from data.download.datasets import PREFIX, parse_dataset
from data.download.hub import is_repository
from data.download.models import KEYWORDS
from data.tokenizer import is_safetensors

from ..training.options import MAY_DIFFER
from .load import weights_in
from .native import is_native, read_metadata

ON_HUB = re.compile(r"([^@\s]+)@([0-9a-f]{40})")  # as fetch_models writes a model on the hub
HUB_CACHE = re.compile(
    r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(/|$)"
)  # a folder of huggingface_hub's cache
PATH_OPTIONS = {
    *("--model", "--teacher", "--student", "--tokenizer", "--corpus", "--cache"),
    *("--train", "--dev", "--test", "--data", "--out"),
}
LOCAL = re.compile(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]|file:")  # how a path begins that can be nothing else
HOME = re.compile(r"(?:.*[/\\])?(?:home|Users)[/\\][^/\\]*", re.IGNORECASE | re.DOTALL)  # its name is the user's


# ---- what is stored --------------------------------------------------------------------------------------------


def as_dict(value: object) -> dict:
    """A JSON object; {} for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else []


def read_provenance(path: Path) -> dict:
    """The provenance in a file of this project; {} for any other file, and if it is damaged.  Raises ModelError."""
    if not is_safetensors(path) or not is_native(metadata := read_metadata(path)):
        return {}
    try:
        return as_dict(json.loads(metadata.get("provenance", "null")))
    except (ValueError, RecursionError):
        return {}


def read_results(path: Path, provenance: Mapping) -> dict:
    """The results.json of the fine-tuning that made a model; {} if there is none, or if it is of another run."""
    try:
        results = as_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}
    same = all(results.get(key) == provenance.get(key) for key in ("task", "model", "teacher", "tokenizer", "examples"))
    return results if same and provenance.get("run") in as_list(results.get("runs")) else {}


def read_metrics(path: Path, provenance: Mapping) -> dict:
    """The line of metrics.jsonl with the held-out figures of this very student; {} if there is none."""
    figures, found = as_dict(provenance.get("held_out")), {}
    try:
        for each in path.read_text(encoding="utf-8").splitlines() if figures else ():
            record = as_dict(json.loads(each))
            if record.get("held_out") == figures:
                found = record
    except (OSError, ValueError, RecursionError):  # also of a line that is incomplete
        pass
    return found


# ---- where a model comes from ----------------------------------------------------------------------------------


def origins(options, names: Iterable[str], sources: Iterable[Mapping] = ()) -> dict:
    """What a run stores of the models and texts that it starts from: {"origins": {"models", "datasets", "demo"}}

    options: of the run, after fetch_models; names: those that are models; sources: of the corpus, from its manifest.
    A model of the hub that was converted, distilled or fine-tuned here before has kept its name in its provenance.
    Raises ModelError for a file that is not a model.
    """
    found = {name: provenance_of(getattr(options, name)) for name in names if getattr(options, name) is not None}
    models = {name: base for name, provenance in found.items() if (base := base_model(provenance))}
    datasets = sorted(set(filter(None, (dataset_name(source.get("name")) for source in sources))))
    return {"origins": {"models": models, "datasets": datasets, "demo": any(map(is_demo, found.values()))}}


def provenance_of(model: str) -> dict:
    """The provenance of a model named on the command line, after fetch_models.  Raises ModelError."""
    if not os.path.exists(model):
        return {"origins": {"demo": True}} if model == "demo" else {"converted from": model} if hub_name(model) else {}
    if cached := HUB_CACHE.search(os.path.abspath(model)):
        owner, name, commit, _ = cached.groups()
        return {"converted from": f"{owner}/{name}@{commit}"}
    stored = read_provenance(weights_in(Path(model), lambda line: None))
    is_demo_teacher = os.path.realpath(model) == os.path.realpath(demo.TEACHER)
    return {**stored, "origins": {"demo": True}} if is_demo_teacher else stored


def hub_name(value: object) -> str | None:
    """A stored owner/name@commit; None for anything else."""
    match = ON_HUB.fullmatch(value) if isinstance(value, str) else None
    return value if match and is_repository(match[1]) else None


def origin_of(provenance: Mapping, option: str) -> str | None:
    """owner/name@commit of the model of the hub that an option names, or that the file it names comes from."""
    models = as_dict(as_dict(provenance.get("origins")).get("models"))
    return hub_name(as_dict(provenance.get("options")).get(option)) or hub_name(models.get(option))


def base_model(provenance: Mapping) -> str | None:
    """owner/name@commit of the model on the hub that a model's weights come from, as far as that is known."""
    options = as_dict(provenance.get("options"))
    if not options:
        return hub_name(provenance.get("converted from"))
    start = "model" if "task" in provenance else "student" if options.get("student") is not None else "teacher"
    return origin_of(provenance, start)


def is_demo(provenance: Mapping) -> bool:
    """Whether a model comes from the demo's teacher or has seen the demo's text."""
    options = as_dict(provenance.get("options"))
    trained = options.get("teacher") == "demo" or tuple(as_list(options.get("corpus"))) == DEMO
    return trained or as_dict(provenance.get("origins")).get("demo") is True


def datasets(provenance: Mapping) -> list[str]:
    """The data sets on the hub, owner/dataset, that a model was trained on."""
    corpus = as_list(as_dict(provenance.get("options")).get("corpus"))
    stored = as_list(as_dict(provenance.get("origins")).get("datasets"))
    stored = [name for name in stored if isinstance(name, str) and is_repository(name)]
    return sorted({*stored, *filter(None, map(dataset_name, corpus))})


def dataset_name(value: object) -> str | None:
    """owner/dataset of hub:owner/dataset[/folder][@revision]; None for anything else."""
    if not isinstance(value, str) or not value.startswith(PREFIX):
        return None
    try:
        return parse_dataset(value)[0]
    except DataError:
        return None


# ---- without local paths ---------------------------------------------------------------------------------------


def shown(value: object, repositories: Iterable[str] = ()) -> str:
    """A stored path as a card may show it: the name of the file or folder alone; names on the hub stay whole.

    repositories: further names that are known to be on the hub, with or without a revision.
    """
    if not isinstance(value, str):
        return "unknown"
    if value in KEYWORDS or hub_name(value) or dataset_name(value) or value.partition("@")[0] in repositories:
        return value
    path = value.rstrip("/\\")
    name = re.split(r"[/\\]", path)[-1]
    is_nameless = name in ("", ".", "..") or name.startswith("~") or re.fullmatch("[A-Za-z]:", name)
    return "folder" if is_nameless or HOME.fullmatch(path) else name


def shown_command(provenance: Mapping) -> str:
    """The command that made a model, without local paths; empty if none is stored."""
    options, command = as_dict(provenance.get("options")), provenance.get("command")
    if "task" not in provenance:
        return shlex.join(without_paths(["python", "train.py", *train_words(options)]))
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        words = []
    if words[:3] != ["python", "-m", "eval"]:
        return ""
    names = (origin.partition("@")[0] for origin in map(hub_name, options.values()) if origin)
    return shlex.join(without_paths(words, set(names)))


def train_words(options: Mapping) -> Iterator[str]:
    """The options of train.py that determine the student, as words of its command line."""
    for name, value in options.items():
        if name in MAY_DIFFER or value is None:
            continue
        if isinstance(value, bool):
            yield dashed(name if value else f"no_{name}")
        else:
            yield dashed(name)
            yield from (str(each) for each in as_list(value) or [value] if isinstance(each, str | int | float))


def without_paths(words: Sequence[str], repositories: Iterable[str] = ()) -> Iterator[str]:
    """The words of a command line, with paths replaced by their last component."""
    option = ""
    for word in words:
        head, value = "", word
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            head = option + equals
        is_path = value and (option in PATH_OPTIONS or LOCAL.match(value))
        yield head + (shown(value, repositories) if is_path else value)
