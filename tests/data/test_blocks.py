"""Texts packed into blocks: nothing lost, nothing padded, the held-out part never trained on."""

from itertools import islice

import pytest
import torch

from data import DataError, Tokenizer, demo
from data.blocks import hold_out, make_batch, pack_blocks, training_batches

TOKENIZER = Tokenizer(demo.FOLDER)
TEXTS = list(islice(demo.texts(), 200))


def test_the_blocks_hold_the_texts_in_order():
    blocks = pack_blocks(TEXTS, TOKENIZER, 32)
    stream = [i for text in TEXTS for i in [*TOKENIZER.encode(text)[1:-1], TOKENIZER.eos_id]]
    assert blocks.shape == (len(stream) // 31, 32)
    assert (blocks[:, 0] == TOKENIZER.bos_id).all()
    assert blocks[:, 1:].flatten().tolist() == stream[: len(blocks) * 31]
    assert blocks.dtype == torch.uint16
    assert (blocks.long() != TOKENIZER.pad_id).all()


def test_a_large_vocabulary_takes_more_room(monkeypatch):
    small = pack_blocks(TEXTS, TOKENIZER, 32)
    monkeypatch.setattr(Tokenizer, "__len__", lambda self: (1 << 16) + 1)
    large = pack_blocks(TEXTS, TOKENIZER, 32)
    assert large.dtype == torch.int32 and torch.equal(large.long(), small.long())


def test_no_text_and_too_little_text_are_sentences():
    with pytest.raises(DataError, match="no usable line"):
        pack_blocks([], TOKENIZER, 32)
    with pytest.raises(DataError, match=r"only \d+ tokens, less than one block of 128"):
        pack_blocks(["Un film."], TOKENIZER, 128)
    with pytest.raises(DataError, match="one block long"):
        hold_out(torch.zeros(1, 8), 4)


@pytest.mark.parametrize(("blocks", "count"), [(2, 256), (9, 256), (100, 256), (10_000, 256), (10_000, 7)])
def test_held_out_blocks_are_spread_and_never_trained_on(blocks, count):
    numbered = torch.arange(blocks)[:, None]
    train, held_out = hold_out(numbered, count)
    assert sorted(train.flatten().tolist() + held_out.flatten().tolist()) == list(range(blocks))
    assert 1 <= len(held_out) <= max(1, min(2 * count, -(-blocks // 10)))
    places = held_out.flatten()
    if len(places) > 2:
        assert (places.diff() == places[1] - places[0]).all()


def test_an_epoch_has_every_block_once_and_its_own_order():
    blocks = torch.arange(7, 107)[:, None].expand(100, 4).to(torch.uint16)
    batches = training_batches(blocks, TOKENIZER, 10, torch.Generator().manual_seed(0))
    epochs = []
    for _ in range(2):
        originals = []
        for batch in islice(batches, 10):
            chosen = batch.labels != -100
            rows = torch.where(chosen, batch.labels, batch.input_ids)
            kept = ~chosen  # an ordinary token that was not chosen shows its block
            originals += [row[keep][0].item() if keep.any() else label.max().item()
                          for row, keep, label in zip(rows, kept, batch.labels)]  # fmt: skip
        epochs.append(originals)
        assert sorted(originals) == list(range(7, 107))
    assert epochs[0] != epochs[1]


def test_a_corpus_smaller_than_a_batch_is_repeated():
    blocks = pack_blocks(TEXTS[:10], TOKENIZER, 32)
    (batch,) = islice(training_batches(blocks, TOKENIZER, 3 * len(blocks), torch.Generator().manual_seed(0)), 1)
    assert batch.input_ids.shape == (3 * len(blocks), 32)


def test_the_same_seed_gives_the_same_batches():
    blocks = pack_blocks(TEXTS, TOKENIZER, 32)
    first, again, other = (
        list(islice(training_batches(blocks, TOKENIZER, 8, torch.Generator().manual_seed(seed)), 5))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for x, y in zip(first, again) for a, b in zip(x, y))
    assert not torch.equal(first[0].input_ids, other[0].input_ids)


def test_padding_is_not_real():
    batch = make_batch(torch.tensor([[5, 9, 9, 1, 1]]), TOKENIZER, torch.Generator().manual_seed(0))
    assert batch.real.tolist() == [[True, True, True, False, False]]
    assert (batch.labels[~batch.real] == -100).all()
