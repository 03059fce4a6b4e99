"""A random masked LM of transformers, in memory and saved."""

import pytest

from model import MaskedLM
from tests.model.checkpoints.files import as_folder, headed_model


@pytest.fixture
def theirs():
    return headed_model(MaskedLM)


@pytest.fixture
def folder(tmp_path, theirs):
    return as_folder(theirs, tmp_path / "theirs")
