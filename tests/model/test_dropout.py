"""Dropout: which elements are dropped, by what the others are scaled, and its gradient."""

import math

import pytest
import torch

from model import EncoderConfig, MaskedLM
from model.attention import scaled_dot_product
from model.dropout import Dropout, set_dropout
from tests.helpers import DEVICE

SHAPE = (3, 5, 40_001)  # not a multiple of four


@pytest.mark.gpu
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_fraction_p_is_dropped_and_the_rest_divided_by_1_minus_p(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(SHAPE, dtype=dtype, device=DEVICE)
    dropped = Dropout(p).train()(x)
    assert dropped.shape == SHAPE and dropped.dtype == dtype
    kept = dropped != 0
    for lane in range(4):  # four elements share a random number
        share = kept.flatten()[lane::4].double().mean().item()
        deviation = math.sqrt(p * (1 - p) / (kept.numel() / 4))
        assert abs(share - (1 - p)) < 4 * deviation + 2**-16
    assert dropped[kept].unique().numel() == 1
    assert dropped.max().item() == pytest.approx(1 / (1 - p), rel=max(2**-12, torch.finfo(dtype).eps))


def test_elements_are_dropped_independently():
    """Neighbours, which share a random number, and rows: the shares of all four pairs are those of independence."""
    torch.manual_seed(0)
    kept = Dropout(0.3).train()(torch.ones(1000, 4000)) != 0
    for one, other in ((kept[:, :-1], kept[:, 1:]), (kept[:-1], kept[1:]), (kept[:, 0::4], kept[:, 3::4])):
        both = (one & other).double().mean().item()
        assert both == pytest.approx(0.49, abs=4 * math.sqrt(0.49 * 0.51 / one.numel()) + 1e-4)


def test_without_training_or_with_p_0_nothing_is_dropped():
    x = torch.randn(7, 9)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(Dropout(0.0).train()(x), x)


def test_the_seed_determines_what_is_dropped():
    def drop(seed):
        torch.manual_seed(seed)
        return Dropout(0.5).train()(torch.ones(100))

    assert torch.equal(drop(1), drop(1)) and not torch.equal(drop(1), drop(2))


def test_the_gradient():
    torch.manual_seed(0)
    x = torch.randn(50, 50, requires_grad=True)
    dropped = Dropout(0.25).train()(x)
    (gradient,) = torch.autograd.grad(dropped, x, torch.ones_like(x))
    assert torch.equal(gradient, torch.where(dropped == 0, 0.0, torch.tensor(1 / 0.75)))
    assert torch.allclose(dropped, x * gradient)


def test_dropout_of_the_attention_maps():
    """With maps of which some are dropped, the heads are the same maps times the values."""
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 2, 4, 6, 8)
    values = torch.eye(6).expand(2, 4, 6, 6)  # so that the heads are the maps
    heads, maps = scaled_dot_product(queries, keys, values, None, Dropout(0.5).train())
    dropped = heads == 0
    assert 0.3 < dropped.float().mean() < 0.7 and torch.allclose(maps.sum(dim=-1), torch.ones(2, 4, 6))
    assert torch.allclose(heads, torch.where(dropped, 0.0, 2 * maps))


def test_a_run_has_its_own_probability_and_the_config_keeps_the_other():
    model = MaskedLM(EncoderConfig(2, 8, 2, 12, 30, dropout=0.3))
    set_dropout(model, 0.5)
    places = [module.p for module in model.modules() if isinstance(module, Dropout)]
    assert len(places) == 5 and set(places) == {0.5} and model.config.dropout == 0.3  # embeddings, 2 in each layer
