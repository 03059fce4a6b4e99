"""The content of a task file, by its bytes: text, or rows of columns; either may be compressed or in an archive."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..archives import DAMAGE, Member, is_hidden, open_members
from ..cli import DataError, no_file
from ..formats import (
    ARROW_FILE,
    ARROW_STREAM,
    EMPTY,
    NOT_UTF8,
    PARQUET,
    REFUSED,
    TABLE,
    TEXT,
    contradiction,
    is_description,
    refusal,
)
from .columnar import columnar_rows
from .examples import Report

Content = str | Iterator[dict]  # text, or the rows of Parquet and Arrow
MAX_BYTES = 1 << 30  # of a file after decompression; it is held in memory
DOCUMENTS = (".pdf", ".html")  # suffixes of files without examples
SHOWN = 8  # members in a message


def read_content(path: str, report: Report) -> Content:
    """The content of a file, or of archive/member.  Raises DataError, for rows when they are reached.

    report: called with a sentence if the name says that the file is something else.
    """
    with open_member(path) as member:
        if said := contradicts_name(member):
            report(said)
        if member.form not in (PARQUET, ARROW_FILE, ARROW_STREAM):
            return decoded(path, read_bytes(member))
    return rows_of_columns(path)


def contradicts_name(member: Member) -> str:
    """A sentence if the member's name stands for another format, else ""; also for what is refused anyway as text."""
    if member.form in (EMPTY, NOT_UTF8):
        return ""
    forms = (TEXT, TABLE) if member.form == TEXT else (member.form,)  # text may well be a table
    said = [contradiction(member.name, (*member.own_layers, form)) for form in forms]
    return said[0] if all(said) else ""


def rows_of_columns(path: str) -> Iterator[dict]:
    with open_member(path) as member:
        yield from columnar_rows(member, path, MAX_BYTES)


def read_bytes(member: Member) -> bytes:
    """Raises DataError for a form without text, and above MAX_BYTES."""
    if member.form in REFUSED and member.form != NOT_UTF8:  # decoded() says where
        raise refusal(member.name, member.form)
    content = bytearray()
    while piece := member.stream.read1():
        content += piece
        if len(content) > MAX_BYTES:
            raise DataError(f"{member.name} has more than {MAX_BYTES >> 20:,} MB of text. Split it into several files.")
    return bytes(content)


def decoded(path: str, content: bytes) -> str:
    """Text without byte order mark and final line end, \\r\\n replaced by \\n.  Raises DataError."""
    content = content.replace(b"\r\n", b"\n")
    try:
        text = content.decode().removeprefix("\ufeff").removesuffix("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        cure = "Convert the file to UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8"
        raise DataError(f"{path} line {line} is not UTF-8. {cure}.") from None
    if not text.strip():
        raise DataError(f"{path} is empty.")
    return text


# ---- archives --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_member(path: str) -> Iterator[Member]:
    """The file, the member that the path names, or the only data file in the archive.

    Raises DataError, also for an archive with several.
    """
    file, inside = file_and_member(path)
    wanted = f"{file}/{inside}" if inside else ""
    try:
        with open(file, "rb") as stream:
            for member in open_members(stream, file):
                if not wanted:
                    wanted = only_member(file) if member.archives else member.name
                if wanted == member.name:
                    yield member
                    return
        if not wanted:
            raise DataError(f"{file} is an archive without files.")
        if (names := member_names(file)) == [file]:
            raise DataError(f"{file} is not an archive, so there is no {inside} in it.")
        raise DataError(f"{file} has no file {inside}. {listing(file, names)}")
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def file_and_member(path: str) -> tuple[str, str]:
    """The file on disk, and for archive/member the member, else "".  Raises DataError if there is no file."""
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder. Give a file in it.")
    if os.path.exists(path):
        return path, ""
    found = next((each for each in (Path(path), *Path(path).parents) if os.path.exists(each)), None)
    if found is None or os.path.isdir(found):
        raise DataError(no_file(path))
    inside = Path(path).relative_to(found).as_posix()
    return str(found), "" if inside == "." else inside


def check_files(paths: Iterable[str]) -> None:
    """Raises DataError unless each is a file or archive/member; whether the archive has that member is seen later."""
    for path in paths:
        file_and_member(path)


def only_member(file: str) -> str:
    """The name of the only data file in an archive, archive/member.  Raises DataError if there are several."""
    names = member_names(file)  # at least one: open_member() has found it
    data = [name for name in names if not is_about(name.removeprefix(file))] or names
    if len(data) > 1:
        count = f"{file} is an archive of {len(data)} files"
        raise DataError(f"{count}. Unpack it, or name one, as {data[0]}. {listing(file, data)}")
    return data[0]


def member_names(file: str) -> list[str]:
    with open(file, "rb") as stream:
        return [member.name for member in open_members(stream, file)]


def is_about(name: str) -> bool:
    """Whether a file is hidden, in a hidden folder, or about the data instead of having examples."""
    return is_hidden(name) or is_description(name) or name.lower().endswith(DOCUMENTS)


def listing(file: str, names: list[str]) -> str:
    """A sentence with the names of members; names: archive/member, at least one"""
    more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"It has {', '.join(name.removeprefix(file)[1:] for name in names[:SHOWN])}{more}."
