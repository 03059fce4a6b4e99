"""Every command prints its help and nothing else: no warning that runpy finds its module imported already."""

import ast
import re
import subprocess
import sys

import pytest

from tests.data.prepared import lines, write
from tests.helpers import REPOSITORY
from tests.torture_prepare import command as prepare_command

COMMANDS = {
    "train.py": "train.py",
    "convert_weights.py": "convert_weights.py",
    "-m data.prepare": "data/prepare.py",
    "-m data.inspect": "data/inspect.py",
    "-m data.demo": "data/demo/__main__.py",
    "-m model.parameters": "model/parameters.py",
    "-m eval": "eval/__main__.py",
}
VERSION = r"commit (unknown|[0-9a-f]{12}( \+ changes)?), torch \S+, Python 3\.\S+\n"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    result = run(*command.split(), "--help")
    assert (result.returncode, result.stderr) == (0, "")
    docstring = ast.parse((REPOSITORY / COMMANDS[command]).read_text(encoding="utf-8")).body[0].value.value.strip()
    assert result.stdout.startswith(("usage: ", docstring)) and docstring in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_version(command):
    result = run(*command.split(), "--version")
    assert (result.returncode, result.stderr) == (0, "") and re.fullmatch(VERSION, result.stdout)


def test_no_command_is_missing():
    files = {path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*.py")}
    files = {str(path) for path in files if path.parts[0] not in ("tests", "runs")}
    mains = {name for name in files if '__name__ == "__main__"' in (REPOSITORY / name).read_text(encoding="utf-8")}
    assert set(COMMANDS.values()) == mains


def test_workers_print_no_warning(tmp_path):
    """Each worker process imports the main module again."""
    text = write(tmp_path / "text.txt", lines(50))
    result = run(*prepare_command(text, tmp_path / "out", 2, "--shard-tokens", "100000")[1:])
    assert result.returncode == 0 and result.stderr.startswith("prepared  ") and result.stderr.count("\n") == 1
