"""Sources to parts: nothing is lost, and the parts are the same wherever reading begins."""

import contextlib
import errno
import gzip
import io
import json
import random
import subprocess
import sys
import types
from collections import Counter
from itertools import pairwise

import pytest

from data import DataError
from data.corpus import parts as reader
from data.corpus.files import corpus_files, find_sources
from data.corpus.parts import Position, Source, read_parts
from data.formats import JSON, JSON_LINES
from tests.data.prepared import COMPRESS, parts, write
from tests.data.test_archives import pack_tar, pack_zip
from tests.helpers import REPOSITORY

BLOCK = (1 << 17) + 1000  # bytes that one flipped bit can damage, at most


@pytest.fixture
def small(monkeypatch):
    """Parts of a few hundred bytes."""
    for name, size in {"PART_BYTES": 500, "READ_BYTES": 130, "MAX_DOCUMENT_BYTES": 2000}.items():
        monkeypatch.setattr(reader, name, size)


def joined(parts) -> bytes:
    return b"".join(part.content for part in parts)


def numbered_lines(count: int) -> bytes:
    chance = random.Random(0)
    return b"".join(b"%d %s\n" % (number, b"word " * chance.randrange(20)) for number in range(count))


def test_parts_hold_everything(tmp_path, small):
    contents = [b"", b"\n", b"no end", b"1\n\r\n\r2", numbered_lines(300), b"\n" * 1000, b"x" * 499 + b"\n"]
    contents += [b"y" * (size - 1) + b"\n" for size in (129, 130, 131, 500, 501, 520, 650)]  # one part each
    paths = [write(tmp_path / f"{number:02}.txt", content) for number, content in enumerate(contents)]
    found = parts(*paths)
    assert joined(found) == b"".join(contents)
    assert [part.end for part in found] == sorted(part.end for part in found)
    assert found[-1].end == Position(len(paths)) and found[-1].bytes_read == sum(map(len, contents))
    assert max(len(part.content) for part in found) == 650


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["line", "blank", JSON_LINES])
def test_parts_do_not_depend_on_the_start_or_on_the_read_size(tmp_path, small, monkeypatch, suffix, kind):
    content = numbered_lines(400)
    if kind == "blank":
        content = content.replace(b"5 ", b"\n5 ").replace(b"7 ", b"\r\n \r\n7 ")
    path = write(tmp_path / f"a.{'jsonl' if kind == 'json' else 'txt'}{suffix}", content)
    whole = parts(path, documents=kind)
    assert joined(whole) == content and len(whole) > 20
    for number, part in enumerate(whole[:-1]):
        assert parts(path, start=part.end, documents=kind)[0].content == whole[number + 1].content
    for read_bytes in (1, 7, 499, 5000, 10**6):
        monkeypatch.setattr(reader, "READ_BYTES", read_bytes)
        again = parts(path, documents=kind)
        assert [part[:3] for part in again] == [part[:3] for part in whole]
        later = parts(path, start=whole[9].end, documents=kind)
        assert [part.content for part in later] == [part.content for part in again[10:]]


class Trickle(io.BytesIO):
    """A pipe: a few bytes at a time, not seekable."""

    chance = random.Random(0)

    def read1(self, size=-1):
        return super().read1(self.chance.randrange(1, 1 + size))

    def seekable(self):
        return False


def test_standard_input_gives_the_parts_of_a_file(tmp_path, small, monkeypatch):
    path = write(tmp_path / "a.txt", numbered_lines(300))
    expected = [part.content for part in parts(path)]

    def from_stdin(**settings):
        stream = types.SimpleNamespace(buffer=Trickle(path.read_bytes()))
        monkeypatch.setattr(sys, "stdin", stream)
        return parts("-", **settings)

    found = from_stdin(documents="auto")
    assert [part.content for part in found] == expected and not any(part.damage for part in found)
    assert [part.content for part in from_stdin(start=found[3].end)] == expected[4:]
    (last,) = from_stdin(start=Position(0, 0, 10**6))
    assert not last.content and "it ends before the position that an earlier run had reached" in last.damage


def test_concatenated_archives_are_one_file(tmp_path, small):
    pieces = [numbered_lines(count) for count in (50, 1, 0, 99)]
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(b"".join(map(compress, pieces)))
        found = parts(path)
        assert joined(found) == b"".join(pieces) and found[-1].damage == "", suffix
        assert all(part.bytes_read <= path.stat().st_size for part in found)


@pytest.mark.parametrize("kind", ["line", "blank", JSON_LINES])
def test_long_documents_are_split_after_a_line_or_a_space_or_a_character(tmp_path, small, kind):
    name = "a.jsonl" if kind == JSON_LINES else "a.txt"
    for unit, ends in (("été ", " "), ("é", "é"), ("€", "€"), ("😀", "😀"), ("a" * 99 + "\v", "a\v")):
        for lead in range(5):
            content = (b"." * lead + unit.encode() * 5000)[:7000].decode(errors="ignore").encode()
            found = parts(write(tmp_path / name, content), documents=kind)
            assert joined(found) == content
            assert sum((Counter(part.counts) for part in found), Counter()).total() == len(found) - 1 == 3
            assert all(1000 < len(part.content) <= 2000 for part in found[:-1])
            assert all(part.content.decode()[-1] in ends for part in found[:-1])
    if kind == "blank":
        blanks = parts(write(tmp_path / name, numbered_lines(200).replace(b"\n", b"\r \t\r\n")), documents=kind)
        assert len(blanks) > 20 and not any(part.counts for part in blanks)
        found = parts(write(tmp_path / name, numbered_lines(200)), documents=kind)
        assert len(found) > 3 and all(part.content.endswith(b"\n") for part in found)


def test_documents_of_exactly_the_maximum_are_not_split(tmp_path, small):
    lines = [b"x" * 1999 + b"\n", b"y" * 1998 + b"\r\n", b"z" * 2000 + b"\n"]
    found = parts(write(tmp_path / "a.txt", b"".join(lines)))
    assert [part.content for part in found] == [*lines[:2], b"z" * 1999, b"z\n"]
    assert [list(part.counts.values()) for part in found] == [[], [], [1], []]


ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_utf16_is_read_from_every_start(tmp_path, small, encoding, suffix):
    """By its mark; UTF-16 also without one."""
    text = "".join(f"Un film à {number} € 😀.\r\n" for number in range(300))
    mark = "" if encoding in ("utf-16", "utf-16-le", "utf-32") else "\ufeff"
    found = parts(path := write(tmp_path / f"a.txt{suffix}", (mark + text).encode(encoding)))
    assert joined(found).decode() == text and not any(part.damage for part in found) and len(found) > 10
    for part, after in pairwise(found):
        assert parts(path, start=part.end)[0].content == after.content


@pytest.mark.parametrize("pack", [pack_tar, pack_zip, lambda files: gzip.compress(pack_tar(files))])
def test_archives_are_read_from_every_start(tmp_path, small, pack):
    """Each file as its bytes say; what has no text is named, and counted."""
    files = {"a.txt": numbered_lines(60), "b.png": b"\x89PNG\r\n\x1a\n", "empty.txt": b"", "README.md": b"Un corpus.\n"}
    files |= {"c.txt": b'{"text": "Un film."}\n' * 50, "d": json.dumps([{"text": "Un livre."}] * 99).encode()}
    files |= {"e.csv": b"id,phrase\n" + b"1,x\n" * 9, "f.gz": gzip.compress(numbered_lines(60))}
    (tmp_path / "a").write_bytes(pack(files))
    path, other = tmp_path / "a", write(tmp_path / "b.txt", b"after it\n")
    found = parts(path, other)
    kinds = {part.name.rpartition("/")[2]: part.kind for part in found if part.kind}
    assert kinds == {
        "a.txt": "line",
        "empty.txt": "line",
        "c.txt": JSON_LINES,
        "d": JSON,
        "f.gz": "line",
        "b.txt": "line",
    }
    assert joined(part for part in found if part.kind == "line") == 2 * numbered_lines(60) + b"after it\n"
    assert sum((Counter(part.counts) for part in found), Counter()) == {"files skipped in archives": 3}
    notes = [note.removeprefix(f"{path}/") for part in found for note in part.notes]
    assert [note.partition(" ")[0] for note in notes] == ["b.png", "README.md", "c.txt", "e.csv"]
    assert notes[2] == "c.txt is JSON lines, in spite of its name."
    for number, part in enumerate(found[:-1]):
        again = parts(path, other, start=part.end)
        assert [each[:3] for each in again] == [each[:3] for each in found[number + 1 :]]


def test_an_archive_that_is_cut_is_read_up_to_there(tmp_path, small):
    content = gzip.compress(
        pack_tar({"a.txt": numbered_lines(200), "b.txt": random.Random(0).randbytes(9999).hex().encode()})
    )
    (tmp_path / "a.tgz").write_bytes(content[: len(content) // 2])
    found = parts(tmp_path / "a.tgz", write(tmp_path / "b.txt", b"after it\n"))
    assert joined(found).startswith(numbered_lines(200)) and found[-1].content == b"after it\n"
    assert [part.name.rpartition("/")[2] for part in found if part.damage] == ["b.txt"]  # said once
    (tmp_path / "a.zip").write_bytes(pack_zip({"a.txt": numbered_lines(99)})[:-9])
    (part,) = parts(tmp_path / "a.zip")
    assert part.damage == "File is not a zip file" and part.name == str(tmp_path / "a.zip")


DAMAGE = [(0.001, 0), (0.3, 0), (0.9, 0), (0.999, 0), (0.5, 64), (0.75, 64), (0.95, 1)]


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
@pytest.mark.parametrize(("share", "flipped"), DAMAGE)
def test_archives_are_read_up_to_their_end_or_a_flipped_bit(tmp_path, suffix, share, flipped):
    content = random.Random(1).randbytes(250_000).hex().encode()
    path = write(tmp_path / f"a.txt{suffix}", content)
    damaged = bytearray(path.read_bytes())
    place = max(1, int(len(damaged) * share))
    damaged[place:] = bytes([damaged[place] ^ flipped]) + damaged[place + 1 :] if flipped else b""
    path.write_bytes(damaged)
    *before, after = parts(path, write(tmp_path / "next.txt", b"after it\n"))
    assert before[-1].damage and after.content == b"after it\n" and not after.damage
    assert flipped or content.startswith(joined(before))
    assert joined(before).startswith(content[: max(0, int(share * len(content)) - BLOCK + 1)])


@pytest.mark.parametrize("suffix", COMPRESS)
def test_random_damage_is_reported_and_parts_do_not_depend_on_the_start(tmp_path, small, suffix):
    chance, path = random.Random(0), tmp_path / f"a.txt{suffix}"
    compressed = b"".join(map(COMPRESS[suffix], (numbered_lines(400), b"more\n" * 999)))
    for _ in range(40):
        damaged = bytearray(compressed[: chance.choice([len(compressed), chance.randrange(20, len(compressed))])])
        for _ in range(chance.choice([0, 1, 1, 9])):
            damaged[chance.randrange(10, len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found = parts(path)
        assert [part.damage for part in found[:-1]] == [""] * (len(found) - 1)
        for number in range(0, len(found) - 1, 5):
            again = parts(path, start=found[number].end)
            assert [part[:3] for part in again] == [part[:3] for part in found[number + 1 :]]
            assert again[-1].damage == found[-1].damage


def test_a_disk_error_is_not_taken_for_damage(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def read1(self, size=-1):
            if self.tell() > 5:
                raise OSError(errno.EIO, "Input/output error")
            return super().read1(6)

    monkeypatch.setattr(reader, "open_source", lambda source: contextlib.nullcontext(Failing(b"some text\n")))
    with pytest.raises(DataError, match=r"a.txt cannot be read: Input/output error"):
        list(read_parts([Source("a.txt", 10)]))


def test_a_file_that_disappears_is_an_error(tmp_path):
    first, second = write(tmp_path / "a.txt", b"a\n"), write(tmp_path / "b.txt", b"b\n")
    files = corpus_files([tmp_path])
    found = read_parts(find_sources(files, None, "auto", print))
    assert next(found).content == b"a\n"
    second.unlink()
    with pytest.raises(DataError, match="b.txt cannot be read: No such file"):
        list(found)
    first.unlink()
    for documents in ("auto", "line"):
        with pytest.raises(DataError, match="a.txt cannot be read: No such file"):
            find_sources(files, None, documents, print)


@pytest.mark.parametrize("name", ["a.txt.zst", "a.jsonl.zst", "a.parquet"])
def test_a_missing_package_is_an_error_that_names_it(tmp_path, monkeypatch, name):
    package, message = "zstandard", "is compressed: run pip install zstandard, or decompress it"
    if name == "a.parquet":
        package, message = "pyarrow", "is Parquet. Run pip install pyarrow, or use JSON lines"
    path = write(tmp_path / name, b"PAR1" if name == "a.parquet" else b"text\n")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=f"{name} {message}"):
        parts(path, documents="auto")
    assert parts(write(tmp_path / "b.txt.gz", b"a\n"))[0].content == b"a\n"  # needs no package


PEAK = """
import re, sys
from collections import Counter
from pathlib import Path
from data.corpus.documents import documents
from data.corpus.parts import Source, read_parts
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
sources = [Source(sys.argv[1], 0)]
begun, counts, characters, most = peak(), Counter(), 0, 0
for part in read_parts(sources):
    characters += sum(len(paragraph) for paragraphs in documents(part, None, False, counts) for paragraph in paragraphs)
    counts.update(part.counts)
    most = max(most, len(part.content))
print(peak() - begun, characters, most, counts.total())
"""


@pytest.mark.parametrize(("line", "suffix"), [(10**9, ""), (10**9, ".zst"), (1000, ""), (1000, ".gz")])
def test_memory_does_not_grow_with_the_length_of_files_or_lines(tmp_path, line, suffix):
    """A line of 60 MB, or 60,000 of 1,000 bytes."""
    size = 60_000_000
    path = tmp_path / f"a.txt{suffix}"
    content = (b"abcd " * 199 + (b"abc \n" if line < size else b"abcde")) * (size // 1000)
    path.write_bytes(gzip.compress(content, 1) if suffix == ".gz" else COMPRESS[suffix](content))
    result = subprocess.run([sys.executable, "-c", PEAK, path], cwd=REPOSITORY, capture_output=True, check=True)
    grown, characters, most, split = map(int, result.stdout.split())
    longest = 16 << 20
    if line < size:
        assert (characters, split) == (size - size // 1000, 0) and most < 6 << 20 and grown < 2 * longest
    else:
        assert (characters, split) == (size, size // longest) and most <= longest and grown < 6 * longest
