"""What a person sees while a run goes on: bar or lines, by steps and by time, and that a slow step is alive."""

import io
import os
import sys
import time
from types import SimpleNamespace

import pytest

from model.training import screen
from model.training.log import MetricsLogger
from model.training.screen import PlainBar, Screen, duration, open_bar
from model.training.state import TrainState


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Closed(Terminal):
    def write(self, text):
        raise OSError(5, "Input/output error")


def terminal(monkeypatch):
    """Makes standard output and error terminals -> both. (What a fixture sets, pytest's capture sets back.)"""
    streams = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    return streams


@pytest.fixture
def without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)


@pytest.fixture
def clock(monkeypatch):
    """Of the main thread; a list whose only element is the time."""
    now = [1000.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    return now


def three_steps(step=0, steps=300):
    shown = Screen(steps, step)
    shown.start()
    for number in range(step + 1, step + 4):
        shown.complete(number)
        shown.show(f"step {number} with its losses", f"loss {number}.5", is_odd=False)
    shown.line("a validation")
    shown.close()
    return shown


def test_a_long_duration_has_days():
    assert duration(19 * 86400 + 3 * 3600 + 4 * 60 + 5) == "19 d 03:04:05"


def test_on_a_terminal_a_bar_and_a_line_for_each_validation(monkeypatch):
    pytest.importorskip("tqdm")
    streams = terminal(monkeypatch)
    three_steps(step=100)
    out, err = (stream.getvalue() for stream in streams)
    assert out == "a validation\n" and "103/300" in err and "loss 103.5" in err and "\n" not in err[:-1]


def test_before_the_first_step_there_is_no_bar(monkeypatch):
    """What is printed then would be beside it."""
    _, stderr = terminal(monkeypatch)
    shown = Screen(300, 0)
    shown.begin("the timing of a step")
    shown.line("the validation before the first step")
    shown.close()
    assert stderr.getvalue() == ""


def test_without_tqdm_a_plain_bar(monkeypatch, without_tqdm):
    streams = terminal(monkeypatch)
    assert isinstance(three_steps(step=100).bar, PlainBar)
    out, err = (stream.getvalue() for stream in streams)
    assert out == "a validation\n" and " 34%  103/300, 00:00:00<00:00:00, loss 103.5" in err
    assert err.endswith("\n") and "\n" not in err[:-1]


def test_the_plain_bar_fits_the_terminal_and_is_not_drawn_at_every_step(monkeypatch, clock):
    _, stderr = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "30")
    bar = PlainBar(1000, 0)
    bar.set_postfix_str("loss 1.2345, 67,890 tok/s", refresh=False)
    for _ in range(999):
        bar.update(1)
        clock[0] += 0.01
    drawings = stderr.getvalue().split("\r")[1:]
    assert 40 < len(drawings) < 60 and {len(each) for each in drawings} == {29}
    bar.update(1)
    assert stderr.getvalue().endswith("\r100%  1000/1000, 00:00:09<00:")


@pytest.mark.parametrize("size", [(0, 0), (100, 0)])
def test_a_terminal_without_a_size_gets_the_plain_bar(monkeypatch, size):
    """tqdm would show nothing there."""
    terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=lambda **settings: "tqdm"))
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size(size))
    assert isinstance(open_bar(10, 0), PlainBar)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((100, 30)))
    assert open_bar(10, 0) == "tqdm"


def test_standard_output_in_a_file_gets_its_lines_beside_the_bar(monkeypatch):
    _, stderr = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    three_steps()
    assert sys.stdout.getvalue().count("with its losses") == 3 and "3/300" in stderr.getvalue()


def test_without_a_terminal_there_are_lines_and_no_bar(capsys):
    assert three_steps().bar is None
    output = capsys.readouterr()
    assert output.out.splitlines() == [*(f"step {n} with its losses" for n in (1, 2, 3)), "a validation"]
    assert output.err == ""


def test_a_step_that_was_skipped_is_a_line_on_a_terminal_too(monkeypatch):
    stdout, _ = terminal(monkeypatch)
    shown = Screen(10, 0)
    shown.start()
    shown.show("step 1  skipped 1", "loss 1", is_odd=True)
    shown.close()
    assert stdout.getvalue() == "step 1  skipped 1\n"


def test_slow_steps_are_lines_by_time(clock, capsys):
    """25 seconds each: the third and every third after it is a line, without any step being logged."""
    shown = Screen(100, 10)
    shown.start()
    for step in range(11, 18):
        clock[0] += 25
        shown.complete(step)
    shown.close()
    assert capsys.readouterr().out.splitlines() == [
        "step  13/100  25.0 s a step  ETA 00:36:15",
        "step  16/100  25.0 s a step  ETA 00:35:00",
    ]


def test_a_step_that_takes_long_says_that_it_is_alive_at_growing_intervals(monkeypatch, capsys):
    monkeypatch.setattr(screen, "SLOW_SECONDS", 0.1)
    shown = Screen(100, 4)
    shown.start()
    shown.begin("the validation after step 4")
    time.sleep(1.0)
    shown.complete(5)
    time.sleep(0.05)
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4  # after 0.1, 0.2, 0.4 and 0.8 s
    assert lines[0] == "          still in the validation after step 4, for 00:00:00 so far"
    assert not shown.thread.is_alive()


def test_what_takes_long_is_named_as_what_it_is(tmp_path, capsys):
    """After a validation the next step, after the last step the checkpoint."""
    record = {"step": 1, "held_out": {"loss": 1.0, "accuracy": 0.5, "pseudo_perplexity": 2.0}}
    named = []
    with MetricsLogger(tmp_path, 2, TrainState(), tensorboard=False, enabled=True) as logger:
        for act in (
            logger.start,
            lambda: logger.complete(1),
            lambda: logger.begin("the validation after step 1"),
            lambda: logger.log(record),
            lambda: logger.complete(2),
        ):
            act()
            named.append(logger.screen.current[0])
    assert named == ["step 1", "step 2", "the validation after step 1", "step 2", "writing the last checkpoint"]


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_a_run_survives_its_terminal(monkeypatch, with_tqdm):
    stdout, _ = terminal(monkeypatch)
    if with_tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    shown = Screen(100, 0)
    shown.start()
    monkeypatch.setattr(sys, "stderr", Closed())
    shown.bar.fp = Closed()  # tqdm keeps its own
    shown.complete(1)
    shown.line("a validation")
    shown.close()
    assert shown.bar is None and "a validation" in stdout.getvalue()
