"""Sequence classification: sentiment (section 4.1) and natural language inference (section 4.3).

Shapes: N examples, C labels; … any leading dimensions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from data.cli import DataError
from data.features import pair_ids, text_windows
from data.tasks import Example, PairExample, TextExample
from losses import IGNORE_INDEX
from model import SequenceClassifier

from .batching import Feature, Outputs, Report, TaskSettings, group_by_example
from .bootstrap import add_support, bootstrap, check_same_length, precision_recall_f1, ratio, scores_by_class


class LabelPrediction(NamedTuple):
    """The most likely label, and the probabilities of all labels, (C,)."""

    label: str
    scores: Tensor


class SequenceTask:
    """Equation (14), section 4.3.  P(pre = c ∈ {contradiction, implication, neutre} | hyp)

    The softmax of the classifier's logits on `<s> premise </s></s> hypothesis </s>`, over the model's own labels (the
    released model calls implication "entailment"). Sentiment, section 4.1, is the same on `<s> text </s>`.
    """

    model, problem_type, headline = SequenceClassifier, "single_label_classification", "accuracy"

    def __init__(self, settings: TaskSettings, labels: Sequence[str]):
        self.settings, self.labels = settings, tuple(labels)

    def encode(self, examples: Sequence[TextExample | PairExample], report: Report) -> list[Feature]:
        """A feature per text, with its target.

        A text longer than the maximum length is truncated, or gives several windows with settings.windows; a pair is
        truncated. report: called with a sentence if any was truncated.
        """
        tokenizer, max_length = self.settings.tokenizer, self.settings.max_length
        features, num_truncated = [], 0
        for index, example in enumerate(examples):
            target = self.target_of(example)
            if isinstance(example, PairExample):
                ids, truncated = pair_ids(tokenizer, example.premise, example.hypothesis, max_length)
                windows = [ids]
            else:
                windows = text_windows(tokenizer, example.text, max_length)
                truncated = len(windows) > 1 and not self.settings.windows
                windows = windows[:1] if truncated else windows
            num_truncated += truncated
            features += [Feature(ids, index, target) for ids in windows]
        if num_truncated:
            report(f"{num_truncated:,} of {len(examples):,} texts are longer than {max_length} tokens: truncated.")
        return features

    def target_of(self, example: Example) -> int | None:
        """The index of its label, None if the model has no such label."""
        return self.labels.index(example.label) if example.label in self.labels else None

    def logits_and_targets(self, outputs: Outputs, features: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        """-> one pair: logits (features, C) and targets (features,)"""
        targets = [IGNORE_INDEX if feature.target is None else feature.target for feature in features]
        return [(torch.stack(tuple(outputs)), torch.tensor(targets))]

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], examples: Sequence[Example]
    ) -> list[LabelPrediction]:
        """The probabilities of a text in several windows are the mean over its windows."""
        predictions = []
        for _, windows in group_by_example(outputs, features):
            scores = torch.stack([output.softmax(dim=-1) for output, _ in windows]).mean(dim=0)  # (C,)
            predictions.append(LabelPrediction(self.labels[scores.argmax()], scores))
        return predictions

    def metrics(self, predictions: Sequence[LabelPrediction], examples: Sequence[Example], seed: int) -> dict:
        scores = torch.stack([prediction.scores for prediction in predictions]).numpy()
        predicted = [prediction.label for prediction in predictions]
        return classification_report([example.label for example in examples], predicted, scores, self.labels, seed)


# ---- metrics ---------------------------------------------------------------------------------------------------


def confusion_matrices(gold: Sequence[int], predicted: Sequence[int], num_labels: int) -> ndarray:
    """-> (N, C, C): for each example a single 1, in the row of its gold label and the column of the predicted one"""
    cells = num_labels * numpy.asarray(gold, dtype=int) + numpy.asarray(predicted, dtype=int)
    return numpy.eye(num_labels**2, dtype=int)[cells].reshape(-1, num_labels, num_labels)


def accuracy(matrix: ndarray) -> ndarray:
    """matrix: (…, C, C), rows gold -> (…), the fraction on the diagonal"""
    return ratio(numpy.trace(matrix, axis1=-2, axis2=-1), matrix.sum(axis=(-2, -1)))


def label_counts(matrix: ndarray) -> ndarray:
    """matrix: (…, C, C), rows gold -> (…, C, 3): for each label the numbers of correct, predicted and gold"""
    return numpy.stack([matrix.diagonal(axis1=-2, axis2=-1), matrix.sum(axis=-2), matrix.sum(axis=-1)], axis=-1)


def macro_f1(matrix: ndarray) -> ndarray:
    """The unweighted mean of F1 over the labels that occur in gold or predicted (scikit-learn's default).

    A label that occurs in neither within a resample is left out of that resample's mean.
    """
    return mean_f1(label_counts(matrix))


def mean_f1(counts: ndarray) -> ndarray:
    """macro_f1 from the numbers of correct, predicted and gold per label.  (…, C, 3) -> (…)"""
    occurs = (counts[..., 1:] > 0).any(axis=-1)
    return ratio((precision_recall_f1(counts)["f1"] * occurs).sum(axis=-1), occurs.sum(axis=-1))


def weighted_f1(matrix: ndarray, leave_out: int | None = None) -> ndarray:
    """The mean of F1 over the labels, weighted by their number of gold instances.

    leave_out: index of a label with weight 0. Its row and column still count in the F1 of the others.
    """
    counts = label_counts(matrix)
    support = counts[..., 2].copy()
    if leave_out is not None:
        support[..., leave_out] = 0
    return ratio((precision_recall_f1(counts)["f1"] * support).sum(axis=-1), support.sum(axis=-1))


def matthews_correlation(matrix: ndarray) -> ndarray:
    """Matthews' correlation coefficient for any number of labels; 0 if gold or predicted is constant.

    With s examples, c of them correct, t_k gold and p_k predicted of label k:
    (c s − Σ_k t_k p_k) / sqrt((s² − Σ_k p_k²) (s² − Σ_k t_k²))
    """
    correct, predicted, gold = numpy.moveaxis(label_counts(matrix), -1, 0).astype(float)  # each (…, C)
    total = gold.sum(axis=-1)
    covariance = correct.sum(axis=-1) * total - (gold * predicted).sum(axis=-1)
    variances = (total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (gold**2).sum(axis=-1))
    return ratio(covariance, numpy.sqrt(variances))


def in_top_k(gold: Sequence[int], scores: ndarray, k: int = 2) -> ndarray:
    """scores: (N, C) -> (N,) bool, whether the gold label is among the k highest; of equal scores the first wins."""
    best = numpy.argsort(-numpy.asarray(scores, dtype=float), axis=-1, kind="stable")[:, :k]
    return (best == numpy.asarray(gold)[:, None]).any(axis=-1)


def classification_report(
    gold: Sequence[str], predicted: Sequence[str], scores: ndarray, labels: Sequence[str], seed: int = 0
) -> dict:
    """accuracy, macro_f1, weighted_f1, mcc; top_2_accuracy if C > 2; by_label; count

    scores: (N, C), columns in the order of labels, higher is more likely. by_label: precision, recall, f1 and support
    (number of gold instances). All but count and support have an interval, see bootstrap.
    Raises DataError if lengths differ, there are no examples, a label is unknown or a score is NaN.
    """
    check_same_length(gold, predicted, "labels")
    if not len(gold):
        raise DataError("There is nothing to measure: no texts.")
    scores = numpy.asarray(scores, dtype=float)
    if scores.shape != (len(gold), len(labels)):
        raise DataError(f"Scores must have shape ({len(gold)} texts, {len(labels)} labels), not {scores.shape}.")
    if (invalid := numpy.isnan(scores).any(axis=-1)).any():
        raise DataError(f"The scores of text {invalid.argmax() + 1} contain NaN.")
    index = {label: i for i, label in enumerate(labels)}
    if unknown := sorted({*gold, *predicted} - index.keys()):
        raise DataError(f"The label {unknown[0]!r} is not one of the model's: {', '.join(labels)}.")
    gold = [index[label] for label in gold]
    matrices = confusion_matrices(gold, [index[label] for label in predicted], len(labels))

    def metrics(matrix):
        return {
            "accuracy": accuracy(matrix),
            "macro_f1": macro_f1(matrix),
            "weighted_f1": weighted_f1(matrix),
            "mcc": matthews_correlation(matrix),
            "by_label": scores_by_class(label_counts(matrix), labels),
        }

    report = bootstrap(matrices, metrics, seed)
    add_support(report["by_label"], label_counts(matrices))
    if len(labels) > 2:
        report |= bootstrap(in_top_k(gold, scores), lambda hits: {"top_2_accuracy": hits / len(gold)}, seed)
    return report | {"count": len(gold)}
