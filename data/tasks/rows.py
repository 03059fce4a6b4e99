"""Task files to rows: JSON lines, JSON, tab-separated lines.

Lines end at \\n or \\r\\n only: U+2028, U+0085 and the no-break space are part of a text.
"""

import json
import os
from collections.abc import Iterator

from ..archives import DAMAGE, open_members
from ..cli import DataError


def read_text(path: str) -> str:
    """The text of a file, without byte order mark and final line end, \\r\\n replaced by \\n.  Raises DataError."""
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder. Give a file in it.")
    if not os.path.exists(path):
        raise DataError(f"There is no file {path}. Check the path.")
    try:
        with open(path, "rb") as file:
            content = next(open_members(file, path)).stream.read().replace(b"\r\n", b"\n")
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    try:
        text = content.decode().removeprefix("\ufeff").removesuffix("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line} is not UTF-8. Convert the file to UTF-8.") from None
    if not text.strip():
        raise DataError(f"{path} is empty.")
    return text


def rows(path: str, text: str, *wanted: tuple[str, ...]) -> Iterator[tuple[str, dict, list[str]]]:
    """The rows of a file of JSON objects, or of tab-separated lines below a header -> location, values, keys.

    wanted: for each value needed, the keys it may have, in order of preference; keys: the one found for each.
    location: file and line, for error messages.
    Raises DataError for a missing key, or a line with another number of columns than the header.
    """
    if text.lstrip().startswith(("{", "[")):
        for location, values in json_objects(path, text):
            yield location, values, [find_key(names, values, location) for names in wanted]
        return
    header, *lines = (line.split("\t") for line in text.split("\n"))  # no quoting
    header = [name.strip() for name in header]
    keys = [find_key(names, header, f"{path} line 1 (the tab-separated header)") for names in wanted]
    for number, columns in enumerate(lines, 2):
        if len(columns) == len(header):
            yield f"{path} line {number}", dict(zip(header, columns)), keys
        elif columns != [""]:
            raise DataError(f"{path} line {number} has {len(columns)} columns, but the header has {len(header)}.")


def find_key(names: tuple[str, ...], keys: dict | list[str], location: str) -> str:
    """The first of the names that is among the keys.  Raises DataError if none is."""
    if not any(name in keys for name in names):
        raise DataError(f"{location} has no {' or '.join(names)}. It has {short(', '.join(keys), 200)}.")
    return next(name for name in names if name in keys)


def json_objects(path: str, text: str) -> Iterator[tuple[str, dict]]:
    """The objects of JSON lines, of an array, or a single one over several lines -> location, values of each."""
    first = text.strip().partition("\n")[0].rstrip()
    if first.startswith("[") or first.endswith(("{", "[", ",", ":")):
        whole = parse(text, path, 1)
        values = whole if isinstance(whole, list) else [whole]
        found = ((f"{path}, object {number}", value) for number, value in enumerate(values, 1))
    else:
        lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
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
