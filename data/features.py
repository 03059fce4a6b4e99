"""Examples of section 4's tasks to token ids, and from tokens back to words and characters. Knows no model.

`max_length` is the largest number of tokens in an input, special tokens included. Longer texts are truncated or
split into windows.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple
from unicodedata import category

from .tokenizer import Tokenizer

LEFT_JOINED = tuple(",.)]…")  # no space before a word that begins so
RIGHT_JOINED = ("'", "’", "(", "[")  # no space after a word that ends so
COUNTERPART = dict(zip("([«“)]»”", ")]»”([«“"))
ELIDED = (*"cdjlmnst", "qu")
APOSTROPHES = "'’‘ʼ`´′"  # ʼ (U+02BC) counts as a letter in Unicode
HYPHENS = "-‐‑–"
DASH = re.compile(rf"\s[{HYPHENS}]+\s")  # between spaces, a hyphen is a dash
INVISIBLE = "\u00ad\u200c\u200d\u2060"  # soft hyphen, joiners: parts of a word
CLOSING = re.compile(r"[ \u00a0\u202f]?([)\]»”])")
INITIALS = re.compile(r"[^\W\d_]\.-?[^\W\d_]$")


# ---- texts and pairs -------------------------------------------------------------------------------------------


def text_windows(tokenizer: Tokenizer, text: str, max_length: int) -> list[list[int]]:
    """The text in windows `<s> … </s>` without overlap; an empty text is one window."""
    (ids,) = tokenizer.encode_plain([text])
    capacity = max_length - 2
    parts = [ids[start : start + capacity] for start in range(0, max(len(ids), 1), capacity)]
    return [[tokenizer.bos_id, *part, tokenizer.eos_id] for part in parts]


def pair_ids(tokenizer: Tokenizer, first: str, second: str, max_length: int) -> tuple[list[int], bool]:
    """-> `<s> first </s></s> second </s>`, the longer text truncated until both fit; whether any was truncated."""
    first_ids, second_ids = tokenizer.encode_plain([first, second])
    capacity, bos, eos = max_length - 4, tokenizer.bos_id, tokenizer.eos_id
    half = capacity // 2  # each text may have half of the capacity, and what the other leaves of its half
    first_kept = first_ids[: capacity - min(half, len(second_ids))]
    second_kept = second_ids[: max(half, capacity - len(first_ids))]
    return [bos, *first_kept, eos, eos, *second_kept, eos], len(first_ids) + len(second_ids) > capacity


# ---- words -----------------------------------------------------------------------------------------------------


class Pieces(NamedTuple):
    """Token ids without <s> and </s>; for each, the index of its word and its characters text[start:end]."""

    ids: list[int]
    word_ids: list[int]
    spans: list[tuple[int, int]]


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """-> the words as a text with French spacing ("l'" and "été" make "l'été"); the offset of each word in it."""
    text, starts = "", []
    for word in words:
        if text and not text.endswith(RIGHT_JOINED) and not word.startswith(LEFT_JOINED):
            text += " "
        starts.append(len(text))
        text += word
    return text, starts


def word_pieces(tokenizer: Tokenizer, words: Sequence[str]) -> Pieces:
    """The pieces of a sentence given as words: at least one per word, and none that spans two words.

    The words are tokenized together, as the running text that they came from, except that a piece ends where its word
    does: "2006" and "," have two pieces where the text "2006," may have one. A word that the tokenizer drops becomes
    <unk>.
    """
    text, starts = join_words(words)
    ids, spans = tokenizer.encode_spans(text, starts)
    word_ids = [bisect_right(starts, start) - 1 for start, _ in spans]
    ends = [start + len(word) for start, word in zip(starts, words)]
    spans = [(start, min(end, ends[i])) for (start, end), i in zip(spans, word_ids)]  # ("e", "\u0301") is one é
    dropped = set(range(len(words))) - set(word_ids)
    pieces = [*zip(ids, word_ids, spans), *((tokenizer.unk_id, i, (starts[i], ends[i])) for i in dropped)]
    pieces.sort(key=lambda piece: piece[1])
    return Pieces(*map(list, zip(*pieces))) if pieces else Pieces([], [], [])


def text_pieces(tokenizer: Tokenizer, text: str) -> Pieces:
    """The pieces of running text; word_ids numbers what stands between spaces.

    A piece ends where a word of text_words and punctuation meet, as it does if the two are given as words: "(4)" has
    three pieces. A hyphen or an apostrophe may share one with a word ("États-Unis", "l'").
    """
    words = text_words(text)
    borders = [start for start, _ in words if not joins_words(text[max(start - 1, 0) : start])]
    borders += [end for _, end in words if not joins_words(text[end : end + 1])]
    ids, spans = tokenizer.encode_spans(text, sorted(borders))
    word_ids, word = [], -1
    for piece in tokenizer.pieces(ids):
        word += piece.startswith("▁") or word < 0
        word_ids.append(word)
    return Pieces(ids, word_ids, spans)


def text_words(text: str) -> list[tuple[int, int]]:
    """The words of running text, as offsets (start, end): runs of letters and digits, with their combining marks.

    So "l'Élysée" and "Jean-Pierre" have two words each, and an emoji is none.
    """
    words, start = [], None
    for index, character in enumerate(text + " "):
        letter = character.isalnum() and character not in APOSTROPHES
        if letter and start is None:
            start = index
        elif start is not None and not letter and character not in INVISIBLE and category(character)[0] != "M":
            words.append((start, index))
            start = None
    return words


def word_ranges(spans: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]) -> list[range]:
    """The pieces that overlap each word, possibly none; both are offsets in a text, in order.

    Two words share a piece that overlaps both.
    """
    ranges, first = [], 0
    for start, end in words:
        while first < len(spans) and spans[first][1] <= start:
            first += 1
        after = first
        while after < len(spans) and spans[after][0] < end:
            after += 1
        ranges.append(range(first, after))
    return ranges


def joins_words(gap: str) -> bool:
    """Whether the characters between two words never end an entity: spaces, or a hyphen or apostrophe in a word.

    A blank line or a dash may end it.
    """
    joining = all(mark.isspace() or mark in HYPHENS or mark in APOSTROPHES for mark in gap)
    return joining and gap.count("\n") < 2 and not DASH.search(gap)


def is_elision(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is a word without its vowel, as in "l'été", which no entity ends with."""
    return text[end : end + 1] in ("'", "’") and text[start:end].lower() in ELIDED


def complete_end(text: str, start: int, end: int) -> int:
    """The end of text[start:end] with the full stop of initials ("S.N.C.F.") or the counterpart of a bracket in it."""
    if text[end : end + 1] == "." and INITIALS.search(text, start, end):
        end += 1
    closing = CLOSING.match(text, end)
    if closing and text.count(COUNTERPART[closing[1]], start, end) > text.count(closing[1], start, end):
        end = closing.end()
    return end


def word_windows(word_ids: Sequence[int], capacity: int) -> Iterator[tuple[int, int]]:
    """Windows of at most `capacity` pieces, as ranges (start, end), split between words; a longer word is split."""
    boundaries = [index for index, (one, two) in enumerate(pairwise(word_ids), 1) if one != two]
    start, last = 0, 0
    for boundary in [*boundaries, len(word_ids)]:
        if boundary - start > capacity and last > start:
            yield start, last
            start = last
        while boundary - start > capacity:
            yield start, start + capacity
            start += capacity
        last = boundary
    if start < len(word_ids) or not word_ids:
        yield start, len(word_ids)


# ---- question answering ----------------------------------------------------------------------------------------


class Window(NamedTuple):
    """`<s> question </s></s> part of the context </s>`; ids[context_start + i] is context[start:end] of spans[i]."""

    ids: list[int]
    context_start: int
    spans: list[tuple[int, int]]
    offset: int = 0  # number of context tokens before this window


def question_windows(tokenizer: Tokenizer, question: str, context: str, max_length: int, stride: int) -> list[Window]:
    """The context in windows, each after the question; neighbouring windows share `stride` tokens.

    A question longer than half of max_length is truncated; a stride above half of a window's context is reduced to it.
    """
    (question_ids,) = tokenizer.encode_plain([question])
    question_ids = question_ids[: (max_length - 4) // 2]
    head = [tokenizer.bos_id, *question_ids, tokenizer.eos_id, tokenizer.eos_id]
    ids, spans = tokenizer.encode_spans(context)
    capacity = max_length - len(head) - 1
    windows, start = [], 0
    while True:
        end = start + capacity
        windows.append(Window([*head, *ids[start:end], tokenizer.eos_id], len(head), spans[start:end], start))
        if end >= len(ids):
            return windows
        start = end - min(stride, capacity // 2)


def token_span(window: Window, start: int, end: int) -> tuple[int, int] | None:
    """First and last index in window.ids of context[start:end]; None if the window has only part of it, or nothing."""
    inside = [i for i, (first, after) in enumerate(window.spans) if first < end and after > start]
    complete = inside and window.spans[inside[0]][0] <= start and window.spans[inside[-1]][1] >= end
    return (window.context_start + inside[0], window.context_start + inside[-1]) if complete else None


def trim_answer(text: str, start: int, end: int) -> tuple[int, int]:
    """text[start:end] without spaces and punctuation at its ends, which can share a piece with the answer ("2006,").

    A bracket or quotation mark stays if its counterpart is inside.
    """

    def is_trimmed(character: str, punctuation: str) -> bool:
        if character in COUNTERPART:
            return COUNTERPART[character] not in text[start:end]
        return character.isspace() or character in punctuation

    while start < end and is_trimmed(text[start], ",.;:"):
        start += 1
    while start < end and is_trimmed(text[end - 1], ",;:"):  # a final full stop can be an abbreviation's
        end -= 1
    return start, end


# ---- batches ---------------------------------------------------------------------------------------------------


def budget_batches(lengths: Sequence[int], budget: int, rng: random.Random | None = None) -> list[list[int]]:
    """Batches of at most `budget` tokens (or one longer text), as indices into `lengths`, sorted by length.

    With rng, in random order: the texts are shuffled, sorted by length within pools of about 32 batches, and the
    batches are shuffled.
    """
    order, pool = list(range(len(lengths))), len(lengths)
    if rng:
        rng.shuffle(order)
        pool = max(1, 32 * budget * len(lengths) // max(1, sum(lengths)))
    batches: list[list[int]] = []
    for start in range(0, len(order), max(1, pool)):
        tokens = budget + 1  # so that the first text begins a batch
        for i in sorted(order[start : start + pool], key=lengths.__getitem__):
            if tokens + lengths[i] > budget:
                batches.append([])
                tokens = 0
            batches[-1].append(i)
            tokens += lengths[i]
    if rng:
        rng.shuffle(batches)
    return batches
