"""Files of rows to the text of each row: Parquet, Arrow, tables (CSV, tab-separated), JSON arrays and objects.

Each reader yields one value a row: None for a row without a text, bytes for one whose text is not UTF-8. At damage it
raises one of archives.DAMAGE.
"""

import codecs
import csv
import io
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..archives import Member, Stream, printable
from ..columnar import open_columns
from ..formats import SAMPLE_BYTES, TABLE, RefusedError, promised

FIELDS = ("text", "content")  # without --field, in order of preference
MAX_VALUE = 1 << 24  # characters of one value of JSON
MAX_CELL = 1 << 24
CHUNK_BYTES = 1 << 20
SPACE_AND_COMMA = re.compile(r"[\s,]*")
COLUMN_NAME = re.compile(r"[^\W\d][\w.:-]{0,39}( [\w.-]{1,40})?")
ESCAPED_QUOTE = re.compile(r'\\"(?![",;\t|\r\n])')  # where quotes are doubled, only the end of a cell follows \"
BYTE = re.compile("[\udc80-\udcff]")  # one that is not UTF-8, as "surrogateescape" escapes it
DELIMITERS, SAMPLE_ROWS = ",\t;|", 200


# ---- JSON ------------------------------------------------------------------------------------------------------


def text_of(value, field: str | None) -> str | None:
    """The text in an object of JSON, None if there is none."""
    if type(value) is not dict:
        return None
    text = next((value[name] for name in ([field] if field else FIELDS) if name in value), None)
    return text if type(text) is str else None


def without_surrogates(text: str) -> str:
    """JSON may hold half a surrogate pair, \\ud800, which is no character."""
    return text.encode("utf-8", "replace").decode()


def json_rows(stream: Stream, field: str | None) -> Iterator[str | bytes | None]:
    """The text of each value; without a field, strings are texts themselves."""
    for value in json_values(stream):
        text = text_of({FIELDS[0]: value} if type(value) is str and not field else value, field)
        if text is None or text.isascii():
            yield text
        else:
            yield b"" if BYTE.search(text) else without_surrogates(text)


def json_values(stream: Stream) -> Iterator:
    """The elements of arrays, and the other values outside them, one after the other, whatever their line ends.

    Memory holds one value, of at most MAX_VALUE characters. Bytes that are not UTF-8 are escaped, see BYTE.
    Raises EOFError for what is not JSON.
    """
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    text, place, in_array, at_end, size = "\ufeff", 1, False, False, CHUNK_BYTES
    while True:
        place = SPACE_AND_COMMA.match(text, place).end()
        if text.startswith("]" if in_array else "[", place):
            in_array, place = not in_array, place + 1
            continue
        reason = "it ends within an array or a value"
        try:
            value, end = decoder.raw_decode(text, place)
            if end < len(text) or at_end:  # a number may go on
                yield value
                place, size = end, CHUNK_BYTES
                continue
        except json.JSONDecodeError as error:
            reason = error.msg if place < len(text) else reason
        except (RecursionError, ValueError):  # ValueError: an integer with too many digits for Python
            raise EOFError("its JSON is nested too deeply, or has a number with thousands of digits") from None
        if at_end and place == len(text) and not in_array:
            return
        if at_end:
            raise EOFError(f"its JSON is cut short or wrong: {reason}")
        if len(text) - place > MAX_VALUE:
            raise EOFError(f"it is wrong JSON, or has a value above {MAX_VALUE >> 20} MB; try jq -c '.[]' on it")
        piece = stream.read1(len(stream.peek(size)) or 1)
        at_end = not piece
        text, place, size = text[place:] + decode(piece, final=at_end).removeprefix("\ufeff"), 0, 2 * size


# ---- Parquet and Arrow -----------------------------------------------------------------------------------------


def arrow_rows(member: Member, field: str | None) -> Iterator[str | bytes | None]:
    """The text column of Parquet or Arrow.  Raises RefusedError, EOFError, DataError if pyarrow is missing."""
    with open_columns(member) as (schema, batches):
        name = find_column(schema.names, field, member.name)
        for batch in batches(name):
            check_offsets(batch.column(0))
            yield from column_values(batch.column(0))


def find_column(names: Sequence[str], field: str | None, name: str) -> str:
    """Raises RefusedError if the file has no such column."""
    wanted = [field] if field else FIELDS
    if column := next((each for each in wanted if each in names), None):
        return column
    columns = ", ".join(names)
    raise RefusedError(
        f"{name} has no column {' or '.join(wanted)}. Give the text column with --field of data.prepare. "
        f"It has {printable(columns[:200])}{'…' if len(columns) > 200 else ''}."
    )


def check_offsets(column) -> None:
    """Raises pyarrow.ArrowInvalid if values lie outside of the file. That they are UTF-8 is left to column_values."""
    binary = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}.get(str(column.type))
    (column.view(binary) if binary else column).validate(full=True)


def column_values(column) -> Iterator[str | bytes | None]:
    """The values of an Arrow column that are strings; None for others, bytes for those that are not UTF-8."""
    try:
        yield from (value if isinstance(value, str) else None for value in column.to_pylist())
    except UnicodeDecodeError:
        if len(column) == 1:
            yield b""
        else:
            for index in range(len(column)):
                yield from column_values(column[index : index + 1])


# ---- tables of text --------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """How the rows of a table are written."""

    delimiter: str
    is_quoted: bool  # as CSV is: quotes around cells, doubled inside, and line ends in them
    is_escaped: bool = False  # quotes inside are not doubled but follow a backslash, as Spark writes them
    columns: list[str] | None = None  # None if the first row is no header

    def reader(self, lines: Iterable[str], is_strict: bool = False) -> Iterator[list[str]]:
        csv.field_size_limit(MAX_CELL)  # of the whole process: what is a table must not depend on earlier files
        quoting = csv.QUOTE_MINIMAL if self.is_quoted else csv.QUOTE_NONE
        escape = "\\" if self.is_quoted and self.is_escaped else None
        settings = dict(quoting=quoting, escapechar=escape, doublequote=not escape, strict=is_strict)
        return csv.reader(lines, delimiter=self.delimiter, **settings)


def find_table(sample: bytes, name: str, field: str | None) -> Table | None:
    """How a text that begins with these bytes is a table; None if it is none.

    A table has at least three rows of equally many columns, with names above them or tabs between them. If its name
    says that it is a table, no names are needed (but its text column cannot be found then), and a header with
    delimiters, or of the text column alone, is enough.
    """
    text, is_whole = sample.decode(errors="replace").removeprefix("\ufeff"), len(sample) < SAMPLE_BYTES
    is_escaped, without_names = bool(ESCAPED_QUOTE.search(text)), None
    for delimiter in DELIMITERS:
        may_be_quoted = delimiter != "\t" or re.search(r'(?:^|\t)"', text, re.MULTILINE)
        for is_quoted in (True, False) if may_be_quoted else (False,):
            table = Table(delimiter, is_quoted, is_escaped)
            rows = sample_rows(table, text, is_whole)
            full = rows_of_most_frequent_length(rows)
            if len(rows) < 3 or len(full) < 0.95 * len(rows) or sum(map(any, zip(*full))) < 2:  # 1: indented prose
                continue
            if rows[0] is full[0] and (is_header(rows[0]) or {field, *FIELDS} & set(rows[0])):
                return table._replace(columns=rows[0])
            if delimiter == "\t":
                return table
            without_names = without_names or table._replace(columns=rows[0])
    if TABLE not in promised(name) or not text.strip():
        return None
    if without_names:
        return without_names
    first = text.lstrip().splitlines()[0]
    delimiter = max(DELIMITERS, key=first.count)
    columns = next(csv.reader([first], delimiter=delimiter))
    is_table = len(columns) > 1 or columns[0] in (field, *FIELDS) or first.startswith('"')
    return Table(delimiter, delimiter != "\t", is_escaped, columns) if is_table else None


def rows_of_most_frequent_length(rows: list[list[str]]) -> list[list[str]]:
    length = statistics.mode(map(len, rows)) if rows else 0
    return [row for row in rows if len(row) == length]


def sample_rows(table: Table, text: str, is_whole: bool) -> list[list[str]]:
    """The first rows, without blank ones; none if quotes stand where CSV has none, as in tab-separated prose."""
    rows = []
    is_strict = table.is_quoted and table.delimiter == "\t"
    try:
        for row in table.reader(io.StringIO(text, newline=""), is_strict):
            if row:
                rows.append(row)
            if len(rows) == SAMPLE_ROWS:
                return rows
    except csv.Error as error:
        return [] if is_whole or str(error) != "unexpected end of data" else rows
    return rows if is_whole else rows[:-1]


def is_header(row: list[str]) -> bool:
    """Whether all cells are names of columns; pandas leaves the first one empty, above its row numbers."""
    names = row[not row[0] :]
    return all(map(COLUMN_NAME.fullmatch, names)) and len(set(names)) == len(names)


def table_rows(member: Member, table: Table, field: str | None) -> Iterator[str | bytes | None]:
    """The text column of a table.  Raises RefusedError, EOFError."""
    if table.columns is None:
        rows = sample_rows(table, member.stream.peek().decode(errors="replace"), is_whole=False)
        sizes = [sum(map(len, column)) for column in zip(*rows_of_most_frequent_length(rows))]
        example = f"cut -f{sizes.index(max(sizes)) + 1} {member.name} | python -m data.prepare … -"
        raise RefusedError(
            f"{member.name} is a table without names of columns. Give its text column alone: {example}; "
            "or whole rows, with --documents line."
        )
    try:
        index = table.columns.index(find_column(table.columns, field, member.name))
    except RefusedError as error:
        raise RefusedError(f"{error} If that is no header, put the names of the columns in its place.") from None
    rows = table.reader(io.TextIOWrapper(member.stream, "utf-8-sig", errors="surrogateescape", newline=""))
    try:
        next(rows)
        for row in filter(None, rows):
            text = row[index] if len(row) == len(table.columns) else None
            yield b"" if text and BYTE.search(text) else text
    except csv.Error as error:
        raise EOFError(f"line {rows.line_num}: {error}") from None
