"""Processes that print into a log, and that end with all they have started."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path

from data.outputs import open_to_append


def print_into(log: Path) -> None:
    """At the beginning of a process: a group of its own, ended by SIGTERM; it and the programs that it starts print
    into the log."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open_to_append(log) as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as an exception does, so that whatever ends processes there is run."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def kill_group(process: SpawnProcess) -> None:
    """Ends the process and all that it has started and left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
