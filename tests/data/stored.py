"""For tests: reads prepared corpora, without the project's reader."""

import hashlib
import json
import struct
from array import array
from collections import Counter
from pathlib import Path

from tests.data.prepared import TOKENIZER

END = TOKENIZER.eos_id


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


def part_documents(folder: Path, part: str = "train") -> list[list[int]]:
    """The documents of all shards of "train" or "held-out"."""
    return [document for shard in manifest(folder)["shards"][part] for document in shard_documents(folder, shard)]


def token_counts(documents: list[list[int]]) -> list[int]:
    """The number of occurrences of each id, with the </s> of each document."""
    counts = Counter(i for document in documents for i in [*document, END])
    return [counts[i] for i in range(len(TOKENIZER))]


def encoded(*paragraphs: str) -> list[int]:
    """The ids of a document, by Tokenizer.encode."""
    return TOKENIZER.encode("\n".join(paragraphs))[1:-1]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file: one of them changes if it is written or replaced."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
