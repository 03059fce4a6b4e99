"""Named entity recognition, section 4.2.

Shapes: N sentences, P pieces of a sentence (sub-word tokens), C labels, K entity types; … any leading dimensions.
Labels are O, B-TYPE and I-TYPE: outside, beginning of and inside an entity.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from data.cli import DataError
from data.features import Pieces, text_pieces, word_pieces, word_windows
from data.tasks import Example, TextExample, WordsExample
from losses import IGNORE_INDEX
from model import TokenClassifier

from .batching import Feature, Outputs, Report, TaskSettings, group_by_example
from .bootstrap import add_support, bootstrap, check_same_length, precision_recall_f1, scores_by_class
from .sequences import label_counts, weighted_f1

OUTSIDE = "O"
Sentences = Sequence[Sequence[str]]  # the tags or types of each sentence, one per word or per piece
Spans = list[tuple[str, int, int]]  # of a sentence: type, index of the first word, one past the last


class TagPrediction(NamedTuple):
    """A sentence's tags, one per word, and its pieces with the probabilities of all labels, (P, C)."""

    tags: list[str]
    pieces: Pieces
    scores: Tensor


class Entity(NamedTuple):
    """text[start:end]; the score is the mean probability of the predicted labels of its pieces."""

    type: str
    score: float
    start: int
    end: int


class NerTask:
    """One tag per word, section 4.2. The model classifies every piece; a word's tag is that of its first piece."""

    model, headline = TokenClassifier, "entity_f1"

    def __init__(self, settings: TaskSettings, labels: Sequence[str]):
        self.settings, self.labels = settings, tuple(labels)

    def pieces(self, example: WordsExample | TextExample) -> Pieces:
        if isinstance(example, TextExample):
            return text_pieces(self.settings.tokenizer, example.text)
        return word_pieces(self.settings.tokenizer, example.words)

    def encode(self, examples: Sequence[WordsExample | TextExample], report: Report) -> list[Feature]:
        """The target of a feature is one class index per token: the word's tag, with I- for B- after its first piece.

        B-TYPE counts as I-TYPE if only that is one of the model's labels. The target is IGNORE_INDEX for tags that are
        not, and for `<s>` and `</s>`.
        """
        bos, eos = self.settings.tokenizer.bos_id, self.settings.tokenizer.eos_id
        indices = {label: i for i, label in enumerate(self.labels)}
        features = []
        for index, example in enumerate(examples):
            ids, word_ids, _ = pieces = self.pieces(example)
            targets = [IGNORE_INDEX] * len(ids)
            if isinstance(example, WordsExample) and example.tags:
                firsts = set(first_pieces(word_ids))
                of_words = [example.tags[word] for word in word_ids]
                tags = [tag if i in firsts else inside_tag(tag) for i, tag in enumerate(of_words)]
                targets = [indices.get(tag, indices.get(inside_tag(tag), IGNORE_INDEX)) for tag in tags]
            for start, end in word_windows(word_ids, self.settings.max_length - 2):
                target = [IGNORE_INDEX, *targets[start:end], IGNORE_INDEX]
                features.append(Feature([bos, *ids[start:end], eos], index, target, pieces=pieces))
        return features

    def logits_and_targets(self, outputs: Outputs, features: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        """-> one pair: logits (T, C) and targets (T,) of the T tokens of all features"""
        targets = [target for feature in features for target in feature.target]
        return [(torch.cat(tuple(outputs)), torch.tensor(targets))]

    def decode(self, outputs: Outputs, features: Sequence[Feature], examples: Sequence[Example]) -> list[TagPrediction]:
        predictions = []
        for _, windows in group_by_example(outputs, features):
            pieces = windows[0][1].pieces
            scores = torch.cat([output[1:-1].softmax(dim=-1) for output, _ in windows])  # (P, C)
            tags = [self.labels[i] for i in scores.argmax(dim=-1)]
            predictions.append(TagPrediction([tags[i] for i in first_pieces(pieces.word_ids)], pieces, scores))
        return predictions

    def metrics(self, predictions: Sequence[TagPrediction], examples: Sequence[WordsExample], seed: int) -> dict:
        gold = [example.tags for example in examples]
        predicted = [prediction.tags for prediction in predictions]
        gold_types = [[entity_type(tag) or OUTSIDE for tag in tags] for tags in gold]
        subword_gold = [[types[word] for word in p.pieces.word_ids] for p, types in zip(predictions, gold_types)]
        types = [entity_type(label) or OUTSIDE for label in self.labels]
        subword_predicted = [[types[i] for i in prediction.scores.argmax(dim=-1)] for prediction in predictions]
        return ner_report(gold, predicted, subword_gold, subword_predicted, seed)


def first_pieces(word_ids: Sequence[int]) -> list[int]:
    """The index of each word's first piece."""
    return [i for i, word in enumerate(word_ids) if i == 0 or word_ids[i - 1] != word]


def inside_tag(tag: str) -> str:
    """B-TYPE -> I-TYPE; others unchanged: the tag of the later pieces of a word."""
    return "I-" + tag[2:] if tag.startswith("B-") else tag


def group_entities(prediction: TagPrediction, labels: Sequence[str]) -> list[Entity]:
    """The entities of running text: consecutive pieces of the same type are one entity; B- always begins a new one."""
    scores, best = prediction.scores.max(dim=-1)
    tags = [labels[i] for i in best]
    groups, last = [], None
    for index, tag in enumerate(tags):
        kind = entity_type(tag)
        if kind and kind == last and not tag.startswith("B-"):
            groups[-1].append(index)
        elif kind:
            groups.append([index])
        last = kind
    spans = prediction.pieces.spans
    return [Entity(entity_type(tags[g[0]]), scores[g].mean().item(), spans[g[0]][0], spans[g[-1]][1]) for g in groups]


# ---- metrics ---------------------------------------------------------------------------------------------------


def entity_type(tag: str) -> str | None:
    """The type in a tag, None for O.  Raises DataError for a tag that is not O, B-TYPE or I-TYPE."""
    if tag == OUTSIDE:
        return None
    if tag[:2] not in ("B-", "I-") or len(tag) == 2:
        raise DataError(f"A tag must be O, B-TYPE or I-TYPE, not {tag!r}.")
    return tag[2:]


def entity_spans(tags: Sequence[str]) -> Spans:
    """The entities of a sentence by conlleval's rules: I- after O or after another type also begins an entity."""
    spans, start, current = [], 0, None
    for index, tag in enumerate([*tags, OUTSIDE]):
        kind = entity_type(tag)
        if kind != current or tag[0] == "B":
            if current is not None:
                spans.append((current, start, index))
            start, current = index, kind
    return spans


def word_spans(tags: Sequence[str]) -> Spans:
    """Every word inside an entity as a span of its own, with the entity's type; B- and I- are the same."""
    return [(kind, index, index + 1) for index, kind in enumerate(map(entity_type, tags)) if kind is not None]


def span_counts(gold: Sequence[Spans], predicted: Sequence[Spans], types: Sequence[str]) -> ndarray:
    """The spans of each sentence -> (N, K, 3): for each type the numbers of correct, predicted and gold spans

    A span is correct if its type, start and end are.
    """
    row = {name: index for index, name in enumerate(types)}
    counts = numpy.zeros((len(gold), len(types), 3), dtype=int)
    for of_sentence, gold_spans, predicted_spans in zip(counts, gold, predicted):
        for column, spans in enumerate((set(gold_spans) & set(predicted_spans), predicted_spans, gold_spans)):
            for kind, _, _ in spans:
                of_sentence[row[kind], column] += 1
    return counts


def span_report(gold: Sequence[Spans], predicted: Sequence[Spans], prefix: str, seed: int) -> dict:
    """The spans of each sentence -> PREFIX_precision, _recall, _f1, micro-averaged over all types; PREFIX_by_type"""
    types = sorted({kind for spans in (*gold, *predicted) for kind, _, _ in spans})
    counts = span_counts(gold, predicted, types)

    def metrics(sums):
        micro = {f"{prefix}_{name}": value for name, value in precision_recall_f1(sums.sum(axis=-2)).items()}
        return {**micro, f"{prefix}_by_type": scores_by_class(sums, types)}

    report = bootstrap(counts, metrics, seed)
    add_support(report[f"{prefix}_by_type"], counts)
    return report


def subword_report(gold: Sentences, predicted: Sentences, seed: int) -> dict:
    """The types of each sentence's pieces -> subword_f1, subword_f1_without_o, subword_by_type

    The measure on the released model's card: F1 per type over pieces, averaged with the types' numbers of gold pieces
    as weights; O is one of the types, or has weight 0.
    """
    types = [OUTSIDE, *sorted({kind for kinds in (*gold, *predicted) for kind in kinds} - {OUTSIDE})]
    index = {kind: i for i, kind in enumerate(types)}
    matrices = numpy.zeros((len(gold), len(types), len(types)), dtype=int)
    for matrix, gold_types, predicted_types in zip(matrices, gold, predicted):
        for gold_type, predicted_type in zip(gold_types, predicted_types):
            matrix[index[gold_type], index[predicted_type]] += 1

    def metrics(matrix):
        return {
            "subword_f1": weighted_f1(matrix),
            "subword_f1_without_o": weighted_f1(matrix, leave_out=0),
            "subword_by_type": scores_by_class(label_counts(matrix), types),
        }

    report = bootstrap(matrices, metrics, seed)
    add_support(report["subword_by_type"], label_counts(matrices))
    return report


def ner_report(
    gold: Sentences, predicted: Sentences, subword_gold: Sentences, subword_predicted: Sentences, seed: int = 0
) -> dict:
    """entity_ and overlap_ precision, recall, f1, by_type; subword_f1, subword_f1_without_o, subword_by_type; count

    gold, predicted: each sentence's tags, one per word; subword_…: the same sentences' types, one per piece (O, TYPE).

    - entity_: whole entities, as conlleval and seqeval count them.
    - overlap_: section 4.2's measure, the F1 of the paper's reference 13 (SQuAD), which compares the tokens classified
      as entities with those of the ground truth. A word is correct if gold and predicted give it the same type;
      precision is over the words predicted as part of an entity, recall over those that are gold. The paper does not
      say what a token is or what is averaged: here words, micro-averaged over all types and sentences.
    - subword_: the measure on the released model's card, see subword_report.

    entity_ and overlap_ are 0 if neither gold nor predicted has an entity. by_type: precision, recall, f1 and support
    (number of gold instances). count: number of sentences, which are what the bootstrap resamples.
    Raises DataError if lengths differ, there is nothing to measure, or a tag is invalid.
    """
    check_sentences(gold, predicted, "words")
    check_sentences(subword_gold, subword_predicted, "sub-words")
    if len(subword_gold) != len(gold):
        raise DataError(f"There are {len(gold)} sentences of words, but {len(subword_gold)} of sub-words.")
    report = subword_report(subword_gold, subword_predicted, seed)
    for prefix, spans in (("entity", entity_spans), ("overlap", word_spans)):
        report |= span_report([spans(tags) for tags in gold], [spans(tags) for tags in predicted], prefix, seed)
    return report | {"count": len(gold)}


def check_sentences(gold: Sentences, predicted: Sentences, what: str) -> None:
    """Raises DataError if the numbers of sentences or of a sentence's words differ, or there are no words at all."""
    check_same_length(gold, predicted, "sentences")
    for number, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted), start=1):
        check_same_length(gold_tags, predicted_tags, f"{what} in sentence {number}")
    if not any(map(len, gold)):
        raise DataError(f"There is nothing to measure: no sentence has {what}.")
