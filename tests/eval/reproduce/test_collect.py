"""What the jobs have written, read again. The whole is tested in test_command."""

import pytest

from data.cli import DataError
from eval.reproduce.collect import read


def test_figures_that_are_missing_or_damaged(tmp_path):
    path = tmp_path / "figures.json"
    assert read(path) is None
    path.write_text('{"accuracy": 0.5}')
    assert read(path) == {"accuracy": 0.5}
    path.write_text('{"accuracy": 0.')
    with pytest.raises(DataError, match=r"figures\.json is damaged .* Remove it, and start again"):
        read(path)
