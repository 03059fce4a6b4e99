"""Section 4: what the answers to questions are worth, by SQuAD's rules in English and in French. Shares, 0 to 1."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy

from data import DataError

from .metrics import bootstrap

Language = Literal["fr", "en"]
ENGLISH_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
FRENCH_ARTICLES = re.compile(r"\b(?:le|la|les|du|des|au|aux|un|une)\b")
ELIDED_ARTICLE = re.compile(r"\bl['’]")


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
