"""Sequence models whose output is a value, such as the similarity of two sentences (STS-B): Hugging Face's regression.

Shapes: N examples, C outputs, of which nearly every model has one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from data.cli import DataError, check
from data.tasks import Example

from .batching import Feature, Outputs, group_by_example
from .bootstrap import add_intervals, check_same_length, draws
from .sequences import SequenceTask


class ValuePrediction(NamedTuple):
    """The model's outputs as they are, (C,)."""

    values: Tensor


class RegressionTask(SequenceTask):
    """The output of the model is a value, not a logit."""

    problem_type, headline = "regression", "pearson"

    def target_of(self, example: Example) -> float | None:
        """Its value, None for an example without one."""
        return example.label if isinstance(example.label, float) else None

    def logits_and_targets(self, outputs: Outputs, features: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        """-> one pair: the model's values (features,) and the targets (features,), floating-point"""
        return [(torch.cat(tuple(outputs)), torch.tensor([feature.target for feature in features]))]

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], examples: Sequence[Example]
    ) -> list[ValuePrediction]:
        """The value of a text in several windows is the mean over its windows."""
        groups = group_by_example(outputs, features)
        return [ValuePrediction(torch.stack([output for output, _ in windows]).mean(dim=0)) for _, windows in groups]

    def metrics(self, predictions: Sequence[ValuePrediction], examples: Sequence[Example], seed: int) -> dict:
        """Raises OptionError for a model of several values."""
        check(len(self.labels) == 1, f"The model has {len(self.labels)} outputs of a regression; one can be measured.")
        predicted = [prediction.values.item() for prediction in predictions]
        return regression_report([example.label for example in examples], predicted, seed)


def regression_report(gold: Sequence[float], predicted: Sequence[float], seed: int = 0) -> dict:
    """pearson, spearman (GLUE's measures of STS-B), mse, mae, each with an interval, see bootstrap; count

    A correlation is 0 if gold or predicted is constant. A single example has no interval.
    Raises DataError if lengths differ, there are no examples, or a value is not finite.
    """
    check_same_length(gold, predicted, "values")
    if not len(gold):
        raise DataError("There is nothing to measure: no texts.")
    pair = [numpy.asarray(values, dtype=float) for values in (gold, predicted)]
    if not all(numpy.isfinite(values).all() for values in pair):
        raise DataError("A value is not finite: the model's weights, or the labels, are damaged.")
    errors = pair[1] - pair[0]
    groups = [numpy.unique(values, return_inverse=True)[1] for values in pair]  # equal values have equal ranks

    def metrics(drawn: ndarray) -> dict[str, float]:
        """drawn: (N,), how often each example counts. A resample has ranks of its own."""
        return {
            "pearson": correlation(*pair, drawn),
            "spearman": correlation(*(mean_ranks(group, drawn) for group in groups), drawn),
            "mse": drawn @ errors**2 / drawn.sum(),
            "mae": drawn @ abs(errors) / drawn.sum(),
        }

    values = metrics(numpy.ones(len(errors)))
    if len(errors) == 1:
        return add_intervals(values, None) | {"count": 1}
    resampled = [metrics(drawn) for drawn in draws(len(errors), seed)]
    by_name = {name: numpy.array([each[name] for each in resampled]) for name in values}
    return add_intervals(values, by_name) | {"count": len(errors)}


def correlation(x: ndarray, y: ndarray, drawn: ndarray) -> float:
    """Pearson's, of examples that count as often as drawn says; 0 if either is constant.  each (N,)"""
    if any(numpy.ptp(values[drawn > 0]) == 0 for values in (x, y)):
        return 0.0
    x, y = (values - drawn @ values / drawn.sum() for values in (x, y))
    x, y = (values / abs(values[drawn > 0]).max() for values in (x, y))  # squares neither overflow nor vanish
    return float(drawn @ (x * y) / numpy.sqrt((drawn @ x**2) * (drawn @ y**2)))


def mean_ranks(groups: ndarray, drawn: ndarray) -> ndarray:
    """The rank of each example among those drawn; equal values share the mean of their ranks.  (N,)

    groups: (N,), each example's number in the order of values, the same for equal ones.
    """
    counts = numpy.bincount(groups, weights=drawn)
    return (counts.cumsum() - (counts - 1) / 2)[groups]
