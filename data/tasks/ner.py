"""Named entities: columns, WikiNER's aij format or JSON to sentences of tagged words.

Tags of any scheme of tags.py become O, B-TYPE and I-TYPE (IOB2).
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise

from ..cli import DataError
from ..formats import JSON_OBJECT
from .contents import Content
from .examples import Report, WordsExample
from .parts import part_of_row
from .rows import check_type, get_value, in_french, json_objects, short
from .tags import read_tags, to_iob2

WORDS_KEYS, TAGS_KEYS = ("tokens", "words"), ("ner_tags", "tags")
Words = list[tuple[str, str, str]]  # of a sentence: each word with its tag and its location, for error messages
Sentence = tuple[str | None, Words]  # the part that its row names, None if it names none
LONGEST_SENTENCE = 500  # words; a longer one lacks blank lines
CUT_SENTENCE = 100  # words; the most in a part of a longer sentence
SENTENCE_ENDS = (".", "!", "?", "…", "...")
NO_WORD = re.compile(r"\d+[-.]\d+")  # CoNLL-U's index of a range of words ("au", 1-2) and of an empty node (8.1)
JSON_START = re.compile(rf"\s*(?:\[\s*)?{JSON_OBJECT.pattern}")  # a [ or { alone may be the first word of a sentence


def read_ner(path: str, content: Content, report: Report, label_map: Mapping[str, str]) -> Iterator[tuple]:
    """Files with one word per line (WikiNEuRal, CoNLL), WikiNER's aij format, JSON, or Parquet and Arrow.

    -> the part or None, example of each sentence
    label_map: {number: tag} for tags that are numbers. Sentences of more than LONGEST_SENTENCE words are cut, which is
    reported.  Raises DataError for an empty word, tags of no scheme, or numbers without a name.
    """
    sentences = [(part, words) for part, words in read_sentences(path, content, report) if words]
    locations: dict[str, str] = {}
    for word, tag, location in chain.from_iterable(words for _, words in sentences):
        if not word.strip():
            raise DataError(f"{location} has an empty word with the tag {short(tag)}. Add the word or remove the tag.")
        locations.setdefault(tag, location)
    tags = {tag: label_map.get(tag, tag) if tag.isdecimal() else tag for tag in locations}
    if numbers := [tag for tag, name in tags.items() if name.isdecimal()]:
        cure = "Say what each means, as the documentation of the data has it: --label-map 0=O 1=B-PER 2=I-PER"
        raise DataError(f"{locations[numbers[0]]} has the tag {short(numbers[0])}, a number. {cure} and so on.")
    mapped = read_tags({name: locations[tag] for tag, name in tags.items()})
    names = {tag: mapped[name] for tag, name in tags.items()}
    cut: list[Words] = []
    for part, found in sentences:
        example = WordsExample(tuple(word for word, _, _ in found), to_iob2([names[tag] for _, tag, _ in found]))
        if len(found) > LONGEST_SENTENCE:
            cut.append(found)
            yield from ((part, piece) for piece in cut_sentence(example))
        else:
            yield part, example
    if cut:
        what = f"{cut[0][0][2]} begins a sentence of {len(cut[0]):,} words; are blank lines between sentences missing?"
        how = f"are cut after each full stop, or after {CUT_SENTENCE} words"
        report(
            f"{what} {len(cut):,} of {len(sentences):,} sentences have more than {LONGEST_SENTENCE} words: they {how}."
        )


def cut_sentence(example: WordsExample) -> Iterator[WordsExample]:
    """Parts that end with a full stop, ! or ?, or before CUT_SENTENCE words are exceeded; entities stay whole."""
    words, tags = example
    start, last = 0, 0  # of the part; the last place in it where no entity is cut
    for end in range(1, len(words) + 1):
        if end == len(words) or not tags[end].startswith("I-"):
            last = end
            if end == len(words) or words[end - 1] in SENTENCE_ENDS:
                yield WordsExample(words[start:end], tags[start:end])
                start = end
        if end - start >= CUT_SENTENCE and last > start:
            yield WordsExample(words[start:last], tags[start:last])
            start = last


def read_sentences(path: str, content: Content, report: Report) -> Iterator[Sentence]:
    """The words of each sentence, with their tags as in the file."""
    if not isinstance(content, str) or JSON_START.match(content):
        return read_json_ner(path, content, report)
    lines = content.split("\n")
    first = next((line for line in lines if line.strip() and not is_comment(line)), "")
    if "\t" not in first and "|" in first.rstrip(" ").rpartition(" ")[2]:
        found = read_wikiner(path, lines)
    else:
        found = read_columns(path, lines, first)
    return ((None, words) for words in found)


def is_comment(line: str) -> bool:
    """Whether a line is about a sentence or a document; MultiCoNER has a tab in "# id …\tdomain=fr"."""
    return (line.startswith("# ") and "\t" not in line) or line.startswith(("# id ", "-DOCSTART-"))


def read_json_ner(path: str, content: Content, report: Report) -> Iterator[Sentence]:
    for location, values in in_french(json_objects(path, content), path, report):
        words, tags = get_value(list, values, WORDS_KEYS, location), get_value(list, values, TAGS_KEYS, location)
        if len(words) != len(tags):
            raise DataError(f"{location} has {len(words)} words and {len(tags)} tags; one tag per word is needed.")
        tags = [str(tag) if type(tag) is int else tag for tag in tags]
        words, tags = ([check_type(str, x, "a word or tag", location) for x in found] for found in (words, tags))
        yield part_of_row(values, location), [(word, tag, location) for word, tag in zip(words, tags)]


def read_wikiner(path: str, lines: list[str]) -> Iterator[Words]:
    """One sentence per line, of word|part of speech|tag or word|tag; a word may contain |."""
    sentences = [[] if is_comment(line) else split_columns(line, tabs=False) for line in lines]
    bars = [item.count("|") for items in sentences for item in items]
    parts = 3 if 2 * sum(count >= 2 for count in bars) > len(bars) else 2  # as the majority, in spite of errors
    for number, items in enumerate(sentences, 1):
        location, found = f"{path} line {number}", [item.rsplit("|", parts - 1) for item in items]
        for item, split in zip(items, found):
            if len(split) < parts:
                raise DataError(f"{location}: {short(item)} must have {parts} parts separated by |.")
        yield [(split[0], split[-1], location) for split in found]


def read_columns(path: str, lines: list[str], first: str) -> Iterator[Words]:
    """One word per line, blank lines between sentences: the word is the first column, the tag the last.

    If the first column is the word's index in the sentence, the word is the second, and a new sentence begins where the
    indices begin again, even without a blank line.
    first: the first line with a word, which determines the separator and the number of columns.
    """
    tabs = "\t" in first
    width = len(split_columns(first, tabs))
    known = {columns[-1] for line in lines if line[:1] != "#" and (columns := split_columns(line, tabs))}
    sentences = [[]]
    for number, line in enumerate(lines, 1):
        columns = split_columns(line, tabs)
        if not line.strip() or "-DOCSTART-" in columns[:2]:
            sentences.append([])
        # a space-separated line that begins with the word # is no comment if it has a word's columns
        elif not is_comment(line) or (not tabs and len(columns) == width and columns[-1] in known):
            sentences[-1].append((columns, f"{path} line {number}"))
    counted = [[columns[0] for columns, _ in words if not NO_WORD.fullmatch(columns[0])] for words in sentences]
    numbers = [index in ("0", "1", after(last)) for indices in counted for last, index in pairwise(["", *indices])]
    indexed = width > 2 and 2 * sum(numbers) > len(numbers)  # as the majority, in spite of errors
    for sentence in sentences:
        words, last = [], ""
        for columns, location in sentence:
            if len(columns) != width or width < 2:
                raise DataError(f"{location} has {len(columns)} columns, not {max(width, 2)} (word first, tag last).")
            if indexed and NO_WORD.fullmatch(columns[0]):
                continue
            if indexed and not columns[0].isdecimal():
                raise DataError(f"{location} must begin with the index of its word, not with {short(columns[0])}.")
            if indexed and columns[0] in ("0", "1") and columns[0] != after(last):  # a sentence without a blank line
                yield words
                words = []
            last = columns[0]
            words.append((columns[int(indexed)], columns[-1].strip(), location))
        yield words


def after(index: str) -> str:
    """The index of the next word; "" if this is none."""
    return str(int(index) + 1) if index.isdecimal() and len(index) < 10 else ""


def split_columns(line: str, tabs: bool) -> list[str]:  # a no-break space is part of a word
    return line.split("\t") if tabs else [column for column in line.split(" ") if column]
