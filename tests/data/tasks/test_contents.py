"""Task files by their bytes, whatever their names say: compression, archives, encodings, other files."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

import data.tasks.contents as module
from data import DataError
from data.tasks import read_task
from data.tasks.contents import is_about
from tests.data.tasks.files import THREE, pairs, write

TSV = ("premise\thypothesis\tlabel\n" + "".join("\t".join(pair) + "\n" for pair in THREE)).encode()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("name", ["f", "f.tsv", "f.gz", "f.zip", "f.parquet"])
@pytest.mark.parametrize("form", [gzip.compress, bz2.compress, lzma.compress, lambda c: bz2.compress(tarred({"a": c}))])
def test_the_name_says_nothing(examples, form, name):
    found, _ = examples("nli", form(TSV), name)
    assert found == THREE
    found, reports = examples("nli", TSV, name)
    assert found == THREE and len(reports) == (name not in ("f", "f.tsv"))
    assert all(report.endswith(f"/{name} is plain text, in spite of its name.") for report in reports)


def test_zstandard(examples):
    zstandard = pytest.importorskip("zstandard")
    assert examples("nli", zstandard.compress(TSV)) == (THREE, [])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
def test_encodings_with_a_mark(examples, encoding):
    """Spreadsheets save Unicode text as UTF-16."""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    assert examples("nli", (mark + TSV.decode()).encode(encoding)) == (THREE, [])


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives(tmp_path, monkeypatch, examples, pack):
    about = {"README.md": b"texte", "__MACOSX/x": b"y", "XNLI/.DS_Store": b"z", "LICENSE": b"l", "doc.pdf": b"%PDF-1"}
    assert examples("nli", pack(about | {"XNLI/xnli.dev.tsv": TSV}))[0] == THREE
    path = write(tmp_path / "XNLI.zip", pack(about | {"XNLI/dev.tsv": TSV, "XNLI/test.tsv": TSV.rpartition(b"P\t")[0]}))
    with pytest.raises(DataError) as error:
        read_task("nli", [path], print)
    cure = f"Unpack it, or name one, as {path}/XNLI/dev.tsv. It has XNLI/dev.tsv, XNLI/test.tsv."
    assert str(error.value) == f"{path} is an archive of 2 files. {cure}"
    assert read_task("nli", [f"{path}/XNLI/dev.tsv"], print) == THREE
    assert len(read_task("nli", [f"{path}/XNLI/test.tsv"], print)) == 2
    monkeypatch.chdir(tmp_path)
    assert read_task("nli", ["./XNLI.zip/XNLI/dev.tsv"], print) == THREE
    for absent in ("XNLI/train.tsv", "XNLI", "XNLI/../x"):
        with pytest.raises(DataError, match=rf"XNLI.zip has no file {absent}. It has README.md, "):
            read_task("nli", [f"{path}/{absent}"], print)
    with pytest.raises(DataError, match="is an archive of 2 files"):
        read_task("nli", [f"{path}/"], print)
    path.write_bytes(TSV)
    with pytest.raises(DataError, match="XNLI.zip is not an archive, so there is no dev.tsv in it"):
        read_task("nli", [f"{path}/dev.tsv"], print)


def test_what_a_member_is_called_is_no_contradiction(examples):
    for name, archive in (("xnli.zip", zipped), ("xnli.tar", tarred)):
        assert examples("nli", archive({"XNLI-1.0/xnli.test.tsv": TSV}), name) == (THREE, [])


def test_tweets_in_an_archive(tmp_path):
    path = write(
        tmp_path / "t.zip",
        zipped({"train_text.txt": b"un\ndeux\n", "train_labels.txt": b"0\n2\n"}),
    )
    assert read_task("sentiment", [f"{path}/train_text.txt"], print) == pairs(("un", "0"), ("deux", "2"))


def test_parquet_in_an_archive(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "label": ["x"]}), file)
    for content in (zipped({"a": file.getvalue()}), gzip.compress(file.getvalue())):
        assert read_task("sentiment", [write(tmp_path / "f", content)], print) == pairs(("a", "x"))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"%PDF-1.7 x", ("is a PDF document.",)),
        (b"<!DOCTYPE html><html>", ("is an HTML page.",)),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ("a Git LFS pointer", "git lfs pull")),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}", ("a Python pickle",)),
        (b"Rar!\x1a\x07\x01\0", ("a RAR archive. Unpack it first.",)),
        (zipped({}), ("is an archive without files",)),
        (zipped({"a": b"%PDF-1.7 x"}), ("/a is a PDF document",)),
        (zipped({"a": TSV})[:-40], ("cannot be read",)),
        (lzma.compress(TSV * 99)[:-30], ("cannot be read",)),
        (bz2.compress(TSV)[:-5], ("cannot be read",)),
        ("premise\thypothesis\tlabel\né\tb\tneutral\n".encode("latin-1"), ("line 2 is not UTF-8. Convert the file",)),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, words):
    path = write(tmp_path / "f.tsv", content)
    with pytest.raises(DataError) as error:
        read_task("nli", [path], print)
    assert str(error.value).startswith(str(path)) and all(word in str(error.value) for word in words), error.value


def test_the_size_of_a_text_is_bounded(tmp_path, monkeypatch):
    """A gzip file of a kilobyte may have a gigabyte of text."""
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    for content in (gzip.compress(b"a\t" * (1 << 20)), zipped({"a": b"a\t" * (1 << 20)})):
        with pytest.raises(DataError, match="has more than 1 MB of text. Split it into several files"):
            read_task("nli", [write(tmp_path / "f", content)], print)


@pytest.mark.parametrize(
    "names, about",
    [
        ("README.md readme.txt LISEZMOI CITATION.cff LICENSE LICENSE-2.0.txt a/.DS_Store dataset_infos.json", True),
        (
            "citations.txt citation.csv licence_train.jsonl licenciement.tsv citations_train.txt",
            False,
        ),
    ],
)
def test_files_about_the_data(names, about):
    assert [is_about(name) for name in names.split(" ")] == [about] * (names.count(" ") + 1)


@pytest.mark.parametrize("content", [b"", "Été,été\n".encode("latin-1") * 9])
def test_what_cannot_be_read_contradicts_no_name(tmp_path, content):
    notes = []
    with pytest.raises(DataError):
        read_task("sentiment", [write(tmp_path / "f.csv", content)], notes.append)
    assert notes == []
