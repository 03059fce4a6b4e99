"""Text from outside, as Markdown and as the YAML in front of a model card: it can add neither lines nor markup."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence

MAX_LENGTH = 1000  # characters of a stored value
MARKUP = re.compile(r"[\\`*\[\]<>|&~$]|(?<!\w)_|_(?!\w)")  # an underscore inside a word is none
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9/_-]*(?:\.[A-Za-z0-9/_-]+)*")  # what YAML reads as a string without quotes ...
RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # ... but for these


def line(value: object) -> str:
    """A stored string or number on one line of printable characters; "unknown" for anything else."""
    if not isinstance(value, str | int | float):
        return "unknown"
    printable = (character if character.isprintable() else " " for character in str(value)[:MAX_LENGTH])
    return " ".join("".join(printable).split())


def text(value: object) -> str:
    """The same, without effect as markup."""
    return MARKUP.sub(r"\\\g<0>", line(value))


def number(value: object, form: str = ".4f") -> str:
    """A stored figure; empty for anything else in a damaged file."""
    return format(value, form) if is_figure(value) else ""


def is_figure(value: object) -> bool:
    return type(value) is float and math.isfinite(value)


def code(*values: object) -> str:
    """Stored names."""
    return ", ".join(f"`{line(value).replace('`', ' ').strip() or ' '}`" for value in values)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows without a single figure after their name are left out."""
    kept = [row for row in rows if any(row[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *kept)] + [""]


def yaml(value: object, indent: str = "") -> list[str]:
    """The lines of a mapping or a list of scalars, mappings and lists, none of them empty, in block style."""
    lines = []
    for key, inner in value.items() if isinstance(value, Mapping) else ((None, each) for each in value):
        head = indent + ("-" if key is None else f"{scalar(key)}:")
        if isinstance(inner, Mapping) and key is None:  # its first key stands behind the dash
            first, *rest = yaml(inner, f"{indent}  ")
            lines += [f"{head} {first.lstrip()}", *rest]
        elif isinstance(inner, Mapping | list):
            lines += [head, *yaml(inner, f"{indent}  ")]
        else:
            lines.append(f"{head} {scalar(inner)}")
    return lines


def scalar(value: str | float) -> str:
    if not isinstance(value, str):
        return repr(value) if "e" not in repr(value) else f"{value:.20f}"  # YAML 1.1 reads 1e-05 as a string
    value = line(value)
    is_plain = PLAIN.fullmatch(value) and value.lower() not in RESERVED
    return value if is_plain else json.dumps(value, ensure_ascii=False)
