"""One label a text or pair.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from data import DataError
from data.features import pair_ids, text_windows
from data.tasks import Example, PairExample, TextExample
from losses import IGNORE_INDEX
from model import SequenceClassifier

from .batching import Feature, Report, TaskSettings, by_example
from .bootstrap import add_support, bootstrap, by_name, check_alike, precision_recall_f1, share


class Label(NamedTuple):
    """The likeliest label and the probabilities of all, (C,)."""

    label: str
    scores: Tensor


class SequenceTask:
    """One label a text or pair: sentiment and, by equation (14), inference.

    Equation (14), section 4: P(label | premise, hypothesis) = softmax of the classifier on
    `<s> premise </s></s> hypothesis </s>`.
    """

    model, headline = SequenceClassifier, "accuracy"

    def __init__(self, settings: TaskSettings, labels: Sequence[str]):
        self.settings, self.labels = settings, tuple(labels)

    def encode(self, examples: Sequence[TextExample | PairExample], report: Report) -> list[Feature]:
        tokenizer, most = self.settings.tokenizer, self.settings.most
        items, cuts = [], 0
        for number, example in enumerate(examples):
            target = self.labels.index(example.label) if example.label in self.labels else None
            if isinstance(example, PairExample):
                ids, cut = pair_ids(tokenizer, example.premise, example.hypothesis, most)
                windows = [ids]
            else:
                windows = text_windows(tokenizer, example.text, most)
                cut = len(windows) > 1 and not self.settings.windows
                windows = windows[:1] if cut else windows
            cuts += cut
            items += [Feature(ids, number, target) for ids in windows]
        if cuts:
            report(f"{cuts:,} of {len(examples):,} texts are longer than {most} tokens and were cut.")
        return items

    def logits_and_targets(self, outputs: Sequence[Tensor], items: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        targets = [IGNORE_INDEX if item.target is None else item.target for item in items]
        return [(torch.stack(tuple(outputs)), torch.tensor(targets))]

    def decode(self, outputs: Sequence[Tensor], items: Sequence[Feature], examples: Sequence[Example]) -> list[Label]:
        predictions = []
        for _, windows in by_example(outputs, items):
            scores = torch.stack([output.softmax(dim=-1) for output, _ in windows]).mean(dim=0)  # (C,)
            predictions.append(Label(self.labels[scores.argmax()], scores))
        return predictions

    def report(self, predictions: Sequence[Label], examples: Sequence[Example], seed: int) -> dict:
        scores = torch.stack([prediction.scores for prediction in predictions]).numpy()
        guesses = [prediction.label for prediction in predictions]
        return classification_report([example.label for example in examples], guesses, scores, self.labels, seed)


# ---- metrics --------------------------------------------------------------------------------------------------------


def confusions(gold: Sequence[int], predicted: Sequence[int], num_labels: int) -> ndarray:
    """-> (N, C, C), of each item a 1 in the row of its gold label and the column of the predicted one"""
    cells = num_labels * numpy.asarray(gold, dtype=int) + numpy.asarray(predicted, dtype=int)
    return numpy.eye(num_labels**2, dtype=int)[cells].reshape(-1, num_labels, num_labels)


def accuracy(matrix: ndarray) -> ndarray:
    """matrix: (…, C, C), rows gold -> (…), the share on the diagonal"""
    return share(numpy.trace(matrix, axis1=-2, axis2=-1), matrix.sum(axis=(-2, -1)))


def label_counts(matrix: ndarray) -> ndarray:
    """matrix: (…, C, C) -> (…, C, 3), of each label how many are right, predicted, gold"""
    return numpy.stack([matrix.diagonal(axis1=-2, axis2=-1), matrix.sum(axis=-2), matrix.sum(axis=-1)], axis=-1)


def macro_f1(matrix: ndarray) -> ndarray:
    """The mean of F1 over the labels that occur in gold or predicted (as scikit-learn does unless told the labels).

    A label that neither a resample's gold nor its predictions have does not count in that resample.
    """
    counts = label_counts(matrix)
    occurs = (counts[..., 1:] > 0).any(axis=-1)
    return share((precision_recall_f1(counts)["f1"] * occurs).sum(axis=-1), occurs.sum(axis=-1))


def weighted_f1(matrix: ndarray, leave_out: int | None = None) -> ndarray:
    """The mean of F1 over the labels, each weighted by how often it is gold.

    leave_out: a label without weight. Its row and column still count in the F1 of the others.
    """
    counts = label_counts(matrix)
    support = counts[..., 2].copy()
    if leave_out is not None:
        support[..., leave_out] = 0
    return share((precision_recall_f1(counts)["f1"] * support).sum(axis=-1), support.sum(axis=-1))


def matthews(matrix: ndarray) -> ndarray:
    """Matthews' correlation of gold and predicted labels, for any number of them; 0 where one of the two is constant.

    With s items, c of them right, t_k gold and p_k predicted of label k:
    (c s - sum t_k p_k) / sqrt((s² - sum p_k²) (s² - sum t_k²))
    """
    right, predicted, gold = numpy.moveaxis(label_counts(matrix), -1, 0).astype(float)  # each (…, C)
    total = gold.sum(axis=-1)
    covariance = right.sum(axis=-1) * total - (gold * predicted).sum(axis=-1)
    spread = (total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (gold**2).sum(axis=-1))
    return share(covariance, numpy.sqrt(spread))


def in_top_k(gold: Sequence[int], scores: ndarray, k: int = 2) -> ndarray:
    """-> (N,) bool, whether the gold label is among the k best of scores (N, C)

    Of equal scores, those of the labels named first are the better ones.
    """
    best = numpy.argsort(-numpy.asarray(scores, dtype=float), axis=-1, kind="stable")[:, :k]
    return (best == numpy.asarray(gold)[:, None]).any(axis=-1)


def classification_report(
    gold: Sequence[str], predicted: Sequence[str], scores: ndarray, labels: Sequence[str], seed: int = 0
) -> dict:
    """accuracy, macro_f1, weighted_f1, mcc; top_2_accuracy of three labels or more; by_label; count

    scores: (N, C), the higher the likelier, columns as labels. by_label has precision, recall, f1 and support (how
    often a label is gold). All but count and support with an interval, as bootstrap gives it.
    Raises DataError if lengths differ, nothing is there to measure, a label is unknown or a score is not a number.
    """
    check_alike(gold, predicted, "labels")
    if not len(gold):
        raise DataError("There is nothing to measure: not one text.")
    scores = numpy.asarray(scores, dtype=float)
    if scores.shape != (len(gold), len(labels)):
        raise DataError(
            f"Scores must be {len(gold)} rows (texts) of {len(labels)} (labels); their shape is {scores.shape}."
        )
    if numpy.isnan(scores).any():
        raise DataError(f"The scores of text {numpy.isnan(scores).any(axis=-1).argmax() + 1} are not all numbers.")
    index = {label: place for place, label in enumerate(labels)}
    unknown = sorted({*gold, *predicted} - index.keys())
    if unknown:
        raise DataError(f"The label {unknown[0]!r} is none of the model's: {', '.join(labels)}.")
    gold = [index[label] for label in gold]
    matrices = confusions(gold, [index[label] for label in predicted], len(labels))

    def figures(matrix):
        return {
            "accuracy": accuracy(matrix),
            "macro_f1": macro_f1(matrix),
            "weighted_f1": weighted_f1(matrix),
            "mcc": matthews(matrix),
            "by_label": by_name(label_counts(matrix), labels),
        }

    report = bootstrap(matrices, figures, seed)
    add_support(report["by_label"], label_counts(matrices))
    if len(labels) > 2:
        report |= bootstrap(in_top_k(gold, scores), lambda hits: {"top_2_accuracy": hits / len(gold)}, seed)
    return report | {"count": len(gold)}
