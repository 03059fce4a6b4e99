"""What torch.save wrote, looked at before torch.load is let near it.

weights_only=True runs no code, but it still builds what a file describes: an array of any stated size, a tuple so
deep that its hash crashes Python or never ends, an archive whose entries are one region a hundred times.
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
OTHERS = {"collections OrderedDict", "argparse Namespace"}  # the second is fairseq's
MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "DUP", "MARK"}
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
DEEPEST = 4  # tuples right inside one another; torch.save makes none
LEGACY = 5  # pickles that torch.save's old form begins with, before the numbers
TABLES = ("state_dict", "model_state_dict", "model")  # under which training scripts put the weights


def read_pickle(path: Path, report: Report) -> Mapping:
    """What torch.save wrote, a table of tensors or fairseq's table of such tables, with nothing in it run.

    fairseq keeps its arguments beside the weights, in an argparse.Namespace: the one class that is allowed.
    Raises ModelError.
    """
    with path.open("rb") as file:
        if not file.read(2).startswith((b"PK", b"\x80")):  # torch.save's zip files, and the older plain pickles
            raise ModelError(f"{path} is neither a .safetensors file nor a PyTorch .bin: it holds no weights.")
    try:
        check_pickle(path)
        # a file, not its name: by a name that ends on .safetensors, torch.load would read another format
        with path.open("rb") as file, torch.serialization.safe_globals(fairseq.SAFE_GLOBALS):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a damaged or hostile pickle can make torch.load raise nearly anything
        reason = str(error).split("\n")[0][:200]
        raise ModelError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors and was refused "
            f"({reason}). Fetch it anew, best as model.safetensors."
        ) from None
    if fairseq.is_fairseq(state):
        return state
    if isinstance(state, Mapping) and not is_table(state):
        for name in TABLES:
            if is_table(state.get(name)):
                report(f"{path} is the checkpoint of a training; what lies under {name} is taken, the rest left out.")
                return dict(state[name])
    if not is_table(state):
        raise ModelError(f"{path} is not a table of named tensors, as a pytorch_model.bin is.")
    return dict(state)


def is_table(state: object) -> bool:
    return isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    )


def check_pickle(path: Path) -> None:
    """Raises ModelError unless a torch.save file names PyTorch's own classes only, and no more than it holds."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(LEGACY):
                check_stream(file, path)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):  # torch.save never compresses
            raise ModelError(f"{path} is a compressed archive, which PyTorch does not write. Fetch it anew.")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ModelError(f"{path} states more bytes than it holds. It was refused; fetch it anew.")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                check_stream(io.BytesIO(archive.read(entry)), path)


def check_stream(file: BinaryIO, path: Path) -> None:
    """One pickle, opcode by opcode, none of which is carried out.  Raises ModelError; ValueError for a damaged one."""
    depth = 0
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in TUPLES:
            depth += 1
        elif opcode.name not in MEMO:
            depth = 0
        named = str(argument) if opcode.name in ("GLOBAL", "INST") else ""
        strange = named and named.partition(" ")[0] not in MODULES and named not in OTHERS
        if strange or depth > DEEPEST or opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            what = repr(named[:100]) if named else "what torch.save does not write"
            raise ModelError(f"{path} holds more than tensors ({what}) and was refused. Fetch it as model.safetensors.")
