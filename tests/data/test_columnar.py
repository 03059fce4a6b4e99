"""Parquet and Arrow in batches, whole or by column. The readers of corpora and of task files test the rest."""

import io

import pytest

from data.archives import open_members
from data.columnar import open_columns

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
TABLE = {"id": list(range(2500)), "text": [f"Texte {number}." for number in range(2500)]}


def stored(form: str) -> bytes:
    table, file = pyarrow.table(TABLE), io.BytesIO()
    if form == "parquet":
        parquet.write_table(table, file)
    else:
        with (pyarrow.ipc.new_file if form == "file" else pyarrow.ipc.new_stream)(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    return file.getvalue()


def read(content: bytes, column: str | None) -> dict:
    (member,) = open_members(io.BytesIO(content), "a")
    with open_columns(member) as (schema, batches):
        assert schema.names == list(TABLE)
        return pyarrow.Table.from_batches(batches(column)).to_pydict()


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_columns_and_damage(form):
    content = stored(form)
    assert read(content, None) == TABLE
    assert read(content, "text") == {"text": TABLE["text"]}
    with pytest.raises((EOFError, OSError)):
        read(content[: len(content) // 2], "text")
