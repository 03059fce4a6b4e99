"""Ratios of counts, and 95 % intervals by bootstrap over the examples.
"""

import math
from collections.abc import Callable, Sequence

import numpy
from numpy import ndarray

from data import DataError


def share(part: ndarray, whole: ndarray) -> ndarray:
    """part / whole, 0 where whole is 0."""
    return numpy.divide(part, whole, out=numpy.zeros(numpy.shape(whole)), where=numpy.not_equal(whole, 0))


def precision_recall_f1(counts: ndarray) -> dict[str, ndarray]:
    """counts: (…, 3), how many are right, predicted, gold -> precision, recall, f1, each (…)"""
    right, predicted, gold = numpy.moveaxis(counts, -1, 0)
    return {
        "precision": share(right, predicted),
        "recall": share(right, gold),
        "f1": share(2 * right, predicted + gold),
    }


def bootstrap(counts: ndarray, figures: Callable[[ndarray], dict], seed: int = 0, repetitions: int = 1000) -> dict:
    """Each figure as {"value", "low", "high"}: of all items, and its 95 % percentile interval over resampled items.

    counts: (N, …), of each item. figures: counts summed over items, (…) or (repetitions, …), to a dict of named
    figures, shapes () or (repetitions,), which may hold such dicts itself. The same seed and N draw the same items,
    whatever is counted. Raises DataError without items.
    """
    if not len(counts):
        raise DataError("There is nothing to measure: not one item.")
    number, *shape = counts.shape
    flat = counts.reshape(number, math.prod(shape)).astype(float)
    random = numpy.random.default_rng(seed)
    sums = numpy.empty((repetitions, flat.shape[1]))
    for row in sums:
        row[:] = numpy.bincount(random.integers(number, size=number), minlength=number).astype(float) @ flat
    return with_intervals(figures(counts.sum(axis=0)), figures(sums.reshape(repetitions, *shape)))


def with_intervals(values: dict, resampled: dict) -> dict:
    report = {}
    for name, value in values.items():
        if isinstance(value, dict):
            report[name] = with_intervals(value, resampled[name])
        else:
            low, high = numpy.percentile(resampled[name], (2.5, 97.5))
            report[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return report


def by_name(counts: ndarray, names: Sequence[str]) -> dict:
    """counts: (…, names, 3) -> {name: {"precision", "recall", "f1"}}, each (…)"""
    return {name: precision_recall_f1(counts[..., place, :]) for place, name in enumerate(names)}


def add_support(report: dict, counts: ndarray) -> None:
    """counts: (N, names, 3), in the report's order. How often each name is gold; a count has no interval."""
    for figures, support in zip(report.values(), counts[..., 2].sum(axis=0)):
        figures["support"] = int(support)


def check_alike(gold: Sequence, predicted: Sequence, what: str) -> None:
    if len(gold) != len(predicted):
        raise DataError(f"Gold and predicted differ in number: {len(gold)} and {len(predicted)} {what}.")
