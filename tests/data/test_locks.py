"""One process at a time in a folder: refused with host and process id, or waited for; the lock dies with its holder."""

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
from data.locks import LOCK, locked
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
