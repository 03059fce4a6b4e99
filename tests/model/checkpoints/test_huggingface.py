"""transformers' tensors, config.json and index: every published variant is read, everything wrong is an error."""

import json
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import ModelError, QuestionAnswerer, SequenceClassifier
from tests.helpers import huggingface_model
from tests.model.checkpoints import files
from tests.model.checkpoints.files import add, assert_refused, copy, edit, load, remove, rename, rewrite, set_config

LABELS, POSITIONS, TOKEN_TYPE = files.LABELS, files.POSITIONS, files.TOKEN_TYPE
WORDS, DENSE, BIAS = "roberta.embeddings.word_embeddings.weight", "lm_head.dense.weight", "lm_head.bias"
DECODER, DECODER_BIAS = "lm_head.decoder.weight", "lm_head.decoder.bias"
POSITION_IDS = "roberta.embeddings.position_ids"
OUTPUT_BIAS, QUERY = "encoder.layer.1.output.dense.bias", "encoder.layer.1.attention.self.query.weight"
ADAPTER = "encoder.layer.0.adapter.weight"

# ---- tensors ---------------------------------------------------------------------------------------------------

POOLER = {"roberta.pooler.dense.weight": torch.ones(48, 48), "roberta.pooler.dense.bias": torch.ones(48)}
VARIANTS = {  # how the tensors are changed, what is reported as left out
    "as saved": (add({}), ()),
    "gamma": (rename("LayerNorm.weight", "LayerNorm.gamma"), ()),
    "beta": (rename("LayerNorm.bias", "LayerNorm.beta"), ()),
    "no prefix": (rename("roberta.", ""), ()),
    "extra prefix": (rename("", "roberta."), ()),
    "position_ids": (add({POSITION_IDS: torch.arange(514)[None]}), ("embeddings.position_ids is",)),
    "unused pooler": (add(POOLER), ("pooler.dense.weight is", "pooler.dense.bias is")),
    "decoder.bias only": (rename(BIAS, DECODER_BIAS), ()),
    "both biases": (copy(BIAS, DECODER_BIAS), (f"{DECODER_BIAS} is",)),
    "tied decoder": (copy(WORDS, DECODER), (f"{DECODER} is",)),
    "two token types": (edit(TOKEN_TYPE, lambda row: torch.cat([row, torch.ones(1, 48)])), ("rows 1 to 1 of",)),
}


@pytest.mark.parametrize(("change", "dropped"), VARIANTS.values(), ids=VARIANTS)
def test_published_variants_of_the_tensors(folder, theirs, change, dropped):
    rewrite(folder, change)
    model, reports = load(folder)
    files.assert_same_outputs(model, theirs)
    assert len(reports) == len(dropped)
    assert all(name in line and "left out" in line for name, line in zip(dropped, reports))


def test_several_dtypes_become_that_of_most_values(folder, theirs):
    """Not the widest: one float64 value must not double a file in memory."""
    rewrite(folder, edit(BIAS, torch.Tensor.double))
    model, reports = load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    path = folder / "model.safetensors"
    assert reports == [f"{path} mixes float32, float64; all is converted to float32, the dtype of most."]
    files.assert_same_outputs(model, theirs)


# ---- config.json -----------------------------------------------------------------------------------------------


def test_unknown_keys_in_config_json_are_accepted(folder, theirs):
    known = dict(position_embedding_type="absolute", bos_token_id=0, architectures=None)
    set_config(folder, output_past=True, torch_dtype="float32", gradient_checkpointing=False, **known)
    files.assert_same_outputs(load(folder)[0], theirs)


def test_without_config_json_shapes_are_used_and_the_rest_is_assumed(tmp_path):
    theirs = huggingface_model(hidden_size=128, num_attention_heads=2, vocab_size=1005).float()
    path = files.as_file(theirs, tmp_path)
    (tmp_path / "config.json").unlink()
    model, reports = load(path)
    files.assert_same_outputs(model, theirs)
    assert len(reports) == 1 and "num_heads 2" in reports[0] and "activation gelu" in reports[0]


def test_values_that_are_not_kept_are_reported(folder):
    set_config(folder, problem_type="multi_label_classification", classifier_dropout=0.4)
    (line,) = load(folder)[1]  # of a masked LM, which has no use for a problem_type
    assert "classifier_dropout 0.4 is left out" in line
    set_config(folder, problem_type=None, classifier_dropout=None, position_embedding_type=None, is_decoder=None)
    assert not load(folder)[1]
    set_config(folder, attention_probs_dropout_prob=0.3)
    model, (line,) = load(folder)
    assert model.config.dropout == 0.1 and "two dropouts" in line


@pytest.fixture
def classifier(tmp_path):
    return files.as_folder(files.headed_model(SequenceClassifier), tmp_path / "classifier")


@pytest.mark.parametrize("value", ["softmax", "", 3, ["regression"], {}, True, "REGRESSION", "x" * 10**5])
def test_an_unknown_problem_type_is_refused(classifier, value):
    set_config(classifier, problem_type=value)
    with pytest.raises(ModelError, match="problem_type is .*, not one of single_label_classification") as caught:
        load(classifier)
    assert str(classifier) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["0", [1], True, float("nan"), float("inf"), 10**400])
def test_a_threshold_that_is_no_finite_number_is_refused(tmp_path, value):
    folder = files.as_folder(files.headed_model(QuestionAnswerer), tmp_path / "qa")
    set_config(folder, no_answer_threshold=value)
    with pytest.raises(ModelError, match="configuration is invalid"):
        load(folder)


@pytest.mark.parametrize("stated", [None, "single_label_classification", "regression", "multi_label_classification"])
def test_a_single_output(tmp_path, stated):
    """A regression, unless config.json says that it is a sigmoid: a softmax would be 1 for every text."""
    folder = files.as_folder(huggingface_model(kind="CamembertForSequenceClassification", num_labels=1), tmp_path / "x")
    set_config(folder, problem_type=stated)
    model, reports = load(folder)
    assert model.problem_type == (stated if stated == "multi_label_classification" else "regression")
    said = ["has one output" in line for line in reports]
    assert said == [True] * (stated in (None, "single_label_classification"))


NUMBERED, BACKWARDS = [f"LABEL_{i}" for i in range(4)], {name: 3 - i for i, name in enumerate(LABELS)}
LABEL_TABLES = [  # what is removed from config.json, what is set there, the labels, what is reported
    (["label2id"], {}, LABELS, []),
    (["id2label"], {}, LABELS, []),
    (["id2label", "label2id"], {}, NUMBERED, []),
    ([], {"label2id": BACKWARDS}, LABELS, ["label2id contradicts id2label, which is used"]),
]


@pytest.mark.parametrize(("removed", "values", "names", "sentences"), LABEL_TABLES)
def test_labels_from_either_table(classifier, removed, values, names, sentences):
    set_config(classifier, removed, **values)
    model, reports = load(classifier)
    assert list(model.labels) == names and len(reports) == len(sentences)
    assert all(sentence in line for sentence, line in zip(sentences, reports))


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
def test_wrong_labels_are_an_error(classifier, id2label):
    set_config(classifier, ["label2id"], id2label=id2label)
    assert_refused(classifier, "has the labels|must map numbers")


# ---- wrong files -----------------------------------------------------------------------------------------------


def poison(tensor):
    tensor[3, 4] = float("nan")
    return tensor


HEAD = {"qa_outputs.weight": torch.ones(2, 48), "qa_outputs.bias": torch.ones(2)}
WRONG_TENSORS = {  # how the tensors are changed, the error
    "missing tensor": (remove(OUTPUT_BIAS), f"lacks the tensor {OUTPUT_BIAS}"),
    "missing layer": (remove(".layer.0."), r"lacks the tensor encoder\.layer\.0\."),
    "missing positions": (remove(POSITIONS), "matches no position embeddings"),
    "wrong shape": (edit(f"roberta.{QUERY}", lambda x: x[1:].clone()), rf"{QUERY} has shape \(47, 48\), .*\(48, 48\)"),
    "wrong token type": (edit(TOKEN_TYPE, lambda x: torch.ones(1, 47)), "matches no position embeddings"),
    "unknown tensor": (add({f"roberta.{ADAPTER}": torch.ones(3)}), f"a tensor {ADAPTER}, which a MaskedLM"),
    "a native name": (add({"roberta.norm.weight": torch.ones(48)}), "a tensor norm.weight, which"),
    "wrong position_ids": (add({POSITION_IDS: torch.arange(514).flip(0)}), "embeddings.position_ids, which"),
    "another pooler": (add({"pooler.other": torch.ones(2)}), "a tensor pooler.other, which"),
    "NaN": (edit(DENSE, poison), f"{DENSE} contains NaN or infinity"),
    "a vector for a matrix": (edit(WORDS, lambda x: torch.ones(9)), "is not a CamemBERT"),
    "the same tensor twice": (add({"embeddings.LayerNorm.bias": torch.ones(48)}), "has the same tensor twice"),
    "integers": (edit(BIAS, torch.Tensor.long), "holds torch.int64"),
    "untied": (copy(WORDS, DECODER, lambda x: x + 1), "differ, but CamemBERT ties them"),
    "two different biases": (add({DECODER_BIAS: torch.ones(1005)}), "differ, but CamemBERT ties them"),
    "an unknown head": (rename("lm_head", "x.lm_head"), r"a tensor x\.lm_head\.\S+, which a Encoder does not have"),
    "two heads": (add(HEAD), "has the heads of a MaskedLM and of a QuestionAnswerer"),
    "a BERT": (add({"cls.predictions.bias": torch.ones(9)}), "is a BERT, which has another architecture"),
}


def truncated(path, tensors):
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zip_bomb(path, tensors):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 10**7)


def saved_with(key, change):
    return lambda path, tensors: torch.save({**tensors, key: change(tensors)}, path)


ROWS = torch.zeros(1, 48).expand(10**12, 48)
LAYER_0, LAYER_1 = (f"roberta.encoder.layer.{i}.output.dense.weight" for i in range(2))
WRONG_BINS = {  # how pytorch_model.bin is written in place of model.safetensors, the error
    "a truncated .bin": (truncated, "cannot be read as weights"),
    "a pickle that runs code": (lambda path, _: path.write_bytes(pickle.dumps({"x": files.RunsCode()})), "refused"),
    "a pickled list": (lambda path, _: path.write_bytes(pickle.dumps([1])), "does not hold a state dict|refused"),
    "sparse": (saved_with(DENSE, lambda x: x[DENSE].to_sparse()), f"{DENSE} is not a plain dense tensor"),
    "no data": (saved_with(DENSE, lambda x: x[DENSE].to("meta")), f"{DENSE} is not a plain dense tensor"),
    "10^12 rows": (saved_with(POSITIONS, lambda x: ROWS), "more values than the file holds"),
    "shared layers": (saved_with(LAYER_1, lambda x: x[LAYER_0]), "share memory, but CamemBERT does not tie them"),
    "a zip bomb": (zip_bomb, "is a compressed archive"),
}
WRONG_BYTES = {  # how the bytes of model.safetensors are changed, the error
    "empty": (lambda _: b"", "is empty"),
    "text as weights": (lambda _: "Le camembert est délicieux.\n".encode() * 99, "neither a .safetensors file nor"),
    "truncated": (lambda content: content[:-1000], "not a complete .safetensors"),
    "a header of 2^50 bytes": (lambda content: struct.pack("<Q", 1 << 50) + content[8:], "not a complete .safetensors"),
}
WRONG_CONFIGS = {  # values in config.json or its text, the error
    "multiple choice": ({"architectures": ["CamembertForMultipleChoice"]}, "is that of a multiple-choice model"),
    "another architecture": ({"model_type": "bert"}, "model_type 'bert'"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    "a decoder": ({"is_decoder": True}, "is_decoder True"),
    "0 heads": ({"num_attention_heads": 0}, "num_heads is 0"),
    "769 / 12": ({"hidden_size": 769, "num_attention_heads": 12}, "hidden_size 769"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "claims 1000000000 layers"),
    "text for a number": ({"vocab_size": "many"}, "vocab_size must be"),
    "other activation": ({"hidden_act": "gelu_new"}, "activation must be .* not 'gelu_new'"),
    "config is not JSON": ("{", "cannot be read as JSON"),
    "config is a list": ("[]", "not a JSON object"),
    "endlessly nested config": ("[" * 200_000, "as JSON"),
}


def write_bin(folder, write):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write(folder / "pytorch_model.bin", tensors)


def change_bytes(folder, change):
    (folder / "model.safetensors").write_bytes(change((folder / "model.safetensors").read_bytes()))


def change_config(folder, new):
    if isinstance(new, str):
        (folder / "config.json").write_text(new)
    else:
        set_config(folder, **new)


TABLES = {rewrite: WRONG_TENSORS, write_bin: WRONG_BINS, change_bytes: WRONG_BYTES, change_config: WRONG_CONFIGS}
WRONG = [pytest.param(damage, *row, id=case) for damage, table in TABLES.items() for case, row in table.items()]


@pytest.mark.parametrize(("damage", "change", "sentence"), WRONG)
def test_a_wrong_file_is_an_error(folder, damage, change, sentence):
    damage(folder, change)
    assert_refused(folder, sentence)


def test_a_folder_without_weights_or_with_those_of_another_model_is_an_error(folder):
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    assert_refused(folder, "is not a CamemBERT")
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "contains none of")


# ---- shards ----------------------------------------------------------------------------------------------------


def shard(name):
    return lambda index: index[MAP].update({BIAS: name})


MAP = "weight_map"
NOT_BESIDE = "not the name of a .safetensors file beside it"
WRONG_INDEX = {  # how the index is changed, the error
    "a path outside the folder": (shard("../model.safetensors"), NOT_BESIDE),
    "an absolute path": (shard("/etc/passwd"), NOT_BESIDE),
    "a number": (shard(7), NOT_BESIDE),
    "a missing shard": (shard("model-9.safetensors"), "There is no file"),
    "a tensor too few": (lambda index: index[MAP].pop(BIAS), f"disagree about the tensor {BIAS}"),
    "a tensor too many": (lambda index: index[MAP].update(ghost=index[MAP][BIAS]), "disagree about the tensor ghost"),
    "no map": (lambda index: index.pop(MAP), "has no weight_map"),
}


@pytest.mark.parametrize(("change", "sentence"), WRONG_INDEX.values(), ids=WRONG_INDEX)
def test_a_wrong_index_is_an_error(theirs, tmp_path, change, sentence):
    path = files.as_index(theirs, tmp_path / "theirs")
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    assert_refused(path.parent, sentence)
