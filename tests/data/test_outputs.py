"""A link at an output's name is never written through: it is replaced, or refused with a sentence."""

import gzip
import os
import tarfile

import pytest

from data import DataError
from data.corpus.shards import ShardWriter
from data.outputs import check_folder, make_folder, new_file, open_to_append, remove_tree, write_file
from tests.data.prepared import command, lines, make, write
from tests.data.stored import tree


def link(kind: str, path, target):
    """A link to a file with the content `precious`, or to none."""
    if kind != "dangling":
        target.write_bytes(b"precious")
    (os.link if kind == "hard" else os.symlink)(target, path)


def unharmed(kind: str, target) -> bool:
    return not os.path.lexists(target) if kind == "dangling" else target.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling"])
def test_a_link_at_a_files_name_is_replaced(tmp_path, kind):
    target = tmp_path / "elsewhere"

    def create(path):
        with new_file(path) as file:
            file.write(b"text")

    def append(path):
        with open_to_append(path) as file:
            file.write(b"text")

    for write_it, kept in ((create, b""), (append, b"precious"), (lambda path: write_file(path, b"text"), b"")):
        path = tmp_path / "out"
        link(kind, path, target)
        write_it(path)
        assert path.read_bytes() == (b"" if kind == "dangling" else kept) + b"text" and unharmed(kind, target)
        assert path.stat().st_nlink == 1 and not path.is_symlink()
        for each in tmp_path.iterdir():
            each.unlink()


def test_a_plain_file_is_appended_to_in_place(tmp_path):
    path = tmp_path / "log"
    for _ in range(2):
        with open_to_append(path) as file:
            file.write(b"line\n")
            inode = os.fstat(file.fileno()).st_ino
    assert path.read_bytes() == b"line\n" * 2 and path.stat().st_ino == inode


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_file(tmp_path / "out", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_file(tmp_path / "folder", b"text")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_name_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("é" * 127)
    write_file(path, b"text")
    assert path.read_bytes() == b"text"


def test_links_at_the_names_of_folders(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / "out").symlink_to("elsewhere")
    for refuse in (check_folder, make_folder):
        with pytest.raises(
            DataError, match="out is a symbolic link, through which nothing is written. Remove the link"
        ):
            refuse(tmp_path / "out")
    remove_tree(tmp_path / "out")
    assert os.listdir(tmp_path) == ["elsewhere"] and os.listdir(tmp_path / "elsewhere") == ["precious"]


# ---- data.prepare ----------------------------------------------------------------------------------------------


def test_data_prepare_writes_through_no_link(tmp_path, text):
    """Neither at a final name nor at that of a temporary file; the output folder may be a link."""
    make(tmp_path / "plain", text, duplicates_mb=1)
    real, out, target = tmp_path / "disk", tmp_path / "out", tmp_path / "elsewhere"
    real.mkdir()
    out.symlink_to(real)
    target.write_bytes(b"precious")
    names = [*tree(tmp_path / "plain"), "manifest.unfinished.json", "seen-00000.u8"]
    for name in [*(f".{name}.partial" for name in names), "train-00000.bin", "held-out-00000.ends"]:
        (out / name).symlink_to(target)
    make(out, text, duplicates_mb=1)
    assert target.read_bytes() == b"precious" and tree(out) == tree(tmp_path / "plain")
    assert not any(path.is_symlink() for path in out.iterdir())


def test_a_shard_is_not_written_into_a_file_with_another_name(tmp_path):
    target = tmp_path / "elsewhere"
    link("hard", tmp_path / ".train-00000.bin.partial", target)
    writer = ShardWriter(tmp_path, "train-00000")
    writer.file.write(b"tokens")
    writer.finish()
    assert target.read_bytes() == b"precious" and (tmp_path / "train-00000.bin").read_bytes() == b"tokens"


# ---- text in another encoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "said"), [(1, False), (40, True)])
@pytest.mark.parametrize("shard_tokens", [1000, 10**6])
def test_a_file_that_loses_lines_is_named_with_the_command(tmp_path, small_parts, lost, said, shard_tokens):
    good = lines(400).encode()
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "good.txt", good)
    write(folder / "its Latin.txt", good + "Un café à Brest, où il est né.\n".encode("latin-1") * lost)
    result = command(tmp_path / "out", folder, "--shard-tokens", shard_tokens)
    assert result.returncode == 0 and f"{lost} lines that are not UTF-8" in result.stdout
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    count = 400 + lost if len(set(good.splitlines())) == 400 else None
    assert bool(warnings) == said
    if said:
        path = folder / "its Latin.txt"
        assert warnings == [
            f"warning: {lost} of the {count} lines of {path} ({lost / count:.1%}) are not UTF-8, and were dropped. If "
            f"the file is in another encoding, convert it: iconv -f WINDOWS-1252 -t UTF-8 '{path}' > NEW, and use NEW."
        ]


@pytest.mark.parametrize("name", ["its.txt.gz", "its.tar", "its.json"])
def test_the_command_is_not_printed_for_a_file_that_it_could_not_convert(tmp_path, name):
    """Also texts of a JSON array that are in another encoding are dropped, counted and said."""
    text = lines(100).encode() + "Un café à Brest.\n".encode("latin-1") * 40
    if name.endswith(".gz"):
        text = gzip.compress(text)
    if name.endswith(".json"):
        text = b"[" + b",".join(b'"%s"' % line.replace(b'"', b"") for line in text.splitlines()) + b"]"
    path = write(tmp_path / name, text)
    if name.endswith(".tar"):
        write(tmp_path / "text", text)
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "text", "a.txt")
    result = command(tmp_path / "out", path)
    assert result.returncode == 0 and "40 lines that are not UTF-8" in result.stdout
    label = f"{path}/a.txt" if name.endswith(".tar") else path
    assert f"warning: 40 of the 140 lines of {label} (28.6%) are not UTF-8, and were dropped." in result.stderr
    cure = (
        f"convert it: iconv -f WINDOWS-1252 -t UTF-8 {path} > NEW" if name.endswith(".json") else "unpack it, convert"
    )
    assert f"If the file is in another encoding, {cure}" in result.stderr
