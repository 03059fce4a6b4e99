"""Output in any locale, closed, or read by nobody."""

import io
import json
import os
import subprocess
import sys

import pytest

from data.streams import Unread, print_json, set_up_streams
from tests.helpers import REPOSITORY

TEXT = "élève → 3 × 4 … ‖x‖ œuvre Σ 日 caf\udce9"
ASCII = r"eleve -> 3 x 4 ... ||x|| oeuvre sum \u65e5 caf\udce9"
ENCODED = {  # what a terminal of this encoding shows
    "ascii": ASCII,
    "latin-1": ASCII.replace("eleve", "élève").replace(" x 4", " × 4"),
    "cp1252": r"élève -> 3 × 4 … ||x|| œuvre sum \u65e5 caf\udce9",
    "utf-8": TEXT.replace("\udce9", r"\udce9"),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_what_an_encoding_lacks_is_respelled(monkeypatch, encoding):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding, "strict"))
    set_up_streams()
    for stream in (sys.stdout, sys.stderr):
        print(TEXT, file=stream, end="", flush=True)
        assert stream.encoding == encoding and stream.buffer.getvalue().decode(encoding) == ENCODED[encoding]


@pytest.mark.parametrize("encoding", [*ENCODED, "UTF8"])
def test_json_lines_lose_nothing_in_any_encoding(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    set_up_streams()
    values = {"text": "élève œ 日 🙂", "é": 1}
    print_json(values)
    sys.stdout.flush()
    line = sys.stdout.buffer.getvalue().decode("utf-8")  # of which ASCII is a part
    assert json.loads(line) == values and ("é" in line) == encoding.lower().startswith("utf")


def test_closed_streams_are_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    set_up_streams()
    print("é", file=sys.stdout, flush=True)
    print("é", file=sys.stderr, flush=True)


def test_a_stream_that_nobody_reads_goes_on():
    read, write = os.pipe()
    os.close(read)
    with Unread(write, "w") as stream:
        assert stream.write(b"lost") == stream.write(b"too!") == 4


COMMAND = """
import sys
from data.cli import run_command, say, warn
def main():
    sys.stdin.read()
    for _ in range(9): say("é →"); warn("é →")
    open(sys.argv[1], "w").close()
run_command("é", main)
"""
CASES = {  # the shell's redirection -> what is read
    "2>&1 | true": "",
    ">&- 2>&-": "",
    "> /dev/full 2> /dev/full": "",
    "2>&1 | head -n 2": "\u00e9 ->\nwarning: \u00e9 ->\n",
}


@pytest.mark.parametrize("redirection", CASES)
def test_work_continues_whatever_happens_to_its_output(tmp_path, redirection):
    """In an ISO-8859-1 terminal: its é is one byte, and → is not in it."""
    command = f'(sleep 0.2 | "$0" -c "$1" "$2") {redirection}'
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(REPOSITORY)}
    words = ["bash", "-c", command, sys.executable, COMMAND, str(tmp_path / "done")]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert (result.stdout.decode("latin-1"), result.stderr) == (CASES[redirection], b"")
    assert (tmp_path / "done").exists()
