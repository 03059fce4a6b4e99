"""Writes a model as a folder that transformers opens."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data import Tokenizer
from data.tokenizer import FILE_NAME

from ..config import EncoderConfig
from .huggingface import TOKEN_TYPE
from .names import CLASSES, CONFIG_KEYS, to_huggingface_key
from .native import HEAD_SETTINGS, atomic_file


def huggingface_config(model: nn.Module) -> dict:
    """The values of config.json."""
    names = getattr(model, "labels", None) or ()
    id2label = {str(number): name for number, name in enumerate(names)}
    head = {"id2label": id2label, "label2id": {name: number for number, name in enumerate(names)}} if names else {}
    if (setting := HEAD_SETTINGS.get(type(model))) and getattr(model, setting) is not None:
        head[setting] = getattr(model, setting)
    return {
        "architectures": [CLASSES[type(model).__name__]],
        "model_type": "camembert",
        **{theirs: getattr(model.config, ours) for ours, theirs in CONFIG_KEYS.items()},
        **head,
        "attention_probs_dropout_prob": model.config.dropout,
        "type_vocab_size": 1,
        "bos_token_id": Tokenizer.bos_id,
        "eos_token_id": Tokenizer.eos_id,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def to_huggingface(model: nn.Module) -> dict[str, Tensor]:
    """The tensors under transformers' names, with a token-type row of zeros: it was added to the positions.

    The bias of the LM head has both its names: transformers 4.46 reads only lm_head.decoder.bias.
    """
    kind = type(model).__name__
    tensors = {to_huggingface_key(key, kind): tensor.contiguous() for key, tensor in model.state_dict().items()}
    if kind == "MaskedLM":
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()  # a .safetensors file shares no memory
    row = torch.zeros(1, model.config.hidden_size, dtype=next(model.parameters()).dtype)
    return {**tensors, TOKEN_TYPE if kind == "Encoder" else f"roberta.{TOKEN_TYPE}": row}


def export_huggingface(
    model: nn.Module, folder: str | Path, tokenizer: Tokenizer | None = None, card: str | None = None
) -> None:
    """Writes config.json, model.safetensors and, if given, the tokenizer's files and the model card to a new folder.

    The folder appears under its name only when it is complete. Raises ModelError if it cannot be written.
    """
    with atomic_file(folder, as_folder=True) as temporary:
        save_file(to_huggingface(model), temporary / "model.safetensors", metadata={"format": "pt"})
        write_config(model, temporary, tokenizer)
        if card is not None:
            # a path in a card need not be valid UTF-8
            (temporary / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")


def write_config(model: nn.Module, folder: Path, tokenizer: Tokenizer | None) -> None:
    """Writes config.json and, if given, the tokenizer's files into a folder.  Raises OSError."""
    texts = {"config.json": json.dumps(huggingface_config(model), indent=2, sort_keys=True) + "\n"}
    if tokenizer is not None:
        (folder / FILE_NAME).write_bytes(tokenizer.content)
        texts["tokenizer_config.json"] = json.dumps(tokenizer_config(model.config), indent=2) + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def tokenizer_config(config: EncoderConfig) -> dict:
    """What transformers' AutoTokenizer needs beside the SentencePiece model."""
    tokens = dict(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
    return {
        "tokenizer_class": "CamembertTokenizer",
        "model_max_length": config.max_tokens,
        **{f"{name}_token": token for name, token in tokens.items()},
        "additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED"],
    }
