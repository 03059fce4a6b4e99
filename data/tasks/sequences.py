"""Sentiment and natural language inference: rows to examples of a text, or of a pair of texts, with a label."""

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..cli import DataError
from .contents import Content
from .examples import Label, PairExample, Report, TextExample
from .parts import part_of_row
from .rows import check_type, in_french, rows, short

NAME_KEYS = ("label_text", "label_name", "label_str")  # the label's name, in files that have it beside its number
TEXT_KEYS = ("text", "review", "review_body", "sentence", "content", "texte")
SENTIMENT_KEYS = (*NAME_KEYS, "label", "polarity", "stars", "sentiment", "labels")
STARS = {"1": "1 star", "2": "2 stars", "3": "3 stars", "4": "4 stars", "5": "5 stars"}  # as in the released model
PREMISE_KEYS = ("premise", "sentence1", "sentence_A", "premises")
HYPOTHESIS_KEYS = ("hypothesis", "hypo", "sentence2", "sentence_B")
NLI_KEYS = (*NAME_KEYS, "gold_label", "label", "entailment_label", "entailment_judgment", "labels")
NLI_LABELS = ("entailment", "neutral", "contradiction")
SPELLINGS = {name: name for name in NLI_LABELS} | {"contradictory": "contradiction"}  # of XNLI's machine translations
UNDECIDED = "-"
SINGLE_LABEL = "single_label_classification"
OTHER_KEYS = {  # where a label is not one class, by Hugging Face's problem_type
    "multi_label_classification": ("labels", "label"),
    "regression": ("score", "similarity_score", "relatedness_score", "label", "stars"),  # STS-B's, SICK's, others
}
NUMBER = re.compile(r"[+-]?\d+(?:\.0*)?")
LIST_AS_TEXT = re.compile(r"\s*\[|.*[,;|]", re.DOTALL)
NUMBERS_HINT = (
    "What it means differs between data sets. Say it, as the documentation of the data does, for example with "
    "--label-map 0=entailment 1=neutral 2=contradiction (in table2: nli:0=entailment …)."
)


class Labels(NamedTuple):
    """How labels are read: what they are, by Hugging Face's problem_type, and {label in the file: its new name}."""

    problem_type: str = SINGLE_LABEL
    names: Mapping[str, str] = MappingProxyType({})


def read_sentiment(path: str, content: Content, report: Report, labels: Labels) -> Iterator[tuple]:
    """Any file with a text and a label per row (Allociné, Amazon) -> the part or None, example of each row."""
    found = rows(path, content, TEXT_KEYS, OTHER_KEYS.get(labels.problem_type, SENTIMENT_KEYS))
    for location, values, (text_key, label_key) in in_french(found, path, report):
        label = text_label(values[label_key], label_key, location, labels)
        yield part_of_row(values, location), TextExample(text_of(values[text_key], text_key, location), label)


def read_tweets(path: str, texts: str, labels_path: str, labels_text: str, labels: Labels) -> Iterator[tuple]:
    """One text per line; their labels are the lines of another file -> None, example of each."""
    texts, found = texts.split("\n"), labels_text.split("\n")
    if len(texts) != len(found):
        raise DataError(f"{path} has {len(texts)} lines, {labels_path} {len(found)}; one label per text is needed.")
    for number, (text, label) in enumerate(zip(texts, found), 1):
        yield None, TextExample(text, text_label(label, "label", f"{labels_path} line {number}", labels))


def read_nli(path: str, content: Content, report: Report, labels: Labels) -> Iterator[tuple]:
    """XNLI, SICK, or any file with premise, hypothesis and label -> the part or None, example of each row."""
    undecided, label_keys = 0, OTHER_KEYS.get(labels.problem_type, NLI_KEYS)
    found = rows(path, content, PREMISE_KEYS, HYPOTHESIS_KEYS, label_keys)
    for location, values, (*text_keys, label_key) in in_french(found, path, report):
        label = pair_label(values[label_key], label_key, location, labels)
        if label is None:
            undecided += 1
            continue
        texts = (text_of(values[key], key, location) for key in text_keys)
        yield part_of_row(values, location), PairExample(*texts, label)
    if undecided:
        report(f"{path}: skipped {undecided} examples whose annotators did not agree on a label (-).")


# ---- labels ----------------------------------------------------------------------------------------------------


def text_label(value, key: str, location: str, labels: Labels) -> Label:
    """The label of a text.  Raises DataError."""
    if labels.problem_type in OTHER_KEYS:
        return other_label(value, key, location, labels)
    label = check_label(value, key, location)
    if label not in labels.names and key.casefold() == "stars":
        if label not in STARS:
            raise DataError(f"{location}: stars must be 1, 2, 3, 4 or 5, not {short(label)}.")
        label = STARS[label]
    return labels.names.get(label, label)


def pair_label(value, key: str, location: str, labels: Labels) -> Label | None:
    """The label of a pair: any name, None if undecided.

    What an integer means differs between data sets: only labels.names says it.  Raises DataError.
    """
    if labels.problem_type in OTHER_KEYS:
        return other_label(value, key, location, labels)
    label = check_label(value, key, location)
    if label not in labels.names:
        if NUMBER.fullmatch(label):
            raise DataError(f"{location}: {key} is {short(label)}, a number. {NUMBERS_HINT}")
        label = SPELLINGS.get(label.casefold(), label)  # SICK's are in capitals
    label = labels.names.get(label, label)
    return None if label == UNDECIDED else label


def check_label(value, name: str, location: str) -> str:
    """The label, a string or an integer, as a string.  Raises DataError for another type and for an empty one.

    A column of integers with gaps is 1.0 and NaN in pandas.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value != value:
        value = ""
    if isinstance(value, list | float):
        cure = "For several labels a text, or a value, see --problem-type of eval finetune."
        raise DataError(f"{location}: {name} must be a string, not {type(value).__name__}. {cure}")
    label = str(value) if type(value) is int else check_type(str, value, name, location).strip()
    if not label:
        raise DataError(f"{location}: {name} is empty. Add the label or remove the example.")
    return label


def other_label(value, name: str, location: str, labels: Labels) -> tuple[str, ...] | float:
    """Several labels, as names: a list, which may be empty, or a single one; for regression, a finite number.

    Raises DataError for anything else.
    """
    if labels.problem_type == "multi_label_classification":
        return several_labels(value, name, location, labels)
    try:
        number = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{location}: {name} must be a finite number, not {short(str(value)) or 'empty'}.")
    return number


def several_labels(value, name: str, location: str, labels: Labels) -> tuple[str, ...]:
    """The names in a list, or a single name.  Raises DataError for lists of 0 and 1, and for a list written as text."""
    found, cure = [value], 'Write JSON lines with a list of names: ["joie", "peur"]'
    if isinstance(value, list):
        found, kinds = value, {type(each) for each in value}
        if float in kinds or (kinds == {int} and len(set(value)) < len(value)):
            raise DataError(f"{location}: {name} has a number for each class, whose names are not known. {cure}.")
    elif isinstance(value, str) and value not in labels.names and LIST_AS_TEXT.match(value):
        reason = f"{location}: {name} is {short(value)}, which may be several labels in one text"
        raise DataError(f'{reason}. {cure}, or ["art, culture"] for a single one.')
    found = [check_label(each, name, location) for each in found]
    return tuple(dict.fromkeys(labels.names.get(label, label) for label in found))


# ---- other values of a row -------------------------------------------------------------------------------------


def text_of(value, name: str, location: str) -> str:
    """The text; the French one of translations, {"fr": …} or {"language": […], "translation": […]} as the hub has."""
    if isinstance(value, dict):
        languages, translations = value.get("language"), value.get("translation")
        if isinstance(languages, list) and isinstance(translations, list):
            value = dict(zip(map(str, languages), translations))
        value = value.get("fr", value)
    return check_type(str, value, name, location)
