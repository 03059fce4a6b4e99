"""Parts to documents: the same as a simple reading of the whole file, in every format and compression."""

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from data import formats
from data.corpus import parts as reader
from data.corpus.documents import CONTROL, documents, has_control
from data.corpus.parts import START, Part
from data.formats import JSON_LINES, PARQUET
from tests.data.prepared import COMPRESS, parts, write, write_parquet

CONTROLS = {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]} - set("\t\n\r")  # Unicode's category Cc


def read(*paths: Path, kind: str = "line", field: str | None = None, drop_control: bool = False):
    """-> documents, counts"""
    found, counts = [], Counter()
    for part in parts(*paths, field=field, documents=kind):
        found += documents(part, field, drop_control, counts)
        counts.update(part.counts)
    return found, counts


def of(content: bytes | str | list[str], kind: str, field: str | None = None, drop_control: bool = False):
    """Documents of one part -> documents, counts"""
    counts = Counter()
    content = content.encode() if isinstance(content, str) else content
    return list(documents(Part(kind, content, START, 0, {}), field, drop_control, counts)), dict(counts)


def read_simply(content: bytes, kind: str) -> tuple[list[list[str]], int]:
    """Reads the whole file at once, line by line -> documents, number of lines that are not UTF-8"""
    lines, bad = [], 0
    for line in re.split(rb"\r\n|\r|\n", content):
        try:
            lines.append(line.decode().removeprefix("\ufeff"))
        except UnicodeDecodeError:
            bad += 1
    if kind == "line":
        return [[line] for line in lines if line.strip()], bad
    found, document = [], []
    for line in [*lines, ""]:
        if line.strip():
            document.append(line)
        elif document:
            found.append(document)
            document = []
    return found, bad


PIECES = ["\n", "\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "\r\r", "\n \t\n", "\n\u00a0\r\n", "\n\r\n", "\v", "\x0c"]
PIECES += [" ", "  ", "\t", "a", "b", "mot", "un mot", "é", "œ", "€", "😀", "\u2028", "\x85", "\x1c", "\ufeff"]
BROKEN = [b"\xff", b"\xc3", b"\xe2\x82", b"\x80", b"\xed\xa0\x80"]


@pytest.mark.parametrize("kind", ["line", "blank"])
def test_random_files_give_the_documents_of_a_simple_reading(tmp_path, monkeypatch, kind):
    """600 random files in parts of random size: all line ends, blank lines, spaces, invalid UTF-8."""
    chance, several, many_parts = random.Random(kind), 0, 0
    monkeypatch.setattr(formats, "text_form", lambda head: formats.TEXT)
    for number in range(600):
        pieces = [piece.encode() for piece in chance.sample(PIECES, chance.randrange(1, len(PIECES)))]
        pieces += BROKEN * (number % 3 == 0)
        content = b"".join(chance.choices(pieces, k=chance.randrange(120)))
        content = b"a" + content if content[:1] in (b"\xff", b"\xfe") else content  # not the mark of UTF-16
        monkeypatch.setattr(reader, "PART_BYTES", chance.randrange(1, 80))
        monkeypatch.setattr(reader, "READ_BYTES", chance.randrange(1, 80))
        path = tmp_path / ("a.txt.gz" if number % 5 == 0 else "a.txt")
        path.write_bytes(gzip.compress(content, 1) if number % 5 == 0 else content)
        expected, bad = read_simply(content, kind)
        found, counts = read(path, kind=kind)
        assert found == expected, content
        assert counts["lines that are not UTF-8"] == bad
        several += len(expected) > 1
        many_parts += len(parts(path, documents=kind)) > 2
    assert several > 300 and many_parts > 200


def test_every_format_and_compression_gives_the_same_documents(tmp_path):
    expected = [["Un été.", "Deux mots"], ["  Trois\tfois ", "«\u00a0Oui\u00a0»"], ["😀"]] * 7
    texts = ["\n".join(document) for document in expected]
    texts[3:5] = texts[3].replace("\n", "\r\n"), texts[4].replace("\n", "\r")
    for suffix in COMPRESS:
        blank = write(tmp_path / f"a.txt{suffix}", "\n\n".join(texts).encode())
        assert read(blank, kind="auto") == (expected, {}), suffix
        for ascii_only in (True, False):
            rows = "".join(json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) + "\n" for text in texts)
            assert read(write(tmp_path / f"b.jsonl{suffix}", rows.encode())) == (expected, {}), suffix
    assert read(write_parquet(tmp_path / "c.parquet", {"text": texts})) == (expected, {})
    several = read(blank, tmp_path / "b.jsonl", tmp_path / "c.parquet", kind="blank")
    assert several == (3 * expected, {})


def test_documents_are_lines_or_separated_by_blank_lines():
    content = "\ufeffUn été.\r\n\n   \n  Deux\tmots. \rTrois.\nfin sans retour"
    assert of(content, "line") == ([["Un été."], ["  Deux\tmots. "], ["Trois."], ["fin sans retour"]], {})
    content = "\n\na\n  b\n\n\n \t\nc\r\n\u00a0\r\n  d\n\n\n"
    assert of(content, "blank") == ([["a", "  b"], ["c"], ["  d"]], {})


def test_only_lines_that_are_not_utf8_are_dropped_and_counted():
    content = b"bon\n" + "été\n".encode("latin-1") + "été\n".encode() + b"cou\xc3\np\xc3\xa9\n\xe2\x82\n\xed\xa0\x80"
    assert of(content, "line") == ([["bon"], ["été"], ["pé"]], {"lines that are not UTF-8": 4})
    assert of(content, "blank") == ([["bon", "été", "pé"]], {"lines that are not UTF-8": 4})


def test_byte_order_marks_are_removed_at_line_beginnings():
    for broken, counts in ((b"", {}), (b"\xff\n", {"lines that are not UTF-8": 1})):
        content = "\ufeffa\n\ufeff\ufeffb\ufeff\n\ufeff\nc\n".encode() + broken
        assert of(content, "line") == ([["a"], ["\ufeffb\ufeff"], ["c"]], counts)


def test_blank_content_gives_no_document():
    for kind in ("line", "blank", JSON_LINES):
        for content in (b"", b"\n", b" \n\t\r\n\x0c\n \n\n", b"\xef\xbb\xbf"):
            assert of(content, kind) == ([], {})
    assert of(["", " \n\t"], PARQUET) == ([], {})


def test_control_characters_are_category_cc_without_tab_and_line_ends():
    for code in range(0x500):
        assert bool(CONTROL.search(f"a{chr(code)}b")) == (chr(code) in CONTROLS)
        assert has_control(f"a{chr(code)}b".encode()) == (chr(code) in CONTROLS)
        assert has_control(chr(code).encode()) == (chr(code) in CONTROLS)


@pytest.mark.parametrize("control", ["\x00", "\x08", "\x0c", "\x1b", "\x7f", "\x80", "\x9f"])
def test_only_paragraphs_with_control_characters_are_counted_or_dropped(control):
    bad, worse = f"a{control}b", f"{control}{control} c"
    texts = [f"one\n{bad}\ntab\t", worse, "two"]
    as_json = [json.dumps({"text": text}) for text in texts]
    upper_case = [re.sub(r"u00..", lambda code: code[0].upper().replace("U", "u"), line) for line in as_json]
    name = "paragraphs with control characters"
    json_contents = [(JSON_LINES, "\n".join(lines)) for lines in (as_json, upper_case)]
    for kind, content in [("blank", "\n\n".join(texts)), *json_contents, (PARQUET, texts)]:
        assert of(content, kind) == ([["one", bad, "tab\t"], [worse], ["two"]], {name: 2})
        assert of(content, kind, drop_control=True) == ([["one", "tab\t"], ["two"]], {f"{name} dropped": 2})
    lines = f"one\n{bad}\ntab\t\n{worse}"
    assert of(lines, "line", drop_control=True) == ([["one"], ["tab\t"]], {f"{name} dropped": 2})


def test_the_field_is_the_given_one_or_text_or_content():
    line = json.dumps({"content": "c", "text": "t", "body": "b"})
    assert of(line, JSON_LINES) == ([["t"]], {})
    assert of(line, JSON_LINES, field="body") == ([["b"]], {})
    assert of('{"content": "c"}\n{"body": "b"}', JSON_LINES) == ([["c"]], {"JSON lines without a text": 1})
    assert of('{"content": "c"}\n{"text": "t"}', JSON_LINES, field="body") == ([], {"JSON lines without a text": 2})


def test_lines_without_a_text_are_counted():
    lines = ['{"text": null}', '{"text": 3}', '{"text": ["a"]}', "{}", "[]", '["text"]', '"text"', "3", "null", "NaN"]
    assert of("\n".join(["", *lines, '{"text": "a"}']), JSON_LINES) == (
        [["a"]],
        {"JSON lines without a text": len(lines)},
    )


def test_lines_that_are_not_json_are_counted():
    lines = ['{"text": "a"', "{text: 'a'}", "text", '{"text": "a"} x', "[" * 99_999, "\x00", f'{{"n": {"9" * 5000}}}']
    content = "\n".join([*lines, "  ", '{"text": "été"}'])
    assert of(content, JSON_LINES) == ([["été"]], {"lines that are no JSON": len(lines)})
    broken = b'{"text": "\xff"}\n{"text": "a"}'
    assert of(broken, JSON_LINES) == ([["a"]], {"lines that are not UTF-8": 1})


def test_half_of_a_surrogate_pair_and_line_ends_within_a_json_text():
    assert of('{"text": "a \\ud83d b \\ud83d\\ude00"}', JSON_LINES) == ([["a ? b 😀"]], {})
    assert of('{"text": "a\\n\\nb\\r\\n \\rc"}\r\n{"text": "d"}\r\n', JSON_LINES) == ([["a", "b", "c"], ["d"]], {})
