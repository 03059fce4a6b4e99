"""The command line of a command, from one frozen dataclass: defaults, help texts and checks stand there once."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from .errors import OptionError

T = TypeVar("T")


def option(default, help: str, group: str = "options", **argparse_settings):
    """A field of such a dataclass. argparse_settings: choices, nargs, metavar, type; positional=True for no dashes."""
    return dataclasses.field(
        default=default, metadata={"help": help, "group": group, "argparse": argparse_settings}
    )


def parse_options(options: type[T], arguments: Sequence[str] | None, usage: str, description: str, epilog="") -> T:
    """The options given on a command line.

    Exits with status 2 and a sentence for an argument that cannot be read. Raises OptionError from the
    dataclass's own checks.
    """
    parser = argparse.ArgumentParser(
        usage=usage,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110),
    )
    groups = {}
    for field in dataclasses.fields(options):
        settings = dict(field.metadata["argparse"])
        positional = settings.pop("positional", False)
        if field.type is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings.setdefault("type", field.type if field.type in (int, float) else str)
        if not positional:
            settings["default"] = field.default
        group = groups.setdefault(field.metadata["group"], None) or parser.add_argument_group(field.metadata["group"])
        groups[field.metadata["group"]] = group
        name = field.name if positional else "--" + field.name.replace("_", "-")
        group.add_argument(name, help=field.metadata["help"], **settings)
    values = vars(parser.parse_args(arguments))
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check(condition: bool, sentence: str) -> None:
    """Raises OptionError with the sentence unless the condition holds."""
    if not condition:
        raise OptionError(sentence)
