"""Signals and time limits that end a run."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from model.training import stop as stopping
from model.training.distributed import SINGLE
from model.training.stop import SIGNALS, Stop
from tests.helpers import REPOSITORY


@pytest.fixture
def exits(monkeypatch):
    """A mock of os._exit()."""
    monkeypatch.setattr(os, "_exit", Mock())
    return os._exit


def send(number):
    """A signal to this process; it has been noted when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.05)


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
    monkeypatch.setattr(stopping, "SAME_SIGNAL", 0.2)
    with Stop(None) as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert not exits.called and stop.now(SINGLE) == 143  # the first one counts
        time.sleep(0.25)
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
import ctypes, subprocess
from model.training.stop import Stop
with Stop(None):
    subprocess.Popen(["sleep", "30"])  # such as a compiler
    print("ready", flush=True)
    ctypes.CDLL(None).usleep(30_000_000)  # a long operation, during which Python runs no handler of the main thread
    print("too late", flush=True)
"""


def test_signals_to_a_real_process_and_all_its_children():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    settings = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, env=environment, cwd=REPOSITORY, **settings) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            begun = time.monotonic()
            os.killpg(process.pid, signal.SIGTERM)
            assert process.stderr.readline() + process.stderr.readline() == (
                "\nSIGTERM: stopping after this step; a second signal ends at once.\n"
            )
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.killpg(process.pid, signal.SIGINT)  # the same one, forwarded by a launcher
            time.sleep(stopping.SAME_SIGNAL + 0.1)
            assert process.poll() is None and "sleep" in Path(f"/proc/{child}/stat").read_text()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130 and time.monotonic() - begun < 10
        finally:
            os.killpg(process.pid, signal.SIGKILL)


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
