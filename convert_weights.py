"""Brings others' checkpoints over, and ours back.

    python convert_weights.py IN OUT                     Hugging Face's masked LM -> one .safetensors of this project
    python convert_weights.py IN OUT --to hf             either -> a folder that transformers opens

IN is a model.safetensors, a pytorch_model.bin, a folder with one of them, or a file of this project. The
config.json beside the weights is read; without one, what the shapes do not show is CamemBERT's, and said.
"""

import functools
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data import DataError, OptionError, Tokenizer
from data.options import check, check_bounds, option, parse_options
from data.tokenizer import FILE_NAME, tokenizer_beside
from model import EncoderConfig, MaskedLM, ModelError, load_model, save_model
from model.checkpoint import PRECISIONS, assemble, check_file, is_ours, read_metadata, read_safetensors, usual_mode

# ---- the key table: ours, then Hugging Face's (without its prefix `roberta.`) ----------------------------------

MODEL_KEYS = {
    "encoder.embeddings.word.weight": "embeddings.word_embeddings.weight",
    "encoder.embeddings.position.weight": "embeddings.position_embeddings.weight",  # plus the token-type row
    "encoder.embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "encoder.embeddings.norm.bias": "embeddings.LayerNorm.bias",
    "dense.weight": "lm_head.dense.weight",
    "dense.bias": "lm_head.dense.bias",
    "norm.weight": "lm_head.layer_norm.weight",
    "norm.bias": "lm_head.layer_norm.bias",
    "bias": "lm_head.bias",
}
LAYER_KEYS = {  # under encoder.layers.N and encoder.layer.N; each with .weight and .bias
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.mix": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.expand": "intermediate.dense",
    "feed_forward.contract": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
TOKEN_TYPE = "embeddings.token_type_embeddings.weight"
CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "pad_id": "pad_token_id",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
ARCHITECTURES = ("camembert", "roberta", "xlm-roberta")  # one architecture under three names
HEAD_SIZE = 64  # of every released CamemBERT; the one number that no shape shows

Report = Callable[[str], None]


def rename(
    key: str, model_keys: Mapping[str, str], layer_keys: Mapping[str, str], ours: str, theirs: str
) -> str | None:
    """A key's other name, by a table in either direction; None where the table does not have it."""
    layer = re.fullmatch(re.escape(ours) + r"\.(0|[1-9]\d{0,3})\.(.+)\.(weight|bias)", key)
    if layer and layer[2] in layer_keys:
        return f"{theirs}.{layer[1]}.{layer_keys[layer[2]]}.{layer[3]}"
    return model_keys.get(key)


def to_huggingface_key(key: str) -> str:
    key = rename(key, MODEL_KEYS, LAYER_KEYS, "encoder.layers", "encoder.layer")
    return key if key.startswith("lm_head.") else f"roberta.{key}"


def from_huggingface_key(key: str) -> str | None:
    model_keys = {theirs: ours for ours, theirs in MODEL_KEYS.items()}
    layer_keys = {theirs: ours for ours, theirs in LAYER_KEYS.items()}
    return rename(key, model_keys, layer_keys, "encoder.layer", "encoder.layers")


# ---- in --------------------------------------------------------------------------------------------------------


def print_note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def load_checkpoint(path: str | Path, report: Report = print_note) -> nn.Module:
    """A model from this project's file, or from a masked LM that Hugging Face's transformers wrote.

    path: a .safetensors, a .bin (read as tensors only: no code in it can run) or a folder with model.safetensors
    or pytorch_model.bin. The file's precision is kept; the model is in evaluation mode.
    report: gets a sentence for everything that is assumed or left out.
    Raises ModelError, naming the file and the cure.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not names:
            raise ModelError(f"The folder {path} holds neither model.safetensors nor pytorch_model.bin.")
        path = path / names[0]
    check_file(path)
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        if is_ours(read_metadata(path)):
            return load_model(path)
        tensors = read_safetensors(path)[1]
    elif start.startswith((b"PK", b"\x80")):  # torch.save's zip files, and the older plain pickles
        tensors = read_pickle(path)
    else:
        raise ModelError(f"{path} is neither a .safetensors file nor a PyTorch .bin: it holds no weights.")
    return from_huggingface(tensors, read_config(path), path, report)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model.bin, with nothing in it run.  Raises ModelError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.save never compresses; a bomb does
                packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            if packed:
                raise ModelError(f"{path} is a compressed archive, which PyTorch does not write. Fetch it anew.")
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a damaged or hostile pickle can make torch.load raise nearly anything
        reason = str(error).split("\n")[0][:200]
        raise ModelError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors and was refused "
            f"({reason}). Fetch it anew, best as model.safetensors."
        ) from None
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise ModelError(f"{path} is not a table of named tensors, as a pytorch_model.bin is.")
    return dict(tensors)


def read_config(weights: Path) -> dict:
    """The config.json beside the weights, {} where there is none.  Raises ModelError."""
    path = weights.parent / "config.json"
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}). Fetch it anew.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a configuration: a JSON object is needed.")
    return values


def from_huggingface(tensors: dict[str, Tensor], values: dict, path: Path, report: Report) -> MaskedLM:
    """A masked LM from Hugging Face's tensors and the values of its config.json.  Raises ModelError.

    Takes the names found in the wild: with or without `roberta.` (or with it twice), LayerNorm.gamma and .beta,
    position_ids buffers, a leftover pooler, the LM bias under either of its names or both, a copy of the tied
    decoder. Each tensor of the file is used once or dropped with its reason; none is passed over.
    """
    tensors = canonical_names(tensors, path)
    check_tensors(tensors, path)
    drop_leftovers(tensors, path, report)
    refuse_other_heads(tensors, path)
    drop_alias(tensors, "lm_head.decoder.weight", "embeddings.word_embeddings.weight", path, report)
    if "lm_head.bias" not in tensors and "lm_head.decoder.bias" in tensors:
        tensors["lm_head.bias"] = tensors.pop("lm_head.decoder.bias")
    drop_alias(tensors, "lm_head.decoder.bias", "lm_head.bias", path, report)
    refuse_shared_memory(tensors, path)
    config = config_from(values, tensors, path, report)
    unify_precision(tensors, path, report)
    fold_token_type(tensors, path, report)
    renamed = {from_huggingface_key(key): key for key in tensors}
    if None in renamed:
        raise ModelError(f"{path} has a tensor {renamed[None]} that a masked LM of CamemBERT has no place for.")
    names = {**MODEL_KEYS, **renamed}
    for number in range(min(config.num_layers, len(tensors))):  # so that a missing tensor has the file's name too
        for ours, theirs in LAYER_KEYS.items():
            for kind in ("weight", "bias"):
                names[f"encoder.layers.{number}.{ours}.{kind}"] = f"encoder.layer.{number}.{theirs}.{kind}"
    return assemble(MaskedLM, config, (), {ours: tensors[key] for ours, key in renamed.items()}, path, names)


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError unless every tensor is a plain table of numbers, each of which is there."""
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ModelError(f"{path}: the tensor {key} is no plain table of numbers.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(f"{path}: the tensor {key} claims more numbers than the file holds.")
        if tensor.dtype not in PRECISIONS and not key.endswith("position_ids"):
            raise ModelError(f"{path}: the tensor {key} holds {tensor.dtype}, not floating-point numbers.")


def drop_leftovers(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """Leave out what no masked LM uses, with the reason."""
    ids = tensors.get("embeddings.position_ids")
    if ids is not None and torch.equal(ids.flatten(), torch.arange(ids.numel(), dtype=ids.dtype)):
        report(f"{path}: embeddings.position_ids left out, a table of 0, 1, 2, … that is counted here.")
        del tensors["embeddings.position_ids"]
    for key in ("pooler.dense.weight", "pooler.dense.bias"):
        if tensors.pop(key, None) is not None:
            report(f"{path}: {key} left out, a masked LM has no pooler.")


def refuse_shared_memory(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError if two tensors are one: trained, they would move together."""
    seen = {}
    for key, tensor in tensors.items():
        twin = seen.setdefault(tensor.data_ptr(), key)
        if twin != key and tensor.numel():
            raise ModelError(f"{path}: {key} and {twin} are one tensor, which CamemBERT does not share.")


def unify_precision(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """A file of several precisions is taken in the highest of them, and that is said."""
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) > 1:
        widest = functools.reduce(torch.promote_types, kinds)
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        report(f"{path} mixes {names}; taken as {str(widest).removeprefix('torch.')}.")
        tensors.update({key: tensor.to(widest) for key, tensor in tensors.items()})


def canonical_names(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Every tensor under Hugging Face's present name without prefix.  Raises ModelError if two claim one name."""
    result, origin = {}, {}
    for key, tensor in tensors.items():
        name = re.sub(r"^(roberta\.)+", "", key)
        name = re.sub(r"\b(LayerNorm|layer_norm)\.gamma$", r"\1.weight", name)
        name = re.sub(r"\b(LayerNorm|layer_norm)\.beta$", r"\1.bias", name)
        if name in result:
            raise ModelError(f"{path} has two tensors for one place: {origin[name]} and {key}.")
        result[name], origin[name] = tensor, key
    return result


def refuse_other_heads(tensors: Mapping[str, Tensor], path: Path) -> None:
    kinds = {
        "classifier.": "classifier",
        "qa_outputs.": "question answerer",
        "cls.": "BERT",
        "distilbert.": "DistilBERT",
    }
    for prefix, kind in kinds.items():
        if any(key.startswith(prefix) for key in tensors):
            raise ModelError(f"{path} is a {kind} and not a masked LM, the only kind that is brought over so far.")
    word = tensors.get("embeddings.word_embeddings.weight")
    if word is None or word.ndim != 2:
        raise ModelError(f"{path} holds no CamemBERT: it has no table embeddings.word_embeddings.weight.")
    if not any(key.startswith("lm_head.") for key in tensors):
        raise ModelError(f"{path} is a bare encoder: its LM head is missing. Take the file of the masked LM.")


def drop_alias(tensors: dict[str, Tensor], alias: str, original: str, path: Path, report: Report) -> None:
    """Leave out a second copy of a tied tensor.  Raises ModelError if it is not a copy."""
    if alias not in tensors or original not in tensors:
        return
    if tensors[alias].shape != tensors[original].shape or not torch.equal(tensors[alias], tensors[original]):
        raise ModelError(
            f"{path}: {alias} and {original} differ, but they are one tensor in CamemBERT. "
            "The file is of an untied model, which this project has no place for."
        )
    report(f"{path}: {alias} left out, it is {original} once more.")
    del tensors[alias]


def config_from(values: dict, tensors: Mapping[str, Tensor], path: Path, report: Report) -> EncoderConfig:
    """config.json's values, else what the shapes show, else CamemBERT's, which is said.  Raises ModelError."""
    beside = path.parent / "config.json"
    model_type = values.get("model_type", ARCHITECTURES[0])
    if model_type not in ARCHITECTURES:
        raise ModelError(f"{beside} says model_type {model_type!r}: another architecture than CamemBERT's.")
    for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if values.get(key, only) != only:
            raise ModelError(f"{beside} says {key} {values[key]!r}: another architecture than CamemBERT's.")
    known = {ours: values[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in values}
    shown = shapes_show(tensors)
    assumed = [name for name in CONFIG_KEYS if name not in known and name not in shown]
    settings = {**shown, **known}
    if "num_heads" in assumed:
        settings["num_heads"] = max(1, settings["hidden_size"] // HEAD_SIZE)
    try:
        config = EncoderConfig(**settings)
    except ModelError as error:
        raise ModelError(f"{beside if known else path} describes no CamemBERT: {error}") from None
    if assumed:
        said = ", ".join(f"{name} {getattr(config, name)}" for name in assumed)
        lack = "does not say everything" if beside.exists() else "is not there"
        report(f"{beside} {lack}; assumed, as CamemBERT's: {said}.")
    if values.get("attention_probs_dropout_prob", config.dropout) != config.dropout:
        report(
            f"{beside} has two dropouts; one is kept for both, hidden_dropout_prob {config.dropout} "
            f"(attention_probs_dropout_prob was {values['attention_probs_dropout_prob']})."
        )
    return config


def shapes_show(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What the tensors' shapes tell of the configuration: everything but the number of heads."""
    word = tensors["embeddings.word_embeddings.weight"]
    shown = dict(zip(("vocab_size", "hidden_size"), word.shape))
    position = tensors.get("embeddings.position_embeddings.weight")
    if position is not None and position.ndim == 2:
        shown["max_positions"] = len(position)
    expand = tensors.get("encoder.layer.0.intermediate.dense.weight")
    if expand is not None and expand.ndim == 2:
        shown["intermediate_size"] = len(expand)
    numbers = [re.match(r"encoder\.layer\.(\d{1,4})\.", key) for key in tensors]
    shown["num_layers"] = len({match[1] for match in numbers if match})
    return shown


def fold_token_type(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """Add the token-type row to every position row: it is always added, so that H_0 stays what it was.

    Only row 0 is ever used (type ids are always 0 in CamemBERT). Raises ModelError if it does not fit.
    """
    rows = tensors.pop(TOKEN_TYPE, None)
    position = tensors.get(MODEL_KEYS["encoder.embeddings.position.weight"])
    if rows is None:
        report(f"{path} has no {TOKEN_TYPE}: taken as zero.")
        return
    if position is None or position.ndim != 2 or rows.ndim != 2 or rows.shape[1] != position.shape[1] or not len(rows):
        raise ModelError(f"{path}: {TOKEN_TYPE} has shape {tuple(rows.shape)}, which fits no position embeddings.")
    if len(rows) > 1:
        report(f"{path}: rows 1 to {len(rows) - 1} of {TOKEN_TYPE} left out, CamemBERT's type ids are always 0.")
    tensors["embeddings.position_embeddings.weight"] = position + rows[0]


# ---- out -------------------------------------------------------------------------------------------------------


def huggingface_config(model: MaskedLM) -> dict:
    """The config.json of a masked LM, as transformers' CamembertForMaskedLM reads it."""
    config = {theirs: getattr(model.config, ours) for ours, theirs in CONFIG_KEYS.items()}
    return {
        "architectures": ["CamembertForMaskedLM"],
        "model_type": "camembert",
        **config,
        "attention_probs_dropout_prob": model.config.dropout,
        "type_vocab_size": 1,
        "bos_token_id": Tokenizer.bos_id,
        "eos_token_id": Tokenizer.eos_id,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": str(model.bias.dtype).removeprefix("torch."),
    }


def to_huggingface(model: MaskedLM) -> dict[str, Tensor]:
    """A masked LM's tensors under Hugging Face's names, with a token-type row of zeros: ours is in the positions."""
    tensors = {to_huggingface_key(key): tensor.contiguous() for key, tensor in model.state_dict().items()}
    tensors[f"roberta.{TOKEN_TYPE}"] = torch.zeros(1, model.config.hidden_size, dtype=model.bias.dtype)
    return tensors


def export_huggingface(model: nn.Module, folder: str | Path, tokenizer: str | Path | None = None) -> None:
    """Write config.json, model.safetensors and the SentencePiece model, if given, into a new folder.

    The folder gets its name when it is complete. Raises ModelError where it cannot be written, and for other
    kinds of model than the masked LM.
    """
    if not isinstance(model, MaskedLM):
        raise ModelError(f"Only a masked LM is written for Hugging Face so far, not a {type(model).__name__}.")
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            save_file(to_huggingface(model), temporary / "model.safetensors", metadata={"format": "pt"})
            text = json.dumps(huggingface_config(model), indent=2, sort_keys=True) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")
            if tokenizer is not None:
                shutil.copyfile(tokenizer, temporary / FILE_NAME)
            for path in (temporary, *temporary.iterdir()):
                usual_mode(path)
            temporary.rename(folder)  # refuses a folder with something in it
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror or error}.") from None


# ---- the command -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    source: str = option(
        None, "a model.safetensors, a pytorch_model.bin, a folder with one of them, or a file of this project",
        "from and to", positional=True, metavar="IN"
    )  # fmt: skip
    target: str = option(
        None, "the file to write, or with --to hf the folder; it must not be there yet", "from and to",
        positional=True, metavar="OUT"
    )  # fmt: skip
    to: str = option(
        "ours", "what to write: one .safetensors of this project, or a folder for transformers",
        choices=("ours", "hf")
    )  # fmt: skip
    tokenizer: str | None = option(
        None, "SentencePiece model to put into the folder (default: the one beside IN, if there is one)",
        metavar="FILE"
    )  # fmt: skip

    def __post_init__(self):
        target = Path(self.target)
        taken = target.exists() and not (self.to == "hf" and target.is_dir() and not any(target.iterdir()))
        check_bounds(self)
        check(not taken, f"{target} is there already. Remove it, or choose another name.")
        check(self.to == "hf" or self.tokenizer is None, "--tokenizer goes with --to hf: our file holds no tokenizer.")


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(
        Options, arguments, "python convert_weights.py IN OUT [OPTIONS]", "Brings checkpoints over, and back."
    )
    model = load_checkpoint(options.source)
    if options.to == "ours":
        save_model(model, options.target, {"converted from": options.source})
    else:
        tokenizer = options.tokenizer or tokenizer_beside(options.source)
        if tokenizer is not None:
            tokenizer = Tokenizer(tokenizer)
            if len(tokenizer) != model.config.vocab_size:
                raise DataError(
                    f"The tokenizer {tokenizer.path} has {len(tokenizer)} words, the model {model.config.vocab_size}: "
                    "they do not belong together."
                )
        export_huggingface(model, options.target, tokenizer.path if tokenizer else None)
    config = model.config
    print(
        f"{options.target}: {type(model).__name__}, {config.num_layers} layers of {config.hidden_size}, "
        f"{config.vocab_size} words, {str(next(model.parameters()).dtype).removeprefix('torch.')}"
    )


if __name__ == "__main__":
    try:
        main()
    except (ModelError, DataError, OptionError) as error:
        print(f"convert_weights.py: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a name too long, a folder that may not be looked into
        print(f"convert_weights.py: {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
