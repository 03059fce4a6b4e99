"""fairseq's files, against transformers' weights under fairseq's names and a forward pass by fairseq's conventions."""

import argparse
import os
import pickle
import tarfile

import pytest
import torch
import torch.nn.functional as F

from model import MaskedLM, ModelError, SequenceClassifier
from model.checkpoints.fairseq import SAFE_GLOBALS, is_fairseq, to_huggingface_names
from model.checkpoints.load import load_checkpoint
from tests.helpers import huggingface_model, padded_batch
from tests.model.checkpoints.fairseq_files import (
    arguments,
    classifier_model,
    fairseq_classifier,
    fairseq_masked_lm,
    to_fairseq,
    without_token_type,
)
from tests.model.checkpoints.files import MARK, POSITIONS, TOKEN_TYPE, RunsCode

VALUES = {
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 514,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
}


@pytest.fixture
def masked_lm():
    return without_token_type(huggingface_model())


def to_names(state, path="model.pt"):
    reports = []
    tensors, values = to_huggingface_names(state, path, reports.append)
    return tensors, values, reports


def expected_names(theirs):
    """transformers' tensors without the bias that fairseq does not have."""
    tensors = {key.removeprefix("roberta."): value for key, value in theirs.state_dict().items()}
    tensors.pop("lm_head.decoder.bias", None)
    return tensors


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype and torch.equal(actual[key], tensor), key


# ---- names -----------------------------------------------------------------------------------------------------

VARIANTS = [
    (side, stacked, norm)
    for side in ("encoder", "decoder")
    for stacked in (False, True)
    for norm in ("emb_layer_norm", "layernorm_embedding")
]
every_variant = pytest.mark.parametrize(("side", "stacked", "norm"), VARIANTS)


@every_variant
def test_a_masked_lms_names_and_values(masked_lm, side, stacked, norm):
    model = to_fairseq(masked_lm.state_dict(), side, stacked, norm)
    state = {"args": arguments(), "model": model}
    assert is_fairseq(state)
    tensors, values, reports = to_names(state)
    assert_equal(tensors, expected_names(masked_lm))
    assert values == VALUES and not reports
    pointers = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    assert len(pointers) == len(tensors) - 1  # the tied decoder alone


@every_variant
def test_a_classifiers_names(side, stacked, norm):
    theirs = classifier_model()
    state = {"args": arguments(), "model": to_fairseq(theirs.state_dict(), side, stacked, norm)}
    tensors, values, reports = to_names(state)
    assert_equal(tensors, expected_names(theirs))
    assert values == VALUES and not reports


def test_the_lm_head_of_a_classifier_is_left_out(masked_lm):
    theirs = classifier_model()
    model = {**to_fairseq(masked_lm.state_dict()), **to_fairseq(theirs.state_dict(), head="xnli")}
    tensors, _, reports = to_names({"args": arguments(), "model": model})
    assert_equal(tensors, expected_names(theirs))
    assert len(reports) == 6 and all("lm_head" in line and "is left out" in line and "xnli" in line for line in reports)


def test_versions_are_left_out(masked_lm):
    model = to_fairseq(masked_lm.state_dict())
    model["decoder.sentence_encoder.version"] = torch.tensor([3.0])
    model["decoder.version"] = torch.tensor([2])
    tensors, _, reports = to_names({"args": arguments(), "model": model})
    assert_equal(tensors, expected_names(masked_lm))
    assert len(reports) == 2 and all("version is left out" in line for line in reports)


def test_other_checkpoints_are_not_fairseqs(masked_lm):
    model = to_fairseq(masked_lm.state_dict())
    assert is_fairseq({"model": model}) and not is_fairseq(model) and not is_fairseq([model])
    assert not is_fairseq(masked_lm.state_dict()) and not is_fairseq({"model": masked_lm.state_dict()})
    assert not is_fairseq({"model": None}) and not is_fairseq({"model": {}}) and not is_fairseq({"model": {3: 4}})


# ---- arguments -------------------------------------------------------------------------------------------------


def test_both_places_of_the_arguments(masked_lm):
    model = to_fairseq(masked_lm.state_dict())
    known = {"pad_token_id": 1, "layer_norm_eps": 1e-5}
    for around, expected in (
        ({"args": arguments(), "cfg": None}, VALUES),
        ({"args": None, "cfg": {"model": vars(arguments()), "task": {"encoder_layers": 9}}}, VALUES),
        ({"args": None, "cfg": {"model": arguments()}}, VALUES),
        ({"args": arguments(), "cfg": {"model": {"encoder_layers": 9}}}, VALUES),
        ({"args": None, "cfg": None}, known),
        ({}, known),
        ({"args": argparse.Namespace()}, known),
        ({"args": 3, "cfg": {"model": [1]}}, known),
        ({"cfg": arguments()}, known),
    ):
        assert to_names({**around, "model": model})[1] == expected, around


@pytest.mark.parametrize(
    "value", ["12", -1, 0, 2.0, True, None, [2], {"a": 1}, 2**31, torch.tensor(2), argparse.Namespace(), float("nan")]
)
def test_arguments_of_the_wrong_type_are_ignored(masked_lm, value):
    names = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "encoder_ffn_embed_dim", "max_positions")
    others = dict(dropout=[value], attention_dropout=str(value), activation_fn=[value], pooler_activation_fn=3)
    hostile = arguments(**dict.fromkeys(names, value), **others)
    values = to_names({"args": hostile, "model": to_fairseq(masked_lm.state_dict())})[1]
    assert values == {"pad_token_id": 1, "layer_norm_eps": 1e-5}


def test_no_attribute_of_the_arguments_is_looked_up(masked_lm):
    class Trap(argparse.Namespace):  # no file can contain such a class; checked anyway
        def __getattribute__(self, name):
            if name != "__class__":
                raise AssertionError(name)
            return argparse.Namespace

    values = to_names({"args": Trap(), "model": to_fairseq(masked_lm.state_dict())})[1]
    assert values == {"pad_token_id": 1, "layer_norm_eps": 1e-5}


@pytest.mark.parametrize("activation", ["relu", "gelu_accurate", "gelu_fast", "tanh", "x" * 999])
def test_a_masked_lm_with_another_activation(masked_lm, activation):
    state = {"args": arguments(activation_fn=activation), "model": to_fairseq(masked_lm.state_dict())}
    with pytest.raises(ModelError, match="activation_fn"):  # fairseq's LM head has it too, this project's has GELU
        to_names(state)


def test_the_activations_of_a_classifier():
    model = to_fairseq(classifier_model().state_dict())
    assert to_names({"args": arguments(activation_fn="relu"), "model": model})[1]["hidden_act"] == "relu"
    with pytest.raises(ModelError, match="activation_fn 'gelu_accurate'; only gelu or relu is supported"):
        to_names({"args": arguments(activation_fn="gelu_accurate"), "model": model})
    with pytest.raises(ModelError, match="pooler_activation_fn 'relu'"):
        to_names({"args": arguments(pooler_activation_fn="relu"), "model": model})


# ---- wrong tables ----------------------------------------------------------------------------------------------

S = "decoder.sentence_encoder"
WRONG = {
    "unknown": (f"{S}.layers.0.adapter.weight", torch.ones(3), r"layers\.0\.adapter\.weight, which a CamemBERT of"),
    "pre-norm": (f"{S}.layer_norm.weight", torch.ones(48), r"sentence_encoder\.layer_norm\.weight, which"),
    "segments": (f"{S}.segment_embeddings.weight", torch.ones(2, 48), "segment_embeddings.weight, which"),
    "no side": ("sentence_encoder.embed_tokens.weight", torch.ones(211, 48), "a tensor sentence_encoder"),
    "two sides": (
        "encoder.lm_head.bias",
        torch.ones(211),
        "twice, as decoder.lm_head.bias and as encoder.lm_head.bias",
    ),
    "two norms": (f"{S}.layernorm_embedding.bias", torch.ones(48), "the same tensor twice, as .*emb_layer_norm.bias"),
    "split and stacked": (f"{S}.layers.1.self_attn.in_proj_bias", torch.ones(144), "twice, as .*q_proj.*in_proj_bias"),
    "01 for 1": (f"{S}.layers.01.fc1.bias", torch.ones(80), r"layers\.01\.fc1\.bias, which"),
    "another underscore": (f"{S}.layers.0.fc1_bias", torch.ones(80), "fc1_bias, which"),
    "missing rows": (f"{S}.layers.1.fc2.weight", torch.ones(47, 80), r"fc2\.weight has .*\(47, 80\), .* 47 is not 48"),
    "missing columns": (f"{S}.layers.0.self_attn.k_proj.weight", torch.ones(48, 47), r"k_proj\.weight has .*\(48, 47"),
    "a vector": (f"{S}.layers.0.self_attn.k_proj.weight", torch.ones(48), r"k_proj\.weight has .* 2 dimensions"),
    "a number": (f"{S}.layers.0.fc1.bias", torch.tensor(3.0), r"fc1\.bias has shape \(\); 1 dimensions"),
    "a longer bias": ("decoder.lm_head.bias", torch.ones(212), r"lm_head\.bias has .*\(212,\), .* 212 is not 211"),
    "sparse": (f"{S}.layers.0.fc2.weight", torch.eye(48, 80).to_sparse(), "fc2.weight is not a plain dense tensor"),
    "10^12 rows": (f"{S}.embed_tokens.weight", torch.ones(1, 48).expand(10**12, 48), "embed_tokens.weight has a shape"),
    "integers": ("decoder.lm_head.bias", torch.ones(211, dtype=torch.long), "lm_head.bias holds torch.int64"),
    "no tensor": (f"{S}.layers.0.fc2.weight", [1.0], r"fc2\.weight, under model, is not a named tensor"),
    "no name": (3, torch.ones(3), "3, under model, is not a named tensor"),
    "half a head": ("classification_heads.a.dense.weight_orig", torch.ones(48, 48), "weight_orig, which"),
    "another layer of a head": ("classification_heads.a.norm.weight", torch.ones(48), r"heads\.a\.norm\.weight, which"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tensor_is_an_error_with_its_key(masked_lm, case):
    key, tensor, sentence = WRONG[case]
    state = {"args": arguments(), "model": to_fairseq(masked_lm.state_dict())}
    state["model"][key] = tensor
    with pytest.raises(ModelError, match=sentence) as caught:
        to_names(state, "folder/model.pt")
    assert str(caught.value).startswith("folder/model.pt")


@pytest.mark.parametrize("shape", [(143, 48), (0, 48), (), (141, 48), (144, 47), (144,)])
def test_stacked_projections_of_a_wrong_shape(masked_lm, shape):
    model = to_fairseq(masked_lm.state_dict(), stacked=True)
    model[f"{S}.layers.1.self_attn.in_proj_weight"] = torch.ones(shape)
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.in_proj_weight has shape"):
        to_names({"args": arguments(), "model": model})


def test_several_classification_heads_are_an_error():
    tensors = classifier_model().state_dict()
    model = {**to_fairseq(tensors, head="xnli"), **to_fairseq(tensors, head="cls_fr")}
    with pytest.raises(ModelError, match=r"2 classification heads \(cls_fr, xnli\)"):
        to_names({"args": arguments(), "model": model})


# ---- through files, to logits ----------------------------------------------------------------------------------


def save_tarball(source, target, mode="w:gz"):
    with tarfile.open(target, mode) as archive:
        archive.add(source, f"camembert-base/{source.name}")


def saved(state, tmp_path, form):
    """The checkpoint in a file, a folder or an archive."""
    folder = tmp_path / "camembert-base"
    folder.mkdir()
    torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=form != "older pickle")
    if form == "folder":
        return folder
    if form == "tarball":
        save_tarball(folder / "model.pt", tmp_path / "camembert-base.tar.gz")
        return tmp_path / "camembert-base.tar.gz"
    return folder / "model.pt"


@torch.no_grad()
def assert_same(actual, expected, mask=None):
    """At the real tokens: at padding, which no loss reads, fairseq's hidden states differ."""
    if mask is not None:
        actual, expected = actual[mask], expected[mask]
    assert expected.dtype == actual.dtype == torch.float64 and expected.shape == actual.shape
    assert expected.std() > 0.01  # not zeros
    assert (actual - expected).abs().max() < 1e-9


@pytest.mark.parametrize("form", ["file", "older pickle", "folder", "tarball"])
@every_variant
@torch.no_grad()
def test_fairseq_transformers_and_this_project_agree(masked_lm, tmp_path, form, side, stacked, norm):
    state = {
        "args": arguments(),
        "model": to_fairseq(masked_lm.state_dict(), side, stacked, norm),
        "optimizer_history": [{"criterion_name": "MaskedLmLoss", "num_updates": 500000}],
        "extra_state": {"epoch": 12, "val_loss": 1.5},
    }
    reports = []
    ours = load_checkpoint(saved(state, tmp_path, form), reports.append)
    assert isinstance(ours, MaskedLM)
    assert not [line for line in reports if "assumed" in line], reports
    input_ids, mask = padded_batch((30, 1, 7), 211)
    expected = fairseq_masked_lm(state["model"], input_ids)
    assert_same(masked_lm(input_ids, attention_mask=mask.long()).logits, expected, mask)
    assert_same(ours(input_ids, mask), expected, mask)
    assert_same(ours(input_ids), expected, mask)  # both find padding by its id


@torch.no_grad()
def test_a_token_type_row_added_to_the_positions(tmp_path):
    theirs = huggingface_model()
    tensors = dict(theirs.state_dict())
    assert tensors[TOKEN_TYPE].abs().max() > 0.01
    tensors[POSITIONS] = tensors[POSITIONS] + tensors[TOKEN_TYPE][0]
    state = {"args": arguments(), "model": to_fairseq(tensors)}
    input_ids, mask = padded_batch((30, 1, 7), 211)
    expected = fairseq_masked_lm(state["model"], input_ids)
    assert_same(theirs(input_ids, attention_mask=mask.long()).logits, expected, mask)
    assert_same(load_checkpoint(saved(state, tmp_path, "file"))(input_ids, mask), expected, mask)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@torch.no_grad()
def test_classifiers_agree(tmp_path, masked_lm, activation):
    theirs = classifier_model()
    model = to_fairseq(theirs.state_dict(), "encoder", norm="layernorm_embedding")
    model |= {f"encoder.lm_head.{k}": v for k, v in (("bias", torch.ones(211)), ("weight", torch.ones(211, 48)))}
    state = {"args": arguments(activation_fn=activation), "model": model}
    ours = load_checkpoint(saved(state, tmp_path, "file"), lambda line: None)
    assert isinstance(ours, SequenceClassifier) and ours.config.activation == activation
    input_ids, mask = padded_batch((30, 1, 7), 211)
    expected = fairseq_classifier(model, input_ids, activation=getattr(F, activation))
    assert_same(ours(input_ids, mask), expected)
    if activation == "gelu":
        assert_same(theirs(input_ids, attention_mask=mask.long()).logits, expected)


@torch.no_grad()
def test_the_forward_pass_notices_errors(masked_lm):
    """Swapped query and value, and positions that are off by one."""
    model = to_fairseq(masked_lm.state_dict())
    input_ids, mask = padded_batch((30, 1, 7), 211)
    expected = masked_lm(input_ids, attention_mask=mask.long()).logits[mask]
    query, value = (f"{S}.layers.0.self_attn.{letter}_proj.weight" for letter in "qv")
    swapped = {**model, query: model[value], value: model[query]}
    positions = f"{S}.embed_positions.weight"
    shifted = {**model, positions: model[positions].roll(1, dims=0)}
    assert (fairseq_masked_lm(model, input_ids)[mask] - expected).abs().max() < 1e-9
    for wrong in (swapped, shifted):
        assert (fairseq_masked_lm(wrong, input_ids)[mask] - expected).abs().max() > 1e-3


@torch.no_grad()
def test_half_precision_is_kept(masked_lm, tmp_path):
    state = {"args": arguments(), "model": to_fairseq(masked_lm.half().state_dict(), stacked=True)}
    ours = load_checkpoint(saved(state, tmp_path, "file"), lambda line: None)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}


# ---- hostile files ---------------------------------------------------------------------------------------------


class Setter:
    """Unpickled as a Namespace whose attributes come from running code."""

    def __reduce__(self):
        return argparse.Namespace, (), (None, {"encoder_layers": RunsCode()})


def hostile(state):
    return {
        "beside the weights": {**state, "extra_state": RunsCode()},
        "among the weights": {**state, "model": {**state["model"], "decoder.version": RunsCode()}},
        "in the arguments": {**state, "args": arguments(encoder_layers=RunsCode())},
        "as the arguments": {**state, "args": Setter()},
        "as the whole": RunsCode(),
        "another class": {**state, "args": tarfile.TarInfo("x")},
        "a function as an argument": {**state, "args": arguments(encoder_layers=os.system)},
    }


@pytest.mark.parametrize("case", hostile({"model": {}}))
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code(masked_lm, tmp_path, case, zipped):
    state = hostile({"args": arguments(), "model": to_fairseq(masked_lm.state_dict())})[case]
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with torch.serialization.safe_globals(SAFE_GLOBALS), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    with pytest.raises(ModelError, match="was refused") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and not MARK.exists()


def test_only_the_class_of_the_arguments_is_allowed():
    assert [argparse.Namespace] == SAFE_GLOBALS
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals(SAFE_GLOBALS):
        pass
    assert set(torch.serialization.get_safe_globals()) == before


CONTRADICTIONS = {
    "a billion layers": (dict(encoder_layers=10**9), "claims 1000000000 layers"),
    "another width": (dict(encoder_embed_dim=96), "the configuration requires"),
    "heads that do not divide": (dict(encoder_attention_heads=7), "must be divisible by num_heads 7"),
    "more layers than there are": (dict(encoder_layers=3), "lacks the tensor"),
    "fewer positions": (dict(max_positions=100), "the configuration requires"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_arguments_that_contradict_the_weights_are_an_error(masked_lm, tmp_path, case):
    changes, sentence = CONTRADICTIONS[case]
    state = {"args": arguments(**changes), "model": to_fairseq(masked_lm.state_dict())}
    with pytest.raises(ModelError, match=sentence) as caught:
        load_checkpoint(saved(state, tmp_path, "file"), lambda line: None)
    assert str(tmp_path) in str(caught.value)
