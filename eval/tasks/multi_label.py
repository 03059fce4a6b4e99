"""Sequence classification with any number of labels per text: Hugging Face's multi_label_classification.

Shapes: N examples, C labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from data.cli import DataError
from data.tasks import Example

from .batching import Feature, Outputs, group_by_example
from .bootstrap import add_support, bootstrap, check_same_length, precision_recall_f1, scores_by_class
from .sequences import SequenceTask, mean_f1


class LabelsPrediction(NamedTuple):
    """The labels whose probability is above 0.5, and the probabilities of all labels, (C,)."""

    labels: tuple[str, ...]
    scores: Tensor


class MultiLabelTask(SequenceTask):
    """Each label is a decision of its own: the sigmoid of its logit."""

    problem_type, headline = "multi_label_classification", "micro_f1"

    def target_of(self, example: Example) -> list[int] | None:
        """Of each of the model's labels, whether the example has it; None for an example without labels to learn."""
        return [int(label in example.label) for label in self.labels] if isinstance(example.label, tuple) else None

    def logits_and_targets(self, outputs: Outputs, features: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        """-> one pair: logits (features · C, 2) and targets (features · C,)

        Every label is a classification in two classes with the logits 0 and z, whose softmax is 1 − σ(z) and σ(z). So
        cross-entropy is binary cross-entropy, and a teacher's soft labels are its sigmoids.
        """
        logits = torch.stack(tuple(outputs)).flatten()
        targets = torch.tensor([feature.target for feature in features]).flatten()
        return [(F.pad(logits[:, None], (1, 0)), targets)]

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], examples: Sequence[Example]
    ) -> list[LabelsPrediction]:
        """The probabilities of a text in several windows are the mean over its windows."""
        predictions = []
        for _, windows in group_by_example(outputs, features):
            scores = torch.stack([output.sigmoid() for output, _ in windows]).mean(dim=0)  # (C,)
            found = tuple(label for label, score in zip(self.labels, scores.tolist()) if score > 0.5)
            predictions.append(LabelsPrediction(found, scores))
        return predictions

    def metrics(self, predictions: Sequence[LabelsPrediction], examples: Sequence[Example], seed: int) -> dict:
        predicted = [prediction.labels for prediction in predictions]
        return multi_label_report([example.label for example in examples], predicted, self.labels, seed)


def multi_label_report(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str], seed: int = 0
) -> dict:
    """micro_f1, macro_f1, exact_match; by_label; count

    micro_f1: of all labels counted together. macro_f1: the mean over the labels that occur in gold or predicted.
    exact_match: the fraction of texts whose set of labels is exactly right (subset accuracy). by_label as in
    classification_report.  Raises DataError if lengths differ, there are no examples, or a label is unknown.
    """
    check_same_length(gold, predicted, "sets of labels")
    if not len(gold):
        raise DataError("There is nothing to measure: no texts.")
    if unknown := sorted({label for each in (*gold, *predicted) for label in each} - set(labels)):
        raise DataError(f"The label {unknown[0]!r} is not one of the model's: {', '.join(labels)}.")
    has, given = (numpy.array([[label in each for label in labels] for each in side]) for side in (gold, predicted))
    counts = numpy.stack([has & given, given, has], axis=-1).astype(int)  # (N, C, 3): correct, predicted, gold

    def metrics(sums):
        return {
            "micro_f1": precision_recall_f1(sums.sum(axis=-2))["f1"],
            "macro_f1": mean_f1(sums),
            "by_label": scores_by_class(sums, labels),
        }

    report = bootstrap(counts, metrics, seed)
    by_label = report.pop("by_label")
    add_support(by_label, counts)
    exact = (has == given).all(axis=-1)
    report |= bootstrap(exact, lambda sums: {"exact_match": sums / len(gold)}, seed)
    return report | {"by_label": by_label, "count": len(gold)}
