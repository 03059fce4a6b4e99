"""Hugging Face's tensors and config.json: one set of names, nothing passed over, nothing believed.

Takes what is found in the wild: with or without `roberta.` (or with it twice), LayerNorm.gamma and .beta,
position_ids buffers, a leftover pooler, the LM bias under either of its names or both, a copy of the tied decoder.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import EncoderConfig, ModelError
from ..encoder import Encoder
from ..heads import SequenceClassifier, TokenClassifier
from .names import CONFIG_KEYS, HEAD_KEYS, from_huggingface_key, to_huggingface_key
from .native import KINDS, assemble

WORD, POSITION = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
TOKEN_TYPE = "embeddings.token_type_embeddings.weight"
ARCHITECTURES = ("camembert", "roberta", "xlm-roberta")  # one architecture under three names
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MOST_JSON = 10_000_000  # bytes
SHARD_NAME = re.compile(r"[\w][\w.-]*\.safetensors")

HEAD_SIZE = 64  # of every released CamemBERT; the one number that no shape shows

Report = Callable[[str], None]


def clean(tensors: Mapping[str, Tensor], path: Path, report: Report) -> dict[str, Tensor]:
    """Every tensor under Hugging Face's present name, without prefix; what no model here uses is left out, and said.

    Raises ModelError for what is no plain table of floating-point numbers, for two tensors in one place, and for
    two that are one where CamemBERT has two.
    """
    tensors = canonical_names(tensors, path)
    check_tensors(tensors, path)
    drop_leftovers(tensors, path, report)
    drop_alias(tensors, "lm_head.decoder.weight", WORD, path, report)
    if "lm_head.bias" not in tensors and "lm_head.decoder.bias" in tensors:
        tensors["lm_head.bias"] = tensors.pop("lm_head.decoder.bias")
    drop_alias(tensors, "lm_head.decoder.bias", "lm_head.bias", path, report)
    refuse_shared_memory(tensors, path)
    word = tensors.get(WORD)
    if word is None or word.ndim != 2:
        raise ModelError(f"{path} holds no CamemBERT: it has no table {WORD}.")
    unify_precision(tensors, path, report)
    fold_token_type(tensors, path, report)
    return tensors


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


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError unless every tensor is a plain table of numbers, each of which is there."""
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ModelError(f"{path}: the tensor {key} is no plain table of numbers.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(f"{path}: the tensor {key} claims more numbers than the file holds.")
        whole = key == "embeddings.position_ids" and tensor.dtype in (torch.int32, torch.int64)
        if tensor.is_neg() or tensor.is_conj():
            raise ModelError(f"{path}: the tensor {key} is a view with another sign, no plain table of numbers.")
        if tensor.dtype not in PRECISIONS and not whole:
            raise ModelError(f"{path}: the tensor {key} holds {tensor.dtype}, not floating-point numbers.")


def drop_leftovers(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """Leave out what no model here uses, with the reason."""
    ids = tensors.get("embeddings.position_ids")
    if ids is not None and torch.equal(ids.flatten(), torch.arange(ids.numel(), dtype=ids.dtype)):
        report(f"{path}: embeddings.position_ids left out, a table of 0, 1, 2, … that is counted here.")
        del tensors["embeddings.position_ids"]
    for key in ("pooler.dense.weight", "pooler.dense.bias"):
        if tensors.pop(key, None) is not None:
            report(f"{path}: {key} left out, no task of CamemBERT's uses the pooler.")


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


def refuse_shared_memory(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError if two tensors share memory: trained, they would move together."""
    last, end = "", 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if not tensor.numel():
            continue
        if tensor.data_ptr() < end:
            raise ModelError(f"{path}: {key} and {last} are one tensor, which CamemBERT does not share.")
        steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        last, end = key, tensor.data_ptr() + (steps + 1) * tensor.element_size()


def unify_precision(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """A file of several precisions is taken in that of most of its numbers, and that is said.

    Not in the widest: one float64 number could then make a file of half precision four times as large in memory.
    """
    numbers = Counter()
    for tensor in tensors.values():
        numbers[tensor.dtype] += tensor.numel()
    if len(numbers) > 1:
        most = numbers.most_common(1)[0][0]
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in numbers))
        report(f"{path} mixes {names}; taken as {str(most).removeprefix('torch.')}, in which most of it is.")
        for key, tensor in tensors.items():
            tensors[key] = tensor.to(most)


def fold_token_type(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """Add the token-type row to every position row: it is always added, so that H_0 stays what it was.

    Only row 0 is ever used (type ids are always 0 in CamemBERT). Raises ModelError if it does not fit.
    """
    rows = tensors.pop(TOKEN_TYPE, None)
    position = tensors.get(POSITION)
    if rows is None:
        report(f"{path} has no {TOKEN_TYPE}: taken as zero.")
        return
    if position is None or position.ndim != 2 or rows.ndim != 2 or rows.shape[1] != position.shape[1] or not len(rows):
        raise ModelError(f"{path}: {TOKEN_TYPE} has shape {tuple(rows.shape)}, which fits no position embeddings.")
    if len(rows) > 1:
        report(f"{path}: rows 1 to {len(rows) - 1} of {TOKEN_TYPE} left out, CamemBERT's type ids are always 0.")
    tensors[POSITION] = position + rows[0]


def shapes_show(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What the tensors' shapes tell of the configuration: everything but the number of heads."""
    shown = dict(zip(("vocab_size", "hidden_size"), tensors[WORD].shape))
    position = tensors.get(POSITION)
    if position is not None and position.ndim == 2:
        shown["max_positions"] = len(position)
    expand = tensors.get("encoder.layer.0.intermediate.dense.weight")
    if expand is not None and expand.ndim == 2:
        shown["intermediate_size"] = len(expand)
    numbers = [re.match(r"encoder\.layer\.(\d{1,4})\.", key) for key in tensors]
    shown["num_layers"] = len({match[1] for match in numbers if match})
    return shown


# ---- JSON beside the weights -----------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """Raises ModelError if it is no JSON object."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_JSON:
            raise ModelError(f"{path} is no file of at most {MOST_JSON / 1e6:.0f} MB, as it should be. Fetch it anew.")
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}). Fetch it anew.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} is no JSON object, which it must be. Fetch it anew.")
    return values


def read_config(folder: Path) -> dict:
    """The config.json of a folder, {} where there is none.

    Raises ModelError for one that cannot be read, or is another architecture's.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):  # a link to nothing is not nothing
        return {}
    values = read_json(path)
    model_type = values.get("model_type", ARCHITECTURES[0])
    if model_type not in ARCHITECTURES:
        raise ModelError(f"{path} says model_type {model_type!r:.100}: another architecture than CamemBERT's.")
    for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if values.get(key) not in (None, only):
            raise ModelError(f"{path} says {key} {values[key]!r:.100}: another architecture than CamemBERT's.")
    if "MultipleChoice" in str(values.get("architectures")):
        raise ModelError(f"{path} is of a multiple-choice model, which has no place here.")
    return values


def label_names(values: Mapping, count: int, path: Path, report: Report) -> list[str] | None:
    """The classes' names in the order of the outputs, from id2label, else from label2id; None where neither is.

    Raises ModelError if they are not one different name for each of the `count` outputs.
    """
    by_id, by_name = values.get("id2label"), values.get("label2id")
    if by_id is None and by_name is None:
        return None
    try:
        inverse = {label_number(number): name for name, number in (by_name or {}).items()}
        names = {label_number(number): name for number, name in by_id.items()} if by_id is not None else inverse
    except (AttributeError, TypeError, ValueError):
        raise ModelError(f"{path}: id2label and label2id must map numbers to names, and names to numbers.") from None
    wrong = len(names) != count or names.keys() != set(range(len(names)))
    if wrong or len(set(map(str, names.values()))) != count or not all(map(is_name, names.values())):
        raise ModelError(
            f"{path} names the labels {list(names.values())[:10]!r:.200}, but the classifier has {count} outputs: each "
            "needs a name in quotes, of printable characters, and no other's."
        )
    if by_name is not None and inverse != names:
        report(f"{path}: label2id disagrees with id2label, which is taken.")
    return [names[number] for number in range(count)]


def label_number(value: object) -> int:
    """0, 1, 2, … as JSON has it in keys and values.  Raises ValueError for anything else."""
    if type(value) is int or (isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,6}", value)):
        return int(value)
    raise ValueError(f"{value!r} is no number of a label")


def is_name(value: object) -> bool:
    """A label that can be printed and written."""
    return isinstance(value, str) and value.isprintable() and bool(value)


def shard_files(index: Path) -> dict[str, list[str]]:
    """A model.safetensors.index.json -> the files beside it, each with its tensors' names.  Raises ModelError."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index} has no weight_map that says where the tensors are.")
    files = {}
    for key, name in places.items():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise ModelError(f"{index} names {str(name)[:100]!r} for {key}: no .safetensors file beside it.")
        files.setdefault(name, []).append(key)
    return files


# ---- a model from them ----------------------------------------


def from_huggingface(tensors: Mapping[str, Tensor], values: Mapping, path: Path, report: Report) -> nn.Module:
    """A model from Hugging Face's tensors and the values of its config.json.  Raises ModelError, ModelError.

    Each tensor of the file is used once or dropped with its reason; none is passed over.
    """
    tensors = clean(tensors, path, report)
    kind = kind_of(tensors, path)
    config = config_from(values, tensors, path, report)
    head = ()
    if kind in (SequenceClassifier, TokenClassifier):
        name = HEAD_KEYS[kind.__name__]["output.weight"]
        output = tensors.get(name)
        if output is None or output.ndim != 2 or output.shape[1] != config.hidden_size:
            raise ModelError(
                f"{path} lacks the tensor {name}, or its shape is not (classes, "
                f"{config.hidden_size}): it is cut short or damaged."
            )
        count = len(output)
        head = count, label_names(values, count, path, report)
    renamed = {from_huggingface_key(key, kind.__name__): key for key in tensors}
    if None in renamed:
        raise ModelError(f"{path} has a tensor {renamed[None]} that a {kind.__name__} has no place for.")
    with torch.device("meta"):  # so that a missing tensor has the file's name too
        one_layer = kind(EncoderConfig(1, 1, 1, 1, 2, 3), *head).state_dict()
    names = {ours: to_huggingface_key(ours, kind.__name__).removeprefix("roberta.") for ours in one_layer}
    first = {ours: theirs for ours, theirs in names.items() if "layers.0." in ours}
    for number in range(1, min(config.num_layers, len(tensors) // len(first) + 2)):
        for ours, theirs in first.items():
            names[ours.replace("layers.0.", f"layers.{number}.")] = theirs.replace(".0.", f".{number}.")
    names.update(renamed)
    return assemble(kind, config, head, {ours: tensors[key] for ours, key in renamed.items()}, path, names)


def kind_of(tensors: Mapping[str, Tensor], path: Path) -> type:
    """The kind of model that the tensors' names are of.  Raises ModelError if they are of two."""
    for prefix, other in (("cls.", "BERT"), ("distilbert.", "DistilBERT")):
        if any(key.startswith(prefix) for key in tensors):
            raise ModelError(f"{path} is a {other}: another architecture than CamemBERT's.")
    kinds = [kind for kind, keys in HEAD_KEYS.items() if any(key in tensors for key in keys.values())]
    if len(kinds) > 1:
        raise ModelError(f"{path} has the heads of a {' and of a '.join(kinds)}.")
    return KINDS[kinds[0]] if kinds else Encoder


def config_from(values: Mapping, tensors: Mapping[str, Tensor], path: Path, report: Report) -> EncoderConfig:
    """config.json's values, else what the shapes show, else CamemBERT's, which is said.  Raises ModelError."""
    beside = path.parent / "config.json"
    known = {ours: values[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in values}
    shown = shapes_show(tensors)
    assumed = [name for name in CONFIG_KEYS if name not in known and name not in shown]
    settings = {**shown, **known}
    if "num_heads" in assumed:
        settings["num_heads"] = max(1, settings["hidden_size"] // HEAD_SIZE)
    try:
        config = EncoderConfig(**settings)
    except ModelError as error:
        raise ModelError(f"{beside if beside.exists() else path} describes no CamemBERT: {error}") from None
    if assumed:
        said = ", ".join(f"{name} {getattr(config, name)}" for name in assumed)
        lack = "does not say everything" if beside.exists() else "is not there"
        report(f"{beside} {lack}; assumed, as CamemBERT's: {said}.")
    if values.get("attention_probs_dropout_prob", config.dropout) != config.dropout:
        report(
            f"{beside} has two dropouts; one is kept for both, hidden_dropout_prob {config.dropout} "
            f"(attention_probs_dropout_prob was {values['attention_probs_dropout_prob']})."
        )
    for key in ("problem_type", "classifier_dropout"):  # losses and dropouts of a training to come, not of the model
        if values.get(key) not in (None, "single_label_classification", config.dropout):
            report(f"{beside} says {key} {values[key]!r:.100}, which is not kept: give it to transformers again.")
    return config
