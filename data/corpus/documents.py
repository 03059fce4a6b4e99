"""Parts of a corpus to documents, and what in them is no text."""

import json
import re
from collections import Counter
from collections.abc import Iterator

import numpy

from .files import FIELDS, Part

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # Unicode's Cc, but for tab and line ends
BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
C0 = numpy.array([bool(CONTROL.match(chr(byte))) and byte < 0x80 for byte in range(256)])


def documents(part: Part, field: str | None, drop_control: bool, counts: Counter) -> Iterator[list[str]]:
    """The documents of a part, each a list of its paragraphs, none of which is blank.

    counts: gets what was dropped, by its reason; and how many paragraphs have control characters (which the
    tokenizer's normalisation drops, or calls <unk>), or with drop_control were dropped for them.
    """
    if part.kind == "parquet":
        texts = map(one_line_end, part.content)
    elif part.kind == "json":
        texts = json_texts(decode(part.content, counts), field, counts)
    else:
        text = decode(part.content, counts)
        texts = text.split("\n") if part.kind == "line" else BLANK_LINES.split(text)
    suspicious = part.kind in ("json", "parquet") or has_control(part.content)  # JSON can spell them with a \
    for text in texts:
        lines = [text] if part.kind == "line" else text.split("\n")
        paragraphs = [line for line in lines if line and not line.isspace()]
        if suspicious:
            marked = [bool(CONTROL.search(paragraph)) for paragraph in paragraphs]
            if any(marked):
                what = "paragraphs with control characters" + (" dropped" if drop_control else "")
                counts[what] += sum(marked)
                if drop_control:
                    paragraphs = [paragraph for paragraph, bad in zip(paragraphs, marked) if not bad]
        if paragraphs:
            yield paragraphs


def decode(content: bytes, counts: Counter) -> str:
    """The text, with \\n for every end of a line; lines that are not UTF-8 are dropped, and counted.

    A byte order mark before a line is no text: files that are joined have them in the middle, too.
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
                counts["lines that are not UTF-8"] += 1
        text = "\n".join(lines)
    return text.replace("\n\ufeff", "\n").removeprefix("\ufeff") if "\ufeff" in text else text


def one_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def has_control(content: bytes) -> bool:
    """Whether there may be a control character: one pass over the bytes, before every paragraph is looked at."""
    codes = numpy.frombuffer(content, numpy.uint8)
    c1 = (codes[:-1] == 0xC2) & (codes[1:] >= 0x80) & (codes[1:] < 0xA0)
    return bool(C0[codes].any() or c1.any())


def json_texts(text: str, field: str | None, counts: Counter) -> Iterator[str]:
    """The text of every line; lines without one are counted."""
    for line in text.split("\n"):
        if not line or line.isspace():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            counts["lines that are no JSON"] += 1
            continue
        found = (
            [values[name] for name in ([field] if field else FIELDS) if name in values] if type(values) is dict else []
        )
        if found and isinstance(found[0], str):
            yield one_line_end(found[0].encode("utf-8", "replace").decode())  # a lone surrogate can stand in JSON
        else:
            counts["JSON lines without a text"] += 1
