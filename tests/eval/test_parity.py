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
from tests.model.checkpoints.fairseq_files import checkpoint, without_token_type
from tests.model.checkpoints.files import as_folder, rewrite, set_config


def check(*arguments, status=0):
    """-> what is printed."""
    result = run_command("convert_weights.py", *arguments)
    assert result.returncode == status and "Traceback" not in result.stderr, result
    return result.stdout + result.stderr


def saved(place, dtype=torch.float32, **sizes):
    return as_folder(huggingface_model(**{"vocab_size": 1005, **sizes}).to(dtype), place)


@pytest.fixture
def theirs(tmp_path):
    return saved(tmp_path / "theirs")


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_class_is_the_same(kind, tmp_path):
    theirs = saved(tmp_path / "theirs", kind=kind)
    (theirs / FILE_NAME).write_bytes((demo.FOLDER / FILE_NAME).read_bytes())
    printed = check("--check", theirs)
    states = ["H_0", "H_1", "H_2"] + ["output"] * (kind != "CamembertModel")
    assert [line.split()[0] for line in printed.splitlines()[: len(states)]] == states
    assert "the same as" in printed and "random tokens" not in printed


@pytest.mark.parametrize(("layer", "value"), [(1, 1e-2), (0, float("nan"))])
def test_a_native_file_against_a_folder_that_changes(layer, value, theirs, tmp_path):
    save_model(load_checkpoint(theirs), tmp_path / "ours.safetensors")
    check(tmp_path / "ours.safetensors", "--check", theirs)

    def change(tensors):  # one value: LayerNorm would remove the same change in all
        tensors[f"roberta.encoder.layer.{layer}.output.dense.bias"][0] += value

    rewrite(theirs, change)
    printed = check(tmp_path / "ours.safetensors", "--check", theirs, status=1)
    assert "NOT THE SAME" in printed
    if layer == 1:
        differs = [float(line.split()[1]) > 1e-4 for line in printed.splitlines() if line.startswith("H_")]
        assert differs == [False, False, True]


def test_a_tarball_of_fairseq_against_a_folder(tmp_path):
    theirs = without_token_type(huggingface_model(vocab_size=1005)).float()
    torch.save(checkpoint(theirs), tmp_path / "model.pt")
    with tarfile.open(tmp_path / "camembert.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model.pt", "camembert/model.pt")
        archive.add(demo.FOLDER / FILE_NAME, f"camembert/{FILE_NAME}")
    printed = check(tmp_path / "camembert.tar.gz", "--check", as_folder(theirs, tmp_path / "theirs"))
    assert "random tokens" not in printed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_without_a_tokenizer(dtype, tmp_path):
    assert "random tokens are used" in check("--check", saved(tmp_path / "theirs", dtype))


@needs(MINI)
def test_a_trained_camembert():
    check("--check", MINI)


def test_a_missing_folder_is_an_error(theirs, tmp_path):
    assert "There is no model" in check(theirs, "--check", tmp_path / "nothing", status=2)
    assert "is not a folder" in check(theirs, "--check", theirs / "model.safetensors", status=2)


OTHERS = [
    ({"num_hidden_layers": 3}, "they are different models"),
    ({"hidden_size": 64}, "they are different models"),
    ({"vocab_size": 900}, "they are different models"),
    ({"kind": "CamembertForTokenClassification"}, "is not a CamembertForMaskedLM"),
]


@pytest.mark.parametrize(("settings", "sentence"), OTHERS)
def test_another_model_is_an_error(settings, sentence, theirs, tmp_path):
    assert sentence in check(theirs, "--check", saved(tmp_path / "other", **settings), status=2)


def test_the_dtype_in_config_json_does_not_matter(theirs):
    set_config(theirs, dtype="float16")
    check("--check", theirs)
