"""Random choices, all by `Random.random`, the only method whose sequence Python guarantees across versions."""

from collections.abc import Sequence
from random import Random


def pick(rng: Random, items: Sequence):
    """One of the items."""
    return items[int(rng.random() * len(items))]


def draw(rng: Random, items: Sequence, count: int) -> list:
    """`count` different items, in random order."""
    pool = list(items)
    return [pool.pop(int(rng.random() * len(pool))) for _ in range(count)]
