"""Archives of fairseq's models: three files are unpacked; hostile or damaged archives are errors."""

import gzip
import io
import os
import tarfile

import pytest

from model import ModelError
from model.checkpoints import tarball
from model.checkpoints.load import load_checkpoint
from model.checkpoints.tarball import is_tarball, open_tarball

CONTENT = os.urandom(3000)


def member(name, content=CONTENT, **changes):
    """A header and its content."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def build(*members, end=bytes(1024), form=tarfile.GNU_FORMAT):
    """A .tar written by hand, so that its headers can be wrong."""
    blocks = [info.tobuf(form) + content + bytes(-len(content) % 512) for info, content in members]
    return b"".join(blocks) + end


INTACT = [
    ("camembert-base/model.pt", CONTENT),
    ("camembert-base/dict.txt", b"a 1\n"),
    ("camembert-base/sentencepiece.bpe.model", b"s" * 512),
    ("camembert-base/._model.pt", b"of macOS"),
    ("camembert-base/README", b""),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_three_files_are_unpacked(tmp_path, form, mode):
    path = tmp_path / "camembert-base.tar.gz"
    with tarfile.open(path, mode, format=form, pax_headers={"comment": "é" * 700}) as archive:
        folder = tarfile.TarInfo("camembert-base")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in INTACT:
            mtime = 0.5 if form == tarfile.PAX_FORMAT else 0  # 0.5 needs an extended header
            info, _ = member(name, content, mtime=mtime)
            archive.addfile(info, io.BytesIO(content))
    assert is_tarball(path)
    (tmp_path / "out").mkdir()
    assert open_tarball(path, tmp_path / "out") == tmp_path / "out" / "model.pt"
    assert sorted(os.listdir(tmp_path / "out")) == ["dict.txt", "model.pt", "sentencepiece.bpe.model"]
    for name, content in INTACT[:3]:
        assert (tmp_path / "out" / os.path.basename(name)).read_bytes() == content


def test_a_model_without_its_tokenizer(tmp_path):
    (tmp_path / "x.tar").write_bytes(build(member("./model.pt")))
    (tmp_path / "out").mkdir()
    open_tarball(tmp_path / "x.tar", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["model.pt"]


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
    "a million files": (build(*[member(f"{i}", b"") for i in range(1001)], MODEL), "more than 1000 files"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_an_error(tmp_path, case, packed):
    content, sentence = HOSTILE[case]
    path = tmp_path / "in" / "model.tar"
    (tmp_path / "in" / "out").mkdir(parents=True)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ModelError, match=sentence) as caught:
        open_tarball(path, tmp_path / "in" / "out")
    assert str(caught.value).startswith(str(path))
    found = {os.path.join(root, name) for root, _, names in os.walk(tmp_path) for name in names}
    out = tmp_path / "in" / "out"
    assert found <= {str(path), *(str(out / name) for name in tarball.WANTED)}
    assert not any(os.path.islink(name) for name in found)


def test_a_truncated_or_damaged_gzip_is_an_error(tmp_path):
    packed = gzip.compress(build(MODEL))
    (tmp_path / "out").mkdir()
    truncated = [packed[:-4], packed[: len(packed) // 2], packed[:12], packed[:3]]
    for content in (*truncated, packed[:100] + b"\xff" * 9, packed[:-8] + bytes(8), packed + b"garbage"):
        (tmp_path / "model.tar.gz").write_bytes(content)
        (tmp_path / "out" / "model.pt").unlink(missing_ok=True)
        with pytest.raises(ModelError, match="damaged or truncated"):
            open_tarball(tmp_path / "model.tar.gz", tmp_path / "out")


def test_a_bomb_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(tarball, "MAX_BYTES", 10**6)
    (tmp_path / "out").mkdir()
    zeros = bytes(600_000)
    bombs = [build(member("a", zeros), member("b", zeros), MODEL), build(member("model.pt", bytes(1_000_001)))]
    for bomb in bombs:
        (tmp_path / "x.tar.gz").write_bytes(gzip.compress(bomb))
        with pytest.raises(ModelError, match="more than the limit of 1,000,000 bytes"):
            open_tarball(tmp_path / "x.tar.gz", tmp_path / "out")
    assert not os.listdir(tmp_path / "out")


def test_memory_stays_flat(tmp_path, monkeypatch):
    """No read asks for more than a chunk, whatever size the headers give, extended headers too."""
    sizes = []

    class Watched(gzip.GzipFile):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    big = bytes(5 << 20)
    members = member("x", big, type=tarfile.XHDTYPE), member("y", big, type=tarfile.GNUTYPE_LONGNAME), member("z", big)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(build(*members, member("model.pt", big))))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(gzip, "open", Watched)
    open_tarball(tmp_path / "x.tar.gz", tmp_path / "out")
    assert (tmp_path / "out" / "model.pt").read_bytes() == big
    assert min(sizes) > 0 and max(sizes) <= tarball.CHUNK


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "x.tar").write_bytes(build(MODEL))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(tarball.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2999}))
    with pytest.raises(ModelError, match="more than the limit of 2,999 bytes"):
        open_tarball(tmp_path / "x.tar", tmp_path / "out")
    with pytest.raises(ModelError, match="cannot be unpacked into .*nowhere"):
        monkeypatch.undo()
        open_tarball(tmp_path / "x.tar", tmp_path / "nowhere")


def test_through_load_checkpoint(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(build(member("../model.pt"))))
    with pytest.raises(ModelError, match="a path outside the archive"):
        load_checkpoint(tmp_path / "x.tar.gz")
