"""Shards of token ids on disk, each written completely or not at all, and the manifest that describes them.

Shard N of a part (train, held-out) is two files: N.bin holds the token ids of its documents, one after the other, with
</s> at the end of each; N.ends holds the end of each document, in tokens, as 8 bytes. manifest.json holds all else.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import numpy

from ..cli import DataError
from ..outputs import new_file, write_file

FORMAT = "distilcamembert-corpus-2"
MANIFEST, UNFINISHED = "manifest.json", "manifest.unfinished.json"
TRAIN, HELD_OUT = "train", "held-out"
MANIFEST_TYPES = dict(tokenizer=dict, dtype=str, options=dict, sources=list, counts=dict, damaged=list, shards=dict)
MANIFEST_TYPES |= {"token_counts": list, "read_as": dict, "notes": list, "hold_out": str, "lost_lines": dict}
DOCUMENTS, BLOCKS = "documents", "blocks"  # what is held out; of few documents, blocks, which blocks.py chooses


class ShardWriter:
    """Writes one shard, under temporary names until it is finished."""

    def __init__(self, folder: Path, name: str):
        self.name, self.tokens, self.ends = name, 0, []
        self.paths = [folder / f"{name}.bin", folder / f"{name}.ends"]
        self.partial = folder / f".{name}.bin.partial"
        self.hash = hashlib.sha256()
        self.file = new_file(self.partial)

    def add(self, ids: bytes, lengths: numpy.ndarray, itemsize: int) -> None:
        """Appends documents.  lengths: tokens of each document; itemsize: bytes per token."""
        self.file.write(ids)
        self.hash.update(ids)
        self.ends.append(self.tokens + numpy.cumsum(lengths))
        self.tokens += len(ids) // itemsize

    def finish(self) -> dict:
        """Flushes both files to disk and gives them their final names -> the shard's entry in the manifest."""
        ends = numpy.concatenate(self.ends).astype("<u8").tobytes() if self.ends else b""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        write_file(self.paths[1], ends)
        self.partial.replace(self.paths[0])
        hashes = {"sha256": self.hash.hexdigest(), "ends_sha256": hashlib.sha256(ends).hexdigest()}
        return {"name": self.name, "tokens": self.tokens, "documents": len(ends) // 8} | hashes

    def abandon(self) -> None:
        """Removes the temporary file."""
        with contextlib.suppress(OSError):  # closing writes the buffer, for which a full disk has no space
            self.file.close()
        self.partial.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: dict, name: str) -> None:
    """Completely, or not at all."""
    write_file(folder / name, f"{json.dumps(manifest, indent=1)}\n".encode())  # ASCII: file names need not be UTF-8


def read_manifest(folder: Path, name: str = MANIFEST) -> dict | None:
    """The manifest, None if there is none.  Raises DataError for a damaged one, or one of another format."""
    path = folder / name
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest.setdefault("lost_lines", {})  # earlier ones do not have it
        types = MANIFEST_TYPES | ({"position": list} if name == UNFINISHED else {})
        if manifest["format"] != FORMAT and str(manifest["format"]).startswith(FORMAT.rstrip("0123456789")):
            raise DataError(
                f"{folder} was prepared by another version of this project. Remove it, and prepare it again."
            )
        if manifest["format"] == FORMAT and all(type(manifest[key]) is kind for key, kind in types.items()):
            return manifest
    except DataError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # DataError is a ValueError
        pass
    raise DataError(f"{path} is not the manifest of a corpus. If it is damaged, remove it, and run data.prepare again.")


def lost_file(folder: Path, manifest: dict) -> Path | None:
    """A file of the manifest's shards that is missing or has another size; None if all are there."""
    size = numpy.dtype(manifest["dtype"]).itemsize
    for shard in (shard for part in manifest["shards"].values() for shard in part):
        for suffix, wanted in ((".bin", size * shard["tokens"]), (".ends", 8 * shard["documents"])):
            path = folder / f"{shard['name']}{suffix}"
            if not path.is_file() or path.stat().st_size != wanted:
                return path
    return None


def open_manifest(folder: Path) -> dict:
    """The manifest of a finished corpus.  Raises DataError if there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} has no {MANIFEST}, so it is not a finished corpus. Let data.prepare finish first.")
    return manifest
