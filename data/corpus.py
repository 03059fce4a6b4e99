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
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import DataError

READ_BYTES = 1 << 20
PART_BYTES = 4 << 20  # a part is cut at the first end of a document after so many
LONGEST = 16 << 20  # bytes of a document; a longer one is cut, and counted
SAMPLE = 1 << 18  # bytes, by which the form of a text file is guessed
FIELDS = ("text", "content")  # where JSON lines and Parquet have the text, if --field does not say
STDIN = "-"
PACKED = (".gz", ".xz", ".bz2", ".zst")
TEXT, JSON, PARQUET = ".txt", (".jsonl", ".json", ".ndjson"), ".parquet"
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
        elif os.path.isdir(path):
            found = sorted(str(file) for file in text_files(Path(path)))
            if not found:
                raise DataError(f"The folder {path} has no {TEXT}, JSON lines or Parquet file in it or below it.")
            files += found
        elif os.path.lexists(path):
            check_is_text(path)
            files.append(path)
        else:
            found = sorted(file for file in glob.glob(path, recursive=True) if not os.path.isdir(file))
            if not found:
                raise DataError(f"There is no corpus {path}. Check the path.")
            for file in found:
                check_is_text(file)
            files += found
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
            packed = self._packed or self.fileobj.read(1 << 14)
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
    file = open_packed(source.name)
    with file:
        damage = skip(file, offset)
        buffer, counts = bytearray(), Counter()
        utf16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        while not damage:
            piece = b""
            try:
                piece = file.read1(READ_BYTES)  # read() would lose what came before the damage
            except (EOFError, zlib.error, lzma.LZMAError) as error:
                damage = str(error)
            except OSError as error:
                if error.errno is not None:
                    raise
                damage = str(error)  # of gzip and bz2: no fault of the disk
            if not offset and not buffer and piece[:2] in utf16:
                damage = "it is UTF-16: convert it to UTF-8"
                piece = b""
            buffer += piece
            if piece and len(buffer) < PART_BYTES:
                continue
            at_end = not piece
            cut = len(buffer) if at_end else end_of_document(buffer, source.kind)
            if not cut and len(buffer) < LONGEST:
                continue
            if not cut:
                cut = cut_anywhere(buffer)
                counts["documents cut, being longer than 16 MB"] += 1
            content = bytes(buffer[:cut])
            del buffer[:cut]
            offset += cut
            end = Place(number + 1) if at_end else Place(number, offset)
            done = source.size if at_end else bytes_done(file, offset)
            yield Part(source.kind, content, end, done, dict(counts), damage)
            counts.clear()
            if at_end:
                return
        yield Part(source.kind, b"", Place(number + 1), source.size, {}, damage)


def skip(file: BinaryIO, offset: int) -> str:
    """To an offset; -> why it cannot be reached, or nothing."""
    if offset and file.seekable():
        file.seek(offset)
        return ""
    while offset:
        piece = file.read(min(offset, PART_BYTES))
        if not piece:
            return "it ends before the place where the last run stopped"
        offset -= len(piece)
    return ""


def bytes_done(file: BinaryIO, offset: int) -> int:
    """How many bytes were taken from the disk, for the progress bar."""
    raw = getattr(file, "_fp", None) or getattr(file, "fileobj", None)  # of bz2 and lzma; of gzip
    try:
        return raw.tell() if raw is not None else offset
    except (OSError, ValueError):
        return offset


def end_of_document(buffer: bytearray, kind: str) -> int:
    """Where the last document in the buffer ends, that has an end; 0 if none has."""
    if kind == "blank":
        return max(buffer.rfind(end) + len(end) if end in buffer else 0 for end in (b"\n\n", b"\n\r\n", b"\r\r"))
    end = buffer.rfind(b"\n") + 1
    return end or (buffer.rfind(b"\r", 0, len(buffer) - 1) + 1 if kind == "line" else 0)


def cut_anywhere(buffer: bytearray) -> int:
    """Where to cut what has no end: after the last line, else after the last space, else between characters."""
    for end in (b"\n", b" "):
        if (cut := buffer.rfind(end) + 1) > len(buffer) // 2:
            return cut
    cut = len(buffer)
    while cut > len(buffer) - 4 and (buffer[cut - 1] & 0xC0) == 0x80:
        cut -= 1
    return cut - 1


def read_rows(source: Source, number: int, offset: int, field: str | None) -> Iterator[Part]:
    """The text column of a Parquet file.  Raises OSError, DataError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{source.name} is Parquet: pip install pyarrow, or take JSON lines.") from None
    try:
        file = pyarrow.parquet.ParquetFile(source.name)
        wanted = [field] if field else FIELDS
        column = next((name for name in wanted if name in file.schema_arrow.names), None)
        if column is None:
            raise DataError(f"{source.name} has no column {' or '.join(wanted)}. Name the text's with --field.")
        rows, row, size = [], 0, 0
        for batch in file.iter_batches(1000, columns=[column]):
            for value in batch.column(0).to_pylist():
                row += 1
                if row <= offset:
                    continue
                rows.append(value if isinstance(value, str) else "")
                size += len(rows[-1])
            if size >= PART_BYTES:
                yield Part(source.kind, rows, Place(number, row), source.size * row // file.metadata.num_rows, {})
                rows, size = [], 0
        yield Part(source.kind, rows, Place(number + 1), source.size, {})
    except pyarrow.ArrowException as error:
        yield Part(source.kind, [], Place(number + 1), source.size, {}, str(error).split("\n")[0][:200])
