"""Baselines without a model, which a fine-tuned model should exceed."""

import random
import re
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy

from data.tasks import Example, QuestionExample, WordsExample
from data.tasks.tags import OUTSIDE, entity_type

from .ner import ner_report
from .qa import answer_f1, gold_texts, normalise, qa_report
from .sequences import classification_report

CONTEXT_WORDS = 10  # compared with the question, on each side of a candidate answer
SAMPLE = 1000  # training questions on which the two baselines for questions are compared
WORD = re.compile(r"\w+(?:[.,]\d+)*")


def baseline_report(train: Sequence[Example], test: Sequence[Example], language: str = "fr", seed: int = 0) -> dict:
    """The metrics on test of: the majority label in train; no entities; or answers without a model."""
    if isinstance(test[0], QuestionExample):
        predicted = baseline_answers(train, test, language)
        return qa_report(predicted, [gold_texts(example) for example in test], language, seed)
    if isinstance(test[0], WordsExample):
        gold = [example.tags for example in test]
        none = [[OUTSIDE] * len(tags) for tags in gold]
        return ner_report(gold, none, [[entity_type(tag) or OUTSIDE for tag in tags] for tags in gold], none, seed)
    labels = sorted({example.label for example in (*train, *test)})
    counts = Counter(example.label for example in train)
    majority = max(labels, key=counts.__getitem__)
    scores = numpy.tile([counts[label] for label in labels], (len(test), 1))
    return classification_report([example.label for example in test], [majority] * len(test), scores, labels, seed)


def baseline_answers(train: Sequence[QuestionExample], test: Sequence[QuestionExample], language: str) -> list[str]:
    """overlap_answer of the median length in train; none ("") for all, if that is better on a sample of train."""
    lengths = [len(WORD.findall(example.answers[0].text)) for example in train if example.answers]
    width = max(round(statistics.median(lengths or [1])), 1)

    def overlap(examples):
        return [overlap_answer(example.question, example.context, width, language) for example in examples]

    if len(lengths) < len(train):
        sample = random.Random(0).sample(train, min(len(train), SAMPLE))
        hits = [answer_f1(each, gold_texts(example), language) for each, example in zip(overlap(sample), sample)]
        if sum(hits) < sum(not example.answers for example in sample):
            return [""] * len(test)
    return overlap(test)


def overlap_answer(question: str, context: str, width: int, language: str) -> str:
    """A sliding window: the `width` consecutive words with the most words of the question within CONTEXT_WORDS of
    them, minus the number of their own that are in the question; "" if the context has no words."""
    words = list(WORD.finditer(context))
    asked = set(normalise(question, language).split())
    hits = numpy.array([bool(asked & set(normalise(word[0], language).split())) for word in words], dtype=int)
    sums = numpy.concatenate([[0], hits.cumsum()])  # (words + 1,)
    starts = numpy.arange(max(len(words) - width + 1, 1))
    ends = numpy.minimum(starts + width, len(words))
    inside = sums[ends] - sums[starts]
    around = sums[numpy.minimum(ends + CONTEXT_WORDS, len(words))] - sums[numpy.maximum(starts - CONTEXT_WORDS, 0)]
    best = (around - 2 * inside).argmax()  # around includes inside
    return context[words[starts[best]].start() : words[ends[best] - 1].end()] if words else ""
