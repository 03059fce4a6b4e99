"""Raw text, whatever it is packed in: files to parts of a few megabytes, parts to documents.

Parts are cut where a document ends, at places that depend on the file alone. So they can be worked on in any order
by any number of processes, and whoever knows where a part begins can go on from there.
"""

import bz2
import codecs
import glob
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..cli import DataError

READ_BYTES = 1 << 20
PART_BYTES = 4 << 20  # a part is cut at the first end of a document after so many
LONGEST = 16 << 20  # bytes of a document; a longer one is cut, and counted
SAMPLE = 1 << 18  # bytes, by which the form of a text file is guessed
FIELDS = ("text", "content")  # where JSON lines and Parquet have the text, if --field does not say
STDIN = "-"
PACKED = (".gz", ".xz", ".bz2", ".zst")
TEXT, JSON, PARQUET = ".txt", (".jsonl", ".json", ".ndjson"), ".parquet"
ENDS = {  # where a part may be cut
    "line": re.compile(rb"\n|\r(?!\n)"),
    "json": re.compile(rb"\n|\r(?!\n)"),
    "blank": re.compile(rb"(?>\r\n|\n|\r)[ \t]*(?>\r\n|\n|\r)"),
}
CUT_ANYWHERE = -1
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NOT_TEXT = (".zip", ".tar", ".tgz", ".7z", ".safetensors", ".bin", ".pt", ".model", ".pdf", ".docx", ".html")


class Place(NamedTuple):
    """Where a part begins: in which source, after how many of its unpacked bytes (Parquet: rows)."""

    source: int = 0
    offset: int = 0


BEGINNING = Place()


@dataclass(frozen=True)
class Source:
    """A file, or standard input, and what is in it."""

    name: str
    kind: str  # line, blank (what ends a document), json, parquet
    size: int  # bytes as they lie on disk; 0 for standard input


class Part(NamedTuple):
    """A few megabytes of whole documents."""

    kind: str
    content: bytes | list[str]  # list: Parquet's rows
    end: Place  # where the next one begins
    done: int  # bytes read on disk up to here
    counts: dict[str, int]  # what the reader had to do
    damage: str = ""  # why the source ends here


# ---- which files -----------------------------------------------------------------------------------------------


def corpus_files(paths: Iterable[str | Path]) -> list[str]:
    """The files named, those that patterns match, and every text below the folders named, in a fixed order.

    Raises DataError for a path that is not there, a folder or pattern without text, or a file that is none.
    """
    files = []
    for path in map(str, paths):
        if path == STDIN:
            files.append(path)
            continue
        if os.path.isdir(path):
            found = sorted(str(file) for file in text_files(Path(path)))
            if not found:
                raise DataError(f"The folder {path} has no {TEXT}, JSON lines or Parquet file in it or below it.")
        elif os.path.lexists(path):
            found = [path]
        else:
            found = sorted(file for file in glob.glob(path, recursive=True) if not os.path.isdir(file))
            if not found:
                raise DataError(f"There is no corpus {path}. Check the path.")
        for file in found:
            check_is_text(file)
        files += found
    if files.count(STDIN) > 1:
        raise DataError(f"Standard input can be read once: name {STDIN} once.")
    return files


def form(name: str) -> str:
    """The suffix that says what is in a file, packed or not."""
    path = Path(name)
    return Path(path.stem).suffix.lower() if path.suffix.lower() in PACKED else path.suffix.lower()


def check_is_text(path: str) -> None:
    if not os.path.isfile(path) or form(path) in NOT_TEXT:
        raise DataError(f"{path} is no text: a corpus is .txt, JSON lines or Parquet, plain or {', '.join(PACKED)}.")


def text_files(folder: Path) -> Iterator[Path]:
    """Every text below a folder, also through links; a folder that links back to itself is read once."""

    def unreadable(error: OSError):
        raise DataError(f"The corpus folder {error.filename} cannot be read: {error.strerror}.")

    seen = set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(place, name) for name in names if form(name) in (TEXT, *JSON, PARQUET))


def find_sources(files: Iterable[str], documents: str) -> list[Source]:
    """What each file is.  documents: line, blank, or auto, which guesses by a text file's first lines.

    Raises DataError for a file that cannot be opened, or whose packing needs a package that is not there.
    """
    sources = []
    for name in files:
        if form(name) in JSON:
            kind = "json"
        elif form(name) == PARQUET:
            kind = "parquet"
        elif documents == "auto":
            kind = guess(name)
        else:
            kind = documents
        sources.append(Source(name, kind, 0 if name == STDIN else reading(name, os.path.getsize, name)))
    return sources


def guess(name: str) -> str:
    """blank, if blank lines separate documents in a file's beginning; else line."""
    if name == STDIN:
        return "line"
    try:
        with reading(name, open_packed, name) as file:
            sample = file.read(SAMPLE)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):  # damaged: the reading itself will say so
        return "line"
    lines = [bool(line.strip()) for line in sample.splitlines()]
    breaks = sum(1 for before, here, after in zip(lines, lines[1:], lines[2:]) if before and not here and after)
    return "blank" if breaks >= 2 and breaks * 200 >= len(lines) else "line"


def reading(name: str, function, *arguments):
    """What the function gives.  Raises DataError, with the file's name, where that cannot be read."""
    try:
        return function(*arguments)
    except OSError as error:
        raise DataError(f"The corpus file {name} cannot be read: {error.strerror or error}.") from None


# ---- files to parts --------------------------------------------------------------------------------------------


def open_packed(name: str) -> BinaryIO:
    """The unpacked bytes of a file.  Raises OSError; DataError if a package is missing."""
    suffix = Path(name).suffix.lower()
    if name == STDIN:
        return sys.stdin.buffer
    if suffix == ".zst":
        return io.BufferedReader(Zstandard(name))
    return {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(suffix, open)(name, "rb")


class Zstandard(io.RawIOBase):
    """The unpacked bytes of a .zst, frame after frame.  Raises DataError if the package is missing."""

    def __init__(self, name: str):
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{name} is packed with Zstandard: pip install zstandard, or unpack it.") from None
        self._error, self._begin = zstandard.ZstdError, zstandard.ZstdDecompressor().decompressobj
        self.fileobj = open(name, "rb")  # noqa: SIM115 (closed by close)
        self._frame, self._begun, self._packed, self._plain = self._begin(), False, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        """Raises EOFError where a frame is cut short or damaged: zstandard's own reader would end without a word."""
        while not self._plain:
            packed = self._packed or self.fileobj.read(1 << 10)  # of which 32 MB can come
            if not packed:
                if self._begun:
                    raise EOFError("a frame is cut short")
                return 0
            try:
                self._plain = self._frame.decompress(packed)
            except self._error as error:
                raise EOFError(str(error)) from None
            self._packed, self._begun = b"", True
            if self._frame.eof:
                self._packed, self._frame, self._begun = self._frame.unused_data, self._begin(), False
        size = min(len(target), len(self._plain))
        target[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def close(self) -> None:
        self.fileobj.close()
        super().close()


def read_parts(sources: list[Source], start: Place = BEGINNING, field: str | None = None) -> Iterator[Part]:
    """The parts of all sources in order, from a place where one begins.

    What a damaged archive gives before it breaks is read; its last part says the damage.
    Raises DataError for a file that cannot be read.
    """
    before = sum(source.size for source in sources[: start.source])
    for number in range(start.source, len(sources)):
        offset = start.offset if number == start.source else 0
        read = read_rows if sources[number].kind == "parquet" else read_bytes
        try:
            for part in read(sources[number], number, offset, field):
                yield part._replace(done=before + part.done)
        except OSError as error:
            raise DataError(
                f"The corpus file {sources[number].name} cannot be read: {error.strerror or error}."
            ) from None
        before += sources[number].size


def read_bytes(source: Source, number: int, offset: int, field: str | None) -> Iterator[Part]:
    """Text and JSON lines, from an offset.  Raises OSError."""
    with open_packed(source.name) as file:
        buffer, counts, damage, at_end = bytearray(), Counter(), "", False
        skipped = offset  # bytes of earlier parts that are still to be read again
        if skipped and file.seekable() and Path(source.name).suffix.lower() not in PACKED:
            file.seek(skipped)
            skipped = 0
        while not at_end:
            piece, damage = read_piece(file)
            buffer += memoryview(piece)[skipped:]
            skipped -= min(skipped, len(piece))
            at_end = len(piece) < READ_BYTES
            if at_end and skipped:
                damage = damage or "it ends before the place where the last run stopped"
            if not offset and buffer[:2] in UTF16:
                buffer, damage, at_end = bytearray(), "it is UTF-16: convert it to UTF-8", True
            while cut := end_of_part(buffer, source.kind, at_end):
                if cut == CUT_ANYWHERE:
                    cut = cut_anywhere(buffer)
                    counts["documents cut, being longer than 16 MB"] += 1
                content = bytes(memoryview(buffer)[:cut])
                del buffer[:cut]
                offset += cut
                yield Part(source.kind, content, Place(number, offset), bytes_done(file, offset), dict(counts))
                counts.clear()
        yield Part(source.kind, bytes(buffer), Place(number + 1), source.size, {}, damage)


def read_piece(file: BinaryIO) -> tuple[bytearray, str]:
    """READ_BYTES more, less of them only at the end or where the file is damaged; and then why.

    How much a damaged archive gives before it breaks depends on the calls: these are the same wherever a part begins.
    """
    piece, damage = bytearray(), ""
    try:
        while len(piece) < READ_BYTES and (more := file.read1(READ_BYTES - len(piece))):
            piece += more  # read() would lose what came before the damage
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        damage = str(error)
    except OSError as error:
        if error.errno is not None:
            raise
        damage = str(error)  # of gzip and bz2: no fault of the disk
    return piece, damage


def bytes_done(file: BinaryIO, offset: int) -> int:
    """How many bytes were taken from the disk, for the progress bar."""
    places = (
        getattr(file, "_fp", None),
        getattr(file, "fileobj", None),
        getattr(getattr(file, "raw", None), "fileobj", None),
    )
    raw = next((place for place in places if place is not None), None)  # of bz2 and lzma; of gzip; of Zstandard
    try:
        return raw.tell() if raw is not None else offset
    except (OSError, ValueError):
        return offset


def end_of_part(buffer: bytearray, kind: str, at_end: bool) -> int:
    """The first end of a document after PART_BYTES; CUT_ANYWHERE if none comes in time; 0: more must be read.

    It is the same however much more there is in the buffer.
    """
    found = ENDS[kind].search(buffer, PART_BYTES - 1, LONGEST)
    if found and (at_end or found.end() < len(buffer) or len(buffer) >= LONGEST):  # else \n may follow a last \r
        return found.end()
    return CUT_ANYWHERE if not found and len(buffer) >= LONGEST else 0


def cut_anywhere(buffer: bytearray) -> int:
    """Where to cut what has no end: after the last line, else after the last space, else between characters."""
    for end in (b"\n", b" "):
        if (cut := buffer.rfind(end, 0, LONGEST) + 1) > LONGEST // 2:
            return cut
    cut = LONGEST
    while cut > LONGEST - 4 and (buffer[cut - 1] & 0xC0) == 0x80:
        cut -= 1
    return cut - 1


def read_rows(source: Source, number: int, offset: int, field: str | None) -> Iterator[Part]:
    """The text column of a Parquet file.  Raises OSError, DataError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{source.name} is Parquet: pip install pyarrow, or take JSON lines.") from None
    rows, row, size, counts, damage = [], 0, 0, Counter(), ""
    try:
        file = pyarrow.parquet.ParquetFile(source.name)
        wanted = [field] if field else FIELDS
        column = next((name for name in wanted if name in file.schema_arrow.names), None)
        if column is None:
            raise DataError(f"{source.name} has no column {' or '.join(wanted)}. Name the text's with --field.")
        for batch in file.iter_batches(1000, columns=[column]):
            for value in texts_of(batch.column(0)):
                row += 1
                if row <= offset:
                    continue
                if isinstance(value, str):
                    rows.append(value)
                    size += len(value)
                else:
                    counts["rows without a text"] += 1
            if size >= PART_BYTES:
                done = source.size * row // file.metadata.num_rows
                yield Part(source.kind, rows, Place(number, row), done, dict(counts))
                rows, size = [], 0
                counts.clear()
    except pyarrow.ArrowException as error:
        damage = str(error).split("\n")[0][:200]
    yield Part(source.kind, rows, Place(number + 1), source.size, dict(counts), damage)


def texts_of(column) -> list:
    """The values of a column of Parquet; None for those that are not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [text_of(value) for value in column]


def text_of(value) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return None
