"""Archives of fairseq's models: three files are unpacked; hostile or damaged archives are errors."""

import gzip
import io
import os
import tarfile

import pytest

from model import ModelError
from model.checkpoints import tarball
from model.checkpoints.tarball import is_tarball, open_tarball
from tests.model.checkpoints.files import assert_refused

CONTENT = b"PK" + os.urandom(2998)


def member(name, content=CONTENT, **changes):
    """A header and its content."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def build(*members, end=bytes(1024)):
    """A .tar written by hand, so that its headers can be wrong."""
    blocks = [info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512) for info, content in members]
    return b"".join(blocks) + end


@pytest.fixture
def out(tmp_path):
    """The folder to unpack into."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def unpack(content, out):
    (out.parent / "x.tar").write_bytes(content)
    return open_tarball(out.parent / "x.tar", out)


def refused(content, out, match):
    with pytest.raises(ModelError, match=match) as caught:
        unpack(content, out)
    assert str(caught.value).startswith(str(out.parent / "x.tar"))


WANTED = {"model.pt": CONTENT, "dict.txt": b"a 1\n", "sentencepiece.bpe.model": b"s" * 512}
OTHERS = {"._model.pt": b"of macOS", "README": b""}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_three_files_are_unpacked(tmp_path, out, form, mode):
    path = tmp_path / "camembert-base.tar.gz"
    with tarfile.open(path, mode, format=form, pax_headers={"comment": "é" * 700}) as archive:
        archive.addfile(member("camembert-base", b"", type=tarfile.DIRTYPE)[0])
        for name, content in {**WANTED, **OTHERS}.items():
            mtime = 0.5 if form == tarfile.PAX_FORMAT else 0  # 0.5 needs an extended header
            archive.addfile(member(f"camembert-base/{name}", content, mtime=mtime)[0], io.BytesIO(content))
    assert is_tarball(path)
    assert open_tarball(path, out) == out / "model.pt"
    assert {file.name: file.read_bytes() for file in out.iterdir()} == WANTED


def test_a_model_without_its_tokenizer(out):
    unpack(build(member("./model.pt")), out)
    assert os.listdir(out) == ["model.pt"]


def test_other_paths_are_not_tarballs(tmp_path):
    (tmp_path / "text").write_text("Le camembert " * 99)
    os.mkfifo(tmp_path / "fifo")
    for name in ("", "text", "fifo", "nothing", "x" * 300):
        assert not is_tarball(tmp_path / name)


MODEL = member("model.pt")
LINK = dict(type=tarfile.SYMTYPE, linkname="/etc/passwd")
HOSTILE = {
    "../ in a name": (build(member("../model.pt")), "'../model.pt', a path outside the archive"),
    "../ within": (build(MODEL, member("a/../../dict.txt")), "a path outside the archive"),
    "absolute": (build(member("/tmp/model.pt")), "'/tmp/model.pt', a path outside the archive"),
    "../ of another file": (build(MODEL, member("../../etc/cron")), "a path outside the archive"),
    "symbolic link": (build(member("model.pt", b"", **LINK)), "a link, device or partial file"),
    "hard link": (build(MODEL, member("dict.txt", b"", type=tarfile.LNKTYPE, linkname="model.pt")), "a link, device"),
    "linked folder": (build(member("a", b"", **LINK), member("a/model.pt")), "a link, device"),
    "device": (build(member("model.pt", b"", type=tarfile.CHRTYPE, devmajor=1)), "a link, device"),
    "fifo": (build(member("model.pt", b"", type=tarfile.FIFOTYPE)), "a link, device"),
    "sparse": (build(member("model.pt", type=tarfile.GNUTYPE_SPARSE)), "a link, device|damaged"),
    "huge": (build(member("model.pt", size=10**15)), "would unpack to more than"),
    "huge, of another file": (build(MODEL, member("x", size=10**15)), "would unpack to more than"),
    "huge header": (build(member("x", b"9 a=b\n", type=tarfile.XHDTYPE, size=10**15), MODEL), "would unpack to more"),
    "a negative size": (build(member("model.pt", size=-1)), "a size of -1"),
    "longer than the archive": (build(member("model.pt", size=10**6)), "truncated .it ends within a file"),
    "a folder with content": (build(member("model.pt", type=tarfile.DIRTYPE)), "a size of 3000"),
    "the same twice": (build(MODEL, MODEL), "contains model.pt twice"),
    "the same in two folders": (build(member("a/model.pt"), member("b/model.pt")), "contains model.pt twice"),
    "no model": (build(member("a/dict.txt"), member("model.pt/readme")), "contains no model.pt"),
    "empty": (build(), "contains no model.pt"),
    "without an end": (build(MODEL, end=b""), "damaged or truncated"),
    "half a header": (build(MODEL)[:-1024] + MODEL[0].tobuf()[:300], "damaged or truncated"),
    "garbage after": (build(MODEL, end=b"garbage!" * 64), "damaged or truncated"),
    "a web page as model.pt": (build(member("model.pt", b"<html>")), "contains a model.pt that is no PyTorch file"),
    "a million files": (build(*[member(f"{i}", b"") for i in range(1001)], MODEL), "more than 1000 files"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("content", "sentence"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_an_error(tmp_path, out, content, sentence, packed):
    refused(gzip.compress(content) if packed else content, out, sentence)
    found = {path for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert found <= {tmp_path / "x.tar", *(out / name for name in tarball.WANTED)}
    assert not any(path.is_symlink() for path in found)


PACKED = gzip.compress(build(MODEL))
DAMAGED = [PACKED[:-4], PACKED[: len(PACKED) // 2], PACKED[:12], PACKED[:3]]
DAMAGED += [PACKED[:100] + b"\xff" * 9, PACKED[:-8] + bytes(8), PACKED + b"garbage"]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_truncated_or_damaged_gzip_is_an_error(out, content):
    refused(content, out, "damaged or truncated")


ZEROS = bytes(600_000)
BOMBS = [build(member("a", ZEROS), member("b", ZEROS), MODEL), build(member("model.pt", bytes(1_000_001)))]


@pytest.mark.parametrize("bomb", BOMBS, ids=["two files", "one"])
def test_a_bomb_is_stopped(out, monkeypatch, bomb):
    monkeypatch.setattr(tarball, "MAX_BYTES", 10**6)
    refused(gzip.compress(bomb), out, "more than the limit of 1,000,000 bytes")
    assert not os.listdir(out)


def test_nothing_is_written_before_all_is_checked(tmp_path, out, monkeypatch):
    """Of what an archive declares and of the first bytes of its model, before its other files are unpacked."""
    bombs = {
        "no PyTorch file": build(member("dict.txt"), member("model.pt", bytes(10**6))),
        "more than 1000 files": build(MODEL, *[member(f"{i}", b"") for i in range(1001)]),
        "contains model.pt twice": build(MODEL, MODEL),
        "more than the limit of 1,000 bytes": build(member("x", CONTENT, size=10**5)),
        "contains no model.pt": build(member("dict.txt")),
        "or no tar archive. If it is one compressed file, run gunzip": b"PK" + bytes(5000),
    }
    monkeypatch.setattr(tarball, "SMALL", 1000)
    monkeypatch.setattr(tarball, "MAX_RATIO", 0)
    for sentence, content in bombs.items():
        if "limit" not in sentence:
            monkeypatch.setattr(tarball, "SMALL", 10**8)
        refused(gzip.compress(content), out, sentence)
        assert not os.listdir(out)
        monkeypatch.setattr(tarball, "SMALL", 1000)


def test_memory_stays_flat(out, monkeypatch):
    """No read asks for more than a chunk, whatever size the headers give, extended headers too."""
    sizes = []

    class Watched(gzip.GzipFile):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    monkeypatch.setattr(gzip, "open", Watched)
    big = b"PK" + bytes(5 << 20)
    members = member("x", big, type=tarfile.XHDTYPE), member("y", big, type=tarfile.GNUTYPE_LONGNAME), member("z", big)
    unpack(gzip.compress(build(*members, member("model.pt", big))), out)
    assert (out / "model.pt").read_bytes() == big
    assert min(sizes) > 0 and max(sizes) <= tarball.CHUNK


def test_a_full_disk_is_an_error(out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tarball.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2999}))
        refused(build(MODEL), out, "unpacks to 3,000 bytes in .*, where 2,999 are free. Free some space")
    with pytest.raises(ModelError, match="cannot be unpacked into .*nowhere"):
        open_tarball(out.parent / "x.tar", out.parent / "nowhere")


def test_through_load_checkpoint(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(build(member("../model.pt"))))
    assert_refused(tmp_path / "x.tar.gz", "a path outside the archive")
