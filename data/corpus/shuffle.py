"""Random numbers and permutations that are functions of a key: without state, the same on every machine.

They come from SplitMix64 (Steele, Lea and Flood 2014), which multiplies a counter by a constant and mixes its bits. So
any process can compute the order of an epoch at any position, or the mask of any block, without what comes before.
"""

import numpy

GOLDEN = numpy.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = numpy.uint64(0xBF58476D1CE4E5B9), numpy.uint64(0x94D049BB133111EB)
ROUNDS = 12  # of the Feistel network; with six, small permutations are biased (chi-square of neighbours' differences)


def mix(values: numpy.ndarray) -> numpy.ndarray:
    """SplitMix64's output function, a bijection: (…) uint64 -> (…) uint64"""
    with numpy.errstate(over="ignore"):
        values = numpy.asarray(values, numpy.uint64) * GOLDEN
        values = (values ^ (values >> numpy.uint64(30))) * MULTIPLIERS[0]
        values = (values ^ (values >> numpy.uint64(27))) * MULTIPLIERS[1]
        return values ^ (values >> numpy.uint64(31))


def key_of(*numbers) -> numpy.ndarray:
    """A key from several integers, or arrays of them (broadcast) -> uint64"""
    key = numpy.uint64(0)
    for number in numbers:
        key = mix(numpy.bitwise_xor(key, mix(numpy.asarray(number).astype(numpy.uint64) + numpy.uint64(1))))
    return key


def uniform(keys: numpy.ndarray, count: int, stream: int) -> numpy.ndarray:
    """Uniform random numbers in [0, 1): keys (B,) -> (B, count) float64.  stream: another number gives others."""
    counters = numpy.arange(count, dtype=numpy.uint64) + numpy.uint64(stream << 32)
    bits = mix(numpy.bitwise_xor(keys[:, None], mix(counters + numpy.uint64(1))))
    return (bits >> numpy.uint64(11)).astype(numpy.float64) * 2.0**-53


def permute(positions: numpy.ndarray, length: int, key: numpy.ndarray) -> numpy.ndarray:
    """A random permutation of 0, …, length - 1 at some positions: (N,) -> (N,) int64.  key: (), or (N,) one for each.

    A Feistel network permutes the integers below a power of 4 of at least `length`. A result outside 0, …, length - 1
    goes through it again until it is inside, at most four times on average, and that is a permutation again.
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
