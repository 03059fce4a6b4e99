"""The archive that fairseq's models come in, of which three files are unpacked and nothing is believed."""

import contextlib
import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..config import ModelError

WEIGHTS = "model.pt"
WANTED = {WEIGHTS, "sentencepiece.bpe.model", "dict.txt"}
MOST_BYTES, MOST_MEMBERS = 20 * 10**9, 1000  # far above camembert-large in float32
GZIP, CHUNK = b"\x1f\x8b", 1 << 20
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
NOTES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def is_tarball(path: Path) -> bool:
    """Whether a path is a file that starts as a .tar or .tar.gz does."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(tarfile.BLOCKSIZE)
    except OSError:  # whoever reads it next says why that cannot be done
        return False
    return start.startswith(GZIP) or start[257:262] == b"ustar"


def open_tarball(path: Path, folder: Path) -> Path:
    """Unpack model.pt, and sentencepiece.bpe.model and dict.txt where they are, into a folder -> its model.pt.

    folder: an empty, temporary one of the caller's, who removes it, after an error too. A member is taken by the
    last part of its name. The headers are read here one by one, for TarFile holds an extended header in memory
    whatever size it states; here they are passed over, and memory stays flat.
    Raises ModelError for a damaged or cut archive, one that unpacks to too much, holds a link or device, a name
    that leads out of it, one of the files twice, or no model.pt.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == GZIP
        with (gzip.open if is_packed else open)(path, "rb") as archive:
            found = unpack(archive, folder, path)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.HeaderError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}). Fetch it anew.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be unpacked into {folder}: {error.strerror or error}.") from None
    if WEIGHTS not in found:
        raise ModelError(f"{path} holds no {WEIGHTS}, as a model of fairseq's does.")
    return folder / WEIGHTS


def unpack(archive: BinaryIO, folder: Path, path: Path) -> set[str]:
    """-> which of the files were there.  Raises ModelError, and what reading a damaged archive raises."""
    found, left = set(), MOST_BYTES
    for _ in range(MOST_MEMBERS):
        member = next_member(archive, path)
        if member is None:
            copy(archive, left, None)  # to the end, for gzip checks its sum after the last byte
            return found
        left -= member.size
        free = shutil.disk_usage(folder).free
        if left < 0 or member.size > free:
            room = min(MOST_BYTES, free)
            raise ModelError(f"{path} would unpack to more than {room:,} bytes, which is all the room that it gets.")
        name = PurePosixPath(member.name).name if member.type in FILES else ""
        if name in found:
            raise ModelError(f"{path} holds two files {name}. Unpack it, and convert the folder that you mean.")
        with (folder / name).open("xb") if name in WANTED else contextlib.nullcontext() as target:
            if copy(archive, member.size, target) < member.size:
                raise EOFError("it ends within a file")
        found |= {name} & WANTED
        copy(archive, -member.size % tarfile.BLOCKSIZE, None)
    raise ModelError(f"{path} holds more than {MOST_MEMBERS} files: it is no model's.")


def next_member(archive: BinaryIO, path: Path) -> tarfile.TarInfo | None:
    """The next header, None at the end.  Raises ModelError for what no model's archive holds, HeaderError, EOFError."""
    block = archive.read(tarfile.BLOCKSIZE)
    if block == bytes(tarfile.BLOCKSIZE):
        return None
    member = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    name = member.name[:200]
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise ModelError(f"{path} holds {name!r}, a name that leads out of the archive: it is not to be trusted.")
    if member.type not in (*FILES, *NOTES, tarfile.DIRTYPE):
        raise ModelError(f"{path} holds {name!r}, a link, device or part of a file: only plain files are unpacked.")
    if member.size < 0 or (member.isdir() and member.size):
        raise ModelError(f"{path} is damaged: it states a size of {member.size} for {name!r}.")
    return member


def copy(archive: BinaryIO, most: int, target: BinaryIO | None) -> int:
    """The next bytes, at most so many, to a file or nowhere -> how many there were."""
    done = 0
    while done < most and (chunk := archive.read(min(most - done, CHUNK))):
        if target is not None:
            target.write(chunk)
        done += len(chunk)
    return done
