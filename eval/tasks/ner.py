"""Named entities.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from data import DataError
from data.features import Pieces, text_pieces, word_pieces, word_windows
from data.tasks import Example, TextExample, WordsExample
from losses import IGNORE_INDEX
from model import TokenClassifier

from .batching import Feature, Report, TaskSettings, by_example
from .bootstrap import add_support, bootstrap, by_name, check_alike, precision_recall_f1
from .sequences import label_counts, weighted_f1

OUTSIDE = "O"

EntitySpan = tuple[str, int, int]  # type, first word, one past the last


class Tags(NamedTuple):
    """Of a sentence: a tag a word, and of its pieces the ids, the words, the characters, the scores (P, C)."""

    tags: list[str]
    pieces: Pieces
    scores: Tensor


class NerTask:
    """A tag a word. The model learns and gives one for each piece; a word has that of its first."""

    model, headline = TokenClassifier, "entity_f1"

    def __init__(self, settings: TaskSettings, labels: Sequence[str]):
        self.settings, self.labels = settings, tuple(labels)

    def pieces(self, example: WordsExample | TextExample) -> Pieces:
        if isinstance(example, TextExample):
            return text_pieces(self.settings.tokenizer, example.text)
        return word_pieces(self.settings.tokenizer, example.words)

    def encode(self, examples: Sequence[WordsExample | TextExample], report: Report) -> list[Feature]:
        bos, eos = self.settings.tokenizer.bos_id, self.settings.tokenizer.eos_id
        numbers = {label: number for number, label in enumerate(self.labels)}
        items = []
        for number, example in enumerate(examples):
            ids, words, _ = pieces = self.pieces(example)
            targets = [IGNORE_INDEX] * len(ids)
            if isinstance(example, WordsExample) and example.tags:
                starts = [place == 0 or words[place - 1] != word for place, word in enumerate(words)]
                tags = [piece_tag(example.tags[word], first) for word, first in zip(words, starts)]
                targets = [numbers.get(tag, numbers.get(inside(tag), IGNORE_INDEX)) for tag in tags]
            for start, end in word_windows(words, self.settings.most - 2):
                target = [IGNORE_INDEX, *targets[start:end], IGNORE_INDEX]
                items.append(Feature([bos, *ids[start:end], eos], number, target, pieces=pieces))
        return items

    def logits_and_targets(self, outputs: Sequence[Tensor], items: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        return [(torch.cat(tuple(outputs)), torch.tensor([target for item in items for target in item.target]))]

    def decode(self, outputs: Sequence[Tensor], items: Sequence[Feature], examples: Sequence[Example]) -> list[Tags]:
        predictions = []
        for _, windows in by_example(outputs, items):
            pieces = windows[0][1].pieces
            scores = torch.cat([output[1:-1].softmax(dim=-1) for output, _ in windows])  # (P, C)
            guesses = [self.labels[i] for i in scores.argmax(dim=-1)]
            firsts = [place for place, word in enumerate(pieces.words) if place == 0 or pieces.words[place - 1] != word]
            predictions.append(Tags([guesses[place] for place in firsts], pieces, scores))
        return predictions

    def report(self, predictions: Sequence[Tags], examples: Sequence[WordsExample], seed: int) -> dict:
        gold = [example.tags for example in examples]
        types = [entity_type(label) or "O" for label in self.labels]
        subword_gold = [
            [entity_type(tags[word]) or "O" for word in p.pieces.words] for p, tags in zip(predictions, gold)
        ]
        subword_guesses = [[types[i] for i in prediction.scores.argmax(dim=-1)] for prediction in predictions]
        return ner_report(gold, [prediction.tags for prediction in predictions], subword_gold, subword_guesses, seed)


def piece_tag(tag: str, first: bool) -> str:
    """A word's first piece has its tag; where an entity begins, only that piece is its beginning."""
    return tag if first else inside(tag)


def inside(tag: str) -> str:
    """B-TYPE -> I-TYPE; others as they are."""
    return "I-" + tag[2:] if tag.startswith("B-") else tag


class Entity(NamedTuple):
    type: str
    score: float  # the mean over its pieces
    start: int  # text[start:end]
    end: int


def entities_in(prediction: Tags, labels: Sequence[str]) -> list[Entity]:
    """The entities of running text: neighbouring pieces of one type, a B- always beginning a new one."""
    found: list[Entity] = []
    scores, best = prediction.scores.max(dim=-1)
    tags = [labels[i] for i in best]
    runs, last = [], None
    for place, tag in enumerate(tags):
        kind = entity_type(tag)
        if kind and kind == last and not tag.startswith("B-"):
            runs[-1].append(place)
        elif kind:
            runs.append([place])
        last = kind
    for run in runs:
        start, end = prediction.pieces.spans[run[0]][0], prediction.pieces.spans[run[-1]][1]
        found.append(Entity(entity_type(tags[run[0]]), scores[run].mean().item(), start, end))
    return found


# ---- metrics --------------------------------------------------------------------------------------------------------


def entity_type(tag: str) -> str | None:
    """The type in a tag, none for O. Raises DataError for a tag that is not O, B-TYPE or I-TYPE."""
    if tag == OUTSIDE:
        return None
    if tag[:2] not in ("B-", "I-") or len(tag) == 2:
        raise DataError(f"A word's tag is O, B-TYPE or I-TYPE, not {tag!r}.")
    return tag[2:]


def entities(tags: Sequence[str]) -> list[EntitySpan]:
    """The entities of a sentence as conlleval reads them: an I- after O or after another type starts one, too."""
    spans, start, current = [], 0, None
    for place, tag in enumerate([*tags, OUTSIDE]):
        kind = entity_type(tag)
        if kind != current or tag[0] == "B":
            if current is not None:
                spans.append((current, start, place))
            start, current = place, kind
    return spans


def entity_words(tags: Sequence[str]) -> list[EntitySpan]:
    """Every word of an entity as a span of its own, with the entity's type; B- and I- are not told apart.

    The paper's reference 13 scores NER by the overlap of tokens; the paper's text was not at hand, this is our
    reading of it. So a word is right if gold and predicted give it the same type, precision is over the words
    predicted as part of an entity, recall over those that are.
    """
    kinds = map(entity_type, tags)
    return [(kind, place, place + 1) for place, kind in enumerate(kinds) if kind is not None]


def span_counts(gold: Sequence[list[EntitySpan]], predicted: Sequence[list[EntitySpan]], types: Sequence[str]) -> ndarray:
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


def check_sentences(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], what: str) -> None:
    check_alike(gold, predicted, "sentences")
    for number, (truth, guess) in enumerate(zip(gold, predicted), start=1):
        check_alike(truth, guess, f"{what} in sentence {number}")
    if not any(map(len, gold)):
        raise DataError(f"There is nothing to measure: not one sentence has {what}.")


def span_report(gold: Sequence[list[EntitySpan]], predicted: Sequence[list[EntitySpan]], prefix: str, seed: int) -> dict:
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
