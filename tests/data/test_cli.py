"""Options from a dataclass, errors and exit statuses, and the progress line."""

import errno
import subprocess
import sys
from dataclasses import dataclass

import pytest

from data import cli
from data.cli import DataError, OptionError, Progress, check, option, parse_options, run_command
from tests.helpers import REPOSITORY


@dataclass(frozen=True)
class Options:
    source: str = option(None, "input file", positional=True, metavar="IN")
    steps: int = option(3, "number of steps")
    rate: float = option(0.5, "learning rate")
    name: str | None = option(None, "name of the run")
    paths: tuple[str, ...] = option(("a",), "corpus", nargs="+")
    loud: bool = option(False, "print more")

    def __post_init__(self):
        check(self.steps > 0, "--steps must be above 0.")


def parse(*arguments):
    return parse_options(Options, arguments, "test [OPTIONS]", "A test.")


def test_defaults_values_and_checks():
    assert parse("x") == Options("x", 3, 0.5, None, ("a",), False)
    given = parse("x", "--steps", "7", "--rate", "1e-3", "--name", "n", "--paths", "b", "c", "--loud")
    assert given == Options("x", 7, 1e-3, "n", ("b", "c"), True)
    with pytest.raises(OptionError, match="above 0"):
        parse("x", "--steps", "-1")


@pytest.mark.parametrize("wrong", [["x", "--steps", "many"], ["x", "--step", "3"], [], ["x", "--colour", "red"]])
def test_wrong_arguments_exit_with_2(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*wrong)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("IN", "--steps", "--rate", "--no-loud", "number of steps", "A test."))


class Diverged(Exception):
    exit_status = 3


class ModelError(ValueError):
    """Without an exit status of its own."""


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        *((returned, returned or 0, "") for returned in (None, 0, 1)),
        (DataError("a.txt line 3 is empty."), 2, "test: a.txt line 3 is empty.\n"),
        (DataError("caf\udce9.txt is empty."), 2, "test: caf\\udce9.txt is empty.\n"),  # a name that is not UTF-8
        (OptionError("--steps must be above 0."), 2, "test: --steps must be above 0.\n"),
        (ModelError("x.pt is not a model."), 2, "test: x.pt is not a model.\n"),
        (Diverged("10 steps skipped."), 3, "test: 10 steps skipped.\n"),
        (OSError(errno.ENOSPC, "No space left", "/out/x"), 2, "test: /out/x: No space left.\n"),
        (OSError("cannot mmap"), 2, "test: a file: cannot mmap.\n"),
        (KeyboardInterrupt(), 130, "\ntest: interrupted; the same command resumes.\n"),
    ],
)
def test_exit_status_and_message(capsys, outcome, status, message):
    def main():
        print("été")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as caught:
        run_command("test", main, Diverged, ModelError, on_interrupt="the same command resumes")
    assert caught.value.code == status
    assert capsys.readouterr() == ("été\n", message)


def test_ctrl_c_without_a_hint_and_other_errors(capsys):
    with pytest.raises(SystemExit):
        run_command("test", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert capsys.readouterr().err == "\ntest: interrupted.\n"
    with pytest.raises(Diverged):  # not listed: a fault of the program, with its traceback
        run_command("test", lambda: (_ for _ in ()).throw(Diverged))


@pytest.mark.parametrize("size", [1, 10**6])
def test_a_closed_standard_output_is_no_error(size):
    """As in `COMMAND | head`: while printing, and when the buffer is flushed at the end (-E: not PYTHONUNBUFFERED)."""
    code = "import sys; from data.cli import run_command; sys.stdin.read(); "
    code += f"run_command('x', lambda: print('é' * {size}))"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-E", "-c", code], cwd=REPOSITORY, **pipes)
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait(timeout=30) == 0
    process.stderr.close()


def test_work_goes_on_if_nobody_reads_its_progress(tmp_path):
    code = "import sys; from data.cli import run_command, say; sys.stdin.read()\n"
    code += "def main():\n [say('é') for _ in range(9)]; print('figures'); open(sys.argv[1], 'w').close()\n"
    code += "run_command('x', main)"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "done"], cwd=REPOSITORY, **pipes)
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b"" and process.wait(timeout=30) == 0 and (tmp_path / "done").exists()
    process.stderr.close()


def test_words_with_a_single_dash_are_values():
    assert parse("x", "--paths", "-", "-1", "-1=a", "-x", "--steps", "3").paths == ("-", "-1", "-1=a", "-x")
    assert parse("-x", "--name", "-n").name == "-n" and parse("-x").source == "-x"


@pytest.fixture
def clock(monkeypatch):
    """A list whose last number is the time."""
    times = [1000.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: times[-1])
    return times


LINES = [
    ("x.bin", (445_000_000,), 40, 100_000_000, "x.bin  100.0 of 445.0 MB  22 %  2.5 MB/s  ETA 2:18\n"),
    ("x", (100_000_000, 60_000_000), 10, 80_000_000, "x  80.0 of 100.0 MB  80 %  2.0 MB/s  ETA 0:10\n"),
    ("x", (0,), 10, 80_000_000, "x  80.0 MB  8.0 MB/s\n"),  # unknown size
    ("x", (1_000_000_000,), 6, 0, "x  0.0 of 1,000.0 MB  0 %  0.0 MB/s  ETA 16666666:40\n"),  # nothing yet
    ("x", (5,), 0, 5, "x  0.0 of 0.0 MB  100 %  5,000.0 MB/s  ETA 0:00\n"),  # in no time
]


@pytest.mark.parametrize(("name", "sizes", "seconds", "done", "line"), LINES)
def test_the_line(capsys, clock, name, sizes, seconds, done, line):
    """Speed and remaining time are those of this run, without what an earlier run has done."""
    progress = Progress(name, *sizes)
    clock.append(1000.0 + seconds)
    progress.show(done)
    assert capsys.readouterr().err == line


def test_a_log_gets_a_line_every_five_seconds_and_one_at_the_end(capsys, clock):
    progress = Progress("x", 10_000_000)
    for second in range(10):
        clock.append(1000.0 + second)
        progress.show(second * 1_000_000)
    progress.show(10_000_000)
    progress.show(10_000_000)  # more members of an archive that was read ahead
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["6.0 of 10.0 MB", "10.0 of 10.0 MB"]


def test_a_terminal_gets_one_line_that_is_redrawn(monkeypatch, capsys, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    progress = Progress("a-name-that-is-longer-than-the-line-is-wide", 10_000_000)
    for second in (0.0, 0.1, 0.3, 0.4, 0.6):
        clock.append(1000.0 + second)
        progress.show(1_000_000)
    progress.close()
    output = capsys.readouterr().err
    assert output.count("\r") == 2 and output.count("\n") == 1 and output.endswith("\n")
    assert all(len(line.rstrip("\n")) == 39 for line in output.split("\r")[1:])


FOLLOWING = RuntimeError("CUDA error: operation failed due to a previous error during capture")
FOLLOWING.__context__ = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
MEMORY_ERRORS = [
    FOLLOWING,
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: str(error)[:20])
def test_out_of_memory_is_one_sentence_with_what_to_do(error, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_command("test", fail, on_memory="Use less.")
    message = capsys.readouterr().err
    assert caught.value.code == 2 and message.startswith("test: out of memory: ") and message.endswith(". Use less.\n")
    assert message.count("\n") == 1


def test_another_runtime_error_is_a_fault_of_this_program():
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run_command("test", fail)
