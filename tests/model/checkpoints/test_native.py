"""The native format: models survive the round trip, older files are read, damaged ones are errors."""

import json
import os
import struct
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data import Tokenizer, demo
from data.tokenizer import DIGEST, FILE_NAME
from model import EncoderConfig, MaskedLM, ModelError, load_model, save_model
from model.checkpoints.load import load_checkpoint
from model.checkpoints.native import atomic_file, contents, sha256
from model.heads import QuestionAnswerer, SequenceClassifier, TokenClassifier
from tests.model.checkpoints.files import add, edit, remove, rename

CONFIG = EncoderConfig(2, 24, 3, 30, 50, max_positions=40, activation="relu", dropout=0.0)
MODELS = {
    "masked LM": lambda: MaskedLM(CONFIG),
    "sequence": lambda: SequenceClassifier(CONFIG, 2, ["négatif", "positif"]),
    "token": lambda: TokenClassifier(CONFIG, 3),
    "question": lambda: QuestionAnswerer(CONFIG),
    "multi-label": lambda: SequenceClassifier(CONFIG, 2, ["joie", "peur"], "multi_label_classification"),
    "regression": lambda: SequenceClassifier(CONFIG, 1),
    "no answer": lambda: QuestionAnswerer(CONFIG, -1.25),
}


def test_a_file_for_which_memory_is_too_small_is_not_called_damaged(tmp_path, monkeypatch):
    save_model(MODELS["masked LM"](), tmp_path / "model.safetensors")
    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OSError(12, "Cannot allocate memory")):
        monkeypatch.setattr("model.checkpoints.native.safe_open", Mock(side_effect=error))
        with pytest.raises(MemoryError):
            load_model(tmp_path / "model.safetensors")


def assert_equal(loaded, model):
    assert type(loaded) is type(model) and loaded.config == model.config
    for name in ("labels", "problem_type", "no_answer_threshold"):
        assert getattr(loaded, name, None) == getattr(model, name, None)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype and torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_round_trip_of_every_class_and_precision(tmp_path, kind, dtype):
    model, path = MODELS[kind]().to(dtype), tmp_path / "new" / "model.safetensors"
    save_model(model, path, {"steps": 3})
    assert_equal(load_model(path), model)
    assert os.listdir(path.parent) == [path.name]
    assert json.loads(metadata_of(path)["provenance"]) == {"steps": 3}


def test_a_tokenizer_inside_is_no_tensor_of_the_model(tmp_path):
    model, path = MaskedLM(CONFIG), tmp_path / "model.safetensors"
    save_model(model, path, tokenizer=Tokenizer(demo.FOLDER))
    assert_equal(load_model(path), model)
    assert Tokenizer(path).content == Tokenizer(demo.FOLDER).content
    tensors = load_file(path)
    assert tensors.keys() - model.state_dict().keys() == {FILE_NAME} and tensors[FILE_NAME].dtype == torch.uint8
    assert metadata_of(path)[DIGEST] == sha256(demo.FOLDER / FILE_NAME)


@pytest.fixture
def path(tmp_path):
    save_model(MaskedLM(CONFIG), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def rewrite(change=lambda tensors: None, **metadata):
    """-> a function of a file's path that changes its tensors by `change`, and its metadata"""

    def apply(path):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={**metadata_of(path), **metadata})

    return apply


OLD_NAMES = {".out.": ".mix.", ".feed.": ".expand.", ".forward_proj.": ".contract."}


@pytest.mark.parametrize("kind", MODELS)
def test_the_format_distilcamembert_1_is_still_read(tmp_path, kind):
    model, path = MODELS[kind](), tmp_path / "old.safetensors"
    tensors, metadata = contents(model)
    assert metadata["format"] == "distilcamembert-2"
    old = dict(tensors)
    for name, old_name in OLD_NAMES.items():
        rename(name, old_name)(old)
    assert len(old.keys() - tensors.keys()) == CONFIG.num_layers * 2 * len(OLD_NAMES)
    save_file(old, path, metadata={**metadata, "format": "distilcamembert-1"})
    for load in (load_model, load_checkpoint):
        assert_equal(load(path), model)


def change_bytes(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def damage_offsets(content):
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["bias"]["data_offsets"][1] += 1 << 40
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def config_with(**values):
    return lambda path: rewrite(config=json.dumps({**json.loads(metadata_of(path)["config"]), **values}))(path)


def headed(kind, num_labels=2, **metadata):
    """The metadata of another kind of model, which are read before the tensors."""
    labels = "null" if kind == "QuestionAnswerer" else json.dumps([f"L{i}" for i in range(num_labels)])
    return rewrite(kind=kind, labels=labels, **metadata)


BIAS = "norm.bias"
INCOMPLETE, UNREADABLE, INVALID = "not a complete .safetensors", "metadata cannot be read", "configuration is invalid"
DAMAGES = {
    "missing": (lambda path: path.unlink(), "There is no file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder; a file is needed"),
    "empty": (change_bytes(lambda content: b""), "is empty"),
    "truncated": (change_bytes(lambda content: content[:-100]), INCOMPLETE),
    "truncated in the header": (change_bytes(lambda content: content[:50]), INCOMPLETE),
    "text": (change_bytes(lambda content: "Le camembert est délicieux.\n".encode() * 20), INCOMPLETE),
    "a header of 2^60 bytes": (change_bytes(lambda content: struct.pack("<Q", 1 << 60) + content[8:]), INCOMPLETE),
    "offsets past the end": (change_bytes(damage_offsets), INCOMPLETE),
    "not native": (lambda path: save_file({"x": torch.zeros(1)}, path), "not a model file of this project"),
    "no kind": (rewrite(kind="Oracle"), UNREADABLE),
    "no config": (rewrite(config="{"), UNREADABLE),
    "config is a list": (rewrite(config="[]"), UNREADABLE),
    "endlessly nested": (rewrite(config="[" * 100_000), UNREADABLE),
    "invalid config": (config_with(num_heads=0), INVALID),
    "a billion layers": (config_with(num_layers=10**9), "claims 1000000000 layers"),
    "a huge width": (config_with(hidden_size=3 * 10**17), INVALID),
    "labels for a masked LM": (rewrite(labels='["a"]'), INVALID),
    "no labels": (rewrite(kind="TokenClassifier", labels="[]"), INVALID),
    "an unknown problem type": (headed("SequenceClassifier", problem_type='"x"'), INVALID),
    "a list of problem types": (headed("SequenceClassifier", problem_type='["regression"]'), INVALID),
    "a softmax of one label": (headed("SequenceClassifier", 1, problem_type='"single_label_classification"'), INVALID),
    "an infinite threshold": (headed("QuestionAnswerer", no_answer_threshold="1e999"), INVALID),
    "a threshold of 5,000 digits": (headed("QuestionAnswerer", no_answer_threshold="1" * 5000), UNREADABLE),
    "a threshold of 400 digits": (headed("QuestionAnswerer", no_answer_threshold="1" * 400), INVALID),
    "missing tensor": (rewrite(remove("dense.weight")), "lacks the tensor dense.weight"),
    "wrong shape": (rewrite(edit(BIAS, lambda x: x[:5])), r"norm.bias has shape \(5,\), .* \(24,\)"),
    "integers": (rewrite(edit(BIAS, torch.Tensor.long)), "norm.bias holds torch.int64"),
    "NaN": (rewrite(edit(BIAS, lambda x: x / 0)), "norm.bias contains NaN or infinity"),
    "unknown tensor": (rewrite(add({"x": torch.zeros(1)})), "a tensor x, which a MaskedLM does not have"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_an_error(path, damage, sentence):
    damage(path)
    with pytest.raises(ModelError, match=sentence) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_a_failed_write_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(ModelError, match="cannot be written: No space left"), atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_other_modules_cannot_be_saved(tmp_path):
    for module in (MaskedLM(CONFIG).encoder.embeddings, torch.nn.Linear(2, 2)):
        with pytest.raises(ModelError, match="cannot be saved"):
            save_model(module, tmp_path / "model.safetensors")
    assert not os.listdir(tmp_path)


def test_the_file_has_the_usual_permissions(path):
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_link_is_replaced_and_a_device_is_not_written(path, tmp_path):
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    for make in (os.symlink, os.link):
        path.unlink()
        make(target, path)
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"new")
        assert target.read_bytes() == b"precious" and path.read_bytes() == b"new" and not path.is_symlink()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelError, match="fifo cannot be written: it is no plain file"), atomic_file(tmp_path / "fifo"):
        pass
    assert (tmp_path / "fifo").is_fifo()
