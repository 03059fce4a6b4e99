"""One process at a time in a folder: refused with host and process id, or waited for; the lock dies with its holder."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from data import DataError
from data.locks import LOCK, holder_of, locked
from tests.helpers import REPOSITORY

HOLD = """
import sys, time
from data.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_host_and_process_until_the_first_is_killed(tmp_path, other):
    found = rf"in use by another process \(host {socket.gethostname()}, process {other.pid}\)\. Wait for its end"
    for _ in range(2):
        with pytest.raises(DataError, match=found), locked(tmp_path):
            pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    assert not list(tmp_path.iterdir())


def test_waiting_ends_when_the_other_process_does(tmp_path, other, capsys):
    threading.Timer(0.5, other.kill).start()
    begun = time.monotonic()
    with locked(tmp_path, wait=True):
        assert time.monotonic() - begun > 0.4
    assert f"process {other.pid}). Waiting for its end.\n" in capsys.readouterr().err


def test_a_lock_whose_file_is_removed_by_its_holder_is_taken_again(tmp_path):
    """Of several that wait, each gets it once."""
    inside, most, done = [], [], []

    def work():
        with locked(tmp_path, wait=True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert max(most) == 1 and len(done) == 4 and not list(tmp_path.iterdir())


def test_the_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="of the block"), locked(tmp_path):
        raise ValueError("of the block")
    with locked(tmp_path):
        pass


def test_a_link_at_the_locks_name_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(DataError, match="is a symbolic link. Remove it"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "text"


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys):
    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path):
        assert "has no locks" in capsys.readouterr().err


def test_who_holds_the_lock(tmp_path, other):
    for _ in range(2):
        assert holder_of(tmp_path) == f" (host {socket.gethostname()}, process {other.pid})"
    other.kill()
    other.wait()
    assert holder_of(tmp_path) is None and (tmp_path / LOCK).exists()


def test_looking_makes_and_follows_no_file(tmp_path):
    assert holder_of(tmp_path) is None and not list(tmp_path.iterdir())
    (tmp_path / LOCK).symlink_to("elsewhere")
    with pytest.raises(OSError):
        holder_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / LOCK).unlink()
    (tmp_path / "pipe").rename(tmp_path / LOCK)
    assert holder_of(tmp_path) is None  # does not wait for a writer


def test_a_process_that_starts_while_another_looks_is_not_refused(tmp_path):
    (tmp_path / LOCK).touch()
    looking = os.open(tmp_path / LOCK, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.05, os.close, [looking]).start()
    with locked(tmp_path):
        assert holder_of(tmp_path) == f" (host {socket.gethostname()}, process {os.getpid()})"


def test_those_who_start_and_those_who_look_at_once(tmp_path):
    """Each of those that start gets the lock or is refused by another that has it, never by one that looks."""
    stop, got, refused = threading.Event(), [], []

    def look():
        while not stop.is_set():
            holder_of(tmp_path)

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for thread in watchers:
        thread.start()
    for _ in range(100):
        try:
            with locked(tmp_path):
                got.append(1)
        except DataError as error:
            refused.append(str(error))
    stop.set()
    for thread in watchers:
        thread.join()
    assert (len(got), refused) == (100, [])


def test_looking_where_there_are_no_locks(tmp_path, monkeypatch):
    (tmp_path / LOCK).touch()
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
    assert holder_of(tmp_path) is None


def test_a_file_with_another_name_is_not_written_and_the_lock_holds(tmp_path):
    (tmp_path / "precious").write_text("text")
    os.link(tmp_path / "precious", tmp_path / LOCK)
    with locked(tmp_path):
        assert (tmp_path / LOCK).stat().st_nlink == 1
        with pytest.raises(DataError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_text() == "text"


def test_a_process_whose_folder_was_moved_leaves_the_lock_of_the_next_one(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    with contextlib.ExitStack() as next_one:
        with locked(folder):
            folder.rename(tmp_path / "moved")
            folder.mkdir()
            next_one.enter_context(locked(folder))
        assert (folder / LOCK).exists()
        with pytest.raises(DataError, match="in use"), locked(folder):
            pass


def test_an_error_of_the_file_system_names_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError) as raised, locked(tmp_path):
        pass
    assert raised.value.filename == str(tmp_path / LOCK)
