"""The released weights, if CAMEMBERT_DIR and DISTILCAMEMBERT_DIR name their folders, against published values.

CAMEMBERT_DIR=camembert-base DISTILCAMEMBERT_DIR=distilcamembert-base python -m pytest -m golden
"""

import os

import pytest
import torch

from data import Tokenizer
from model.checkpoints.load import load_checkpoint
from model.config import count_parameters

pytestmark = pytest.mark.golden


def folder(variable):
    return os.environ.get(variable) or pytest.skip(f"{variable} is not set to a folder with the released weights")


@torch.no_grad()
def test_hidden_states_of_camembert_base():
    place = folder("CAMEMBERT_DIR")
    model = load_checkpoint(place).float()
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == count_parameters(model.config)
    states = model.encoder.hidden_states(torch.tensor([Tokenizer(place).encode("J'aime le camembert !")]))
    last = torch.tensor([[-0.0254, 0.0235, 0.1027], [0.0606, -0.1811, -0.0418], [-0.1561, -0.1127, 0.2687]])
    fifth = torch.tensor([[-0.0032, 0.0075, 0.0040], [-0.0996, -0.1474, 0.1057], [0.0557, -0.0588, 0.0547]])
    assert torch.allclose(states[-1][0, :3, :3], last, atol=1e-4)
    assert torch.allclose(states[5][0, :3, :3], fifth, atol=1e-4)


TOP_5 = {
    "CAMEMBERT_DIR": {7200: 0.49091, 2183: 0.10557, 26202: 0.03453, 528: 0.03303, 1654: 0.03008},
    "DISTILCAMEMBERT_DIR": {7200: 0.38782, 2183: 0.06469, 1654: 0.04535, 26202: 0.04128, 1509: 0.02426},
}


@torch.no_grad()
@pytest.mark.parametrize("variable", TOP_5)
def test_the_top_5_for_a_masked_token(variable):
    place = folder(variable)
    model, tokenizer = load_checkpoint(place).float(), Tokenizer(place)
    input_ids = torch.tensor([tokenizer.encode("Le camembert est <mask> :)")])
    best = model(input_ids)[input_ids == tokenizer.mask_id].softmax(dim=-1)[0].topk(5)
    assert dict(zip(best.indices.tolist(), best.values.tolist())) == pytest.approx(TOP_5[variable], abs=2e-4)
