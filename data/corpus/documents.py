"""Parts of a corpus to documents: decoding, JSON lines, blank lines, wrapped lines and control characters."""

import json
import re
from collections import Counter
from collections.abc import Iterator

import numpy

from ..formats import JSON_LINES
from .layout import BLANK_WRAPPED, LINE, WRAPPED, join_wrapped
from .parts import NOT_UTF8, ROWS, Part
from .rows import text_of, without_surrogates

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # Unicode's category Cc without tab and line ends
BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
IS_CONTROL = numpy.array([byte < 0x80 and bool(CONTROL.match(chr(byte))) for byte in range(256)])  # ASCII only


def documents(part: Part, field: str | None, drop_control: bool, counts: Counter) -> Iterator[list[str]]:
    """The documents of a part, each a list of its paragraphs, without blank ones.

    field: of JSON lines. drop_control: drops paragraphs with control characters (the tokenizer's normalisation removes
    some of these characters, and maps the others to <unk>). counts: updated with what is dropped, by reason, and with
    the number of paragraphs with control characters.
    """
    if part.kind in ROWS:
        texts = map(normalise_line_ends, part.content)
    elif part.kind == JSON_LINES:
        texts = json_texts(decode(part.content, counts), field, counts)
    elif part.kind == LINE:
        texts = decode(part.content, counts).split("\n")
    elif part.kind == WRAPPED:
        texts = join_wrapped(decode(part.content, counts).split("\n"), part.width)
    else:
        texts = BLANK_LINES.split(decode(part.content, counts))
    search = part.kind in (JSON_LINES, *ROWS) or has_control(part.content)  # JSON may write them as \u00..
    for text in texts:
        lines = [text] if part.kind in (LINE, WRAPPED) else text.split("\n")
        if part.kind == BLANK_WRAPPED:
            lines = join_wrapped(lines, part.width)
        paragraphs = [line for line in lines if line and not line.isspace()]
        if search:
            clean = [paragraph for paragraph in paragraphs if not CONTROL.search(paragraph)]
            if found := len(paragraphs) - len(clean):
                counts["paragraphs with control characters" + (" dropped" if drop_control else "")] += found
                paragraphs = clean if drop_control else paragraphs
        if paragraphs:
            yield paragraphs


def decode(content: bytes, counts: Counter) -> str:
    """The text, with \\n for every line end, without the lines that are not UTF-8, which are counted.

    A byte order mark is removed at the beginning of any line: concatenated files have several.
    """
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        lines = []
        for line in content.split(b"\n"):
            try:
                lines.append(line.decode())
            except UnicodeDecodeError:
                counts[NOT_UTF8] += 1
        text = "\n".join(lines)
    return text.replace("\n\ufeff", "\n").removeprefix("\ufeff") if "\ufeff" in text else text


def normalise_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def has_control(content: bytes) -> bool:
    """Whether UTF-8 text has a control character: one fast pass, so that most parts need no search by paragraph."""
    codes = numpy.frombuffer(content, numpy.uint8)
    two_bytes = (codes[:-1] == 0xC2) & (codes[1:] >= 0x80) & (codes[1:] < 0xA0)  # U+0080 to U+009F in UTF-8
    return bool(IS_CONTROL[codes].any() or two_bytes.any())


def json_texts(text: str, field: str | None, counts: Counter) -> Iterator[str]:
    """The text of each JSON line; lines without one are counted."""
    for line in text.split("\n"):
        if not line or line.isspace():
            continue
        try:
            value = text_of(json.loads(line), field)
        except (ValueError, RecursionError):
            counts["lines that are no JSON"] += 1
            continue
        if value is None:
            counts["JSON lines without a text"] += 1
        else:
            yield normalise_line_ends(value if value.isascii() else without_surrogates(value))
