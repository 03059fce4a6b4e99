"""Shared by the tests: paths of real data, random transformers models, batches, and commands run in this process."""

import io
import runpy
import shutil
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
REAL_TOKENIZER = SHARED / "data/tokenizer/sentencepiece.bpe.model"
REAL_TEXT = SHARED / "data/text"
MINI = SHARED / "camembert-mini"
PAPER = SHARED / "paper/distilcamembert-cap2022.md"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # of the tests marked gpu


def source_files() -> list[Path]:
    """Every Python file of the project but the tests."""
    folders = [path for name in ("model", "losses", "data", "eval") for path in (REPOSITORY / name).rglob("*.py")]
    return sorted([*folders, *REPOSITORY.glob("*.py")])


def needs(*paths: Path):
    """A mark that skips a test if real data is missing."""
    missing = [str(path) for path in paths if not path.exists()]
    return pytest.mark.skipif(bool(missing), reason=f"missing real data: {', '.join(missing)}")


def huggingface_model(seed: int = 0, kind: str = "CamembertForMaskedLM", **sizes):
    """A small random transformers model in float64, whose attention is not uniform.

    No LayerNorm, bias or token-type row keeps its initial 1 or 0.
    """
    import transformers

    small = dict(num_hidden_layers=2, hidden_size=48, num_attention_heads=4, intermediate_size=80, vocab_size=211)
    special = dict(type_vocab_size=1, pad_token_id=1, bos_token_id=5, eos_token_id=6, layer_norm_eps=1e-5)
    settings = dict(max_position_embeddings=514) | special | small | sizes
    settings.setdefault("initializer_range", settings["hidden_size"] ** -0.5)
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


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the gradient of each parameter, by name."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_close(actual, expected, tolerance: float = 1e-5, zero: float = 1.0) -> None:
    """Two dictionaries of gradients, or of weights trained with them, agree by name in relative norm.

    Key biases are compared with zero instead: their gradients are rounding only, since softmax ignores what all keys
    have in common. Their norms must be at most `zero` times the largest norm of all.
    """
    assert actual.keys() == expected.keys()
    largest = max(tensor.norm() for tensor in expected.values())
    for name in expected:
        if name.endswith("attention.key.bias"):
            assert max(actual[name].norm(), expected[name].norm()) <= zero * largest
        else:
            assert relative_norm(actual[name], expected[name]) < tolerance, name


def record_attention_masks(monkeypatch) -> list:
    """The mask of every call of PyTorch's scaled_dot_product_attention from now on."""
    masks, attention = [], torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments, attn_mask=None, **keywords):
        masks.append(attn_mask)
        return attention(*arguments, attn_mask=attn_mask, **keywords)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    return masks


def run_command(script: str, *arguments) -> CompletedProcess:
    """Runs `python SCRIPT ARGUMENTS…` (or `-m MODULE`) from the repository, in this process, which has torch loaded."""
    argv, stdout, stderr, status = [script, *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    with (
        mock.patch("sys.argv", argv),
        chdir(REPOSITORY),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".*found in sys.modules after import", RuntimeWarning)  # by another test
        try:
            if script.startswith("-m "):
                runpy.run_module(script.removeprefix("-m "), run_name="__main__")
            else:
                runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return CompletedProcess(argv, status, stdout.getvalue(), stderr.getvalue())
