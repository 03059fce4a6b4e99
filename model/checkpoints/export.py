"""Writes a model as a folder that transformers opens."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from data import Tokenizer
from data.tokenizer import FILE_NAME

from ..config import EncoderConfig, ModelError
from .huggingface import TOKEN_TYPE
from .names import CLASSES, CONFIG_KEYS, to_huggingface_key
from .native import apply_umask, flush


def huggingface_config(model: nn.Module) -> dict:
    """The values of config.json."""
    config = {theirs: getattr(model.config, ours) for ours, theirs in CONFIG_KEYS.items()}
    labels = {}
    if getattr(model, "labels", None):
        labels = {
            "id2label": {str(number): name for number, name in enumerate(model.labels)},
            "label2id": {name: number for number, name in enumerate(model.labels)},
        }
    return {
        "architectures": [CLASSES[type(model).__name__]],
        "model_type": "camembert",
        **config,
        **labels,
        "attention_probs_dropout_prob": model.config.dropout,
        "type_vocab_size": 1,
        "bos_token_id": Tokenizer.bos_id,
        "eos_token_id": Tokenizer.eos_id,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def to_huggingface(model: nn.Module) -> dict[str, Tensor]:
    """The tensors under transformers' names, with a token-type row of zeros: it was added to the positions."""
    kind = type(model).__name__
    tensors = {to_huggingface_key(key, kind): tensor.contiguous() for key, tensor in model.state_dict().items()}
    dtype = next(model.parameters()).dtype
    prefix = "" if kind == "Encoder" else "roberta."
    tensors[prefix + TOKEN_TYPE] = torch.zeros(1, model.config.hidden_size, dtype=dtype)
    return tensors


def export_huggingface(
    model: nn.Module, folder: str | Path, tokenizer: str | Path | None = None, card: str | None = None
) -> None:
    """Writes config.json, model.safetensors and, if given, the tokenizer's files and the model card to a new folder.

    The folder appears under its name only when it is complete. Raises ModelError if it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            save_file(to_huggingface(model), temporary / "model.safetensors", metadata={"format": "pt"})
            texts = {"config.json": json.dumps(huggingface_config(model), indent=2, sort_keys=True) + "\n"}
            if tokenizer is not None:
                shutil.copyfile(tokenizer, temporary / FILE_NAME)
                texts["tokenizer_config.json"] = json.dumps(tokenizer_config(model.config), indent=2) + "\n"
            if card is not None:
                texts["README.md"] = card
            for name, text in texts.items():
                # a path in a card need not be valid UTF-8
                (temporary / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            for path in (*temporary.iterdir(), temporary):
                flush(path)
                apply_umask(path)
            temporary.rename(folder)  # fails if the folder exists and is not empty
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


def tokenizer_config(config: EncoderConfig) -> dict:
    """What transformers' AutoTokenizer needs beside the SentencePiece model."""
    tokens = dict(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
    return {
        "tokenizer_class": "CamembertTokenizer",
        "model_max_length": config.max_tokens,
        **{f"{name}_token": token for name, token in tokens.items()},
        "additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED"],
    }
