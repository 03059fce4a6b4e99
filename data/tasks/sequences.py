"""Sentiment and natural language inference: rows to examples of a text, or of a pair of texts, with a label."""

import math
import os
from collections.abc import Iterator

from ..cli import DataError
from .examples import PairExample, Report, TextExample
from .rows import check_type, read_text, rows, short

TEXT_KEYS = ("text", "review", "review_body", "sentence")
SENTIMENT_KEYS, NLI_KEYS = ("label", "polarity", "stars"), ("label", "gold_label")
STARS = {"1": "1 star", "2": "2 stars", "3": "3 stars", "4": "4 stars", "5": "5 stars"}  # as in the released model
OTHER_KEYS = {  # of labels that are no single class, by Hugging Face's problem_type
    "multi_label_classification": ("labels", "label"),
    "regression": ("score", "similarity_score", "label", "stars"),  # STS-B's names first
}
PREMISE_KEYS, HYPOTHESIS_KEYS = ("premise", "sentence1"), ("hypothesis", "hypo", "sentence2")
NLI_LABELS = ("entailment", "neutral", "contradiction")  # in the order of the integer labels of the hub's XNLI


def read_sentiment(path: str, text: str, report: Report, problem_type: str) -> Iterator[TextExample]:
    """Any file with a text and a label per row, as JSON or tab-separated (Allociné, Amazon); tweets in two files."""
    stem, found, suffix = path.rpartition("_text.txt")
    if found and suffix in ("", ".gz", ".xz", ".bz2", ".zst"):
        yield from read_tweets(path, text.split("\n"), f"{stem}_labels.txt{suffix}", problem_type)
        return
    label_keys = OTHER_KEYS.get(problem_type, SENTIMENT_KEYS)
    for location, values, (text_key, label_key) in rows(path, text, TEXT_KEYS, label_keys):
        text = check_type(str, values[text_key], text_key, location)
        if problem_type in OTHER_KEYS:
            yield TextExample(text, other_label(values[label_key], label_key, location, problem_type))
            continue
        label = check_label(values[label_key], label_key, location)
        if label_key == "stars" and label not in STARS:
            raise DataError(f"{location}: stars must be 1, 2, 3, 4 or 5, not {short(label)}.")
        yield TextExample(text, STARS[label] if label_key == "stars" else label)


def read_tweets(path: str, texts: list[str], labels_path: str, problem_type: str) -> Iterator[TextExample]:
    """One text per line; their labels are the lines of another file."""
    if not os.path.exists(labels_path):
        raise DataError(f"The labels of {path} must be in {labels_path}, which does not exist.")
    labels = read_text(labels_path).split("\n")
    if len(texts) != len(labels):
        raise DataError(f"{path} has {len(texts)} lines, {labels_path} {len(labels)}; one label per text is needed.")
    for number, (text, label) in enumerate(zip(texts, labels), 1):
        place = "label", f"{labels_path} line {number}"
        is_other = problem_type in OTHER_KEYS
        yield TextExample(text, other_label(label, *place, problem_type) if is_other else check_label(label, *place))


def check_label(value, name: str, location: str) -> str:
    """The label, a string or an integer, as a string.  Raises DataError for another type and for an empty one."""
    if isinstance(value, list | float):
        cure = "For several labels a text, or a value, see --problem-type of eval finetune."
        raise DataError(f"{location}: {name} must be a string, not {type(value).__name__}. {cure}")
    label = str(value) if type(value) is int else check_type(str, value, name, location).strip()
    if not label:
        raise DataError(f"{location}: {name} is empty. Add the label or remove the example.")
    return label


def other_label(value, name: str, location: str, problem_type: str) -> tuple[str, ...] | float:
    """Several labels, as names: a list, which may be empty, or a single one; for regression, a finite number.

    Raises DataError for anything else.
    """
    if problem_type == "multi_label_classification":
        names = value if isinstance(value, list) else [value]
        return tuple(dict.fromkeys(check_label(each, name, location) for each in names))
    try:
        number = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{location}: {name} must be a finite number, not {short(str(value))}.")
    return number


# ---- natural language inference --------------------------------------------------------------------------------


def read_nli(path: str, text: str, report: Report, problem_type: str) -> Iterator[PairExample]:
    """XNLI, official or from the hub, or any file with premise, hypothesis and label; JSON or tab-separated.

    If the rows have a language, only the French ones are read.
    """
    languages, undecided, integer_labels = set(), 0, False
    label_keys = OTHER_KEYS.get(problem_type, NLI_KEYS)
    for location, values, (*text_keys, label_key) in rows(path, text, PREMISE_KEYS, HYPOTHESIS_KEYS, label_keys):
        languages.add(language := check_type(str, values.get("language", "fr"), "language", location))
        if language != "fr":
            continue
        texts = [check_type(str, values[key], key, location) for key in text_keys]
        if problem_type in OTHER_KEYS:
            yield PairExample(*texts, other_label(values[label_key], label_key, location, problem_type))
            continue
        label = values[label_key]
        if type(label) is int and 0 <= label < len(NLI_LABELS):
            label, integer_labels = NLI_LABELS[label], True
        label = check_label(label, label_key, location)
        if label == "-":
            undecided += 1
            continue
        label = "contradiction" if label == "contradictory" else label  # in XNLI's machine translations
        if label not in NLI_LABELS:
            raise DataError(f"{location}: {label_key} must be one of {', '.join(NLI_LABELS)}, not {short(label)}.")
        yield PairExample(*texts, label)
    if languages and "fr" not in languages:
        raise DataError(f"{path} has no French example (language fr), only {short(', '.join(sorted(languages)))}.")
    if integer_labels:
        report(f"{path}: integer labels are read as in the hub's XNLI: {dict(enumerate(NLI_LABELS))}.")
    if undecided:
        report(f"{path}: skipped {undecided} examples whose annotators did not agree on a label (-).")
