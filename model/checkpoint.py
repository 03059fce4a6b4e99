"""The project's own file: one .safetensors, with configuration and labels in its metadata.

Nothing in it can run code, and a file is either whole under its name or not there.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import EncoderConfig, ModelError
from .encoder import Encoder
from .heads import MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier

FORMAT = "distilcamembert-1"
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
UMASK = os.umask(0o077)  # read once: to read it is to set it, for every thread
os.umask(UMASK)
TENSORS_A_LAYER, PLAUSIBLE_LAYERS = 16, 100  # a file that states more than these layers must hold their tensors
KINDS = {kind.__name__: kind for kind in (MaskedLM, SequenceClassifier, TokenClassifier, QuestionAnswerer, Encoder)}


def save_model(model: nn.Module, path: str | Path, provenance: Mapping | None = None) -> None:
    """Write a model to one file, atomically.

    provenance: how it was made (options, versions, figures), kept in the metadata as JSON.
    Raises ModelError where the file cannot be written.
    """
    tensors, metadata = contents(model, provenance)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def contents(model: nn.Module, provenance: Mapping | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """-> the tensors and the metadata of a model's file.  Raises ModelError."""
    if type(model).__name__ not in KINDS:
        raise ModelError(f"{type(model).__name__} has no file format; save one of {', '.join(KINDS)}.")
    metadata = {
        "format": FORMAT,
        "kind": type(model).__name__,
        "config": json.dumps(asdict(model.config)),
        "labels": json.dumps(getattr(model, "labels", None)),
        "provenance": json.dumps(provenance),
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, metadata


def load_model(path: str | Path) -> nn.Module:
    """Read a model of this project, in evaluation mode, in the precision of its file.

    Raises ModelError, naming the file and the cure, for anything that is not such a file.
    """
    path = Path(path)
    metadata, tensors = read_safetensors(path)
    if not is_ours(metadata):
        raise ModelError(
            f"{path} is not a model file of this project. If it is Hugging Face's, bring it over with: "
            f"python convert_weights.py {path} model.safetensors"
        )
    try:
        kind = KINDS[metadata["kind"]]
        values = json.loads(metadata["config"])
        config = EncoderConfig(**{field.name: values[field.name] for field in fields(EncoderConfig)})
        labels = json.loads(metadata["labels"])
        if labels is not None and not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
            raise ValueError("labels are names")
        head = () if labels is None else (len(labels), labels)
    except ModelError as error:
        raise ModelError(f"{path} is damaged, its configuration is impossible: {error}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged, its metadata cannot be read ({error!r}). Copy it anew.") from None
    return assemble(kind, config, head, tensors, path)


def is_ours(metadata: Mapping[str, str]) -> bool:
    return metadata.get("format") == FORMAT


def assemble(
    kind: type,
    config: EncoderConfig,
    head: tuple,
    tensors: Mapping[str, Tensor],
    path: Path,
    names: Mapping[str, str] | None = None,
) -> nn.Module:
    """A model from its tensors, which it takes as they are; -> the model in evaluation mode.

    head: what `kind` wants beyond the configuration. names: what the file calls a tensor, where it has names of
    its own. Nothing is drawn and nothing is held twice: the model is made without memory first.
    Raises ModelError, naming the tensor, if one is missing, unknown, of a wrong shape or not finite numbers.
    """
    if config.num_layers > max(PLAUSIBLE_LAYERS, len(tensors) // TENSORS_A_LAYER):  # before anything is built by it
        raise ModelError(f"{path} speaks of {config.num_layers} layers, but holds only {len(tensors)} tensors.")
    try:
        with torch.device("meta"):
            model = kind(config, *head)
    except (RuntimeError, OverflowError, TypeError, ModelError) as error:
        raise ModelError(f"{path} is damaged, its configuration is impossible ({error}).") from None
    expected = model.state_dict()
    called = {name: (names or {}).get(name, name) for name in (*expected, *tensors)}
    for name in expected:
        if name not in tensors:
            raise ModelError(f"{path} lacks the tensor {called[name]}: it is cut short or of another model.")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ModelError(f"{path} has a tensor {called[name]} that a {kind.__name__} has no place for.")
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{path}: the tensor {called[name]} has shape {tuple(tensor.shape)}, "
                f"but the configuration asks for {tuple(expected[name].shape)}."
            )
        if tensor.dtype not in PRECISIONS:
            raise ModelError(f"{path}: the tensor {called[name]} holds {tensor.dtype}, not floating-point numbers.")
        if not is_finite(tensor):
            raise ModelError(f"{path}: the tensor {called[name]} holds NaN or infinity; no model can be made of it.")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def is_safetensors(path: Path) -> bool:
    """Whether a file starts as a .safetensors does, whatever it is called: a length in eight bytes, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and not start.startswith(b"{")  # the second is JSON; a length is a multiple of 8


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity, found without a copy of the tensor: isfinite() makes one."""
    return not tensor.numel() or all(bound.isfinite() for bound in tensor.aminmax())


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file, without its tensors.  Raises ModelError."""
    with open_safetensors(path) as file:
        return file.metadata() or {}


def read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a .safetensors file, which may come from anywhere.  Raises ModelError."""
    with open_safetensors(path) as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)


@contextlib.contextmanager
def open_safetensors(path: str | Path) -> Iterator:
    check_file(Path(path))
    try:
        with safe_open(path, framework="pt") as file:  # checks every length in the header against the file
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"{path} is not a whole .safetensors file ({error}). Fetch or copy it anew.") from None


def check_file(path: Path) -> None:
    """Raises ModelError unless path is a file with something in it."""
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder where a file is needed.")
        if not path.is_file():
            raise ModelError(f"There is no file {path}. Check the path.")
        with path.open("rb") as file:
            if not file.read(1):
                raise ModelError(f"{path} is empty. Fetch or copy it anew.")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside path; what is written there gets its final name whole or not at all.

    Raises ModelError where the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            flush(temporary)
            usual_mode(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


def flush(path: Path) -> None:
    """What was written to a file, or into a folder, is on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def usual_mode(path: Path) -> None:
    """Give a temporary file or folder, made for its owner alone, the rights that any new one has."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~UMASK)
