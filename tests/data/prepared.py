"""For tests: makes prepared corpora, and reads them without the project's reader."""

import bz2
import contextlib
import functools
import gzip
import hashlib
import json
import lzma
import re
import struct
from array import array
from itertools import islice
from pathlib import Path

import pytest

from data import Tokenizer, demo
from data.prepare import Options, prepare
from tests.helpers import run_command

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": functools.partial(lzma.compress, preset=0),
    ".bz2": functools.partial(bz2.compress, compresslevel=1),
}
with contextlib.suppress(ImportError):
    import zstandard

    COMPRESS[".zst"] = zstandard.ZstdCompressor(write_checksum=True).compress
TOKENIZER = Tokenizer(demo.FOLDER)
END = TOKENIZER.eos_id


@functools.cache
def texts(count: int) -> tuple[str, ...]:
    """The first of the demo's texts: one paragraph each, without duplicates."""
    return tuple(dict.fromkeys(islice(demo.texts(), count)))


def lines(count: int) -> str:
    return "".join(f"{text}\n" for text in texts(count))


def write(path: Path, content: bytes | str) -> Path:
    """Compresses the content according to the suffix."""
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(content))
    return path


def write_parquet(path: Path, columns: dict, **settings) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path, **settings)
    return path


def make(out: Path, *inputs: Path | str, workers: int = 1, **options) -> dict:
    """Prepares a corpus in this process -> its manifest."""
    settings = {"held_out": 0.0} | options
    inputs = tuple(map(str, inputs))
    return prepare(Options(inputs, str(demo.FOLDER), str(out), workers, **settings), TOKENIZER)


def command(out: Path, *arguments, tokenizer: Path = demo.FOLDER):
    """Runs the command in this process, with one worker."""
    return run_command("-m data.prepare", "--tokenizer", tokenizer, "--out", out, "--workers", 1, *arguments)


def assert_refused(result, message: str) -> str:
    """The command ended with status 2 and one line of error -> that line."""
    assert result.returncode == 2, result
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("data.prepare: ")]
    assert "Traceback" not in result.stderr and re.search(message, error), error
    return error


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def shard_documents(folder: Path, shard: dict) -> list[list[int]]:
    """The ids of each document without its </s>; checks the hashes, the sizes and every </s>."""
    stored, ends = (folder / f"{shard['name']}.bin").read_bytes(), (folder / f"{shard['name']}.ends").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == shard["sha256"]
    assert hashlib.sha256(ends).hexdigest() == shard["ends_sha256"]
    assert len(stored) == 2 * shard["tokens"] and len(ends) == 8 * shard["documents"]
    ids, documents, begin = array("H", stored).tolist(), [], 0
    for (end,) in struct.iter_unpack("<Q", ends):
        *document, last = ids[begin:end]
        assert last == END and END not in document
        documents.append(document)
        begin = end
    assert begin == len(ids)
    return documents


def part_documents(folder: Path, part: str) -> list[list[int]]:
    """The documents of all shards of "train" or "held-out"."""
    return [document for shard in manifest(folder)["shards"][part] for document in shard_documents(folder, shard)]


def part_texts(folder: Path, part: str = "train") -> list[str]:
    return [TOKENIZER.decode(document) for document in part_documents(folder, part)]


def encoded(*paragraphs: str) -> list[int]:
    """The ids of a document, by Tokenizer.encode."""
    return TOKENIZER.encode("\n".join(paragraphs))[1:-1]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file: one of them changes if it is written or replaced."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
