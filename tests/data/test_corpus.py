"""Reading plain text: everything that is there, and a count of what is not UTF-8."""

import os

import pytest

from data import DataError
from data.corpus import Reading, corpus_files, read_texts


def test_files_and_folders_in_a_fixed_order(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "notes.md", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)  # read once
    assert corpus_files([tmp_path]) == [tmp_path / name for name in ("a.txt", "b.txt", "sub/c.txt", "z.txt")]
    assert corpus_files([tmp_path / "notes.md", tmp_path / "b.txt"]) == [tmp_path / "notes.md", tmp_path / "b.txt"]


def test_one_text_a_line_whatever_ends_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffUn été.\r\n\n   \n  Deux\tmots. \nTrois\x00.\nfin sans retour".encode())
    reading = Reading()
    assert list(read_texts([path], reading)) == ["Un été.", "Deux\tmots.", "Trois\x00.", "fin sans retour"]
    assert reading.not_utf8 == 0


def test_lines_that_are_not_utf8_are_counted_and_skipped(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"bon\n" + "été\n".encode("latin-1") + "été\n".encode() + b"\xc3\n")
    reading = Reading()
    assert list(read_texts([path], reading)) == ["bon", "été"]
    assert reading.not_utf8 == 2


def test_a_linked_folder_is_read(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "real")
    assert corpus_files([tmp_path / "corpus"]) == [tmp_path / "corpus/link/a.txt"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_counted_and_skipped_whole(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(("\ufeffUn film.\n" * 3).encode(encoding))
    reading = Reading()
    assert list(read_texts([tmp_path / "a.txt"], reading)) == []
    assert reading.not_utf8 >= 3


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nothing.txt", "There is no corpus"), ("empty", "no .txt file"), ("text.jsonl.gz", "not a plain-text file"),
     ("model.safetensors", "not a plain-text file"), ("fifo.txt", "not a plain-text file")],
)  # fmt: skip
def test_what_cannot_be_a_corpus_is_a_sentence(tmp_path, name, sentence):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo.txt")
    for file in ("text.jsonl.gz", "model.safetensors"):
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(DataError, match=sentence) as caught:
        corpus_files([tmp_path / name])
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_vanishes_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(read_texts([tmp_path / "gone.txt"], Reading()))
