"""Question answering, section 4.4: the answer is a span of the context.

Shapes: n tokens of a window, N tokens of a whole context.
"""

import operator
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from data.cli import DataError
from data.features import Window, question_windows, token_span, trim_answer
from data.tasks import Example, QuestionExample
from losses import IGNORE_INDEX
from model import QuestionAnswerer

from .batching import Feature, Outputs, Report, TaskSettings, group_by_example
from .bootstrap import bootstrap

Compare = Callable[[str, str], float]  # a predicted and a gold answer -> their score
Language = Literal["fr", "en"]
ARTICLES = {
    "en": re.compile(r"\b(?:a|an|the)\b"),
    "fr": re.compile(r"\b(?:le|la|les|du|des|au|aux|un|une)\b"),
}
ELIDED_ARTICLE = re.compile(r"\bl['’]")


class AnswerSpan(NamedTuple):
    """context[start:end], and the probability of this start times that of this end."""

    answer: str
    start: int
    end: int
    score: float


class QaTask:
    """The start and the end of the answer are two classifications over the tokens of the context.

    The paper's section 4.4 puts the context first and the question second. The released models were all trained with
    the question first, and so are the inputs here: `<s> question </s></s> context </s>`.
    """

    model, headline, labels = QuestionAnswerer, "f1", ()

    def __init__(self, settings: TaskSettings, labels: Sequence[str] = ()):
        self.settings = settings

    def encode(self, examples: Sequence[QuestionExample], report: Report) -> list[Feature]:
        """A long context gives several windows. The target is the first and last token of the first answer.

        In a window that does not contain the whole answer, both are 0, the index of `<s>`. The target is None if no
        answer has an offset. report: called with a sentence if answers are not whole tokens, or longer than a window.
        """
        tokenizer, max_length, stride = self.settings.tokenizer, self.settings.max_length, self.settings.doc_stride
        features, inexact = [], 0
        for index, example in enumerate(examples):
            windows = question_windows(tokenizer, example.question, example.context, max_length, stride)
            answer = next((answer for answer in example.answers if answer.start is not None), None)
            if answer is None:
                features += [Feature(window.ids, index, None, window) for window in windows]
                continue
            start, end = strip_spaces(example.context, answer.start, answer.start + len(answer.text))
            spans = [token_span(window, start, end) for window in windows]
            features += [Feature(window.ids, index, span or (0, 0), window) for window, span in zip(windows, spans)]
            found = [characters(window, span) for window, span in zip(windows, spans) if span]
            trim = partial(trim_answer, example.context)
            inexact += not any(trim(*each) == trim(start, end) for each in found)
        if inexact:
            what = "answers start or end inside a token, or are longer than a window"
            report(f"{inexact:,} of {len(examples):,} {what}: the model is trained on the tokens that contain them.")
        return features

    def logits_and_targets(self, outputs: Outputs, features: Sequence[Feature]) -> list[tuple[Tensor, Tensor]]:
        """-> for each window, logits (2, n) and targets (2,): start and end, over the window's n tokens"""
        targets = [torch.tensor(feature.target or (IGNORE_INDEX, IGNORE_INDEX)) for feature in features]
        return [(output.T, target) for output, target in zip(outputs, targets)]

    def decode(self, outputs: Outputs, features: Sequence[Feature], examples: Sequence[Example]) -> list[AnswerSpan]:
        """The span of at most max_answer tokens with the highest sum of start and end logits, over all windows.

        Its score is the product of two softmaxes over all tokens of the context, see context_logits. An empty context
        has the answer "" with score 0.
        """
        predictions = []
        for index, group in group_by_example(outputs, features):
            context = examples[index].context
            windows = [feature.window for _, feature in group]
            if not any(window.spans for window in windows):
                predictions.append(AnswerSpan("", 0, 0, 0.0))
                continue
            logits = [output[w.context_start :][: len(w.spans)] for (output, _), w in zip(group, windows)]  # (n, 2)
            spans = [best_span(each, w.spans, self.settings.max_answer) for each, w in zip(logits, windows)]
            score, start, end = max(spans)
            log_normaliser = context_logits(logits, windows).logsumexp(dim=0).sum()  # over starts, over ends
            start, end = trim_answer(context, start, end)
            predictions.append(AnswerSpan(context[start:end], start, end, (score - log_normaliser).exp().item()))
        return predictions

    def metrics(self, predictions: Sequence[AnswerSpan], examples: Sequence[QuestionExample], seed: int) -> dict:
        answers = [[answer.text for answer in example.answers] for example in examples]
        return qa_report([prediction.answer for prediction in predictions], answers, self.settings.language, seed)


def characters(window: Window, span: tuple[int, int]) -> tuple[int, int]:
    """First and last index in window.ids -> start and end in the context."""
    first, last = span[0] - window.context_start, span[1] - window.context_start
    return window.spans[first][0], window.spans[last][1]


def strip_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """text[start:end] without spaces at its ends, which belong to no token."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def best_span(logits: Tensor, spans: Sequence[tuple[int, int]], max_answer: int) -> tuple[float, int, int]:
    """The span of at most max_answer tokens with the highest start logit plus end logit.

    logits: (n, 2); spans: the n tokens' characters -> that sum, start and end in the context; -inf, 0, 0 if n is 0
    """
    best = (float("-inf"), 0, 0)
    starts, ends = logits.double().T
    for length in range(min(max_answer, len(spans))):  # of the last token behind the first
        score, first = (starts[: len(starts) - length] + ends[length:]).max(dim=0)
        if score > best[0]:
            best = score.item(), spans[first][0], spans[first + length][1]
    return best


def context_logits(logits: Sequence[Tensor], windows: Sequence[Window]) -> Tensor:
    """Every token of a context once, (N, 2): the maximum of its logits over the windows that contain it.

    logits: (n, 2) per window. With each token counted once, the probabilities of all spans sum to at most 1 and do not
    depend on the stride if the windows agree.
    """
    number = windows[-1].offset + len(windows[-1].spans)
    merged = logits[0].new_full((number, 2), float("-inf"))
    for each, window in zip(logits, windows):
        part = merged[window.offset : window.offset + len(each)]
        part.copy_(torch.maximum(part, each))
    return merged


# ---- metrics ---------------------------------------------------------------------------------------------------


def normalise(text: str, language: Language) -> str:
    """Lower case, without punctuation and articles, words separated by single spaces.

    English follows SQuAD v1.1 exactly: ASCII punctuation is removed, then a, an, the. In French all Unicode punctuation
    is removed, too (« » ’ … –), and the articles are FQuAD's list: le, la, les, l', du, des, au, aux, un, une. There l'
    (or l’) is removed before the punctuation, which would make « l'été » one word, lété. Other elisions lose only
    their apostrophe, as in SQuAD's rules: « d'été » becomes dété.  Raises DataError for another language.
    """
    if language not in ARTICLES:
        raise DataError(f"Answers can be compared in French (fr) or English (en), not in {language!r}.")
    text = text.lower()
    if language == "fr":
        text = ELIDED_ARTICLE.sub(" ", text)
        text = "".join(c for c in text if unicodedata.category(c)[0] != "P")
    text = "".join(c for c in text if c not in string.punctuation)
    return " ".join(ARTICLES[language].sub(" ", text).split())


def word_f1(prediction: str, answer: str) -> float:
    """F1 over words as multisets: section 4.4's measure, that of the paper's reference 13 (SQuAD).

    If either has no words: 1 if both have none, else 0. This is SQuAD v2's rule; v1.1's script gives 0 for both, too.
    """
    predicted, gold = prediction.split(), answer.split()
    if not predicted or not gold:
        return float(predicted == gold)
    correct = (Counter(predicted) & Counter(gold)).total()
    return 2 * correct / (len(predicted) + len(gold))


def contains(prediction: str, answer: str) -> int:
    """Whether the prediction contains the answer, as characters; an empty answer only if both are empty.

    The card of cmarkea/distilcamembert-base-qa reports this as the inclusion score, without a definition.
    """
    return int(answer in prediction) if answer else int(not prediction)


def best_match(compare: Compare, prediction: str, answers: Sequence[str], language: Language) -> float:
    """The maximum of compare(prediction, answer) over the gold answers, all normalised.

    Raises DataError if there are no gold answers.
    """
    if not answers:
        raise DataError("A question has no gold answer. Use an empty text if the correct answer is none.")
    prediction = normalise(prediction, language)
    return max(compare(prediction, normalise(answer, language)) for answer in answers)


exact_match, answer_f1, inclusion = (partial(best_match, compare) for compare in (operator.eq, word_f1, contains))


def qa_report(predictions: Sequence[str], answers: Sequence[Sequence[str]], language: Language, seed: int = 0) -> dict:
    """exact_match, f1, inclusion: means over the questions, each with an interval, see bootstrap; count

    Raises DataError if lengths differ, there are no questions, or a question has no gold answer.
    """
    if len(predictions) != len(answers):
        raise DataError(f"There are {len(predictions)} predictions, but answers to {len(answers)} questions.")
    measures = {"exact_match": exact_match, "f1": answer_f1, "inclusion": inclusion}
    pairs = zip(predictions, answers)
    rows = [[measure(prediction, gold, language) for measure in measures.values()] for prediction, gold in pairs]

    def means(sums):
        return dict(zip(measures, numpy.moveaxis(sums, -1, 0) / len(rows)))

    return bootstrap(numpy.array(rows), means, seed) | {"count": len(rows)}
