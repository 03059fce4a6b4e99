"""Fixtures that write a task file and read it."""

import pytest

from data import DataError
from data.tasks import read_task
from tests.data.tasks.files import write


@pytest.fixture
def examples(tmp_path):
    """A function of a task and a file's content -> its examples, the reports."""

    def read(task: str, content: str | bytes, name: str = "f", **settings):
        reports = []
        return read_task(task, [write(tmp_path / name, content)], reports.append, **settings), reports

    return read


@pytest.fixture
def refused(tmp_path):
    """A check that the error for a content begins with the file's name and location, and contains these words."""

    def check(task: str, content: str | bytes, where: str, *words: str, **settings):
        with pytest.raises(DataError) as error:
            read_task(task, [write(tmp_path / "bad.x", content)], [].append, **settings)
        message = str(error.value)
        assert message.startswith(f"{tmp_path}/bad.x{where}"), message
        assert all(word in message for word in words), message
        assert message.endswith(".") and len(message.encode()) < 500  # raises for a lone surrogate

    return check
