"""The native format: models survive the round trip, older files are read, damaged ones are errors."""

import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import (
    EncoderConfig,
    MaskedLM,
    ModelError,
    QuestionAnswerer,
    SequenceClassifier,
    TokenClassifier,
    load_model,
    save_model,
)
from model.checkpoints.load import load_checkpoint
from model.checkpoints.native import atomic_file, contents

CONFIG = EncoderConfig(2, 24, 3, 30, 50, max_positions=40, activation="relu", dropout=0.0)
MODELS = {
    "masked LM": lambda: MaskedLM(CONFIG),
    "sequence": lambda: SequenceClassifier(CONFIG, 2, ["négatif", "positif"]),
    "token": lambda: TokenClassifier(CONFIG, 3),
    "question": lambda: QuestionAnswerer(CONFIG),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_round_trip_of_every_class_and_precision(tmp_path, kind, dtype):
    model = MODELS[kind]().to(dtype)
    save_model(model, tmp_path / "new" / "model.safetensors", {"steps": 3})
    loaded = load_model(tmp_path / "new" / "model.safetensors")
    assert type(loaded) is type(model) and loaded.config == model.config
    assert getattr(loaded, "labels", None) == getattr(model, "labels", None)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype and torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())
    assert os.listdir(tmp_path / "new") == ["model.safetensors"]
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["provenance"]) == {"steps": 3}


@pytest.fixture
def path(tmp_path):
    save_model(MaskedLM(CONFIG), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewrite(path, tensors=None, **metadata):
    """Writes the file again with other tensors or other metadata."""
    with safe_open(path, "pt") as file:
        before = file.metadata()
    save_file(load_file(path) if tensors is None else tensors, path, metadata={**before, **metadata})


OLD_NAMES = {
    "attention.out": "attention.mix",
    "feed_forward.feed": "feed_forward.expand",
    "feed_forward.forward_proj": "feed_forward.contract",
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_format_distilcamembert_1_is_still_read(tmp_path, kind):
    model = MODELS[kind]()
    tensors, metadata = contents(model)
    assert metadata["format"] == "distilcamembert-2"
    old = {}
    for name, tensor in tensors.items():
        for new_name, old_name in OLD_NAMES.items():
            name = name.replace(new_name, old_name)
        old[name] = tensor
    assert len(old.keys() - tensors.keys()) == CONFIG.num_layers * 2 * len(OLD_NAMES)
    save_file(old, tmp_path / "old.safetensors", metadata={**metadata, "format": "distilcamembert-1"})
    for load in (load_model, load_checkpoint):
        loaded = load(tmp_path / "old.safetensors")
        assert type(loaded) is type(model) and loaded.config == model.config
        assert loaded.state_dict().keys() == tensors.keys()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.state_dict().items())


def damage_header(path):
    content = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 1 << 60) + content[8:])


def damage_offsets(path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["bias"]["data_offsets"][1] += 1 << 40
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def change_tensor(name, change):
    def apply(path):
        tensors = load_file(path)
        new = change(tensors.pop(name))
        rewrite(path, tensors if new is None else {**tensors, name: new})

    return apply


def add_tensor(path):
    rewrite(path, {**load_file(path), "bonus": torch.zeros(1)})


def config_with(**values):
    def apply(path):
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
        rewrite(path, config=json.dumps({**config, **values}))

    return apply


DAMAGES = {
    "missing": (lambda path: path.unlink(), "There is no file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a complete .safetensors"),
    "truncated in the header": (lambda path: path.write_bytes(path.read_bytes()[:50]), "not a complete .safetensors"),
    "text": (lambda path: path.write_text("Le camembert est délicieux.\n" * 20), "not a complete .safetensors"),
    "a header of 2^60 bytes": (damage_header, "not a complete .safetensors"),
    "offsets past the end": (damage_offsets, "not a complete .safetensors"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder; a file is needed"),
    "not native": (lambda path: save_file({"x": torch.zeros(1)}, path), "not a model file of this project"),
    "no kind": (lambda path: rewrite(path, kind="Oracle"), "metadata cannot be read"),
    "no config": (lambda path: rewrite(path, config="{"), "metadata cannot be read"),
    "config is a list": (lambda path: rewrite(path, config="[]"), "metadata cannot be read"),
    "invalid config": (config_with(num_heads=0), "configuration is invalid"),
    "a billion layers": (config_with(num_layers=10**9), "claims 1000000000 layers"),
    "a huge width": (config_with(hidden_size=3 * 10**17), "configuration is invalid"),
    "labels for a masked LM": (lambda path: rewrite(path, labels='["a"]'), "configuration is invalid"),
    "missing tensor": (change_tensor("dense.weight", lambda tensor: None), "lacks the tensor dense.weight"),
    "wrong shape": (change_tensor("norm.bias", lambda tensor: tensor[:5]), r"norm.bias has shape \(5,\), .* \(24,\)"),
    "integers": (change_tensor("norm.bias", lambda tensor: tensor.long()), "norm.bias holds torch.int64"),
    "NaN": (change_tensor("norm.bias", lambda tensor: tensor / 0), "norm.bias contains NaN or infinity"),
    "endlessly nested": (lambda path: rewrite(path, config="[" * 100_000), "metadata cannot be read"),
    "no labels": (lambda path: rewrite(path, kind="TokenClassifier", labels="[]"), "configuration is invalid"),
    "unknown tensor": (add_tensor, "a tensor bonus, which a MaskedLM does not have"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error(path, damage):
    apply, sentence = DAMAGES[damage]
    apply(path)
    with pytest.raises(ModelError, match=sentence) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    with pytest.raises(ModelError, match="cannot be written: No space left"), atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        save_model(MaskedLM(CONFIG), tmp_path / "file" / "model.safetensors")


def test_other_modules_cannot_be_saved(tmp_path):
    for module in (MaskedLM(CONFIG).encoder.embeddings, torch.nn.Linear(2, 2)):
        with pytest.raises(ModelError, match="cannot be saved"):
            save_model(module, tmp_path / "model.safetensors")
    assert not os.listdir(tmp_path)


def test_the_file_has_the_usual_permissions(path):
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask
