"""--check: a converted model equals transformers', and a difference is found."""

import tarfile

import pytest
import torch

from data import demo
from data.tokenizer import FILE_NAME
from model import save_model
from model.checkpoints.load import load_checkpoint
from model.checkpoints.names import CLASSES
from tests.helpers import MINI, huggingface_model, needs, run_command
from tests.model.checkpoints.fairseq_files import arguments, to_fairseq, without_token_type
from tests.model.checkpoints.files import rewrite, set_config


def check(*arguments):
    return run_command("convert_weights.py", *arguments)


def saved(place, **sizes):
    huggingface_model(**{"vocab_size": 1005, **sizes}).float().save_pretrained(place)
    return place


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_class_is_the_same(kind, tmp_path):
    theirs = saved(tmp_path / "theirs", kind=kind)
    (theirs / FILE_NAME).write_bytes((demo.FOLDER / FILE_NAME).read_bytes())
    result = check("--check", theirs)
    assert result.returncode == 0, result.stdout + result.stderr
    states = ["H_0", "H_1", "H_2"] + ["output"] * (kind != "CamembertModel")
    assert [line.split()[0] for line in result.stdout.splitlines()[: len(states)]] == states
    assert "the same as" in result.stdout and "random tokens" not in result.stdout


@pytest.mark.parametrize(("layer", "value"), [(1, 1e-2), (0, float("nan"))])
def test_a_native_file_against_a_folder_that_changes(layer, value, tmp_path):
    theirs = saved(tmp_path / "theirs")
    save_model(load_checkpoint(theirs), tmp_path / "ours.safetensors")
    assert check(tmp_path / "ours.safetensors", "--check", theirs).returncode == 0

    def change(tensors):  # one value: LayerNorm would remove the same change in all
        tensors[f"roberta.encoder.layer.{layer}.output.dense.bias"][0] += value

    rewrite(theirs, change)
    result = check(tmp_path / "ours.safetensors", "--check", theirs)
    assert result.returncode == 1 and "NOT THE SAME" in result.stdout
    if layer == 1:
        differs = [float(line.split()[1]) > 1e-4 for line in result.stdout.splitlines() if line.startswith("H_")]
        assert differs == [False, False, True]


def test_a_tarball_of_fairseq_against_a_folder(tmp_path):
    theirs = without_token_type(huggingface_model(vocab_size=1005)).float()
    theirs.save_pretrained(tmp_path / "theirs")
    torch.save({"model": to_fairseq(theirs.state_dict()), "args": arguments()}, tmp_path / "model.pt")
    with tarfile.open(tmp_path / "camembert.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model.pt", "camembert/model.pt")
        archive.add(demo.FOLDER / FILE_NAME, f"camembert/{FILE_NAME}")
    result = check(tmp_path / "camembert.tar.gz", "--check", tmp_path / "theirs")
    assert result.returncode == 0 and "random tokens" not in result.stdout, result.stdout + result.stderr


def test_without_a_tokenizer_random_tokens_are_used(tmp_path):
    assert "random tokens are used" in check("--check", saved(tmp_path / "theirs")).stdout


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype, tmp_path):
    huggingface_model(vocab_size=1005).to(dtype).save_pretrained(tmp_path / "theirs")
    result = check("--check", tmp_path / "theirs")
    assert result.returncode == 0, result.stdout


@needs(MINI)
def test_a_trained_camembert():
    assert check("--check", MINI).returncode == 0


def test_a_missing_folder_is_an_error(tmp_path):
    result = check(saved(tmp_path / "theirs"), "--check", tmp_path / "nothing")
    assert result.returncode == 2 and "is not a folder" in result.stderr and "Traceback" not in result.stderr


OTHERS = [
    dict(num_hidden_layers=3),
    dict(hidden_size=64),
    dict(vocab_size=900),
    dict(kind="CamembertForTokenClassification"),
]


@pytest.mark.parametrize("sizes", OTHERS)
def test_another_model_is_an_error(sizes, tmp_path):
    result = check(saved(tmp_path / "one"), "--check", saved(tmp_path / "other", **sizes))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "they are different models" in result.stderr or "is not a CamembertForMaskedLM" in result.stderr


def test_the_dtype_in_config_json_does_not_matter(tmp_path):
    place = saved(tmp_path / "theirs")
    set_config(place, dtype="float16")
    assert check("--check", place).returncode == 0
