"""Examples of section 4's tasks to token ids, and from tokens back to words and characters. Knows no model.

A model reads at most `most` tokens at once, <s> and </s> among them. What is longer is cut, or read by windows.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from .tokenizer import Tokenizer

LEFT_JOINED = tuple(",.)]…")  # a word that begins so stands behind the one before without a space
RIGHT_JOINED = ("'", "’", "(", "[")  # and one that ends so before the one after


# ---- texts and pairs -------------------------------------------------------------------------------------------


def text_windows(tokenizer: Tokenizer, text: str, most: int) -> list[list[int]]:
    """`<s> … </s>`, as many as the text needs, one after the other without overlap."""
    (ids,) = tokenizer.encode_plain([text])
    room = most - 2
    parts = [ids[start : start + room] for start in range(0, max(len(ids), 1), room)]
    return [[tokenizer.bos_id, *part, tokenizer.eos_id] for part in parts]


def pair_ids(tokenizer: Tokenizer, first: str, second: str, most: int) -> tuple[list[int], bool]:
    """`<s> first </s></s> second </s>`, the longer one cut at its end until they fit; whether anything was cut."""
    first_ids, second_ids = tokenizer.encode_plain([first, second])
    room = most - 4
    cut = len(first_ids) + len(second_ids) > room
    if cut:
        if len(first_ids) <= room // 2:
            second_ids = second_ids[: room - len(first_ids)]
        elif len(second_ids) <= room // 2:
            first_ids = first_ids[: room - len(second_ids)]
        else:
            first_ids, second_ids = first_ids[: room - room // 2], second_ids[: room // 2]
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    return [bos, *first_ids, eos, eos, *second_ids, eos], cut


# ---- words -----------------------------------------------------------------------------------------------------


class Pieces(NamedTuple):
    """Token ids without <s> and </s>, and which word each belongs to, which characters it is made of."""

    ids: list[int]
    words: list[int]
    spans: list[tuple[int, int]]


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """The words as French writes them, "l'" and "été" without a space between; where in the text each begins."""
    text, starts = "", []
    for word in words:
        if text and not text.endswith(RIGHT_JOINED) and not word.startswith(LEFT_JOINED):
            text += " "
        starts.append(len(text))
        text += word
    return text, starts


def word_pieces(tokenizer: Tokenizer, words: Sequence[str]) -> Pieces:
    """The words of a sentence, at least one piece each, and no piece of two words.

    They are read as the text that they come from would be. Where that gives a piece of two words ("2006,"), or a word
    without a piece, each word is read alone; one of nothing but characters that the tokenizer drops becomes <unk>.
    """
    text, starts = join_words(words)
    ids, spans = tokenizer.encode_spans(text)
    owners, word = [], 0
    borders = [*starts[1:], len(text) + 1]
    for start, end in spans:
        while start >= borders[word]:
            word += 1
        if end > borders[word]:
            break
        owners.append(word)
    if len(owners) == len(ids) and set(owners) == set(range(len(words))):
        return Pieces(ids, owners, spans)
    alone = [part or [tokenizer.unk_id] for part in tokenizer.encode_plain(words)]
    owners = [word for word, part in enumerate(alone) for _ in part]
    spans = [(starts[word], starts[word] + len(words[word])) for word in owners]
    return Pieces([i for part in alone for i in part], owners, spans)


def text_pieces(tokenizer: Tokenizer, text: str) -> Pieces:
    """The pieces of running text, whose words are what stands between spaces."""
    ids, spans = tokenizer.encode_spans(text)
    owners, word = [], -1
    for piece in tokenizer.pieces(ids):
        word += piece.startswith("▁") or word < 0
        owners.append(word)
    return Pieces(ids, owners, spans)


def word_windows(words: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Cuts pieces into windows of at most `room`, between words where that can be; -> from which piece to which."""
    borders = [place for place, (one, two) in enumerate(pairwise(words), 1) if one != two]
    start, last = 0, 0
    for border in [*borders, len(words)]:
        if border - start > room and last > start:
            yield start, last
            start = last
        while border - start > room:  # a single word of more pieces than fit
            yield start, start + room
            start += room
        last = border
    if start < len(words) or not words:
        yield start, len(words)


# ---- questions -------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """`<s> question </s></s> a part of the context </s>`; ids[first + i] are the context's characters spans[i]."""

    ids: list[int]
    first: int
    spans: list[tuple[int, int]]


def question_windows(tokenizer: Tokenizer, question: str, context: str, most: int, stride: int) -> list[Window]:
    """The context in windows, of which neighbours share `stride` tokens, each behind the question.

    A question of more than half the model's length is cut, a stride of more than half a window is half a window.
    """
    (question_ids,) = tokenizer.encode_plain([question])
    question_ids = question_ids[: (most - 4) // 2]
    head = [tokenizer.bos_id, *question_ids, tokenizer.eos_id, tokenizer.eos_id]
    ids, spans = tokenizer.encode_spans(context)
    room = most - len(head) - 1
    windows, start = [], 0
    while True:
        end = start + room
        windows.append(Window([*head, *ids[start:end], tokenizer.eos_id], len(head), spans[start:end]))
        if end >= len(ids):
            return windows
        start = end - min(stride, room // 2)


def token_span(window: Window, start: int, end: int) -> tuple[int, int] | None:
    """The first and last of the window's ids that the characters start to end are in; None if some are elsewhere."""
    inside = [i for i, (first, after) in enumerate(window.spans) if first < end and after > start]
    whole = inside and window.spans[inside[0]][0] <= start and window.spans[inside[-1]][1] >= end
    return (window.first + inside[0], window.first + inside[-1]) if whole else None


OPENING, CLOSING = "([«“", ")]»”"


def trim_answer(text: str, start: int, end: int) -> tuple[int, int]:
    """Without spaces and punctuation at its edges, which share a piece with the answer: "2006," -> "2006".

    A bracket or quotation mark stays where its other half is inside.
    """

    def goes(character: str, others: str) -> bool:
        if character in OPENING + CLOSING:
            half = (CLOSING + OPENING)[(OPENING + CLOSING).index(character)]
            return half not in text[start:end]
        return character.isspace() or character in others

    while start < end and goes(text[start], ",.;:"):
        start += 1
    while start < end and goes(text[end - 1], ",;:"):
        end -= 1
    return start, end


# ---- batches ---------------------------------------------------------------------------------------------------


def budget_batches(lengths: Sequence[int], budget: int, rng: random.Random | None = None) -> list[list[int]]:
    """The numbers of all texts in batches of at most `budget` tokens (one text at least), sorted by length.

    With rng, in another order each time: texts are shuffled, sorted within pools of some batches, and the batches
    shuffled again.
    """
    order = list(range(len(lengths)))
    pool = len(order)
    if rng:
        rng.shuffle(order)
        pool = max(1, 32 * budget * len(lengths) // max(1, sum(lengths)))
    batches: list[list[int]] = []
    for start in range(0, len(order), max(1, pool)):
        batches.append([])
        tokens = 0
        for i in sorted(order[start : start + pool], key=lengths.__getitem__):
            if batches[-1] and tokens + lengths[i] > budget:
                batches.append([])
                tokens = 0
            batches[-1].append(i)
            tokens += lengths[i]
    if rng:
        rng.shuffle(batches)
    return batches
