"""Unpacks the archives that fairseq's models are published in: three files, and nothing else in them is trusted."""

import contextlib
import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data.tokenizer import FILE_NAME

from ..config import ModelError

WEIGHTS = "model.pt"
WANTED = {WEIGHTS, FILE_NAME, "dict.txt"}
MAX_BYTES, MAX_MEMBERS = 20 * 10**9, 1000  # far above camembert-large in float32
GZIP, CHUNK = b"\x1f\x8b", 1 << 20
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
EXTENDED_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def is_tarball(path: Path) -> bool:
    """Whether a path is a file that starts like a .tar or .tar.gz."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(tarfile.BLOCKSIZE)
    except OSError:  # check_file reports it
        return False
    return start.startswith(GZIP) or start[257:262] == b"ustar"


def open_tarball(path: Path, folder: Path) -> Path:
    """Unpacks model.pt, sentencepiece.bpe.model and dict.txt, from any folder of the archive -> the path of model.pt.

    folder: an empty temporary folder, which the caller removes, also after an error.
    The headers are read one by one, in chunks: TarFile would load an extended header of any size into memory.
    Raises ModelError for a damaged or truncated archive, one that unpacks to too much, one with a link, a device, a
    name outside the archive or the same file twice, or without model.pt.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == GZIP
        with (gzip.open if is_packed else open)(path, "rb") as archive:
            found = unpack(archive, folder, path)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.HeaderError) as error:
        raise ModelError(f"{path} is damaged or truncated ({error}). Download it again.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be unpacked into {folder}: {error.strerror or error}.") from None
    if WEIGHTS not in found:
        raise ModelError(f"{path} contains no {WEIGHTS}, as an archive of a fairseq model does.")
    return folder / WEIGHTS


def unpack(archive: BinaryIO, folder: Path, path: Path) -> set[str]:
    """-> the names of the files unpacked.  Raises ModelError, and the errors of reading a damaged archive."""
    found, left = set(), MAX_BYTES
    for _ in range(MAX_MEMBERS):
        member = next_member(archive, path)
        if member is None:
            copy(archive, left, None)  # to the end, where gzip checks its checksum
            return found
        left -= member.size
        free = shutil.disk_usage(folder).free
        if left < 0 or member.size > free:
            raise ModelError(f"{path} would unpack to more than the limit of {min(MAX_BYTES, free):,} bytes.")
        name = PurePosixPath(member.name).name if member.type in FILES else ""
        if name in found:
            raise ModelError(f"{path} contains {name} twice. Unpack it, and convert the folder you want.")
        with (folder / name).open("xb") if name in WANTED else contextlib.nullcontext() as target:
            if copy(archive, member.size, target) < member.size:
                raise EOFError("it ends within a file")
        found |= {name} & WANTED
        copy(archive, -member.size % tarfile.BLOCKSIZE, None)
    raise ModelError(f"{path} contains more than {MAX_MEMBERS} files: it is not the archive of a model.")


def next_member(archive: BinaryIO, path: Path) -> tarfile.TarInfo | None:
    """The next header, None at the end.  Raises ModelError for an unsafe member, HeaderError, EOFError."""
    block = archive.read(tarfile.BLOCKSIZE)
    if block == bytes(tarfile.BLOCKSIZE):
        return None
    member = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    name = member.name[:200]
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise ModelError(f"{path} contains {name!r}, a path outside the archive, and was refused.")
    if member.type not in (*FILES, *EXTENDED_HEADERS, tarfile.DIRTYPE):
        raise ModelError(f"{path} contains {name!r}, a link, device or partial file: only plain files are unpacked.")
    if member.size < 0 or (member.isdir() and member.size):
        raise ModelError(f"{path} is damaged: it has a size of {member.size} for {name!r}.")
    return member


def copy(archive: BinaryIO, size: int, target: BinaryIO | None) -> int:
    """Copies up to `size` bytes to a file, or skips them -> the number of bytes read."""
    done = 0
    while done < size and (chunk := archive.read(min(size - done, CHUNK))):
        if target is not None:
            target.write(chunk)
        done += len(chunk)
    return done
