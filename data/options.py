"""The command line of a command, from one frozen dataclass: defaults, help texts and checks stand there once."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

from .errors import OptionError

T = TypeVar("T")


def option(default, help: str, group: str | None = None, *, least=None, above=None, most=None, below=None, **settings):
    """A field of such a dataclass.

    group: the heading it stands under in --help, by default that of the field before it. least, above, most,
    below: what check_bounds holds it to. settings: argparse's choices, nargs, metavar, type, and positional=True
    for an argument without dashes.
    """
    bounds = {"least": least, "above": above, "most": most, "below": below}
    return dataclasses.field(default=default, metadata=dict(help=help, group=group, bounds=bounds, settings=settings))


def parse_options(options: type[T], arguments: Sequence[str] | None, usage: str, description: str) -> T:
    """The options given on a command line.

    Exits with status 2 and a sentence for an argument that cannot be read. Raises OptionError from the
    dataclass's own checks.
    """
    parser = argparse.ArgumentParser(
        usage=usage,
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110),
    )
    group = parser
    for field in dataclasses.fields(options):
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        settings, help = dict(field.metadata["settings"]), field.metadata["help"]
        if settings.pop("positional", False):
            group.add_argument(field.name, help=help, **settings)
            continue
        if field.type is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings.setdefault("type", field.type if field.type in (int, float) else str)
            if field.default is not None and "default" not in help:
                help += f" (default: {shown(field.default)})"
        group.add_argument(dashed(field.name), default=field.default, help=help, **settings)
    values = vars(parser.parse_args(arguments))
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def shown(default) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(condition: bool, sentence: str) -> None:
    """Raises OptionError with the sentence unless the condition holds."""
    if not condition:
        raise OptionError(sentence)


def check_bounds(options) -> None:
    """Holds every number to its field's bounds, outside which infinity and NaN always are, and refuses empty words.

    Raises OptionError.
    """
    for field in dataclasses.fields(options):
        bounds = {word: bound for word, bound in field.metadata["bounds"].items() if bound is not None}
        values = getattr(options, field.name)
        for value in values if isinstance(values, tuple) else (values,):
            check(value != "", f"{dashed(field.name)} is empty.")
            fits = value is None or not bounds or (
                (isinstance(value, int) or math.isfinite(value))
                and value >= bounds.get("least", -math.inf)
                and value > bounds.get("above", -math.inf)
                and value <= bounds.get("most", math.inf)
                and value < bounds.get("below", math.inf)
            )  # fmt: skip
            words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
            wanted = " and ".join(f"{words[word]} {bound:g}" for word, bound in bounds.items())
            check(fits, f"{dashed(field.name)} must be {wanted}, not {value}.")
