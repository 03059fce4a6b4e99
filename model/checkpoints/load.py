"""Reads a model from anyone's checkpoint, its tokenizer, and a frozen teacher."""

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from data import DataError, Tokenizer
from data.cli import note, similar_path
from data.download import hub
from data.download.models import local_path
from data.tokenizer import FILE_NAME, is_safetensors, own_tokenizer

from ..config import EncoderConfig, ModelError
from ..encoder import Encoder
from ..heads import SequenceClassifier, TokenClassifier
from ..inference import freeze
from . import fairseq, huggingface, pickles, tarball
from .huggingface import Report
from .native import check_file, is_int8, is_native, load_int8, load_model, read_metadata, read_safetensors

# in the order in which a folder's files are preferred; the last is that of a run of train.py
TOKENIZER_HELP = "SentencePiece model, or a model that has it (default: inside or beside the model)"
WEIGHTS = (*hub.WEIGHTS, "model.pt", "student.safetensors")


def load_checkpoint(
    path: str | Path, report: Report = note, kind: type | None = None, fresh_head: bool = False
) -> nn.Module:
    """A model from anyone's checkpoint, in evaluation mode and in the precision of the file.

    path: a file of this project; a folder, .safetensors, index of shards or .bin of Hugging Face transformers;
    a model.pt, folder or tarball of fairseq; or owner/name[@revision], a model on the hub. Pickles are read as tensors
    only: no code in them can run. The kind of model is recognised by its tensors.
    report: called with a sentence for everything that is assumed or left out.
    kind: the class that is required. An Encoder can be taken out of any model; a bare encoder becomes a MaskedLM or
    a QuestionAnswerer only with fresh_head, whose weights are random.
    Raises ModelError, with the file and what to do; DataError for what the hub does not have.
    """
    place = path = local_path(path)

    def with_path(sentence: object) -> str:  # of the tarball, not of the folder that it is unpacked into
        return str(sentence).replace(str(place), str(path))

    def report_with_path(line: str) -> None:
        report(with_path(line))

    try:
        with unpacked(path) as place:
            model = load_file(weights_in(place, report_with_path), report_with_path)
            return as_kind(model, kind, fresh_head, path, report)
    except ModelError as error:
        raise ModelError(with_path(error)) from None


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The path itself; for a tarball, a temporary folder with its content.  Raises ModelError."""
    if not path.is_file() or not tarball.is_tarball(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield tarball.open_tarball(path, Path(folder)).parent


def weights_in(path: Path, report: Report) -> Path:
    """The file itself; of a folder, its weight file.  Raises ModelError."""
    if path.is_dir():
        names = [name for name in WEIGHTS if (path / name).is_file()]
        if not names:
            raise ModelError(f"The folder {path} contains none of {', '.join(WEIGHTS)}.")
        if names[1:]:
            report(f"{path} contains {' and '.join(names)}; {names[0]} is used.")
        path = path / names[0]
    check_file(path)
    return path


def load_file(path: Path, report: Report) -> nn.Module:
    """The model in a file, of whatever kind it is.  Raises ModelError."""
    if path.name.endswith(".index.json"):
        tensors = read_shards(path, report)
    elif is_safetensors(path):
        if is_native(read_metadata(path)):
            return load_model(path)
        tensors = read_safetensors(path)[1]
    else:
        tensors = pickles.read_pickle(path, report)
    values = huggingface.read_config(path.parent)
    if fairseq.is_fairseq(tensors):
        tensors, own = fairseq.to_huggingface_names(tensors, path, report)
        for key in sorted(key for key in own.keys() & values.keys() if own[key] != values[key]):
            report(f"{path} says {key} {own[key]}, which is used; {path.parent / 'config.json'} says {values[key]}.")
        values = {**values, **own}
    return huggingface.from_huggingface(tensors, values, path, report)


def read_shards(index: Path, report: Report) -> dict[str, Tensor]:
    """The tensors of all files listed in an index, read one after another.  Raises ModelError."""
    result = {}
    for name, keys in huggingface.shard_files(index).items():
        shard = index.parent / name
        check_file(shard)
        tensors = read_safetensors(shard)[1] if is_safetensors(shard) else pickles.read_pickle(shard, report)
        for key in sorted({*keys} ^ tensors.keys()):
            raise ModelError(f"{shard} and {index} disagree about the tensor {key}. Download both again.")
        result.update(tensors)
    return result


def as_kind(model: nn.Module, kind: type | None, fresh_head: bool, path: str | Path, report: Report) -> nn.Module:
    """The model as another kind, where that is possible.  Raises ModelError."""
    if kind is None or isinstance(model, kind):
        if fresh_head:
            report(f"{path} has the head of a {type(model).__name__}, which is kept; no new head is made.")
        return model
    if kind is Encoder:
        return model.encoder
    if not isinstance(model, Encoder):
        raise ModelError(f"{path} is a {type(model).__name__}, not a {kind.__name__}.")
    bare = f"{path} is a bare encoder: it has no head of a {kind.__name__}"
    if kind in (SequenceClassifier, TokenClassifier):
        raise ModelError(f"{bare}, and no labels.")
    if not fresh_head:
        raise ModelError(f"{bare}. Use a file that has one, or add an untrained one with --fresh-head.")
    fresh = kind(model.config).to(next(model.parameters()).dtype)
    fresh.encoder = model
    return fresh.eval()


# ---- inference, teachers and tokenizers ------------------------------------------------------------------------


def int8_file(path: str | Path) -> Path | None:
    """The file of this project with matrices in int8 that this is, or that is in this folder.  Raises ModelError."""
    place = local_path(path)
    if not place.exists() or (place.is_file() and not is_safetensors(place)):
        return None
    file = weights_in(place, lambda line: None)
    return file if is_safetensors(file) and is_int8(file) else None


def load_frozen(path: str | Path, kind: type, device: torch.device, precision: str) -> nn.Module:
    """A model of this kind for inference on the device: its encoder is frozen in this precision, its head in float32.

    Raises ModelError.
    """
    if precision == "int8" and (file := int8_file(path)):
        return as_kind(load_int8(file), kind, False, path, note).requires_grad_(False)
    model = load_teacher(path, kind, device)
    freeze(model.encoder, precision)
    return model


def load_teacher(path: str | Path, kind: type, device: torch.device) -> nn.Module:
    """A frozen model of this kind, in float32 and evaluation mode, on the device.  Raises ModelError."""
    return load_checkpoint(path, kind=kind).float().to(device).eval().requires_grad_(False)


def load_tokenizer(path: str | Path | None, *model_paths: str | Path | None) -> Tokenizer:
    """The tokenizer at `path`, else that of the first model that has one.

    Raises DataError if there is no model or no tokenizer, or if a model has another one: inside its file, or, where no
    path is given, also beside it.
    """
    models = list(filter(None, model_paths))
    owned = list(filter(None, (find_tokenizer(local_path(model)) for model in models)))
    if not path and not models:
        raise DataError("There is no tokenizer given. Name it with --tokenizer.")
    if not path and not owned:
        command = f"python convert_weights.py {shlex.quote(str(models[0]))} whole.safetensors"
        raise DataError(
            f"There is no {FILE_NAME} inside or beside {models[0]}. Name the model's own with --tokenizer; or fetch it "
            "from the model's repository on the hub, and put both into one file: "
            f"{command} --tokenizer almanach/camembert-base"
        )
    tokenizer = Tokenizer(path) if path else owned[0]
    for own in owned:
        if own.content == tokenizer.content:
            continue
        if not path:
            raise DataError(f"{tokenizer.path} and {own.path} have different tokenizers, but are used together.")
        if own.path.name != FILE_NAME:
            raise DataError(f"The tokenizer {tokenizer.path} is not the one inside {own.path}. Leave --tokenizer out.")
    return tokenizer


def find_tokenizer(model_path: Path) -> Tokenizer | None:
    """A model's own tokenizer: inside its file or tarball, else beside it; None if there is none.  Raises DataError."""
    if not model_path.exists():
        raise DataError(f"There is no model {model_path}.{similar_path(model_path) or ' Check the path.'}")
    with unpacked(model_path) as place:
        found = own_tokenizer(place)
    if place != model_path:
        found = (model_path, found[1]) if found else own_tokenizer(model_path)
    return Tokenizer(*found) if found else None


def check_vocabulary(config: EncoderConfig, tokenizer: Tokenizer) -> None:
    """Raises DataError if the tokenizer's ids are not the model's."""
    if len(tokenizer) != config.vocab_size or tokenizer.pad_id != config.pad_id:
        raise DataError(
            f"The tokenizer {tokenizer.path} does not match the model: it has {len(tokenizer)} tokens and pads with "
            f"{tokenizer.pad_id}, the model has {config.vocab_size} and {config.pad_id}. Name the model's own with "
            "--tokenizer."
        )
