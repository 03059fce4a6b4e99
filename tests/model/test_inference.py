"""A frozen encoder equals the encoder that it was made from, within the rounding of its precision."""

import copy
from unittest import mock

import pytest
import torch

from model import Encoder, EncoderConfig, ModelError, encode_packed
from model.inference import FrozenLayer, can_pack, freeze
from model.quantised import activation_levels, dequantise_rows, quantise_rows, quantise_state
from tests.helpers import relative_norm

BOUNDS = {"fp32": 2e-6, "bf16": 0.02, "int8": 0.05}
LENGTHS = [9, 9, 3, 1, 20]


def make_encoder(**changed):
    torch.manual_seed(0)
    config = EncoderConfig(**{**dict(num_layers=3, hidden_size=64, num_heads=4, intermediate_size=128), **changed})
    encoder = Encoder(config)
    for parameter in encoder.parameters():  # LayerNorms and biases away from 1 and 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder.eval()


def frozen(encoder, precision):
    other = copy.deepcopy(encoder)
    freeze(other, precision)
    return other


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("precision", BOUNDS)
def test_packed_and_padded_states(precision, activation):
    encoder = make_encoder(activation=activation)
    fast = frozen(encoder, precision)
    assert isinstance(fast.layers[0], FrozenLayer)
    ids = torch.randint(5, 32005, (sum(LENGTHS),))
    expected, actual = (encode_packed(each, ids, LENGTHS) for each in (encoder, fast))
    assert relative_norm(actual.float(), expected) < BOUNDS[precision]
    first = encode_packed(fast, ids, LENGTHS, wanted=[[0]] * len(LENGTHS))
    starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    torch.testing.assert_close(first, actual[starts], rtol=0.02, atol=0.02 if precision != "fp32" else 1e-5)
    padded = torch.full((len(LENGTHS), max(LENGTHS)), encoder.config.pad_id)
    for row, part in zip(padded, ids.split(LENGTHS)):
        row[: len(part)] = part
    states = fast(padded)[padded != encoder.config.pad_id]
    assert relative_norm(states.float(), expected) < BOUNDS[precision]


@pytest.mark.parametrize("half", [False, True])
def test_a_text_does_not_depend_on_its_batch_in_int8(monkeypatch, half):
    monkeypatch.setattr("model.inference.has_bf16", lambda device: half)
    fast = frozen(make_encoder(), "int8")
    assert fast.layers[0].attention.products[0].dtype == (torch.bfloat16 if half else torch.float32)
    ids = torch.randint(5, 32005, (sum(LENGTHS),))
    together = encode_packed(fast, ids, LENGTHS).split(LENGTHS)
    for part, alone in zip(ids.split(LENGTHS), together):
        torch.testing.assert_close(encode_packed(fast, part, [len(part)]), alone, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("activation, lowest", [("gelu", -0.17), ("relu", 0.0)])
def test_int8_inputs_of_forward_proj_have_the_range_of_their_activation(activation, lowest):
    """Steps on both sides of 0 would be about twice as wide, and the error twice as large."""
    encoder = make_encoder(activation=activation)
    fast, hidden = frozen(encoder, "int8"), torch.randn(50, 64)
    assert [layer.forward_proj.lowest for layer in fast.layers] == [lowest] * 3 and fast.layers[0].feed.lowest is None
    inputs = getattr(torch.nn.functional, activation)(encoder.layers[0].feed_forward.feed(hidden))
    matrix = dequantise_rows(*quantise_rows(encoder.layers[0].feed_forward.forward_proj.weight))
    exact = torch.nn.functional.linear(inputs, matrix, encoder.layers[0].feed_forward.forward_proj.bias)
    symmetric = dequantise_rows(*quantise_rows(inputs, activation_levels())) - inputs
    error = (fast.layers[0].forward_proj(inputs) - exact).norm()
    assert error < 0.75 * (symmetric @ matrix.T).norm()


def test_int8_without_a_float_copy():
    """From the tensors of a file, into an encoder without memory: as from the float encoder."""
    encoder = make_encoder()
    with torch.device("meta"):
        empty = Encoder(encoder.config)
    freeze(empty, "int8", quantise_state(encoder.state_dict()))
    ids = torch.randint(5, 32005, (2, 12))
    assert torch.equal(empty(ids), frozen(encoder, "int8")(ids))


def test_half_precision_is_cast_once():
    fast = frozen(make_encoder(), "bf16")
    assert {each.dtype for each in fast.embeddings.parameters()} == {torch.bfloat16}
    assert fast(torch.randint(5, 100, (1, 4))).dtype == torch.bfloat16
    assert not any(each.requires_grad for each in fast.parameters()) and not fast.training


def test_a_processor_without_packed_products(monkeypatch):
    assert can_pack(torch.float32) and not can_pack(torch.float64)
    monkeypatch.setattr("model.inference.can_pack", lambda dtype: False)
    encoder = make_encoder()
    fast = frozen(encoder, "bf16")
    ids = torch.randint(5, 100, (1, 4))
    assert not isinstance(fast.layers[0], FrozenLayer) and relative_norm(fast(ids).float(), encoder(ids)) < 0.02


def test_int8_on_another_device_is_refused():
    encoder = make_encoder()
    device = mock.PropertyMock(return_value=torch.device("cuda"))
    with mock.patch.object(torch.nn.Parameter, "device", device, create=True), pytest.raises(ModelError) as error:
        freeze(encoder, "int8")
    assert str(error.value) == "int8 runs on a CPU, not on cuda. Use bf16 or fp16 there."
