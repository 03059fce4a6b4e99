"""Two checkpoints, for the tests of how they are written, read and damaged."""

import shutil

import pytest

from model.training.run_state import CheckpointWriter, read
from tests.model.training.runs import Run


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Checkpoints of steps 1 and 2 -> their folder, which no test changes, and the contents of both."""
    out = tmp_path_factory.mktemp("written")
    writer, run = CheckpointWriter(out, 2), Run()
    return out, {step: read(run.train().save(writer)) for step in (1, 2)}


@pytest.fixture
def out(written, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(written[0], tmp_path / "out")
