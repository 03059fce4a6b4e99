"""Paths to sources: in a fixed order, and what cannot be read is refused or skipped by its own name."""

import errno
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from data import DataError
from data.cli import OptionError
from data.corpus.files import Candidate, corpus_files, find_sources
from tests.data.prepared import write, write_parquet


def names(*paths: Path | str) -> list[str]:
    return [file.name for file in corpus_files(paths)]


def find(*paths: Path, field: str | None = None, documents: str = "auto") -> tuple[list[str], list[str]]:
    """-> names of the sources below the first path's folder, notes"""
    notes = []
    found = find_sources(corpus_files(paths), field, documents, notes.append)
    return [Path(source.name).name for source in found], notes


def touch(folder: Path, *names: str) -> list[str]:
    """Makes these files -> their paths"""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return [str(folder / name) for name in names]


def test_files_and_folders_in_a_fixed_order(tmp_path):
    corpus, real = tmp_path / "corpus", tmp_path / "real"
    touch(corpus, "z.txt.zst", "sub/d.parquet", "sub/c.JSONL", "b.txt", "a.txt.gz", "part-00000", "x.csv")
    touch(corpus, ".hidden.txt", ".git/config", "sub/.part-00000.crc")
    touch(real, "e.txt")
    (corpus / "sub" / "link").symlink_to(real)
    (corpus / "sub" / "loop").symlink_to(corpus)  # read once
    expected = (
        "a.txt.gz",
        "b.txt",
        "part-00000",
        "sub/c.JSONL",
        "sub/d.parquet",
        "sub/link/e.txt",
        "x.csv",
        "z.txt.zst",
    )
    assert corpus_files([corpus]) == [Candidate(str(corpus / name), False) for name in expected]
    given = [str(corpus / ".hidden.txt"), "-", str(corpus / "b.txt")]
    assert corpus_files(given) == [Candidate(name, True) for name in given]
    with pytest.raises(DataError, match="once"):
        corpus_files(["-", "-"])


def test_patterns_give_all_matching_files_sorted(tmp_path):
    b, a, _, c, x = touch(tmp_path, "b.txt", "a.txt", "a.csv", "sub/c.txt", "x[1].txt")
    (tmp_path / "folder.txt").mkdir()
    assert names(tmp_path / "[ab].txt") == [a, b]
    assert names(f"{tmp_path}/**/c.*") == [c]
    assert names(tmp_path / "x[1].txt") == [x]  # an existing name, not a pattern


def test_a_folder_with_several_names_is_read_under_the_first(tmp_path, monkeypatch):
    touch(tmp_path, "b/x.txt")
    for name in "acd":
        (tmp_path / name).symlink_to(tmp_path / "b")
    walk = os.walk
    for backwards in (False, True):  # the order in which a disk lists them is not fixed

        def walked(*arguments, backwards=backwards, **settings):
            for place, folders, names in walk(*arguments, **settings):
                folders.sort(reverse=backwards)
                yield place, folders, names

        monkeypatch.setattr(os, "walk", walked)
        assert names(tmp_path) == [str(tmp_path / "a" / "x.txt")]


NOT_A_CORPUS = dict.fromkeys(("nothing.txt", "*.nothing"), "There is no corpus") | {"empty": "has no file"}
NOT_A_CORPUS |= dict.fromkeys(("fifo.txt", "gone.txt"), "is not a file")
NOT_A_CORPUS |= dict.fromkeys(("*.txt", "folder"), "fifo.txt is not a file")


@pytest.mark.parametrize("name", NOT_A_CORPUS)
def test_paths_without_files_are_refused(tmp_path, name):
    touch(tmp_path, "folder/notes.md")
    (tmp_path / "empty").mkdir()
    for fifo in ("fifo.txt", "folder/fifo.txt"):
        os.mkfifo(tmp_path / fifo)  # opening it would block
    (tmp_path / "gone.txt").symlink_to(tmp_path / "missing")
    with pytest.raises(DataError, match=NOT_A_CORPUS[name]) as caught:
        corpus_files([tmp_path / name])
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("folder", ["corpus", "corpus/sub"])
def test_an_unreadable_folder_is_an_error(tmp_path, monkeypatch, folder):
    touch(tmp_path, "corpus/a.txt", "corpus/sub/b.txt")

    def no_entry(path, scandir=os.scandir):
        if path == str(tmp_path / folder):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", no_entry)
    with pytest.raises(DataError, match=f"{folder} cannot be read: Permission denied"):
        corpus_files([tmp_path / "corpus"])


REFUSALS = {  # content -> what the message says
    b"%PDF-1.7\n%\xe2\xe3": "a PDF document. Extract its text first, for example with pdftotext",
    b"SQLite format 3\x00" + bytes(99): "an SQLite database",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "a Git LFS pointer.*git lfs pull",
    b"<!DOCTYPE html>\n<html>": "an HTML page",
    "\n".join(f"é {n}" for n in range(9)).encode("latin-1"): "not UTF-8. Convert it.*iconv",
    b"id,phrase\n"
    + b"1,Un film\n"
    * 5: "has no column text or content. Give the text column with --field of data.prepare. It has id, phrase",
    b"1\tUn film.\n" * 5: "a table without names of columns",
}


@pytest.mark.parametrize("content", REFUSALS)
@pytest.mark.parametrize("name", ["a.txt", "part-00000", "a.txt.gz"])
def test_what_has_no_text_is_refused_by_name_and_skipped_in_a_folder(tmp_path, content, name):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=f"{name} (is )?{REFUSALS[content]}"):
        find(path)
    write(tmp_path / "b.txt", b"Un film.\n")
    found, (note,) = find(tmp_path)
    assert found == ["b.txt"] and note.startswith(str(path)) and note.endswith("It was skipped.")


def test_descriptions_in_a_folder_are_skipped_unless_given_by_name(tmp_path):
    touch(tmp_path, "README.md", "LICENSE", "_SUCCESS", "dataset_infos.json", "MD5SUMS.txt", "load.py")
    touch(tmp_path, "licences.txt.gz", "corpus.txt", "licence_droit_2020.txt", "part-00000")
    found, (note,) = find(tmp_path)
    assert found == ["corpus.txt", "licence_droit_2020.txt", "part-00000"]
    assert note.startswith("7 files have names of descriptions and were skipped (") and "LICENSE, " in note
    assert find(tmp_path / "README.md") == (["README.md"], [])


def archive(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("empty.txt"), io.BytesIO())
    return path


def test_a_field_needs_a_file_that_can_have_one(tmp_path):
    text, more = write(tmp_path / "a.txt", b"Un film.\n"), write(tmp_path / "b.txt", b"Un livre.\n")
    with pytest.raises(OptionError, match="--field body has no meaning: the input is plain text"):
        find(text, more, field="body")
    others = [write(tmp_path / "c", b'{"body": "Un film."}\n'), write(tmp_path / "d", b'[{"body": "Un film."}]')]
    others += [write(tmp_path / "e", b"id,body\n" + b"1,Un film\n" * 3), archive(tmp_path / "f"), "-"]
    others.append(write_parquet(tmp_path / "g", {"body": ["Un film."]}))
    for other in others:
        assert find(text, other, more, field="body") == (["a.txt", Path(other).name, "b.txt"], [])


def test_a_damaged_archive_is_left_to_the_reader(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 damaged")
    with zipfile.ZipFile(tmp_path / "b.zip", "w"):
        pass
    assert find(tmp_path) == (["a.zip", "b.zip"], [])
