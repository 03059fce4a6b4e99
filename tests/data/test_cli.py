"""The command line made of a dataclass."""

from dataclasses import dataclass

import pytest

from data.cli import OptionError, check, option, parse_options


@dataclass(frozen=True)
class Options:
    source: str = option(None, "where from", positional=True, metavar="IN")
    steps: int = option(3, "how many")
    rate: float = option(0.5, "how fast")
    name: str | None = option(None, "what")
    paths: tuple[str, ...] = option(("a",), "which", nargs="+")
    loud: bool = option(False, "whether")

    def __post_init__(self):
        check(self.steps > 0, "--steps must be above 0.")


def parse(*arguments):
    return parse_options(Options, arguments, "test [OPTIONS]", "A test.")


def test_defaults_and_values():
    assert parse("x") == Options("x", 3, 0.5, None, ("a",), False)
    given = parse("x", "--steps", "7", "--rate", "1e-3", "--name", "n", "--paths", "b", "c", "--loud")
    assert given == Options("x", 7, 1e-3, "n", ("b", "c"), True)


@pytest.mark.parametrize("wrong", [["x", "--steps", "many"], ["x", "--step", "3"], [], ["x", "--colour", "red"]])
def test_what_cannot_be_read_exits_with_2(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*wrong)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_dataclass_checks_itself():
    with pytest.raises(OptionError, match="above 0"):
        parse("x", "--steps", "-1")


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("IN", "--steps", "--rate", "--no-loud", "how many", "A test."))
