"""Text that train.py is given as its corpus: prepared once into a cache, or a sample of it for an estimate."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import demo
from .cli import MB, DataError, note, warn
from .corpus.documents import documents
from .corpus.files import Candidate, corpus_files, find_sources
from .corpus.parts import STDIN, errors_in, read_parts
from .corpus.shards import FORMAT, MANIFEST, lost_file, read_manifest
from .corpus.summary import check_has_text, print_summary
from .locks import locked
from .prepare import Options, prepare
from .tokenizer import Tokenizer

DEMO = ("demo",)  # the corpus of the demo
HELD_OUT = 0.05  # of a small corpus
SAMPLE_BYTES = 4_000_000


def prepared_folder(paths: Sequence[str], tokenizer: Tokenizer, cache: str) -> Path:
    """The folder of the prepared corpus: the path itself, or, for text, a folder in the cache.

    paths: as data.prepare takes them, or DEMO. Text is prepared unless an earlier run has done so; while another
    process does, this one waits, and does it itself if that fails.  Raises DataError.
    """
    if is_prepared(paths):
        return Path(paths[0])
    is_demo = paths == DEMO
    paths = [demo.write_texts(cache)] if is_demo else paths
    files = text_files(paths)
    folder = cache_folder(files, tokenizer, cache, is_demo)
    if not is_complete(folder):
        settings = dict(tokenizer=str(tokenizer.path), out=str(folder), workers=1, wait=True, held_out=HELD_OUT)
        print_summary(prepare(Options(tuple(paths), **settings), tokenizer, files))
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the cache has the corpus with all its shards.  A damaged manifest is removed, after a warning."""
    with contextlib.suppress(DataError):
        manifest = read_manifest(folder)
        return manifest is not None and lost_file(folder, manifest) is None
    with locked(folder, wait=True):  # another process may have mended it meanwhile
        try:
            read_manifest(folder)
        except DataError as error:
            warn(f"{error} This one is in the cache, and is prepared again now.")
            (folder / MANIFEST).unlink()
    return False


def is_prepared(paths: Sequence[str]) -> bool:
    return len(paths) == 1 and (Path(paths[0]) / MANIFEST).is_file()


def text_files(paths: Sequence[str]) -> list[Candidate]:
    """Raises DataError."""
    files = corpus_files(paths)
    if any(file.name == STDIN for file in files):
        raise DataError("Standard input cannot be read twice. Run data.prepare on it, and use the folder it writes.")
    return files


def cache_folder(files: Sequence[Candidate], tokenizer: Tokenizer, cache: str, is_demo: bool) -> Path:
    """Its name is a hash of the files' names, sizes and times (on the hub: hashes), and of the tokenizer.

    The demo's text has a checksum in its name, which stands for all of it: --plan writes it to another place.
    """
    state = [Path(file.name).name for file in files] if is_demo else []
    for file in () if is_demo else files:
        if file.remote:
            state.append((file.name, file.remote.size, file.remote.digest))
            continue
        with errors_in(file.name):
            stat = os.stat(file.name)
        state.append((file.name, stat.st_size, stat.st_mtime_ns))
    return Path(cache, hashlib.sha256(repr((FORMAT, state, tokenizer.sha256())).encode()).hexdigest()[:16])


# ---- a sample --------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """A prepared corpus, or a part of one in a temporary folder."""

    folder: Path
    share: float | None  # of the corpus's bytes; None if the text is not from the corpus
    estimate: str  # from what the size of the corpus was found, for a message; "" if it was counted
    temporary: tempfile.TemporaryDirectory | None = None  # removed with this object


def sample_folder(paths: Sequence[str], tokenizer: Tokenizer, cache: str) -> Sample:
    """The corpus if it is prepared, else a sample of its first texts, prepared into a temporary folder.

    paths: as in prepared_folder. Data sets on the hub are not fetched: the demo's texts take their place.
    Raises DataError.
    """
    if is_prepared(paths):
        return Sample(Path(paths[0]), 1.0, "")
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    place = Path(temporary.name)
    files = text_files([demo.write_texts(place)] if paths == DEMO else paths)
    folder = cache_folder(files, tokenizer, cache, paths == DEMO)
    if (folder / MANIFEST).exists():
        return Sample(folder, 1.0, "")
    if any(file.remote for file in files):
        size = sum(file.remote.size if file.remote else os.path.getsize(file.name) for file in files)
        path, share, estimate = demo.write_texts(place), None, f"{size / MB:,.1f} MB in {len(files):,} files"
    else:
        path, done, total = write_sample(files, place)
        share, estimate = done / max(total, 1), f"estimated from {done / MB:,.1f} of {total / MB:,.1f} MB"
    settings = dict(tokenizer=str(tokenizer.path), out=str(place / "tokens"), workers=1, held_out=HELD_OUT)
    prepare(Options((str(path),), **settings), tokenizer)
    return Sample(place / "tokens", share, f"{estimate}; to be prepared into {folder}", temporary)


def write_sample(files: Sequence[Candidate], place: Path) -> tuple[Path, float, int]:
    """Writes the first texts of the files -> its path; the bytes on disk that they take up, and those of all files.

    Raises DataError if there are none, with what data.prepare would say.
    """
    sources = find_sources(files, None, "auto", note)
    total, path = sum(source.size for source in sources), place / "sample.jsonl"
    written, read = [], []  # bytes after each part; files are read ahead, but by the same amount at each part
    counts, notes, damaged = Counter(), [], []
    with path.open("w", encoding="utf-8") as sample:
        for part in read_parts(sources):
            counts.update(part.counts)
            notes += part.notes
            damaged += [{"source": part.name, "why": part.damage}] if part.damage else []
            for paragraphs in documents(part, None, False, counts):
                sample.write(json.dumps({"text": "\n".join(paragraphs)}) + "\n")
            written.append(sample.tell())
            read.append(part.bytes_read)
            if written[0] < written[-1] and written[-1] > SAMPLE_BYTES and read[-1] < total:
                return path, written[-1] * (read[-1] - read[0]) / (written[-1] - written[0]), total
    if not any(written):
        check_has_text({"shards": {}, "counts": counts, "notes": notes, "damaged": damaged})
    return path, total, total
