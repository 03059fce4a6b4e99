"""Means, intervals and paired tests over seeds, and intervals over blocks of held-out text.

Over seeds, Student's t distribution is assumed. Its distribution function for a whole number of degrees of freedom is
the finite sum of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence

import numpy
from numpy import ndarray

from ..tasks.bootstrap import Metric, bootstrap, ratio

CONFIDENCE = 0.95


def central_probability(t: float, freedom: int) -> float:
    """The probability that Student's t with these degrees of freedom lies between −t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if freedom % 2 else 1.0
    total = 0.0
    for k in range(2 + freedom % 2, freedom + 1, 2):  # the terms up to cos^(freedom − 2)
        total += term
        term *= (k - 1) / k * cosine**2
    if freedom % 2:
        return 2 / math.pi * (angle + sine * total)
    return sine * total


def critical_value(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t for which central_probability is the confidence, by bisection."""
    low, high = 0.0, 1.0
    while central_probability(high, freedom) < confidence:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if central_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def estimate(values: Mapping[int, float]) -> dict | None:
    """Of a value per seed: {"seeds", "mean", "deviation", "low", "high"}; None without any.

    deviation: of the sample (n − 1); low, high: the 95 % interval of the mean. All three are None for a single seed.
    """
    if not values:
        return None
    found = {"seeds": sorted(values), "mean": statistics.fmean(values.values())}
    if len(values) == 1:
        return found | {"deviation": None, "low": None, "high": None}
    deviation = statistics.stdev(values.values())
    half = critical_value(len(values) - 1) * deviation / math.sqrt(len(values))
    return found | {"deviation": deviation, "low": found["mean"] - half, "high": found["mean"] + half}


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> dict | None:
    """The paired t-test of values − others on the seeds that both have: estimate() of the differences, and "p".

    p: two-sided, None for a single seed.
    """
    found = estimate({seed: values[seed] - others[seed] for seed in values.keys() & others.keys()})
    if found is None or found["deviation"] is None:
        return found and found | {"p": None}
    mean, error = found["mean"], found["deviation"] / math.sqrt(len(found["seeds"]))
    t = abs(mean) / error if error else math.inf if mean else 0.0
    return found | {"p": max(0.0, 1 - central_probability(t, len(found["seeds"]) - 1))}


def ratios(values: Mapping[int, float], others: Mapping[int, float]) -> dict[int, float]:
    """values / others of the seeds that both have; 0 where others are 0."""
    return {seed: float(ratio(values[seed], others[seed])) for seed in values.keys() & others.keys()}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: the chance of any false positive among all comparisons stays below the level."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def over_text(groups: Mapping[Hashable, Sequence[ndarray]]) -> dict[Hashable, dict[str, Metric]]:
    """Of each group of runs accuracy, agreement and kept (accuracy / the teacher's), with 95 % intervals over blocks.

    groups: the counts of each run, (blocks, 4): masked tokens, right, as the teacher, teacher right. As the blocks and
    the masks are the same for all runs, bootstrap.difference() of two groups has a paired interval.
    """

    def metrics(sums: ndarray) -> dict[Hashable, dict]:
        """sums: (…, groups, 4)"""
        masked, right, agreed, teacher_right = numpy.moveaxis(sums, -1, 0)
        found = {"accuracy": ratio(right, masked), "agreement": ratio(agreed, masked)}
        found["kept"] = ratio(right, teacher_right)
        return {key: {name: each[..., i] for name, each in found.items()} for i, key in enumerate(groups)}

    if not groups:
        return {}
    return bootstrap(numpy.stack([numpy.sum(counts, axis=0) for counts in groups.values()], axis=1), metrics)
