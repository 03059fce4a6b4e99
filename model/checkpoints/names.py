"""The key tables: names of tensors and of configuration values, this project's -> transformers'.

transformers' keys are listed without their prefix `roberta.`, which those of the heads do not have.
"""

import re
from collections.abc import Mapping

EMBEDDING_KEYS = {
    "encoder.embeddings.word.weight": "embeddings.word_embeddings.weight",
    "encoder.embeddings.position.weight": "embeddings.position_embeddings.weight",  # plus the token-type row
    "encoder.embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "encoder.embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
HEAD_KEYS = {  # by the class of model
    "MaskedLM": {
        "dense.weight": "lm_head.dense.weight",
        "dense.bias": "lm_head.dense.bias",
        "norm.weight": "lm_head.layer_norm.weight",
        "norm.bias": "lm_head.layer_norm.bias",
        "bias": "lm_head.bias",
    },
    "SequenceClassifier": {
        "dense.weight": "classifier.dense.weight",
        "dense.bias": "classifier.dense.bias",
        "output.weight": "classifier.out_proj.weight",
        "output.bias": "classifier.out_proj.bias",
    },
    "TokenClassifier": {"output.weight": "classifier.weight", "output.bias": "classifier.bias"},
    "QuestionAnswerer": {"output.weight": "qa_outputs.weight", "output.bias": "qa_outputs.bias"},
    "Encoder": {},
}
LAYER_KEYS = {  # under encoder.layers.N -> encoder.layer.N, each with .weight and .bias
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.feed": "intermediate.dense",
    "feed_forward.forward_proj": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
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
CLASSES = {
    "MaskedLM": "CamembertForMaskedLM",
    "SequenceClassifier": "CamembertForSequenceClassification",
    "TokenClassifier": "CamembertForTokenClassification",
    "QuestionAnswerer": "CamembertForQuestionAnswering",
    "Encoder": "CamembertModel",
}


def rename(key: str, table: Mapping[str, str], layer_keys: Mapping[str, str], old: str, new: str) -> str | None:
    """Renames a key by the tables, in either direction; None if they do not have it.

    table: whole keys; layer_keys: those inside a layer, whose prefix changes from `old` to `new`.
    """
    layer = re.fullmatch(re.escape(old) + r"\.(0|[1-9]\d{0,3})\.(.+)\.(weight|bias)", key)
    if layer and layer[2] in layer_keys:
        return f"{new}.{layer[1]}.{layer_keys[layer[2]]}.{layer[3]}"
    return table.get(key)


def to_huggingface_key(key: str, kind: str) -> str:
    """This project's key in a model of class `kind` -> transformers' key."""
    table = {**EMBEDDING_KEYS, **HEAD_KEYS[kind]}
    if kind == "Encoder":
        return rename(f"encoder.{key}", table, LAYER_KEYS, "encoder.layers", "encoder.layer")
    theirs = rename(key, table, LAYER_KEYS, "encoder.layers", "encoder.layer")
    return theirs if key in HEAD_KEYS[kind] else f"roberta.{theirs}"


def from_huggingface_key(key: str, kind: str) -> str | None:
    """transformers' key without `roberta.` -> this project's in a model of class `kind`; None if it has none."""
    table = {theirs: ours for ours, theirs in {**EMBEDDING_KEYS, **HEAD_KEYS[kind]}.items()}
    layer_keys = {theirs: ours for ours, theirs in LAYER_KEYS.items()}
    ours = rename(key, table, layer_keys, "encoder.layer", "encoder.layers")
    return ours.removeprefix("encoder.") if ours and kind == "Encoder" else ours
