"""Sources of a corpus, read in parts of a few megabytes that hold whole documents.

Where parts begin and end depends on the bytes alone. So any number of processes can work on them, and a stopped run can
resume at the beginning of any part.
"""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from ..archives import DAMAGE, Member, Stream, open_members
from ..cli import DataError
from ..download.datasets import RemoteText
from ..formats import (
    ARROW_FILE,
    ARROW_STREAM,
    JSON,
    JSON_LINES,
    PARQUET,
    REFUSED,
    TABLE,
    RefusedError,
    contradiction,
    is_description,
    refusal,
)
from .layout import BLANK, BLANK_WRAPPED, WRAPPED, text_layout
from .rows import Table, arrow_rows, find_table, json_rows, table_rows

STDIN = "-"
READ_BYTES = 1 << 20
PART_BYTES = 4 << 20  # a part ends with the first document that ends after this many bytes
MAX_DOCUMENT_BYTES = 16 << 20  # longer documents are split
ROWS = (JSON, PARQUET, ARROW_FILE, ARROW_STREAM, TABLE)  # of which the text of each row is read
NO_END = -1
NOT_UTF8 = "lines that are not UTF-8"  # in the counts; also rows
LINE_END = re.compile(rb"\n|\r(?!\n)")
BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)[ \t]*(?>\r\n|\n|\r)")


class Source(NamedTuple):
    """A file, or standard input. What it holds is known when it is read."""

    name: str
    size: int  # bytes on disk; 0 for standard input
    remote: RemoteText | None = None  # of a file on the hub

    def stored(self) -> dict:
        """For the manifest."""
        digest = {"digest": self.remote.digest} if self.remote else {}
        return {"name": self.name, "size": self.size, **digest}

    @property
    def label(self) -> str:
        return "standard input" if self.name == STDIN else self.name


class Position(NamedTuple):
    """Where a part begins."""

    source: int = 0  # index in the list of sources
    member: int = 0  # index in the source, if that is an archive
    offset: int = 0  # bytes, after decompression and as UTF-8; rows, in files of rows


START = Position()


class Kind(NamedTuple):
    """How a member is read."""

    name: str  # JSON_LINES, one of ROWS, or, for plain text, a layout
    width: int = 0  # of wrapped lines
    table: Table | None = None


class Part(NamedTuple):
    """A few megabytes of whole documents."""

    kind: str
    content: bytes | list[str]  # a list for files of rows
    end: Position  # where the next part begins
    bytes_read: int  # from disk, of all sources up to here
    counts: dict[str, int]  # problems found while reading
    damage: str = ""  # why the rest of the file cannot be read
    width: int = 0  # of wrapped lines
    name: str = ""  # of the file, or the file in an archive
    notes: tuple[str, ...] = ()  # sentences for the user


@contextlib.contextmanager
def errors_in(name: str) -> Iterator[None]:
    """Raises DataError, with the file's name, for an OSError inside."""
    try:
        yield
    except OSError as error:
        raise DataError(f"The corpus file {name} cannot be read: {error.strerror or error}.") from None


@contextlib.contextmanager
def open_source(path: str) -> Iterator[BinaryIO]:
    """The bytes of a file, or of standard input.  Raises OSError."""
    if path == STDIN:
        yield sys.stdin.buffer
    else:
        with open(path, "rb") as file:
            yield file


def kind_of(member: Member, documents: str, field: str | None) -> Kind:
    """How a member is read.  Raises RefusedError if it has no text.

    documents: the separator of plain text, "auto" to guess it. field: text field or column, None for the usual ones.
    """
    if member.form in REFUSED:
        raise refusal(member.name, member.form)
    if member.form in (JSON_LINES, *ROWS):
        return Kind(member.form)
    sample = member.stream.peek()
    table = find_table(sample, member.name, field)
    if table and (table.columns or documents == "auto"):  # the user may want whole rows of an unnamed table
        return Kind(TABLE, table=table)
    return Kind(*text_layout(sample, documents))


def read_parts(
    sources: list[Source],
    start: Position = START,
    field: str | None = None,
    documents: str = "auto",
    paths: Iterable[str] | None = None,
) -> Iterator[Part]:
    """The parts of all sources in order, from the position where one begins.

    documents: what ends a document of plain text. paths: where the sources are, from the first one that is read; by
    default, their names. A damaged file is read up to the damage, which its last part describes.
    Raises DataError for a file that cannot be read.
    """
    before = sum(source.size for source in sources[: start.source])
    paths = [source.name for source in sources[start.source :]] if paths is None else paths
    for number, path in enumerate(paths, start.source):
        source = sources[number]
        first = start if number == start.source else Position(number)
        with errors_in(source.label), open_source(path) as file:
            for part in source_parts(file, source, first, field, documents):
                yield part._replace(bytes_read=before + part.bytes_read)
        before += source.size


def source_parts(file: BinaryIO, source: Source, start: Position, field: str | None, documents: str) -> Iterator[Part]:
    """The parts of the files in a source. In an archive, what cannot be read is skipped, and named in a note.

    The last part ends at the next source: that of a plain file; of an archive, one more, which is empty.
    Raises OSError, DataError.
    """
    following, damage = Position(start.source + 1), ""
    try:
        for index, member in enumerate(open_members(file, source.label)):
            if index < start.member:
                continue
            begin = start if index == start.member else Position(start.source, index)
            end = Position(start.source, index + 1) if member.archives else following
            try:
                for part in member_parts(file, source.label, member, begin, end, field, documents):
                    damage = part.damage
                    yield part._replace(bytes_read=source.size) if part.end == following else part
            except RefusedError as error:
                if not member.archives:
                    raise
                counts = {"files skipped in archives": 1}
                yield Part(
                    "", b"", end, disk_offset(file, 0), counts, name=member.name, notes=(f"{error} It was skipped.",)
                )
            if end == following:
                return
        damage = ""
    except DAMAGE as error:
        if str(error) == damage:  # the archive ends within a member, which has said so
            damage = ""
        else:
            damage = describe(error)
    yield Part("", b"", following, source.size, {}, damage, name=source.label)


def member_parts(
    file: BinaryIO, source: str, member: Member, begin: Position, end: Position, field: str | None, documents: str
) -> Iterator[Part]:
    """The parts of one file from a position on; notes about it are with its first part.

    Raises RefusedError if it has no text.
    """
    if member.archives and is_description(member.name):
        raise RefusedError(f"{member.name} has the name of a description.")
    kind = kind_of(member, documents, field)
    notes = kind_notes(source, begin.member == 0, member, kind) if not begin.offset else ()
    if kind.name in ROWS:
        found = row_parts(file, kind, row_texts(member, kind, field), begin, end)
    else:
        found = text_parts(file, member, kind, begin, end)
    for part in found:
        yield part._replace(name=member.name, notes=notes)
        notes = ()


def kind_notes(source: str, is_first: bool, member: Member, kind: Kind) -> tuple[str, ...]:
    """What the user should know about how a member is read: sentences."""
    form = TABLE if kind.table else member.form
    notes = [contradiction(member.name, (*member.own_layers, form))] if is_first or member.archives else []
    if is_first and member.archives:
        notes.insert(0, contradiction(source, member.layers[: member.archives[0] + 1]))
    if kind.width:
        joined = f"{member.name} has lines wrapped at {kind.width} characters, which were joined to paragraphs"
        notes.append(f"{joined}; data.prepare --documents line or blank keeps them apart.")
    return tuple(filter(None, notes))


# ---- plain text and JSON lines ---------------------------------------------------------------------------------


def text_parts(file: BinaryIO, member: Member, kind: Kind, begin: Position, end: Position) -> Iterator[Part]:
    """From an offset in bytes.  Raises OSError."""
    stream, place = member.stream, begin.offset
    buffer, counts, damage, at_end, pattern = bytearray(), Counter(), "", False, end_pattern(kind)
    skip = place  # bytes of earlier parts that must be read again
    if skip and not member.layers and file.seekable():
        file.seek(skip)
        stream, skip = Stream(file), 0
    while not at_end:
        piece, damage = read_piece(stream)
        buffer += memoryview(piece)[skip:]
        skip -= min(skip, len(piece))
        at_end = len(piece) < READ_BYTES
        if at_end and skip:
            damage = damage or "it ends before the position that an earlier run had reached"
        while size := end_of_part(buffer, pattern, at_end):
            if size == NO_END:
                size = split_document(buffer)
                counts["documents cut, being longer than 16 MB"] += 1
            content = bytes(memoryview(buffer)[:size])
            del buffer[:size]
            place += size
            yield Part(
                kind.name, content, begin._replace(offset=place), disk_offset(file, place), dict(counts), "", kind.width
            )
            counts.clear()
    yield Part(kind.name, bytes(buffer), end, disk_offset(file, place + len(buffer)), {}, damage, kind.width)


def read_piece(stream: Stream) -> tuple[bytearray, str]:
    """-> the next READ_BYTES, fewer only at the end of the file or at damage; a description of the damage.

    How much of a damaged archive can be read depends on the sizes requested, so these never depend on the start.
    """
    piece, damage = bytearray(), ""
    try:
        while len(piece) < READ_BYTES and (more := stream.read1(READ_BYTES - len(piece))):
            piece += more
    except DAMAGE as error:
        damage = describe(error)
    return piece, damage


def describe(error: Exception) -> str:
    """What is damaged, from one of DAMAGE.  Raises it again if it comes from the disk."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return str(error) or type(error).__name__


def disk_offset(file: BinaryIO, offset: int) -> int:
    """The number of bytes read from disk, for the progress line; offset: where that is not known."""
    try:
        return file.tell()
    except (OSError, ValueError):
        return offset


def end_pattern(kind: Kind) -> re.Pattern:
    """What ends a document of plain text or of JSON lines."""
    if kind.name == WRAPPED:  # a short line ends a paragraph
        return re.compile(rb"(?>\r\n|\n|\r)[^\r\n]{0,%d}(?>\r\n|\n|\r)" % (kind.width // 2))
    return BLANK_LINE if kind.name in (BLANK, BLANK_WRAPPED) else LINE_END


def end_of_part(buffer: bytearray, pattern: re.Pattern, at_end: bool) -> int:
    """The first end of a document after PART_BYTES; NO_END if the document is too long; 0 if more must be read.

    The result does not depend on how far the buffer extends beyond it.
    """
    found = pattern.search(buffer, PART_BYTES - 1, MAX_DOCUMENT_BYTES)
    if found and (at_end or found.end() < len(buffer) or len(buffer) >= MAX_DOCUMENT_BYTES):  # \n may follow a last \r
        return found.end()
    return NO_END if not found and len(buffer) >= MAX_DOCUMENT_BYTES else 0


def split_document(buffer: bytearray) -> int:
    """Where to split a document that is too long: after the last line, else the last space, else the last character."""
    for end in (b"\n", b" "):
        if (split := buffer.rfind(end, 0, MAX_DOCUMENT_BYTES) + 1) > MAX_DOCUMENT_BYTES // 2:
            return split
    split = MAX_DOCUMENT_BYTES
    while split > MAX_DOCUMENT_BYTES - 4 and (buffer[split - 1] & 0xC0) == 0x80:  # inside a character of UTF-8
        split -= 1
    return split - 1


# ---- files of rows ---------------------------------------------------------------------------------------------


def row_parts(
    file: BinaryIO, kind: Kind, texts: Iterable[str | bytes | None], begin: Position, end: Position
) -> Iterator[Part]:
    """From an offset in rows.  texts: of each row, see row_texts.  Raises OSError, DataError."""
    rows, row, size, counts, damage = [], 0, 0, Counter(), ""
    try:
        for value in texts:
            row += 1
            if row <= begin.offset:
                continue
            if value is None:
                counts["rows without a text"] += 1
            elif isinstance(value, bytes):
                counts[NOT_UTF8] += 1
            else:
                rows.append(value)
                size += len(value)
            if size >= PART_BYTES:
                yield Part(kind.name, rows, begin._replace(offset=row), disk_offset(file, row), dict(counts))
                rows, size = [], 0
                counts.clear()
    except DAMAGE as error:
        damage = describe(error)
    yield Part(kind.name, rows, end, disk_offset(file, row), dict(counts), damage)


def row_texts(member: Member, kind: Kind, field: str | None) -> Iterator[str | bytes | None]:
    """The text of each row, as rows.py has it.  Raises DataError, RefusedError, and DAMAGE."""
    if kind.name == JSON:
        return json_rows(member.stream, field)
    return table_rows(member, kind.table, field) if kind.table else arrow_rows(member, field)
