"""A run's state on disk: what is needed to go on as if nothing had happened.

OUT/run.json says which run it is. OUT/checkpoints/step-N/ is written whole or not at all: student.safetensors (a model
file like any other), state.safetensors (the optimiser's tensors and whatever else was trained) and state.json (all
numbers, with the hashes of the other two and its own). Reading runs no code.
"""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data import DataError, OptionError
from data.options import dashed
from model import ModelError
from model.checkpoint import atomic_file, contents, flush, read_safetensors, usual_mode

FOLDER, STUDENT, TENSORS, VALUES, RUN = (
    "checkpoints",
    "student.safetensors",
    "state.safetensors",
    "state.json",
    "run.json",
)
NAME = re.compile(r"step-\d{9,}")


class Checkpoint(NamedTuple):
    """What a run goes on from."""

    path: Path
    student: dict[str, Tensor]
    tensors: dict[str, Tensor]
    values: dict


# ---- writing ---------------------------------------------------------------------------------------------------


class Writer:
    """Writes checkpoints beside the run: a step waits for the copy only, and for the checkpoint before."""

    def __init__(self, out: Path, keep: int):
        self.folder, self.keep = out / FOLDER, keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, student: nn.Module, tensors: Mapping[str, Tensor], values: Mapping) -> Path:
        """Copies the state and has it written -> where it will be.  Raises DataError for the one before."""
        self.wait()
        models, metadata = contents(student)
        copies = ({name: copied(tensor) for name, tensor in each.items()} for each in (models, tensors))
        path = self.folder / f"step-{step:09}"
        self._thread = threading.Thread(target=self._write, args=(path, *copies, metadata, dict(values)))
        self._thread.start()
        return path

    def wait(self) -> None:
        """Until what was begun is on the disk.  Raises DataError if it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise DataError(
                f"The checkpoint could not be written to {self.folder}: {getattr(error, 'strerror', None) or error}. "
                "The ones before are whole: make room, and the same command goes on from there."
            )

    def _write(self, path: Path, student: dict, tensors: dict, metadata: dict, values: dict) -> None:
        partial = path.with_name(f".{path.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(student, partial / STUDENT, metadata=metadata)
            save_file(tensors, partial / TENSORS)
            values = {"hashes": {name: sha256(partial / name) for name in (STUDENT, TENSORS)}, **values}
            content = json.dumps({"sha256": hash_of(values), "state": values}) + "\n"
            (partial / VALUES).write_text(content, encoding="utf-8")
            for each in (STUDENT, TENSORS, VALUES, "."):
                usual_mode(partial / each)
                flush(partial / each)
            for later in whole_ones(self.folder):  # damaged ones, that this run fell back from
                if number_of(later) >= number_of(path):
                    remove(later)
            partial.rename(path)
            flush(self.folder)
            for old in whole_ones(self.folder)[self.keep :]:
                remove(old)
        except Exception as error:  # whatever it is, in a thread nobody else would see it
            self._error = error
            shutil.rmtree(partial, ignore_errors=True)


def copied(tensor: Tensor) -> Tensor:
    """On the CPU, and no longer the tensor that goes on being trained."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def remove(path: Path) -> None:
    """First out of sight: what is half deleted must not look like a checkpoint."""
    hidden = path.with_name(f".{path.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def whole_ones(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=number_of, reverse=True)


def number_of(path: Path) -> int:
    """The step that a checkpoint is of."""
    return int(path.name.removeprefix("step-"))


def clean(out: Path) -> None:
    """Removes what a run left half written when it was killed."""
    for path in (out / FOLDER).glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)
    for pattern in (f".{STUDENT}.*", ".best.safetensors.*", f".{RUN}.*"):
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)


def hash_of(values: object) -> str:
    """Of what JSON can hold, in whatever order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- reading ---------------------------------------------------------------------------------------------------


def newest(out: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, None where there never was one.

    report: gets a sentence for each damaged one that was passed over. Raises DataError where all are damaged.
    """
    paths = whole_ones(out / FOLDER)
    for path in paths:
        try:
            return read(path)
        except (DataError, ModelError) as error:
            report(f"{error} The checkpoint before it is taken.")
    if paths:
        raise DataError(f"No checkpoint in {out / FOLDER} is whole. Restore one, or choose another --out.")
    return None


def read(path: Path) -> Checkpoint:
    """Raises DataError, ModelError for a checkpoint that is not what was written."""
    try:
        table = json.loads((path / VALUES).read_text(encoding="utf-8"))
        values = table["state"]
        if hash_of(values) != table["sha256"] or path.name != f"step-{values['step']:09}":
            raise ValueError(f"{VALUES} is not what was written")
        for name in (STUDENT, TENSORS):
            if sha256(path / name) != values["hashes"][name]:
                raise ValueError(f"{name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"The checkpoint {path} is damaged ({str(error)[:200]}).") from None
    return Checkpoint(path, read_safetensors(path / STUDENT)[1], read_safetensors(path / TENSORS)[1], values)


# ---- what is in one --------------------------------------------------------------------------------------------


def gather(
    trainee: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, numbers: Mapping
) -> tuple[dict[str, Tensor], dict]:
    """What a checkpoint holds beside the student: the tensors of optimiser and projection, and numbers.

    Dropout, order and masks are computed from seed, step and block: there is no state of chance to keep.
    """
    tensors = {
        f"optimiser.{number}.{name}": tensor
        for number, values in optimiser.state_dict()["state"].items()
        for name, tensor in values.items()
    }
    if trainee.projection is not None:
        tensors |= {f"projection.{name}": tensor for name, tensor in trainee.projection.state_dict().items()}
    return tensors, {**numbers, "scaler": scaler.state_dict()}


def restore(
    done: Checkpoint, trainee: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict:
    """Everything as it was -> the numbers.  Raises DataError for a checkpoint of another run."""
    try:
        trainee.student.load_state_dict(done.student)
        if trainee.projection is not None:
            names = trainee.projection.state_dict()
            trainee.projection.load_state_dict({name: done.tensors[f"projection.{name}"] for name in names})
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in done.tensors.items():
            if key.startswith("optimiser."):
                _, number, name = key.split(".")
                states.setdefault(int(number), {})[name] = tensor
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
        scaler.load_state_dict(done.values["scaler"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The checkpoint {done.path} is not of this run: {' '.join(str(error).split())[:300]}"
        ) from None
    return done.values


# ---- which run it is -------------------------------------------------------------------------------------------


def check_same_run(out: Path, run: Mapping, may_differ: tuple[str, ...]) -> bool:
    """Whether the folder holds this very run already; writes down which run it is where there is none.

    run: {"options": …, "inputs": …}, of which the options in may_differ decide nothing.
    Raises OptionError, naming what differs; DataError for a run.json that cannot be read, ModelError for one that
    cannot be written.
    """
    path = out / RUN
    if not path.exists():
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        return False
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        before, inputs = old["options"], old["inputs"]
        if type(before) is not dict or type(inputs) is not dict:
            raise TypeError(RUN)
        new = json.loads(json.dumps(run))
        names = [name for name in new["options"] if name not in may_differ]
        differ = [dashed(name) for name in names if before.get(name) != new["options"][name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} cannot be read. Choose another --out.") from None
    if differ:
        raise OptionError(
            f"{out} holds a run with other {', '.join(differ)}. Give the same to go on, or choose another --out."
        )
    for name, value in new["inputs"].items():
        if inputs.get(name) != value:
            raise OptionError(
                f"{out} holds a run with another {name} than is there now. Restore it, or choose another --out."
            )
    return True


def fingerprint(model: nn.Module) -> str:
    """Of a model's numbers, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
