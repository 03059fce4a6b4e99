"""Opens a file, or the files in an archive: decompressed, unpacked, UTF-16 as UTF-8, whatever their names are.

A member's name is only a label: nothing is unpacked to disk under it. Memory is bounded, whatever sizes an archive
states. Formats that need random access are copied to an unnamed temporary file of at most SPOOL_BYTES if they come from
a stream (a zip in a pipe, Parquet in a tar).
"""

import bz2
import codecs
import contextlib
import errno
import gzip
import io
import lzma
import re
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from .cli import MB, DataError
from .formats import (
    BOOK,
    BZIP2,
    COMPRESSED,
    DEEP,
    ENCODINGS,
    ENCRYPTED,
    GZIP,
    NUMPY,
    OFFICE,
    RARE_ZIP,
    SAMPLE_BYTES,
    TAR,
    TORCH,
    XZ,
    ZIP,
    form_of,
)

CHUNK = 1 << 16
SPOOL_BYTES = 8 << 30
MAX_RATIO, SMALL = 100, 10**8  # of a copied stream to its compressed bytes, if it has more bytes than SMALL
MAX_LAYERS = 6  # of archives and compressions in one another
MAX_HEADER = 1 << 20  # bytes of an extended tar header
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.HeaderError)
TAR_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class Member(NamedTuple):
    """A file, or one of the files in an archive."""

    name: str  # for an archive's: archive/member
    layers: tuple[str, ...]  # the forms around it, outermost first
    form: str  # of formats.py: never a compression, archive or encoding
    stream: "Stream"  # its bytes; UTF-8 if they are text. To be read before the next member

    @property
    def archives(self) -> list[int]:
        """Which of the layers are archives."""
        return [index for index, layer in enumerate(self.layers) if layer in (TAR, ZIP)]

    @property
    def own_layers(self) -> tuple[str, ...]:
        """The layers inside the innermost archive: those that the member's own name speaks of."""
        return self.layers[max(self.archives, default=-1) + 1 :]


class Stream(io.BufferedIOBase):
    """A binary stream whose first bytes can be looked at.

    Damage (a truncated archive, a wrong checksum) is one of DAMAGE; read1() raises it after all bytes before it.
    """

    def __init__(self, source, size: int = 0, packed: Callable[[], int] | None = None):
        """source: anything with read1(). size: in bytes, as an archive declares it; 0 if unknown.
        packed: the compressed bytes that were read for it so far, None if it is not compressed.
        """
        self.source, self.size, self.packed, self.taken = source, size, packed, 0
        self.head, self.damage = bytearray(), None

    def readable(self) -> bool:
        return True

    def peek(self, size: int = SAMPLE_BYTES) -> bytes:
        """The next bytes, fewer than `size` only before the end or damage."""
        while len(self.head) < size and (more := self._next(size - len(self.head))):
            self.head += more
        return bytes(self.head[:size])

    def read1(self, size: int = -1) -> bytes:
        if self.head:
            size = len(self.head) if size < 0 else size
            taken = bytes(self.head[:size])
            del self.head[:size]
            return taken
        taken = self._next(CHUNK if size < 0 else size)
        if not taken and size and self.damage:
            raise self.damage
        return taken

    def read(self, size: int | None = -1) -> bytes:
        """As many bytes, fewer only at the end; damage before is raised."""
        pieces, left = [], float("inf") if size is None or size < 0 else size
        while left and (more := self.read1(int(min(left, CHUNK)))):
            pieces.append(more)
            left -= len(more)
        return b"".join(pieces)

    def _next(self, size: int) -> bytes:
        """At most `size` bytes; none at the end or at damage, which is kept."""
        if self.damage is None:
            try:
                found = self.source.read1(size)
                self.taken += len(found)
                return found
            except DAMAGE as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # from the disk
                self.damage = error
        return b""


def open_members(file: BinaryIO, name: str) -> Iterator[Member]:
    """The file itself, or the files in it if it is an archive, in a fixed order; no folders, links and hidden files.

    file: at its beginning; it need not be seekable. name: for labels and messages.
    A member may have a form in REFUSED: the caller refuses or skips it. Raises OSError, and DataError for a package
    that is missing.
    """
    yield from unwrapped(Stream(file), name, ())


def unwrapped(stream: Stream, name: str, layers: tuple[str, ...]) -> Iterator[Member]:
    form = form_of(stream.peek())
    if form not in (*COMPRESSED, *ENCODINGS, TAR, ZIP):
        yield Member(name, layers, form, stream)
    elif len(layers) == MAX_LAYERS:
        yield Member(name, layers, DEEP, stream)
    elif form == TAR:
        for member, content in tar_members(stream):
            yield from unwrapped(Stream(content, content.left), f"{name}/{printable(member)}", (*layers, form))
    elif form == ZIP:
        yield from zip_members(stream, name, layers)
    else:
        packed = None if form in ENCODINGS else lambda: stream.taken
        yield from unwrapped(Stream(inner_stream(stream, form, name), packed=packed), name, (*layers, form))


def inner_stream(stream: Stream, form: str, name: str):
    """What a compression or an encoding holds.  Raises DataError if a package is missing."""
    if form in ENCODINGS:
        return Transcoded(stream, form)
    if form == GZIP:
        return gzip.GzipFile(fileobj=stream)
    return {BZIP2: bz2.BZ2File, XZ: lzma.LZMAFile}[form](stream) if form in (BZIP2, XZ) else Zstandard(stream, name)


class Zstandard:
    """The decompressed bytes of all frames of a stream.  Raises DataError if the package is missing."""

    def __init__(self, stream: Stream, name: str):
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{name} is compressed: run pip install zstandard, or decompress it.") from None
        self._error, self._decompressor = zstandard.ZstdError, zstandard.ZstdDecompressor().decompressobj
        self._stream, self._frame, self._in_frame, self._rest = stream, self._decompressor(), False, b""
        self._plain = b""

    def read1(self, size: int) -> bytes:
        """Raises EOFError for a truncated or damaged frame; zstandard's own reader ends without an error."""
        while not self._plain:
            compressed = self._rest or self._stream.read(1 << 10)  # may decompress to 32 MB
            if not compressed:
                if self._in_frame:
                    raise EOFError("a frame is truncated")
                return b""
            try:
                self._plain = self._frame.decompress(compressed)
            except self._error as error:
                raise EOFError(str(error)) from None
            self._rest, self._in_frame = b"", True
            if self._frame.eof:
                self._rest, self._frame, self._in_frame = self._frame.unused_data, self._decompressor(), False
        taken, self._plain = self._plain[:size], self._plain[size:]
        return taken


class Transcoded:
    """Text of another encoding as UTF-8, without its byte order mark; what is not text in it becomes U+FFFD."""

    def __init__(self, stream: Stream, encoding: str):
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)("replace")
        self._is_first, self._utf8 = True, b""

    def read1(self, size: int) -> bytes:
        while not self._utf8:
            encoded = self._stream.read1(CHUNK)
            text = self._decoder.decode(encoded, final=not encoded)
            if text and self._is_first:
                text, self._is_first = text.removeprefix("\ufeff"), False
            if not encoded and not text:
                return b""
            self._utf8 = text.encode("utf-8", "replace")
        taken, self._utf8 = self._utf8[:size], self._utf8[size:]
        return taken


# ---- archives --------------------------------------------------------------------------------------------------


class Span:
    """The next `size` bytes of a stream.  Raises EOFError if it ends before."""

    def __init__(self, stream: Stream, size: int):
        self._stream, self.left = stream, size

    def read1(self, size: int) -> bytes:
        taken = self._stream.read1(min(size, self.left)) if self.left else b""
        if self.left and size and not taken:
            raise EOFError("it ends within a member")
        self.left -= len(taken)
        return taken


def tar_members(stream: Stream) -> Iterator[tuple[str, Span]]:
    """-> name and content of each file, in order.

    The headers are read one by one: TarFile keeps all members in memory, and loads an extended header of any size.
    """
    long_name, long_size = None, None
    while (block := stream.read(tarfile.BLOCKSIZE)).strip(b"\0"):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        extended = header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
        size = header.size if extended or long_size is None else long_size
        if size < 0:
            raise tarfile.HeaderError("a member has a negative size")
        content = Span(stream, size)
        if extended:
            if size > MAX_HEADER:
                raise tarfile.HeaderError("an extended header is too large")
            record = read_all(content)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = record.rstrip(b"\0").decode("utf-8", "replace")
            else:
                values = dict(re.findall(rb"\d+ (path|size)=([^\n]*)\n", record))
                long_name = values[b"path"].decode("utf-8", "replace") if b"path" in values else long_name
                long_size = int(values[b"size"]) if values.get(b"size", b"").isdigit() else long_size
        else:
            name = long_name or header.name
            if header.type in TAR_FILES and not name.endswith("/") and not is_hidden(name):
                yield name, content
            long_name, long_size = None, None
        while content.left and content.read1(CHUNK):
            pass
        padding = Span(stream, -size % tarfile.BLOCKSIZE)
        while padding.left and padding.read1(CHUNK):
            pass


def read_all(span: Span) -> bytes:
    return b"".join(iter(lambda: span.read1(CHUNK), b""))


def zip_members(stream: Stream, name: str, layers: tuple[str, ...]) -> Iterator[Member]:
    with random_access(stream, name) as file:
        with zip_errors():
            archive = zipfile.ZipFile(file)
        if form := zip_document(archive.namelist()):
            yield Member(name, layers, form, stream)
            return
        for info in archive.infolist():
            if info.is_dir() or is_hidden(info.filename) or (info.external_attr >> 28) == 0xA:  # a symbolic link
                continue
            label = f"{name}/{printable(info.filename)}"
            if info.flag_bits & 1:
                yield Member(label, (*layers, ZIP), ENCRYPTED, stream)
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile would fill the memory
                yield Member(label, (*layers, ZIP), RARE_ZIP, stream)
            else:
                with zip_errors():
                    content = archive.open(info)
                found = Stream(content, info.file_size, packed=lambda size=info.compress_size: size)
                yield from unwrapped(found, label, (*layers, ZIP))


@contextlib.contextmanager
def zip_errors() -> Iterator[None]:
    """Raises BadZipFile for all that zipfile raises for wrong headers."""
    try:
        yield
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a negative offset
            raise
        raise zipfile.BadZipFile(str(error)) from None
    except (ValueError, NotImplementedError, RuntimeError, OverflowError, struct.error) as error:
        raise zipfile.BadZipFile(str(error)) from None


def zip_document(names: list[str]) -> str | None:
    """The form of a zip archive that is a file of another kind."""
    if "[Content_Types].xml" in names:
        return OFFICE
    if "mimetype" in names[:1]:
        return BOOK
    if any(name.endswith("/data.pkl") for name in names):
        return TORCH
    return NUMPY if names and all(name.endswith(".npy") for name in names) else None


def is_hidden(name: str) -> bool:
    """Whether a member, or a folder above it, is hidden, or one of those that macOS adds."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def printable(name: str) -> str:
    """A member's name for messages: short, and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[-200:])


@contextlib.contextmanager
def random_access(stream: Stream, name: str) -> Iterator[BinaryIO]:
    """The stream's bytes as a file that can be read at any place: the file itself, or a copy of a stream.

    stream: at its beginning. Raises DataError above SPOOL_BYTES or the free space, where possible before anything is
    written, and for what unpacks to more than MAX_RATIO times its size: Parquet and zip archives hardly compress.
    """
    if isinstance(stream.source, io.BufferedReader) and stream.source.seekable():
        stream.source.seek(0)
        yield stream.source
        return
    place = tempfile.gettempdir()
    limit = min(SPOOL_BYTES, shutil.disk_usage(place).free)
    too_large = (
        f"{name} is too large to be read from a stream or an archive: {limit / MB:,.1f} MB can be copied to {place}"
    )
    with tempfile.TemporaryFile() as copy:
        while chunk := stream.read1(CHUNK):
            if max(stream.size, copy.tell() + len(chunk)) > limit:
                raise DataError(f"{too_large}. Unpack it first.")
            if stream.packed and max(stream.size, copy.tell()) > max(SMALL, MAX_RATIO * stream.packed()):
                raise DataError(
                    f"{name} unpacks to more than {MAX_RATIO} times its size. Unpack it first, if you trust it."
                )
            copy.write(chunk)
        copy.seek(0)
        yield copy
