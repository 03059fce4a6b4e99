"""How plain text is laid out: what separates its documents, and whether its lines are wrapped at a fixed width."""

import re
from itertools import pairwise
from typing import NamedTuple

LINE, BLANK = "line", "blank"  # a document ends at a line end; at a blank line
WRAPPED, BLANK_WRAPPED = "wrapped", "blank-wrapped"  # the same with wrapped lines, which are joined to paragraphs
BREAKS = 200  # with at least one blank line in so many, blank lines separate documents
WIDTHS = range(40, 121)  # at which text is wrapped, in characters
WRAPPED_PAIRS = 8  # of lines in sequence, from which wrapping can be told
SENTENCE_END = re.compile(r"[.!?…:;»”\"]\s*$")
AT_HYPHEN = re.compile(r"(?<=\w-)\n(?=\w)")  # a line end inside c'est-à-dire
DASH = re.compile(r"\s*[-–—«]")


class Layout(NamedTuple):
    kind: str
    width: int = 0  # of wrapped lines, in characters


def text_layout(sample: bytes, documents: str) -> Layout:
    """The layout of a text that begins with these bytes.

    documents: the separator if the user gives it, "line", "blank" or "wrapped"; "auto" guesses.
    """
    if documents in (LINE, BLANK):
        return Layout(documents)
    lines = [line.decode(errors="replace") for line in sample.splitlines()]
    width = wrap_width(lines, is_certain=documents == WRAPPED)
    filled = [bool(line.strip()) for line in lines]
    breaks = sum(1 for before, here, after in zip(filled, filled[1:], filled[2:]) if before and not here and after)
    if breaks >= 2 and breaks * BREAKS >= len(lines):
        return Layout(BLANK_WRAPPED if width else BLANK, width)
    return Layout(WRAPPED if width else LINE, width)


def wrap_width(lines: list[str], is_certain: bool) -> int:
    """The width at which lines are wrapped, in characters; 0 if they are not.

    Wrapped lines are filled (the next line's first word would not fit), few end a sentence, and most go on in lower
    case. Lines of verse and of lists are not filled, and sentences of equal length begin with capitals.
    is_certain: they are wrapped, only the width is unknown.
    """
    pairs = [(line, after) for line, after in pairwise(lines) if line.strip() and after.strip()]
    if not pairs:
        return WIDTHS[-1] if is_certain else 0
    lengths = sorted(len(line.rstrip()) for line, _ in pairs)
    width = lengths[int(0.95 * (len(lengths) - 1))]
    if is_certain:
        return width
    if len(pairs) < WRAPPED_PAIRS or width not in WIDTHS:
        return 0
    filled = [(line, after) for line, after in pairs if is_filled(line, after, width)]
    inside = sum(not SENTENCE_END.search(line) for line, _ in filled)
    lower = sum(after.lstrip()[0].islower() for _, after in filled)
    is_wrapped = len(filled) >= 0.4 * len(pairs) and inside >= 0.6 * len(filled) and lower >= 0.5 * len(filled)
    return width if is_wrapped else 0


def is_filled(line: str, after: str, width: int) -> bool:
    """Whether the first word of the line after it would not have fitted; no line that is far too long is filled.

    Within a sentence, give or take a few characters, since not every editor fills lines in the same way.
    """
    is_inside = after.lstrip()[0].islower() or not SENTENCE_END.search(line)
    length = len(line.rstrip())
    return length < 2 * width and length + 1 + len(after.split(None, 1)[0]) > width - (width // 12 if is_inside else 0)


def join_wrapped(lines: list[str], width: int) -> list[str]:
    """Lines to paragraphs, joined by spaces (after a hyphen, by nothing), without blank ones.

    A paragraph ends with a line that is not filled (so verse and lists stay as they are), before an indented line, and
    at the end of a sentence before a dash or a quotation.
    """
    paragraphs, before = [], ""
    for line in lines:
        if not line or line.isspace():
            before = ""
            continue
        is_indented = indent(line) > indent(before)
        ended = SENTENCE_END.search(before) and DASH.match(line)
        if before and is_filled(before, line, width) and not is_indented and not ended:
            paragraphs[-1].append(line.strip())
        else:
            paragraphs.append([line.strip()])
        before = line
    return [AT_HYPHEN.sub("", "\n".join(paragraph)).replace("\n", " ") for paragraph in paragraphs]


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())
