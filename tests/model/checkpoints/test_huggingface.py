"""transformers' tensors, config.json and index: every published variant is read, everything wrong is an error."""

import json
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import ModelError, SequenceClassifier
from model.checkpoints.load import load_checkpoint
from tests.helpers import huggingface_model
from tests.model.checkpoints.files import (
    LABELS,
    MARK,
    POSITIONS,
    TOKEN_TYPE,
    RunsCode,
    as_folder,
    as_index,
    assert_same_logits,
    headed_model,
    rewrite,
    set_config,
)

# ---- tensors ---------------------------------------------------------------------------------------------------


def old_layernorms(tensors):
    for key in [key for key in tensors if "LayerNorm" in key]:
        new = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[new] = tensors.pop(key)


def no_prefix(tensors):
    for key in [key for key in tensors if key.startswith("roberta.")]:
        tensors[key.removeprefix("roberta.")] = tensors.pop(key)


def extra_prefix(tensors):
    for key in list(tensors):
        tensors[f"roberta.{key}"] = tensors.pop(key)


def add(**more):
    """More tensors; __ stands for a dot."""
    return lambda tensors: tensors.update({key.replace("__", "."): value for key, value in more.items()})


def decoder_bias_only(tensors):
    tensors["lm_head.decoder.bias"] = tensors.pop("lm_head.bias")


def both_biases(tensors):
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()


def tied_decoder(tensors):
    tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()


POOLER = add(roberta__pooler__dense__weight=torch.ones(48, 48), roberta__pooler__dense__bias=torch.ones(48))
VARIANTS = {  # how the tensors are changed, the number of tensors reported as left out
    "as saved": (lambda tensors: None, 0),
    "gamma and beta": (old_layernorms, 0),
    "no prefix": (no_prefix, 0),
    "extra prefix": (extra_prefix, 0),
    "position_ids": (add(roberta__embeddings__position_ids=torch.arange(514)[None]), 1),
    "unused pooler": (POOLER, 2),
    "decoder.bias only": (decoder_bias_only, 0),
    "both biases": (both_biases, 1),
    "tied decoder": (tied_decoder, 1),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_variants_of_the_names(folder, theirs, variant):
    change, dropped = VARIANTS[variant]
    rewrite(folder, change)
    reports = []
    assert_same_logits(load_checkpoint(folder, reports.append), theirs)
    assert len(reports) == dropped and all("is left out" in line for line in reports)


def test_more_token_types_than_one(folder, theirs):
    rewrite(folder, lambda tensors: tensors.update({TOKEN_TYPE: torch.cat([tensors[TOKEN_TYPE], torch.ones(1, 48)])}))
    reports = []
    assert_same_logits(load_checkpoint(folder, reports.append), theirs)
    assert "rows 1 to 1" in reports[0]


def test_several_dtypes_become_that_of_most_values(folder, theirs):
    """Not the widest: one float64 value must not double a file in memory."""
    rewrite(folder, lambda tensors: tensors.update({"lm_head.bias": tensors["lm_head.bias"].double()}))
    reports = []
    model = load_checkpoint(folder, reports.append)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    path = folder / "model.safetensors"
    assert reports == [f"{path} mixes float32, float64; all is converted to float32, the dtype of most."]
    assert_same_logits(model.float(), theirs)


# ---- config.json -----------------------------------------------------------------------------------------------


def test_unknown_keys_in_config_json_are_accepted(folder, theirs):
    known = dict(position_embedding_type="absolute", bos_token_id=0, architectures=None)
    set_config(folder, output_past=True, torch_dtype="float32", gradient_checkpointing=False, **known)
    assert_same_logits(load_checkpoint(folder), theirs)


def test_without_config_json_shapes_are_used_and_the_rest_is_assumed(tmp_path):
    theirs = huggingface_model(hidden_size=128, num_attention_heads=2, vocab_size=1005).float()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    reports = []
    assert_same_logits(load_checkpoint(tmp_path / "model.safetensors", reports.append), theirs)
    assert len(reports) == 1 and "num_heads 2" in reports[0] and "activation gelu" in reports[0]


def test_values_that_are_not_kept_are_reported(folder):
    set_config(folder, problem_type="multi_label_classification", classifier_dropout=0.4)
    reports = []
    load_checkpoint(folder, reports.append)
    assert len(reports) == 2 and "problem_type" in reports[0] and "classifier_dropout 0.4 is left out" in reports[1]
    set_config(folder, problem_type=None, classifier_dropout=None, position_embedding_type=None, is_decoder=None)
    load_checkpoint(folder, reports.append)
    assert len(reports) == 2
    set_config(folder, attention_probs_dropout_prob=0.3)
    assert load_checkpoint(folder, reports.append).config.dropout == 0.1
    assert "two dropouts" in reports[2]


def labels_with(place, remove=(), **values):
    """-> the labels of a classifier whose config.json is changed, and what was reported."""
    set_config(as_folder(headed_model(SequenceClassifier), place), remove, **values)
    reports = []
    return list(load_checkpoint(place, reports.append).labels), reports


def test_labels_from_either_table(tmp_path):
    assert labels_with(tmp_path / "a", ["label2id"]) == (LABELS, [])
    assert labels_with(tmp_path / "b", ["id2label"]) == (LABELS, [])
    assert labels_with(tmp_path / "c", ["id2label", "label2id"]) == ([f"LABEL_{i}" for i in range(4)], [])
    names, reports = labels_with(tmp_path / "d", label2id={name: 3 - i for i, name in enumerate(LABELS)})
    assert names == LABELS and "label2id contradicts id2label, which is used" in reports[0]


WRONG_LABELS = [
    {"0": "a"},
    {"0": "a", "1": "b", "2": "c", "9": "d"},
    dict.fromkeys("0123", "a"),
    ["a", "b", "c", "d"],
    {"zero": "a", "1": "b", "2": "c", "3": "d"},
    {"0": 1, "1": 2, "2": 3, "3": 4},
    "abcd",
]


@pytest.mark.parametrize("id2label", WRONG_LABELS)
def test_wrong_labels_are_an_error(tmp_path, id2label):
    with pytest.raises(ModelError, match="has the labels|must map numbers"):
        labels_with(tmp_path / "a", ["label2id"], id2label=id2label)


# ---- wrong files -----------------------------------------------------------------------------------------------


def weights(change):
    return lambda folder: rewrite(folder, change)


def config(**values):
    return lambda folder: set_config(folder, **values)


def config_text(text):
    return lambda folder: (folder / "config.json").write_text(text)


def raw(content):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def replace_bytes(change):
    def damage(folder):
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def as_bin(write):
    """pytorch_model.bin instead of model.safetensors, written by `write(path, tensors)`."""

    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        write(folder / "pytorch_model.bin", tensors)

    return damage


def pickled(thing):
    return as_bin(lambda path, tensors: path.write_bytes(pickle.dumps(thing)))


def truncated_bin(path, tensors):
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zip_bomb(path, tensors):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 10**7)


def with_tensor(key, change):
    return lambda tensors: tensors.update({key: change(tensors[key])})


def saved_bin(key, change):
    def write(path, tensors):
        torch.save({**tensors, key: change(tensors[key])}, path)

    return as_bin(write)


def shared_layers(path, tensors):
    name = "roberta.encoder.layer.{}.output.dense.weight"
    torch.save({**tensors, name.format(1): tensors[name.format(0)]}, path)


def poison(tensor):
    tensor[3, 4] = float("nan")
    return tensor


def rename_head(tensors):
    for key in [key for key in tensors if key.startswith("lm_head.")]:
        tensors["classifier." + key] = tensors.pop(key)


WORDS, DENSE = "roberta.embeddings.word_embeddings.weight", "lm_head.dense.weight"
QUERY = "roberta.encoder.layer.1.attention.self.query.weight"
WRONG = {
    "empty": (raw(b""), "is empty"),
    "text as weights": (raw("Le camembert est délicieux.\n".encode() * 99), "neither a .safetensors file nor"),
    "truncated": (replace_bytes(lambda content: content[:-1000]), "not a complete .safetensors"),
    "a header of 2^50 bytes": (
        replace_bytes(lambda content: struct.pack("<Q", 1 << 50) + content[8:]),
        "not a complete .safetensors",
    ),
    "a truncated .bin": (as_bin(truncated_bin), "cannot be read as weights"),
    "a pickle that runs code": (pickled({"x": RunsCode()}), "refused"),
    "a pickle of something else": (pickled([1, 2, 3]), "does not hold a state dict|refused"),
    "no weights in the folder": (lambda folder: (folder / "model.safetensors").unlink(), "contains none of"),
    "missing tensor": (
        weights(lambda tensors: tensors.pop("roberta.encoder.layer.1.output.dense.bias")),
        r"lacks the tensor encoder\.layer\.1\.output\.dense\.bias",
    ),
    "missing layer": (
        weights(lambda tensors: [tensors.pop(key) for key in list(tensors) if ".layer.0." in key]),
        r"lacks the tensor encoder\.layer\.0\.",
    ),
    "missing positions": (weights(lambda tensors: tensors.pop(POSITIONS)), "matches no position embeddings"),
    "wrong shape": (
        weights(with_tensor(QUERY, lambda tensor: tensor[:-1].clone())),
        r"encoder\.layer\.1\.attention\.self\.query\.weight has shape \(47, 48\), .* \(48, 48\)",
    ),
    "wrong token type": (
        weights(with_tensor(TOKEN_TYPE, lambda tensor: torch.ones(1, 47))),
        "matches no position embeddings",
    ),
    "unknown tensor": (
        weights(add(roberta__encoder__layer__0__adapter__weight=torch.ones(3))),
        r"a tensor encoder\.layer\.0\.adapter\.weight, which a MaskedLM",
    ),
    "a native name": (weights(add(roberta__norm__weight=torch.ones(48))), "a tensor norm.weight, which"),
    "wrong position_ids": (
        weights(add(roberta__embeddings__position_ids=torch.arange(514).flip(0))),
        "embeddings.position_ids, which",
    ),
    "another pooler": (weights(add(pooler__other=torch.ones(2))), "a tensor pooler.other, which"),
    "NaN": (weights(with_tensor(DENSE, poison)), r"lm_head\.dense\.weight contains NaN or infinity"),
    "sparse": (saved_bin(DENSE, torch.Tensor.to_sparse), "lm_head.dense.weight is not a plain dense tensor"),
    "no data": (saved_bin(DENSE, lambda tensor: tensor.to("meta")), "lm_head.dense.weight is not a plain dense tensor"),
    "10^12 rows": (
        saved_bin(POSITIONS, lambda tensor: torch.zeros(1, 48).expand(10**12, 48)),
        "more values than the file holds",
    ),
    "shared layers": (as_bin(shared_layers), "share memory, but CamemBERT does not tie them"),
    "a zip bomb": (as_bin(zip_bomb), "is a compressed archive"),
    "a vector for a matrix": (weights(with_tensor(WORDS, lambda tensor: torch.ones(9))), "is not a CamemBERT"),
    "endlessly nested config": (config_text("[" * 200_000), "as JSON"),
    "the same tensor twice": (weights(add(embeddings__LayerNorm__weight=torch.ones(48))), "has the same tensor twice"),
    "integers": (
        weights(with_tensor("lm_head.bias", lambda tensor: torch.zeros(1005, dtype=torch.long))),
        "holds torch.int64",
    ),
    "untied": (
        weights(lambda tensors: tensors.update({"lm_head.decoder.weight": tensors[WORDS] + 1})),
        "differ, but CamemBERT ties them",
    ),
    "two different biases": (weights(add(lm_head__decoder__bias=torch.ones(1005))), "differ, but CamemBERT ties them"),
    "an unknown head": (weights(rename_head), r"a tensor classifier\.lm_head\.\S+, which a Encoder does not have"),
    "two heads": (
        weights(add(qa_outputs__weight=torch.ones(2, 48), qa_outputs__bias=torch.ones(2))),
        "has the heads of a MaskedLM and of a QuestionAnswerer",
    ),
    "a BERT": (weights(add(cls__predictions__bias=torch.ones(9))), "is a BERT, which has another architecture"),
    "multiple choice": (config(architectures=["CamembertForMultipleChoice"]), "is that of a multiple-choice model"),
    "another model": (
        lambda folder: save_file({"w": torch.ones(2)}, folder / "model.safetensors"),
        "is not a CamemBERT",
    ),
    "another architecture": (config(model_type="bert"), "model_type 'bert'"),
    "relative positions": (config(position_embedding_type="relative_key"), "position_embedding_type"),
    "a decoder": (config(is_decoder=True), "is_decoder True"),
    "0 heads": (config(num_attention_heads=0), "num_heads is 0"),
    "769 / 12": (config(hidden_size=769, num_attention_heads=12), "hidden_size 769"),
    "a billion layers": (config(num_hidden_layers=10**9), "claims 1000000000 layers"),
    "text for a number": (config(vocab_size="many"), "vocab_size must be"),
    "other activation": (config(hidden_act="gelu_new"), "activation must be .* not 'gelu_new'"),
    "config is not JSON": (config_text("{"), "cannot be read as JSON"),
    "config is a list": (config_text("[]"), "not a JSON object"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_an_error(folder, case):
    damage, sentence = WRONG[case]
    damage(folder)
    with pytest.raises(ModelError, match=sentence) as caught:
        load_checkpoint(folder, lambda line: None)
    assert str(folder) in str(caught.value)
    assert not MARK.exists()


# ---- shards ----------------------------------------------------------------------------------------------------


def shard(name):
    return lambda index: index["weight_map"].update({"lm_head.bias": name})


WRONG_INDEX = {
    "a path outside the folder": (shard("../model.safetensors"), "not the name of a .safetensors file beside it"),
    "an absolute path": (shard("/etc/passwd"), "not the name of a .safetensors file beside it"),
    "a number": (shard(7), "not the name of a .safetensors file beside it"),
    "a missing shard": (shard("model-9.safetensors"), "There is no file"),
    "a tensor too few": (
        lambda index: index["weight_map"].pop("lm_head.bias"),
        "disagree about the tensor lm_head.bias",
    ),
    "a tensor too many": (
        lambda index: index["weight_map"].update(ghost=index["weight_map"]["lm_head.bias"]),
        "disagree about the tensor ghost",
    ),
    "no map": (lambda index: index.pop("weight_map"), "has no weight_map"),
}


@pytest.mark.parametrize("case", WRONG_INDEX)
def test_a_wrong_index_is_an_error(theirs, tmp_path, case):
    change, sentence = WRONG_INDEX[case]
    path = as_index(theirs, tmp_path / "theirs")
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=sentence):
        load_checkpoint(tmp_path / "theirs")
