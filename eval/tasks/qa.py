"""Questions.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from data import DataError
from data.features import Window, question_windows, token_span, trim_answer
from data.tasks import QuestionExample
from losses import IGNORE_INDEX
from model import QuestionAnswerer

from .batching import Feature, Report, TaskSettings, by_example
from .bootstrap import bootstrap

Language = Literal["fr", "en"]

ENGLISH_ARTICLES = re.compile(r"\b(?:a|an|the)\b")

FRENCH_ARTICLES = re.compile(r"\b(?:le|la|les|du|des|au|aux|un|une)\b")

ELIDED_ARTICLE = re.compile(r"\bl['’]")


class AnswerSpan(NamedTuple):
    """The answer: context[start:end], and the probability of just this start and end."""

    answer: str
    start: int
    end: int
    score: float


class QaTask:
    """An answer that is a span of the context."""

    model, headline, labels = QuestionAnswerer, "f1", ()

    def __init__(self, settings: TaskSettings, labels: Sequence[str] = ()):
        self.settings = settings

    def encode(self, examples: Sequence[QuestionExample], report: Report) -> list[Feature]:
        """A window that does not hold the whole of the (first) answer has `<s>` for its target."""
        settings, items, inexact = self.settings, [], 0
        for number, example in enumerate(examples):
            windows = question_windows(
                settings.tokenizer, example.question, example.context, settings.most, settings.doc_stride
            )
            answer = next((answer for answer in example.answers if answer.start is not None), None)
            if answer is None:
                items += [Feature(window.ids, number, None, window) for window in windows]
                continue
            start, end = stripped(example.context, answer.start, answer.start + len(answer.text))
            spans = [token_span(window, start, end) for window in windows]
            items += [Feature(window.ids, number, span or (0, 0), window) for window, span in zip(windows, spans)]
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

    def logits_and_targets(self, outputs: Sequence[Tensor], items: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        """Of each window two classifications, start and end, with as many classes as it has tokens."""
        return [
            (output.T, torch.tensor(item.target or (IGNORE_INDEX, IGNORE_INDEX))) for output, item in zip(outputs, items)
        ]  # (2, n)

    def decode(
        self, outputs: Sequence[Tensor], items: Sequence[Feature], examples: Sequence[QuestionExample]
    ) -> list[AnswerSpan]:
        """The likeliest span of at most max_answer tokens of all windows together.

        The probability of a start is the softmax over the context's tokens of all windows, an end's likewise.
        """
        predictions = []
        for number, windows in by_example(outputs, items):
            context = examples[number].context
            parts = [(o[i.window.first : i.window.first + len(i.window.spans)], i.window.spans) for o, i in windows]
            if not any(spans for _, spans in parts):
                predictions.append(AnswerSpan("", 0, 0, 0.0))
                continue
            normaliser = torch.cat([logits for logits, _ in parts]).logsumexp(dim=0).sum()  # over starts, over ends
            score, start, end = max(best_span(logits, spans, self.settings.max_answer) for logits, spans in parts)
            start, end = trim_answer(context, start, end)
            predictions.append(AnswerSpan(context[start:end], start, end, (score - normaliser).exp().item()))
        return predictions

    def report(self, predictions: Sequence[AnswerSpan], examples: Sequence[QuestionExample], seed: int) -> dict:
        answers = [[answer.text for answer in example.answers] for example in examples]
        return qa_report([prediction.answer for prediction in predictions], answers, self.settings.language, seed)


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


# ---- metrics --------------------------------------------------------------------------------------------------------


def normalise(text: str, language: Language) -> str:
    """The words of an answer that count: lower case, no punctuation, no articles, one space between words.

    English is SQuAD v1.1 to the letter: of punctuation only ASCII's goes, then a, an, the. French drops what Unicode
    calls punctuation, too (« » ’ … –), and le, la, les, l', du, des, au, aux, un, une, FQuAD's list. There, l' goes
    before the punctuation, written ' or ’: after it, « l'été » would be one word, lété. Of other elisions only the
    apostrophe goes, in SQuAD's way: « d'été » is dété. Raises DataError for another language.
    """
    text = text.lower()
    if language == "en":
        articles = ENGLISH_ARTICLES
        text = "".join(c for c in text if c not in string.punctuation)
    elif language == "fr":
        articles = FRENCH_ARTICLES
        text = ELIDED_ARTICLE.sub(" ", text)
        text = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    else:
        raise DataError(f"Answers are compared in French (fr) or English (en), not in {language!r}.")
    return " ".join(articles.sub(" ", text).split())


def same(prediction: str, answer: str) -> int:
    return int(prediction == answer)


def overlap_f1(prediction: str, answer: str) -> float:
    """F1 over words, each as often as it is there. If one has no word: 1 if both have none, else 0.

    That is SQuAD v2's rule; v1.1's script gives 0 also where both have none.
    """
    predicted, gold = prediction.split(), answer.split()
    if not predicted or not gold:
        return float(predicted == gold)
    right = (Counter(predicted) & Counter(gold)).total()
    return 2 * right / (len(predicted) + len(gold))


def includes(prediction: str, answer: str) -> int:
    return int(answer in prediction) if answer else int(not prediction)


def best(compare: Callable[[str, str], float], prediction: str, answers: Sequence[str], language: Language) -> float:
    """The best of the comparisons with each gold answer, all normalised. Raises DataError without an answer."""
    if not answers:
        raise DataError("A question has no gold answer. Where the right answer is none, give an empty text as answer.")
    prediction = normalise(prediction, language)
    return max(compare(prediction, normalise(answer, language)) for answer in answers)


def exact_match(prediction: str, answers: Sequence[str], language: Language) -> int:
    """Whether the prediction is one of the gold answers, both normalised."""
    return best(same, prediction, answers, language)


def answer_f1(prediction: str, answers: Sequence[str], language: Language) -> float:
    """The best F1 over words (see overlap_f1) with a gold answer."""
    return best(overlap_f1, prediction, answers, language)


def inclusion(prediction: str, answers: Sequence[str], language: Language) -> int:
    """Whether a gold answer is part of the prediction.

    The card of cmarkea/distilcamembert-base-qa calls it the inclusion score: whether the true answer is included in
    the predicted one. It does not say how. Here: as characters, not as whole words, after normalising both; an
    answer that normalises to nothing is only in a prediction that does, too.
    """
    return best(includes, prediction, answers, language)


def qa_report(predictions: Sequence[str], answers: Sequence[Sequence[str]], language: Language, seed: int = 0) -> dict:
    """exact_match, f1, inclusion, each a mean over questions with an interval, as bootstrap gives it; count

    Raises DataError if lengths differ, there is no question, or a question has no gold answer.
    """
    if len(predictions) != len(answers):
        raise DataError(f"There are {len(predictions)} predictions, but answers to {len(answers)} questions.")
    measures = {"exact_match": exact_match, "f1": answer_f1, "inclusion": inclusion}
    rows = [
        [measure(prediction, gold, language) for measure in measures.values()]
        for prediction, gold in zip(predictions, answers)
    ]

    def means(sums):
        return dict(zip(measures, numpy.moveaxis(sums, -1, 0) / len(rows)))

    return bootstrap(numpy.array(rows), means, seed) | {"count": len(rows)}
