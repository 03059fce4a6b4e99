"""Named entity recognition, section 4.2.

Shapes: N sentences, P pieces of a sentence (sub-word tokens), C labels, K entity types; … any leading dimensions.
Tags are O, B-TYPE and I-TYPE: outside, beginning of and inside an entity; a model's labels may be of another scheme.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from data.cli import DataError
from data.features import (
    Pieces,
    complete_end,
    is_elision,
    join_words,
    joins_words,
    text_pieces,
    text_words,
    word_pieces,
    word_ranges,
    word_windows,
)
from data.tasks import Example, TextExample, WordsExample
from data.tasks.tags import OUTSIDE, Spans, entity_spans, entity_type, read_tags, to_iob2, types_of
from losses import IGNORE_INDEX
from model import TokenClassifier

from .batching import Feature, Outputs, Report, TaskSettings, group_by_example
from .bootstrap import add_support, bootstrap, check_same_length, precision_recall_f1, scores_by_class
from .sequences import label_counts, weighted_f1

Sentences = Sequence[Sequence[str]]  # the tags or types of each sentence, one per word or per piece
# For the prefix of a tag, those of the labels that may stand for it, the nearest first.
NEAREST = {"B": "BISE", "I": "IEBS", "E": "EIBS", "S": "SBIE"}


class TagPrediction(NamedTuple):
    """Of words: their tags, and the sentence's pieces with the probabilities of all labels, (P, C)."""

    tags: tuple[str, ...]
    pieces: Pieces
    scores: Tensor


class Entity(NamedTuple):
    """text[start:end]; the score is the mean probability of the type over the words."""

    type: str
    score: float
    start: int
    end: int


class EntityPrediction(NamedTuple):
    """Of running text: its entities in order, and its pieces with the probabilities of all labels, (P, C)."""

    entities: list[Entity]
    pieces: Pieces
    scores: Tensor


class Decision(NamedTuple):
    """What a word is: its type or O, the mean probability of that over its pieces, and whether it begins an entity."""

    type: str
    score: float
    begins: bool


class NerTask:
    """One decision per word, section 4.2. The model classifies every piece, but not `<s>` and `</s>`.

    A word's type is that of the highest mean probability over its pieces, where the probabilities of a type's labels
    (B-, I-, …) are added; its first piece decides whether it begins an entity. The words of running text are runs of
    letters and digits.

    labels: the model's, of any scheme of data.tasks.tags. Raises DataError for others.
    """

    model, headline = TokenClassifier, "entity_f1"

    def __init__(self, settings: TaskSettings, labels: Sequence[str]):
        self.settings, self.labels = settings, tuple(labels)
        names = read_tags(dict.fromkeys(self.labels, "The model"))
        self.tags = [names[label] for label in self.labels]
        self.types = [OUTSIDE, *types_of(self.tags)]
        self.type_indices = torch.tensor([self.types.index(entity_type(tag) or OUTSIDE) for tag in self.tags])
        self.beginnings = torch.tensor([tag[0] in "BS" for tag in self.tags])

    def pieces(self, example: WordsExample | TextExample) -> Pieces:
        if isinstance(example, TextExample):
            return text_pieces(self.settings.tokenizer, example.text)
        return word_pieces(self.settings.tokenizer, example.words)

    def encode(self, examples: Sequence[WordsExample | TextExample], report: Report) -> list[Feature]:
        """The target of a feature is one class index per token, IGNORE_INDEX for `<s>` and `</s>`.

        The word's tag is that of its first piece, and inside (I-) that of the others. If the model has no label for a
        tag, another of its type stands for it; the target is IGNORE_INDEX if there is none.
        """
        bos, eos = self.settings.tokenizer.bos_id, self.settings.tokenizer.eos_id
        features = []
        for index, example in enumerate(examples):
            ids, word_ids, _ = pieces = self.pieces(example)
            targets = [IGNORE_INDEX] * len(ids)
            if isinstance(example, WordsExample) and example.tags:
                targets = self.targets(example.tags, word_ids)
            for start, end in word_windows(word_ids, self.settings.max_length - 2):
                target = [IGNORE_INDEX, *targets[start:end], IGNORE_INDEX]
                asked = range(1, 1 + end - start)
                features.append(Feature([bos, *ids[start:end], eos], index, target, pieces=pieces, asked=asked))
        return features

    def targets(self, tags: Sequence[str], word_ids: Sequence[int]) -> list[int]:
        """The class index of each piece, for the tags of a sentence's words."""
        firsts = [self.class_index("O", OUTSIDE)] * len(tags)  # of the words' first pieces
        others = list(firsts)
        for kind, start, end in entity_spans(tags):
            prefixes = ["B", *"I" * (end - start - 2), "E"] if end - start > 1 else ["S"]
            firsts[start:end] = [self.class_index(prefix, kind) for prefix in prefixes]
            others[start:end] = [self.class_index("I", kind)] * (end - start)
        found = [others[word] for word in word_ids]
        for i in first_pieces(word_ids):
            found[i] = firsts[word_ids[i]]
        return found

    def class_index(self, prefix: str, kind: str) -> int:
        """Of the label with this prefix and type, or the nearest of its type; IGNORE_INDEX if there is none."""
        wanted = [OUTSIDE] if kind == OUTSIDE else [f"{nearest}-{kind}" for nearest in NEAREST[prefix]]
        return next((self.tags.index(tag) for tag in wanted if tag in self.tags), IGNORE_INDEX)

    def logits_and_targets(self, outputs: Outputs, features: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        """-> one pair: logits (T, C) and targets (T,) of the T tokens of all features"""
        targets = [target for feature in features for target in feature.target]
        return [(torch.cat(tuple(outputs)), torch.tensor(targets))]

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], examples: Sequence[Example]
    ) -> list[TagPrediction | EntityPrediction]:
        predictions = []
        for index, windows in group_by_example(outputs, features):
            pieces, example = windows[0][1].pieces, examples[index]
            scores = torch.cat([output.softmax(dim=-1) for output, _ in windows])  # (P, C)
            if isinstance(example, TextExample):
                predictions.append(EntityPrediction(self.find_entities(example.text, pieces, scores), pieces, scores))
                continue
            starts = [*first_pieces(pieces.word_ids), len(pieces.ids)]
            decisions = self.decide(scores, [range(*each) for each in pairwise(starts)])
            tags = [word.type if word.type == OUTSIDE else f"{'IB'[word.begins]}-{word.type}" for word in decisions]
            predictions.append(TagPrediction(to_iob2(tags), pieces, scores))
        return predictions

    def decide(self, scores: Tensor, words: Sequence[range]) -> list[Decision]:
        """scores: the probabilities of all labels, (P, C); words: the range of each word's pieces, in order.

        A word without a piece is O. A word that shares its first piece with the word before it begins no entity.
        """
        shape = len(scores) + 1, len(self.types)  # (P + 1, K + 1), with a last row of zeros
        of_types = torch.zeros(shape, dtype=torch.float64)
        of_types[:-1].index_add_(1, self.type_indices, scores.double())
        of_beginnings = torch.zeros(shape, dtype=torch.float64)
        of_beginnings[:-1].index_add_(1, self.type_indices, scores.double() * self.beginnings)
        firsts, afters = torch.tensor([[word.start, word.stop] for word in words], dtype=torch.int64).reshape(-1, 2).T
        sums = torch.cat([torch.zeros(1, shape[1], dtype=torch.float64), of_types.cumsum(dim=0)])
        means = (sums[afters] - sums[firsts]) / (afters - firsts).clamp(min=1)[:, None]  # (words, K + 1)
        means[firsts == afters, 0] = 1.0
        probabilities, best = means.max(dim=-1)
        begins = of_beginnings[firsts, best] > of_types[firsts, best] / 2
        begins[1:] &= firsts[1:] >= afters[:-1]
        columns = best.tolist(), probabilities.tolist(), begins.tolist()
        return [Decision(self.types[index], *others) for index, *others in zip(*columns)]

    def find_entities(self, text: str, pieces: Pieces, scores: Tensor) -> list[Entity]:
        """The entities of running text: consecutive words of one type, of which only the first begins an entity.

        Between two words of an entity there is what joins_words allows, or punctuation that the model gives the same
        type. An elided word ("d'") is not the last of an entity.
        """
        words = text_words(text)
        ranges = word_ranges(pieces.spans, words)
        gaps = [range(one.stop, max(one.stop, two.start)) for one, two in pairwise(ranges)]
        decisions, between = self.decide(scores, ranges), self.decide(scores, gaps)
        groups: list[list[int]] = []  # of the words of each entity
        for i, word in enumerate(decisions):
            joins = i and decisions[i - 1].type == word.type and not word.begins
            if joins and gaps[i - 1] and between[i - 1].type != word.type:
                joins = joins_words(text[words[i - 1][1] : words[i][0]])
            if word.type != OUTSIDE and joins:
                groups[-1].append(i)
            elif word.type != OUTSIDE:
                groups.append([i])
        entities = []
        for group in groups:
            while group and is_elision(text, *words[group[-1]]):
                group.pop()
            if group:
                start, end = words[group[0]][0], words[group[-1]][1]
                score = sum(decisions[i].score for i in group) / len(group)
                entities.append(Entity(decisions[group[0]].type, score, start, complete_end(text, start, end)))
        return entities

    def metrics(self, predictions: Sequence[TagPrediction], examples: Sequence[WordsExample], seed: int) -> dict:
        gold_types = [[entity_type(tag) or OUTSIDE for tag in example.tags] for example in examples]
        subword_gold = [[types[word] for word in p.pieces.word_ids] for p, types in zip(predictions, gold_types)]
        gold, predicted = [example.tags for example in examples], [prediction.tags for prediction in predictions]
        return ner_report(gold, predicted, subword_gold, self.subword_types(predictions), seed)

    def text_metrics(
        self, predictions: Sequence[EntityPrediction], examples: Sequence[WordsExample], seed: int
    ) -> dict:
        """The same for entities found in the running text of join_words: whole entities are compared by their offsets.

        A word belongs to the entity that overlaps it, a piece to the word in which it begins.
        """
        entities, predicted, subword_gold = ([], []), [], []
        for (words, tags), (found, pieces, _) in zip(examples, predictions):
            starts = join_words(words)[1]
            ends = [start + len(word) for start, word in zip(starts, words)]
            entities[0].append([(kind, starts[first], ends[after - 1]) for kind, first, after in entity_spans(tags)])
            entities[1].append([(entity.type, entity.start, entity.end) for entity in found])
            types = [[e.type for e in found if e.start < end and e.end > start] for start, end in zip(starts, ends)]
            predicted.append([f"I-{overlapping[0]}" if overlapping else OUTSIDE for overlapping in types])
            word_ids = [bisect_right(starts, start) - 1 for start, _ in pieces.spans]
            subword_gold.append([entity_type(tags[word]) or OUTSIDE for word in word_ids])
        gold = [example.tags for example in examples]
        return ner_report(gold, predicted, subword_gold, self.subword_types(predictions), seed, entities)

    def subword_types(self, predictions: Sequence[TagPrediction | EntityPrediction]) -> list[list[str]]:
        """The type of the most probable label of each piece, O for none."""
        types = [entity_type(tag) or OUTSIDE for tag in self.tags]
        return [[types[i] for i in prediction.scores.argmax(dim=-1)] for prediction in predictions]


def first_pieces(word_ids: Sequence[int]) -> list[int]:
    """The index of each word's first piece."""
    return [i for i, word in enumerate(word_ids) if i == 0 or word_ids[i - 1] != word]


# ---- metrics ---------------------------------------------------------------------------------------------------


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
    gold: Sentences,
    predicted: Sentences,
    subword_gold: Sentences,
    subword_predicted: Sentences,
    seed: int = 0,
    entities: tuple[Sequence[Spans], Sequence[Spans]] | None = None,
) -> dict:
    """entity_ and overlap_ precision, recall, f1, by_type; subword_f1, subword_f1_without_o, subword_by_type; count

    gold, predicted: each sentence's tags, one per word; subword_…: the same sentences' types, one per piece (O, TYPE).
    entities: each sentence's gold and predicted entities, where they are not those of the tags.

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
    entities = entities or ([entity_spans(tags) for tags in gold], [entity_spans(tags) for tags in predicted])
    report |= span_report(*entities, "entity", seed)
    report |= span_report(
        [word_spans(tags) for tags in gold], [word_spans(tags) for tags in predicted], "overlap", seed
    )
    return report | {"count": len(gold)}


def check_sentences(gold: Sentences, predicted: Sentences, what: str) -> None:
    """Raises DataError if the numbers of sentences or of a sentence's words differ, or there are no words at all."""
    check_same_length(gold, predicted, "sentences")
    for number, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted), start=1):
        check_same_length(gold_tags, predicted_tags, f"{what} in sentence {number}")
    if not any(map(len, gold)):
        raise DataError(f"There is nothing to measure: no sentence has {what}.")
