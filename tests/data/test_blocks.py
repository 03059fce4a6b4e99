"""Blocks of a prepared corpus: nothing lost, no padding, random access, and an order that depends on the seed alone."""

import json
import os
import re
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch

from data import DataError, demo
from data.blocks import Blocks, make_batch, open_blocks, prefetched, training_batches, validation_batches
from data.corpus.shards import FORMAT, MANIFEST, TRAIN, open_manifest
from data.corpus.shuffle import key_of
from data.masking import Masking
from losses import IGNORE_INDEX
from tests.data.prepared import TOKENIZER, make, write
from tests.helpers import DEVICE, full_blocks

MASKING = Masking(TOKENIZER)
TEXTS = list(islice(demo.texts(), 400))


def prepared(folder, texts=TEXTS, **options):
    folder.mkdir(exist_ok=True)
    make(folder / "corpus", write(folder / "text.txt", "\n".join(texts)), shard_tokens=1000, **options)
    return folder / "corpus"


@pytest.fixture
def corpus(tmp_path, small_parts):
    """A corpus of several shards."""
    return prepared(tmp_path)


def train_blocks(corpus, size, **options):
    return Blocks(corpus, TRAIN, size, TOKENIZER.bos_id, **options)


@pytest.mark.parametrize("size", [3, 32, 128, 1500])
def test_the_blocks_hold_the_texts_in_order(corpus, size):
    """Also across shards: a block of 1,500 tokens lies in two or three of them."""
    blocks = train_blocks(corpus, size)
    expected = full_blocks(TEXTS, TOKENIZER, size)
    assert len(list(corpus.glob("train-*.bin"))) > 10 and len(blocks) == len(expected) > 5
    assert torch.equal(blocks.read(numpy.arange(len(blocks))), expected)
    numbers = numpy.random.default_rng(0).integers(0, len(blocks), 50)
    assert torch.equal(blocks.read(numbers), expected[numbers])


@pytest.mark.parametrize("group", [1 << 16, 3])
def test_within_documents_no_block_crosses_into_another_document(corpus, monkeypatch, group):
    monkeypatch.setattr("data.blocks.GROUP", group)
    blocks = train_blocks(corpus, 16, within_documents=True)
    expected = []
    for text in TEXTS:
        ids = [*TOKENIZER.encode(text)[1:-1], TOKENIZER.eos_id]
        expected += [[TOKENIZER.bos_id, *ids[start : start + 15]] for start in range(0, len(ids) - 14, 15)]
    assert blocks.read(numpy.arange(len(blocks))).tolist() == expected
    assert len(expected) > 300 and blocks.read(numpy.array([17])).tolist() == [expected[17]]


def test_sixty_million_blocks_open_without_reading_them(tmp_path):
    tokens, documents, names = 64 * 10**6, 10**5, [f"train-{number:05}" for number in range(120)]
    for name in names:
        for suffix, size in ((".bin", 2 * tokens), (".ends", 8 * documents)):
            (tmp_path / (name + suffix)).touch()
            os.truncate(tmp_path / (name + suffix), size)  # a sparse file
    shards = [{"name": name, "tokens": tokens, "documents": documents} for name in names]
    manifest = {"format": FORMAT, "dtype": "<u2", "shards": {TRAIN: shards}, "token_counts": [], "damaged": []}
    manifest |= {"tokenizer": {}, "options": {}, "sources": [], "counts": {}}
    manifest |= {"hold_out": "documents", "read_as": {}, "notes": []}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident(), time.monotonic()
    blocks = train_blocks(tmp_path, 129)
    first = next(training_batches(blocks, MASKING, 8, 0, position=10**9))
    assert time.monotonic() - start < 1 and resident() - before < 50e6
    assert len(blocks) == 60_000_000 and first.input_ids.shape == (8, 129)


def resident() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def originals(batch):
    return torch.where(batch.labels != IGNORE_INDEX, batch.labels, batch.input_ids)


def rows(tensor):
    return sorted(map(tuple, tensor.tolist()))


def equal(one, other):
    return one.has_padding == other.has_padding and all(map(torch.equal, one[:3], other[:3]))


def test_an_epoch_has_every_block_once_and_each_epoch_and_seed_its_own_order(corpus):
    blocks = train_blocks(corpus, 32)
    assert len(blocks) % 10
    stream = training_batches(blocks, MASKING, 1, seed=0)
    epochs = [list(islice(stream, len(blocks))) for _ in range(2)]
    expected = blocks.read(numpy.arange(len(blocks)))
    assert not any(batch.has_padding for epoch in epochs for batch in epoch)
    seen = []
    for epoch in epochs:
        marked = [batch.labels[0] != IGNORE_INDEX for batch in epoch]
        share = sum(mark.sum().item() for mark in marked) / (31 * len(blocks))
        assert 0.12 < share < 0.17
        kept = torch.cat([batch.input_ids for batch in epoch])
        unchanged = torch.cat([originals(batch) for batch in epoch])
        assert rows(unchanged) == rows(expected) and not torch.equal(kept, unchanged)
        seen.append(unchanged)
    assert not torch.equal(*seen)
    by_block = [dict(zip(map(tuple, originals(b).tolist()), b.labels.tolist())) for e in epochs for b in e]
    first, second = ({k: v for d in by_block[i : i + len(blocks)] for k, v in d.items()} for i in (0, len(blocks)))
    assert sum(first[key] == second[key] for key in first) < len(first) / 10  # another mask in each epoch
    one, other = (next(training_batches(blocks, MASKING, 8, seed)) for seed in (1, 2))
    assert not torch.equal(originals(one), originals(other))


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_order_does_not_depend_on_batch_size_ranks_or_start(corpus, size):
    blocks = train_blocks(corpus, 32)
    one_by_one = list(islice(training_batches(blocks, MASKING, 1, seed=5), 2 * len(blocks)))
    count = 2 * len(blocks) // (2 * size)
    batches = list(islice(training_batches(blocks, MASKING, size, seed=5), 2 * count))
    streams = [training_batches(blocks, MASKING, size, 5, position=rank * size, stride=2 * size) for rank in range(2)]
    ranks = [list(islice(stream, count)) for stream in streams]
    for number, batch in enumerate(batches):
        alone = one_by_one[number * size : (number + 1) * size]
        assert equal(batch, ranks[number % 2][number // 2])
        assert torch.equal(batch.input_ids, torch.cat([each.input_ids for each in alone]))
        assert torch.equal(batch.labels, torch.cat([each.labels for each in alone]))
    (later,) = islice(training_batches(blocks, MASKING, size, 5, position=7 * size), 1)
    assert torch.equal(later.input_ids, batches[7].input_ids)


def test_a_corpus_smaller_than_a_batch_is_repeated(corpus):
    blocks = train_blocks(corpus, 1500)
    (batch,) = islice(training_batches(blocks, MASKING, 3 * len(blocks), 0), 1)
    assert rows(originals(batch)) == rows(blocks.read(numpy.arange(len(blocks)).repeat(3)))


def test_validation_batches_are_evenly_spaced_and_always_the_same(corpus):
    blocks = train_blocks(corpus, 32)
    batches = validation_batches(blocks, MASKING, 20, batch_size=8)
    assert [len(batch.input_ids) for batch in batches] == [8, 8, 4]
    first = originals(batches[0])[0]
    assert torch.equal(first, blocks.read(numpy.array([0]))[0])
    assert torch.equal(originals(batches[-1])[-1], blocks.read(numpy.array([len(blocks) - 1]))[0])
    assert sum(len(batch.input_ids) for batch in validation_batches(blocks, MASKING, 10**6)) == len(blocks)
    assert all(map(equal, batches, validation_batches(blocks, MASKING, 20, batch_size=8)))


def test_padding_is_not_real():
    batch = make_batch(torch.tensor([[5, 9, 9, 1, 1]]), MASKING, key_of(numpy.array([0])))
    assert batch.has_padding and batch.real.tolist() == [[True, True, True, False, False]]
    assert (batch.labels[~batch.real] == IGNORE_INDEX).all()


@pytest.mark.gpu
def test_batches_keep_their_values_on_the_device(corpus):
    """Copies are asynchronous, from pinned memory that is soon reused."""
    batches = list(islice(training_batches(train_blocks(corpus, 24), MASKING, 5, seed=0), 30))
    for moved, batch in zip([batch.to(DEVICE) for batch in batches], batches, strict=True):
        assert moved.has_padding == batch.has_padding
        for copy, tensor in zip(moved[:3], batch[:3], strict=True):
            assert copy.device.type == DEVICE.type and copy.dtype == tensor.dtype and torch.equal(copy.cpu(), tensor)


def test_prefetched_batches_are_the_same_in_pinned_memory(corpus, monkeypatch):
    blocks, pinned = train_blocks(corpus, 32), []
    if DEVICE.type == "cpu":
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    batches = prefetched(training_batches(blocks, MASKING, 4, seed=3))
    expected = islice(training_batches(blocks, MASKING, 4, seed=3), 20)
    for batch, other in zip(islice(batches, 20), expected, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(batch[:3], other[:3]))
        assert batch.has_padding == other.has_padding
        assert len(pinned) >= 3 or all(tensor.is_pinned() for tensor in batch[:3])
    before = threading.active_count()
    batches.close()
    assert threading.active_count() == before - 1


def test_prefetching_ends_with_the_batches_and_passes_errors_on(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    batch = make_batch(torch.full((2, 8), 9), MASKING, key_of(0, numpy.arange(2)))

    def failing():
        yield batch
        raise DataError("a shard is gone")

    assert len(list(prefetched(iter([batch] * 3)))) == 3
    with pytest.raises(DataError, match="a shard is gone"):
        list(prefetched(failing()))


def test_a_part_without_a_block_is_an_error(tmp_path):
    corpus = prepared(tmp_path, TEXTS[:20])
    with pytest.raises(DataError, match="too few tokens, 0, for a held-out block of 128. Prepare it again"):
        open_blocks(corpus, TOKENIZER, 128)
    with pytest.raises(
        DataError, match=r"too few tokens, [\d,]+, for a train block of 100000. .* smaller --block-size"
    ):
        open_blocks(corpus, TOKENIZER, 100_000)
    one = prepared(tmp_path / "one", TEXTS[:1], held_out=0.1)
    with pytest.raises(DataError, match=r"too few tokens, \d+, for two blocks of 500, one to train on and one"):
        open_blocks(one, TOKENIZER, 500)
    with pytest.raises(DataError, match="Add text, leave out --within-documents, or choose a smaller --block-size"):
        open_blocks(one, TOKENIZER, 500, within_documents=True)


@pytest.mark.parametrize("held_out", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("within_documents", [False, True])
def test_of_one_long_document_blocks_are_held_out(tmp_path, held_out, within_documents):
    """Evenly spaced ones; together, the two parts have every block once."""
    corpus = prepared(tmp_path, [" ".join(TEXTS[:100])], held_out=held_out)
    whole = full_blocks([" ".join(TEXTS[:100])], TOKENIZER, 16)
    train, kept = open_blocks(corpus, TOKENIZER, 16, within_documents)
    assert len(kept) == round(held_out * len(whole)) and len(train) + len(kept) == len(whole) > 100
    found = [tuple(block.tolist()) for part in (train, kept) for block in part.read(numpy.arange(len(part)))]
    assert Counter(found) == Counter(tuple(block.tolist()) for block in whole)
    assert open_manifest(corpus)["hold_out"] == "blocks"


def test_a_corpus_of_two_blocks_can_be_trained_on(tmp_path):
    corpus = prepared(tmp_path, TEXTS[:1], held_out=0.01)
    tokens = sum(shard["tokens"] for part in open_manifest(corpus)["shards"].values() for shard in part)
    assert list(map(len, open_blocks(corpus, TOKENIZER, tokens // 2 + 1))) == [1, 1]


def test_held_out_documents_without_a_block_are_replaced_by_blocks(tmp_path, capsys):
    corpus = prepared(tmp_path, TEXTS, held_out=0.02)
    assert open_manifest(corpus)["hold_out"] == "documents"
    train, held_out = open_blocks(corpus, TOKENIZER, 2048)
    assert len(held_out) >= 1 and len(train) + len(held_out) == len(full_blocks(TEXTS, TOKENIZER, 2048))
    assert "fill no block of 2048, so blocks are held out instead" in capsys.readouterr().err


def test_another_tokenizer_is_an_error(corpus):
    manifest = json.loads((corpus / MANIFEST).read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (corpus / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="prepared with another tokenizer than the teacher's, .*sentencepiece.bpe"):
        open_blocks(corpus, TOKENIZER, 32)


@pytest.mark.parametrize("message", ["does not have the size", "cannot be read"])
@pytest.mark.parametrize("name", ["train-00003.bin", "train-00000.ends"])
def test_a_truncated_or_missing_file_is_an_error(corpus, message, name):
    content = (corpus / name).read_bytes()
    (corpus / name).unlink()
    if message == "does not have the size":
        (corpus / name).write_bytes(content[:-2])
    with pytest.raises(DataError, match=f"{name} {message}"):
        train_blocks(corpus, 32)


MANIFESTS = {"{": "is not the manifest", "[]": "is not the manifest", None: "is not a finished corpus"}


@pytest.mark.parametrize(("content", "message"), MANIFESTS.items())
def test_an_unfinished_or_damaged_manifest_is_an_error(corpus, content, message):
    (corpus / MANIFEST).unlink()
    if content is not None:
        (corpus / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=message):
        train_blocks(corpus, 32)
