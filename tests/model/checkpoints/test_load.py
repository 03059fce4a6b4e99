"""load_checkpoint: every class of model, from every file format, against the transformers model that was saved."""

import pytest
import torch

from data import DataError, Tokenizer, demo
from model import Encoder, EncoderConfig, MaskedLM, ModelError, QuestionAnswerer, TokenClassifier, save_model
from model.checkpoints.load import check_vocabulary, load_checkpoint, load_teacher, load_tokenizer
from model.checkpoints.native import KINDS
from tests.helpers import MINI, needs, padded_batch
from tests.model.checkpoints.files import (
    CLASSIFIERS,
    FORMS,
    LABELS,
    assert_same_logits,
    assert_same_outputs,
    headed_model,
    rewrite,
)

# ---- formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)], ids=["64", "32"])
def test_every_class_from_every_format(kind, form, dtype, tolerance, tmp_path):
    theirs = headed_model(kind, dtype)
    ours = load_checkpoint(form(theirs, tmp_path / "place"), lambda line: None)
    assert type(ours) is kind and next(ours.parameters()).dtype == dtype and not ours.training
    assert_same_outputs(ours, theirs, tolerance)
    if kind in CLASSIFIERS:
        assert list(ours.labels) == LABELS


def test_a_folder_a_file_and_both_kinds_of_bin(folder, theirs, capsys):
    assert_same_logits(load_checkpoint(folder), theirs)
    assert_same_logits(load_checkpoint(str(folder / "model.safetensors")), theirs)
    state = theirs.state_dict()  # with the tied decoder under its alias, as old versions saved it
    assert "lm_head.decoder.weight" in state
    (folder / "model.safetensors").unlink()
    for zipped in (True, False):
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert_same_logits(load_checkpoint(folder), theirs)
        assert_same_logits(load_checkpoint(folder / "pytorch_model.bin"), theirs)
    assert "lm_head.decoder.weight is left out" in capsys.readouterr().err


def test_the_format_does_not_depend_on_the_file_name(folder, theirs):
    (folder / "model.safetensors").rename(folder / "weights.bin")
    assert_same_logits(load_checkpoint(folder / "weights.bin"), theirs)
    torch.save(theirs.state_dict(), folder / "weights.safetensors")
    assert_same_logits(load_checkpoint(folder / "weights.safetensors"), theirs)


def test_the_file_used_of_two_is_reported(folder, theirs):
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    reports = []
    load_checkpoint(folder, reports.append)
    assert reports == [f"{folder} contains model.safetensors and pytorch_model.bin; model.safetensors is used."]


@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_the_weights_of_a_training_checkpoint(folder, theirs, name):
    (folder / "model.safetensors").unlink()
    torch.save({name: theirs.state_dict(), "epoch": 3, "optimizer": {}}, folder / "pytorch_model.bin")
    reports = []
    assert_same_logits(load_checkpoint(folder, reports.append), theirs)
    assert f"the weights under {name} are used" in reports[0]


def test_native_files_and_the_folder_of_a_run(tmp_path):
    model = MaskedLM(EncoderConfig(1, 8, 2, 8, 20))
    for path, source in (("model.safetensors", "model.safetensors"), ("run/student.safetensors", "run")):
        save_model(model, tmp_path / path)
        loaded = load_checkpoint(tmp_path / source)
        assert loaded.config == model.config and torch.equal(loaded.dense.weight, model.dense.weight)


def test_half_precision_is_kept(folder):
    rewrite(folder, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    model = load_checkpoint(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


@needs(MINI)
@torch.no_grad()
def test_a_trained_camembert():
    from transformers import AutoModelForMaskedLM

    theirs = AutoModelForMaskedLM.from_pretrained(MINI)
    ours = load_checkpoint(MINI)
    input_ids, mask = padded_batch((60, 1, 512), 32005)
    expected = theirs(input_ids, attention_mask=mask.long(), output_hidden_states=True)
    for state, hidden in zip(ours.encoder.hidden_states(input_ids, mask), expected.hidden_states, strict=True):
        assert (state - hidden).abs().max() < 2e-5
    assert (ours(input_ids, mask) - expected.logits).abs().max() < 2e-5 * expected.logits.abs().max()


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="There is no file"):
        load_checkpoint(tmp_path / "nothing.safetensors")


# ---- the class that is required --------------------------------------------------------------------------------


@torch.no_grad()
def test_the_encoder_of_any_model(folder, theirs):
    encoder = load_checkpoint(folder, kind=Encoder)
    assert type(encoder) is Encoder
    input_ids, mask = padded_batch((30, 7), 1005)
    expected = theirs.roberta(input_ids, attention_mask=mask.long()).last_hidden_state
    assert (encoder(input_ids, mask) - expected)[mask].abs().max() < 2e-5


def drop_head(tensors):
    for key in [key for key in tensors if key.startswith("lm_head.")]:
        del tensors[key]


@torch.no_grad()
def test_a_bare_encoder_gets_a_head_only_on_request(folder, theirs):
    rewrite(folder, drop_head)
    assert type(load_checkpoint(folder)) is Encoder
    with pytest.raises(ModelError, match="is a bare encoder: it has no head of a MaskedLM. .* --fresh-head"):
        load_checkpoint(folder, kind=MaskedLM)
    with pytest.raises(ModelError, match="it has no head of a TokenClassifier, and no labels"):
        load_checkpoint(folder, kind=TokenClassifier, fresh_head=True)
    input_ids, mask = padded_batch((30, 7), 1005)
    expected = theirs.roberta(input_ids, attention_mask=mask.long()).last_hidden_state
    for kind, size in ((MaskedLM, 1005), (QuestionAnswerer, 2)):
        fresh = load_checkpoint(folder, kind=kind, fresh_head=True)
        assert (fresh.encoder(input_ids, mask) - expected)[mask].abs().max() < 2e-5
        assert fresh(input_ids, mask).shape == (2, 30, size) and not fresh.training


def test_an_existing_head_is_kept_and_reported(folder, theirs):
    reports = []
    assert_same_logits(load_checkpoint(folder, reports.append, MaskedLM, fresh_head=True), theirs)
    assert "has the head of a MaskedLM, which is kept" in reports[-1]
    with pytest.raises(ModelError, match="is a MaskedLM, not a TokenClassifier"):
        load_checkpoint(folder, kind=TokenClassifier)


# ---- teachers and tokenizers -----------------------------------------------------------------------------------


def test_a_teacher_is_frozen_and_in_float32(folder, theirs):
    rewrite(folder, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    teacher = load_teacher(folder, MaskedLM, torch.device("cpu"))
    assert not teacher.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in teacher.parameters())


def test_the_tokenizer_beside_a_model_or_the_one_that_is_named(tmp_path):
    assert load_tokenizer(None, demo.TEACHER).path == load_tokenizer(demo.FOLDER, None).path
    for model_path, beside in ((tmp_path / "model.safetensors", f"beside {tmp_path}"), (None, "given")):
        with pytest.raises(DataError, match=f"{beside}.* Name the model's own with --tokenizer"):
            load_tokenizer(None, model_path)


@pytest.mark.parametrize("values", [{"vocab_size": 1006}, {"vocab_size": 1005, "pad_id": 3}])
def test_the_tokenizer_of_another_model_is_an_error(values):
    check_vocabulary(EncoderConfig(1, 8, 2, 8, 1005), Tokenizer(demo.FOLDER))
    with pytest.raises(DataError, match=r"sentencepiece\.bpe\.model does not match the model: it has 1005 tokens"):
        check_vocabulary(EncoderConfig(1, 8, 2, 8, **values), Tokenizer(demo.FOLDER))
