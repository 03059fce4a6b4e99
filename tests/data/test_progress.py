"""The line of progress: what is done, how fast, and how long it still takes."""

import io
import sys

import pytest

from data import cli as progress
from data.cli import Progress


@pytest.fixture
def clock(monkeypatch):
    """A list whose last number is the time."""
    times = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[-1])
    return times


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_time_left_is_what_the_speed_says(capsys, clock):
    line = Progress("model.safetensors", 445_000_000)
    clock.append(1040.0)
    line.show(100_000_000)
    assert capsys.readouterr().err == "model.safetensors  100.0 of 445.0 MB  22 %  2.5 MB/s  2:18 left\n"


def test_the_speed_is_that_of_this_run_alone(capsys, clock):
    line = Progress("x", 100_000_000, 60_000_000)
    clock.append(1010.0)
    line.show(80_000_000)
    assert capsys.readouterr().err == "x  80.0 of 100.0 MB  80 %  2.0 MB/s  0:10 left\n"


def test_where_nobody_knows_the_size_nothing_is_said_of_it(capsys, clock):
    line = Progress("x", 0)
    clock.append(1010.0)
    line.show(80_000_000)
    assert capsys.readouterr().err == "x  80.0 MB  8.0 MB/s\n"


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(capsys, clock):
    line = Progress("x", 10_000_000)
    for second in range(10):
        clock.append(1000.0 + second)
        line.show(second * 1_000_000)
    line.show(10_000_000)
    line.close()
    said = capsys.readouterr().err.splitlines()
    assert [part.split("  ")[1] for part in said] == ["6.0 of 10.0 MB", "10.0 of 10.0 MB"]


def test_a_terminal_gets_one_line_that_replaces_itself(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    line = Progress("a-name-that-is-longer-than-the-line-is-wide", 10_000_000)
    for second in (0.0, 0.1, 0.3, 0.4, 0.6):
        clock.append(1000.0 + second)
        line.show(1_000_000)
    line.close()
    said = sys.stderr.getvalue()
    assert said.count("\r") == 2 and said.count("\n") == 1 and said.endswith("\n")
    assert all(len(shown.rstrip("\n")) == 39 for shown in said.split("\r")[1:])


def test_nothing_done_yet_divides_by_nothing(capsys, clock):
    Progress("x", 5).show(5)
    line = Progress("x", 1_000_000_000)
    clock.append(1006.0)
    line.show(0)
    assert "0 %  0.0 MB/s" in capsys.readouterr().err
