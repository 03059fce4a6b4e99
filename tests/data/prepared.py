"""For tests: texts, files of every compression, and corpora prepared from them."""

import bz2
import contextlib
import functools
import gzip
import lzma
import os
import re
from itertools import islice
from pathlib import Path

import pytest

from data import Tokenizer, demo
from data.corpus.parts import START, Position, Source, read_parts
from data.prepare import Options, prepare
from tests.helpers import run_command

COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": functools.partial(lzma.compress, preset=0)}
COMPRESS[".bz2"] = functools.partial(bz2.compress, compresslevel=1)
with contextlib.suppress(ImportError):
    import zstandard

    COMPRESS[".zst"] = zstandard.ZstdCompressor(write_checksum=True).compress
TOKENIZER = Tokenizer(demo.FOLDER)


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


def sources(*paths: Path | str) -> list[Source]:
    return [Source(str(path), 0 if path == "-" else os.path.getsize(path)) for path in paths]


def parts(*paths: Path | str, start: Position = START, documents: str = "line", field: str | None = None):
    return list(read_parts(sources(*paths), start, field, documents))


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
