"""Tokenizes a corpus once, into shards that training reads by memory map.

    python -m data.prepare --tokenizer sentencepiece.bpe.model --out FOLDER INPUT…

INPUT is a file, a folder, a pattern, or - for standard input: plain text, JSON, Parquet, Arrow, CSV or tab-separated
columns, also compressed (gzip, xz, bzip2, Zstandard) or in tar and zip archives. The format of a file is detected from
its first bytes, not from its name. For each shard, FOLDER gets train-N.bin and held-out-N.bin (token ids, with </s> at
the end of each document), and .ends files with the ends of the documents; manifest.json describes them all.

INPUT may also be hub:owner/dataset[/folder][@revision], a data set on the Hugging Face hub: its Parquet or JSON-lines
files are fetched one after another while they are prepared, and removed as soon as they are in shards.

If it is interrupted or killed, the same command resumes after the last finished shard. The shards depend on the inputs
and options alone: neither the number of workers nor interruptions change a byte.
"""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy

from .cli import DataError, OptionError, Progress, check_bounds, dashed, option, parse_options, run_command, warn
from .corpus.duplicates import SeenHashes, drop_duplicates
from .corpus.encode import EncodedPart, Rules, encode_parts
from .corpus.files import Candidate, check_field, corpus_files, find_sources
from .corpus.parts import NOT_UTF8, Part, Position, Source, read_parts
from .corpus.shards import (
    BLOCKS,
    DOCUMENTS,
    FORMAT,
    HELD_OUT,
    MANIFEST,
    TRAIN,
    UNFINISHED,
    ShardWriter,
    lost_file,
    read_manifest,
    write_manifest,
)
from .corpus.summary import check_has_text, print_summary
from .download.datasets import FETCHED, fetched, remove_fetched
from .download.models import fetch_models
from .locks import WAIT_HELP, locked
from .outputs import remove_tree, write_file
from .tokenizer import FILE_NAME, Tokenizer

SEEN = "seen-{:05}.u8"  # the table of seen hashes after each shard
UNFINISHED_FILES = re.compile(
    rf"({TRAIN}|{HELD_OUT})-\d{{5,}}\.(bin|ends)|seen-\d{{5,}}\.u8|\..*\.partial|"
    rf"{re.escape(UNFINISHED)}|{re.escape(FILE_NAME)}"
)  # in the output folder
MAX_NOTES = 20
MAX_LOST = 0.01  # fraction of a file's lines that may be dropped, not being UTF-8, without a warning
MIN_HELD_OUT = 5  # documents; where fewer are expected to be held out, blocks are


@dataclass(frozen=True)
class Options:
    inputs: tuple[str, ...] = option(
        (), "files, folders, patterns, hub:…, or -", "input and output", positional=True, metavar="INPUT", nargs="+"
    )
    tokenizer: str = option(
        None, "SentencePiece model, or a model that has it: file, folder, or owner/name", metavar="PATH", required=True
    )
    out: str = option(None, "output folder for the shards and manifest.json", metavar="FOLDER", required=True)
    workers: int = option(os.cpu_count() or 1, "number of processes; does not affect the output", least=1, most=1024)
    wait: bool = option(False, WAIT_HELP)
    documents: str = option(
        "auto",
        "what separates documents in plain text: line ends or blank lines; wrapped joins lines of a fixed width to "
        "paragraphs; auto guesses, file by file",
        "reading",
        choices=("auto", "line", "blank", "wrapped"),
    )
    field: str | None = option(
        None, "text field of JSON, text column of Parquet, Arrow or a table (default: text, else content)"
    )
    min_tokens: int = option(0, "drop documents with fewer tokens", "filtering and splitting", least=0, most=10**9)
    max_unknown: float = option(1.0, "drop documents with a larger fraction of <unk> tokens", least=0, most=1)
    duplicates_mb: int = option(
        0, "MB of memory for dropping duplicate paragraphs, 8 bytes each; 0 keeps duplicates", least=0, most=10**6
    )
    drop_control: bool = option(False, "drop paragraphs with control characters, instead of counting them only")
    held_out: float = option(
        0.01,
        "fraction of documents held out, chosen by a hash of their text; of blocks, where documents are too few",
        least=0,
        most=0.9,
    )
    shard_tokens: int = option(1 << 26, "approximate number of training tokens per shard", least=1000, most=10**12)

    def __post_init__(self):
        check_bounds(self)

    def stored(self) -> dict:
        """The options that affect the shards, for the manifest."""
        others = ("inputs", "tokenizer", "out", "workers", "wait")
        return {name: value for name, value in asdict(self).items() if name not in others}


def prepare(options: Options, tokenizer: Tokenizer | None = None, files: Sequence[Candidate] | None = None) -> dict:
    """Prepares the corpus, resuming after the finished shards of an earlier run -> the manifest.

    files: those of the inputs, if they are known.
    Raises DataError for inputs that cannot be read, a full disk, or a folder that holds anything else or is in use.
    """
    notes, files = [], corpus_files(options.inputs) if files is None else files
    sources = find_sources(files, options.field, options.documents, notes.append)
    if not sources:
        raise DataError(" ".join(["The corpus has no file that can be read.", *notes[:5]]))
    tokenizer = tokenizer or Tokenizer(options.tokenizer)
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, options.wait):
            new = new_manifest(tokenizer, sources, notes, options)
            manifest = open_or_new(folder, new)
            if lost := lost_file(folder, manifest) or lost_seen(folder, manifest, options.duplicates_mb):
                warn(f"{lost} is missing or damaged: the corpus is prepared again, to the same bytes.")
                remove_all(folder)
                manifest = new
            try:
                copy_tokenizer(folder, tokenizer)
                if "position" in manifest:
                    write_shards(folder, manifest, sources, tokenizer, options)
                    finish(folder, manifest)
                else:
                    remove_unfinished(folder)  # left by a run that was killed in finish()
            finally:
                for path in folder.glob(".*.partial"):  # of this run, and of killed ones
                    path.unlink()
    except OSError as error:
        message = f"{error.filename or folder} cannot be written: {error.strerror or error}."
        raise DataError(f"{message} Finished shards are kept, and the same command resumes after them.") from None
    return manifest


def copy_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Copies it beside the shards, completely or not at all."""
    copy = folder / FILE_NAME
    if not copy.exists() or copy.read_bytes() != tokenizer.content:
        write_file(copy, tokenizer.content)


# ---- the manifest ----------------------------------------------------------------------------------------------


def new_manifest(tokenizer: Tokenizer, sources: list[Source], notes: list[str], options: Options) -> dict:
    """The manifest before the first shard.  hub: commits, which may differ when a run resumes, unlike file hashes."""
    origins = sorted({source.remote.origin for source in sources if source.remote})
    return {
        "format": FORMAT,
        "tokenizer": {"sha256": tokenizer.sha256(), "words": len(tokenizer)},
        "dtype": "<u2" if tokenizer.typecode == "H" else "<u4",
        "options": options.stored(),
        "sources": [source.stored() for source in sources],
        "position": Position(),
        "hold_out": DOCUMENTS,
        "read_as": {},
        "notes": notes[:MAX_NOTES],
        "counts": {},
        "damaged": [],
        "lost_lines": {},
        "shards": {TRAIN: [], HELD_OUT: []},
        "token_counts": [0] * len(tokenizer),
        **({"hub": origins} if origins else {}),
    }


def open_or_new(folder: Path, new: dict) -> dict:
    """The folder's manifest, finished or not; the new one if the folder has none.

    Raises DataError if the folder's corpus has other inputs, options or tokenizer, or if there are other files.
    """
    old = read_manifest(folder) or read_manifest(folder, UNFINISHED)
    if old is None:
        names = sorted(path.name for path in folder.iterdir())
        if other := [name for name in names if not name.startswith(".") and not UNFINISHED_FILES.fullmatch(name)]:
            raise DataError(f"{folder} holds {other[0]}, which is not part of a corpus. Choose another --out.")
        return new
    new = json.loads(json.dumps(new))
    for key in ("tokenizer", "dtype", "options", "sources"):
        if old.get(key) != new[key]:
            changed = [dashed(name) for name, value in new["options"].items() if old["options"].get(name) != value]
            what = ", ".join(changed) if key == "options" else key
            raise DataError(f"{folder} holds a corpus prepared with other {what}. Choose another --out.")
    return old


def finish(folder: Path, manifest: dict) -> None:
    """Gives the manifest its final name, and removes the files for resuming.

    Raises DataError for a corpus without text, OptionError for one without the field; then it removes everything.
    """
    del manifest["position"]
    try:
        check_field(manifest["options"]["field"], manifest["read_as"])
        check_has_text(manifest)
    except (DataError, OptionError):
        remove_all(folder)
        raise
    if is_too_few(manifest):
        manifest["hold_out"] = BLOCKS
        for shard in manifest["shards"][HELD_OUT]:
            ids = numpy.fromfile(folder / f"{shard['name']}.bin", manifest["dtype"])
            counts = numpy.bincount(ids, minlength=len(manifest["token_counts"]))
            manifest["token_counts"] = (counts + manifest["token_counts"]).tolist()
    write_manifest(folder, manifest, MANIFEST)
    remove_unfinished(folder)


def is_too_few(manifest: dict) -> bool:
    """Whether the documents are so few that chance alone would decide which share of the text is held out."""
    documents = {name: sum(shard["documents"] for shard in part) for name, part in manifest["shards"].items()}
    share = manifest["options"]["held_out"]
    return share > 0 and (share * sum(documents.values()) < MIN_HELD_OUT or not all(documents.values()))


def remove_all(folder: Path) -> None:
    """Removes all that belongs to the corpus."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if UNFINISHED_FILES.fullmatch(path.name):
            path.unlink()
    remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """Removes the files for resuming."""
    (folder / UNFINISHED).unlink(missing_ok=True)
    for path in folder.glob("seen-*.u8"):
        path.unlink()
    remove_tree(folder / FETCHED)


# ---- the shards ------------------------------------------------------------------------------------------------


def write_shards(folder: Path, manifest: dict, sources: list[Source], tokenizer: Tokenizer, options: Options) -> None:
    """Encodes everything after the manifest's position, and updates the manifest after each shard."""
    dtype = numpy.dtype(tokenizer.typecode)
    number = len(manifest["shards"][TRAIN])
    seen = load_seen(folder, number, options.duplicates_mb) if options.duplicates_mb else None
    counts = Counter(manifest["counts"])
    token_counts = numpy.array(manifest["token_counts"], numpy.int64)
    position = Position(*manifest["position"])
    files = [source.remote or source.name for source in sources]
    sizes = [source.size for source in sources]
    total = sum(sizes) if min(sizes) > 0 else 0
    progress = Progress("prepared", total, sum(sizes[: position.source]) + position.offset)
    filters = options.field, options.drop_control, options.min_tokens, options.max_unknown, options.held_out
    rules = Rules(*filters, hash_paragraphs=bool(seen))
    shard = {}
    try:
        paths = fetched(files[position.source :], folder)
        read = read_parts(sources, position, options.field, options.documents, paths)
        parts = encode_parts(read, tokenizer, rules, options.workers)
        with contextlib.closing(parts):
            for part in parts:
                if len(sources) == 1 and part.origin.name == sources[0].label and part.origin.kind:
                    check_field(options.field, [part.origin.kind])  # of standard input
                add_notes(manifest, part.origin, position)
                add_lost_lines(manifest["lost_lines"], part, position)
                if seen:
                    part = drop_duplicates(part, seen, dtype)
                position = part.origin.end
                shard = shard or {name: ShardWriter(folder, f"{name}-{number:05}") for name in (TRAIN, HELD_OUT)}
                ids = numpy.frombuffer(part.ids, dtype)
                for name, is_in in ((TRAIN, ~part.held_out), (HELD_OUT, part.held_out)):
                    own = ids[numpy.repeat(is_in, part.lengths)]
                    shard[name].add(own.astype(manifest["dtype"]).tobytes(), part.lengths[is_in], dtype.itemsize)
                    if name == TRAIN:
                        token_counts += numpy.bincount(own, minlength=len(token_counts))
                counts.update(part.counts)
                progress.show(part.origin.bytes_read)
                if shard[TRAIN].tokens >= options.shard_tokens or position.source == len(sources):
                    for name, writer in shard.items():
                        manifest["shards"][name].append(writer.finish())
                    shard = {}
                    manifest["position"] = position
                    manifest["counts"] = dict(sorted(counts.items()))
                    manifest["token_counts"] = token_counts.tolist()
                    if seen:
                        save_seen(folder, number, seen)
                    write_manifest(folder, manifest, UNFINISHED)
                    remove_fetched({*files[: position.source]} - {*files[position.source :]}, folder)
                    for path in folder.glob("seen-*.u8"):  # of earlier shards, and of killed runs
                        if path.name != SEEN.format(number):
                            path.unlink()
                    number += 1
    finally:
        progress.close()
        for writer in shard.values():
            writer.abandon()


def load_seen(folder: Path, shards: int, megabytes: int) -> SeenHashes:
    """The hashes of the paragraphs in so many finished shards."""
    seen = SeenHashes(megabytes)
    if shards:
        seen.table[:] = numpy.fromfile(folder / SEEN.format(shards - 1), numpy.uint64)
    return seen


def lost_seen(folder: Path, manifest: dict, megabytes: int) -> Path | None:
    """The file that load_seen() is going to read, if it is missing or has another size."""
    shards = len(manifest["shards"][TRAIN])
    if "position" not in manifest or not megabytes or not shards:
        return None
    path = folder / SEEN.format(shards - 1)
    is_whole = path.is_file() and path.stat().st_size == SeenHashes(megabytes).table.nbytes
    return None if is_whole else path


def save_seen(folder: Path, number: int, seen: SeenHashes) -> None:
    """After the shard of this number; completely, or not at all."""
    write_file(folder / SEEN.format(number), seen.table.data)


def add_notes(manifest: dict, part: Part, begin: Position) -> None:
    """Adds a part's notes and damage; counts the format of a file at its last part.  begin: where the part begins."""
    if part.damage:
        manifest["damaged"].append({"source": part.name, "why": part.damage})
    manifest["notes"] += part.notes[: MAX_NOTES - len(manifest["notes"])]
    if part.kind and part.end[:2] != begin[:2]:  # the last one of a file
        manifest["read_as"][part.kind] = manifest["read_as"].get(part.kind, 0) + 1


def add_lost_lines(lost_lines: dict[str, list[int]], part: EncodedPart, begin: Position) -> None:
    """Adds a part to {file: [lines that are not UTF-8, lines]}, where files that have lost few do not stay."""
    lost, lines = lost_lines.pop(part.origin.name, (0, 0))
    lost, lines = lost + part.counts[NOT_UTF8], lines + part.lines
    is_last = part.origin.end[:2] != begin[:2]
    if not is_last or (lost > MAX_LOST * lines and len(lost_lines) < MAX_NOTES):
        lost_lines[part.origin.name] = [lost, lines]


# ---- the command -----------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(Options, arguments, "python -m data.prepare [OPTIONS] INPUT…", __doc__)
    print_summary(prepare(fetch_models(options, "tokenizer")))


if __name__ == "__main__":
    again = "the same command resumes after the last finished shard"
    on_memory = f"Use fewer --workers or a smaller --duplicates-mb; with the same options, {again}."
    run_command("data.prepare", main, on_interrupt=again, on_memory=on_memory)
