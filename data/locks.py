"""One process at a time in an output folder: a lock that the kernel holds, so that it dies with its process."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .cli import DataError, OptionError, note, warn

LOCK = ".lock"  # in the folder, while it is locked: host and process id of the holder, for messages
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems
POLL = 0.5  # seconds
LOOK = 0.001  # seconds, until another process has looked at the lock
WAIT_HELP = "wait while another process writes to --out, instead of failing"


@contextlib.contextmanager
def own(out: Path, wait: bool) -> Iterator[None]:
    """Makes an output folder and holds its lock during the block, so that two commands cannot write there.

    wait: for the end of the command that holds it. Raises OptionError if the folder cannot be written, DataError if
    another command is in it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OptionError(f"--out {out} cannot be written: {error.strerror}.") from None
    with locked(out, wait):
        yield


@contextlib.contextmanager
def locked(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of an existing folder during the block.

    wait: whether to wait while another process holds it.  Raises DataError, naming that process, otherwise.
    """
    path = Path(folder) / LOCK
    handle = take(path, wait)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without them
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written any more
            if is_at(handle, path):  # not if the folder was moved meanwhile, and another is in its place
                path.unlink()  # before it is released: take() notices that its file has lost its name
        os.close(handle)


def take(path: Path, wait: bool) -> int:
    """-> the handle of the locked file.  Raises DataError if another process holds it, unless it is to wait."""
    waiting = False
    while True:
        with contextlib.ExitStack() as stack:
            if path.is_symlink():
                raise DataError(f"{path} is a symbolic link. Remove it: it would be written through.")
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            stack.callback(os.close, handle)
            if not lock(handle, path):
                said = f"{path.parent} is in use by another process{holder(handle)}."
                if not wait:
                    raise DataError(f"{said} Wait for its end, also with --wait, or choose another folder.")
                if not waiting:
                    note(f"{said} Waiting for its end.")
                waiting = True
                time.sleep(POLL)
            elif is_at(handle, path):
                if os.fstat(handle).st_nlink > 1:  # a hard link: the file has another name, and stays as it is
                    path.unlink()
                    continue
                stack.pop_all()
                return handle


def lock(handle: int, path: Path) -> bool:
    """Whether this process now holds the lock.  Warns where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return is_only_looked_at(handle) and lock(handle, path)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            error.filename = str(path)
            raise
        warn(f"the file system of {path.parent} has no locks: take care that only one process writes there.")
    return True


def is_only_looked_at(handle: int) -> bool:
    """Whether nobody holds the lock but those who look, as holder_of does, which is over in an instant."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(handle, fcntl.LOCK_UN)
    time.sleep(LOOK)
    return True


def holder_of(folder: str | Path) -> str | None:
    """The process in a folder, as holder() says it; None if there is none, or where the file system has no locks.

    Looks with a shared lock, released at once, for which a process that starts at that moment waits. Raises OSError.
    """
    try:
        handle = os.open(Path(folder) / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return holder(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    finally:
        os.close(handle)


def is_at(handle: int, path: Path) -> bool:
    """Whether the open file still has its name, which the holder before may have removed."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def holder(handle: int) -> str:
    """(host …, process …), or nothing while the holder has not written it yet."""
    try:
        values = json.loads(os.pread(handle, 1000, 0))
        return f" (host {values['host']}, process {int(values['pid'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
