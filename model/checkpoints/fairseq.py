"""fairseq's format: the model.pt of camembert-base.tar.gz -> tensors under transformers' names.

A model.pt is a pickle with the weights under "model" and the training arguments in an argparse.Namespace beside them.
That class is the only one allowed when it is read (SAFE_GLOBALS), besides tensors and plain values.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelError
from .huggingface import POSITION, TOKEN_TYPE, WORD, Report, check_tensors

SAFE_GLOBALS = [argparse.Namespace]  # for torch.serialization.safe_globals
PAD_ID = 1  # in every fairseq dictionary

# ---- the key tables: fairseq's key -> transformers' key without `roberta.`, shape of the weight ------------------
# Shape letters: V vocabulary size, P positions, D hidden size, E intermediate size, C labels. A bias has the shape of
# the first letter.

MODEL_KEYS = {  # under encoder. or, in older files, decoder.
    "sentence_encoder.embed_tokens.weight": (WORD, "VD"),
    "sentence_encoder.embed_positions.weight": (POSITION, "PD"),
    "sentence_encoder.emb_layer_norm.weight": ("embeddings.LayerNorm.weight", "D"),
    "sentence_encoder.emb_layer_norm.bias": ("embeddings.LayerNorm.bias", "D"),
    "sentence_encoder.layernorm_embedding.weight": ("embeddings.LayerNorm.weight", "D"),  # the name since 2021
    "sentence_encoder.layernorm_embedding.bias": ("embeddings.LayerNorm.bias", "D"),
    "lm_head.dense.weight": ("lm_head.dense.weight", "DD"),
    "lm_head.dense.bias": ("lm_head.dense.bias", "D"),
    "lm_head.layer_norm.weight": ("lm_head.layer_norm.weight", "D"),
    "lm_head.layer_norm.bias": ("lm_head.layer_norm.bias", "D"),
    "lm_head.weight": ("lm_head.decoder.weight", "VD"),  # a copy of embed_tokens
    "lm_head.bias": ("lm_head.bias", "V"),
}
QUERY, KEY, VALUE = (f"attention.self.{name}" for name in ("query", "key", "value"))
LAYER_KEYS = {  # under sentence_encoder.layers.N -> encoder.layer.N, each with weight and bias
    "self_attn.q_proj.": ((QUERY,), "DD"),
    "self_attn.k_proj.": ((KEY,), "DD"),
    "self_attn.v_proj.": ((VALUE,), "DD"),
    "self_attn.in_proj_": ((QUERY, KEY, VALUE), "DD"),  # stacked in this order
    "self_attn.out_proj.": (("attention.output.dense",), "DD"),
    "self_attn_layer_norm.": (("attention.output.LayerNorm",), "D"),
    "fc1.": (("intermediate.dense",), "ED"),
    "fc2.": (("output.dense",), "DE"),
    "final_layer_norm.": (("output.LayerNorm",), "D"),
}
HEAD_KEYS = {"dense.": (("classifier.dense",), "DD"), "out_proj.": (("classifier.out_proj",), "CD")}

LAYER = re.compile(r"(?:en|de)coder\.sentence_encoder\.layers\.(0|[1-9][0-9]{0,3})\.(.+[._])(weight|bias)")
HEAD = re.compile(r"classification_heads\.([^.]+)\.(.+[._])(weight|bias)")


def targets_of(key: str) -> list[tuple[str, str]]:
    """A fairseq key -> transformers' keys, each with its shape letters; [] for a key that the tables do not have.

    Three for stacked projections, else one.
    """
    if match := LAYER.fullmatch(key):
        names, shape = LAYER_KEYS.get(match[2], ((), ""))
        names = [f"encoder.layer.{match[1]}.{name}" for name in names]
    elif match := HEAD.fullmatch(key):
        names, shape = HEAD_KEYS.get(match[2], ((), ""))
    else:
        side, _, rest = key.partition(".")
        return [MODEL_KEYS[rest]] if side in ("encoder", "decoder") and rest in MODEL_KEYS else []
    return [(f"{name}.{match[3]}", shape if match[3] == "weight" else shape[0]) for name in names]


# ---- names and arguments ---------------------------------------------------------------------------------------


def is_fairseq(state: object) -> bool:
    """Whether this, from torch.load, is a checkpoint of fairseq's RoBERTa, which CamemBERT is."""
    model = state.get("model") if isinstance(state, Mapping) else None
    prefixes = ("encoder.sentence_encoder.", "decoder.sentence_encoder.")
    return isinstance(model, Mapping) and any(isinstance(key, str) and key.startswith(prefixes) for key in model)


def to_huggingface_names(state: Mapping, path: Path, report: Report) -> tuple[dict[str, Tensor], dict]:
    """-> the tensors under transformers' names without `roberta.`, the values that a config.json would have.

    state: from torch.load, with is_fairseq(state). fairseq has no token-type row: a row of zeros is added. A file with
    a classification head becomes a sequence classifier without its LM head.
    Raises ModelError, naming the key, for an unknown tensor, two tensors with one name, shapes that contradict each
    other, and anything but tensors; also for several classification heads, and for an unsupported activation.
    """
    tensors = {}
    for key, tensor in state["model"].items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"{path}: {str(key)[:200]}, under model, is not a named tensor.")
        if key.endswith(".version"):
            report(f"{path}: {key} is left out; it is the version of fairseq's format.")
        else:
            tensors[key] = tensor
    check_tensors(tensors, path)
    heads = sorted({match[1] for match in map(HEAD.fullmatch, tensors) if match})
    if len(heads) > 1:
        raise ModelError(f"{path} has {len(heads)} classification heads ({', '.join(heads)}); only one is supported.")
    if heads:
        for key in [key for key in tensors if re.match(r"(en|de)coder\.lm_head\.", key)]:
            report(f"{path}: {key} is left out; the model is a sequence classifier (with the head {heads[0]}).")
            del tensors[key]
    tensors = rename(tensors, path)
    if WORD in tensors:  # or a missing row would be reported
        tensors[TOKEN_TYPE] = torch.zeros_like(tensors[WORD][:1])
    return tensors, config_values(state, path, bool(heads))


def rename(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Renames by the tables, each key used exactly once; splits stacked projections in three.  Raises ModelError."""
    result, origin, sizes = {}, {}, {}
    for key, tensor in tensors.items():
        targets = targets_of(key)
        if not targets:
            raise ModelError(f"{path} has a tensor {key}, which a CamemBERT of fairseq does not have.")
        parts = [tensor]
        if len(targets) > 1:
            if tensor.ndim == 0 or len(tensor) == 0 or len(tensor) % len(targets):
                raise ModelError(f"{path}: {key} has shape {tuple(tensor.shape)}, not that of stacked projections.")
            parts = [part.clone() for part in tensor.chunk(len(targets))]  # training one must not change the others
        for (name, letters), part in zip(targets, parts, strict=True):
            if name in origin:
                raise ModelError(f"{path} has the same tensor twice, as {origin[name]} and as {key}.")
            result[name], origin[name] = part, key
            found = f"{path}: {key} has shape {tuple(tensor.shape)}"
            if part.ndim != len(letters):
                raise ModelError(f"{found}; {len(letters)} dimensions are expected.")
            for letter, length in zip(letters, part.shape):
                expected, other = sizes.setdefault(letter, (length, key))  # the first tensor with it sets its size
                if length != expected:
                    raise ModelError(f"{found}, which contradicts {other}: {length} is not {expected}.")
    return result


def config_values(state: Mapping, path: Path, is_classifier: bool) -> dict:
    """A config.json's values, from the training arguments; wrong types are ignored.  Raises ModelError."""
    given = training_arguments(state)
    values = {"pad_token_id": PAD_ID, "layer_norm_eps": 1e-5}  # constants of fairseq
    for name, theirs, offset in (
        ("encoder_layers", "num_hidden_layers", 0),
        ("encoder_embed_dim", "hidden_size", 0),
        ("encoder_attention_heads", "num_attention_heads", 0),
        ("encoder_ffn_embed_dim", "intermediate_size", 0),
        ("max_positions", "max_position_embeddings", PAD_ID + 1),  # fairseq counts tokens, transformers rows
    ):
        if type(given.get(name)) is int and 0 < given[name] < 2**31:
            values[theirs] = given[name] + offset
    for name, theirs in (("dropout", "hidden_dropout_prob"), ("attention_dropout", "attention_probs_dropout_prob")):
        if type(given.get(name)) in (int, float) and 0 <= given[name] < 1:
            values[theirs] = float(given[name])
    activation, pooler = given.get("activation_fn"), given.get("pooler_activation_fn")
    if type(activation) is str:
        # fairseq's LM head has the encoder's activation; transformers', and so this project's, always has GELU
        known = ("gelu", "relu") if is_classifier else ("gelu",)
        if activation not in known:
            raise ModelError(f"{path} has activation_fn {activation[:100]!r}; only {' or '.join(known)} is supported.")
        values["hidden_act"] = activation
    if is_classifier and type(pooler) is str and pooler != "tanh":
        raise ModelError(f"{path} has pooler_activation_fn {pooler[:100]!r}; only tanh is supported.")
    return values


def training_arguments(state: Mapping) -> dict:
    """From "args", a Namespace, or in newer files from the "model" of "cfg"; {} if there is neither."""

    def table(holder: object) -> dict:
        if type(holder) is argparse.Namespace:
            return vars(holder)  # no attribute is looked up, so no code can run
        return holder if isinstance(holder, dict) else {}

    return table(state.get("args")) or table(table(state.get("cfg")).get("model"))
