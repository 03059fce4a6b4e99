"""The files in a file, however they are packed; hostile archives do no harm."""

import bz2
import contextlib
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from types import SimpleNamespace

import pytest

from data import archives, formats
from data.archives import DAMAGE, open_members, random_access
from data.cli import DataError
from tests.data.prepared import COMPRESS
from tests.data.test_formats import FRENCH, LINES

FILES = {"a/one.txt": FRENCH.encode() * 99, "two.jsonl": LINES.encode(), "é" * 150 + ".txt": b"x", "empty": b""}


def pack_tar(files: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def pack_zip(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


class Pipe(io.BytesIO):
    """A few bytes at a time, not seekable."""

    def read1(self, size=-1):
        return super().read1(min(size, 1000))

    def seekable(self):
        return False


def read(content: bytes, name: str = "x") -> dict[str, bytes]:
    """-> the content of each member by its name in the archive; the same from a file and from a pipe"""
    found = [
        {member.name.removeprefix(f"{name}/"): member.stream.read() for member in open_members(file, name)}
        for file in (io.BufferedReader(io.BytesIO(content)), Pipe(content))
    ]
    assert found[0] == found[1]
    return found[0]


PACKINGS = [
    *(lambda files, format=format: pack_tar(files, format) for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
    pack_zip,
    lambda files: pack_zip(files, zipfile.ZIP_STORED),
    *(lambda files, compress=compress: compress(pack_tar(files)) for compress in COMPRESS.values()),
    lambda files: gzip.compress(gzip.compress(pack_zip(files))),
    lambda files: pack_zip({name: gzip.compress(content) for name, content in files.items()}),
    lambda files: pack_tar({name: bz2.compress(content) for name, content in files.items()}),
    lambda files: lzma.compress(pack_tar(files), format=lzma.FORMAT_ALONE),
]


@pytest.mark.parametrize("pack", PACKINGS)
def test_members_are_found_in_order_in_every_packing(pack):
    found = read(pack(FILES))
    assert found == FILES and list(found) == list(FILES)


def test_archives_in_archives_are_read_to_a_limit():
    inner = pack_tar({"b.zip": pack_zip({"c.txt.gz": gzip.compress(b"Un film.")})})
    (member,) = open_members(io.BytesIO(gzip.compress(inner)), "a.tgz")
    assert member.name == "a.tgz/b.zip/c.txt.gz" and member.stream.read() == b"Un film."
    assert member.layers == (formats.GZIP, formats.TAR, formats.ZIP, formats.GZIP) and member.form == formats.TEXT
    content = b"Un film."
    for _ in range(archives.MAX_LAYERS + 1):
        content = gzip.compress(content)
    assert [member.form for member in open_members(io.BytesIO(content), "x")] == [formats.DEEP]


def test_folders_links_and_hidden_files_are_no_members():
    names = ["a.txt", ".hidden", "x/.git/config", "__MACOSX/._a.txt", "./b.txt", "x/../c.txt"]
    files = dict.fromkeys(names, b"x")
    kept = ["a.txt", "./b.txt", "x/../c.txt"]
    assert list(read(pack_tar(files))) == list(read(pack_zip(files | {"folder/": b""}))) == kept
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("link")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert read(file.getvalue()) == {}
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    assert read(pack_zip({link: b"/etc/passwd"})) == {}


DOCUMENTS = [
    ({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}, formats.OFFICE),
    ({"mimetype": b"application/epub+zip", "a.xhtml": b"<x/>"}, formats.BOOK),
    ({"archive/data.pkl": b"\x80\x02", "archive/data/0": b"x"}, formats.TORCH),
    ({"a.npy": b"\x93NUMPY", "b.npy": b"\x93NUMPY"}, formats.NUMPY),
]


@pytest.mark.parametrize(("files", "form"), DOCUMENTS)
def test_documents_that_are_zip_archives(files, form):
    assert [(member.name, member.form) for member in open_members(io.BytesIO(pack_zip(files)), "x")] == [("x", form)]


def test_members_of_a_zip_that_cannot_be_read_have_their_own_forms():
    packed = pack_zip({"a": b"x" * 99, "b": b"y" * 99}, zipfile.ZIP_BZIP2)
    assert [member.form for member in open_members(io.BytesIO(packed), "x")] == [formats.RARE_ZIP] * 2
    encrypted = bytearray(pack_zip({"a": b"x"}))
    for place, header in ((6, b"PK\x03\x04"), (8, b"PK\x01\x02")):
        encrypted[encrypted.index(header) + place] |= 1
    assert [member.form for member in open_members(io.BytesIO(encrypted), "x")] == [formats.ENCRYPTED]


def test_names_are_labels_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for pack in (pack_tar, pack_zip):
        found = read(pack({"../../evil.txt": b"1", "/abs.txt": b"2", "\x1b[2J\n.txt": b"3", "n" * 300: b"4"}))
        assert list(found) == ["../../evil.txt", "/abs.txt", "?[2J?.txt", "n" * 200] and not list(tmp_path.iterdir())


def header(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo("a.txt")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "a size beyond the end": header(1 << 60) + b"x" * 1000,
    "a name of 8 GB": header(1 << 33, tarfile.GNUTYPE_LONGNAME) + b"x" * 1000,
    "an extended header of 8 GB": header(1 << 33, tarfile.XHDTYPE) + b"x" * 1000,
    "a negative size": header(-5) + b"x" * 1000,
    "no header after a member": header(5) + b"x" * 512 + b"y" * 512,
    "half a header": header(0) + header(0)[:300],
    "no central directory": pack_zip({"a": b"x"})[:40],
    "a wrong checksum": pack_zip({"a": b"x"}, zipfile.ZIP_STORED).replace(b"x", b"y", 1),
    "gzip in damaged gzip": gzip.compress(gzip.compress(LINES.encode()))[:-20],
}


@pytest.mark.parametrize("why", HOSTILE)
def test_hostile_and_damaged_archives_end_in_damage(why):
    with pytest.raises(DAMAGE) as caught:
        for member in open_members(io.BytesIO(HOSTILE[why]), "x"):
            assert len(member.stream.peek()) <= 1000 or "gzip" in why
            member.stream.read()
    assert getattr(caught.value, "errno", None) is None  # it is not the disk's


def test_random_damage_ends_in_damage_or_not_at_all(tmp_path):
    chance = random.Random(0)
    for pack in PACKINGS[:8]:
        packed = pack(FILES)
        for _ in range(60):
            damaged = bytearray(packed[: chance.choice([len(packed), chance.randrange(len(packed))])])
            for _ in range(chance.choice([0, 1, 9]) if damaged else 0):
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            (tmp_path / "x").write_bytes(damaged)
            with open(tmp_path / "x", "rb") as file:
                try:
                    for member in open_members(file, "x"):
                        member.stream.read()
                except DAMAGE as error:
                    assert getattr(error, "errno", None) is None


@pytest.mark.parametrize("pack", [gzip.compress, lambda bomb: pack_zip({"a": bomb}), bz2.compress])
def test_a_bomb_is_read_in_small_pieces(pack, monkeypatch):
    packed, sizes = pack(bytes(50 << 20)), []
    (member,) = open_members(io.BytesIO(packed), "x")
    while piece := member.stream.read1(archives.CHUNK):
        sizes.append(len(piece))
    assert sum(sizes) == 50 << 20 and max(sizes[1:]) <= archives.CHUNK


def test_what_needs_random_access_is_copied_up_to_a_limit(monkeypatch):
    packed = pack_zip({"a": random.Random(0).randbytes(1 << 17)})
    (member,) = open_members(Pipe(gzip.compress(packed)), "x")
    assert len(member.stream.read()) == 1 << 17
    monkeypatch.setattr(archives, "SPOOL_BYTES", 1 << 16)
    with pytest.raises(DataError, match="x is too large to be read from a stream .*: 0.1 MB can be copied to .*Unpack"):
        list(open_members(Pipe(packed), "x"))
    stream = archives.Stream(io.BufferedReader(io.BytesIO(packed)))
    assert stream.peek(4) == b"PK\x03\x04"
    with random_access(stream, "x") as file:
        assert file.read() == packed  # a file is not copied


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: pack_zip({"a.zip": content})])
def test_a_bomb_is_refused_by_its_ratio_before_gigabytes_are_copied(monkeypatch, pack):
    monkeypatch.setattr(archives, "SMALL", 1 << 18)
    written = []
    monkeypatch.setattr(archives.tempfile, "TemporaryFile", lambda: contextlib.closing(Counted(written)))
    bomb = io.BufferedReader(io.BytesIO(pack(b"PK\x03\x04" + bytes(1 << 24))))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        list(open_members(bomb, "x"))
    assert sum(written) < 1 << 21
    whole = pack_zip({"a": random.Random(0).randbytes(1 << 19)})  # hardly compresses
    members = open_members(io.BufferedReader(io.BytesIO(pack(whole))), "x")
    assert [len(member.stream.read()) for member in members] == [1 << 19]


def test_peeking_changes_nothing_and_damage_comes_after_all_bytes_before_it():
    whole = random.Random(0).randbytes(1 << 19)
    packed = gzip.compress(whole, 1)[:-9]
    for peeked in (0, 10, 1 << 18, 1 << 22):
        stream, found = archives.Stream(gzip.GzipFile(fileobj=io.BytesIO(packed))), bytearray()
        first = stream.peek(peeked)
        with pytest.raises(EOFError):
            while piece := stream.read1(7777):
                found += piece
        assert found.startswith(first) and whole.startswith(found) and len(whole) - len(found) < 1000
        with pytest.raises(EOFError):  # again
            stream.read()


@pytest.mark.parametrize("free", [1 << 16, 10**12])
def test_a_declared_size_is_refused_before_anything_is_copied(monkeypatch, free):
    """Of a zip in a tar, above the limit or the free space; a stream of unknown size is copied up to it."""
    packed = pack_zip({"a": random.Random(0).randbytes(1 << 17)})
    monkeypatch.setattr(archives, "SPOOL_BYTES", 1 << 16 if free > 1 << 16 else 1 << 40)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    written = []
    monkeypatch.setattr(archives.tempfile, "TemporaryFile", lambda: contextlib.closing(Counted(written)))
    for name, content in {"x/a": pack_tar({"a": packed}), "x": packed}.items():
        written.clear()
        with pytest.raises(DataError, match=f"{name} is too large to be read from a stream .*: 0.1 MB can be copied"):
            list(open_members(Pipe(content), "x"))
        assert sum(written) <= (0 if name == "x/a" else 1 << 16)


class Counted(io.BytesIO):
    """Notes how many bytes are written."""

    def __init__(self, written):
        super().__init__()
        self.written = written

    def write(self, content):
        self.written.append(len(content))
        return super().write(content)
