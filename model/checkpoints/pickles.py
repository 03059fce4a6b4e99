"""Reads what torch.save wrote, checking the pickle before torch.load builds anything from it.

weights_only=True runs no code, but it still builds whatever a file describes: an array of any size, tuples nested so
deeply that hashing them crashes Python or never ends, an archive whose entries are the same bytes a hundred times.
"""

import io
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..config import ModelError
from . import fairseq
from .huggingface import Report

MODULES = {"torch", "torch._utils", "torch.serialization", "torch.storage", "torch.nn.parameter", "torch._tensor"}
OTHER_CLASSES = {"collections OrderedDict", "argparse Namespace"}  # the second is fairseq's
MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "DUP", "MARK"}
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
MAX_PICKLE = 10**8  # bytes of the pickle in a zip file, which is read into memory; the tensors are beside it
MAX_DEPTH = 4  # of tuples directly inside one another; torch.save writes none
LEGACY_PICKLES = 5  # at the start of torch.save's old format, before the raw values
MAX_NESTING = 3  # of the dictionaries in which training scripts save the weights


def read_pickle(path: Path, report: Report) -> Mapping:
    """What torch.save wrote: a state dict, or for fairseq the whole checkpoint. No code in it can run.

    fairseq saves its arguments beside the weights in an argparse.Namespace, the only other class that is allowed.
    Raises ModelError.
    """
    with path.open("rb") as file:
        if not file.read(2).startswith((b"PK", b"\x80")):  # torch.save's zip files, and its older plain pickles
            raise ModelError(f"{path} is neither a .safetensors file nor a PyTorch .bin: it holds no weights.")
    try:
        check_pickle(path)
        # given a path that ends in .safetensors, torch.load would read that format: it gets an open file
        with path.open("rb") as file, torch.serialization.safe_globals(fairseq.SAFE_GLOBALS):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a damaged or hostile pickle can make torch.load raise nearly anything
        reason = str(error).split("\n")[0][:200]
        raise ModelError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors and was refused "
            f"({reason}). Download it again, if possible as model.safetensors."
        ) from None
    if fairseq.is_fairseq(state) or is_state_dict(state):
        return state
    found = nested_weights(state)
    if not found:
        raise ModelError(f"{path} does not hold a state dict, as a pytorch_model.bin does.")
    if len(found) > 1:
        raise ModelError(f"{path} holds {len(found)} models, under {' and '.join(found)}. Save one of them alone.")
    name, weights = found.popitem()
    report(f"{path} is a training checkpoint; the weights under {name} are used, the rest is left out.")
    return weights


def is_state_dict(state: object) -> bool:
    is_mapping = isinstance(state, Mapping)
    return is_mapping and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())


def nested_weights(state: object) -> dict[str, Mapping]:
    """The state dicts with embeddings that are nested least deeply in a checkpoint, by their place, such as `model`."""
    level = {"": state} if isinstance(state, Mapping) else {}
    for _ in range(MAX_NESTING):
        inner = {}  # by identity: in a pickle, one dictionary can stand in thousands of places
        for place, outer in level.items():
            for key, value in outer.items():
                if isinstance(key, str) and isinstance(value, Mapping):
                    inner.setdefault(id(value), (f"{place}.{key[:100]}".removeprefix("."), value))
        level = dict(inner.values())
        found = {
            place: value
            for place, value in level.items()
            if is_state_dict(value) and any("embeddings." in key for key in value)
        }
        if found:
            return found
    return {}


def check_pickle(path: Path) -> None:
    """Raises ModelError unless a torch.save file has only PyTorch's classes and no more data than its size."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                check_stream(file, path)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):  # torch.save never compresses
            raise ModelError(f"{path} is a compressed archive, which PyTorch does not write. Download it again.")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ModelError(f"{path} declares more bytes than it holds and was refused. Download it again.")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > MAX_PICKLE:
                    raise ModelError(f"{path} describes its tensors in {entry.file_size:,} bytes: it was refused.")
                check_stream(io.BytesIO(archive.read(entry)), path)


def check_stream(file: BinaryIO, path: Path) -> None:
    """Reads one pickle opcode by opcode without executing any.  Raises ModelError; ValueError for a damaged one."""
    depth = 0
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in TUPLES:
            depth += 1
        elif opcode.name not in MEMO:
            depth = 0
        named = str(argument) if opcode.name in ("GLOBAL", "INST") else ""
        foreign = named and named.partition(" ")[0] not in MODULES and named not in OTHER_CLASSES
        if foreign or depth > MAX_DEPTH or opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            what = repr(named[:100]) if named else "opcodes that torch.save does not write"
            raise ModelError(
                f"{path} holds more than tensors ({what}) and was refused. Use a .safetensors "
                "file, or what torch.save(model.state_dict(), FILE) writes."
            )
