"""Files of rows to texts: Parquet, Arrow, tables and JSON."""

import random

import pytest

from data import DataError
from data.corpus.parts import Position
from tests.data.prepared import parts, write_parquet


def test_parquet_from_every_start(tmp_path, small_parts):
    texts = [f"row {number} {'word ' * (number % 7)}" for number in range(4500)]
    path = write_parquet(tmp_path / "a.parquet", {"id": range(4500), "text": texts}, row_group_size=1700)
    found = parts(path)
    assert [row for part in found for row in part.content] == texts
    assert len(found) > 4 and found[-1].end == Position(1) and found[-1].bytes_read == path.stat().st_size
    for number, part in enumerate(found[:-1]):
        assert parts(path, start=part.end)[0].content == found[number + 1].content


def test_the_column_is_the_given_one_or_text_or_content(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"content": ["c"], "text": ["t"], "body": ["b"]})
    assert parts(path)[0].content == ["t"]
    assert parts(path, field="body")[0].content == ["b"]
    assert parts(write_parquet(tmp_path / "b.parquet", {"content": ["c"], "other": [1]}))[0].content == ["c"]
    for field, wanted in (("body", "body"), (None, "text or content")):
        path = write_parquet(tmp_path / "c.parquet", {"title": ["t"]})
        with pytest.raises(DataError, match=f"c.parquet has no column {wanted}. Give the text column with --field"):
            parts(path, field=field)


def test_rows_without_text_are_counted(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    texts = pyarrow.array([b"a", None, b"caf\xe9", "é".encode()], pyarrow.binary())  # one is not UTF-8
    columns = [pyarrow.array(["a", None, None, "é"], kind) for kind in (pyarrow.string(), pyarrow.large_string())]
    columns += [columns[0].dictionary_encode(), pyarrow.Array.from_buffers(pyarrow.string(), 4, texts.buffers())]
    for column in columns:
        (part,) = parts(write_parquet(tmp_path / "a.parquet", {"text": column}))
        assert (part.content, part.counts) == (["a", "é"], {"rows without a text": 2})
    (part,) = parts(write_parquet(tmp_path / "a.parquet", {"text": [1, 2]}))
    assert (part.content, part.counts) == ([], {"rows without a text": 2})


def test_damaged_parquet_is_read_up_to_the_damage(tmp_path):
    chance = random.Random(0)
    texts = [chance.randbytes(50).hex() for _ in range(6000)]
    path = write_parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=1000, compression="zstd")
    compressed = bytearray(path.read_bytes())
    middle = len(compressed) // 2  # in the data, which comes before the metadata
    compressed[middle : middle + 2000] = bytes(2000)
    path.write_bytes(compressed)
    try:
        found = parts(path)
    except DataError as error:
        assert "a.parquet cannot be read" in str(error)
    else:
        kept = [row for part in found for row in part.content]
        assert len(kept) >= 2000 and kept == texts[: len(kept)] and found[-1].damage
    for content in (b"PAR1", bytes(compressed[:1000])):
        path.write_bytes(content)
        (part,) = parts(path)
        assert part.content == [] and part.damage
