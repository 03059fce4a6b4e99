"""What ends a run before its last step, and how processes find one another. Runs of several: tests/test_resume.py."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from data import OptionError
from model.training import distributed
from model.training.distributed import SIGNALS, SINGLE, Stop, World, join_world
from tests.helpers import REPOSITORY


class Ended(BaseException):
    """In place of os._exit()."""


@pytest.fixture
def exits(monkeypatch):
    """The statuses that the process would have ended with."""
    seen = []

    def note(status):
        seen.append(status)
        raise Ended

    monkeypatch.setattr(os, "_exit", note)
    return seen


def send(number):
    """To this process; its handler has run when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.001)


# ---- signals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_noted_and_is_the_status_to_end_with(number, exits):
    with Stop(None) as stop:
        assert stop.now(SINGLE) is None
        send(number)
        assert stop.now(SINGLE) == 128 + number
        assert stop.now(SINGLE) == 128 + number
    assert not exits


def test_the_signals_are_those_of_kill_ctrl_c_and_slurm():
    assert {number.name: 128 + number for number in SIGNALS} == {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138}


def test_a_repetition_within_a_second_is_the_same_wish_and_a_later_one_ends_at_once(exits, monkeypatch):
    monkeypatch.setattr(distributed, "SAME_SIGNAL", 0.2)
    with Stop(None) as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert not exits and stop.now(SINGLE) == 143  # the first is what counts
        time.sleep(0.25)
        with pytest.raises(Ended):
            send(signal.SIGINT)
    assert exits == [130]


def test_what_handled_signals_before_does_so_again_afterwards():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), Stop(None):
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_outside_the_main_thread_there_are_no_signals_and_all_else_works():
    results = []

    def work():
        with Stop(1e-9) as stop:
            time.sleep(0.001)
            results.append(stop.now(SINGLE))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [0] and signal.getsignal(signal.SIGTERM) == before


REAL = """
import sys, time
from model.training.distributed import SINGLE, Stop
with Stop(None) as stop:
    print("ready", flush=True)
    while stop.now(SINGLE) is None:
        time.sleep(0.005)
    print(stop.now(SINGLE), flush=True)
    time.sleep(30)  # a step that takes its time
    print("too late", flush=True)
"""


def test_a_real_process_notes_one_signal_ignores_its_repetition_and_ends_at_the_next():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", REAL]
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


# ---- hours -----------------------------------------------------------------------------------------------------


def test_when_the_hours_are_over_it_ends_with_status_0():
    with Stop(0.05 / 3600) as stop:
        assert stop.now(SINGLE) is None
        time.sleep(0.06)
        assert stop.now(SINGLE) == 0 and stop.now(SINGLE) is not None
        send(signal.SIGTERM)
        assert stop.now(SINGLE) == 143  # whoever sent it wants to know that it came


def test_without_hours_it_never_ends_by_itself(monkeypatch):
    with Stop(None) as stop:
        monkeypatch.setattr(time, "monotonic", lambda: 1e12)
        assert stop.now(SINGLE) is None


# ---- processes -------------------------------------------------------------------------------------------------


def test_alone_all_is_as_it_is():
    assert (SINGLE.rank, SINGLE.size, SINGLE.is_main) == (0, 1, True)
    values = torch.tensor([1.5, float("nan"), -0.0], dtype=torch.float64)
    assert SINGLE.sum(values) is values
    assert SINGLE.max(0.1) == 0.1 and SINGLE.max(-3) == -3
    assert SINGLE.barrier() is None
    assert not World(1, 2).is_main and World(0, 2).is_main


@pytest.mark.parametrize("size", [None, "1"])
def test_without_torchrun_one_is_alone_and_keeps_its_device(monkeypatch, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    with join_world("cuda:7") as joined:
        assert joined == (SINGLE, "cuda:7")
    assert not torch.distributed.is_initialized()


def test_processes_that_cannot_find_one_another_are_a_sentence(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="cannot find one another: .*Start them with torchrun"), join_world("cpu"):
        pass
