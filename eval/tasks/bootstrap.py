"""Ratios of counts, and 95 % confidence intervals by bootstrap over the examples.

Shapes: N examples, R resamples, K classes; … any leading dimensions, of which none or (R,) occur.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy
from numpy import ndarray

from data.cli import DataError

PERCENTILES = (2.5, 97.5)


class Metric(dict):
    """{"value", "low", "high"}, and beside it, not in JSON files, the value of every resample, (R,), None if N is 1."""

    resampled: ndarray | None = None


def ratio(part: ndarray, whole: ndarray) -> ndarray:
    """part / whole, 0 where whole is 0."""
    return numpy.divide(part, whole, out=numpy.zeros(numpy.shape(whole)), where=numpy.not_equal(whole, 0))


def precision_recall_f1(counts: ndarray) -> dict[str, ndarray]:
    """counts: (…, 3), the numbers of correct, predicted and gold -> precision, recall and f1, each (…)"""
    correct, predicted, gold = numpy.moveaxis(counts, -1, 0)
    precision, recall, f1 = ratio(correct, predicted), ratio(correct, gold), ratio(2 * correct, predicted + gold)
    return {"precision": precision, "recall": recall, "f1": f1}


def bootstrap(counts: ndarray, metrics: Callable[[ndarray], dict], seed: int = 0, resamples: int = 1000) -> dict:
    """Each metric as {"value", "low", "high"}: over all examples, and its 95 % percentile interval over resamples.

    counts: (N, …), per example. metrics: from counts summed over examples, (…) or (R, …), to a dict of named metrics,
    () or (R,), which may be nested. The same seed and N resample the same examples, whatever the counts are.
    If N is 1, all resamples are alike: there is no interval, low and high are None. Raises DataError if N is 0.
    """
    if not len(counts):
        raise DataError("There is nothing to measure: no examples.")
    number, *shape = counts.shape
    if number == 1:
        return add_intervals(metrics(counts[0]), None)
    flat = counts.reshape(number, math.prod(shape)).astype(float)
    sums = numpy.stack([drawn @ flat for drawn in draws(number, seed, resamples)])
    return add_intervals(metrics(counts.sum(axis=0)), metrics(sums.reshape(resamples, *shape)))


def draws(number: int, seed: int, resamples: int = 1000) -> Iterator[ndarray]:
    """For each resample, how often each of the examples was drawn, (N,)."""
    random = numpy.random.default_rng(seed)
    for _ in range(resamples):
        yield numpy.bincount(random.integers(number, size=number), minlength=number).astype(float)


def add_intervals(values: dict, resampled: dict | None) -> dict:
    """values: (), resampled: (R,) or None, both nested alike -> the same dict of Metric"""
    report = {}
    for name, value in values.items():
        if isinstance(value, dict):
            report[name] = add_intervals(value, resampled and resampled[name])
        else:
            report[name] = with_interval(float(value), resampled and resampled[name])
    return report


def with_interval(value: float, resampled: ndarray | None) -> Metric:
    low, high = (None, None) if resampled is None else numpy.percentile(resampled, PERCENTILES).tolist()
    metric = Metric(value=value, low=low, high=high)
    metric.resampled = resampled
    return metric


def difference(metric: Metric, first: Metric) -> Metric:
    """metric − first, with its paired interval: both must be of the same examples, resampled with the same seed."""
    paired = None if None in (metric["low"], first["low"]) else metric.resampled - first.resampled
    return with_interval(metric["value"] - first["value"], paired)


def scores_by_class(counts: ndarray, names: Sequence[str]) -> dict:
    """counts: (…, K, 3) -> {name: {"precision", "recall", "f1"}}, each (…)"""
    return {name: precision_recall_f1(counts[..., index, :]) for index, name in enumerate(names)}


def add_support(report: dict, counts: ndarray) -> None:
    """Adds each class's number of gold instances, which has no interval.  counts: (N, K, 3), in the report's order"""
    for scores, support in zip(report.values(), counts[..., 2].sum(axis=0)):
        scores["support"] = int(support)


def check_same_length(gold: Sequence, predicted: Sequence, what: str) -> None:
    """Raises DataError."""
    if len(gold) != len(predicted):
        raise DataError(f"Gold and predicted differ in number: {len(gold)} and {len(predicted)} {what}.")
