"""--check: the converted model against transformers, and that it can fail."""

import json
import tarfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from data import demo
from model import save_model
from model.checkpoints.fairseq import arguments
from model.checkpoints.load import load_checkpoint
from model.checkpoints.names import CLASSES
from tests.helpers import MINI, huggingface_model, needs, run_command
from tests.model.checkpoints.test_fairseq import to_fairseq


def check(*arguments):
    return run_command("convert_weights.py", *arguments)


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_kind_is_the_same(kind, tmp_path):
    huggingface_model(kind=kind, vocab_size=1005).float().save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "sentencepiece.bpe.model").write_bytes(
        (demo.FOLDER / "sentencepiece.bpe.model").read_bytes()
    )
    result = check("--check", tmp_path / "theirs")
    assert result.returncode == 0, result.stdout + result.stderr
    states = ["H_0", "H_1", "H_2"] + ["output"] * (kind != "CamembertModel")
    assert [line.split()[0] for line in result.stdout.splitlines()[: len(states)]] == states
    assert "the same as" in result.stdout and "random tokens" not in result.stdout


def test_our_file_against_their_folder(tmp_path):
    huggingface_model(vocab_size=1005).float().save_pretrained(tmp_path / "theirs")
    save_model(load_checkpoint(tmp_path / "theirs"), tmp_path / "ours.safetensors")
    assert check(tmp_path / "ours.safetensors", "--check", tmp_path / "theirs").returncode == 0
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    tensors["roberta.encoder.layer.1.output.dense.bias"][0] += 1e-2  # (the same for all, LayerNorm would take it away)
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    result = check(tmp_path / "ours.safetensors", "--check", tmp_path / "theirs")
    assert result.returncode == 1 and "NOT THE SAME" in result.stdout
    assert [float(line.split()[1]) > 1e-4 for line in result.stdout.splitlines() if line.startswith("H_")] == [
        False, False, True]  # fmt: skip


def test_a_tarball_of_fairseqs_against_their_folder(tmp_path):
    theirs = huggingface_model(vocab_size=1005)
    with torch.no_grad():
        theirs.roberta.embeddings.token_type_embeddings.weight.zero_()  # fairseq has none
    theirs.float().save_pretrained(tmp_path / "theirs")
    torch.save({"model": to_fairseq(theirs.state_dict()), "args": arguments()}, tmp_path / "model.pt")
    with tarfile.open(tmp_path / "camembert.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model.pt", "camembert/model.pt")
        archive.add(demo.FOLDER / "sentencepiece.bpe.model", "camembert/sentencepiece.bpe.model")
    result = check(tmp_path / "camembert.tar.gz", "--check", tmp_path / "theirs")
    assert result.returncode == 0 and "random tokens" not in result.stdout, result.stdout + result.stderr


def test_without_a_tokenizer_random_tokens(tmp_path):
    huggingface_model().float().save_pretrained(tmp_path / "theirs")
    assert "random tokens are compared" in check("--check", tmp_path / "theirs").stdout


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype, tmp_path):
    huggingface_model(vocab_size=1005).to(dtype).save_pretrained(tmp_path / "theirs")
    result = check("--check", tmp_path / "theirs")
    assert result.returncode == 0, result.stdout


@needs(MINI)
def test_a_really_trained_camembert():
    assert check("--check", MINI).returncode == 0


def test_what_transformers_cannot_open_is_a_sentence(tmp_path):
    huggingface_model().float().save_pretrained(tmp_path / "theirs")
    result = check(tmp_path / "theirs", "--check", tmp_path / "nothing")
    assert result.returncode == 2 and "is no folder" in result.stderr and "Traceback" not in result.stderr


def saved(place, **sizes):
    huggingface_model(vocab_size=1005, **sizes).float().save_pretrained(place)
    return place


def test_nan_is_not_the_same(tmp_path):
    save_model(load_checkpoint(saved(tmp_path / "theirs")), tmp_path / "ours.safetensors")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    tensors["roberta.encoder.layer.0.output.dense.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    result = check(tmp_path / "ours.safetensors", "--check", tmp_path / "theirs")
    assert result.returncode == 1 and "NOT THE SAME" in result.stdout


@pytest.mark.parametrize(
    "sizes",
    [
        dict(num_hidden_layers=3),
        dict(hidden_size=64),
        dict(vocab_size=900),
        dict(kind="CamembertForTokenClassification"),
    ],
)
def test_another_model_is_a_sentence(sizes, tmp_path):
    one = saved(tmp_path / "one")
    other = saved(tmp_path / "other", **sizes) if "vocab_size" not in sizes else tmp_path / "other"
    if "vocab_size" in sizes:
        huggingface_model(**sizes).float().save_pretrained(other)
    result = check(one, "--check", other)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "are not of one model" in result.stderr or "is no CamembertForMaskedLM" in result.stderr


def test_a_precision_in_config_json_does_not_matter(tmp_path):
    place = saved(tmp_path / "theirs")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert check("--check", place).returncode == 0
