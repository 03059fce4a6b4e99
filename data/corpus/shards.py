"""Token shards on disk: written whole or not at all, described by one manifest.

A shard N of a part (train, held-out) is two files: N.bin has token ids one after the other, </s> at the end of each
document, and N.ends, 8 bytes a document, where each ends, in tokens. manifest.json says everything else.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import numpy

from ..cli import DataError

FORMAT = "distilcamembert-corpus-1"
MANIFEST, UNFINISHED = "manifest.json", "manifest.unfinished.json"
TRAIN, HELD_OUT = "train", "held-out"
KINDS = {  # what each entry of a manifest is
    "tokenizer": dict, "dtype": str, "options": dict, "sources": list, "counts": dict, "damaged": list, "shards": dict,
    "token_counts": list,
}  # fmt: skip


class ShardFile:
    """The tokens of one shard, and where its documents end, under temporary names until it is finished."""

    def __init__(self, folder: Path, name: str):
        self.name, self.tokens, self.ends = name, 0, []
        self.paths = [folder / f"{name}.bin", folder / f"{name}.ends"]
        self.partial = [path.with_name(f".{path.name}.partial") for path in self.paths]
        self.hash = hashlib.sha256()
        self.file = self.partial[0].open("wb")

    def add(self, ids: bytes, lengths: numpy.ndarray, itemsize: int) -> None:
        self.file.write(ids)
        self.hash.update(ids)
        self.ends.append(self.tokens + numpy.cumsum(lengths))
        self.tokens += len(ids) // itemsize

    def finish(self) -> dict:
        """Both files under their names and on the disk -> what the manifest says of them."""
        ends = numpy.concatenate(self.ends).astype("<u8").tobytes() if self.ends else b""
        self.partial[1].write_bytes(ends)
        self.file.close()
        for partial, path in zip(self.partial, self.paths):
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        return {
            "name": self.name, "tokens": self.tokens, "documents": len(ends) // 8, "sha256": self.hash.hexdigest(),
            "ends_sha256": hashlib.sha256(ends).hexdigest(),
        }  # fmt: skip

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # what is not written yet may find the disk full
            self.file.close()
        for path in self.partial:
            path.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: dict, name: str) -> None:
    """Whole, or not at all."""
    partial = folder / f".{name}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)  # in ASCII: a file's name need not be UTF-8
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / name)


def read_manifest(folder: Path, name: str = MANIFEST) -> dict | None:
    """None where there is none.  Raises DataError for one that cannot be read or is of something else."""
    path = folder / name
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kinds = KINDS | ({"position": list} if name == UNFINISHED else {})
        if manifest["format"] == FORMAT and all(type(manifest[key]) is kind for key, kind in kinds.items()):
            return manifest
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DataError(f"{path} is no manifest of a corpus. If it is damaged, remove {folder} and prepare it anew.")


def open_manifest(folder: Path) -> dict:
    """Raises DataError where there is no finished corpus."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} holds no finished corpus: it has no {MANIFEST}. Run data.prepare to its end.")
    return manifest
