"""The native format: one .safetensors file with the configuration, the labels and the provenance in its metadata.

Reading one runs no code. Writing is atomic: a file is complete under its name, or not there.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from data.cli import first_line, is_out_of_memory, no_file
from data.formats import LFS_START, lfs_pointer
from data.tokenizer import DIGEST, FILE_NAME, Tokenizer

from ..config import EncoderConfig, ModelError
from ..encoder import Encoder
from ..heads import MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier
from ..inference import PRECISIONS, freeze
from ..quantised import BYTE, LEVELS, SCALE, dequantise_state, is_quantised, quantise_state

FORMAT, OLD_FORMAT = "distilcamembert-2", "distilcamembert-1"
OLD_NAMES = {".mix.": ".out.", ".expand.": ".feed.", ".contract.": ".forward_proj."}  # of OLD_FORMAT's tensors
DTYPES = (torch.float64, *PRECISIONS.values())  # that a weight file may hold
UMASK = os.umask(0o077)  # read once: reading it means setting it, for every thread
os.umask(UMASK)
TENSORS_PER_LAYER, PLAUSIBLE_LAYERS = 16, 100  # a file that claims more layers must hold their tensors
KINDS = {kind.__name__: kind for kind in (MaskedLM, SequenceClassifier, TokenClassifier, QuestionAnswerer, Encoder)}
HEAD_SETTINGS = {SequenceClassifier: "problem_type", QuestionAnswerer: "no_answer_threshold"}  # how outputs are read


def save_model(
    model: nn.Module,
    path: str | Path,
    provenance: Mapping | None = None,
    tokenizer: Tokenizer | None = None,
    int8: bool = False,
) -> None:
    """Writes a model to one file, atomically.

    provenance: how it was made (options, versions, results), stored in the metadata as JSON. tokenizer: stored inside,
    where Tokenizer(path) finds it. int8: the encoder's matrices are stored in int8, with a scale per row.
    Raises ModelError if the file cannot be written.
    """
    tensors, metadata = contents(model, provenance, tokenizer)
    if int8:
        tensors = quantise_state(tensors)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def contents(
    model: nn.Module, provenance: Mapping | None = None, tokenizer: Tokenizer | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """-> the tensors and the metadata of a model's file.  Raises ModelError for a class without a file format."""
    if type(model).__name__ not in KINDS:
        raise ModelError(f"{type(model).__name__} cannot be saved; a model file holds one of {', '.join(KINDS)}.")
    metadata = {
        "format": FORMAT,
        "kind": type(model).__name__,
        "config": json.dumps(asdict(model.config)),
        "labels": json.dumps(getattr(model, "labels", None)),
        "provenance": json.dumps(provenance),
    }
    if setting := HEAD_SETTINGS.get(type(model)):
        metadata[setting] = json.dumps(getattr(model, setting))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if tokenizer is not None:
        tensors[FILE_NAME] = torch.frombuffer(bytearray(tokenizer.content), dtype=torch.uint8)
        metadata[DIGEST] = tokenizer.sha256()
    return tensors, metadata


def load_model(path: str | Path) -> nn.Module:
    """A model of this project, in evaluation mode, in the precision of its file (float32 for one in int8).

    Raises ModelError, with the file and what to do, for anything else.
    """
    return assemble(*read_model(Path(path)), Path(path))


def load_int8(path: str | Path) -> nn.Module:
    """The model in an int8 file, frozen for inference in int8. No matrix is ever there in float32.

    The word embeddings stay in the file, of which the system holds the rows that were read.
    Raises ModelError as load_model.
    """
    path = Path(path)
    kind, config, head, tensors = read_model(path)
    version = version_of(path)
    names, prefix = current_names({name: name for name in tensors}), "" if kind is Encoder else "encoder."
    model = empty_model(kind, config, head, TensorsOfFile(path, version, names), path)
    of_encoder = {name.removeprefix(prefix): names.pop(name) for name in list(names) if name.startswith(prefix)}
    freeze(model if kind is Encoder else model.encoder, "int8", TensorsOfFile(path, version, of_encoder))
    of_head = {name: tensor.clone() for name, tensor in TensorsOfFile(path, version, names).items()}
    model.load_state_dict(of_head, strict=False, assign=True)  # the encoder is there
    return model.eval()


class TensorsOfFile(Mapping):
    """The tensors of a safetensors file, read when they are asked for: only those in use are in memory.

    version: of version_of; names: how a tensor is asked for -> its name in the file.
    Raises ModelError if the file has another version by then, whose values nobody has checked.
    """

    def __init__(self, path: Path, version: tuple[int, ...], names: Mapping[str, str]):
        self.path, self.version, self.names = path, version, names

    def __getitem__(self, name: str) -> Tensor:
        self.check_version()
        with open_safetensors(self.path) as file:  # a mapping of its own: its pages go with the tensor
            tensor = file.get_tensor(self.names[name])
        self.check_version()
        return tensor

    def check_version(self) -> None:
        if version_of(self.path) != self.version:
            raise ModelError(f"{self.path} was replaced while it was read. Start again.")

    def __contains__(self, name: object) -> bool:  # Mapping's would read the tensor
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def version_of(path: Path) -> tuple[int, ...]:
    """What changes if a file is replaced or written to.  Raises ModelError if it is gone."""
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_model(path: Path) -> tuple[type, EncoderConfig, tuple, dict[str, Tensor]]:
    """-> class, configuration, the other arguments of the class, and tensors of a native file.  Raises ModelError."""
    metadata, tensors = read_safetensors(path)
    if not is_native(metadata):
        command = f"python convert_weights.py {shlex.quote(str(path))} model.safetensors"
        raise ModelError(f"{path} is not a model file of this project. To convert it from another format: {command}")
    try:
        kind = KINDS[metadata["kind"]]
        values = json.loads(metadata["config"])
        config = EncoderConfig(**{field.name: values[field.name] for field in fields(EncoderConfig)})
        labels = json.loads(metadata["labels"])
        if labels is not None and not (isinstance(labels, list) and all(isinstance(name, str) for name in labels)):
            raise ValueError("labels must be a list of strings")
        head = () if labels is None else (len(labels), labels)
        if setting := HEAD_SETTINGS.get(kind):
            head += (json.loads(metadata.get(setting, "null")),)
    except ModelError as error:
        raise ModelError(f"{path} is damaged: its configuration is invalid. {error}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: its metadata cannot be read ({error!r}). Copy it again.") from None
    return kind, config, head, current_names(tensors)


def is_native(metadata: Mapping[str, str]) -> bool:
    return metadata.get("format") in (FORMAT, OLD_FORMAT)


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a native file under today's names; OLD_FORMAT had other names for three of a layer's matrices."""
    for old, new in OLD_NAMES.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def assemble(
    kind: type,
    config: EncoderConfig,
    head: tuple,
    tensors: Mapping[str, Tensor],
    path: Path,
    original_name: Callable[[str], str] = str,
) -> nn.Module:
    """A model made of these tensors, in evaluation mode, without copying them or drawing random numbers.

    Matrices in int8 become float32. Arguments and errors: of empty_model.
    """
    model = empty_model(kind, config, head, tensors, path, original_name)
    model.load_state_dict(dequantise_state(tensors), assign=True)
    return model.eval()


def empty_model(
    kind: type,
    config: EncoderConfig,
    head: tuple,
    tensors: Mapping[str, Tensor],
    path: Path,
    original_name: Callable[[str], str] = str,
) -> nn.Module:
    """A model on the device "meta", which these tensors, of a file, were found to fit.

    head: what `kind` needs beside the configuration. original_name: a tensor's name -> its name in the file, for
    messages.
    Raises ModelError, naming the tensor, if one is missing, unknown, of a wrong shape or dtype, or not finite.
    """
    if config.num_layers > max(PLAUSIBLE_LAYERS, len(tensors) // TENSORS_PER_LAYER):  # before they are built
        raise ModelError(f"{path} claims {config.num_layers} layers, but holds only {len(tensors)} tensors.")
    try:
        with torch.device("meta"), Uninitialised():
            model = kind(config, *head)
    except (RuntimeError, OverflowError, TypeError, ModelError) as error:
        raise ModelError(f"{path} is damaged: its configuration is invalid ({error}).") from None
    expected = model.state_dict()
    scales = expected_scales(expected) if any(name.endswith(SCALE) for name in tensors) else {}
    for name in (*expected, *scales):
        if name not in tensors:
            raise ModelError(f"{path} lacks the tensor {original_name(name)}: it is truncated or holds another model.")
    for name, tensor in tensors.items():
        called = original_name(name)
        if name not in expected and name not in scales:
            raise ModelError(f"{path} has a tensor {called}, which a {kind.__name__} does not have.")
        shape, wanted = tuple(tensor.shape), scales[name] if name in scales else tuple(expected[name].shape)
        if shape != wanted:
            raise ModelError(f"{path}: the tensor {called} has shape {shape}, but the configuration requires {wanted}.")
        check_values(name, tensor, scales, f"{path}: the tensor {called}")
    return model


class Uninitialised(TorchFunctionMode):
    """Leaves out normal_, which for "meta" imports PyTorch's compiler: 70 MB, a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **(kwargs or {}))


def expected_scales(expected: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """The names and shapes of the scales in an int8 file of a model with these tensors."""
    return {name + SCALE: (len(tensor), 1) for name, tensor in expected.items() if is_quantised(name, tensor)}


def check_values(name: str, tensor: Tensor, scales: Mapping[str, tuple], called: str) -> None:
    """Raises ModelError for a dtype or values that the tensor of this name cannot have.  scales: of an int8 file"""
    if name + SCALE in scales:
        if tensor.dtype != torch.int8 and (tensor.dtype != torch.int16 or "embeddings." in name):
            raise ModelError(f"{called} holds {tensor.dtype}, but its file has scales for int8. Convert it again.")
        levels = LEVELS if tensor.dtype == torch.int8 else LEVELS * BYTE
        if tensor.numel() and max(-tensor.min().item(), tensor.max().item()) > levels:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{called} has values beyond ±{levels:,}, the range of {kind} here.")
        return
    if tensor.dtype == torch.int8:
        raise ModelError(f"{called} holds int8, but its scale {name}{SCALE} is missing.")
    if tensor.dtype not in DTYPES:
        raise ModelError(f"{called} holds {tensor.dtype}, not floating-point numbers.")
    if not is_finite(tensor):
        raise ModelError(f"{called} contains NaN or infinity.")
    if name in scales and tensor.dtype != torch.float32:
        raise ModelError(f"{called} holds {tensor.dtype}; scales are float32.")
    if name in scales and not (tensor.min() > 0 and is_finite(tensor * (LEVELS * BYTE))):
        raise ModelError(f"{called} has scales that are not positive, or too large for float32.")


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; without the copy that isfinite() makes."""
    return not tensor.numel() or all(bound.isfinite() for bound in tensor.aminmax())


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file, without its tensors.  Raises ModelError."""
    with open_safetensors(path) as file:
        return file.metadata() or {}


def is_int8(path: str | Path) -> bool:
    """Whether a .safetensors file is one of this project in int8; without reading its tensors.  Raises ModelError."""
    with open_safetensors(path) as file:
        return is_native(file.metadata() or {}) and any(name.endswith(SCALE) for name in file.keys())  # noqa: SIM118


def is_whole(path: str | Path) -> bool:
    """Whether a .safetensors file was written to its end; without reading its tensors."""
    try:
        read_metadata(path)
    except ModelError:
        return False
    return True


def read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a .safetensors file, which may come from anywhere; without the tokenizer inside.

    Raises ModelError, MemoryError.
    """
    with open_safetensors(path) as file:
        names = [name for name in file.keys() if name != FILE_NAME]  # noqa: SIM118 (no dict)
        return file.metadata() or {}, {name: file.get_tensor(name) for name in names}


@contextlib.contextmanager
def open_safetensors(path: str | Path) -> Iterator:
    check_file(Path(path))
    try:
        with safe_open(path, framework="pt") as file:  # checks every length in the header against the file
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):  # the file may be intact
            raise MemoryError(first_line(error)) from None
        raise ModelError(f"{path} is not a complete .safetensors file ({error}). Download or copy it again.") from None


def check_file(path: Path) -> None:
    """Raises ModelError unless path is a readable file that is neither empty nor a Git LFS pointer."""
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder; a file is needed.")
        if not path.is_file():
            raise ModelError(no_file(path))
        with path.open("rb") as file:
            start = file.read(len(LFS_START))
        if not start:
            raise ModelError(f"{path} is empty. Download or copy it again.")
        if pointer := lfs_pointer(path, start):
            raise ModelError(pointer)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None


@contextlib.contextmanager
def atomic_file(path: str | Path, as_folder: bool = False) -> Iterator[Path]:
    """Yields a temporary file or folder beside `path`; on success it is flushed and renamed to `path`, else removed.

    A link at this name is replaced, not written through. Raises ModelError if it cannot be written, also for a folder
    that exists and is not empty, and for a name of a device.
    """
    path = Path(path)
    if not as_folder and path.exists() and not path.is_file():
        raise ModelError(f"{path} cannot be written: it is no plain file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if as_folder:
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:50]}.", dir=path.parent))
        else:
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:50]}.", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
        try:
            yield temporary
            for written in (*temporary.rglob("*"), temporary):
                flush(written)
                apply_umask(written)
            temporary.replace(path)
        except BaseException:
            if as_folder:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


def flush(path: Path) -> None:
    """fsync of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def apply_umask(path: Path) -> None:
    """Gives a temporary file or folder, private to its owner, the permissions of a normal new one."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~UMASK)


# ---- provenance ------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
