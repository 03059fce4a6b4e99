"""Processes: SIGTERM as an exit. Groups and logs are tested in test_jobs and test_gpu."""

import os
import signal

import pytest

from eval.processes import exit_on_sigterm


def test_sigterm_is_an_exit_within_the_block_alone():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, exit_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
