"""Raw text to token shards, once; training reads them by memory map (data/blocks.py).

    python -m data.prepare --tokenizer sentencepiece.bpe.model --out FOLDER INPUT…

INPUT is a file, a folder, a pattern or - (standard input): plain text, JSON lines or Parquet, plain or packed as
.gz, .xz, .bz2 or .zst. FOLDER gets, for each shard, train-N.bin and held-out-N.bin (token ids one after the other,
</s> at the end of each document), their .ends (where each document ends), and manifest.json, which says all else.

Killed at any moment, the same command goes on after the last finished shard and ends with the same bytes, which
depend on the inputs and options alone: not on the number of workers, nor on where a run was cut.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy

from .cli import DataError, Progress, check_bounds, dashed, option, parse_options, run_command
from .corpus.documents import documents
from .corpus.duplicates import Seen, text_hash
from .corpus.files import STDIN, Part, Place, Source, corpus_files, find_sources, read_parts, reading
from .corpus.shards import FORMAT, HELD_OUT, MANIFEST, TRAIN, UNFINISHED, ShardFile, read_manifest, write_manifest
from .tokenizer import FILE_NAME, Tokenizer

OWN = re.compile(
    rf"({TRAIN}|{HELD_OUT})-\d{{5,}}\.(bin|ends)|seen-\d{{5,}}\.u8|\..*\.partial|"
    rf"{re.escape(UNFINISHED)}|{re.escape(FILE_NAME)}"
)  # what a run that is not finished leaves in its folder


@dataclass(frozen=True)
class Options:
    """What is prepared, and how. All but `workers` decide what comes out, and are kept in the manifest."""

    inputs: tuple[str, ...] = option(
        (), "files, folders, patterns, or - for standard input", "what goes in and out", positional=True,
        metavar="INPUT", nargs="+",
    )  # fmt: skip
    tokenizer: str = option("", "SentencePiece model of the teacher's, or its folder", metavar="FILE", required=True)
    out: str = option("", "folder for the shards and manifest.json", metavar="FOLDER", required=True)
    workers: int = option(os.cpu_count() or 1, "processes; any number gives the same bytes", least=1, most=1024)

    documents: str = option(
        "auto", "what ends a document of plain text: its line, or a blank line; auto guesses, file by file",
        "what is read", choices=("auto", "line", "blank")
    )  # fmt: skip
    field: str | None = option(None, "of JSON lines and Parquet (default: text, else content)", metavar="NAME")

    min_tokens: int = option(0, "shorter documents are dropped", "what is kept", least=0)
    max_unknown: float = option(1.0, "documents with a larger share of <unk> are dropped", least=0, most=1)
    duplicates_mb: int = option(
        0, "memory for finding paragraphs that came before, which are dropped; 8 bytes a paragraph remembered, "
        "0: none are", least=0, most=10**6
    )  # fmt: skip
    drop_control: bool = option(False, "drop paragraphs with Unicode control characters (else they are counted)")
    held_out: float = option(
        0.01, "share of the documents, chosen by a hash of their text, that is never trained on", least=0, below=1
    )
    shard_tokens: int = option(1 << 26, "a shard ends after about so many tokens", least=1000, most=10**12)

    def __post_init__(self):
        check_bounds(self)

    def that_decide(self) -> dict:
        values = asdict(self)
        for name in ("inputs", "tokenizer", "out", "workers"):
            del values[name]
        return values


# ---- a part's tokens: what the workers do ----------------------------------------------------------------------


class Tokens(NamedTuple):
    """The documents of a part. Their segments are their paragraphs, and then their </s>."""

    ids: bytes  # of all documents
    lengths: numpy.ndarray  # of each document, in tokens, with </s>
    held_out: numpy.ndarray  # of each document, bool
    segments: numpy.ndarray | None  # where duplicates are looked for: of each segment, its length,
    hashes: numpy.ndarray | None  # and its text's hash, 0 for </s>
    counts: Counter
    end: Place
    done: int
    damage: str


def tokenize(part: Part, tokenizer: Tokenizer, options: Options) -> Tokens:
    """A part -> its documents in tokens, those that are dropped counted by their reason."""
    encode, wide = tokenizer.encode_words, numpy.dtype(tokenizer.typecode)
    end_of_text = numpy.array([tokenizer.eos_id], wide).tobytes()
    ids, lengths, held_out, segments, hashes = [], [], [], [], []
    counts = Counter(part.counts)
    threshold = round(options.held_out * 2**32)
    for paragraphs in documents(part, options.field, options.drop_control, counts):
        encoded = list(map(encode, paragraphs))
        document = b"".join(encoded)
        length = len(document) // wide.itemsize
        if not length:
            counts["documents dropped, being empty"] += 1
            continue
        if length < options.min_tokens:
            counts["documents dropped, being short"] += 1
            continue
        if options.max_unknown < 1:
            unknown = numpy.count_nonzero(numpy.frombuffer(document, wide) == tokenizer.unk_id)
            if unknown > options.max_unknown * length:
                counts["documents dropped, being unknown"] += 1
                continue
        ids += (document, end_of_text)
        lengths.append(length + 1)
        held_out.append(threshold > 0 and zlib.crc32("\n".join(paragraphs).encode()) < threshold)
        if options.duplicates_mb:
            segments += [len(each) // wide.itemsize for each in encoded] + [1]
            hashes += [text_hash(paragraph) for paragraph in paragraphs] + [0]
    return Tokens(
        b"".join(ids), numpy.array(lengths, numpy.int64), numpy.array(held_out, bool),
        numpy.array(segments, numpy.int64) if options.duplicates_mb else None,
        numpy.array(hashes, numpy.uint64) if options.duplicates_mb else None,
        counts, part.end, part.done, part.damage,
    )  # fmt: skip


def start_worker(tokenizer_path: str, options: Options) -> None:
    """In each worker, once. It ends with its parent, however that ends."""
    global tokenize_here
    parent = multiprocessing.parent_process()
    threading.Thread(
        target=lambda: (multiprocessing.connection.wait([parent.sentinel]), os._exit(1)), daemon=True
    ).start()
    tokenizer = Tokenizer(tokenizer_path)
    tokenize_here = lambda part: tokenize(part, tokenizer, options)  # noqa: E731


def work(part: Part) -> Tokens:
    return tokenize_here(part)


def submit(pool: ProcessPoolExecutor, part: Part) -> Future:
    """Where this starts a worker, it is one that Ctrl-C does not reach, from its first moment: that is the parent's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return pool.submit(work, part)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def all_tokens(parts: Iterable[Part], tokenizer: Tokenizer, options: Options) -> Iterator[Tokens]:
    """The parts' tokens, in order. Memory holds a few parts a worker, however long the corpus is."""
    if options.workers == 1:
        yield from (tokenize(part, tokenizer, options) for part in parts)
        return
    context = multiprocessing.get_context("spawn")
    arguments = (str(tokenizer.path), options)
    pool = ProcessPoolExecutor(options.workers, context, initializer=start_worker, initargs=arguments)
    try:
        waiting = deque(submit(pool, part) for part in islice(parts, 2 * options.workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(submit(pool, part) for part in islice(parts, 1))
            yield result
    except BrokenProcessPool:
        raise DataError("A worker was killed, most likely for want of memory: fewer --workers take less.") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# ---- duplicates -----------------------------------------------------------------------------------------------


def drop_duplicates(tokens: Tokens, seen: Seen, dtype: numpy.dtype) -> Tokens:
    """Without the paragraphs that came before, and without the documents that nothing is left of."""
    fresh = seen.first_times(tokens.hashes)
    is_end = tokens.hashes == 0
    document = numpy.cumsum(is_end) - is_end  # of each segment
    kept_text = numpy.bincount(document, tokens.segments * (fresh & ~is_end), len(tokens.lengths)) > 0
    keep = fresh & kept_text[document]
    dropped = int(numpy.count_nonzero(~fresh))
    if not dropped:
        return tokens
    ids = numpy.frombuffer(tokens.ids, dtype)[numpy.repeat(keep, tokens.segments)]
    lengths = numpy.bincount(document, tokens.segments * keep, len(tokens.lengths)).astype(numpy.int64)
    counts = tokens.counts + Counter({"paragraphs dropped, having come before": dropped})
    gone = int(numpy.count_nonzero(~kept_text))
    if gone:
        counts["documents dropped, all of them having come before"] += gone
    return tokens._replace(
        ids=ids.tobytes(), lengths=lengths[kept_text], held_out=tokens.held_out[kept_text], counts=counts
    )


# ---- the manifest ---------------------------------------------------------------------------------------------


def new_manifest(tokenizer: Tokenizer, sources: list[Source], options: Options) -> dict:
    return {
        "format": FORMAT,
        "tokenizer": {"sha256": tokenizer.sha256(), "words": len(tokenizer)},
        "dtype": "<u2" if tokenizer.typecode == "H" else "<u4",
        "options": options.that_decide(),
        "sources": [asdict(source) for source in sources],
        "position": Place(),
        "counts": {},
        "damaged": [],
        "shards": {TRAIN: [], HELD_OUT: []},
        "token_counts": [0] * len(tokenizer),
    }


# ---- the command -----------------------------------------------------------------------------------------------


def prepare(options: Options, tokenizer: Tokenizer | None = None) -> dict:
    """The whole corpus -> its manifest. Goes on where an earlier run of the same stopped.

    Raises DataError for inputs that cannot be read, a full disk, and a folder that holds something else.
    """
    tokenizer = tokenizer or Tokenizer(options.tokenizer)
    sources = find_sources(corpus_files(options.inputs), options.documents)
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder):
            manifest = begin(folder, new_manifest(tokenizer, sources, options))
            with without_partial_files(folder):
                keep_tokenizer(folder, tokenizer)
                if "position" in manifest:
                    fill(folder, manifest, sources, tokenizer, options)
                else:
                    tidy(folder)  # a run can have been killed between its last two steps
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}. Finished shards are kept; the "
            "same command goes on after them."
        ) from None
    return manifest


def keep_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """A copy beside the shards, whole or not at all."""
    copy, content = folder / FILE_NAME, tokenizer.path.read_bytes()
    if not copy.exists() or copy.read_bytes() != content:
        partial = copy.with_name(f".{FILE_NAME}.partial")
        partial.write_bytes(content)
        partial.replace(copy)


def prepare_into_cache(inputs: Sequence[str], tokenizer: Tokenizer, cache: str) -> Path:
    """A small corpus, prepared now unless it is there from an earlier run -> its folder.

    It has a name of its own for these files, as they are now, and this tokenizer. Raises DataError.
    """
    files = corpus_files(inputs)
    if STDIN in files:
        raise DataError("Standard input cannot be read again. Prepare it with data.prepare, and name the folder.")
    stats = [reading(file, os.stat, file) for file in files]
    state = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats)]
    name = hashlib.sha256(repr((FORMAT, state, tokenizer.sha256())).encode()).hexdigest()[:16]
    options = Options(
        inputs=tuple(files), tokenizer=str(tokenizer.path), out=str(Path(cache, name)), workers=1, held_out=0.05
    )
    if not (Path(options.out) / MANIFEST).exists():
        describe(prepare(options, tokenizer))
    return Path(options.out)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Raises DataError while another process prepares the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataError(f"{folder} is being prepared by another process.") from None
    finally:
        os.close(handle)


@contextlib.contextmanager
def without_partial_files(folder: Path) -> Iterator[None]:
    """Takes away those of this run, wherever it stops, and of killed ones."""
    try:
        yield
    finally:
        for path in folder.glob(".*.partial"):
            path.unlink()


def begin(folder: Path, new: dict) -> dict:
    """The finished or unfinished manifest in the folder, if it is of the same; else the new one.  Raises DataError."""
    old = read_manifest(folder) or read_manifest(folder, UNFINISHED)
    if old is None:
        # OWN: of a run that was killed before its first manifest
        names = sorted(path.name for path in folder.iterdir())
        if other := [name for name in names if not name.startswith(".") and not OWN.fullmatch(name)]:
            raise DataError(f"{folder} holds {other[0]}, and no corpus. Choose another --out.")
        return new
    same = json.loads(json.dumps(new))
    for key in ("tokenizer", "dtype", "options", "sources"):
        if old.get(key) != same[key]:
            what = key
            if key == "options":
                what = ", ".join(dashed(name) for name in same[key] if same[key][name] != old[key].get(name))
            raise DataError(
                f"{folder} holds a corpus that was prepared with other {what}. Choose another --out, or remove it."
            )
    return old


def fill(folder: Path, manifest: dict, sources: list[Source], tokenizer: Tokenizer, options: Options) -> None:
    """From the manifest's position to the end, shard by shard; the manifest says each finished one."""
    dtype = numpy.dtype(tokenizer.typecode)
    number = len(manifest["shards"][TRAIN])
    seen = Seen(options.duplicates_mb) if options.duplicates_mb else None
    if seen and number:
        path = folder / seen_name(number - 1)
        if not path.is_file() or path.stat().st_size != seen.table.nbytes:
            raise DataError(f"{path} is missing or damaged. Remove {folder} and prepare it anew.")
        seen.table[:] = numpy.fromfile(path, numpy.uint64)
    counts = Counter(manifest["counts"])
    token_counts = numpy.array(manifest["token_counts"], numpy.int64)
    place = Place(*manifest["position"])
    size = sum(source.size for source in sources) * (min(source.size for source in sources) > 0)
    progress = Progress("prepared", size, sum(source.size for source in sources[: place.source]) + place.offset)
    shard = {}
    try:
        results = all_tokens(read_parts(sources, place, options.field), tokenizer, options)
        with contextlib.closing(results):
            for tokens in results:
                if tokens.damage:
                    manifest["damaged"].append({"source": sources[place.source].name, "why": tokens.damage})
                if seen:
                    tokens = drop_duplicates(tokens, seen, dtype)
                place = tokens.end
                shard = shard or {part: ShardFile(folder, f"{part}-{number:05}") for part in (TRAIN, HELD_OUT)}
                ids = numpy.frombuffer(tokens.ids, dtype)
                for part, is_part in ((TRAIN, ~tokens.held_out), (HELD_OUT, tokens.held_out)):
                    own = ids[numpy.repeat(is_part, tokens.lengths)]
                    shard[part].add(own.astype(manifest["dtype"]).tobytes(), tokens.lengths[is_part], dtype.itemsize)
                    if part == TRAIN:
                        token_counts += numpy.bincount(own, minlength=len(token_counts))
                counts.update(tokens.counts)
                progress.show(tokens.done)
                if shard[TRAIN].tokens >= options.shard_tokens or place.source == len(sources):
                    for part, file in shard.items():
                        manifest["shards"][part].append(file.finish())
                    shard = {}
                    manifest.update(
                        position=place, counts=dict(sorted(counts.items())), token_counts=token_counts.tolist()
                    )
                    if seen:
                        partial = folder / f".{seen_name(number)}.partial"
                        seen.table.tofile(partial)
                        partial.replace(folder / seen_name(number))
                    write_manifest(folder, manifest, UNFINISHED)
                    for path in folder.glob("seen-*.u8"):  # also those of killed runs
                        if path.name != seen_name(number):
                            path.unlink()
                    number += 1
    finally:
        progress.close()
        for file in shard.values():
            file.abandon()
    finish(folder, manifest)


def seen_name(number: int) -> str:
    """The table of what came before, as it was at the end of that shard."""
    return f"seen-{number:05}.u8"


def finish(folder: Path, manifest: dict) -> None:
    """The manifest under its final name, without what only an unfinished corpus needs.  Raises DataError."""
    del manifest["position"]
    if not any(shard["tokens"] for part in manifest["shards"].values() for shard in part):
        for path in folder.iterdir():
            if OWN.fullmatch(path.name):
                path.unlink()
        raise DataError(f"The corpus has no usable line of text. {said(manifest['counts'])}".rstrip())
    write_manifest(folder, manifest, MANIFEST)
    tidy(folder)


def tidy(folder: Path) -> None:
    """Without what only an unfinished corpus needs."""
    (folder / UNFINISHED).unlink(missing_ok=True)
    for path in folder.glob("seen-*.u8"):
        path.unlink()


def said(counts: dict) -> str:
    return "; ".join(f"{count:,} {what}" for what, count in counts.items())


def describe(manifest: dict) -> None:
    """What came of it, on screen."""
    for part, shards in manifest["shards"].items():
        tokens, count = sum(shard["tokens"] for shard in shards), sum(shard["documents"] for shard in shards)
        print(f"{part:9} {tokens:,} tokens in {count:,} documents, {len(shards)} shards")
    kinds = Counter(source["kind"] for source in manifest["sources"])
    names = {"line": "a document a line", "blank": "documents between blank lines", "json": "JSON lines"}
    print(f"read as   {', '.join(f'{names.get(kind, kind)} ({count} files)' for kind, count in kinds.items())}")
    if manifest["counts"]:
        print(f"note      {said(manifest['counts'])}")
    for damage in manifest["damaged"]:
        print(f"warning: {damage['source']} was read up to where it is damaged: {damage['why']}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(Options, arguments, "python -m data.prepare [OPTIONS] INPUT…", __doc__)
    describe(prepare(options))


if __name__ == "__main__":
    run_command("data.prepare", main, on_interrupt="the same command resumes after the last finished shard")
