"""Stateless random numbers: uniform, permutations, and the same for the same key."""

import numpy
import pytest
from scipy.stats import chisquare, kstest

from data.corpus.shuffle import key_of, mix, permute, uniform


def test_mix_is_splitmix64():
    """The first outputs of the published generator for seed 0: its n-th output is mix(n)."""
    assert mix(numpy.arange(1, 4)).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 100, 4096, 4097, 100_003])
def test_permute_is_a_permutation(length):
    for seed in range(3):
        assert sorted(permute(numpy.arange(length), length, key_of(seed)).tolist()) == list(range(length))


def test_permute_at_single_positions_and_with_one_key_per_position():
    whole = permute(numpy.arange(1000), 1000, key_of(7, 1))
    alone = [int(permute(numpy.array([i]), 1000, key_of(7, 1))[0]) for i in range(0, 1000, 37)]
    assert whole[::37].tolist() == alone
    keys = key_of(7, numpy.arange(2).repeat(500))  # as in a batch across two epochs
    mixed = permute(numpy.tile(numpy.arange(500), 2), 1000, keys)
    assert mixed[:500].tolist() == permute(numpy.arange(500), 1000, key_of(7, 0)).tolist()
    assert mixed[500:].tolist() == permute(numpy.arange(500), 1000, key_of(7, 1)).tolist()


def test_permutations_look_random():
    """Every number is equally likely at every position, and neighbours are uncorrelated (99.99 % confidence)."""
    orders = numpy.array([permute(numpy.arange(12), 12, key_of(seed, 3)) for seed in range(6000)])
    for position in range(12):
        assert chisquare(numpy.bincount(orders[:, position], minlength=12)).pvalue > 1e-4 / 12
    steps = (numpy.diff(orders, axis=1) % 12).flatten()  # 1 to 11, equally likely
    assert chisquare(numpy.bincount(steps, minlength=12)[1:]).pvalue > 1e-4
    long = permute(numpy.arange(10**5), 10**5, key_of(1))
    assert abs(numpy.corrcoef(long[:-1], long[1:])[0, 1]) < 4 / 10**2.5


def test_three_positions_of_sixty_million():
    numbers = permute(numpy.array([0, 59_999_999, 30_000_000]), 60_000_000, key_of(0, 0))
    assert len(set(numbers.tolist())) == 3 and numbers.min() >= 0 and numbers.max() < 60_000_000


def test_uniform_is_uniform_and_streams_and_keys_are_uncorrelated():
    keys = key_of(5, numpy.arange(400))
    first, second = (uniform(keys, 250, stream) for stream in (0, 1))
    for numbers in (first, second, first[:, 0], first[7]):
        assert kstest(numbers.flatten(), "uniform").pvalue > 1e-4
    for one, other in ((first, second), (first[:-1], first[1:]), (first[:, :-1], first[:, 1:])):
        correlation = numpy.corrcoef(one.flatten(), other.flatten())[0, 1]
        assert abs(correlation) < 4 / one.size**0.5  # fails in one of 16,000 trials


def test_every_number_changes_the_key():
    keys = {int(key_of(seed, epoch, block)) for seed in range(10) for epoch in range(10) for block in range(100)}
    assert len(keys) == 10_000
    assert key_of(1, 2) != key_of(2, 1) and key_of(3, numpy.array([4, 5]))[1] == key_of(3, 5)
