"""Sentiment and natural language inference: rows to examples of a text, or of a pair of texts, with a label."""

import re
from collections.abc import Iterator, Mapping

from ..cli import DataError
from .contents import Content
from .examples import PairExample, Report, TextExample
from .parts import part_of
from .rows import check_type, in_french, rows, short

NAME_KEYS = ("label_text", "label_name", "label_str")  # the label's name, in files that have it beside its number
TEXT_KEYS = ("text", "review", "review_body", "sentence", "content", "texte")
SENTIMENT_KEYS = (*NAME_KEYS, "label", "polarity", "stars", "sentiment", "labels")
STARS = {"1": "1 star", "2": "2 stars", "3": "3 stars", "4": "4 stars", "5": "5 stars"}  # as in the released model
PREMISE_KEYS, HYPOTHESIS_KEYS = (
    ("premise", "sentence1", "sentence_A"),
    ("hypothesis", "hypo", "sentence2", "sentence_B"),
)
NLI_KEYS = (*NAME_KEYS, "gold_label", "label", "entailment_label", "entailment_judgment", "labels")
NLI_LABELS = ("entailment", "neutral", "contradiction")
SPELLINGS = {name: name for name in NLI_LABELS} | {"contradictory": "contradiction"}  # of XNLI's machine translations
UNDECIDED = "-"
PART_KEYS = ("SemEval_set", "split")
NUMBER = re.compile(r"[+-]?\d+(?:\.0*)?")
NUMBERS_HINT = (
    "What it means differs between data sets. Say it, as the documentation of the data does, for example with "
    "--label-map 0=entailment 1=neutral 2=contradiction (in table2: nli:0=entailment …)."
)

LabelMap = Mapping[str, str]  # {label in the file: its new name}


def read_sentiment(path: str, content: Content, report: Report, label_map: LabelMap) -> Iterator[tuple]:
    """Any file with a text and a label per row (Allociné, Amazon) -> the part or None, example of each row."""
    found = rows(path, content, TEXT_KEYS, SENTIMENT_KEYS)
    for location, values, (text_key, label_key) in in_french(found, path, report):
        label = check_label(values[label_key], label_key, location)
        if label not in label_map and label_key.casefold() == "stars":
            if label not in STARS:
                raise DataError(f"{location}: stars must be 1, 2, 3, 4 or 5, not {short(label)}.")
            label = STARS[label]
        text = text_of(values[text_key], text_key, location)
        yield part_of_row(values, location), TextExample(text, label_map.get(label, label))


def read_tweets(path: str, texts: str, labels_path: str, labels: str, label_map: LabelMap) -> Iterator[tuple]:
    """One text per line; their labels are the lines of another file -> None, example of each."""
    texts, labels = texts.split("\n"), labels.split("\n")
    if len(texts) != len(labels):
        raise DataError(f"{path} has {len(texts)} lines, {labels_path} {len(labels)}; one label per text is needed.")
    for number, (text, label) in enumerate(zip(texts, labels), 1):
        label = check_label(label, "label", f"{labels_path} line {number}")
        yield None, TextExample(text, label_map.get(label, label))


def read_nli(path: str, content: Content, report: Report, label_map: LabelMap) -> Iterator[tuple]:
    """XNLI, SICK, or any file with premise, hypothesis and label -> the part or None, example of each row.

    Labels are names, in any number. What an integer means differs between data sets: only label_map says it.
    """
    undecided, found = 0, rows(path, content, PREMISE_KEYS, HYPOTHESIS_KEYS, NLI_KEYS)
    for location, values, (*text_keys, label_key) in in_french(found, path, report):
        label = check_label(values[label_key], label_key, location)
        if label not in label_map:
            if NUMBER.fullmatch(label):
                raise DataError(f"{location}: {label_key} is {short(label)}, a number. {NUMBERS_HINT}")
            label = SPELLINGS.get(label.casefold(), label)  # SICK's are in capitals
        if label == UNDECIDED and UNDECIDED not in label_map:
            undecided += 1
            continue
        texts = (text_of(values[key], key, location) for key in text_keys)
        yield part_of_row(values, location), PairExample(*texts, label_map.get(label, label))
    if undecided:
        report(f"{path}: skipped {undecided} examples whose annotators did not agree on a label (-).")


# ---- values of a row -------------------------------------------------------------------------------------------


def text_of(value, name: str, location: str) -> str:
    """The text; the French one of translations, {"fr": …} or {"language": […], "translation": […]} as the hub has."""
    if isinstance(value, dict):
        languages, translations = value.get("language"), value.get("translation")
        if isinstance(languages, list) and isinstance(translations, list):
            value = dict(zip(map(str, languages), translations))
        value = value.get("fr", value)
    return check_type(str, value, name, location)


def check_label(value, name: str, location: str) -> str:
    """The label, a string or an integer, as a string.  Raises DataError for another type and for an empty one."""
    value = "" if value is None else value
    label = str(value) if type(value) is int else check_type(str, value, name, location).strip()
    if not label:
        raise DataError(f"{location}: {name} is empty. Add the label or remove the example.")
    return label


def part_of_row(values: dict, location: str) -> str | None:
    """The part in a column such as SICK's SemEval_set, None without one.  Raises DataError for an unknown one."""
    key = next((key for key in PART_KEYS if key in values), None)
    if key is None:
        return None
    value = check_type(str, values[key], key, location)
    part = part_of(value, f"{location}: {key}")
    if part is None:
        reason = f"{location}: {key} must be train, dev (trial, validation) or test, not {short(value)}"
        raise DataError(f"{reason}. Rename the column if it is something else.")
    return part
