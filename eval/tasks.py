"""The tasks of section 4 between examples and a model's outputs: what is read, what is learnt, what is concluded.

Three kinds of task, each a class with the same five methods:

    encode(examples, report)     -> items: what the model reads at once, with the target where there is one
    problems(outputs, items)     -> the classifications that these outputs are: pairs of logits (N, C), targets (N,)
    decode(outputs, items, examples) -> a prediction for each example
    report(predictions, examples, seed) -> the figures
    headline                     the figure that decides which epoch is best
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data import OptionError, Tokenizer
from data.features import (
    Pieces,
    Window,
    pair_ids,
    question_windows,
    text_pieces,
    text_windows,
    token_span,
    trim_answer,
    word_pieces,
    word_windows,
)
from data.tasks import Example, PairExample, QuestionExample, TextExample, WordsExample
from losses import IGNORED
from model import QuestionAnswerer, SequenceClassifier, TokenClassifier

from .answers import qa_report
from .metrics import classification_report, entity_type, ner_report

Report = Callable[[str], None]


class Item(NamedTuple):
    """What the model reads at once."""

    ids: list[int]
    example: int  # its number
    target: object = None  # a label's number; a label's number for each token; first and last token of the answer
    window: Window | None = None  # of a question
    pieces: Pieces | None = None  # of the whole sentence, whose tags are asked for


@dataclass(frozen=True)
class Reading:
    """How texts are read."""

    tokenizer: Tokenizer
    most: int  # tokens at once
    windows: bool = False  # a long text by windows, whose probabilities are averaged, instead of cutting it
    doc_stride: int = 128
    max_answer: int = 30
    language: str = "fr"


# ---- sentiment and inference -----------------------------------------------------------------------------------


class Label(NamedTuple):
    """The likeliest label and the probabilities of all, (C,)."""

    label: str
    scores: Tensor


class Sequences:
    """One label a text or pair: sentiment and, by equation (14), inference.

    Equation (14), section 4: P(label | premise, hypothesis) = softmax of the classifier on
    `<s> premise </s></s> hypothesis </s>`.
    """

    model, headline = SequenceClassifier, "accuracy"

    def __init__(self, reading: Reading, labels: Sequence[str]):
        self.reading, self.labels = reading, tuple(labels)

    def encode(self, examples: Sequence[TextExample | PairExample], report: Report) -> list[Item]:
        tokenizer, most = self.reading.tokenizer, self.reading.most
        items, cuts = [], 0
        for number, example in enumerate(examples):
            target = self.labels.index(example.label) if example.label in self.labels else None
            if isinstance(example, PairExample):
                ids, cut = pair_ids(tokenizer, example.premise, example.hypothesis, most)
                windows = [ids]
            else:
                windows = text_windows(tokenizer, example.text, most)
                cut = len(windows) > 1 and not self.reading.windows
                windows = windows[:1] if cut else windows
            cuts += cut
            items += [Item(ids, number, target) for ids in windows]
        if cuts:
            report(f"{cuts:,} of {len(examples):,} texts are longer than {most} tokens and were cut.")
        return items

    def problems(self, outputs: Sequence[Tensor], items: Sequence[Item]) -> list[tuple[Tensor, Tensor]]:
        targets = [IGNORED if item.target is None else item.target for item in items]
        return [(torch.stack(tuple(outputs)), torch.tensor(targets))]

    def decode(self, outputs: Sequence[Tensor], items: Sequence[Item], examples: Sequence[Example]) -> list[Label]:
        predictions = []
        for _, windows in by_example(outputs, items):
            scores = torch.stack([output.softmax(dim=-1) for output, _ in windows]).mean(dim=0)  # (C,)
            predictions.append(Label(self.labels[scores.argmax()], scores))
        return predictions

    def report(self, predictions: Sequence[Label], examples: Sequence[Example], seed: int) -> dict:
        scores = torch.stack([prediction.scores for prediction in predictions]).numpy()
        guesses = [prediction.label for prediction in predictions]
        return classification_report([example.label for example in examples], guesses, scores, self.labels, seed)


# ---- named entities --------------------------------------------------------------------------------------------


class Tags(NamedTuple):
    """Of a sentence: a tag a word, and of its pieces the ids, the words, the characters, the scores (P, C)."""

    tags: list[str]
    pieces: Pieces
    scores: Tensor


class Words:
    """A tag a word. The model learns and gives one for each piece; a word has that of its first."""

    model, headline = TokenClassifier, "entity_f1"

    def __init__(self, reading: Reading, labels: Sequence[str]):
        self.reading, self.labels = reading, tuple(labels)

    def pieces(self, example: WordsExample | TextExample) -> Pieces:
        if isinstance(example, TextExample):
            return text_pieces(self.reading.tokenizer, example.text)
        return word_pieces(self.reading.tokenizer, example.words)

    def encode(self, examples: Sequence[WordsExample | TextExample], report: Report) -> list[Item]:
        bos, eos = self.reading.tokenizer.bos_id, self.reading.tokenizer.eos_id
        numbers = {label: number for number, label in enumerate(self.labels)}
        items = []
        for number, example in enumerate(examples):
            ids, words, _ = pieces = self.pieces(example)
            targets = [IGNORED] * len(ids)
            if isinstance(example, WordsExample) and example.tags:
                starts = [place == 0 or words[place - 1] != word for place, word in enumerate(words)]
                tags = [piece_tag(example.tags[word], first) for word, first in zip(words, starts)]
                targets = [numbers.get(tag, numbers.get(inside(tag), IGNORED)) for tag in tags]
            for start, end in word_windows(words, self.reading.most - 2):
                target = [IGNORED, *targets[start:end], IGNORED]
                items.append(Item([bos, *ids[start:end], eos], number, target, pieces=pieces))
        return items

    def problems(self, outputs: Sequence[Tensor], items: Sequence[Item]) -> list[tuple[Tensor, Tensor]]:
        return [(torch.cat(tuple(outputs)), torch.tensor([target for item in items for target in item.target]))]

    def decode(self, outputs: Sequence[Tensor], items: Sequence[Item], examples: Sequence[Example]) -> list[Tags]:
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


# ---- questions -------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """The answer: context[start:end], and the probability of just this start and end."""

    answer: str
    start: int
    end: int
    score: float


class Questions:
    """An answer that is a span of the context."""

    model, headline, labels = QuestionAnswerer, "f1", ()

    def __init__(self, reading: Reading, labels: Sequence[str] = ()):
        self.reading = reading

    def encode(self, examples: Sequence[QuestionExample], report: Report) -> list[Item]:
        """A window that does not hold the whole of the (first) answer has `<s>` for its target."""
        reading, items, inexact = self.reading, [], 0
        for number, example in enumerate(examples):
            windows = question_windows(
                reading.tokenizer, example.question, example.context, reading.most, reading.doc_stride
            )
            answer = next((answer for answer in example.answers if answer.start is not None), None)
            if answer is None:
                items += [Item(window.ids, number, None, window) for window in windows]
                continue
            start, end = stripped(example.context, answer.start, answer.start + len(answer.text))
            spans = [token_span(window, start, end) for window in windows]
            items += [Item(window.ids, number, span or (0, 0), window) for window, span in zip(windows, spans)]
            inexact += not any(
                trim_answer(example.context, *characters(window, span)) == trim_answer(example.context, start, end)
                for window, span in zip(windows, spans)
                if span
            )
        if inexact:
            report(
                f"{inexact:,} of {len(examples):,} answers begin or end inside a token, or are longer than a window: "
                "the tokens that hold them are learnt."
            )
        return items

    def problems(self, outputs: Sequence[Tensor], items: Sequence[Item]) -> list[tuple[Tensor, Tensor]]:
        """Of each window two classifications, start and end, with as many classes as it has tokens."""
        return [
            (output.T, torch.tensor(item.target or (IGNORED, IGNORED))) for output, item in zip(outputs, items)
        ]  # (2, n)

    def decode(
        self, outputs: Sequence[Tensor], items: Sequence[Item], examples: Sequence[QuestionExample]
    ) -> list[Span]:
        """The likeliest span of at most max_answer tokens of all windows together.

        The probability of a start is the softmax over the context's tokens of all windows, an end's likewise.
        """
        predictions = []
        for number, windows in by_example(outputs, items):
            context = examples[number].context
            parts = [(o[i.window.first : i.window.first + len(i.window.spans)], i.window.spans) for o, i in windows]
            if not any(spans for _, spans in parts):
                predictions.append(Span("", 0, 0, 0.0))
                continue
            normaliser = torch.cat([logits for logits, _ in parts]).logsumexp(dim=0).sum()  # over starts, over ends
            score, start, end = max(best_span(logits, spans, self.reading.max_answer) for logits, spans in parts)
            start, end = trim_answer(context, start, end)
            predictions.append(Span(context[start:end], start, end, (score - normaliser).exp().item()))
        return predictions

    def report(self, predictions: Sequence[Span], examples: Sequence[QuestionExample], seed: int) -> dict:
        answers = [[answer.text for answer in example.answers] for example in examples]
        return qa_report([prediction.answer for prediction in predictions], answers, self.reading.language, seed)


def characters(window: Window, span: tuple[int, int]) -> tuple[int, int]:
    """Where in the context these two ids of a window begin and end."""
    first, last = span[0] - window.first, span[1] - window.first
    return window.spans[first][0], window.spans[last][1]


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Without the spaces at its edges, which are part of no token."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def best_span(logits: Tensor, spans: Sequence[tuple[int, int]], max_answer: int) -> tuple[float, int, int]:
    """The start and end (not before it, at most max_answer tokens in all) of the highest sum of logits, (n, 2).

    -> that sum, the first character, one past the last
    """
    if not spans:
        return float("-inf"), 0, 0
    best = (float("-inf"), 0, 0)
    starts, ends = logits.double().T
    for length in range(min(max_answer, len(spans))):
        score, place = (starts[: len(starts) - length] + ends[length:]).max(dim=0)
        if score > best[0]:
            best = score.item(), place.item(), place.item() + length
    score, first, last = best
    return score, spans[first][0], spans[last][1]


# ---- all -------------------------------------------------------------------------------------------------------


Task = Sequences | Words | Questions
KINDS = {"sentiment": Sequences, "nli": Sequences, "ner": Words, "qa": Questions}


def by_example(outputs: Sequence[Tensor], items: Sequence[Item]) -> Iterator[tuple[int, list[tuple[Tensor, Item]]]]:
    """Outputs and items of each example, which lie one after the other."""
    for number, group in groupby(zip(outputs, items), key=lambda pair: pair[1].example):
        yield number, list(group)


def losses_of(problems: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
    """Cross-entropy, summed over all targets that are there; how many those are."""
    pairs = [(logits.float(), targets.to(logits.device)) for logits, targets in problems]
    losses = [F.cross_entropy(*pair, ignore_index=IGNORED, reduction="sum") for pair in pairs]
    return torch.stack(losses).sum(), sum(int((targets != IGNORED).sum()) for _, targets in problems)


def check_labels(labels: Sequence[str], there: Sequence[str], cure: str) -> None:
    """Raises OptionError unless all labels of the data are the model's; cure: what to do, a sentence."""
    unknown = [label for label in there if label not in labels]
    if unknown:
        raise OptionError(
            f"The data have the label {unknown[0]!r}, which the model does not know: its labels are "
            f"{', '.join(labels)}. {cure}"
        )
