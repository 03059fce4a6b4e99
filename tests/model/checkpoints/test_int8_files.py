"""Files with the encoder's matrices in int8: what they hold, what is read back, what is refused."""

import itertools
import subprocess
import sys
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

import convert_weights
from data.cli import OptionError
from model import Encoder, EncoderConfig, MaskedLM, ModelError, SequenceClassifier, load_model, save_model
from model.checkpoints.card import model_card
from model.checkpoints.load import load_checkpoint, load_frozen
from model.checkpoints.native import load_int8, open_safetensors, read_safetensors
from model.checkpoints.provenance import provenance_of
from model.inference import freeze
from model.quantised import quantise_state
from tests.helpers import REPOSITORY

CONFIG = EncoderConfig(2, 32, 2, 64, 105, max_positions=66)
CPU = torch.device("cpu")
MATRIX = "encoder.layers.0.attention.query.weight"
WIDE = "encoder.layers.1.feed_forward.forward_proj.weight"  # in 16 bits


@pytest.fixture
def files(tmp_path):
    """A classifier, one of whose matrices has outliers, and its int8 file as convert_weights.py writes it."""
    torch.manual_seed(0)
    model = SequenceClassifier(CONFIG, 3)
    model.state_dict()[WIDE][:, 0] *= 100
    save_model(model, tmp_path / "model.safetensors")
    convert_weights.main([str(tmp_path / "model.safetensors"), str(tmp_path / "int8.safetensors"), "--dtype", "int8"])
    return tmp_path / "model.safetensors", tmp_path / "int8.safetensors"


def test_round_trip(files, tmp_path):
    path, in_int8 = files
    whole, rounded = load_model(path).state_dict(), load_checkpoint(in_int8).state_dict()
    stored = read_safetensors(in_int8)[1]
    for name, tensor in rounded.items():
        assert tensor.dtype == torch.float32
        is_matrix = name.endswith("weight") and tensor.ndim == 2 and name.startswith("encoder.")
        assert stored[name].dtype == (torch.int16 if name == WIDE else torch.int8 if is_matrix else torch.float32)
        levels = 127 * 256 if name == WIDE else 127
        bound = whole[name].double().abs().amax(dim=-1, keepdim=True) / levels / 2 if is_matrix else 0.0
        assert ((tensor.double() - whole[name].double()).abs() <= bound * (1 + 1e-5)).all()
    convert_weights.main([str(in_int8), str(tmp_path / "again.safetensors")])  # --dtype: that of IN
    again = read_safetensors(tmp_path / "again.safetensors")[1]
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items() if not tensor.is_floating_point())
    assert again.keys() == stored.keys()


def test_a_base_students_encoder_takes_at_most_72_mb():
    """Also with the queries and keys of two layers in 16 bits; one has been seen to need them (eval/LOG.md)."""
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig.distilcamembert())
    state = {name: torch.zeros(tensor.shape) for name, tensor in encoder.state_dict().items()}
    for layer, part in itertools.product((0, 1), ("query", "key")):
        state[f"layers.{layer}.attention.{part}.weight"] += torch.eye(768) * 300 + 0.4
    quantised = quantise_state(state)
    assert sum(tensor.dtype == torch.int16 for tensor in quantised.values()) == 4
    assert sum(tensor.nbytes for tensor in quantised.values()) <= 72e6


def test_no_matrix_is_read_as_float(files, monkeypatch):
    """As many numbers as it has, in float32, would be four times the memory of a process that serves an int8 file."""
    for name in ("dequantise_rows", "quantise_rows", "quantise_matrix"):
        monkeypatch.setattr(f"model.quantised.{name}", mock.Mock(side_effect=AssertionError("a matrix in float32")))
    model = load_frozen(files[1], SequenceClassifier, CPU, "int8")
    assert model.encoder.embeddings.word.rows.dtype == torch.int8


def test_frozen_from_its_file_as_from_the_model(files, monkeypatch):
    path, in_int8 = files
    ids = torch.randint(5, 100, (2, 9))
    monkeypatch.setattr("model.inference.keep_freed_memory", keeps := mock.Mock())
    found = load_frozen(in_int8, SequenceClassifier, CPU, "int8")
    keeps.assert_called_once_with()  # although the encoder lay on "meta"
    expected = load_frozen(path, SequenceClassifier, CPU, "int8")
    torch.testing.assert_close(found(ids), expected(ids), rtol=1e-5, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in found.parameters())
    torch.testing.assert_close(load_frozen(in_int8, Encoder, CPU, "int8")(ids), found.encoder(ids))


def test_each_tensor_is_read_twice_at_most(files, monkeypatch):
    """To be checked, and to be used; asking whether there is one reads nothing."""
    monkeypatch.setattr("model.checkpoints.native.open_safetensors", opened := mock.Mock(side_effect=open_safetensors))
    load_int8(files[1])
    assert opened.call_count <= 1 + 2 * len(read_safetensors(files[1])[1])


def test_a_file_that_is_replaced_while_it_is_read(files, monkeypatch):
    """Half of the tensors would come from another model, whose values nobody has checked."""
    path = files[1]

    def freeze_later(*arguments):
        save_file({"x": torch.zeros(1)}, path.with_name("other"), {"format": "pt"})
        path.with_name("other").replace(path)
        freeze(*arguments)

    monkeypatch.setattr("model.checkpoints.native.freeze", freeze_later)
    with pytest.raises(ModelError, match=r"int8.safetensors was replaced while it was read. Start again."):
        load_int8(path)


def test_serving_imports_no_compiler(files):
    code = f"import sys; from model.checkpoints.native import load_int8; load_int8({str(files[1])!r}); "
    code += "sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_the_card_says_int8(files):
    provenance = {**provenance_of(str(files[1])), "options": {"teacher": "none"}}
    assert provenance["rounded"] == "int8"
    card = " ".join(model_card(load_model(files[1]), "name", provenance, {}, {}).split())
    assert "rounded to int8" in card and "measured before the weights were rounded" in card


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        (MATRIX + "_scale", None, "lacks the tensor encoder.layers.0.attention.query.weight_scale"),
        (MATRIX + "_scale", lambda scale: scale[:-1], "has shape (31, 1)"),
        (MATRIX + "_scale", lambda scale: scale * float("nan"), "NaN or infinity"),
        (MATRIX + "_scale", lambda scale: scale * 0, "not positive"),
        (MATRIX + "_scale", lambda scale: scale * 0 - 1, "not positive"),
        (MATRIX + "_scale", lambda scale: scale * 0 + 3e38, "too large for float32"),
        (MATRIX + "_scale", lambda scale: scale.half(), "scales are float32"),
        (MATRIX + "_scale", lambda scale: scale.to(torch.int8), "holds int8"),
        (MATRIX, lambda rows: rows.float(), "has scales for int8"),
        (MATRIX, lambda rows: rows.view(torch.uint8), "has scales for int8"),
        (MATRIX, lambda rows: rows[:, 1:], "has shape (32, 31)"),
        (MATRIX, lambda rows: rows.clone().fill_(-128), "has values beyond ±127, the range of int8"),
        (WIDE, lambda rows: rows.clone().fill_(127 * 256 + 1), "has values beyond ±32,512, the range of int16"),
        (WIDE + "_scale", lambda scale: scale * 0 + 1e36, "too large for float32"),
        ("encoder.embeddings.word.weight", lambda rows: rows.to(torch.int16), "has scales for int8"),
        ("dense.weight", lambda matrix: matrix.to(torch.int8), "its scale dense.weight_scale is missing"),
        ("dense.weight_scale", lambda _: torch.ones(32, 1), "a tensor dense.weight_scale, which"),
    ],
)
@pytest.mark.parametrize("load", [load_model, load_int8])
def test_hostile_files(files, tmp_path, name, change, sentence, load):
    metadata, tensors = read_safetensors(files[1])
    changed = change and change(tensors.get(name))
    tensors = {**tensors, name: changed.contiguous()} if change else {n: t for n, t in tensors.items() if n != name}
    save_file(tensors, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(ModelError, match="bad.safetensors") as error:
        load(tmp_path / "bad.safetensors")
    assert sentence in str(error.value)


def test_int8_without_any_scale(files, tmp_path):
    metadata, tensors = read_safetensors(files[1])
    save_file(
        {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale")},
        tmp_path / "bad.safetensors",
        metadata=metadata,
    )
    with pytest.raises(ModelError, match="holds int8, but its scale"):
        load_model(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("form", ["hf", "onnx"])
def test_int8_is_not_for_other_formats(form):
    with pytest.raises(OptionError, match=f"not for --to {form}"):
        convert_weights.Options("in", "out", to=form, dtype="int8")


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_masked_lm_with_a_frozen_encoder(tmp_path, precision):
    save_model(MaskedLM(CONFIG), tmp_path / "model.safetensors")
    ids = torch.randint(5, 100, (1, 9))
    model = load_frozen(tmp_path / "model.safetensors", MaskedLM, CPU, precision)
    logits = model.head(model.encoder(ids).float())
    expected = load_model(tmp_path / "model.safetensors")(ids)
    assert logits.dtype == torch.float32 and (logits - expected).norm() < 0.05 * expected.norm()
