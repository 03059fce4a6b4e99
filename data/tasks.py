"""The four downstream tasks of section 4: files to examples.

The format of a file is recognised by its content; any file may be compressed (.gz, .xz, .bz2, .zst).
Lines end at \\n or \\r\\n only: U+2028, U+0085 and the no-break space are part of a text.
"""

import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .cli import DataError, OptionError
from .corpus.files import COMPRESSED, open_decompressed


class TextExample(NamedTuple):  # sentiment
    text: str
    label: str


class PairExample(NamedTuple):  # nli
    premise: str
    hypothesis: str
    label: str


class WordsExample(NamedTuple):  # ner
    words: tuple[str, ...]
    tags: tuple[str, ...]  # one per word, as in the file: "O", "B-PER", "I-PER", …


class Answer(NamedTuple):
    text: str
    start: int | None  # offset in the context; None if the file's is wrong


class QuestionExample(NamedTuple):  # qa
    id: str
    context: str
    question: str
    answers: tuple[Answer, ...]  # at least one


Example = TextExample | PairExample | WordsExample | QuestionExample
Report = Callable[[str], None]

TASKS = ("sentiment", "ner", "nli", "qa")
TEXT_KEYS = ("text", "review", "review_body", "sentence")
SENTIMENT_KEYS, NLI_KEYS = ("label", "polarity", "stars"), ("label", "gold_label")
STARS = {"1": "1 star", "2": "2 stars", "3": "3 stars", "4": "4 stars", "5": "5 stars"}  # as in the released model
PREMISE_KEYS, HYPOTHESIS_KEYS = ("premise", "sentence1"), ("hypothesis", "hypo", "sentence2")
NLI_LABELS = ("entailment", "neutral", "contradiction")  # in the order of the integer labels of the hub's XNLI
WORDS_KEYS, TAGS_KEYS = ("tokens", "words"), ("ner_tags", "tags")
TAG = re.compile(r"O|[BI]-\S+")
JSON_OBJECT = re.compile(r'\s*(\[\s*)?\{\s*"[^"]*"\s*:')  # a [ or { alone may be the first word of a sentence


def read_task(task: str, paths: Sequence[str | Path], report: Report) -> list[Example]:
    """The examples of all files, in order.

    report: called with a sentence for everything that is skipped or assumed.
    Raises OptionError for an unknown task, DataError (with file and line) for a file that cannot be used.
    """
    if task not in TASKS:
        raise OptionError(f"There is no task {task}. Choose one of {', '.join(TASKS)}.")
    if not paths:
        raise DataError(f"Give at least one file of {task} examples.")
    readers = {"sentiment": read_sentiment, "ner": read_ner, "nli": read_nli, "qa": read_qa}
    examples = []
    for path in map(str, paths):
        found = list(readers[task](path, read_text(path), report))
        if not found:
            raise DataError(f"{path} contains no {task} example.")
        examples += found
    return examples


def labels_of(examples: Sequence[TextExample | PairExample | WordsExample]) -> list[str]:
    """The names of the labels, sorted; tags with "O" first."""
    if examples and isinstance(examples[0], WordsExample):
        return sorted({tag for example in examples for tag in example.tags}, key=lambda tag: (tag != "O", tag))
    return sorted({example.label for example in examples})


# ---- files to rows ---------------------------------------------------------------------------------------------


def read_text(path: str) -> str:
    """The text of a file, without byte order mark and final line end, \\r\\n replaced by \\n.  Raises DataError."""
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder. Give a file in it.")
    if not os.path.exists(path):
        raise DataError(f"There is no file {path}. Check the path.")
    try:
        with open_decompressed(path) as file:
            content = file.read().replace(b"\r\n", b"\n")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    try:
        text = content.decode().removeprefix("\ufeff").removesuffix("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line} is not UTF-8. Convert the file to UTF-8.") from None
    if not text.strip():
        raise DataError(f"{path} is empty.")
    return text


def rows(path: str, text: str, *wanted: tuple[str, ...]) -> Iterator[tuple[str, dict, list[str]]]:
    """The rows of a file of JSON objects, or of tab-separated lines below a header -> location, values, keys.

    wanted: for each value needed, the keys it may have, in order of preference; keys: the one found for each.
    location: file and line, for error messages.
    Raises DataError for a missing key, or a line with another number of columns than the header.
    """
    if text.lstrip().startswith(("{", "[")):
        for location, values in json_objects(path, text):
            yield location, values, [find_key(names, values, location) for names in wanted]
        return
    header, *lines = (line.split("\t") for line in text.split("\n"))  # no quoting
    header = [name.strip() for name in header]
    keys = [find_key(names, header, f"{path} line 1 (the tab-separated header)") for names in wanted]
    for number, columns in enumerate(lines, 2):
        if len(columns) == len(header):
            yield f"{path} line {number}", dict(zip(header, columns)), keys
        elif columns != [""]:
            raise DataError(f"{path} line {number} has {len(columns)} columns, but the header has {len(header)}.")


def find_key(names: tuple[str, ...], keys: dict | list[str], location: str) -> str:
    """The first of the names that is among the keys.  Raises DataError if none is."""
    if not any(name in keys for name in names):
        raise DataError(f"{location} has no {' or '.join(names)}. It has {short(', '.join(keys), 200)}.")
    return next(name for name in names if name in keys)


def json_objects(path: str, text: str) -> Iterator[tuple[str, dict]]:
    """The objects of JSON lines, of an array, or a single one over several lines -> location, values of each."""
    first = text.strip().partition("\n")[0].rstrip()
    if first.startswith("[") or first.endswith(("{", "[", ",", ":")):
        whole = parse(text, path, 1)
        values = whole if isinstance(whole, list) else [whole]
        found = ((f"{path}, object {number}", value) for number, value in enumerate(values, 1))
    else:
        lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        found = ((f"{path} line {number}", parse(line, path, number)) for number, line in lines)
    for location, value in found:
        yield location, check_type(dict, value, "the value", location)


def parse(text: str, path: str, line: int):
    """The value of JSON that begins in this line of the file.  Raises DataError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path} line {line + error.lineno - 1}, character {error.colno},"
        raise DataError(f"{where} is not JSON: {error.msg}. Correct or remove the line.") from None
    except (RecursionError, ValueError):  # ValueError: an integer with too many digits for Python
        reason = "the JSON that begins here is nested too deeply, or has a number with thousands of digits"
        raise DataError(f"{path} line {line}: {reason}. Remove it.") from None


def check_type(wanted: type, value, name: str, location: str):
    """The value, a string without the lone surrogates that JSON allows.  Raises DataError if it has another type."""
    if not isinstance(value, wanted):
        kinds = {str: "a string", list: "a list", dict: "an object"}
        raise DataError(f"{location}: {name} must be {kinds[wanted]}, not {type(value).__name__}.")
    return value.encode("utf-8", "replace").decode() if wanted is str else value


def get_value(wanted: type, values: dict, names: tuple[str, ...], location: str):
    """The value of the first key that exists.  Raises DataError if none does, or if it has another type."""
    key = find_key(names, values, location)
    return check_type(wanted, values[key], key, location)


def short(text: str, length: int = 60) -> str:  # for error messages; lone surrogates cannot be printed
    return (text if len(text) <= length else text[: length - 1] + "…").encode("utf-8", "replace").decode()


# ---- sentiment -------------------------------------------------------------------------------------------------


def read_sentiment(path: str, text: str, report: Report) -> Iterator[TextExample]:
    """Any file with a text and a label per row, as JSON or tab-separated (Allociné, Amazon); tweets in two files."""
    stem, found, suffix = path.rpartition("_text.txt")
    if found and suffix in ("", *COMPRESSED):
        yield from read_tweets(path, text.split("\n"), f"{stem}_labels.txt{suffix}")
        return
    for location, values, (text_key, label_key) in rows(path, text, TEXT_KEYS, SENTIMENT_KEYS):
        label = check_label(values[label_key], label_key, location)
        if label_key == "stars" and label not in STARS:
            raise DataError(f"{location}: stars must be 1, 2, 3, 4 or 5, not {short(label)}.")
        text = check_type(str, values[text_key], text_key, location)
        yield TextExample(text, STARS[label] if label_key == "stars" else label)


def read_tweets(path: str, texts: list[str], labels_path: str) -> Iterator[TextExample]:
    """One text per line; their labels are the lines of another file."""
    if not os.path.exists(labels_path):
        raise DataError(f"The labels of {path} must be in {labels_path}, which does not exist.")
    labels = read_text(labels_path).split("\n")
    if len(texts) != len(labels):
        raise DataError(f"{path} has {len(texts)} lines, {labels_path} {len(labels)}; one label per text is needed.")
    for number, (text, label) in enumerate(zip(texts, labels), 1):
        yield TextExample(text, check_label(label, "label", f"{labels_path} line {number}"))


def check_label(value, name: str, location: str) -> str:
    """The label, a string or an integer, as a string.  Raises DataError for another type and for an empty one."""
    label = str(value) if type(value) is int else check_type(str, value, name, location).strip()
    if not label:
        raise DataError(f"{location}: {name} is empty. Add the label or remove the example.")
    return label


# ---- natural language inference --------------------------------------------------------------------------------


def read_nli(path: str, text: str, report: Report) -> Iterator[PairExample]:
    """XNLI, official or from the hub, or any file with premise, hypothesis and label; JSON or tab-separated.

    If the rows have a language, only the French ones are read.
    """
    languages, undecided, integer_labels = set(), 0, False
    for location, values, (*text_keys, label_key) in rows(path, text, PREMISE_KEYS, HYPOTHESIS_KEYS, NLI_KEYS):
        languages.add(language := check_type(str, values.get("language", "fr"), "language", location))
        if language != "fr":
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
        yield PairExample(*(check_type(str, values[key], key, location) for key in text_keys), label)
    if languages and "fr" not in languages:
        raise DataError(f"{path} has no French example (language fr), only {short(', '.join(sorted(languages)))}.")
    if integer_labels:
        report(f"{path}: integer labels are read as in the hub's XNLI: {dict(enumerate(NLI_LABELS))}.")
    if undecided:
        report(f"{path}: skipped {undecided} examples whose annotators did not agree on a label (-).")


# ---- named entities --------------------------------------------------------------------------------------------


def read_ner(path: str, text: str, report: Report) -> Iterator[WordsExample]:
    """Files with one word per line (WikiNEuRal, CoNLL), WikiNER's aij format, or JSON."""
    if JSON_OBJECT.match(text):
        return read_json_ner(path, text)
    lines = text.split("\n")
    first = next((line for line in lines if line.strip() and not is_comment(line)), "")
    if "\t" not in first and "|" in first.rstrip(" ").rpartition(" ")[2]:
        return read_wikiner(path, lines)
    return read_columns(path, lines, first)


def is_comment(line: str) -> bool:
    return (line.startswith("# ") and "\t" not in line) or line.startswith("-DOCSTART-")


def ner_example(found: list[tuple[str, str, str]]) -> WordsExample:
    """From (word, tag, location) of each word.  Raises DataError for an empty word or an invalid tag."""
    for word, tag, location in found:
        if not word.strip():
            raise DataError(f"{location} has an empty word with the tag {short(tag)}. Add the word or remove the tag.")
        if not TAG.fullmatch(tag):
            raise DataError(f"{location} has the tag {short(repr(tag))}. Tags must be O, B-TYPE (B-PER, …) or I-TYPE.")
    return WordsExample(tuple(word for word, _, _ in found), tuple(tag for _, tag, _ in found))


def read_json_ner(path: str, text: str) -> Iterator[WordsExample]:
    for location, values in json_objects(path, text):
        words, tags = get_value(list, values, WORDS_KEYS, location), get_value(list, values, TAGS_KEYS, location)
        if len(words) != len(tags):
            raise DataError(f"{location} has {len(words)} words and {len(tags)} tags; one tag per word is needed.")
        if any(type(tag) is int for tag in tags):
            raise DataError(f"{location} has integer tags. Replace them by their names (O, B-PER, …).")
        if words:
            words, tags = ([check_type(str, x, "a word or tag", location) for x in found] for found in (words, tags))
            yield ner_example([(word, tag, location) for word, tag in zip(words, tags)])


def read_wikiner(path: str, lines: list[str]) -> Iterator[WordsExample]:
    """One sentence per line, of word|part of speech|tag or word|tag; a word may contain |."""
    sentences = [[] if is_comment(line) else split_columns(line, tabs=False) for line in lines]
    bars = [item.count("|") for items in sentences for item in items]
    parts = 3 if 2 * sum(count >= 2 for count in bars) > len(bars) else 2  # as the majority, in spite of errors
    for number, items in enumerate(sentences, 1):
        location, found = f"{path} line {number}", [item.rsplit("|", parts - 1) for item in items]
        for item, split in zip(items, found):
            if len(split) < parts:
                raise DataError(f"{location}: {short(item)} must have {parts} parts separated by |.")
        if found:
            yield ner_example([(split[0], split[-1], location) for split in found])


def read_columns(path: str, lines: list[str], first: str) -> Iterator[WordsExample]:
    """One word per line, blank lines between sentences: the word is the first column, the tag the last.

    If the first column is the word's index in the sentence, the word is the second.
    first: the first line with a word, which determines the separator and the number of columns.
    """
    tabs = "\t" in first
    width = len(split_columns(first, tabs))
    sentences = [[]]
    for number, line in enumerate(lines, 1):
        columns = split_columns(line, tabs)
        if not line.strip() or "-DOCSTART-" in columns[:2]:
            sentences.append([])
        # a space-separated line that begins with the word # is no comment if it has a word's columns
        elif not is_comment(line) or (not tabs and len(columns) == width and TAG.fullmatch(columns[-1])):
            sentences[-1].append((columns, f"{path} line {number}"))
    sentences = [sentence for sentence in sentences if sentence]
    numbers = [columns[0] in (str(i), str(i + 1)) for words in sentences for i, (columns, _) in enumerate(words)]
    indexed = width > 2 and 2 * sum(numbers) > len(numbers)  # as the majority, in spite of errors
    for sentence in sentences:
        for columns, location in sentence:
            if len(columns) != width or width < 2:
                raise DataError(f"{location} has {len(columns)} columns, not {max(width, 2)} (word first, tag last).")
            if indexed and not columns[0].isdecimal():
                raise DataError(f"{location} must begin with the index of its word, not with {short(columns[0])}.")
        yield ner_example([(columns[int(indexed)], columns[-1], location) for columns, location in sentence])


def split_columns(line: str, tabs: bool) -> list[str]:  # a no-break space is part of a word
    return line.split("\t") if tabs else [column for column in line.split(" ") if column]


# ---- question answering ----------------------------------------------------------------------------------------


def read_qa(path: str, text: str, report: Report) -> Iterator[QuestionExample]:
    """SQuAD's JSON (FQuAD, PIAF), or JSON lines with one question each."""
    unanswered = 0
    for number, (location, context, values) in enumerate(read_questions(path, text), 1):
        name, location = values.get("id"), f"{location}, question"
        name = str(name) if type(name) is int else check_type(str, name or str(number), "id", f"{location} {number}")
        location = f"{location} {short(name)}"
        question = get_value(str, values, ("question",), location)
        answers = [] if values.get("is_impossible") is True else read_answers(values, context, location, report)
        if answers:
            yield QuestionExample(name, context, question, tuple(answers))
        else:
            unanswered += 1
    if unanswered:
        report(f"{path}: skipped {unanswered} questions without an answer.")


def read_questions(path: str, text: str) -> Iterator[tuple[str, str, dict]]:
    """-> location, context and values of each question.  Raises DataError."""
    for location, values in json_objects(path, text):
        if "data" not in values:
            yield location, get_value(str, values, ("context",), location), values
            continue
        for article_location, article in objects_in(values, "data", path, "article"):
            for paragraph_location, paragraph in objects_in(article, "paragraphs", article_location, "paragraph"):
                context = get_value(str, paragraph, ("context",), paragraph_location)
                for _, question in objects_in(paragraph, "qas", paragraph_location, "question"):
                    yield path, context, question


def objects_in(values: dict, key: str, location: str, name: str) -> Iterator[tuple[str, dict]]:
    """The objects of the list under a key -> location and values of each.  Raises DataError."""
    for number, value in enumerate(get_value(list, values, (key,), location), 1):
        yield f"{location}, {name} {number}", check_type(dict, value, f"{name} {number}", location)


def read_answers(values: dict, context: str, location: str, report: Report) -> list[Answer]:
    """From a list of objects, or an object of two lists; empty answers are skipped.  Raises DataError."""
    found = values.get("answers")
    if isinstance(found, dict):
        texts, starts = (get_value(list, found, (key,), location) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(f"{location} has {len(texts)} answers and {len(starts)} offsets; one per answer is needed.")
    else:
        found = get_value(list, values, ("answers",), location)
        objects = [check_type(dict, answer, "an answer", location) for answer in found]
        texts = [answer[find_key(("text",), answer, location)] for answer in objects]
        starts = [answer.get("answer_start") for answer in objects]
    answers = []
    for text, start in zip(texts, starts):
        text = check_type(str, text, "an answer", location)
        if not text.strip():
            continue
        if type(start) is not int or start < 0 or not context.startswith(text, start):
            actual = short(context[start : start + len(text)]) if type(start) is int and start >= 0 else ""
            offset = short(str(start)) if isinstance(start, int | float) else type(start).__name__
            reason = f"the answer «{short(text)}» is not at answer_start {offset}, where the context has «{actual}»"
            report(f"{location}: {reason}. It is used for scoring only.")
            start = None
        answers.append(Answer(text, start))
    return answers
