"""Shared by the tests: paths of real data, random transformers models, batches, and commands run in this process."""

import contextlib
import io
import runpy
import shutil
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
REAL_TOKENIZER = SHARED / "data/tokenizer/sentencepiece.bpe.model"
REAL_TEXT = SHARED / "data/text"
MINI = SHARED / "camembert-mini"
PAPER = SHARED / "paper/distilcamembert-cap2022.md"


def source_files() -> list[Path]:
    """Every Python file of the project but the tests."""
    folders = [path for name in ("model", "losses", "data", "eval") for path in (REPOSITORY / name).rglob("*.py")]
    return sorted([*folders, *REPOSITORY.glob("*.py")])


def needs(*paths: Path):
    """A mark that skips a test if real data is missing."""
    missing = [str(path) for path in paths if not path.exists()]
    return pytest.mark.skipif(bool(missing), reason=f"missing real data: {', '.join(missing)}")


def huggingface_model(seed: int = 0, kind: str = "CamembertForMaskedLM", **sizes):
    """A small random transformers model in float64; no LayerNorm, bias or token-type row keeps its initial 1 or 0."""
    import transformers

    small = dict(num_hidden_layers=2, hidden_size=48, num_attention_heads=4, intermediate_size=80, vocab_size=211)
    special = dict(type_vocab_size=1, pad_token_id=1, bos_token_id=5, eos_token_id=6, layer_norm_eps=1e-5)
    settings = dict(max_position_embeddings=514) | special | small | sizes
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(transformers.CamembertConfig(**settings)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name or "layer_norm" in name or name.endswith("bias") or "token_type" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def transformers_tokenizer(folder: Path):
    """CamemBERT's tokenizer of transformers, from a copy of its file in the folder."""
    from transformers import CamembertTokenizer

    shutil.copyfile(REAL_TOKENIZER, folder / REAL_TOKENIZER.name)
    return CamembertTokenizer.from_pretrained(folder)


def convert(theirs):
    """A transformers model as a model of this project, through the converter but without a file."""
    from model.checkpoints.huggingface import from_huggingface

    return from_huggingface(dict(theirs.state_dict()), theirs.config.to_dict(), Path("memory"), lambda line: None)


def full_blocks(texts, tokenizer, block_size: int) -> torch.Tensor:
    """Texts concatenated, each with </s> at its end, then split; <s> before each piece -> (blocks, block_size)"""
    stream = [i for text in texts for i in [*tokenizer.encode(text)[1:-1], tokenizer.eos_id]]
    body = torch.tensor(stream[: len(stream) // (block_size - 1) * (block_size - 1)]).view(-1, block_size - 1)
    return torch.cat([torch.full((len(body), 1), tokenizer.bos_id), body], dim=1)


def padded_batch(lengths, vocab_size: int, seed: int = 0, pad_id: int = 1):
    """Random sequences of these lengths, padded on the right -> input_ids (B, n), attention_mask (B, n) bool"""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.full((len(lengths), max(lengths)), pad_id)
    for row, length in enumerate(lengths):
        input_ids[row, :length] = torch.randint(7, vocab_size, (length,), generator=generator)
    return input_ids, input_ids != pad_id


def relative_norm(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖, which zeros do not pass, unlike an absolute tolerance."""
    return ((actual - expected).norm() / expected.norm()).item()


class Finished(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run_command(script: str, *arguments) -> Finished:
    """Runs `python SCRIPT ARGUMENTS…` (or `-m MODULE`) from the repository, in this process, which has torch loaded."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [script, *map(str, arguments)]),
        contextlib.chdir(REPOSITORY),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            if script.startswith("-m "):
                runpy.run_module(script.removeprefix("-m "), run_name="__main__")
            else:
                runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Finished(status, stdout.getvalue(), stderr.getvalue())
