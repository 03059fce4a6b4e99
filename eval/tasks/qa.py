"""Question answering, section 4.4: the answer is a span of the context.

Shapes: n tokens of a window, N tokens of a whole context.
"""

import math
import operator
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import numpy
import torch
from numpy import ndarray
from torch import Tensor

from data.cli import DataError
from data.features import Window, question_windows, token_span, trim_answer
from data.tasks import Example, QuestionExample
from losses import IGNORE_INDEX
from model import QuestionAnswerer

from .batching import Feature, Outputs, Report, TaskSettings, group_by_example
from .bootstrap import bootstrap, ratio

Compare = Callable[[str, str], float]  # a predicted and a gold answer -> their score
Language = Literal["fr", "en"]
ARTICLES = {
    "en": re.compile(r"\b(?:a|an|the)\b"),
    "fr": re.compile(r"\b(?:le|la|les|du|des|au|aux|un|une)\b"),
}
ELIDED_ARTICLE = re.compile(r"\bl['’]")


class AnswerSpan(NamedTuple):
    """context[start:end], and the probability of this start times that of this end.

    no_answer: by how much the start and end logits of `<s>`, the answer of questions that have none, exceed those of
    this span. Where it is above a model's threshold, the prediction is that there is no answer.
    """

    answer: str
    start: int
    end: int
    score: float
    no_answer: float


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

        In a window that does not contain the whole answer, both are 0, the index of `<s>`; so they are in all windows
        of a question without an answer. The target is None if there are answers, but none has an offset.
        report: called with a sentence if answers are not whole tokens, or longer than a window.
        """
        tokenizer, max_length, stride = self.settings.tokenizer, self.settings.max_length, self.settings.doc_stride
        features, inexact = [], 0
        for index, example in enumerate(examples):
            windows = question_windows(tokenizer, example.question, example.context, max_length, stride)
            answer = next((answer for answer in example.answers if answer.start is not None), None)
            if answer is None:
                target = None if example.answers else (0, 0)
                features += [feature_of(window, index, target) for window in windows]
                continue
            start, end = strip_spaces(example.context, answer.start, answer.start + len(answer.text))
            spans = [token_span(window, start, end) for window in windows]
            features += [feature_of(window, index, span or (0, 0)) for window, span in zip(windows, spans)]
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

        Its score is the product of two softmaxes over all tokens of the context, see context_logits. Of the windows'
        logits of `<s>` the lowest count: it is enough that one window holds the answer. An empty context has the answer
        "" with score 0.
        """
        predictions = []
        for index, group in group_by_example(outputs, features):
            context = examples[index].context
            windows = [feature.window for _, feature in group]
            if not any(window.spans for window in windows):
                predictions.append(AnswerSpan("", 0, 0, 0.0, math.inf))
                continue
            logits = [output[1:] for output, _ in group]  # of the context's tokens, (n, 2)
            spans = [best_span(each, w.spans, self.settings.max_answer) for each, w in zip(logits, windows)]
            score, start, end = max(spans)
            log_normaliser = context_logits(logits, windows).logsumexp(dim=0).sum()  # over starts, over ends
            no_answer = min(output[0].double().sum().item() for output, _ in group) - score
            start, end = trim_answer(context, start, end)
            probability = (score - log_normaliser).exp().item()
            predictions.append(AnswerSpan(context[start:end], start, end, probability, no_answer))
        return predictions

    def says_none(self, prediction: AnswerSpan) -> bool:
        """Whether the prediction is that the context does not answer the question."""
        threshold = self.settings.no_answer_threshold
        return threshold is not None and prediction.no_answer > threshold

    def with_best_threshold(self, predictions: Sequence[AnswerSpan], examples: Sequence[QuestionExample]) -> "QaTask":
        """The task with the threshold of the highest F1 on these examples, 0 if all of them have an answer.

        It is halfway from the last prediction that is taken to the next: rounding errors, which depend on the batch
        size, change neither.
        """
        threshold = 0.0
        if not all(example.answers for example in examples):
            last = self.metrics(predictions, examples, 0)["best_f1_thresh"]
            above = [p.no_answer for p in predictions if last < p.no_answer < math.inf]
            threshold = last / 2 + min(above, default=last + 2) / 2
        return QaTask(replace(self.settings, no_answer_threshold=threshold))

    def metrics(self, predictions: Sequence[AnswerSpan], examples: Sequence[QuestionExample], seed: int) -> dict:
        answers = [gold_texts(example) for example in examples]
        best, no_answer = ([prediction[i] for prediction in predictions] for i in (0, 4))
        return qa_report(best, answers, self.settings.language, seed, no_answer, self.settings.no_answer_threshold)


def feature_of(window: Window, example: int, target: tuple[int, int] | None) -> Feature:
    """Its outputs are asked of `<s>`, which stands for no answer, and of the context: row 1 + i is of spans[i]."""
    asked = [0, *range(window.context_start, window.context_start + len(window.spans))]
    return Feature(window.ids, example, target, window, asked=asked)


def gold_texts(example: QuestionExample) -> list[str]:
    """The answers that are compared with a prediction: "" for a question without one."""
    return [answer.text for answer in example.answers] or [""]


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


def qa_report(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    language: Language,
    seed: int = 0,
    no_answer: Sequence[float] | None = None,
    threshold: float | None = None,
) -> dict:
    """exact_match, f1, inclusion: means over the questions, each with an interval, see bootstrap; count

    answers: of each question; [""] if it has none. no_answer: of each prediction, see AnswerSpan; where it exceeds the
    threshold, the prediction is that there is no answer, whose score is 1 for a question without one, else 0.
    If there are such questions, also the rest of SQuAD 2.0's official figures, under its names: HasAns_exact, _f1 and
    _total of the questions with an answer, NoAns_… of those without; with no_answer, best_exact and best_f1, the
    highest scores that any threshold gives, and best_exact_thresh and best_f1_thresh, where they are reached. As in its
    script, gold answers of articles and punctuation alone then count only if a question has no other.
    Raises DataError if lengths differ, there are no questions, or a question has no gold answer.
    """
    if len(predictions) != len(answers):
        raise DataError(f"There are {len(predictions)} predictions, but answers to {len(answers)} questions.")
    measures = {"exact_match": exact_match, "f1": answer_f1, "inclusion": inclusion}
    has_answer = numpy.array([any(gold) for gold in answers], dtype=bool)
    if not has_answer.all():
        answers = [[answer for answer in gold if normalise(answer, language)] or gold[:1] for gold in answers]
    pairs = zip(predictions, answers)
    best = numpy.array(
        [[measure(prediction, gold, language) for measure in measures.values()] for prediction, gold in pairs]
    )
    rows = best
    if threshold is not None:
        says_none = numpy.array(no_answer) > threshold
        rows = numpy.where(says_none[:, None], ~has_answer[:, None], best)

    def means(sums):
        return dict(zip(measures, numpy.moveaxis(sums, -1, 0) / len(rows)))

    report = bootstrap(rows, means, seed) | {"count": len(rows)}
    if has_answer.all():
        return report
    for name, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer)):
        if chosen.any():
            columns = numpy.column_stack([rows[:, :2], numpy.ones(len(rows))]) * chosen[:, None]

            def means_of_chosen(sums, name=name):
                return {f"{name}_{key}": ratio(sums[..., i], sums[..., 2]) for i, key in enumerate(("exact", "f1"))}

            report |= bootstrap(columns, means_of_chosen, seed) | {f"{name}_total": int(chosen.sum())}
    if no_answer is not None:
        is_span = numpy.array([bool(prediction) for prediction in predictions])
        for name, scores in (("exact", best[:, 0]), ("f1", best[:, 1])):
            value, where = best_threshold(scores, has_answer, is_span, numpy.array(no_answer))
            report |= {f"best_{name}": value, f"best_{name}_thresh": where}
    return report


def best_threshold(scores: ndarray, has_answer: ndarray, is_span: ndarray, no_answer: ndarray) -> tuple[float, float]:
    """-> the highest mean score that a threshold of no_answer gives, and that threshold; each argument (N,)

    scores: of the predicted spans; is_span: whether a prediction is not "". As in SQuAD 2.0's official script: at first
    every prediction is that there is no answer; then one span after the other is taken, in the order of no_answer.
    Where the first is best, the script's threshold is 0, which fits only probabilities; here it is 0, or what is below
    all of no_answer.
    """
    order = no_answer.argsort(kind="stable")
    gains = numpy.where(has_answer, scores, -1.0 * is_span)[order]
    totals = numpy.cumsum([(~has_answer).sum(), *gains])
    best = totals.argmax()
    lowest = no_answer[order[0]]
    below_all = 0.0 if lowest > 0 else lowest - 1
    threshold = no_answer[order[best - 1]] if best else below_all
    return float(totals[best] / len(scores)), float(min(threshold, sys.float_info.max))
