"""Chance that is computed: evenly spread, a permutation, and the same for whoever asks."""

import numpy
import pytest
from scipy.stats import chisquare, kstest

from data.corpus.shuffle import key_of, mix, permute, uniform


def test_the_mixing_is_splitmix64():
    """The first outputs of the published generator for seed 0, whose n-th is the mixed n-fold constant."""
    assert [int(each) for each in mix(numpy.arange(1, 4))] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 100, 4096, 4097, 100_003])
def test_every_number_comes_once(length):
    for seed in range(3):
        assert sorted(permute(numpy.arange(length), length, key_of(seed)).tolist()) == list(range(length))


def test_any_position_is_reached_alone():
    whole = permute(numpy.arange(1000), 1000, key_of(7, 1))
    alone = [int(permute(numpy.array([place]), 1000, key_of(7, 1))[0]) for place in range(0, 1000, 37)]
    assert whole[::37].tolist() == alone
    keys = key_of(7, numpy.arange(2).repeat(500))  # one key for each position, as where a batch begins a new epoch
    mixed = permute(numpy.tile(numpy.arange(500), 2), 1000, keys)
    assert mixed[:500].tolist() == permute(numpy.arange(500), 1000, key_of(7, 0)).tolist()
    assert mixed[500:].tolist() == permute(numpy.arange(500), 1000, key_of(7, 1)).tolist()


def test_the_order_looks_random():
    """Every place gets every number equally often, and neighbours are no longer neighbours (99.99 % confidence)."""
    orders = numpy.array([permute(numpy.arange(12), 12, key_of(seed, 3)) for seed in range(6000)])
    for place in range(12):
        assert chisquare(numpy.bincount(orders[:, place], minlength=12)).pvalue > 1e-4 / 12
    steps = (numpy.diff(orders, axis=1) % 12).flatten()  # 1 to 11, evenly
    assert chisquare(numpy.bincount(steps, minlength=12)[1:]).pvalue > 1e-4
    long = permute(numpy.arange(10**5), 10**5, key_of(1))
    assert abs(numpy.corrcoef(long[:-1], long[1:])[0, 1]) < 4 / 10**2.5


def test_sixty_million_in_no_time():
    places = numpy.array([0, 59_999_999, 30_000_000])
    numbers = permute(places, 60_000_000, key_of(0, 0))
    assert len(set(numbers.tolist())) == 3 and numbers.min() >= 0 and numbers.max() < 60_000_000


def test_uniform_numbers_are_uniform_and_streams_have_nothing_in_common():
    keys = key_of(5, numpy.arange(400))
    first, second = (uniform(keys, 250, stream) for stream in (0, 1))
    for numbers in (first, second, first[:, 0], first[7]):
        assert kstest(numbers.flatten(), "uniform").pvalue > 1e-4
    for one, other in ((first, second), (first[:-1], first[1:]), (first[:, :-1], first[:, 1:])):
        correlation = numpy.corrcoef(one.flatten(), other.flatten())[0, 1]
        assert abs(correlation) < 4 / one.size**0.5  # once in 16,000 trials


def test_keys_differ_in_every_part():
    keys = {int(key_of(seed, epoch, block)) for seed in range(10) for epoch in range(10) for block in range(100)}
    assert len(keys) == 10_000
    assert key_of(1, 2) != key_of(2, 1) and key_of(3, numpy.array([4, 5]))[1] == key_of(3, 5)
