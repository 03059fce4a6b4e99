"""Task files to rows: JSON lines, JSON, delimited text, columns.

Lines end at \\n or \\r\\n only: U+2028, U+0085 and the no-break space are part of a text.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from ..cli import DataError
from .contents import Content
from .examples import Report
from .tables import DELIMITERS, find_delimiter, table_rows

LANGUAGE_KEYS, FRENCH = ("language", "lang"), ("fr", "fra", "fre", "french", "français")


def rows(path: str, content: Content, *wanted: tuple[str, ...]) -> Iterator[tuple[str, dict, list[str]]]:
    """The rows of a file of JSON objects, of columns, or of delimited text below a header -> location, values, keys.

    wanted: for each value needed, the keys it may have, in order of preference; keys: the one found for each.
    location: file and line, for error messages.
    Raises DataError for a missing key, or a row with another number of fields than the header.
    """
    if not isinstance(content, str) or content.lstrip().startswith(("{", "[")):
        for location, values in json_objects(path, content):
            yield location, values, [find_key(names, values, location) for names in wanted]
        return
    delimiter = find_delimiter(content.lstrip("\n").partition("\n")[0], wanted)
    table = table_rows(path, content, delimiter)
    number, header = next(table)
    header = [name.strip() for name in header]
    about = f"{path} line {number} (the header, separated by {DELIMITERS[delimiter]})"
    keys = [find_key(names, header, about) for names in wanted]
    for key in keys:
        if header.count(key) > 1:
            raise DataError(f"{about} has {header.count(key)} columns {key}. Rename all but the one that is meant.")
    for number, fields in table:
        if len(fields) != len(header):
            raise DataError(f"{path} line {number} has {len(fields)} columns, but the header has {len(header)}.")
        yield f"{path} line {number}", dict(zip(header, fields)), keys


def in_french(found: Iterable[tuple], path: str, report: Report) -> Iterator[tuple]:
    """Rows, (location, values, …), but only the French ones if they have a language.

    Raises DataError if none is French.
    """
    others, french = Counter(), False
    for row in found:
        location, values, *_ = row
        key = key_among(LANGUAGE_KEYS, values)
        language = check_type(str, values[key], key, location) if key else "fr"
        if re.split("[-_]", language.strip().casefold())[0] in FRENCH:  # also fr-CA, fr_FR
            french = True
            yield row
        else:
            others[language] += 1
    names = short(", ".join(sorted(others)))
    if others and not french:
        raise DataError(f"{path} has no French example (language fr), only {names}.")
    if others:
        report(f"{path}: skipped {others.total():,} examples in other languages ({names}).")


def key_among(names: tuple[str, ...], keys: dict | list[str]) -> str | None:
    """The key that is the first of the names, in upper or lower case; None if none is."""
    for name in names:
        if name in keys:
            return name
    folded = {key.strip().casefold(): key for key in keys}
    return next((folded[name.casefold()] for name in names if name.casefold() in folded), None)


def find_key(names: tuple[str, ...], keys: dict | list[str], location: str) -> str:
    """As key_among.  Raises DataError if none is."""
    key = key_among(names, keys)
    if key is None:
        raise DataError(f"{location} has no {' or '.join(names)}. It has {short(', '.join(keys), 200)}.")
    return key


def json_objects(path: str, content: Content) -> Iterator[tuple[str, dict]]:
    """The rows of columns; or the objects of JSON lines, of an array, or a single one over several lines.

    -> location and values of each.  Raises DataError.
    """
    if not isinstance(content, str):
        yield from ((f"{path} row {number}", values) for number, values in enumerate(content, 1))
        return
    first = content.strip().partition("\n")[0].rstrip()
    if first.startswith("[") or first.endswith(("{", "[", ",", ":")):
        whole = parse(content, path, 1)
        values = whole if isinstance(whole, list) else [whole]
        found = ((f"{path}, object {number}", value) for number, value in enumerate(values, 1))
    else:
        lines = ((number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip())
        found = ((f"{path} line {number}", parse(line, path, number)) for number, line in lines)
    for location, value in found:
        yield location, check_type(dict, value, "the value", location)


def parse(text: str, path: str, line: int):
    """The value of JSON that begins in this line of the file.  Raises DataError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path} line {line + error.lineno - 1}, character {error.colno},"
        raise DataError(f"{where} is not JSON: {error.msg}. Correct or remove the line.") from None
    except (RecursionError, ValueError):  # ValueError: an integer with too many digits for Python
        reason = "the JSON that begins here is nested too deeply, or has a number with thousands of digits"
        raise DataError(f"{path} line {line}: {reason}. Remove it.") from None


def check_type(wanted: type, value, name: str, location: str):
    """The value, a string without the lone surrogates that JSON allows.  Raises DataError if it has another type."""
    if not isinstance(value, wanted):
        kinds = {str: "a string", list: "a list", dict: "an object"}
        raise DataError(f"{location}: {name} must be {kinds[wanted]}, not {type(value).__name__}.")
    return value.encode("utf-8", "replace").decode() if wanted is str else value


def get_value(wanted: type, values: dict, names: tuple[str, ...], location: str):
    """The value of the first key that exists.  Raises DataError if none does, or if it has another type."""
    key = find_key(names, values, location)
    return check_type(wanted, values[key], key, location)


def short(text: str, length: int = 60) -> str:  # for error messages; lone surrogates cannot be printed
    return (text if len(text) <= length else text[: length - 1] + "…").encode("utf-8", "replace").decode()
