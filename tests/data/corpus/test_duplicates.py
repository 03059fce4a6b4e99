"""Duplicate paragraphs: with enough memory all of them are dropped, and never a new paragraph."""

import contextlib
import random
from collections import Counter

import numpy
import pytest

from data import DataError, prepare
from data.corpus import files as reader
from data.corpus.duplicates import SeenHashes
from data.corpus.encode import text_hash
from tests.data.prepared import TOKENIZER, encoded, make, manifest, part_documents, texts, tree, write

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
    def zeros(*arguments):
        raise MemoryError

    monkeypatch.setattr(numpy, "zeros", zeros)
    with pytest.raises(DataError, match="There is no memory for 1,000,000 MB. Choose a smaller --duplicates-mb"):
        SeenHashes(10**6)


def test_hashes_are_different_and_never_0():
    hashes = {text_hash(text) for text in texts(2000)}
    assert len(hashes) == len(texts(2000)) and min(hashes) > 0 and max(hashes) > 1 << 62
    assert text_hash("été") == text_hash("\u00e9t\u00e9") != text_hash("ete")


@pytest.mark.parametrize("size", [1, 2, 50, 10_000])
def test_a_large_table_finds_exactly_the_first_occurrences(size):
    chance = random.Random(0)
    values = chance.sample(range(1, 1 << 17), 500)  # each has its own slot
    hashes = [chance.choice([0, *values]) for _ in range(3000)]
    seen, fresh = SeenHashes(1), []
    for start in range(0, len(hashes), size):
        fresh += seen.first_occurrences(numpy.array(hashes[start : start + size], numpy.uint64)).tolist()
    assert fresh == is_first(hashes)


def test_a_full_table_never_drops_a_first_occurrence():
    chance, seen = random.Random(0), SeenHashes(1)
    values = [chance.randrange(1, 1 << 64) >> 3 << 3 for _ in range(100_000)]  # an eighth of the slots are used
    hashes = [chance.choice(values) for _ in range(200_000)]
    fresh = []
    for start in range(0, len(hashes), 777):
        fresh += seen.first_occurrences(numpy.array(hashes[start : start + 777], numpy.uint64)).tolist()
    expected = is_first(hashes)
    assert all(kept for kept, first in zip(fresh, expected) if first)
    assert 0.2 < sum(not kept for kept in fresh) / sum(not first for first in expected) < 0.9


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
        assert part_documents(out, "train") == [encoded(*document) for document in left]
        assert made["counts"] == {DOCUMENTS: whole, PARAGRAPHS: paragraphs}
        assert size > 3000 or len(made["shards"]["train"]) > 10
        assert not list(out.glob("seen-*"))
    monkeypatch.setattr(reader, "PART_BYTES", 3000)
    make(tmp_path / "two", *files, workers=2, **OPTIONS)
    assert tree(tmp_path / "two") == tree(tmp_path / "3000")


@pytest.mark.parametrize("written", [False, True])
def test_a_resumed_run_remembers_earlier_paragraphs(tmp_path, files, monkeypatch, written):
    """Each run stops at its third shard, before or after the manifest is written."""
    monkeypatch.setattr(reader, "PART_BYTES", 3000)
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
    while not (tmp_path / "out" / "manifest.json").exists():
        left[:], runs = [1, 2, 3], runs + 1
        with contextlib.suppress(KeyboardInterrupt):
            make(tmp_path / "out", *files, **OPTIONS)
        assert len(list((tmp_path / "out").glob("seen-*"))) <= 2  # they can be large
    assert runs > len(made["shards"]["train"]) // 3 > 3
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_without_the_option_duplicates_are_kept(tmp_path, files, documents):
    made = make(tmp_path / "out", *files, documents="blank")
    assert part_documents(tmp_path / "out", "train") == [encoded(*document) for document in documents]
    assert made["counts"] == {}


def test_prepare_with_a_full_table_drops_no_first_occurrence(tmp_path, files, documents, monkeypatch):
    class Tiny(SeenHashes):
        def __init__(self, megabytes):
            self.table = numpy.zeros(64, numpy.uint64)

    monkeypatch.setattr(prepare, "SeenHashes", Tiny)
    monkeypatch.setattr(reader, "PART_BYTES", 3000)
    made = make(tmp_path / "out", *files, **OPTIONS)
    left, paragraphs, _ = deduplicate(documents)
    assert 100 < made["counts"][PARAGRAPHS] < paragraphs
    kept = spelt(i for document in part_documents(tmp_path / "out", "train") for i in document)
    assert all(spelt(encoded(paragraph)) in kept for document in left for paragraph in document)


def spelt(ids) -> str:
    return f" {' '.join(map(str, ids))} "


def test_a_document_without_other_tokens_is_dropped(tmp_path):
    """U+200B is not a space in Python, and gives no token."""
    path = write(tmp_path / "a.txt", "un film\n\nun film\n\u200b\n\nun livre\n")
    assert encoded("\u200b") == []
    made = make(tmp_path / "out", path, documents="blank", duplicates_mb=1)
    assert part_documents(tmp_path / "out", "train") == [encoded("un film"), encoded("un livre")]
    assert made["counts"] == {DOCUMENTS: 1, PARAGRAPHS: 1}


def test_tokens_are_counted_after_duplicates_are_dropped(tmp_path, files):
    make(tmp_path / "out", *files, **OPTIONS)
    tokens = Counter(i for document in part_documents(tmp_path / "out", "train") for i in [*document, TOKENIZER.eos_id])
    assert manifest(tmp_path / "out")["token_counts"] == [tokens[i] for i in range(len(TOKENIZER))]
