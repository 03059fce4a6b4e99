"""fairseq's checkpoints, as camembert-base.tar.gz holds one: model.pt to Hugging Face's names.

A model.pt is a pickle: its weights lie under "model", beside the arguments of the training, an argparse.Namespace.
That one class is allowed when it is read (SAFE_GLOBALS); anything else in it but tensors and plain values is not.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelError
from .huggingface import POSITION, TOKEN_TYPE, WORD, Report, check_tensors
from .tarball import is_tarball, open_tarball

__all__ = ["SAFE_GLOBALS", "is_fairseq", "is_tarball", "open_tarball", "to_huggingface_names"]

SAFE_GLOBALS = [argparse.Namespace]  # for torch.serialization.safe_globals
PAD_ID = 1  # in every dictionary of fairseq's

# ---- the key table: fairseq's, then Hugging Face's (without `roberta.`) and the shape --------------------------
# V words, P positions, D hidden size, E intermediate size, C classes; a bias has the shape's first letter.

MODEL_KEYS = {  # under encoder. or, in older files, decoder.
    "sentence_encoder.embed_tokens.weight": (WORD, "VD"),
    "sentence_encoder.embed_positions.weight": (POSITION, "PD"),
    "sentence_encoder.emb_layer_norm.weight": ("embeddings.LayerNorm.weight", "D"),
    "sentence_encoder.emb_layer_norm.bias": ("embeddings.LayerNorm.bias", "D"),
    "sentence_encoder.layernorm_embedding.weight": ("embeddings.LayerNorm.weight", "D"),  # its name since 2021
    "sentence_encoder.layernorm_embedding.bias": ("embeddings.LayerNorm.bias", "D"),
    "lm_head.dense.weight": ("lm_head.dense.weight", "DD"),
    "lm_head.dense.bias": ("lm_head.dense.bias", "D"),
    "lm_head.layer_norm.weight": ("lm_head.layer_norm.weight", "D"),
    "lm_head.layer_norm.bias": ("lm_head.layer_norm.bias", "D"),
    "lm_head.weight": ("lm_head.decoder.weight", "VD"),  # tied: embed_tokens once more
    "lm_head.bias": ("lm_head.bias", "V"),
}
QUERY, KEY, VALUE = (f"attention.self.{name}" for name in ("query", "key", "value"))
LAYER_KEYS = {  # under sentence_encoder.layers.N and encoder.layer.N; each with weight and bias
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


def places(key: str) -> list[tuple[str, str]]:
    """Where a tensor goes: Hugging Face's name and the shape's letters.

    Three places for stacked projections, none for a key that the tables do not have.
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
    """Whether what torch.load gave is a checkpoint of fairseq's RoBERTa, CamemBERT's own kind."""
    model = state.get("model") if isinstance(state, Mapping) else None
    return isinstance(model, Mapping) and any(
        isinstance(key, str) and key.startswith(("encoder.sentence_encoder.", "decoder.sentence_encoder."))
        for key in model
    )


def to_huggingface_names(state: Mapping, path: Path, report: Report) -> tuple[dict[str, Tensor], dict]:
    """-> the tensors under Hugging Face's present names without `roberta.`, and what config.json would say of them.

    state: what torch.load gave, is_fairseq of it true. fairseq has no token-type row: one of zeros comes out.
    A file with a classification head is a sequence classifier; its LM head is left out.
    report: gets a sentence for everything left out.
    Raises ModelError, naming the key, for a tensor without a place, two for one place, a shape that does not fit
    the others, and anything but tensors; for several classification heads; for an activation that is not ours.
    """
    tensors = {}
    for key, tensor in state["model"].items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"{path}: {str(key)[:200]} is not a tensor with a name, as all under model must be.")
        if key.endswith(".version"):
            report(f"{path}: {key} left out, a number by which fairseq tells its own formats apart.")
        else:
            tensors[key] = tensor
    check_tensors(tensors, path)
    heads = sorted({match[1] for match in map(HEAD.fullmatch, tensors) if match})
    if len(heads) > 1:
        raise ModelError(f"{path} has {len(heads)} classification heads ({', '.join(heads)}); a model here has one.")
    if heads:
        for key in [key for key in tensors if re.match(r"(en|de)coder\.lm_head\.", key)]:
            report(f"{path}: {key} left out, a sequence classifier (its head is {heads[0]}) has no LM head.")
            del tensors[key]
    tensors = rename(tensors, path)
    if WORD in tensors:  # so that nobody is told that they are missing: fairseq has none
        tensors[TOKEN_TYPE] = torch.zeros_like(tensors[WORD][:1])
    return tensors, config_values(state, path, bool(heads))


def rename(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """By the table, each key used exactly once; stacked projections are cut in three.  Raises ModelError."""
    result, origin, sizes = {}, {}, {}
    for key, tensor in tensors.items():
        targets = places(key)
        if not targets:
            raise ModelError(f"{path} has a tensor {key} that fairseq's form of CamemBERT has no place for.")
        parts = [tensor]
        if len(targets) > 1:
            if tensor.ndim == 0 or len(tensor) == 0 or len(tensor) % len(targets):
                raise ModelError(f"{path}: {key} has shape {tuple(tensor.shape)}, which is no query, key and value.")
            parts = [part.clone() for part in tensor.chunk(len(targets))]  # trained, they must not be one memory
        for (name, letters), part in zip(targets, parts, strict=True):
            if name in origin:
                raise ModelError(f"{path} has two tensors for one place: {origin[name]} and {key}.")
            result[name], origin[name] = part, key
            check_shape(key, tuple(tensor.shape), letters, tuple(part.shape), sizes, path)
    return result


def check_shape(key: str, whole: tuple, letters: str, shape: tuple, sizes: dict[str, tuple], path: Path) -> None:
    """Raises ModelError unless a shape fits its letters: the first tensor with a letter says how long that is."""
    if len(shape) != len(letters):
        raise ModelError(f"{path}: {key} has shape {whole}, where {len(letters)} dimensions are needed.")
    for letter, length in zip(letters, shape):
        expected, other = sizes.setdefault(letter, (length, key))
        if length != expected:
            raise ModelError(
                f"{path}: {key} has shape {whole}, which does not fit {other}: {length} is not {expected}."
            )


def config_values(state: Mapping, path: Path, is_classifier: bool) -> dict:
    """What config.json would say, as far as the arguments tell.  Raises ModelError for another activation.

    A value of another type than fairseq gives it is as good as missing: a checkpoint can hold anything there.
    """
    given = arguments(state)
    values = {"pad_token_id": PAD_ID, "layer_norm_eps": 1e-5}  # fairseq's, which no argument sets
    for name, ours, more in (
        ("encoder_layers", "num_hidden_layers", 0),
        ("encoder_embed_dim", "hidden_size", 0),
        ("encoder_attention_heads", "num_attention_heads", 0),
        ("encoder_ffn_embed_dim", "intermediate_size", 0),
        ("max_positions", "max_position_embeddings", PAD_ID + 1),  # fairseq counts tokens, Hugging Face rows
    ):
        if type(given.get(name)) is int and 0 < given[name] < 2**31:
            values[ours] = given[name] + more
    for name, ours in (("dropout", "hidden_dropout_prob"), ("attention_dropout", "attention_probs_dropout_prob")):
        if type(given.get(name)) in (int, float) and 0 <= given[name] < 1:
            values[ours] = float(given[name])
    activation, pooler = given.get("activation_fn"), given.get("pooler_activation_fn")
    if type(activation) is str:
        # fairseq's LM head has the encoder's activation; Hugging Face's, and so ours, has GELU whatever that is
        if activation not in (("gelu", "relu") if is_classifier else ("gelu",)):
            kind = "gelu or relu" if is_classifier else "gelu"
            raise ModelError(f"{path} says activation_fn {activation[:100]!r}; only {kind} has a place here.")
        values["hidden_act"] = activation
    if is_classifier and type(pooler) is str and pooler != "tanh":
        raise ModelError(f"{path} says pooler_activation_fn {pooler[:100]!r}; a classifier's is tanh here.")
    return values


def arguments(state: Mapping) -> dict:
    """The model's arguments: "args", a Namespace, or in newer files the "model" of "cfg"; {} where neither is."""

    def table(holder: object) -> dict:
        if type(holder) is argparse.Namespace:
            return vars(holder)  # its values as they lie there: no attribute is looked up, nothing can run
        return holder if isinstance(holder, dict) else {}

    return table(state.get("args")) or table(table(state.get("cfg")).get("model"))
