"""Section 4: what predictions are worth, for texts with one label and for named entities.

Figures are shares, from 0 to 1; only Matthews' correlation starts at -1.
Every figure comes from counts that were summed over items (texts, sentences), so that a bootstrap over items needs
only other sums. N items, C labels, T entity types; "…" in a shape is any leading axes: none for one sum, one for many
resamples at once. Where a figure has nothing to divide by, it is 0, as with scikit-learn's zero_division=0.
"""

import math
from collections.abc import Callable, Sequence

import numpy
from numpy import ndarray

from data import DataError

OUTSIDE = "O"
Span = tuple[str, int, int]  # type, first word, one past the last


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


# ---- one label a text: figures of a confusion matrix -------------------------------------------------------------


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


# ---- named entities: spans, and the counts of each sentence ------------------------------------------------------


def entity_type(tag: str) -> str | None:
    """The type in a tag, none for O. Raises DataError for a tag that is not O, B-TYPE or I-TYPE."""
    if tag == OUTSIDE:
        return None
    if tag[:2] not in ("B-", "I-") or len(tag) == 2:
        raise DataError(f"A word's tag is O, B-TYPE or I-TYPE, not {tag!r}.")
    return tag[2:]


def entities(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence as conlleval reads them: an I- after O or after another type starts one, too."""
    spans, start, current = [], 0, None
    for place, tag in enumerate([*tags, OUTSIDE]):
        kind = entity_type(tag)
        if kind != current or tag[0] == "B":
            if current is not None:
                spans.append((current, start, place))
            start, current = place, kind
    return spans


def entity_words(tags: Sequence[str]) -> list[Span]:
    """Every word of an entity as a span of its own, with the entity's type; B- and I- are not told apart.

    The paper's reference 13 scores NER by the overlap of tokens; the paper's text was not at hand, this is our
    reading of it. So a word is right if gold and predicted give it the same type, precision is over the words
    predicted as part of an entity, recall over those that are.
    """
    kinds = map(entity_type, tags)
    return [(kind, place, place + 1) for place, kind in enumerate(kinds) if kind is not None]


def span_counts(gold: Sequence[list[Span]], predicted: Sequence[list[Span]], types: Sequence[str]) -> ndarray:
    """The spans of each sentence -> (N, T, 3), of each type how many are right, predicted, gold

    A span is right if type, beginning and end are.
    """
    row = {name: place for place, name in enumerate(types)}
    counts = numpy.zeros((len(gold), len(types), 3), dtype=int)
    for of_sentence, truth, guess in zip(counts, gold, predicted):
        for column, spans in enumerate((set(truth) & set(guess), guess, truth)):
            for kind, _, _ in spans:
                of_sentence[row[kind], column] += 1
    return counts


# ---- intervals ---------------------------------------------------------------------------------------------------


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


# ---- the figures of a task, as they go into a result file ----------------------------------------------------------


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


def check_sentences(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], what: str) -> None:
    check_alike(gold, predicted, "sentences")
    for number, (truth, guess) in enumerate(zip(gold, predicted), start=1):
        check_alike(truth, guess, f"{what} in sentence {number}")
    if not any(map(len, gold)):
        raise DataError(f"There is nothing to measure: not one sentence has {what}.")


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


def span_report(gold: Sequence[list[Span]], predicted: Sequence[list[Span]], prefix: str, seed: int) -> dict:
    """The spans of each sentence -> precision, recall, f1, micro over all types, and by_type, their names prefixed"""
    types = sorted({kind for spans in (*gold, *predicted) for kind, _, _ in spans})
    counts = span_counts(gold, predicted, types)

    def figures(sums):
        micro = precision_recall_f1(sums.sum(axis=-2))
        return {f"{prefix}_{name}": figure for name, figure in micro.items()} | {
            f"{prefix}_by_type": by_name(sums, types)
        }

    report = bootstrap(counts, figures, seed)
    add_support(report[f"{prefix}_by_type"], counts)
    return report


def subword_report(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], seed: int) -> dict:
    """The types of each sentence's sub-words -> subword_f1, subword_f1_without_o, subword_by_type

    The measure of the released model's card: F1 of each type over sub-words, weighted by how many sub-words are of
    it, with O among the types, or with O left out of the mean.
    """
    types = [OUTSIDE, *sorted({kind for kinds in (*gold, *predicted) for kind in kinds} - {OUTSIDE})]
    index = {kind: place for place, kind in enumerate(types)}
    matrices = numpy.zeros((len(gold), len(types), len(types)), dtype=int)
    for matrix, truth, guess in zip(matrices, gold, predicted):
        for true_kind, guessed_kind in zip(truth, guess):
            matrix[index[true_kind], index[guessed_kind]] += 1

    def figures(matrix):
        return {
            "subword_f1": weighted_f1(matrix),
            "subword_f1_without_o": weighted_f1(matrix, leave_out=0),
            "subword_by_type": by_name(label_counts(matrix), types),
        }

    report = bootstrap(matrices, figures, seed)
    add_support(report["subword_by_type"], label_counts(matrices))
    return report


def ner_report(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    subword_gold: Sequence[Sequence[str]],
    subword_predicted: Sequence[Sequence[str]],
    seed: int = 0,
) -> dict:
    """entity_ and overlap_ precision, recall, f1, by_type; subword_f1, subword_f1_without_o, subword_by_type; count

    gold, predicted: of each sentence the tags of its words (O, B-TYPE, I-TYPE); subword_…: of the same sentences the
    types of their sub-words (O, TYPE). entity_: whole entities; overlap_: see entity_words; both micro over all types,
    and 0 if neither gold nor predicted has an entity. subword_: see subword_report. Each by_type has precision,
    recall, f1 and support (how many are gold). count: sentences, which are what the intervals resample.
    Raises DataError if lengths differ, nothing is there to measure, or a tag is none.
    """
    check_sentences(gold, predicted, "words")
    check_sentences(subword_gold, subword_predicted, "sub-words")
    if len(subword_gold) != len(gold):
        raise DataError(f"There are {len(gold)} sentences of words, but {len(subword_gold)} of sub-words.")
    report = subword_report(subword_gold, subword_predicted, seed)
    for prefix, spans in (("entity", entities), ("overlap", entity_words)):
        report |= span_report([spans(tags) for tags in gold], [spans(tags) for tags in predicted], prefix, seed)
    return report | {"count": len(gold)}
