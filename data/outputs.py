"""Writes files under their own names only, never through a link that has the name of an output.

A link at a file's name, symbolic or hard, is replaced by a file: what it leads to stays as it is. A link at the name of
a folder inside an output folder is refused. The output folder itself, which the user names, may be a link.
"""

import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from .cli import DataError


def new_file(path: Path) -> BinaryIO:
    """Opens an empty file, in the place of any file or link of this name.  Raises OSError."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file completely, or not at all.  Raises OSError."""
    partial = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.partial")  # of two processes, each its own
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def open_to_append(path: Path) -> BinaryIO:
    """Opens a file at its end; a link of this name is replaced by a copy of its file first.  Raises OSError."""
    if os.path.lexists(path) and not is_own_file(path):
        write_file(path, path.read_bytes() if path.is_file() else b"")
    return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "ab")


def is_own_file(path: Path) -> bool:
    """Whether this is a plain file without another name, so that it can be written in place."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def make_folder(path: Path) -> None:
    """Makes a folder inside an output folder.  Raises DataError for a link of this name, OSError."""
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)


def check_folder(path: Path) -> None:
    """Raises DataError for a link at the name of a folder inside an output folder."""
    if path.is_symlink():
        cure = "Remove the link; the output folder itself may be one"
        raise DataError(f"{path} is a symbolic link, through which nothing is written. {cure}.")


def remove_tree(path: Path) -> None:
    """Removes a folder with all in it, or a link to one, but not what that leads to; no error if it cannot."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
