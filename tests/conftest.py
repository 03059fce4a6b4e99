"""Settings for all tests, however pytest was started."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # else two workers with two threads each would compete for the cores
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a process that a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    """Tests marked gpu compare float32 results: no earlier run in this process may have left TF32 on."""
    if item.get_closest_marker("gpu"):
        import torch

        torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the inputs of small runs of train.py."""
    from tests.train_runs import write_inputs

    return write_inputs(tmp_path_factory.mktemp("place"))
