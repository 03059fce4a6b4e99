"""Delimited text: rows below a header, their fields separated by tabs, commas or semicolons, quoted or not."""

import re
from collections.abc import Iterator, Sequence

from ..cli import DataError

DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons"}  # semicolons: as spreadsheets write CSV in French
QUOTED = r'"([^"]*+(?:""[^"]*+)*+)"'
QUOTED_FIELD = re.compile(QUOTED)


def find_delimiter(header: str, wanted: Sequence[Sequence[str]]) -> str:
    """The delimiter that gives most of the wanted columns, each a choice of names; of equals the most frequent."""

    def score(delimiter: str) -> tuple[int, int]:
        names = {name.strip().strip('"').casefold() for name in header.split(delimiter)}
        return sum(not names.isdisjoint(map(str.casefold, choice)) for choice in wanted), header.count(delimiter)

    return max(DELIMITERS, key=score)


def table_rows(path: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """-> the line at which each row begins, its fields; rows without any text are left out

    Fields separated by commas or semicolons may be quoted, as in RFC 4180: in quotes, their own quotes doubled. For
    tabs, see is_quoted.  Raises DataError for a quoted field that is not closed, or followed by something else.
    """
    if delimiter != "\t" or is_quoted(text):
        rows = quoted_rows(path, text, delimiter)
    else:
        rows = ((number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1))
    return ((number, fields) for number, fields in rows if any(map(str.strip, fields)))


def is_quoted(text: str) -> bool:
    """Whether the fields of tab-separated text are quoted; if not, a quote is a character like any other (XNLI).

    pandas and spreadsheets quote a field that has a quote, a tab or a line end, and no other; some programs quote all.
    So text is quoted if its header is, or every field below; if its lines have different numbers of fields, but its
    rows with quoting have not; or if every field that has a quote is quoted, and one of them has a quote inside.
    """
    if '"' not in text:
        return False
    header, *lines = (line.split("\t") for line in text.split("\n"))
    fields = [field for line in lines for field in line]
    if any(whole and all(map(QUOTED_FIELD.fullmatch, whole)) for whole in (header, [*filter(None, fields)])):
        return True
    if all(len(line) == len(header) for line in lines if line != [""]):
        matches = [QUOTED_FIELD.fullmatch(field) for field in (*header, *fields) if '"' in field]
        return all(matches) and any('"' in match[1] for match in matches)
    try:
        return all(len(row) == len(header) for _, row in quoted_rows("", text, "\t") if row != [""])
    except DataError:
        return False


def quoted_rows(path: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """-> the line at which each row begins, its fields.  Raises DataError.

    A field that does not begin with a quote may have quotes inside if it is separated by commas or semicolons.
    """
    unquoted = f'[^{delimiter}\n"]*+' if delimiter == "\t" else f'(?:[^{delimiter}\n"][^{delimiter}\n]*+)?'
    field = re.compile(rf"(?:{QUOTED}|({unquoted}))({delimiter}|\n|\Z)")
    line, start, position, fields = 1, 0, 0, []
    while match := field.match(text, position):
        quoted, bare, end = match.groups()
        fields.append(bare if quoted is None else quoted.replace('""', '"'))
        position = match.end()
        if end == delimiter:
            continue
        yield line, fields
        if not end:
            return
        line, start, fields = line + text.count("\n", start, position), position, []
    line += text.count("\n", start, position)
    rule = "A field in quotes must end with a quote, and its own quotes must be doubled"
    raise DataError(f"{path} line {line}, field {len(fields) + 1}: a quote is not closed or not doubled. {rule}.")
