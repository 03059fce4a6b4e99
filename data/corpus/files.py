"""Text files of a corpus, compressed or not, read in parts of a few megabytes that hold whole documents.

Where parts begin and end depends on the file alone. So any number of processes can work on them, and a stopped run can
resume at the beginning of any part.
"""

import bz2
import codecs
import contextlib
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
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..cli import DataError
from ..download.datasets import PREFIX, RemoteText, dataset_files, parse_dataset

READ_BYTES = 1 << 20
PART_BYTES = 4 << 20  # a part ends with the first document that ends after this many bytes
MAX_DOCUMENT_BYTES = 16 << 20  # longer documents are split
SAMPLE_BYTES = 1 << 18  # for guessing what separates the documents of a text file
FIELDS = ("text", "content")  # of JSON lines and Parquet, in order of preference, without --field
STDIN = "-"
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
TEXT, JSON, PARQUET = ".txt", (".jsonl", ".json", ".ndjson"), ".parquet"
DOCUMENT_END = {  # by kind
    "line": re.compile(rb"\n|\r(?!\n)"),
    "json": re.compile(rb"\n|\r(?!\n)"),
    "blank": re.compile(rb"(?>\r\n|\n|\r)[ \t]*(?>\r\n|\n|\r)"),
}
NO_END = -1
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NOT_TEXT = (".zip", ".tar", ".tgz", ".7z", ".safetensors", ".bin", ".pt", ".model", ".pdf", ".docx", ".html")


class Position(NamedTuple):
    """Where a part begins."""

    source: int = 0  # index in the list of sources
    offset: int = 0  # bytes after decompression; for Parquet, rows


START = Position()


class Source(NamedTuple):
    """A file, or standard input."""

    name: str
    kind: str  # plain text by what ends a document, "line" or "blank"; "json"; "parquet"
    size: int  # bytes on disk; 0 for standard input
    remote: RemoteText | None = None  # of a file on the hub

    def stored(self) -> dict:
        """For the manifest."""
        digest = {"digest": self.remote.digest} if self.remote else {}
        return {"name": self.name, "kind": self.kind, "size": self.size, **digest}


class Part(NamedTuple):
    """A few megabytes of whole documents."""

    kind: str
    content: bytes | list[str]  # a list for Parquet: the rows
    end: Position  # where the next part begins
    bytes_read: int  # from disk, of all sources up to here
    counts: dict[str, int]  # problems found while reading
    damage: str = ""  # why the rest of the source cannot be read


# ---- which files -----------------------------------------------------------------------------------------------


def check_corpus(paths: Iterable[str | Path]) -> None:
    """Raises DataError for a path that does not exist, a pattern without files, or a wrong name of a data set."""
    for path in map(str, paths):
        if path.startswith(PREFIX):
            parse_dataset(path)
        elif path != STDIN and not os.path.lexists(path) and not glob.glob(path, recursive=True):
            raise DataError(f"There is no corpus {path}. Check the path.")


def corpus_files(paths: Iterable[str | Path]) -> list[str | RemoteText]:
    """The files given, those that match the patterns given, all text files below the folders and data sets given.

    The order is fixed: as given, sorted within each folder, pattern or data set.
    Raises DataError for a path that does not exist, a folder or pattern without text files, or a file of another kind.
    """
    files = []
    check_corpus(paths)
    for path in map(str, paths):
        if path.startswith(PREFIX):
            files += dataset_files(path)
            continue
        if os.path.isdir(path):
            found = sorted(str(file) for file in text_files(Path(path)))
            if not found:
                raise DataError(f"The folder {path} has no {TEXT}, JSON lines or Parquet file in it or below it.")
        elif path == STDIN or os.path.lexists(path):
            found = [path]
        else:
            found = sorted(file for file in glob.glob(path, recursive=True) if not os.path.isdir(file))
            if not found:
                raise DataError(f"There is no corpus {path}. Check the path.")
        for file in found:
            if file != STDIN and (not os.path.isfile(file) or text_suffix(file) in NOT_TEXT):
                kinds = f".txt, JSON lines or Parquet, compressed ({', '.join(COMPRESSED)}) or not"
                raise DataError(f"{file} is not text. Use {kinds}.")
        files += found
    if files.count(STDIN) > 1:
        raise DataError(f"Standard input can be read only once. Give {STDIN} once.")
    return files


def text_suffix(name: str) -> str:
    """The suffix in lower case, without that of the compression: .txt for a.TXT.gz."""
    path = Path(name)
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def text_files(folder: Path) -> Iterator[Path]:
    """All text files below a folder; symbolic links are followed, and no folder is read twice."""

    def unreadable(error: OSError):
        raise DataError(f"The corpus folder {error.filename} cannot be read: {error.strerror}.")

    visited = set()
    for path, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        yield from (Path(path, name) for name in names if text_suffix(name) in (TEXT, *JSON, PARQUET))


def find_sources(files: Iterable[str | RemoteText], documents: str) -> list[Source]:
    """The kind and size of each file.

    documents: what ends a document of plain text, "line" or "blank"; "auto" guesses it from each file's first lines.
    Raises DataError for a file that cannot be opened, or that needs a package that is not installed.
    """
    sources = []
    for name in files:
        if isinstance(name, RemoteText):
            kind = "parquet" if name.name.lower().endswith(PARQUET) else "json"
            sources.append(Source(name.name, kind, name.size, name))
            continue
        suffix = text_suffix(name)
        kind = "json" if suffix in JSON else "parquet" if suffix == PARQUET else documents
        if kind == "auto":
            kind = guess_kind(name)
        with errors_in(name):
            sources.append(Source(name, kind, 0 if name == STDIN else os.path.getsize(name)))
    return sources


def guess_kind(name: str) -> str:
    """The kind of a text file: blank if its first lines have documents between blank lines, else line."""
    if name == STDIN:
        return "line"
    with errors_in(name):
        file = open_decompressed(name)
    try:
        with file:
            sample = file.read(SAMPLE_BYTES)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):  # damaged: reported by read_parts()
        return "line"
    lines = [bool(line.strip()) for line in sample.splitlines()]
    breaks = sum(1 for before, here, after in zip(lines, lines[1:], lines[2:]) if before and not here and after)
    return "blank" if breaks >= 2 and breaks * 200 >= len(lines) else "line"


@contextlib.contextmanager
def errors_in(name: str) -> Iterator[None]:
    """Raises DataError, with the file's name, for an OSError inside."""
    try:
        yield
    except OSError as error:
        raise DataError(f"The corpus file {name} cannot be read: {error.strerror or error}.") from None


# ---- files to parts --------------------------------------------------------------------------------------------


def open_decompressed(name: str) -> BinaryIO:
    """The decompressed bytes of a file.  Raises OSError; DataError if a package is missing."""
    suffix = Path(name).suffix.lower()
    if name == STDIN:
        return sys.stdin.buffer
    if suffix == ".zst":
        return io.BufferedReader(Zstandard(name))
    return {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(suffix, open)(name, "rb")


class Zstandard(io.RawIOBase):
    """The decompressed bytes of all frames of a .zst file.  Raises DataError if the package is missing."""

    def __init__(self, name: str):
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{name} is compressed: run pip install zstandard, or decompress it.") from None
        self._error, self._decompressor = zstandard.ZstdError, zstandard.ZstdDecompressor().decompressobj
        self.fileobj = open(name, "rb")  # noqa: SIM115 (closed by close)
        self._frame, self._in_frame, self._compressed, self._plain = self._decompressor(), False, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        """Raises EOFError for a truncated or damaged frame; zstandard's own reader ends without an error."""
        while not self._plain:
            compressed = self._compressed or self.fileobj.read(1 << 10)  # may decompress to 32 MB
            if not compressed:
                if self._in_frame:
                    raise EOFError("a frame is truncated")
                return 0
            try:
                self._plain = self._frame.decompress(compressed)
            except self._error as error:
                raise EOFError(str(error)) from None
            self._compressed, self._in_frame = b"", True
            if self._frame.eof:
                self._compressed, self._frame, self._in_frame = self._frame.unused_data, self._decompressor(), False
        size = min(len(target), len(self._plain))
        target[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def close(self) -> None:
        self.fileobj.close()
        super().close()


def read_parts(
    sources: list[Source], start: Position = START, field: str | None = None, paths: Iterable[str] | None = None
) -> Iterator[Part]:
    """The parts of all sources in order, from the position where one begins.

    paths: where the sources are, from the first one read; by default their names.
    A damaged file is read up to the damage, which its last part describes.
    Raises DataError for a file that cannot be read.
    """
    before = sum(source.size for source in sources[: start.source])
    paths = [source.name for source in sources[start.source :]] if paths is None else paths
    for number, path in enumerate(paths, start.source):
        source = sources[number]
        offset = start.offset if number == start.source else 0
        parts = parquet_parts if source.kind == "parquet" else text_parts
        with errors_in(source.name):
            for part in parts(source, path, number, offset, field):
                yield part._replace(bytes_read=before + part.bytes_read)
        before += source.size


def text_parts(source: Source, path: str, number: int, offset: int, field: str | None) -> Iterator[Part]:
    """Plain text and JSON lines, from an offset in bytes.  Raises OSError."""
    with open_decompressed(path) as file:
        buffer, counts, damage, at_end = bytearray(), Counter(), "", False
        skip = offset  # bytes of earlier parts that must be read again
        if skip and file.seekable() and Path(path).suffix.lower() not in COMPRESSED:
            file.seek(skip)
            skip = 0
        while not at_end:
            piece, damage = read_piece(file)
            buffer += memoryview(piece)[skip:]
            skip -= min(skip, len(piece))
            at_end = len(piece) < READ_BYTES
            if at_end and skip:
                damage = damage or "it ends before the position that an earlier run had reached"
            if not offset and buffer[:2] in UTF16:
                buffer, damage, at_end = bytearray(), "it is UTF-16; convert it to UTF-8", True
            while end := end_of_part(buffer, source.kind, at_end):
                if end == NO_END:
                    end = split_document(buffer)
                    counts["documents cut, being longer than 16 MB"] += 1
                content = bytes(memoryview(buffer)[:end])
                del buffer[:end]
                offset += end
                yield Part(source.kind, content, Position(number, offset), disk_offset(file, offset), dict(counts))
                counts.clear()
        yield Part(source.kind, bytes(buffer), Position(number + 1), source.size, {}, damage)


def read_piece(file: BinaryIO) -> tuple[bytearray, str]:
    """-> the next READ_BYTES, fewer only at the end of the file or at damage; a description of the damage.

    How much of a damaged archive can be read depends on the sizes requested, so these never depend on the start.
    """
    piece, damage = bytearray(), ""
    try:
        while len(piece) < READ_BYTES and (more := file.read1(READ_BYTES - len(piece))):
            piece += more  # read() would lose the bytes before the damage
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        damage = str(error)
    except OSError as error:
        if error.errno is not None:
            raise
        damage = str(error)  # from gzip or bz2, not from the disk
    return piece, damage


def disk_offset(file: BinaryIO, offset: int) -> int:
    """The number of bytes read from disk, for the progress line; offset: of the decompressed bytes."""
    inner = getattr(file, "_fp", None) or getattr(file, "fileobj", None)  # of bz2 and lzma; of gzip
    inner = inner or getattr(getattr(file, "raw", None), "fileobj", None)  # of Zstandard
    try:
        return inner.tell() if inner else offset
    except (OSError, ValueError):
        return offset


def end_of_part(buffer: bytearray, kind: str, at_end: bool) -> int:
    """The first end of a document after PART_BYTES; NO_END if the document is too long; 0 if more must be read.

    The result does not depend on how far the buffer extends beyond it.
    """
    found = DOCUMENT_END[kind].search(buffer, PART_BYTES - 1, MAX_DOCUMENT_BYTES)
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


def parquet_parts(source: Source, path: str, number: int, offset: int, field: str | None) -> Iterator[Part]:
    """The text column of a Parquet file, from an offset in rows.  Raises OSError, DataError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{source.name} is a Parquet file. Run pip install pyarrow, or use JSON lines.") from None
    rows, row, size, counts, damage = [], 0, 0, Counter(), ""
    try:
        file = pyarrow.parquet.ParquetFile(path)
        wanted = [field] if field else FIELDS
        column = next((name for name in wanted if name in file.schema_arrow.names), None)
        if column is None:
            raise DataError(f"{source.name} has no column {' or '.join(wanted)}. Give the text column with --field.")
        for batch in file.iter_batches(1000, columns=[column]):
            for value in column_values(batch.column(0)):
                row += 1
                if row <= offset:
                    continue
                if isinstance(value, str):
                    rows.append(value)
                    size += len(value)
                else:
                    counts["rows without a text"] += 1
            if size >= PART_BYTES:
                bytes_read = source.size * row // file.metadata.num_rows
                yield Part(source.kind, rows, Position(number, row), bytes_read, dict(counts))
                rows, size = [], 0
                counts.clear()
    except pyarrow.ArrowException as error:
        damage = str(error).split("\n")[0][:200]
    yield Part(source.kind, rows, Position(number + 1), source.size, dict(counts), damage)


def column_values(column) -> list:
    """The values of a column of Parquet; None for those that are not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if len(column) == 1:
            return [None]
        return [value for i in range(len(column)) for value in column_values(column[i : i + 1])]
