"""Named entities: columns, WikiNER's aij format or JSON to sentences of tagged words."""

import re
from collections.abc import Iterator, Mapping

from ..cli import DataError
from .contents import Content
from .examples import Report, WordsExample
from .rows import check_type, get_value, json_objects, short

WORDS_KEYS, TAGS_KEYS = ("tokens", "words"), ("ner_tags", "tags")
TAG = re.compile(r"O|[BI]-\S+")
JSON_OBJECT = re.compile(r'\s*(\[\s*)?\{\s*"[^"]*"\s*:')  # a [ or { alone may be the first word of a sentence


def read_ner(path: str, text: Content, report: Report, label_map: Mapping[str, str]) -> Iterator[WordsExample]:
    """Files with one word per line (WikiNEuRal, CoNLL), WikiNER's aij format, JSON, or columns."""
    if not isinstance(text, str) or JSON_OBJECT.match(text):
        return read_json_ner(path, text, label_map)
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


def read_json_ner(path: str, text: Content, label_map: Mapping[str, str]) -> Iterator[WordsExample]:
    for location, values in json_objects(path, text):
        words, tags = get_value(list, values, WORDS_KEYS, location), get_value(list, values, TAGS_KEYS, location)
        if len(words) != len(tags):
            raise DataError(f"{location} has {len(words)} words and {len(tags)} tags; one tag per word is needed.")
        tags = [label_map.get(str(tag), tag) if type(tag) is int else tag for tag in tags]
        if numbers := [tag for tag in tags if type(tag) is int]:
            cure = "Say what each means, as the documentation of the data has it: --label-map 0=O 1=B-PER 2=I-PER"
            raise DataError(f"{location} has the tag {numbers[0]}, a number. {cure} and so on.")
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
