"""The corruption: shares within 99.99 % confidence, never a special token, the same for the same generator."""

import pytest
import torch

from data import Tokenizer, demo
from data.masking import NOT_CHOSEN, mask_tokens
from losses import IGNORED

TOKENIZER = Tokenizer(demo.FOLDER)
N = 400_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def corrupted():
    """Ordinary tokens, all equal so that a random replacement shows, with specials strewn in."""
    input_ids = torch.full((N,), 100)
    specials = torch.tensor([0, 1, 2, 3, 4, 5, 6, TOKENIZER.mask_id])
    input_ids[::10] = specials[torch.arange(N // 10) % 8]
    return input_ids, *mask_tokens(input_ids, TOKENIZER, generator())


def within(count, trials, share):
    """Whether a binomial count is within 4 standard deviations: it is not once in 16,000 trials."""
    return abs(count - trials * share) < 4 * (trials * share * (1 - share)) ** 0.5


def test_the_shares(corrupted):
    input_ids, output, labels = corrupted
    ordinary = (input_ids == 100).sum().item()
    chosen = labels != NOT_CHOSEN
    count = chosen.sum().item()
    assert within(count, ordinary, 0.15)
    assert within((output[chosen] == TOKENIZER.mask_id).sum().item(), count, 0.80)
    words = len(TOKENIZER.ordinary_ids)  # a random token is the old one again once in so many
    kept = (output[chosen] == 100).sum().item()
    assert within(kept, count, 0.10 + 0.10 / words)
    replaced = (output[chosen] != TOKENIZER.mask_id) & (output[chosen] != 100)
    assert within(replaced.sum().item(), count, 0.10 - 0.10 / words)


def test_special_tokens_are_never_chosen_and_never_drawn(corrupted):
    input_ids, output, labels = corrupted
    special = input_ids != 100
    assert (labels[special] == NOT_CHOSEN).all()
    assert torch.equal(output[special], input_ids[special])
    drawn = output[~special & (output != TOKENIZER.mask_id)]
    assert drawn.min() == TOKENIZER.ordinary_ids.start and drawn.max() == TOKENIZER.ordinary_ids.stop - 1


def test_random_tokens_come_evenly_from_the_whole_ordinary_vocabulary(corrupted):
    from scipy.stats import chisquare

    input_ids, output, _ = corrupted
    drawn = output[(input_ids == 100) & (output != TOKENIZER.mask_id) & (output != 100)]
    counts = drawn.bincount(minlength=len(TOKENIZER))[TOKENIZER.ordinary_ids.start : TOKENIZER.ordinary_ids.stop]
    counts = torch.cat([counts[: 100 - 7], counts[101 - 7 :]])  # without 100 itself, which cannot be told from kept
    assert chisquare(counts.numpy()).pvalue > 1e-4


def test_labels_are_the_originals_and_the_rest_is_untouched(corrupted):
    input_ids, output, labels = corrupted
    chosen = labels != NOT_CHOSEN
    assert torch.equal(labels[chosen], input_ids[chosen])
    assert torch.equal(output[~chosen], input_ids[~chosen])
    assert NOT_CHOSEN == IGNORED


def test_the_generator_decides():
    input_ids = torch.arange(7, 1000).repeat(3, 1)
    first, again = mask_tokens(input_ids, TOKENIZER, generator(1)), mask_tokens(input_ids, TOKENIZER, generator(1))
    other = mask_tokens(input_ids, TOKENIZER, generator(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    torch.manual_seed(3)  # the global state plays no part
    assert torch.equal(mask_tokens(input_ids, TOKENIZER, generator(1))[0], first[0])
