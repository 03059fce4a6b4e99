"""fairseq's files, against transformers' weights renamed here and a forward pass written by fairseq's conventions."""

import argparse
import os
import pickle
import tarfile

import pytest
import torch
import torch.nn.functional as F

from data import DataError
from model import MaskedLM, ModelError, SequenceClassifier
from model.checkpoints.fairseq import SAFE_GLOBALS, is_fairseq, to_huggingface_names
from model.checkpoints.load import load_checkpoint
from tests.helpers import huggingface_model, padded_batch

SIZES = dict(num_hidden_layers=2, hidden_size=48, num_attention_heads=4, intermediate_size=80, vocab_size=211)
TOKEN_TYPE = "roberta.embeddings.token_type_embeddings.weight"
POSITIONS = "roberta.embeddings.position_embeddings.weight"
MARK = "/tmp/distilcamembert-fairseq-ran-code"

# ---- fairseq's files, as fairseq would write them --------------------------------------------------------------


def arguments(**changes):
    return argparse.Namespace(**{
        "arch": "roberta_base", "task": "masked_lm", "encoder_layers": 2, "encoder_embed_dim": 48,
        "encoder_attention_heads": 4, "encoder_ffn_embed_dim": 80, "max_positions": 512, "tokens_per_sample": 512,
        "activation_fn": "gelu", "pooler_activation_fn": "tanh", "dropout": 0.1, "attention_dropout": 0.1,
        "activation_dropout": 0.0, "pooler_dropout": 0.0, "lr": [0.0005], "adam_betas": "(0.9, 0.98)", "seed": 1,
        "untie_weights_roberta": False, **changes,
    })  # fmt: skip


VALUES = {
    "pad_token_id": 1, "layer_norm_eps": 1e-5, "num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4,
    "intermediate_size": 80, "max_position_embeddings": 514, "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
}  # fmt: skip


def to_fairseq(tensors, side="decoder", stacked=False, norm="emb_layer_norm", head="sentence_classification_head"):
    """transformers' tensors under fairseq's names, written down from the table of facts and from fairseq's modules."""
    sentence, layers = f"{side}.sentence_encoder", len({key.split(".")[3] for key in tensors if ".layer." in key})
    state = {
        f"{sentence}.embed_tokens.weight": tensors["roberta.embeddings.word_embeddings.weight"],
        f"{sentence}.embed_positions.weight": tensors["roberta.embeddings.position_embeddings.weight"],
    }
    for i in range(layers):
        theirs, ours = f"roberta.encoder.layer.{i}", f"{sentence}.layers.{i}"
        for kind in ("weight", "bias"):
            query, key, value = (tensors[f"{theirs}.attention.self.{n}.{kind}"] for n in ("query", "key", "value"))
            if stacked:
                state[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat([query, key, value])
            else:
                state[f"{ours}.self_attn.k_proj.{kind}"] = key
                state[f"{ours}.self_attn.v_proj.{kind}"] = value
                state[f"{ours}.self_attn.q_proj.{kind}"] = query
            state[f"{ours}.self_attn.out_proj.{kind}"] = tensors[f"{theirs}.attention.output.dense.{kind}"]
            state[f"{ours}.self_attn_layer_norm.{kind}"] = tensors[f"{theirs}.attention.output.LayerNorm.{kind}"]
            state[f"{ours}.fc1.{kind}"] = tensors[f"{theirs}.intermediate.dense.{kind}"]
            state[f"{ours}.fc2.{kind}"] = tensors[f"{theirs}.output.dense.{kind}"]
            state[f"{ours}.final_layer_norm.{kind}"] = tensors[f"{theirs}.output.LayerNorm.{kind}"]
    for kind in ("weight", "bias"):
        state[f"{sentence}.{norm}.{kind}"] = tensors[f"roberta.embeddings.LayerNorm.{kind}"]
        if "lm_head.bias" in tensors:
            state[f"{side}.lm_head.dense.{kind}"] = tensors[f"lm_head.dense.{kind}"]
            state[f"{side}.lm_head.layer_norm.{kind}"] = tensors[f"lm_head.layer_norm.{kind}"]
        else:
            state[f"classification_heads.{head}.dense.{kind}"] = tensors[f"classifier.dense.{kind}"]
            state[f"classification_heads.{head}.out_proj.{kind}"] = tensors[f"classifier.out_proj.{kind}"]
    if "lm_head.bias" in tensors:
        state[f"{side}.lm_head.weight"] = state[f"{sentence}.embed_tokens.weight"]  # one tensor, as fairseq ties them
        state[f"{side}.lm_head.bias"] = tensors["lm_head.bias"]
    return state


@torch.no_grad()
def without_token_type(theirs):
    """A row of zeros instead: fairseq has none."""
    theirs.state_dict()[TOKEN_TYPE].zero_()
    return theirs


@pytest.fixture
def masked_lm():
    return without_token_type(huggingface_model(**SIZES))


def classifier_model():
    from transformers import CamembertConfig, CamembertForSequenceClassification

    donor = huggingface_model(**SIZES)
    config = CamembertConfig(**{**donor.config.to_dict(), "num_labels": 3})
    torch.manual_seed(1)
    theirs = CamembertForSequenceClassification(config).double().eval()
    theirs.roberta.load_state_dict(donor.roberta.state_dict())
    with torch.no_grad():
        for parameter in theirs.classifier.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return without_token_type(theirs)


def to_names(state, path="model.pt"):
    said = []
    tensors, values = to_huggingface_names(state, path, said.append)
    return tensors, values, said


def expected_names(theirs):
    """transformers' tensors, but for what fairseq has no place for."""
    tensors = {key.removeprefix("roberta."): value for key, value in theirs.state_dict().items()}
    tensors.pop("lm_head.decoder.bias", None)
    return tensors


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype and torch.equal(actual[key], tensor), key


# ---- an independent forward pass -------------------------------------------------------------------------------


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def layer_norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def fairseq_attention(state, name, x, num_heads, padding):
    """fairseq's MultiheadAttention: T x B x C, the query scaled before the product, heads folded into the batch."""
    length, batch, channels = x.shape
    size = channels // num_heads
    if f"{name}.in_proj_weight" in state:
        q, k, v = F.linear(x, state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
    else:
        q, k, v = (linear(state, f"{name}.{letter}_proj", x) for letter in "qkv")
    q = q * size**-0.5
    q, k, v = (each.reshape(length, batch * num_heads, size).transpose(0, 1) for each in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, num_heads, length, length)
    scores = scores.masked_fill(padding[:, None, None, :], float("-inf")).view(batch * num_heads, length, length)
    context = torch.bmm(scores.softmax(dim=-1), v)  # (B * heads, T, C / heads)
    context = context.transpose(0, 1).reshape(length, batch, channels)
    return linear(state, f"{name}.out_proj", context)


def fairseq_features(state, tokens, num_heads=4, activation=F.gelu):
    """What fairseq's TransformerSentenceEncoder gives for tokens B x T, in evaluation.  -> B x T x C"""
    side = "encoder" if any(key.startswith("encoder.") for key in state) else "decoder"
    sentence = f"{side}.sentence_encoder"
    padding = tokens.eq(1)
    real = tokens.ne(1).int()
    positions = (torch.cumsum(real, dim=1).type_as(real) * real).long() + 1
    x = state[f"{sentence}.embed_tokens.weight"][tokens] + state[f"{sentence}.embed_positions.weight"][positions]
    norm = "emb_layer_norm" if f"{sentence}.emb_layer_norm.weight" in state else "layernorm_embedding"
    x = layer_norm(state, f"{sentence}.{norm}", x)
    x = x * (1 - padding.unsqueeze(-1).type_as(x))  # fairseq alone sets padding to zero here
    x = x.transpose(0, 1)  # B x T x C -> T x B x C
    i = 0
    while f"{sentence}.layers.{i}.fc1.weight" in state:
        layer = f"{sentence}.layers.{i}"
        attention = fairseq_attention(state, f"{layer}.self_attn", x, num_heads, padding)
        x = layer_norm(state, f"{layer}.self_attn_layer_norm", x + attention)
        inner = activation(linear(state, f"{layer}.fc1", x))
        x = layer_norm(state, f"{layer}.final_layer_norm", x + linear(state, f"{layer}.fc2", inner))
        i += 1
    return x.transpose(0, 1)


def fairseq_masked_lm(state, tokens):
    """RobertaLMHead: dense, gelu, layer norm, the tied matrix without a bias, then the bias."""
    x = fairseq_features(state, tokens)
    head = "encoder.lm_head" if "encoder.lm_head.bias" in state else "decoder.lm_head"
    x = layer_norm(state, f"{head}.layer_norm", F.gelu(linear(state, f"{head}.dense", x)))
    return F.linear(x, state[f"{head}.weight"]) + state[f"{head}.bias"]


def fairseq_classifier(state, tokens, head="sentence_classification_head", activation=F.gelu):
    """RobertaClassificationHead: the first token's state, dense, tanh, out_proj."""
    x = fairseq_features(state, tokens, activation=activation)[:, 0, :]
    x = torch.tanh(linear(state, f"classification_heads.{head}.dense", x))
    return linear(state, f"classification_heads.{head}.out_proj", x)


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
    tensors, values, said = to_names(state)
    assert_equal(tensors, expected_names(masked_lm))
    assert values == VALUES and not said
    pointers = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    assert len(pointers) == len(tensors) - 1  # the tied decoder alone


@every_variant
def test_a_classifiers_names(side, stacked, norm):
    theirs = classifier_model()
    state = {"args": arguments(), "model": to_fairseq(theirs.state_dict(), side, stacked, norm)}
    tensors, values, said = to_names(state)
    assert_equal(tensors, expected_names(theirs))
    assert values == VALUES and not said


def test_a_classifier_leaves_its_lm_head_behind(masked_lm):
    theirs = classifier_model()
    model = {**to_fairseq(masked_lm.state_dict()), **to_fairseq(theirs.state_dict(), head="xnli")}
    tensors, _, said = to_names({"args": arguments(), "model": model})
    assert_equal(tensors, expected_names(theirs))
    assert len(said) == 6 and all("lm_head" in line and "left out" in line and "xnli" in line for line in said)


def test_versions_are_left_out_and_said(masked_lm):
    model = to_fairseq(masked_lm.state_dict())
    model["decoder.sentence_encoder.version"] = torch.tensor([3.0])
    model["decoder.version"] = torch.tensor([2])
    tensors, _, said = to_names({"args": arguments(), "model": model})
    assert_equal(tensors, expected_names(masked_lm))
    assert len(said) == 2 and all("version left out" in line for line in said)


def test_what_is_no_checkpoint_of_fairseqs(masked_lm):
    model = to_fairseq(masked_lm.state_dict())
    assert is_fairseq({"model": model}) and not is_fairseq(model) and not is_fairseq([model])
    assert not is_fairseq(masked_lm.state_dict()) and not is_fairseq({"model": masked_lm.state_dict()})
    assert not is_fairseq({"model": None}) and not is_fairseq({"model": {}}) and not is_fairseq({"model": {3: 4}})


# ---- arguments -------------------------------------------------------------------------------------------------


def test_where_the_arguments_lie(masked_lm):
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
def test_arguments_of_the_wrong_kind_are_as_good_as_missing(masked_lm, value):
    names = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "encoder_ffn_embed_dim", "max_positions")
    hostile = arguments(**dict.fromkeys(names, value), dropout=[value], attention_dropout=str(value),
                        activation_fn=[value], pooler_activation_fn=3)  # fmt: skip
    values = to_names({"args": hostile, "model": to_fairseq(masked_lm.state_dict())})[1]
    assert values == {"pad_token_id": 1, "layer_norm_eps": 1e-5}


def test_no_attribute_of_the_arguments_is_asked(masked_lm):
    class Trap(argparse.Namespace):  # no file can bring such a class; held to anyway
        def __getattribute__(self, name):
            if name != "__class__":
                raise AssertionError(name)
            return argparse.Namespace

    values = to_names({"args": Trap(), "model": to_fairseq(masked_lm.state_dict())})[1]
    assert values == {"pad_token_id": 1, "layer_norm_eps": 1e-5}


@pytest.mark.parametrize("activation", ["relu", "gelu_accurate", "gelu_fast", "tanh", "x" * 999])
def test_a_masked_lm_of_another_activation(masked_lm, activation):
    state = {"args": arguments(activation_fn=activation), "model": to_fairseq(masked_lm.state_dict())}
    with pytest.raises(DataError, match="activation_fn"):  # fairseq's LM head has it too, ours has GELU
        to_names(state)


def test_a_classifiers_activations():
    model = to_fairseq(classifier_model().state_dict())
    assert to_names({"args": arguments(activation_fn="relu"), "model": model})[1]["hidden_act"] == "relu"
    with pytest.raises(DataError, match="activation_fn 'gelu_accurate'; only gelu or relu"):
        to_names({"args": arguments(activation_fn="gelu_accurate"), "model": model})
    with pytest.raises(DataError, match="pooler_activation_fn 'relu'"):
        to_names({"args": arguments(pooler_activation_fn="relu"), "model": model})


# ---- wrong tables ----------------------------------------------------------------------------------------------

S = "decoder.sentence_encoder"
WRONG = {
    "unknown": (f"{S}.layers.0.adapter.weight", torch.ones(3), r"layers\.0\.adapter\.weight that fairseq's form"),
    "pre-norm": (f"{S}.layer_norm.weight", torch.ones(48), r"sentence_encoder\.layer_norm\.weight that fairseq's"),
    "segments": (f"{S}.segment_embeddings.weight", torch.ones(2, 48), "segment_embeddings.weight that fairseq's"),
    "no side": ("sentence_encoder.embed_tokens.weight", torch.ones(211, 48), "a tensor sentence_encoder"),
    "two sides": ("encoder.lm_head.bias", torch.ones(211), r"place: decoder\.lm_head\.bias and encoder\.lm_head\.bias"),
    "two norms": (f"{S}.layernorm_embedding.bias", torch.ones(48), "two tensors for one place: .*emb_layer_norm.bias"),
    "split and stacked": (f"{S}.layers.1.self_attn.in_proj_bias", torch.ones(144), "two .*q_proj.*in_proj_bias"),
    "01 for 1": (f"{S}.layers.01.fc1.bias", torch.ones(80), r"layers\.01\.fc1\.bias that"),
    "another underscore": (f"{S}.layers.0.fc1_bias", torch.ones(80), "fc1_bias that"),
    "cut rows": (f"{S}.layers.1.fc2.weight", torch.ones(47, 80), r"fc2\.weight has shape \(47, 80\), .* 47 is not 48"),
    "cut columns": (f"{S}.layers.0.self_attn.k_proj.weight", torch.ones(48, 47), r"k_proj\.weight has shape \(48, 47"),
    "a vector": (f"{S}.layers.0.self_attn.k_proj.weight", torch.ones(48), r"k_proj\.weight has .* 2 dimensions"),
    "a number": (f"{S}.layers.0.fc1.bias", torch.tensor(3.0), r"fc1\.bias has shape \(\), where 1 dimensions"),
    "a longer bias": ("decoder.lm_head.bias", torch.ones(212), r"lm_head\.bias has shape \(212,\), .* 212 is not 211"),
    "sparse": (f"{S}.layers.0.fc2.weight", torch.eye(48, 80).to_sparse(), "fc2.weight is no plain table"),
    "10^12 rows": (f"{S}.embed_tokens.weight", torch.ones(1, 48).expand(10**12, 48), "embed_tokens.weight claims more"),
    "whole numbers": ("decoder.lm_head.bias", torch.ones(211, dtype=torch.long), "lm_head.bias holds torch.int64"),
    "no tensor": (f"{S}.layers.0.fc2.weight", [1.0], r"fc2\.weight is not a tensor"),
    "no name": (3, torch.ones(3), "3 is not a tensor with a name"),
    "half a head": ("classification_heads.a.dense.weight_orig", torch.ones(48, 48), "weight_orig that"),
    "a head's other part": ("classification_heads.a.norm.weight", torch.ones(48), r"heads\.a\.norm\.weight that"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tensor_is_a_sentence_with_its_key(masked_lm, case):
    key, tensor, sentence = WRONG[case]
    state = {"args": arguments(), "model": to_fairseq(masked_lm.state_dict())}
    state["model"][key] = tensor
    with pytest.raises(DataError, match=sentence) as caught:
        to_names(state, "folder/model.pt")
    assert str(caught.value).startswith("folder/model.pt")


@pytest.mark.parametrize("shape", [(143, 48), (0, 48), (), (141, 48), (144, 47), (144,)])
def test_stacked_projections_that_are_not_three(masked_lm, shape):
    model = to_fairseq(masked_lm.state_dict(), stacked=True)
    model[f"{S}.layers.1.self_attn.in_proj_weight"] = torch.ones(shape)
    with pytest.raises(DataError, match=r"layers\.1\.self_attn\.in_proj_weight has shape"):
        to_names({"args": arguments(), "model": model})


def test_several_classification_heads_are_named():
    tensors = classifier_model().state_dict()
    model = {**to_fairseq(tensors, head="xnli"), **to_fairseq(tensors, head="cls_fr")}
    with pytest.raises(DataError, match=r"2 classification heads \(cls_fr, xnli\)"):
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
    """At every real token: at padding fairseq's states differ, which nobody reads."""
    if mask is not None:
        actual, expected = actual[mask], expected[mask]
    assert expected.dtype == actual.dtype == torch.float64 and expected.shape == actual.shape
    assert expected.std() > 0.01  # zeros would agree with anything
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
    said = []
    ours = load_checkpoint(saved(state, tmp_path, form), said.append)
    assert isinstance(ours, MaskedLM)
    assert not [line for line in said if "assumed" in line], said
    input_ids, mask = padded_batch((30, 1, 7), 211)
    expected = fairseq_masked_lm(state["model"], input_ids)
    assert_same(masked_lm(input_ids, attention_mask=mask.long()).logits, expected, mask)
    assert_same(ours(input_ids, mask), expected, mask)
    assert_same(ours(input_ids), expected, mask)  # fairseq finds padding by its id, and so do we


@torch.no_grad()
def test_a_token_type_row_folded_into_the_positions(tmp_path):
    theirs = huggingface_model(**SIZES)
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
def test_the_forward_pass_is_no_rubber_stamp(masked_lm):
    """Query and value in each other's place, or positions that begin a row too early, are seen."""
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


class RunsCode:
    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


class Setter:
    """Built by a pickle as a Namespace whose attributes are set from code."""

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
def test_a_pickle_that_would_run_code(masked_lm, tmp_path, case, zipped):
    state = hostile({"args": arguments(), "model": to_fairseq(masked_lm.state_dict())})[case]
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with torch.serialization.safe_globals(SAFE_GLOBALS), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    with pytest.raises(ModelError, match="was refused") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and not os.path.exists(MARK)


def test_the_arguments_class_alone_is_allowed():
    assert [argparse.Namespace] == SAFE_GLOBALS
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals(SAFE_GLOBALS):
        pass
    assert set(torch.serialization.get_safe_globals()) == before


SPOILT = {
    "a billion layers": (dict(encoder_layers=10**9), "speaks of 1000000000 layers"),
    "another width": (dict(encoder_embed_dim=96), "asks for"),
    "heads that do not fit": (dict(encoder_attention_heads=7), "cannot be shared out among 7 heads"),
    "more layers than there are": (dict(encoder_layers=3), "lacks the tensor"),
    "fewer positions": (dict(max_positions=100), "asks for"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_arguments_that_lie_are_a_sentence(masked_lm, tmp_path, case):
    changes, sentence = SPOILT[case]
    state = {"args": arguments(**changes), "model": to_fairseq(masked_lm.state_dict())}
    with pytest.raises(ModelError, match=sentence) as caught:
        load_checkpoint(saved(state, tmp_path, "file"), lambda line: None)
    assert str(tmp_path) in str(caught.value)
