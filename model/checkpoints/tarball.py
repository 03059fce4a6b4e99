"""Unpacks the archives that fairseq's models are published in: three files, and nothing else in them is trusted."""

import contextlib
import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data.formats import is_tar_header
from data.tokenizer import FILE_NAME

from ..config import ModelError

WEIGHTS = "model.pt"
WANTED = {WEIGHTS, FILE_NAME, "dict.txt"}
MAX_BYTES, MAX_MEMBERS = 20 * 10**9, 1000  # far above camembert-large in float32
MAX_RATIO, SMALL = 100, 10**8  # of its size and the archive's, of an archive of more bytes; weights hardly compress
TORCH = (b"PK", b"\x80")  # how torch.save's files begin
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

    folder: an empty temporary folder, which the caller removes, also after an error. The archive is read twice: nothing
    is written before all that it declares, and the first bytes of model.pt, have been checked.
    The headers are read one by one, in chunks: TarFile would load an extended header of any size into memory.
    Raises ModelError for a damaged or truncated archive, one that unpacks to too much, one with a link, a device, a
    name outside the archive or the same file twice, or without model.pt; for a folder without the space.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == GZIP
        with (gzip.open if is_packed else open)(path, "rb") as archive:
            sizes = read_members(archive, path, None)
        if WEIGHTS not in sizes:
            raise ModelError(f"{path} contains no {WEIGHTS}, as an archive of a fairseq model does.")
        needed, free = sum(sizes.values()), shutil.disk_usage(folder).free
        if needed > free:
            where = f"in {folder.parent}, where {free:,} are free"
            raise ModelError(f"{path} unpacks to {needed:,} bytes {where}. Free some space, or set TMPDIR.")
        with (gzip.open if is_packed else open)(path, "rb") as archive:
            read_members(archive, path, folder)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.HeaderError) as error:
        raise ModelError(f"{path} is damaged or truncated ({error}). Download it again.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be unpacked into {folder}: {error.strerror or error}.") from None
    return folder / WEIGHTS


def read_members(archive: BinaryIO, path: Path, folder: Path | None) -> dict[str, int]:
    """Checks all members, and unpacks the wanted ones if there is a folder -> their sizes by name.

    Raises ModelError, and the errors of reading a damaged archive.
    """
    found, left = {}, min(MAX_BYTES, max(SMALL, MAX_RATIO * path.stat().st_size))
    limit = left
    for _ in range(MAX_MEMBERS):
        member = next_member(archive, path)
        if member is None:
            copy(archive, left, None)  # to the end, where gzip checks its checksum
            return found
        left -= member.size
        if left < 0:
            raise ModelError(f"{path} would unpack to more than the limit of {limit:,} bytes.")
        name = PurePosixPath(member.name).name if member.type in FILES else ""
        if name in found:
            raise ModelError(f"{path} contains {name} twice. Unpack it, and convert the folder you want.")
        with (folder / name).open("xb") if folder and name in WANTED else contextlib.nullcontext() as target:
            start = archive.read(min(len(TORCH[0]), member.size)) if member.size else b""
            if name == WEIGHTS and not start.startswith(TORCH):
                raise ModelError(f"{path} contains a {WEIGHTS} that is no PyTorch file.")
            if target is not None:
                target.write(start)
            if len(start) + copy(archive, member.size - len(start), target) < member.size:
                raise EOFError("it ends within a file")
        if name in WANTED:
            found[name] = member.size
        copy(archive, -member.size % tarfile.BLOCKSIZE, None)
    raise ModelError(f"{path} contains more than {MAX_MEMBERS} files: it is not the archive of a model.")


def next_member(archive: BinaryIO, path: Path) -> tarfile.TarInfo | None:
    """The next header, None at the end.  Raises ModelError for an unsafe member, HeaderError, EOFError."""
    block = archive.read(tarfile.BLOCKSIZE)
    if block == bytes(tarfile.BLOCKSIZE):
        return None
    if len(block) == tarfile.BLOCKSIZE and archive.tell() == len(block) and not is_tar_header(block):
        raise ModelError(
            f"{path} is damaged or truncated, or no tar archive. If it is one compressed file, run gunzip on it first."
        )
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
