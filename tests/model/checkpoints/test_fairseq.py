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
from tests.helpers import padded_batch
from tests.model.checkpoints import fairseq_files
from tests.model.checkpoints.fairseq_files import arguments, checkpoint, classifier_model, masked_lm_model, to_fairseq
from tests.model.checkpoints.files import RunsCode, assert_refused, load

KNOWN = {"pad_token_id": 1, "layer_norm_eps": 1e-5}  # constants of fairseq
SIZES = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 80}
DROPOUTS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
VALUES = {**KNOWN, **SIZES, **DROPOUTS, "max_position_embeddings": 514, "hidden_act": "gelu"}
S = "decoder.sentence_encoder"


@pytest.fixture
def state():
    return checkpoint(masked_lm_model())


def to_names(state):
    reports = []
    tensors, values = to_huggingface_names(state, "folder/model.pt", reports.append)
    return tensors, values, reports


def refused(state, match):
    with pytest.raises(ModelError, match=match) as caught:
        to_names(state)
    assert str(caught.value).startswith("folder/model.pt")


def assert_equal_names(actual, theirs):
    """Those of transformers, without the bias that fairseq does not have."""
    expected = {key.removeprefix("roberta."): value for key, value in theirs.state_dict().items()}
    expected.pop("lm_head.decoder.bias", None)
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype and torch.equal(actual[key], tensor), key


# ---- names -----------------------------------------------------------------------------------------------------

SIDES, NORMS = ("encoder", "decoder"), ("emb_layer_norm", "layernorm_embedding")
VARIANTS = [(side, stacked, norm) for side in SIDES for stacked in (False, True) for norm in NORMS]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@pytest.mark.parametrize("make", [masked_lm_model, classifier_model])
@every_variant
def test_names_and_values(make, variant):
    theirs = make()
    state = checkpoint(theirs, *variant)
    assert is_fairseq(state)
    tensors, values, reports = to_names(state)
    assert_equal_names(tensors, theirs)
    assert values == VALUES and not reports
    pointers = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    assert len(pointers) == len(tensors) - (make is masked_lm_model)  # the tied decoder alone


def test_the_lm_head_of_a_classifier_is_left_out(state):
    theirs = classifier_model()
    state["model"] |= to_fairseq(theirs.state_dict(), head="xnli")
    tensors, _, reports = to_names(state)
    assert_equal_names(tensors, theirs)
    assert len(reports) == 6 and all("lm_head" in line and "is left out" in line and "xnli" in line for line in reports)


def test_versions_are_left_out(state):
    state["model"] |= {f"{S}.version": torch.tensor([3.0]), "decoder.version": torch.tensor([2])}
    tensors, _, reports = to_names(state)
    assert_equal_names(tensors, masked_lm_model())
    assert len(reports) == 2 and all("version is left out" in line for line in reports)


def test_other_checkpoints_are_not_fairseqs(state):
    model, theirs = state["model"], masked_lm_model().state_dict()
    assert is_fairseq({"model": model})
    for other in (model, [model], theirs, {"model": theirs}, {"model": None}, {"model": {}}, {"model": {3: 4}}):
        assert not is_fairseq(other)


# ---- arguments -------------------------------------------------------------------------------------------------

NINE = {"encoder_layers": 9}
PLACES = [
    ({"args": arguments(), "cfg": None}, VALUES),
    ({"args": None, "cfg": {"model": vars(arguments()), "task": NINE}}, VALUES),
    ({"args": None, "cfg": {"model": arguments()}}, VALUES),
    ({"args": arguments(), "cfg": {"model": NINE}}, VALUES),
    ({"args": None, "cfg": None}, KNOWN),
    ({}, KNOWN),
    ({"args": argparse.Namespace()}, KNOWN),
    ({"args": 3, "cfg": {"model": [1]}}, KNOWN),
    ({"cfg": arguments()}, KNOWN),
]


@pytest.mark.parametrize(("around", "expected"), PLACES)
def test_both_places_of_the_arguments(state, around, expected):
    assert to_names({**around, "model": state["model"]})[1] == expected


@pytest.mark.parametrize(
    "value", ["12", -1, 0, 2.0, True, None, [2], {"a": 1}, 2**31, torch.tensor(2), argparse.Namespace(), float("nan")]
)
def test_arguments_of_the_wrong_type_are_ignored(state, value):
    names = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "encoder_ffn_embed_dim", "max_positions")
    others = dict(dropout=[value], attention_dropout=str(value), activation_fn=[value], pooler_activation_fn=3)
    assert to_names({**state, "args": arguments(**dict.fromkeys(names, value), **others)})[1] == KNOWN


def test_no_attribute_of_the_arguments_is_looked_up(state):
    class Trap(argparse.Namespace):  # no file can contain such a class; checked anyway
        def __getattribute__(self, name):
            if name != "__class__":
                raise AssertionError(name)
            return argparse.Namespace

    assert to_names({**state, "args": Trap()})[1] == KNOWN


OTHERS = ("relu", "gelu_accurate", "gelu_fast", "tanh", "x" * 999)
ACTIVATIONS = [  # fairseq's LM head has the encoder's activation, this project's always has GELU
    *((masked_lm_model, {"activation_fn": name}, f"activation_fn '{name[:100]}'; only gelu is") for name in OTHERS),
    (classifier_model, {"activation_fn": "gelu_accurate"}, "activation_fn 'gelu_accurate'; only gelu or relu is"),
    (classifier_model, {"pooler_activation_fn": "relu"}, "pooler_activation_fn 'relu'"),
]


@pytest.mark.parametrize(("make", "changes", "sentence"), ACTIVATIONS)
def test_another_activation_is_an_error(make, changes, sentence):
    refused({**checkpoint(make()), "args": arguments(**changes)}, sentence)


# ---- wrong tables ----------------------------------------------------------------------------------------------

LAYER, ATTENTION, HEAD = f"{S}.layers.0", f"{S}.layers.0.self_attn", "classification_heads.a"
WRONG = {
    "unknown": (f"{LAYER}.adapter.weight", torch.ones(3), r"layers\.0\.adapter\.weight, which a CamemBERT of"),
    "pre-norm": (f"{S}.layer_norm.weight", torch.ones(48), r"sentence_encoder\.layer_norm\.weight, which"),
    "segments": (f"{S}.segment_embeddings.weight", torch.ones(2, 48), "segment_embeddings.weight, which"),
    "no side": ("sentence_encoder.embed_tokens.weight", torch.ones(211, 48), "a tensor sentence_encoder"),
    "two sides": ("encoder.lm_head.bias", torch.ones(211), r"twice, as decoder.lm_head.bias and as encoder.lm_head.b"),
    "two norms": (f"{S}.layernorm_embedding.bias", torch.ones(48), "the same tensor twice, as .*emb_layer_norm.bias"),
    "split and stacked": (f"{ATTENTION}.in_proj_bias", torch.ones(144), "twice, as .*q_proj.*in_proj_bias"),
    "01 for 1": (f"{S}.layers.01.fc1.bias", torch.ones(80), r"layers\.01\.fc1\.bias, which"),
    "another underscore": (f"{LAYER}.fc1_bias", torch.ones(80), "fc1_bias, which"),
    "missing rows": (f"{LAYER}.fc2.weight", torch.ones(47, 80), r"fc2\.weight has .*\(47, 80\), .* 47 is not 48"),
    "missing columns": (f"{ATTENTION}.k_proj.weight", torch.ones(48, 47), r"k_proj\.weight has .*\(48, 47"),
    "a vector": (f"{ATTENTION}.k_proj.weight", torch.ones(48), r"k_proj\.weight has .* 2 dimensions"),
    "a number": (f"{LAYER}.fc1.bias", torch.tensor(3.0), r"fc1\.bias has shape \(\); 1 dimensions"),
    "a longer bias": ("decoder.lm_head.bias", torch.ones(212), r"lm_head\.bias has .*\(212,\), .* 212 is not 211"),
    "sparse": (f"{LAYER}.fc2.weight", torch.eye(48, 80).to_sparse(), "fc2.weight is not a plain dense tensor"),
    "10^12 rows": (f"{S}.embed_tokens.weight", torch.ones(1, 48).expand(10**12, 48), "embed_tokens.weight has a shape"),
    "integers": ("decoder.lm_head.bias", torch.ones(211, dtype=torch.long), "lm_head.bias holds torch.int64"),
    "no tensor": (f"{LAYER}.fc2.weight", [1.0], r"fc2\.weight, under model, is not a named tensor"),
    "no name": (3, torch.ones(3), "3, under model, is not a named tensor"),
    "half a head": (f"{HEAD}.dense.weight_orig", torch.ones(48, 48), "weight_orig, which"),
    "another layer of a head": (f"{HEAD}.norm.weight", torch.ones(48), r"heads\.a\.norm\.weight, which"),
}


@pytest.mark.parametrize(("key", "tensor", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_tensor_is_an_error_with_its_key(state, key, tensor, sentence):
    state["model"][key] = tensor
    refused(state, sentence)


@pytest.mark.parametrize("shape", [(143, 48), (0, 48), (), (141, 48), (144, 47), (144,)])
def test_stacked_projections_of_a_wrong_shape(shape):
    state = checkpoint(masked_lm_model(), stacked=True)
    state["model"][f"{S}.layers.1.self_attn.in_proj_weight"] = torch.ones(shape)
    refused(state, r"layers\.1\.self_attn\.in_proj_weight has shape")


def test_several_classification_heads_are_an_error():
    state = checkpoint(classifier_model(), head="xnli")
    state["model"] |= to_fairseq(classifier_model().state_dict(), head="cls_fr")
    refused(state, r"2 classification heads \(cls_fr, xnli\)")


# ---- through files, to logits ----------------------------------------------------------------------------------


def saved(state, tmp_path, form="file"):
    """The checkpoint in a file, a folder or an archive."""
    folder, archive = tmp_path / "camembert-base", tmp_path / "camembert-base.tar.gz"
    folder.mkdir()
    torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=form != "older pickle")
    if form == "tarball":
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder / "model.pt", "camembert-base/model.pt")
    return {"folder": folder, "tarball": archive}.get(form, folder / "model.pt")


def assert_same(actual, expected, mask=...):
    """At the real tokens: at padding, which no loss reads, fairseq's hidden states differ."""
    actual, expected = actual[mask], expected[mask]
    assert expected.dtype == actual.dtype == torch.float64 and expected.shape == actual.shape
    assert expected.std() > 0.01  # not zeros
    assert (actual - expected).abs().max() < 1e-9


@pytest.mark.parametrize("form", ["file", "older pickle", "folder", "tarball"])
@every_variant
@torch.no_grad()
def test_fairseq_transformers_and_this_project_agree(tmp_path, form, variant):
    theirs = masked_lm_model()
    state = checkpoint(theirs, *variant)
    state["optimizer_history"] = [{"criterion_name": "MaskedLmLoss", "num_updates": 500000}]
    state["extra_state"] = {"epoch": 12, "val_loss": 1.5}
    ours, reports = load(saved(state, tmp_path, form))
    assert isinstance(ours, MaskedLM)
    assert not [line for line in reports if "assumed" in line], reports
    input_ids, mask = padded_batch((30, 1, 7), 211)
    expected = fairseq_files.fairseq_masked_lm(state["model"], input_ids)
    assert_same(theirs(input_ids, attention_mask=mask.long()).logits, expected, mask)
    assert_same(ours(input_ids, mask), expected, mask)
    assert_same(ours(input_ids), expected, mask)  # both find padding by its id


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@torch.no_grad()
def test_classifiers_agree(tmp_path, activation):
    theirs = classifier_model()
    model = to_fairseq(theirs.state_dict(), "encoder", norm="layernorm_embedding")
    model |= {"encoder.lm_head.bias": torch.ones(211), "encoder.lm_head.weight": torch.ones(211, 48)}
    ours, _ = load(saved({"args": arguments(activation_fn=activation), "model": model}, tmp_path))
    assert isinstance(ours, SequenceClassifier) and ours.config.activation == activation
    input_ids, mask = padded_batch((30, 1, 7), 211)
    expected = fairseq_files.fairseq_classifier(model, input_ids, activation=getattr(F, activation))
    assert_same(ours(input_ids, mask), expected)
    if activation == "gelu":
        assert_same(theirs(input_ids, attention_mask=mask.long()).logits, expected)


@torch.no_grad()
def test_the_forward_pass_notices_errors(state):
    """Swapped query and value, and positions that are off by one."""
    model, (input_ids, mask) = state["model"], padded_batch((30, 1, 7), 211)
    expected = masked_lm_model()(input_ids, attention_mask=mask.long()).logits[mask]
    query, value, positions = f"{ATTENTION}.q_proj.weight", f"{ATTENTION}.v_proj.weight", f"{S}.embed_positions.weight"
    swapped = {**model, query: model[value], value: model[query]}
    shifted = {**model, positions: model[positions].roll(1, dims=0)}
    right, *wrong = (fairseq_files.fairseq_masked_lm(each, input_ids)[mask] for each in (model, swapped, shifted))
    assert (right - expected).abs().max() < 1e-9
    assert all((logits - expected).abs().max() > 1e-3 for logits in wrong)


def test_half_precision_is_kept(tmp_path):
    ours, _ = load(saved(checkpoint(masked_lm_model().half(), stacked=True), tmp_path))
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}


# ---- hostile files ---------------------------------------------------------------------------------------------


class Setter:
    """Unpickled as a Namespace whose attributes come from running code."""

    def __reduce__(self):
        return argparse.Namespace, (), (None, {"encoder_layers": RunsCode()})


HOSTILE = {
    "beside the weights": lambda state: {**state, "extra_state": RunsCode()},
    "among the weights": lambda state: {**state, "model": {**state["model"], "decoder.version": RunsCode()}},
    "in the arguments": lambda state: {**state, "args": arguments(encoder_layers=RunsCode())},
    "as the arguments": lambda state: {**state, "args": Setter()},
    "as the whole": lambda state: RunsCode(),
    "another class": lambda state: {**state, "args": tarfile.TarInfo("x")},
    "a function as an argument": lambda state: {**state, "args": arguments(encoder_layers=os.system)},
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code(state, tmp_path, case, zipped):
    path = tmp_path / "model.pt"
    torch.save(HOSTILE[case](state), path, _use_new_zipfile_serialization=zipped)
    with torch.serialization.safe_globals(SAFE_GLOBALS), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert_refused(path, "was refused")


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


@pytest.mark.parametrize(("changes", "sentence"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_arguments_that_contradict_the_weights_are_an_error(state, tmp_path, changes, sentence):
    assert_refused(saved({**state, "args": arguments(**changes)}, tmp_path), sentence)
