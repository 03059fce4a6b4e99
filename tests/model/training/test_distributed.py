"""Signals and time limits that end a run, and how ranks connect. Runs of two ranks: tests/test_ranks.py."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
import torch

from data import OptionError
from model.training import distributed
from model.training.distributed import SIGNALS, SINGLE, Stop, World, join_world
from tests.helpers import REPOSITORY


class Exited(BaseException):
    """Raised instead of os._exit()."""


@pytest.fixture
def exits(monkeypatch):
    """A mock of os._exit(), which raises Exited."""
    monkeypatch.setattr(os, "_exit", Mock(side_effect=Exited))
    return os._exit


def send(number):
    """A signal to this process; its handler has run when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.001)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_gives_the_exit_status(number, exits):
    with Stop(None) as stop:
        assert stop.now(SINGLE) is None
        send(number)
        assert stop.now(SINGLE) == stop.now(SINGLE) == 128 + number
    assert not exits.called


def test_the_handled_signals():
    assert {number.name: 128 + number for number in SIGNALS} == {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138}


def test_a_signal_repeated_within_a_second_is_ignored_and_a_later_one_exits_at_once(exits, monkeypatch):
    monkeypatch.setattr(distributed, "SAME_SIGNAL", 0.2)
    with Stop(None) as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert not exits.called and stop.now(SINGLE) == 143  # the first one counts
        time.sleep(0.25)
        with pytest.raises(Exited):
            send(signal.SIGINT)
    exits.assert_called_once_with(130)


def test_the_former_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), Stop(None):
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_outside_the_main_thread_only_the_time_limit_works():
    def work():
        with Stop(1e-9) as stop:
            time.sleep(0.001)
            return stop.now(SINGLE)

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor() as pool:
        assert pool.submit(work).result() == 0
    assert signal.getsignal(signal.SIGTERM) == before


PROGRAM = """
import sys, time
from model.training.distributed import SINGLE, Stop
with Stop(None) as stop:
    print("ready", flush=True)
    while stop.now(SINGLE) is None:
        time.sleep(0.005)
    print(stop.now(SINGLE), flush=True)
    time.sleep(30)  # a long step
    print("too late", flush=True)
"""


def test_signals_to_a_real_process():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "143\n"
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(distributed.SAME_SIGNAL + 0.1)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130 and time.monotonic() - begun < 5
            assert process.stdout.read() == ""
        finally:
            process.kill()


def test_after_max_hours_the_status_is_0():
    with Stop(0.05 / 3600) as stop:
        assert stop.now(SINGLE) is None
        time.sleep(0.06)
        assert stop.now(SINGLE) == 0 and stop.now(SINGLE) is not None
        send(signal.SIGTERM)
        assert stop.now(SINGLE) == 143  # a signal takes precedence


def test_without_max_hours_it_never_stops(monkeypatch):
    with Stop(None) as stop:
        monkeypatch.setattr(time, "monotonic", lambda: 1e12)
        assert stop.now(SINGLE) is None


def test_a_single_process():
    assert (SINGLE.rank, SINGLE.size, SINGLE.is_main) == (0, 1, True)
    values = torch.tensor([1.5, float("nan"), -0.0], dtype=torch.float64)
    assert SINGLE.sum(values) is values
    assert SINGLE.max(0.1) == 0.1 and SINGLE.max(-3) == -3 and SINGLE.barrier() is None
    assert not World(1, 2).is_main and World(0, 2).is_main


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_without_torchrun_there_is_one_rank_with_the_given_device(monkeypatch, variables):
    monkeypatch.setattr(os, "environ", variables)
    with join_world("cuda:7") as joined:
        assert joined == (SINGLE, "cuda:7")
    assert not torch.distributed.is_initialized()


def test_one_process_of_torchrun_is_a_rank_too(monkeypatch):
    """So that nccl can be tried on one GPU."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    variables = dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    monkeypatch.setattr(os, "environ", {**os.environ, **variables})
    with join_world("cpu") as (world, device):
        assert (world.rank, world.size, device) == (0, 1, "cpu") and world.group is not None
        assert torch.distributed.get_backend() == "gloo"
    assert not torch.distributed.is_initialized()


def test_ranks_that_cannot_connect_are_an_error(monkeypatch):
    monkeypatch.setattr(os, "environ", {"WORLD_SIZE": "2"})  # without RANK, MASTER_ADDR and MASTER_PORT
    with pytest.raises(OptionError, match="cannot connect to one another: .*Start them with torchrun"):
        join_world("cpu").__enter__()
