"""What `python -m eval` and freeze do to the memory of their process."""

import ctypes
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY

COUNT_PAGE_FAULTS = """
import resource, sys
if sys.argv[1] == "eval":
    import eval.__main__
import torch
from model import Encoder, EncoderConfig
from model.inference import freeze
encoder = Encoder(EncoderConfig(1, 8, 1, 8, 105))
if sys.argv[1] == "eval":
    freeze(encoder, "fp32")
for step in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = torch.ones(16_000_000)
    del kept
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_memory_is_kept(monkeypatch):
    """Otherwise the kernel clears the pages of a tensor of 64 MB again at each step; kept, at few of them."""
    faults = {}
    for name in ("eval", "default"):
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)  # eval sets it
        if name == "default":
            monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # huge pages alone do not keep memory
        command = [sys.executable, "-c", COUNT_PAGE_FAULTS, name]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        faults[name] = list(map(int, result.stdout.split()))
    assert sum(faults["default"]) > 4 * sum(faults["eval"])
