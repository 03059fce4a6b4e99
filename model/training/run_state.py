"""A run's checkpoints, from which it resumes as if it had never stopped.

OUT/checkpoints/step-N/ is written completely or not at all: student.safetensors (a
model file like any other), state.safetensors (the optimiser's tensors and the projection) and state.json (all numbers,
with the hashes of the other two and its own). Reading a checkpoint runs no code.
"""

import errno
import hashlib
import json
import re
import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data.cli import DataError, is_out_of_memory, note, say, warn
from data.outputs import remove_tree
from data.tokenizer import Tokenizer

from ..checkpoints.native import (
    apply_umask,
    contents,
    current_names,
    flush,
    is_whole,
    read_safetensors,
    sha256,
)
from ..config import ModelError
from .device import Runtime
from .state import TrainState

FOLDER = "checkpoints"
STUDENT, TENSORS, VALUES = "student.safetensors", "state.safetensors", "state.json"
RUN, BEST, METRICS = "run.json", "best.safetensors", "metrics.jsonl"  # beside the checkpoints
NAME = re.compile(r"step-\d{9,}")
LOST = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO)  # a file is damaged; other errors may pass


class Checkpoint(NamedTuple):
    """What a run resumes from."""

    path: Path
    student: dict[str, Tensor]
    tensors: dict[str, Tensor]
    values: dict


# ---- writing checkpoints ---------------------------------------------------------------------------------------


class CheckpointWriter:
    """Writes checkpoints in a thread: a step waits only for the copy to memory, and for the checkpoint before."""

    def __init__(self, out: Path, keep: int, tokenizer: Tokenizer | None = None):
        self.folder, self.keep, self.tokenizer = out / FOLDER, keep, tokenizer
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self,
        step: int,
        student: nn.Module,
        tensors: Mapping[str, Tensor],
        values: Mapping,
        about: Mapping | None = None,
    ) -> Path:
        """Copies the state and starts writing it -> its path.  Raises DataError if the one before failed.

        about: provenance of the student.
        """
        self.wait()
        weights, metadata = contents(student, about and {**about, "step": step}, self.tokenizer)
        copies = ({name: copy_to_cpu(tensor) for name, tensor in each.items()} for each in (weights, tensors))
        path = self.folder / f"step-{step:09}"
        self._thread = threading.Thread(target=self._write, args=(path, *copies, metadata, dict(values)))
        self._thread.start()
        return path

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk.  Raises DataError if it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise DataError(
                f"The checkpoint could not be written to {self.folder}: {getattr(error, 'strerror', None) or error}. "
                f"The earlier ones are intact: {make_room(error)}, and the same command resumes from them."
            )

    def _write(self, path: Path, student: dict, tensors: dict, metadata: dict, values: dict) -> None:
        partial = path.with_name(f".{path.name}.partial")
        try:
            remove_tree(partial)
            partial.mkdir(parents=True)
            save_file(student, partial / STUDENT, metadata=metadata)
            save_file(tensors, partial / TENSORS)
            values = {"hashes": {name: sha256(partial / name) for name in (STUDENT, TENSORS)}, **values}
            content = json.dumps({"sha256": hash_json(values), "state": values}) + "\n"
            (partial / VALUES).write_text(content, encoding="utf-8")
            for name in (STUDENT, TENSORS, VALUES, "."):
                apply_umask(partial / name)
                flush(partial / name)
            for later in list_checkpoints(self.folder):  # damaged ones that this run has skipped
                if step_of(later) >= step_of(path):
                    remove(later)
            if path.is_symlink():  # to a folder that is not there
                path.unlink()
            partial.rename(path)
            flush(self.folder)
            for old in list_checkpoints(self.folder)[self.keep :]:
                remove(old)
        except Exception as error:  # reported by wait(): an exception in a thread would go unnoticed
            self._error = error
            remove_tree(partial)


def make_room(error: Exception) -> str:
    """What to do after a checkpoint could not be written."""
    return "free some memory" if is_out_of_memory(error) else "free some space"


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """A copy on the CPU, also of a tensor that is there already and goes on being trained."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def remove(path: Path) -> None:
    """Renames a checkpoint before deleting it, so that a half-deleted one is never taken for a complete one."""
    hidden = path.with_name(f".{path.name}.old")
    remove_tree(hidden)
    path.rename(hidden)
    remove_tree(hidden)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def hash_json(values: object) -> str:
    """Of anything JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# ---- reading checkpoints ---------------------------------------------------------------------------------------


def resume(
    out: Path, distiller: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, runtime: Runtime
) -> TrainState:
    """Restores the newest intact checkpoint, if there is one -> its state, else a new one.  Raises DataError.

    Warns if precision or compilation differ from the checkpoint's: the run's arithmetic changes.
    """
    checkpoint = newest(out, warn)
    if checkpoint is None:
        if (out / METRICS).exists():
            note(f"{out} has no checkpoint: the run begins again with its first step.")
        return TrainState()
    values = restore(checkpoint, distiller, optimiser, scaler)
    state = TrainState.from_json(values)
    say(f"resumed   after step {state.step:,}, from {checkpoint.path}")
    stored, current = values.get("runtime", {}), runtime.to_json()
    for name in ("precision", "compiled"):
        if name in stored and stored[name] != current[name]:
            warn(f"the run had {name} {stored[name]} until now and continues with {name} {current[name]}.")
    return state


def newest(out: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint, None if there are none.

    report: called with a sentence for each damaged one that is skipped. Raises DataError if all are damaged, OSError
    or MemoryError if one cannot be read at the moment.
    """
    damaged = []
    for path in list_checkpoints(out / FOLDER):
        try:
            checkpoint = read(path)
        except (DataError, ModelError) as error:
            if not path.exists():  # --plan beside the run, which has written a newer one since
                return newest(out, report)
            damaged.append(str(error))
            continue
        for message in damaged:
            report(f"{message} Resuming after step {step_of(path):,} instead.")
        return checkpoint
    if damaged:
        raise DataError(" ".join([*damaged, f"No other checkpoint is left in {out / FOLDER}. {cure(out)}"]))
    return None


def cure(out: Path) -> str:
    """What to do where all checkpoints are damaged: a new run can begin with one of their students."""
    students = [out / BEST, *(path / STUDENT for path in list_checkpoints(out / FOLDER))]
    found = next((path for path in students if is_whole(path)), None)
    again = found and f", or begin a new run with its student: --student {shlex.quote(str(found))} and another --out"
    return f"Restore one of them{again or ', or choose another --out'}."


def read(path: Path) -> Checkpoint:
    """Raises DataError, ModelError for a checkpoint that differs from what was written; OSError, MemoryError."""
    values = read_values(path)
    try:
        for name in (STUDENT, TENSORS):
            if sha256(path / name) != values["hashes"][name]:
                raise ValueError(f"{name} does not match its hash")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damage(path, error) from None
    student, tensors = (read_safetensors(path / name)[1] for name in (STUDENT, TENSORS))
    return Checkpoint(path, current_names(student), tensors, values)


def read_values(path: Path) -> dict:
    """The values of a checkpoint, without its tensors.

    Raises DataError if they differ from what was written, OSError.
    """
    try:
        table = json.loads((path / VALUES).read_text(encoding="utf-8"))
        values = table["state"]
        if hash_json(values) != table["sha256"] or path.name != f"step-{values['step']:09}":
            raise ValueError(f"{VALUES} does not match its hash")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damage(path, error) from None
    return values


def checkpoint_hash(out: Path, step: int) -> str:
    """Of the checkpoint from which a run resumes after this step.  Raises DataError if it cannot be read."""
    return f"step {step}, {hash_json(read_values(out / FOLDER / f'step-{step:09}'))[:16]}" if step else "none"


def damage(path: Path, error: Exception) -> DataError:
    """-> the error to raise instead.  Raises OSError for one that says nothing about the file's content."""
    if isinstance(error, OSError) and error.errno not in LOST:
        raise error
    reason = f"{Path(error.filename).name} is missing" if isinstance(error, FileNotFoundError) else str(error)[:200]
    return DataError(f"The checkpoint {path} is damaged ({reason}).")


# ---- what a checkpoint holds -----------------------------------------------------------------------------------


def gather(
    distiller: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, values: Mapping
) -> tuple[dict[str, Tensor], dict]:
    """What a checkpoint holds beside the student: the tensors of optimiser and projection, and the values as JSON.

    Dropout, order and masks are computed from seed, step and block: there is no random state to store.
    """
    states = optimiser.state_dict()["state"].items()
    tensors = {f"optimiser.{number}.{name}": tensor for number, state in states for name, tensor in state.items()}
    if distiller.projection is not None:
        tensors |= {f"projection.{name}": tensor for name, tensor in distiller.projection.state_dict().items()}
    return tensors, {**values, "scaler": scaler.state_dict()}


def restore(
    checkpoint: Checkpoint, distiller: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict:
    """Loads student, projection, optimiser and scaler -> the values.  Raises DataError for another run's checkpoint."""
    try:
        distiller.student.load_state_dict(checkpoint.student)
        states: dict[int, dict[str, Tensor]] = {}
        projection: dict[str, Tensor] = {}
        for key, tensor in checkpoint.tensors.items():
            if key.startswith("optimiser."):
                _, number, name = key.split(".")
                states.setdefault(int(number), {})[name] = tensor
            else:
                projection[key.removeprefix("projection.")] = tensor
        (distiller.projection or nn.Identity()).load_state_dict(projection)
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
        if checkpoint.values["scaler"]:  # empty unless the run was in fp16 until now
            scaler.load_state_dict(checkpoint.values["scaler"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"The checkpoint {checkpoint.path} belongs to another run: {reason}") from None
    return checkpoint.values
