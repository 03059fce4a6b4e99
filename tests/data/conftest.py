"""A small corpus, and the real tokenizer beside transformers'."""

import pytest

from data import Tokenizer
from data.corpus import parts
from tests.data.prepared import lines, write
from tests.helpers import REAL_TOKENIZER, transformers_tokenizer


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 3000)


@pytest.fixture
def text(tmp_path):
    return write(tmp_path / "a.txt", lines(200))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="session")
def real():
    return Tokenizer(REAL_TOKENIZER)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return transformers_tokenizer(tmp_path_factory.mktemp("tokenizer"))
