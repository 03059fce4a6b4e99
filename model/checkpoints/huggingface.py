"""Hugging Face's format: tensors under transformers' names, config.json, the index of a checkpoint in shards.

Accepts what published files contain: names with or without `roberta.` (or with it twice) and with a wrapper's prefix,
LayerNorm.gamma and .beta, buffers, an unused pooler, either or both of the names of each tied tensor of the LM head.
Each tensor of a file is used exactly once, or left out with a reported reason. Nothing in a file is trusted.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from data.formats import lfs_pointer

from ..config import EncoderConfig, ModelError
from ..encoder import Encoder
from ..heads import QuestionAnswerer, SequenceClassifier, TokenClassifier
from .names import CONFIG_KEYS, HEAD_KEYS, from_huggingface_key, to_huggingface_key
from .native import DTYPES, KINDS, assemble
from .wrappers import unwrapped_names

WORD, POSITION = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
TOKEN_TYPE = "embeddings.token_type_embeddings.weight"
MODEL_TYPES = ("camembert", "roberta", "xlm-roberta")  # one architecture under three names
HEAD_SIZE = 64  # of every released CamemBERT; no tensor's shape shows the number of heads
MAX_JSON_BYTES = 10_000_000
SHARD_NAME = r"\w[\w.-]*"  # and the suffix: a file in the index's own folder
TIED = (("lm_head.decoder.weight", WORD), ("lm_head.decoder.bias", "lm_head.bias"))  # two names of one tensor
# by a part of their keys
OTHER_MODELS = {"cls.predictions": "a BERT", "distilbert": "a DistilBERT", "electra": "an ELECTRA"}

Report = Callable[[str], None]  # called with a sentence for everything that is assumed or left out

# ---- the model -------------------------------------------------------------------------------------------------


def from_huggingface(tensors: Mapping[str, Tensor], values: Mapping, path: Path, report: Report) -> nn.Module:
    """A model from transformers' tensors and the values of its config.json, in evaluation mode.

    path: the file they come from, for messages.
    Raises ModelError, naming the tensor or the key, for anything that is not a CamemBERT.
    """
    tensors = normalise(tensors, path, report)
    kind = kind_of(tensors, path)
    config = make_config(values, tensors, path, report)
    head = ()
    if kind in (SequenceClassifier, TokenClassifier):
        name = HEAD_KEYS[kind.__name__]["output.weight"]
        output = tensors.get(name)
        if output is None or output.ndim != 2 or output.shape[1] != config.hidden_size:
            raise ModelError(f"{path} lacks the tensor {name}, or its shape is not (labels, {config.hidden_size}).")
        head = len(output), label_names(values, len(output), path, report)
    if kind is SequenceClassifier:
        head += (problem_type(values, len(output), path, report),)
    elif kind is QuestionAnswerer:
        head = (values.get("no_answer_threshold"),)  # a key of this project's exports
    renamed = {from_huggingface_key(key, kind.__name__): key for key in tensors}
    if None in renamed:
        raise ModelError(f"{path} has a tensor {renamed[None]}, which a {kind.__name__} does not have.")
    tensors = {ours: tensors[key] for ours, key in renamed.items()}
    return assemble(
        kind, config, head, tensors, path, lambda key: to_huggingface_key(key, kind.__name__).removeprefix("roberta.")
    )


def kind_of(tensors: Mapping[str, Tensor], path: Path) -> type:
    """The class of model, by the names of the head's tensors.  Raises ModelError for those of two classes."""
    kinds = [kind for kind, keys in HEAD_KEYS.items() if any(key in tensors for key in keys.values())]
    if len(kinds) > 1:
        raise ModelError(f"{path} has the heads of a {' and of a '.join(kinds)}.")
    return KINDS[kinds[0]] if kinds else Encoder


def make_config(values: Mapping, tensors: Mapping[str, Tensor], path: Path, report: Report) -> EncoderConfig:
    """From config.json; what it lacks from the tensors' shapes, else CamemBERT's values.  Raises ModelError."""
    config_path = path.parent / "config.json"
    known = {ours: values[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in values}
    shown = sizes_of(tensors)
    assumed = [name for name in CONFIG_KEYS if name not in known and name not in shown]
    settings = {**shown, **known}
    if "num_heads" in assumed:
        settings["num_heads"] = max(1, settings["hidden_size"] // HEAD_SIZE)
    try:
        config = EncoderConfig(**settings)
    except ModelError as error:
        raise ModelError(f"{config_path if config_path.exists() else path} is not a CamemBERT: {error}") from None
    if assumed:
        lack = "is incomplete" if config_path.exists() else "does not exist"
        listed = ", ".join(f"{name} {getattr(config, name)}" for name in assumed)
        report(f"{config_path} {lack}; assumed, as for CamemBERT: {listed}.")
    other = values.get("attention_probs_dropout_prob", config.dropout)
    if other != config.dropout:
        report(f"{config_path} has two dropouts; hidden_dropout_prob {config.dropout} is used for both, not {other}.")
    if values.get("classifier_dropout") not in (None, config.dropout):  # it matters for training in transformers only
        value = values["classifier_dropout"]
        report(f"{config_path}: classifier_dropout {value!r:.100} is left out; set it again in transformers.")
    return config


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes that the tensors' shapes show: all but the number of heads."""
    sizes = dict(zip(("vocab_size", "hidden_size"), tensors[WORD].shape))
    for name, key in (("max_positions", POSITION), ("intermediate_size", "encoder.layer.0.intermediate.dense.weight")):
        if key in tensors and tensors[key].ndim == 2:
            sizes[name] = len(tensors[key])
    sizes["num_layers"] = len({match[1] for key in tensors if (match := re.match(r"encoder\.layer\.(\d{1,4})\.", key))})
    return sizes


# ---- tensors ---------------------------------------------------------------------------------------------------


def normalise(tensors: Mapping[str, Tensor], path: Path, report: Report) -> dict[str, Tensor]:
    """The tensors under transformers' names without `roberta.`, in one dtype, without duplicates and unused ones.

    The token-type row is added to the positions. Raises ModelError for anything but dense floating-point tensors, for
    two tensors with one name, and for one tensor where CamemBERT has two.
    """
    check_architecture(tensors, path)
    tensors = canonical_names(tensors, path, report)
    check_tensors(tensors, path)
    drop_unused(tensors, path, report)
    for alias, original in TIED:
        merge_tied(tensors, alias, original, path, report)
    check_no_shared_memory(tensors, path)
    if any(key.endswith("embeddings.word.weight") for key in tensors):
        raise ModelError(
            f"{path} has the tensors of this project's model, but not its configuration. Write it with save_model()."
        )
    if WORD not in tensors or tensors[WORD].ndim != 2:
        raise ModelError(f"{path} is not a CamemBERT: it has no matrix {WORD}.")
    unify_dtype(tensors, path, report)
    fold_token_type(tensors, path, report)
    return tensors


def check_architecture(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError for another architecture whose keys resemble CamemBERT's, and for adapters beside one."""
    found = [other for part, other in OTHER_MODELS.items() if any(f".{part}." in f".{key}" for key in tensors)]
    types = [tensor for key, tensor in tensors.items() if f".{key}".endswith(f".bert.{TOKEN_TYPE}")]
    if any(tensor.shape[:1] != (1,) for tensor in types):  # a CamemBERT that somebody called bert has one row
        found.append("a BERT")
    if any(".lora_" in key for key in tensors):
        raise ModelError(f"{path} holds LoRA adapters. Merge them into the weights first (merge_and_unload() of PEFT).")
    if found:
        raise ModelError(f"{path} is {found[0]}, which has another architecture than CamemBERT.")


def canonical_names(tensors: Mapping[str, Tensor], path: Path, report: Report) -> dict[str, Tensor]:
    """The model's tensors under transformers' current names without prefix.

    Raises ModelError if two get the same name, or if there are several models.
    """
    result, origin = {}, {}
    for key, name in unwrapped_names(tensors, path, report).items():
        name = re.sub(r"\b(LayerNorm|layer_norm)\.gamma$", r"\1.weight", name)
        name = re.sub(r"\b(LayerNorm|layer_norm)\.beta$", r"\1.bias", name)
        if name in result:
            raise ModelError(f"{path} has the same tensor twice, as {origin[name]} and as {key}.")
        result[name], origin[name] = tensors[key], key
    return result


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError unless every tensor is dense, floating-point, and completely in the file."""
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_neg() or tensor.is_conj():
            raise ModelError(f"{path}: {key} is not a plain dense tensor.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(f"{path}: the tensor {key} has a shape with more values than the file holds.")
        if tensor.dtype not in DTYPES and not is_counter(key, tensor):
            raise ModelError(f"{path}: the tensor {key} holds {tensor.dtype}, not floating-point numbers.")


def is_counter(key: str, tensor: Tensor) -> bool:
    """Whether these are integers that are not learnt: the buffer 0, 1, 2, …, or a number of steps."""
    is_ids = key == "embeddings.position_ids"
    return (is_ids or not tensor.ndim) and tensor.dtype in (torch.int32, torch.int64)


def drop_unused(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """Removes the tensors that no model of this project uses."""
    for key in [key for key, tensor in tensors.items() if not tensor.ndim and is_counter(key, tensor)]:
        report(f"{path}: {key} is left out; it is a counter.")
        del tensors[key]
    ids = tensors.get("embeddings.position_ids")
    if ids is not None and torch.equal(ids.flatten(), torch.arange(ids.numel(), dtype=ids.dtype)):
        report(f"{path}: embeddings.position_ids is left out; it only holds 0, 1, 2, …")
        del tensors["embeddings.position_ids"]
    for key in ("pooler.dense.weight", "pooler.dense.bias"):
        if tensors.pop(key, None) is not None:
            report(f"{path}: {key} is left out; no task uses the pooler.")


def merge_tied(tensors: dict[str, Tensor], alias: str, original: str, path: Path, report: Report) -> None:
    """Leaves of the two names of a tied tensor the original.  Raises ModelError if both are there and differ."""
    if alias not in tensors:
        return
    tensor = tensors.pop(alias)
    if original not in tensors:  # safetensors keeps one name of two, and not always this one
        tensors[original] = tensor
    elif tensors[original].shape != tensor.shape or not torch.equal(tensors[original], tensor):
        raise ModelError(
            f"{path}: {alias} and {original} differ, but CamemBERT ties them. Untied models are not supported."
        )
    else:
        report(f"{path}: {alias} is left out; it is a copy of {original}.")


def check_no_shared_memory(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError if two tensors share memory: training one would change the other."""
    last, end = "", 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if not tensor.numel():
            continue
        if tensor.data_ptr() < end:
            raise ModelError(f"{path}: {key} and {last} share memory, but CamemBERT does not tie them.")
        steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        last, end = key, tensor.data_ptr() + (steps + 1) * tensor.element_size()


def unify_dtype(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """Converts a file of several dtypes to the one that most of its values have.

    Not to the widest: a single float64 value would make a half-precision file four times as large in memory.
    """
    counts = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += tensor.numel()
    if len(counts) > 1:
        dtype = counts.most_common(1)[0][0]
        names = ", ".join(sorted(str(each).removeprefix("torch.") for each in counts))
        report(f"{path} mixes {names}; all is converted to {str(dtype).removeprefix('torch.')}, the dtype of most.")
        for key, tensor in tensors.items():
            tensors[key] = tensor.to(dtype)


def fold_token_type(tensors: dict[str, Tensor], path: Path, report: Report) -> None:
    """Adds the token-type row to every position row: every token has type 0, so H_0 does not change.

    Raises ModelError if their shapes do not match.
    """
    rows = tensors.pop(TOKEN_TYPE, None)
    position = tensors.get(POSITION)
    if rows is None:
        report(f"{path} has no {TOKEN_TYPE}; zero is assumed.")
        return
    if position is None or position.ndim != 2 or rows.ndim != 2 or rows.shape[1] != position.shape[1] or not len(rows):
        raise ModelError(f"{path}: {TOKEN_TYPE} has shape {tuple(rows.shape)}, which matches no position embeddings.")
    if len(rows) > 1:
        report(f"{path}: rows 1 to {len(rows) - 1} of {TOKEN_TYPE} are left out; CamemBERT's type ids are all 0.")
    tensors[POSITION] = position + rows[0]


# ---- config.json and the index ---------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """Raises ModelError for anything but a JSON object."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path} is not a file of at most {MAX_JSON_BYTES / 1e6:.0f} MB. Download it again.")
        content = path.read_bytes()
        if pointer := lfs_pointer(path, content):
            raise ModelError(pointer)
        values = json.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}). Download it again.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a JSON object. Download it again.")
    return values


def read_config(folder: Path) -> dict:
    """The values of a folder's config.json, {} if it has none.

    Raises ModelError if the file cannot be read or is that of another architecture.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):  # a broken link is an error, not a missing file
        return {}
    values = read_json(path)
    model_type = values.get("model_type", MODEL_TYPES[0])
    if model_type not in MODEL_TYPES:
        raise ModelError(f"{path} has model_type {model_type!r:.100}, another architecture than CamemBERT.")
    for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if values.get(key) not in (None, only):
            raise ModelError(f"{path} has {key} {values[key]!r:.100}, another architecture than CamemBERT.")
    if "MultipleChoice" in str(values.get("architectures")):
        raise ModelError(f"{path} is that of a multiple-choice model, which is not supported.")
    return values


def label_names(values: Mapping, num_labels: int, path: Path, report: Report) -> list[str] | None:
    """The labels in the order of the classifier's outputs, from id2label, else label2id; None if there is neither.

    Raises ModelError unless they are num_labels different names.
    """
    by_id, by_name = values.get("id2label"), values.get("label2id")
    if by_id is None and by_name is None:
        return None
    try:
        inverse = {label_id(number): name for name, number in (by_name or {}).items()}
        names = {label_id(number): name for number, name in by_id.items()} if by_id is not None else inverse
    except (AttributeError, TypeError, ValueError):
        raise ModelError(f"{path}: id2label must map numbers to names, and label2id names to numbers.") from None
    are_names = all(isinstance(name, str) and name.isprintable() and name for name in names.values())
    are_numbered = len(names) == num_labels and names.keys() == set(range(num_labels))
    if not are_names or not are_numbered or len(set(names.values())) != num_labels:
        raise ModelError(
            f"{path} has the labels {list(names.values())[:10]!r:.200}, but the classifier has {num_labels} outputs: "
            "each needs one label, a string of printable characters, and no two the same."
        )
    if by_name is not None and inverse != names:
        report(f"{path}: label2id contradicts id2label, which is used.")
    return [names[number] for number in range(num_labels)]


def problem_type(values: Mapping, num_labels: int, path: Path, report: Report) -> str | None:
    """What the outputs of a sequence classifier mean.  The model's constructor refuses an unknown one.

    With one output it is regression, also where config.json says nothing or speaks of a softmax, which would be 1 for
    every text. transformers trains such a model as a regression, too, but its pipeline shows the value's sigmoid unless
    config.json says regression, as this project's exports do.
    """
    stated = values.get("problem_type")
    if num_labels == 1 and stated in (None, "single_label_classification"):
        report(f"{path} has one output and problem_type {stated}: read as regression, whose value is shown as it is.")
        return "regression"
    return stated


def label_id(value: object) -> int:
    """0, 1, 2, …, also as a string, as JSON's keys are.  Raises ValueError for anything else."""
    if type(value) is int or (isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,6}", value)):
        return int(value)
    raise ValueError(f"{value!r} is not a label's number")


def shard_files(index: Path) -> dict[str, list[str]]:
    """The index of a checkpoint in shards -> its files, each with the names of its tensors.  Raises ModelError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map, which assigns every tensor to a file.")
    suffix = ".bin" if index.name.endswith(".bin.index.json") else ".safetensors"
    files = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(SHARD_NAME + re.escape(suffix), name):
            raise ModelError(f"{index} has {name!r:.100} for {key}, not the name of a {suffix} file beside it.")
        files.setdefault(name, []).append(key)
    return files
