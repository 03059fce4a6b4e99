"""Duplicate paragraphs: with enough memory all of them are dropped, and never a new paragraph."""

import contextlib
import random
from unittest.mock import Mock

import numpy
import pytest

from data import DataError, prepare
from data.corpus import parts as reader
from data.corpus.duplicates import SeenHashes
from data.corpus.encode import text_hash
from tests.data.prepared import make, texts, write
from tests.data.stored import encoded, manifest, part_documents, token_counts, tree

PARAGRAPHS = "paragraphs dropped, having come before"
DOCUMENTS = "documents dropped, all of them having come before"


def is_first(hashes):
    """True at the first occurrence of each hash, by a set, and for 0, which is not a paragraph."""
    seen = set()
    return [value == 0 or not (value in seen or seen.add(value)) for value in hashes]


@pytest.mark.parametrize("megabytes", [1, 3, 4, 100])
def test_the_table_is_the_largest_power_of_two_that_fits(megabytes):
    size = SeenHashes(megabytes).table.nbytes
    assert size <= megabytes << 20 < 2 * size and (size & (size - 1)) == 0


def test_too_little_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(numpy, "zeros", Mock(side_effect=MemoryError))
    with pytest.raises(DataError, match="There is no memory for 1,000,000 MB. Choose a smaller --duplicates-mb"):
        SeenHashes(10**6)


def test_hashes_are_different_and_never_0():
    hashes = {text_hash(text) for text in texts(2000)}
    assert len(hashes) == len(texts(2000)) and min(hashes) > 0 and max(hashes) > 1 << 62
    assert text_hash("été") == text_hash("\u00e9t\u00e9") != text_hash("ete")


def found_first(hashes, size):
    """What a table of 1 MB finds, with `size` hashes per call."""
    seen, parts = SeenHashes(1), [hashes[start : start + size] for start in range(0, len(hashes), size)]
    return [new for part in parts for new in seen.first_occurrences(numpy.array(part, numpy.uint64)).tolist()]


@pytest.mark.parametrize("size", [1, 2, 50, 10_000])
def test_a_large_table_finds_exactly_the_first_occurrences(size):
    chance = random.Random(0)
    values = chance.sample(range(1, 1 << 17), 500)  # each has its own slot
    hashes = [chance.choice([0, *values]) for _ in range(3000)]
    assert found_first(hashes, size) == is_first(hashes)


def test_a_full_table_never_drops_a_first_occurrence():
    chance = random.Random(0)
    values = [chance.randrange(1, 1 << 64) >> 3 << 3 for _ in range(100_000)]  # an eighth of the slots are used
    hashes = [chance.choice(values) for _ in range(200_000)]
    found, expected = found_first(hashes, 777), is_first(hashes)
    assert all(kept for kept, first in zip(found, expected) if first)
    assert 0.2 < found.count(False) / expected.count(False) < 0.9


def deduplicate(documents: list[list[str]]):
    """-> the documents without duplicate paragraphs, number of paragraphs dropped, number of documents dropped"""
    seen, left = set(), []
    for paragraphs in documents:
        left.append([text for text in paragraphs if not (text in seen or seen.add(text))])
    before, after = sum(map(len, documents)), sum(map(len, left))
    return [document for document in left if document], before - after, sum(not document for document in left)


@pytest.fixture(scope="module")
def documents():
    """Documents of one to five paragraphs, most of which are repeated, in the same or another document."""
    chance = random.Random(0)
    return [chance.choices(texts(300), k=chance.randrange(1, 6)) for _ in range(400)]


@pytest.fixture
def files(tmp_path, documents):
    """The documents in three files."""
    as_text = ["\n".join(document) for document in documents]
    cuts = (slice(0, 150), slice(150, 160), slice(160, None))
    return [write(tmp_path / f"{place}.txt", "\n\n".join(as_text[cut]) + "\n") for place, cut in enumerate(cuts)]


OPTIONS = dict(documents="blank", duplicates_mb=1, shard_tokens=1000)


def test_duplicates_are_dropped_and_counted_across_parts_and_shards(tmp_path, files, documents, monkeypatch):
    left, paragraphs, whole = deduplicate(documents)
    assert paragraphs > 800 and whole > 50 and len(left) > 100
    for size in (3000, 20_000, reader.PART_BYTES):
        monkeypatch.setattr(reader, "PART_BYTES", size)
        out = tmp_path / str(size)
        made = make(out, *files, **OPTIONS)
        assert part_documents(out) == [encoded(*document) for document in left]
        assert made["counts"] == {DOCUMENTS: whole, PARAGRAPHS: paragraphs}
        assert manifest(out)["token_counts"] == token_counts(part_documents(out))
        assert size > 3000 or len(made["shards"]["train"]) > 10
        assert not list(out.glob("seen-*"))
    monkeypatch.setattr(reader, "PART_BYTES", 3000)
    make(tmp_path / "two", *files, workers=2, **OPTIONS)
    assert tree(tmp_path / "two") == tree(tmp_path / "3000")


@pytest.mark.parametrize("written", [False, True])
def test_a_resumed_run_remembers_earlier_paragraphs(tmp_path, out, files, small_parts, monkeypatch, written):
    """Each run stops at its third shard, before or after the manifest is written."""
    made = make(tmp_path / "whole", *files, **OPTIONS)
    write_manifest, left = prepare.write_manifest, []

    def stop_at_the_third(*arguments):
        left.pop()
        if written or left:
            write_manifest(*arguments)
        if not left:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_manifest", stop_at_the_third)
    runs = 0
    while not (out / "manifest.json").exists():
        left[:], runs = [1, 2, 3], runs + 1
        with contextlib.suppress(KeyboardInterrupt):
            make(out, *files, **OPTIONS)
        assert len(list(out.glob("seen-*"))) <= 2  # they can be large
    assert runs > len(made["shards"]["train"]) // 3 > 3
    assert tree(out) == tree(tmp_path / "whole")


def test_without_the_option_duplicates_are_kept(out, files, documents):
    made = make(out, *files, documents="blank")
    assert part_documents(out) == [encoded(*document) for document in documents]
    assert made["counts"] == {}


def test_prepare_with_a_full_table_drops_no_first_occurrence(out, files, documents, small_parts, monkeypatch):
    class Tiny(SeenHashes):
        def __init__(self, megabytes):
            self.table = numpy.zeros(64, numpy.uint64)

    monkeypatch.setattr(prepare, "SeenHashes", Tiny)
    made = make(out, *files, **OPTIONS)
    left, paragraphs, _ = deduplicate(documents)
    assert 100 < made["counts"][PARAGRAPHS] < paragraphs
    kept = spelt(i for document in part_documents(out) for i in document)
    assert all(spelt(encoded(paragraph)) in kept for document in left for paragraph in document)


def spelt(ids) -> str:
    return f" {' '.join(map(str, ids))} "


def test_a_document_without_other_tokens_is_dropped(tmp_path, out):
    """U+200B is not a space in Python, and gives no token."""
    path = write(tmp_path / "a.txt", "un film\n\nun film\n\u200b\n\nun livre\n")
    assert encoded("\u200b") == []
    made = make(out, path, documents="blank", duplicates_mb=1)
    assert part_documents(out) == [encoded("un film"), encoded("un livre")]
    assert made["counts"] == {DOCUMENTS: 1, PARAGRAPHS: 1}
