"""int8: the formula in float64, the error bound, exact integer sums on any processor, the tensors of a file."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from model import EncoderConfig, MaskedLM
from model.quantised import (
    LOWEST,
    QuantisedEmbedding,
    QuantisedLinear,
    activation_levels,
    dequantise_rows,
    dequantise_state,
    quantise_matrix,
    quantise_rows,
    quantise_state,
)

SIZES = [(1, 1, 1), (20, 96, 40), (7, 768, 33)]  # M, K, N


def linear_inputs(m, k, n, outliers=False):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator) for size in ((m, k), (n, k)))
    if outliers:
        weight[:, :2] *= 30
    x[0] *= 1e3  # one token of another size
    weight[0] *= 1e-3
    return x, weight, torch.randn(n, generator=generator)


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize("outliers, range_of_w", [(False, 127), (True, 127 * 256)])
@pytest.mark.parametrize("m, k, n", SIZES)
def test_the_formula_in_float64(m, k, n, outliers, range_of_w, activation):
    """As the module's docstring has it, with the rounded numbers as integers in float64, which has them exactly."""
    x, weight, bias = linear_inputs(m, k, n, outliers)
    range_of_w = 127 if k == 1 else range_of_w  # a single number in a row is exact
    rows, scale = quantise_matrix(weight)
    levels = activation_levels()
    s, t = (tensor.abs().amax(-1, keepdim=True) / q for tensor, q in ((weight, range_of_w), (x, levels)))
    w, q = (weight / s).round().double(), (x / t).round().double()
    assert torch.equal(rows.double(), w) and w.abs().max() == range_of_w and q.abs().max() == levels
    expected = (q @ w.T) * t.double() * s.double().T + bias
    expected = {"none": expected, "gelu": F.gelu(expected), "relu": expected.relu()}[activation]
    actual = QuantisedLinear(rows, scale, bias, activation)(x)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("m, k, n", SIZES)
def test_the_error_bound(m, k, n, outliers):
    x, weight, bias = linear_inputs(m, k, n, outliers)
    rows, scale = quantise_matrix(weight)
    s, t = scale.T.double(), (x.abs().amax(-1, keepdim=True) / activation_levels()).double()
    bound = s / 2 * x.abs().sum(-1, keepdim=True) + t / 2 * weight.abs().sum(-1) + k * s * t / 4
    exact = F.linear(x.double(), weight.double(), bias.double())
    error = (QuantisedLinear(rows, scale, bias)(x).double() - exact).abs()
    assert (error <= bound + 1e-6 * exact.abs()).all()
    assert k == 1 or (error > bound / 1e3).any()  # the bound is not far off


@pytest.mark.parametrize("activation", [F.gelu, F.relu])
@pytest.mark.parametrize("outliers", [False, True])
def test_inputs_with_a_lowest_value(activation, outliers):
    """The outputs of an activation, in steps of their own range: the formula in float64, and the error bound."""
    x, weight, bias = linear_inputs(20, 96, 40, outliers)
    x, lowest = activation(x), {F.gelu: -0.17, F.relu: 0.0}[activation]
    x[3] = lowest
    rows, scale = quantise_matrix(weight)
    actual = QuantisedLinear(rows, scale, bias, lowest=LOWEST[activation.__name__])(x.clone()).double()
    s, t = scale.T.double(), ((x.amax(-1, keepdim=True) - lowest) / (2 * activation_levels() + 1)).double()
    q = ((x.double() - lowest) / t.clamp(min=1e-30)).round()
    expected = q @ rows.double().T * t * s + lowest * s * rows.double().sum(1) + bias
    torch.testing.assert_close(actual[1:], expected[1:], rtol=1e-4, atol=1e-4)  # q may differ where it is a half
    bound = s / 2 * x.abs().sum(-1, keepdim=True) + t / 2 * weight.abs().sum(-1) + 96 * s * t / 4
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert ((actual - exact).abs() <= bound + 1e-5 * exact.abs() + 1e-5).all()


def test_16_bits_where_8_would_change_a_matrix_by_more_than_the_limit():
    """Just below and just above the limit of 1.5 %; 16 bits leave 1/256 of the error."""
    weight = linear_inputs(1, 768, 33, outliers=True)[1]

    def error(rows, scale, exact):
        return ((rows * scale - exact).double().norm() / exact.double().norm()).item()

    for outlier, dtype in ((6.5, torch.int8), (7, torch.int16)):
        weight[:, 0] = outlier
        weight[:, 1] = 0
        in_8_bits, chosen = (error(*quantise(weight), weight) for quantise in (quantise_rows, quantise_matrix))
        assert (in_8_bits > 0.015) == (dtype == torch.int16) and quantise_matrix(weight)[0].dtype == dtype
        assert chosen == pytest.approx(in_8_bits / (256 if dtype == torch.int16 else 1), rel=0.1)


@pytest.mark.parametrize("wide", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_one_product_of_matrices_in_8_and_in_16_bits(wide):
    """Queries, keys and values, of which some have 16 bits, give what each gives alone."""
    x, _, bias = linear_inputs(20, 96, 40)
    matrices = [quantise_matrix(linear_inputs(20, 96, 40, outliers=part in wide)[1]) for part in range(3)]
    assert [rows.dtype == torch.int16 for rows, _ in matrices] == [part in wide for part in range(3)]
    together = QuantisedLinear(*(torch.cat(parts) for parts in zip(*matrices)), bias.repeat(3))(x)
    alone = torch.cat([QuantisedLinear(*matrix, bias)(x) for matrix in matrices], dim=-1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_token_does_not_depend_on_its_neighbours():
    x, weight, bias = linear_inputs(20, 96, 40)
    linear = QuantisedLinear(*quantise_rows(weight), bias)
    assert torch.equal(linear(x)[3:5], linear(x[3:5])) and torch.equal(linear(x[None])[0], linear(x))


def test_rows_of_zeros_and_rows_that_are_not_finite():
    rows, scale = quantise_rows(torch.zeros(2, 5))
    assert not rows.any() and (scale > 0).all()
    linear = QuantisedLinear(*quantise_rows(torch.eye(3)), torch.zeros(3))
    assert torch.equal(linear(torch.zeros(1, 3)), torch.zeros(1, 3))
    assert not linear(torch.tensor([[1.0, float("nan"), 2.0], [1.0, float("inf"), 2.0]])).isfinite().all()
    assert linear(torch.empty(0, 3)).shape == (0, 3)


def test_the_residual_is_added():
    x, weight, bias = linear_inputs(20, 96, 40)
    linear = QuantisedLinear(*quantise_rows(weight), bias)
    residual = torch.randn(20, 40)
    torch.testing.assert_close(linear(x, residual), linear(x) + residual)


def test_embeddings():
    weight = torch.randn(11, 8)
    embedding = QuantisedEmbedding(*quantise_rows(weight))
    ids = torch.tensor([[3, 0], [10, 3]])
    assert torch.equal(embedding(ids), F.embedding(ids, embedding.weight))
    assert ((embedding.weight - weight).abs() <= weight.abs().amax(-1, keepdim=True) / 127 / 2 * 1.001).all()


def test_the_state_of_a_model():
    """The encoder's matrices are in int8 or int16, all else as it was; quantising again gives the same integers."""
    torch.manual_seed(0)
    model = MaskedLM(EncoderConfig(2, 32, 4, 64, 50, 20))
    outliers = ("encoder.layers.0.feed_forward.forward_proj.weight", "encoder.embeddings.word.weight")
    for name in outliers:  # embeddings never have 16 bits: they are the most of a file
        model.state_dict()[name][:, 0] *= 100
    state = quantise_state(model.state_dict())
    matrices = {name for name, tensor in state.items() if not tensor.is_floating_point()}
    assert [name for name in matrices if state[name].dtype == torch.int16] == [outliers[0]]
    assert (
        len(matrices) == 2 + 2 * 6 and "dense.weight" not in matrices and all(n + "_scale" in state for n in matrices)
    )
    back = dequantise_state(state)
    assert back.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        limit = tensor.abs().amax(-1, keepdim=True) / 127 / 2 * 1.001 if name in matrices else 0
        assert ((back[name] - tensor).abs() <= limit).all(), name
    again = quantise_state(back)
    assert all(torch.equal(again[name], state[name]) for name in matrices)


EXACT = """
import torch
from model.quantised import QuantisedLinear, activation_levels, quantise_rows
levels = activation_levels()
x, weight = torch.ones(3, 768), torch.ones(8, 768)
weight[1] = -1
wide = weight.to(torch.int16) * 128, torch.full((8, 1), 1 / 128)  # low bytes of -128
for matrix in quantise_rows(weight), quantise_rows(weight, 127 * 256, torch.int16), wide:
    found = QuantisedLinear(*matrix, torch.zeros(8))(x)
    assert torch.allclose(found, x @ weight.T, rtol=1e-5), found
print(levels)
"""


@pytest.mark.parametrize("processor, levels", [("AVX2", "63"), ("AVX512_CORE", "63"), ("DEFAULT", None)])
def test_integer_sums_are_exact_without_vnni(processor, levels):
    """There, oneDNN adds pairs of products in 16 bits, which numbers up to 127 overflow without a word."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": processor}
    found = subprocess.run([sys.executable, "-c", EXACT], env=environment, capture_output=True, text=True, check=True)
    assert levels in (found.stdout.strip(), None)


def test_a_scale_of_its_own_for_each_row():
    matrix = torch.tensor([[1.0, -2.0], [100.0, 50.0]])
    rows, scale = quantise_rows(matrix)
    assert rows.tolist() == [[64, -127], [127, 64]] and scale.flatten().tolist() == pytest.approx([2 / 127, 100 / 127])
    torch.testing.assert_close(dequantise_rows(rows, scale), matrix, rtol=0.01, atol=0)
