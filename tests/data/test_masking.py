"""Masking: fractions within 99.99 % confidence, no special tokens, the same corruption for the same key."""

import itertools

import numpy
import pytest
import torch
from scipy.stats import chisquare

from data import demo
from data.corpus.shuffle import key_of
from data.masking import STRATEGIES, Masking
from losses import IGNORE_INDEX
from tests.data.prepared import TOKENIZER

B, N = 1000, 400
SPECIALS = torch.tensor([0, 1, 2, 3, 4, 5, 6, TOKENIZER.mask_id])


def keys(count, seed=0):
    return key_of(seed, 0, numpy.arange(count))


@pytest.fixture(scope="module")
def corrupted():
    """Equal ordinary tokens, so that random replacements can be seen, and special tokens between them."""
    input_ids = torch.full((B, N), 100)
    input_ids.view(-1)[::10] = SPECIALS[torch.arange(B * N // 10) % 8]
    return input_ids, *Masking(TOKENIZER)(input_ids, keys(B))


def within(count, trials, share):
    """Whether a binomial count is within 4 standard deviations, which fails once in 16,000 times."""
    return abs(count - trials * share) < 4 * (trials * share * (1 - share)) ** 0.5


def test_the_fractions(corrupted):
    input_ids, output, labels = corrupted
    ordinary = (input_ids == 100).sum().item()
    chosen = labels != IGNORE_INDEX
    count = chosen.sum().item()
    assert within(count, ordinary, 0.15)
    assert within((output[chosen] == TOKENIZER.mask_id).sum().item(), count, 0.80)
    same = 0.10 / len(TOKENIZER.ordinary_ids)  # replaced by a random token that happens to be the original
    kept = (output[chosen] == 100).sum().item()
    assert within(kept, count, 0.10 + same)
    replaced = (output[chosen] != TOKENIZER.mask_id) & (output[chosen] != 100)
    assert within(replaced.sum().item(), count, 0.10 - same)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_special_tokens_are_never_chosen_and_never_drawn(strategy):
    input_ids = torch.randint(7, 1004, (200, N), generator=torch.Generator().manual_seed(0))
    input_ids.view(-1)[::7] = SPECIALS[torch.arange(len(input_ids.view(-1)[::7])) % 8]
    output, labels = Masking(TOKENIZER, strategy, numpy.ones(1005))(input_ids, keys(200))
    special = (input_ids < 7) | (input_ids == TOKENIZER.mask_id)
    assert (labels[special] == IGNORE_INDEX).all() and torch.equal(output[special], input_ids[special])
    drawn = output[~special & (output != TOKENIZER.mask_id)]
    assert drawn.min() == TOKENIZER.ordinary_ids.start and drawn.max() == TOKENIZER.ordinary_ids.stop - 1
    chosen = labels != IGNORE_INDEX
    assert torch.equal(labels[chosen], input_ids[chosen]) and torch.equal(output[~chosen], input_ids[~chosen])


def test_random_tokens_are_uniform_over_the_ordinary_vocabulary(corrupted):
    input_ids, output, _ = corrupted
    drawn = output[(input_ids == 100) & (output != TOKENIZER.mask_id) & (output != 100)]
    counts = drawn.bincount(minlength=len(TOKENIZER))[TOKENIZER.ordinary_ids.start : TOKENIZER.ordinary_ids.stop]
    counts = torch.cat([counts[: 100 - 7], counts[101 - 7 :]])  # without 100, which looks like a kept token
    assert chisquare(counts.numpy()).pvalue > 1e-4


def test_positions_are_chosen_uniformly_and_independently(corrupted):
    input_ids, _, labels = corrupted
    chosen = (labels != IGNORE_INDEX).double()
    columns, expected = chosen.sum(0), (input_ids == 100).double().sum(0) * chosen.sum() / 360_000
    used = expected > 0
    assert chisquare(columns[used].numpy(), expected[used].numpy()).pvalue > 1e-4
    ordinary = chosen[:, torch.arange(N) % 10 != 0]
    assert abs(numpy.corrcoef(ordinary[:, :-1].flatten(), ordinary[:, 1:].flatten())[0, 1]) < 4 / (B * 360) ** 0.5


def test_the_corruption_depends_on_the_key_alone():
    input_ids = torch.arange(7, 1000).repeat(3, 1)
    for strategy in STRATEGIES:
        masking = Masking(TOKENIZER, strategy, numpy.arange(1005))
        whole, labels = masking(input_ids, keys(3))
        torch.manual_seed(3)  # not on the global random state
        for row in range(3):  # nor on the rest of the batch
            alone = masking(input_ids[row : row + 1], keys(3)[row : row + 1])
            assert torch.equal(alone[0][0], whole[row]) and torch.equal(alone[1][0], labels[row])
        assert not torch.equal(labels[0], labels[1])
        assert not torch.equal(masking(input_ids, keys(3, seed=1))[1], labels)


@pytest.mark.parametrize("rate", [0.15, 0.4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_the_rate(strategy, rate):
    """Of 80,000 tokens of one word each, with 20 kinds, some of them rare; what becomes of the chosen stays BERT's."""
    words = [i for i, piece in enumerate(TOKENIZER.pieces(range(1000))) if piece.startswith("▁")][:20]
    input_ids = torch.tensor(words).repeat(200, 20)
    counts = numpy.ones(1005)
    counts[words] = numpy.arange(1, 21) ** 2
    output, labels = Masking(TOKENIZER, strategy, counts, rate)(input_ids, keys(200))
    chosen = labels != IGNORE_INDEX
    if strategy == "rare":
        assert (chosen.sum(1) == round(rate * 400)).all()
    else:
        assert within(chosen.sum().item(), chosen.numel(), rate)
    assert within((output[chosen] == TOKENIZER.mask_id).sum().item(), chosen.sum().item(), 0.80)


def test_words_are_chosen_as_a_whole():
    text = TOKENIZER.encode(" ".join(itertools.islice(demo.texts(), 300)))
    input_ids = torch.tensor(text[: len(text) // 200 * 200]).view(-1, 200)
    _, labels = Masking(TOKENIZER, "words")(input_ids, keys(len(input_ids)))
    begins = torch.tensor([piece.startswith("▁") for piece in TOKENIZER.pieces(range(1005))])[input_ids]
    ordinary = (input_ids >= 7) & (input_ids < 1004)
    chosen = labels != IGNORE_INDEX
    for row in range(len(input_ids)):
        for place in range(1, 200):
            if ordinary[row, place - 1] and ordinary[row, place] and not begins[row, place]:
                assert chosen[row, place] == chosen[row, place - 1]
    starts = begins & ordinary
    words, first = starts.sum().item(), (starts & chosen).sum().item()
    assert within(first, words, 0.15) and words > 5000
    together = starts[:, 1:] & starts[:, :-1]  # neighbouring words are independent
    assert within((chosen[:, 1:] & chosen[:, :-1])[together].sum().item(), together.sum().item(), 0.15**2)


def test_rare_tokens_are_chosen_more_often():
    """Exactly 15 % of each sequence; two kinds of tokens in the ratio of their weights, to first order."""
    counts = numpy.ones(1005)
    counts[50] = 1000.0
    input_ids = torch.full((2000, 100), 50)
    input_ids[:, ::2] = 60
    _, labels = Masking(TOKENIZER, "rare", counts)(input_ids, keys(2000))
    assert ((labels != IGNORE_INDEX).sum(1) == 15).all()
    rare, common = (labels == 60).sum().item(), (labels == 50).sum().item()
    # the first draw is rare with probability 50 / (50 + 50 * 1000^-0.7); later draws change the remaining counts
    weight = 1000**-0.7
    expected, left = 0.0, 50.0
    for draw in range(15):  # the mean of sequential draws, to first order
        share = left / (left + (50 - (draw - (50 - left))) * weight)
        expected, left = expected + share, left - share
    assert abs(rare / 2000 - expected) < 0.02 and rare + common == 30_000


def test_rare_equals_numpys_draws_without_replacement():
    counts = numpy.zeros(1005)
    counts[7:17] = 10.0 ** numpy.arange(10)
    row = torch.arange(7, 17).repeat(2)  # 20 tokens, 3 of which are chosen
    _, labels = Masking(TOKENIZER, "rare", counts)(row.repeat(20_000, 1), keys(20_000))
    ours = numpy.bincount(labels[labels >= 0].numpy(), minlength=17)[7:]
    weights = numpy.maximum(counts[row.numpy()], 1) ** -0.7
    generator = numpy.random.default_rng(0)
    drawn = [generator.choice(20, 3, replace=False, p=weights / weights.sum()) for _ in range(20_000)]
    theirs = numpy.bincount(row.numpy()[numpy.concatenate(drawn)], minlength=17)[7:]
    for one, other in zip(ours, theirs):
        assert abs(one - other) < 4 * (one + other + 1) ** 0.5 + 4
