"""What needs no model: the figures that a fine-tuned one must be above."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy

from data.tasks import Example, QuestionExample, WordsExample

from .ner import entity_type, ner_report
from .qa import normalise, qa_report
from .sequences import classification_report

AROUND = 10  # words on each side of a candidate that are compared with the question
WORD = re.compile(r"\w+(?:[.,]\d+)*")


def baseline_report(train: Sequence[Example], test: Sequence[Example], language: str = "fr", seed: int = 0) -> dict:
    """The figures of the majority label, of no entity at all, or of the words with most of the question around them."""
    if isinstance(test[0], QuestionExample):
        width = round(statistics.median(len(WORD.findall(example.answers[0].text)) for example in train))
        guesses = [overlap_answer(example.question, example.context, max(width, 1), language) for example in test]
        return qa_report(guesses, [[answer.text for answer in e.answers] for e in test], language, seed)
    if isinstance(test[0], WordsExample):
        gold = [example.tags for example in test]
        none = [["O"] * len(tags) for tags in gold]
        return ner_report(gold, none, [[entity_type(tag) or "O" for tag in tags] for tags in gold], none, seed)
    labels = sorted({example.label for example in (*train, *test)})
    counts = Counter(example.label for example in train)
    majority = max(labels, key=counts.__getitem__)
    scores = numpy.tile([counts[label] for label in labels], (len(test), 1))
    return classification_report([example.label for example in test], [majority] * len(test), scores, labels, seed)


def overlap_answer(question: str, context: str, width: int, language: str) -> str:
    """The sliding window: the `width` neighbouring words that have the most of the question's words within AROUND
    words of them, less those that are the question's themselves; "" where the context has no word."""
    words = list(WORD.finditer(context))
    asked = set(normalise(question, language).split())
    hits = numpy.array([bool(asked & set(normalise(word[0], language).split())) for word in words], dtype=int)
    sums = numpy.concatenate([[0], hits.cumsum()])  # (words + 1,)
    starts = numpy.arange(max(len(words) - width + 1, 1))
    ends = numpy.minimum(starts + width, len(words))
    within = sums[ends] - sums[starts]
    near = sums[numpy.minimum(ends + AROUND, len(words))] - sums[numpy.maximum(starts - AROUND, 0)]
    best = (near - 2 * within).argmax()
    return context[words[starts[best]].start() : words[ends[best] - 1].end()] if words else ""
