"""Files of rows to texts: Parquet, Arrow, tables and JSON."""

import csv
import gzip
import io
import json
import random
from itertools import pairwise

import numpy
import pytest

from data import DataError
from data.corpus import rows
from data.corpus.parts import Position
from data.formats import JSON, TABLE
from tests.data.prepared import parts, texts, write, write_parquet

ODD = ["Un film.", 'Il dit : "oui", puis\nil part.', "", "a\tb", "é;€|😀", '"', "l'été,\r\nl’hiver", *texts(60)]


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
        lost = {"rows without a text": 1, "lines that are not UTF-8": 1} if column is columns[-1] else None
        assert (part.content, part.counts) == (["a", "é"], lost or {"rows without a text": 2})
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


def test_offsets_that_lie_are_not_followed(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table, file = pyarrow.table({"text": ["abcdefgh", "b"]}), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    right, wrong = numpy.array([0, 8, 9], "<i4").tobytes(), numpy.array([0, 8, 2**31 - 1], "<i4").tobytes()
    content = file.getvalue().to_pybytes()
    assert content.count(right) == 1
    (tmp_path / "a").write_bytes(content.replace(right, wrong))
    (part,) = parts(tmp_path / "a")
    assert part.content == [] and "offset" in part.damage


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("packed", [False, True])
def test_arrow_from_every_start(tmp_path, small_parts, kind, packed):
    pyarrow = pytest.importorskip("pyarrow")
    column = [None if number % 9 == 4 else f"row {number} {'word ' * (number % 7)}" for number in range(2000)]
    table, file = pyarrow.table({"id": range(2000), "content": column}), pyarrow.BufferOutputStream()
    with (pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    content = file.getvalue().to_pybytes()
    (tmp_path / "a.arrow").write_bytes(gzip.compress(content) if packed else content)
    found = parts(tmp_path / "a.arrow")
    assert [row for part in found for row in part.content] == [row for row in column if row is not None]
    assert sum(part.counts.get("rows without a text", 0) for part in found) == column.count(None) and len(found) > 4
    for part, after in pairwise(found):
        assert parts(tmp_path / "a.arrow", start=part.end)[0].content == after.content
    (tmp_path / "a.arrow").write_bytes(content[: len(content) // 2])
    *_, last = parts(tmp_path / "a.arrow")
    assert last.damage and last.end == Position(1)


# ---- tables ----------------------------------------------------------------------------------------------------


def table(column: list[str], header: str | None = "text", **settings) -> bytes:
    """A table as the csv module writes it, with a number and a label in each row."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, **settings)
    if header:
        writer.writerow(["", header, "label"])
    writer.writerows([number, text, "x"] for number, text in enumerate(column))
    return file.getvalue().encode()


SETTINGS = [dict(delimiter=delimiter, lineterminator=end) for delimiter in ",;\t|" for end in ("\n", "\r\n")]
SETTINGS += [dict(quoting=csv.QUOTE_ALL), dict(doublequote=False, escapechar="\\")]  # the last as Spark does it


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["a.csv", "part-00000", "a.tsv"])
def test_tables_as_others_write_them(tmp_path, small_parts, settings, name):
    path = write(tmp_path / name, table(ODD, **settings))
    found = parts(path, documents="auto")
    assert {part.kind for part in found} == {TABLE} and [row for part in found for row in part.content] == ODD
    assert len(found) > 2
    for part, after in pairwise(found):
        assert parts(path, start=part.end)[0].content == after.content


def test_tab_separated_rows_with_bare_quotes_keep_them(tmp_path):
    """As XNLI has them: a cell may begin with a quote that does not end it."""
    column = ['"Oui" dit-il.', 'Il dit "oui".', '"', "«\u00a0Non\u00a0»", *texts(20)]
    content = "id\ttext\n" + "".join(f"{number}\t{text}\n" for number, text in enumerate(column))
    (part,) = parts(write(tmp_path / "a.tsv", content), documents="auto")
    assert part.content == column


def test_the_column_of_a_table_is_the_field(tmp_path):
    path = write(tmp_path / "a", b"\xef\xbb\xbfid,Commentaire du client,text\n" + b"1,Un film.,Un livre.\n" * 3)
    assert parts(path)[0].content == ["Un livre."] * 3
    assert parts(path, field="Commentaire du client")[0].content == ["Un film."] * 3
    with pytest.raises(
        DataError, match="has no column avis. Give the text column with --field of data.prepare. It has id, Commentaire"
    ):
        parts(path, field="avis")
    for name in ("a.csv", "a.csv.gz"):
        (part,) = parts(write(tmp_path / name, b'text\nUn film.\n\n"Oui, un livre."\n'))  # its only column
        assert part.content == ["Un film.", "Oui, un livre."]


def test_rows_of_another_length_or_not_in_utf8_are_counted(tmp_path):
    good = table(texts(40))
    for odd in (b"99,too,many,columns\r\n", b"too few\r\n", b"99,\xe9t\xe9,x\r\n"):
        reason = "lines that are not UTF-8" if b"\xe9" in odd else "rows without a text"
        (part,) = parts(write(tmp_path / "a.csv", good + odd + b"100,Fin.,x\r\n"))
        assert (part.content, part.counts) == ([*texts(40), "Fin."], {reason: 1})
    (part,) = parts(write(tmp_path / "a.csv", good + b'99,"never closed' + b" word" * 100))
    assert part.content[:40] == [*texts(40)]


def test_a_table_without_names_is_refused_with_its_text_column_or_first_row(tmp_path):
    rows = "".join(f"{number}\tfra\t{text}\n" for number, text in enumerate(texts(20)))
    with pytest.raises(DataError, match="without names of columns. Give its text column alone: cut -f3 "):
        parts(write(tmp_path / "a", rows), documents="auto")
    assert parts(tmp_path / "a", documents="line")[0].content == rows.encode()
    for content in (
        table(ODD[1:], header=None, delimiter=";"),
        b"# exported on 3 May\n" + table(ODD),
        b"sep=;\n" + table(ODD, delimiter=";"),
        "".join(f'"{text}"\n' for text in texts(20)),
    ):
        with pytest.raises(DataError, match="no column text or content.* If that is no header, put the names"):
            parts(write(tmp_path / "a.csv.gz", content))
    (part,) = parts(write(tmp_path / "a.csv", "text;note\n" + "Un film;1,5\n" * 9))
    assert part.content == ["Un film"] * 9


def test_long_cells_do_not_hide_a_table(tmp_path):
    """Whatever the limit of the csv module, which is the whole process's, and which other files have changed."""
    limit = csv.field_size_limit(1000)
    try:
        (part,) = parts(write(tmp_path / "a", table(["word " * 999] * 9)), documents="auto")
    finally:
        csv.field_size_limit(limit)
    assert (part.kind, part.content) == (TABLE, ["word " * 999] * 9)


PROSE = [
    "Oui, dit-il, non.\n",
    "Un\tmot.\nDeux mots.\nTrois.\n",
    "\tUn film.\n\tUn livre.\n\tFin.\n",
    "a,b\nc\nd,e,f\n",
]
PROSE += ["Il pleut, il mouille\nC'est la fête, à la grenouille\nIl ne pleut plus, c'est la fête\n", "text\nUn film.\n"]


@pytest.mark.parametrize("text", PROSE)
def test_prose_is_no_table(tmp_path, text):
    (part,) = parts(write(tmp_path / "a.txt", text.encode()), documents="auto")
    assert (part.kind, part.content) == ("line", text.encode())


# ---- JSON ------------------------------------------------------------------------------------------------------

OBJECTS = [{"text": text, "n": [number, {"a": 1.5}]} for number, text in enumerate(ODD)]
WRITTEN = {
    "an array": json.dumps(OBJECTS),
    "an array, indented": json.dumps(OBJECTS, indent=2, ensure_ascii=False),
    "an array, one object a line": "[\n" + ",\n".join(map(json.dumps, OBJECTS)) + "\n]\n",
    "objects over several lines": "\n".join(json.dumps(each, indent=1) for each in OBJECTS),
    "two arrays": json.dumps(OBJECTS[:9]) + "\n" + json.dumps(OBJECTS[9:]),
    "a mark": "\ufeff\n" + json.dumps(OBJECTS),
    "texts": json.dumps(ODD, indent=0),
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_json_over_several_lines_is_read_from_every_start(tmp_path, small_parts, monkeypatch, written, chunk):
    monkeypatch.setattr(rows, "CHUNK_BYTES", chunk)
    path = write(tmp_path / "a.json", WRITTEN[written])
    found = parts(path)
    assert {part.kind for part in found} == {JSON} and [row for part in found for row in part.content] == ODD
    assert len(found) > 2 and not any(part.damage for part in found)
    for part, after in pairwise(found):
        assert parts(path, start=part.end)[0].content == after.content


def test_values_without_a_text_are_counted(tmp_path):
    values = [{"text": 1}, {"texte": "a"}, 3, None, ["a"], {"text": "a \ud83d b"}, {"content": "c"}]
    (part,) = parts(write(tmp_path / "a", json.dumps(values)))
    assert (part.content, part.counts) == (["a ? b", "c"], {"rows without a text": 5})
    (part,) = parts(write(tmp_path / "a", json.dumps(["a", {"texte": "b"}])), field="texte")
    assert (part.content, part.counts) == (["b"], {"rows without a text": 1})


WRONG = {
    '[{"text": "a"}, {"text": "b"': "cut short",
    '[{"text": "a"}, {"text" "b"}]': "cut short or wrong: Expecting ':'",
    '[{"text": "a"}, ' + "[" * 99_999: "nested too deeply",
    '[{"text": "a"}, ' + "9" * 9999 + "]": "thousands of digits",
    '[{"text": "a"}, {"text": "' + "b" * 5000: "has a value above",
}


@pytest.mark.parametrize("content", WRONG)
def test_wrong_json_is_read_up_to_its_first_error(tmp_path, monkeypatch, content):
    monkeypatch.setattr(rows, "MAX_VALUE", 100_000 if "[[" in content else 2000 if "bbb" in content else 20_000)
    (part,) = parts(write(tmp_path / "a.json", content))
    assert part.content == ["a"] and WRONG[content] in part.damage
