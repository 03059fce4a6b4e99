"""The four downstream data sets of section 4: files to examples.

Which form a file has is told by what stands in it; every file may be packed (.gz, .xz, .bz2, .zst).
Lines end at \\n or \\r\\n and nowhere else: U+2028, U+0085 and the no-break space are part of a text.
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
from .corpus.files import PACKED, open_packed


class TextExample(NamedTuple):  # sentiment
    text: str
    label: str


class PairExample(NamedTuple):  # nli
    premise: str
    hypothesis: str
    label: str


class WordsExample(NamedTuple):  # ner
    words: tuple[str, ...]
    tags: tuple[str, ...]  # a tag a word, "O", "B-PER", "I-PER", … as in the file


class Answer(NamedTuple):
    text: str
    start: int | None  # None where the file's offset is wrong


class QuestionExample(NamedTuple):  # qa
    id: str
    context: str
    question: str
    answers: tuple[Answer, ...]  # at least one


Example = TextExample | PairExample | WordsExample | QuestionExample
Report = Callable[[str], None]

TASKS = ("sentiment", "ner", "nli", "qa")
TEXT = ("text", "review", "review_body", "sentence")
SENTIMENT = ("label", "polarity", "stars")
STARS = {"1": "1 star", "2": "2 stars", "3": "3 stars", "4": "4 stars", "5": "5 stars"}  # as the released model
PREMISE, HYPOTHESIS, RELATION = ("premise", "sentence1"), ("hypothesis", "hypo", "sentence2"), ("label", "gold_label")
RELATIONS = ("entailment", "neutral", "contradiction")  # in the order of the hub's integers
WORDS, TAGS = ("tokens", "words"), ("ner_tags", "tags")
TAG = re.compile(r"O|[BI]-\S+")
JSON_OBJECT = re.compile(r'\s*(\[\s*)?\{\s*"[^"]*"\s*:')  # a bracket alone can be the first word of a sentence


def read_task(task: str, paths: Sequence[str | Path], report: Report) -> list[Example]:
    """The examples of all files, one file after the other.

    report: gets a sentence for each thing that is odd and no error.
    Raises OptionError for a task that is none, DataError (with file and line) for a file that cannot be used.
    """
    if task not in TASKS:
        raise OptionError(f"There is no task {task}: it is one of {', '.join(TASKS)}.")
    if not paths:
        raise DataError(f"Name at least one file of {task} examples.")
    readers = {"sentiment": read_sentiment, "ner": read_ner, "nli": read_nli, "qa": read_qa}
    examples = []
    for path in map(str, paths):
        found = list(readers[task](path, read(path), report))
        if not found:
            raise DataError(f"{path} has no example of {task} in it.")
        examples += found
    return examples


def labels_of(examples: Sequence[TextExample | PairExample | WordsExample]) -> list[str]:
    """The names of the labels, sorted; of tags, "O" first."""
    if examples and isinstance(examples[0], WordsExample):
        return sorted({tag for example in examples for tag in example.tags}, key=lambda tag: (tag != "O", tag))
    return sorted({example.label for example in examples})


# ---- files to rows ---------------------------------------------------------------------------------------------


def read(path: str) -> str:
    """A file's text, without byte order mark and last line end, with \\n for \\r\\n.  Raises DataError."""
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder: name the file in it.")
    if not os.path.exists(path):
        raise DataError(f"There is no file {path}. Check the path.")
    try:
        with open_packed(path) as file:
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
    """JSON objects, or tab-separated lines below a header -> where it stands, its values, the name of each one wanted.

    wanted: the names that each value may have, the first one first.
    Raises DataError where one is missing, or a line has not as many columns as the header.
    """
    if text.lstrip().startswith(("{", "[")):
        for place, values in json_objects(path, text):
            yield place, values, [pick(names, values, place) for names in wanted]
        return
    header, *lines = (line.split("\t") for line in text.split("\n"))  # no quoting: a " is a character like any other
    header = [name.strip() for name in header]
    keys = [pick(names, header, f"{path} line 1 (the header, with tabs between the names)") for names in wanted]
    for number, columns in enumerate(lines, 2):
        if len(columns) == len(header):
            yield f"{path} line {number}", dict(zip(header, columns)), keys
        elif columns != [""]:
            raise DataError(f"{path} line {number} has {len(columns)} columns, and the header {len(header)}.")


def pick(names: tuple[str, ...], there: dict | list[str], place: str) -> str:
    """The first of the names that is there.  Raises DataError."""
    if found := [name for name in names if name in there]:
        return found[0]
    raise DataError(f"{place} has no {' or '.join(names)}. It has {short(', '.join(there), 200)}.")


def json_objects(path: str, text: str) -> Iterator[tuple[str, dict]]:
    """One object a line, or an array of them, or one over several lines -> where it stands, its values."""
    first = text.strip().partition("\n")[0].rstrip()
    if first.startswith("[") or first.endswith(("{", "[", ",", ":")):
        whole = parse(text, path, 1)
        values = whole if isinstance(whole, list) else [whole]
        found = ((f"{path}, object {number}", value) for number, value in enumerate(values, 1))
    else:
        lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        found = ((f"{path} line {number}", parse(line, path, number)) for number, line in lines)
    for place, value in found:
        yield place, of_type(dict, value, "this", place)


def parse(text: str, path: str, line: int):
    """JSON that begins in this line of the file.  Raises DataError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path} line {line + error.lineno - 1}, character {error.colno},"
        raise DataError(f"{where} is no JSON: {error.msg}. Repair the line or leave it out.") from None
    except (RecursionError, ValueError):  # ValueError: an integer of more digits than Python reads
        what = "the JSON that begins here is nested too deeply, or has a number of thousands of digits"
        raise DataError(f"{path} line {line}: {what}. Leave it out.") from None


def of_type(wanted: type, value, name: str, place: str):
    """The value; a text without lone surrogates, which JSON can spell and no tokenizer takes.  Raises DataError."""
    if not isinstance(value, wanted):
        kinds = {str: "a text", list: "a list", dict: "an object {…}"}
        raise DataError(f"{place}: {name} should be {kinds[wanted]}, and is {type(value).__name__}.")
    return value.encode("utf-8", "replace").decode() if wanted is str else value


def take(wanted: type, values: dict, names: tuple[str, ...], place: str):
    """The value with the first of the names that is there.  Raises DataError."""
    name = pick(names, values, place)
    return of_type(wanted, values[name], name, place)


def short(text: str, length: int = 60) -> str:  # for a message, which lone surrogates would break
    return (text if len(text) <= length else text[: length - 1] + "…").encode("utf-8", "replace").decode()


# ---- sentiment -------------------------------------------------------------------------------------------------


def read_sentiment(path: str, text: str, report: Report) -> Iterator[TextExample]:
    """Allociné, Amazon reviews, or anything with a text and a label, as JSON or tab-separated; tweets in two files."""
    stem, found, packing = path.rpartition("_text.txt")
    if found and packing in ("", *PACKED):
        yield from read_tweets(path, text.split("\n"), f"{stem}_labels.txt{packing}")
        return
    for place, values, (key, label) in rows(path, text, TEXT, SENTIMENT):
        name = label_name(values[label], label, place)
        if label == "stars" and name not in STARS:
            raise DataError(f"{place}: stars is {short(name)}, and should be 1, 2, 3, 4 or 5.")
        yield TextExample(of_type(str, values[key], key, place), STARS[name] if label == "stars" else name)


def read_tweets(path: str, texts: list[str], labels_path: str) -> Iterator[TextExample]:
    """A text a line, and in the file beside it the label of each."""
    if not os.path.exists(labels_path):
        raise DataError(f"{path} has its labels in {labels_path}, and that file is not there.")
    labels = read(labels_path).split("\n")
    if len(texts) != len(labels):
        raise DataError(f"{path} has {len(texts)} lines and {labels_path} {len(labels)}: it must be a label a text.")
    for number, (text, label) in enumerate(zip(texts, labels), 1):
        yield TextExample(text, label_name(label, "label", f"{labels_path} line {number}"))


def label_name(value, name: str, place: str) -> str:
    """A label that is a text or an integer.  Raises DataError, also if it is blank."""
    label = str(value) if type(value) is int else of_type(str, value, name, place).strip()
    if not label:
        raise DataError(f"{place}: {name} is empty. Give the example a label or leave it out.")
    return label


# ---- natural language inference --------------------------------------------------------------------------------


def read_nli(path: str, text: str, report: Report) -> Iterator[PairExample]:
    """XNLI in its official forms, that of the hub, or anything with premise, hypothesis, label; JSON or tab-separated.

    Where the rows say their language, the French ones.
    """
    languages, undecided, by_number = set(), 0, False
    for place, values, (premise, hypothesis, key) in rows(path, text, PREMISE, HYPOTHESIS, RELATION):
        languages.add(language := of_type(str, values.get("language", "fr"), "language", place))
        if language != "fr":
            continue
        label = values[key]
        if type(label) is int and 0 <= label < len(RELATIONS):
            label, by_number = RELATIONS[label], True
        label = label_name(label, key, place)
        if label == "-":
            undecided += 1
            continue
        label = "contradiction" if label == "contradictory" else label  # as XNLI's machine translations have it
        if label not in RELATIONS:
            raise DataError(f"{place}: {key} is {short(label)}, and should be one of {', '.join(RELATIONS)}.")
        yield PairExample(*(of_type(str, values[name], name, place) for name in (premise, hypothesis)), label)
    if languages and "fr" not in languages:
        raise DataError(f"{path} has no French example (language fr), but {short(', '.join(sorted(languages)))}.")
    if by_number:
        report(f"{path}: labels that are numbers are read as the hub's XNLI has them: {dict(enumerate(RELATIONS))}.")
    if undecided:
        report(f"{path}: left out {undecided} examples on whose label the annotators did not agree (-).")


# ---- named entities --------------------------------------------------------------------------------------------


def read_ner(path: str, text: str, report: Report) -> Iterator[WordsExample]:
    """WikiNEuRal and other files of a word a line, WikiNER's aij, JSON lines."""
    if JSON_OBJECT.match(text):
        return json_words(path, text)
    lines = text.split("\n")
    first = next((line for line in lines if line.strip() and not has_no_word(line)), "")
    if "\t" not in first and "|" in first.rstrip(" ").rpartition(" ")[2]:
        return wikiner_words(path, lines)
    return column_words(path, lines, first)


def has_no_word(line: str) -> bool:
    return (line.startswith("# ") and "\t" not in line) or line.startswith("-DOCSTART-")


def words_example(found: list[tuple[str, str, str]]) -> WordsExample:
    """Word, tag and place of each -> example.  Raises DataError."""
    for word, tag, place in found:
        if not word.strip():
            raise DataError(f"{place} has an empty word. Give the tag {short(tag)} a word or leave it out.")
        if not TAG.fullmatch(tag):
            raise DataError(f"{place} has the tag {short(repr(tag))}: tags are O, B-TYPE (B-PER, …) and I-TYPE.")
    return WordsExample(tuple(word for word, _, _ in found), tuple(tag for _, tag, _ in found))


def json_words(path: str, text: str) -> Iterator[WordsExample]:
    for place, values in json_objects(path, text):
        words, tags = take(list, values, WORDS, place), take(list, values, TAGS, place)
        if len(words) != len(tags):
            raise DataError(f"{place} has {len(words)} words and {len(tags)} tags: it must be a tag a word.")
        if any(type(tag) is int for tag in tags):
            raise DataError(f"{place} has numbers for tags. Write their names (O, B-PER, …) into the file.")
        if words:
            words, tags = ([of_type(str, x, "a word or tag", place) for x in found] for found in (words, tags))
            yield words_example([(word, tag, place) for word, tag in zip(words, tags)])


def wikiner_words(path: str, lines: list[str]) -> Iterator[WordsExample]:
    """A sentence a line, of word|part of speech|tag, or word|tag; a word may have a | in it."""
    sentences = [[] if has_no_word(line) else columns_of(line, tabs=False) for line in lines]
    bars = [item.count("|") for items in sentences for item in items]
    parts = 3 if 2 * sum(count >= 2 for count in bars) > len(bars) else 2  # what most words have
    for number, items in enumerate(sentences, 1):
        place, found = f"{path} line {number}", [item.rsplit("|", parts - 1) for item in items]
        for item, split in zip(items, found):
            if len(split) < parts:
                raise DataError(f"{place}: {short(item)} should have {parts} parts with | between them.")
        if found:
            yield words_example([(split[0], split[-1], place) for split in found])


def column_words(path: str, lines: list[str], first: str) -> Iterator[WordsExample]:
    """A word a line, blank lines between sentences: the word is the first column, the tag the last.

    Where the first column counts the words, the word is the second.
    first: the first line with a word: it tells what is between the columns, and how many there are.
    """
    tabs = "\t" in first
    width = len(columns_of(first, tabs))
    sentences = [[]]
    for number, line in enumerate(lines, 1):
        columns = columns_of(line, tabs)
        if not line.strip() or "-DOCSTART-" in columns[:2]:
            sentences.append([])
        # between spaces, the word # is no comment: it has the columns of any other
        elif not has_no_word(line) or (not tabs and len(columns) == width and TAG.fullmatch(columns[-1])):
            sentences[-1].append((columns, f"{path} line {number}"))
    sentences = [sentence for sentence in sentences if sentence]
    numbers = [columns[0] in (str(i), str(i + 1)) for words in sentences for i, (columns, _) in enumerate(words)]
    counted = width > 2 and 2 * sum(numbers) > len(numbers)  # most, so that a fault does not decide
    for sentence in sentences:
        for columns, place in sentence:
            if len(columns) != width or width < 2:
                raise DataError(f"{place} has {len(columns)} columns, not {max(width, 2)}: a word first, its tag last.")
            if counted and not columns[0].isdecimal():
                raise DataError(f"{place} begins with {short(columns[0])}, and should with the number of its word.")
        yield words_example([(columns[int(counted)], columns[-1], place) for columns, place in sentence])


def columns_of(line: str, tabs: bool) -> list[str]:  # a no-break space is part of a word
    return line.split("\t") if tabs else [column for column in line.split(" ") if column]


# ---- questions -------------------------------------------------------------------------------------------------


def read_qa(path: str, text: str, report: Report) -> Iterator[QuestionExample]:
    """SQuAD's JSON (FQuAD, PIAF), or JSON lines of a question each."""
    unanswered = 0
    for number, (place, context, values) in enumerate(questions(path, text), 1):
        name, place = values.get("id"), f"{place}, question"
        name = str(name) if type(name) is int else of_type(str, name or str(number), "id", f"{place} {number}")
        place = f"{place} {short(name)}"
        question = take(str, values, ("question",), place)
        answers = [] if values.get("is_impossible") is True else answers_of(values, context, place, report)
        if answers:
            yield QuestionExample(name, context, question, tuple(answers))
        else:
            unanswered += 1
    if unanswered:
        report(f"{path}: left out {unanswered} questions without an answer.")


def questions(path: str, text: str) -> Iterator[tuple[str, str, dict]]:
    """-> where it stands, context, the question's values.  Raises DataError."""
    for place, values in json_objects(path, text):
        if "data" not in values:
            yield place, take(str, values, ("context",), place), values
            continue
        for article_place, article in inner(values, "data", path, "article"):
            for paragraph_place, paragraph in inner(article, "paragraphs", article_place, "paragraph"):
                context = take(str, paragraph, ("context",), paragraph_place)
                for _, question in inner(paragraph, "qas", paragraph_place, "question"):
                    yield path, context, question


def inner(values: dict, key: str, place: str, name: str) -> Iterator[tuple[str, dict]]:
    """The objects of a list below a key -> where each stands, its values."""
    for number, value in enumerate(take(list, values, (key,), place), 1):
        yield f"{place}, {name} {number}", of_type(dict, value, f"{name} {number}", place)


def answers_of(values: dict, context: str, place: str, report: Report) -> list[Answer]:
    """A list of objects, or an object of two lists; those without text are none.  Raises DataError."""
    found = values[pick(("answers",), values, place)]
    if isinstance(found, dict):
        texts, starts = take(list, found, ("text",), place), take(list, found, ("answer_start",), place)
        if len(texts) != len(starts):
            raise DataError(f"{place} has {len(texts)} answers and {len(starts)} offsets: it must be one an answer.")
    else:
        objects = [of_type(dict, answer, "an answer", place) for answer in of_type(list, found, "answers", place)]
        texts = [answer[pick(("text",), answer, place)] for answer in objects]
        starts = [answer.get("answer_start") for answer in objects]
    answers = []
    for text, start in zip(texts, starts):
        text = of_type(str, text, "an answer", place)
        if not text.strip():
            continue
        if type(start) is not int or start < 0 or not context.startswith(text, start):
            there = short(context[start : start + len(text)]) if type(start) is int and start >= 0 else ""
            where = short(str(start)) if isinstance(start, int | float) else type(start).__name__
            wrong = f"the answer «{short(text)}» is not at answer_start {where}, where there is «{there}»"
            report(f"{place}: {wrong}. It is used for scoring only.")
            start = None
        answers.append(Answer(text, start))
    return answers
