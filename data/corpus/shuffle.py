"""Chance that is computed, not drawn: the same for whoever asks, whenever, on whatever machine.

Numbers come from SplitMix64 (Steele, Lea and Flood 2014): a counter times a constant, mixed. So the order of an epoch
and the mask of a block need no state: any position is reached at once, by any process.
"""

import numpy

GOLDEN = numpy.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = numpy.uint64(0xBF58476D1CE4E5B9), numpy.uint64(0x94D049BB133111EB)
ROUNDS = 12  # of the permutation; with six, small ones are not even (chi-square of the steps between neighbours)


def mix(values: numpy.ndarray) -> numpy.ndarray:
    """(…) uint64 -> (…) uint64, one to one, without a pattern that remains."""
    with numpy.errstate(over="ignore"):
        values = numpy.asarray(values, numpy.uint64) * GOLDEN
        values = (values ^ (values >> numpy.uint64(30))) * FIRST
        values = (values ^ (values >> numpy.uint64(27))) * SECOND
        return values ^ (values >> numpy.uint64(31))


def key_of(*numbers) -> numpy.ndarray:
    """One key from several numbers (or arrays of them), each of which changes it wholly."""
    key = numpy.uint64(0)
    for number in numbers:
        key = mix(numpy.bitwise_xor(key, mix(numpy.asarray(number).astype(numpy.uint64) + numpy.uint64(1))))
    return key


def uniform(keys: numpy.ndarray, count: int, stream: int) -> numpy.ndarray:
    """(B,) keys -> (B, count) float64, evenly in [0, 1). Each stream of a key has its own numbers."""
    counters = numpy.arange(count, dtype=numpy.uint64) + numpy.uint64(stream << 32)
    bits = mix(numpy.bitwise_xor(keys[:, None], mix(counters + numpy.uint64(1))))
    return (bits >> numpy.uint64(11)).astype(numpy.float64) * 2.0**-53


def permute(positions: numpy.ndarray, length: int, key: numpy.ndarray) -> numpy.ndarray:
    """Where a permutation of 0, …, length - 1 has each position: (N,) -> (N,), with a key for all or one for each.

    A Feistel network permutes the numbers of so many bits; what lands outside goes through it again, until it is
    inside. That is a permutation of the inside, and takes at most four passes on average.
    """
    half = numpy.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
    mask = (numpy.uint64(1) << half) - numpy.uint64(1)
    keys = numpy.broadcast_to(key, positions.shape)
    result = positions.astype(numpy.uint64)
    outside = numpy.arange(len(result))
    while len(outside):
        left, right = result[outside] >> half, result[outside] & mask
        for number in range(ROUNDS):
            scrambled = mix(keys[outside] + right * numpy.uint64(ROUNDS) + numpy.uint64(number))
            left, right = right, left ^ (scrambled & mask)
        result[outside] = (left << half) | right
        outside = outside[result[outside] >= length]
    return result.astype(numpy.int64)
