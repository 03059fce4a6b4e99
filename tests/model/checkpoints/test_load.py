"""load_checkpoint: every class of model, from every file format, against the transformers model that was saved."""

import tarfile

import pytest
import torch

from data import DataError, Tokenizer, demo
from data.tokenizer import FILE_NAME
from model import Encoder, EncoderConfig, MaskedLM, QuestionAnswerer, TokenClassifier, save_model
from model.checkpoints.load import check_vocabulary, load_checkpoint, load_teacher, load_tokenizer
from model.checkpoints.native import KINDS
from tests.helpers import MINI, needs, padded_batch
from tests.model.checkpoints import files
from tests.model.checkpoints.files import assert_refused, assert_same_outputs, edit_all, load, remove, rewrite


@pytest.mark.parametrize("form", files.FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)], ids=["64", "32"])
def test_every_class_from_every_format(kind, form, dtype, tolerance, tmp_path):
    theirs = files.headed_model(kind, dtype)
    ours, _ = load(form(theirs, tmp_path / "place"))
    assert type(ours) is kind and next(ours.parameters()).dtype == dtype and not ours.training
    assert_same_outputs(ours, theirs, tolerance)
    if kind in files.CLASSIFIERS:
        assert list(ours.labels) == files.LABELS


@pytest.mark.parametrize("zipped", [True, False])
def test_both_kinds_of_bin(folder, theirs, capsys, zipped):
    state, path = theirs.state_dict(), folder / "pytorch_model.bin"
    assert "lm_head.decoder.weight" in state  # the tied decoder under its alias, as old versions saved it
    (folder / "model.safetensors").unlink()
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    for source in (folder, path, str(path)):
        assert_same_outputs(load_checkpoint(source), theirs)
        assert "lm_head.decoder.weight is left out" in capsys.readouterr().err


def test_the_format_does_not_depend_on_the_file_name(folder, theirs):
    (folder / "model.safetensors").rename(folder / "weights.bin")
    torch.save(theirs.state_dict(), folder / "weights.safetensors")
    for name in ("weights.bin", "weights.safetensors"):
        assert_same_outputs(load_checkpoint(folder / name), theirs)


def test_the_file_used_of_two_is_reported(folder, theirs):
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    reports = load(folder)[1]
    assert reports == [f"{folder} contains model.safetensors and pytorch_model.bin; model.safetensors is used."]


@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_the_weights_of_a_training_checkpoint(folder, theirs, name):
    (folder / "model.safetensors").unlink()
    torch.save({name: theirs.state_dict(), "epoch": 3, "optimizer": {}}, folder / "pytorch_model.bin")
    model, reports = load(folder)
    assert_same_outputs(model, theirs)
    assert f"the weights under {name} are used" in reports[0]


def test_the_folder_of_a_run(tmp_path):
    model = MaskedLM(EncoderConfig(1, 8, 2, 8, 20))
    save_model(model, tmp_path / "run" / "student.safetensors")
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.config == model.config and torch.equal(loaded.dense.weight, model.dense.weight)


@needs(MINI)
@torch.no_grad()
def test_a_trained_camembert():
    from transformers import AutoModelForMaskedLM

    theirs, ours = AutoModelForMaskedLM.from_pretrained(MINI), load_checkpoint(MINI)
    input_ids, mask = padded_batch((60, 1, 512), 32005)
    states, logits = files.their_outputs(theirs, input_ids, mask)
    for state, hidden in zip(ours.encoder.hidden_states(input_ids, mask), states, strict=True):
        assert (state - hidden).abs().max() < 2e-5
    assert (ours(input_ids, mask) - logits).abs().max() < 2e-5 * logits.abs().max()


def test_a_bare_encoder_gets_a_head_only_on_request(folder, theirs):
    rewrite(folder, remove("lm_head."))
    assert type(load_checkpoint(folder)) is Encoder
    assert_refused(folder, "is a bare encoder: it has no head of a MaskedLM. .* --fresh-head", kind=MaskedLM)
    assert_refused(folder, "no head of a TokenClassifier, and no labels", kind=TokenClassifier, fresh_head=True)
    for kind, size in ((MaskedLM, 1005), (QuestionAnswerer, 2)):
        fresh = load_checkpoint(folder, kind=kind, fresh_head=True)
        assert_same_outputs(fresh.encoder, theirs.roberta)
        assert fresh(*padded_batch((30, 7), 1005)).shape == (2, 30, size) and not fresh.training


def test_an_existing_head_is_kept_and_reported(folder, theirs):
    model, reports = load(folder, kind=MaskedLM, fresh_head=True)
    assert_same_outputs(model, theirs)
    assert "has the head of a MaskedLM, which is kept" in reports[-1]
    assert_refused(folder, "is a MaskedLM, not a TokenClassifier", kind=TokenClassifier)


def test_a_teacher_is_frozen_and_in_float32(folder):
    rewrite(folder, edit_all(torch.Tensor.half))
    assert {parameter.dtype for parameter in load_checkpoint(folder).parameters()} == {torch.float16}  # as in the file
    teacher = load_teacher(folder, MaskedLM, torch.device("cpu"))
    assert not teacher.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in teacher.parameters())


def test_the_tokenizer_beside_a_model_or_the_one_that_is_named(tmp_path):
    assert load_tokenizer(None, demo.TEACHER).path == load_tokenizer(demo.FOLDER, None).path
    (folder := tmp_path / "mon modèle").mkdir()
    command = "python convert_weights.py .* whole.safetensors --tokenizer almanach/camembert-base"
    messages = {
        tmp_path: f"inside or beside {tmp_path}. Name the model's own with --tokenizer; or .* {command}",
        None: "no tokenizer given. Name it with --tokenizer",
        tmp_path / "x": f"no model {tmp_path}/x",
        folder: f"python convert_weights.py '{folder}' whole",
    }
    for model_path, message in messages.items():
        with pytest.raises(DataError, match=message):
            load_tokenizer(None, model_path)


def test_the_tokenizer_inside_a_file_or_a_tarball_comes_first(tmp_path):
    """The one beside is not looked at; one that is named must be the same."""
    own, other = Tokenizer(demo.FOLDER), tmp_path / FILE_NAME
    other.write_bytes(own.content.replace("▁film".encode(), "▁filn".encode()))
    save_model(MaskedLM(EncoderConfig(1, 8, 2, 8, 1005)), tmp_path / "whole.safetensors", tokenizer=own)
    torch.save({}, tmp_path / "model.pt")
    with tarfile.open(tmp_path / "camembert.tar.gz", "w:gz") as archive:
        archive.add(demo.FOLDER / FILE_NAME, f"camembert/{FILE_NAME}")
        archive.add(tmp_path / "model.pt", "camembert/model.pt")
    for name in ("whole.safetensors", "camembert.tar.gz"):
        for path in (None, demo.FOLDER, tmp_path / "whole.safetensors"):
            assert load_tokenizer(path, tmp_path / name).content == own.content
        with pytest.raises(DataError, match=f"The tokenizer {other} is not the one inside {tmp_path / name}"):
            load_tokenizer(other, tmp_path / name)
    save_model(MaskedLM(EncoderConfig(1, 8, 2, 8, 1005)), tmp_path / "bare.safetensors")
    assert load_tokenizer(None, tmp_path / "bare.safetensors").path == other
    assert load_tokenizer(None, None, tmp_path / "whole.safetensors").content == own.content
    with pytest.raises(DataError, match="whole.safetensors and .* have different tokenizers, but are used together"):
        load_tokenizer(None, tmp_path / "whole.safetensors", tmp_path / "bare.safetensors")
    assert load_tokenizer(demo.FOLDER, tmp_path / "bare.safetensors").content == own.content  # beside: it may differ


@pytest.mark.parametrize("values", [{"vocab_size": 1006}, {"vocab_size": 1005, "pad_id": 3}])
def test_the_tokenizer_of_another_model_is_an_error(values):
    check_vocabulary(EncoderConfig(1, 8, 2, 8, 1005), Tokenizer(demo.FOLDER))
    with pytest.raises(DataError, match=r"sentencepiece\.bpe\.model does not match the model: it has 1005 tokens"):
        check_vocabulary(EncoderConfig(1, 8, 2, 8, **values), Tokenizer(demo.FOLDER))
