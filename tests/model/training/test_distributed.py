"""How ranks connect. Runs of two ranks: tests/test_ranks.py."""

import os
import socket

import pytest
import torch

from data import OptionError
from model.training.distributed import SINGLE, World, join_world, meet


def test_a_single_process():
    assert (SINGLE.rank, SINGLE.size, SINGLE.is_main) == (0, 1, True)
    values = torch.tensor([1.5, float("nan"), -0.0], dtype=torch.float64)
    assert SINGLE.sum(values) is values
    assert SINGLE.max(0.1) == 0.1 and SINGLE.max(-3) == -3 and SINGLE.barrier() is None
    assert not World(1, 2).is_main and World(0, 2).is_main


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_without_torchrun_there_is_one_rank_with_the_given_device(monkeypatch, variables):
    monkeypatch.setattr(os, "environ", variables)
    with meet() as watch, join_world(watch, "cuda:7") as joined:
        assert watch is None and joined == (SINGLE, "cuda:7")
    assert not torch.distributed.is_initialized()


def test_one_process_of_torchrun_is_a_rank_too(monkeypatch):
    """So that nccl can be tried on one GPU."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    variables = dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    monkeypatch.setattr(os, "environ", {**os.environ, **variables})
    with meet() as watch, join_world(watch, "cpu") as (world, device):
        assert (world.rank, world.size, device) == (0, 1, "cpu") and world.group is not None
        assert torch.distributed.get_backend() == "gloo"
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "variables, sentence",
    [
        (dict(WORLD_SIZE="2"), "not set: RANK, MASTER_ADDR, MASTER_PORT. Start them with torchrun"),
        (dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost"), "not set: MASTER_PORT"),
        (
            dict(RANK="2", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1"),
            r"RANK 2 must be from 0 to 1, below WORLD_SIZE\. Start",
        ),
        (dict(RANK="x", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1"), "cannot connect.*'x'"),
    ],
)
def test_wrong_variables_are_an_error(monkeypatch, variables, sentence):
    monkeypatch.setattr(os, "environ", variables)
    with pytest.raises(OptionError, match=sentence), meet():
        pass
