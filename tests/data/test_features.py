"""Examples to token ids and back: against transformers' truncation and windows, and by hand."""

import random
from collections import Counter
from itertools import islice, pairwise

import pytest

from data import Tokenizer, demo
from data.features import (
    Window,
    budget_batches,
    join_words,
    pair_ids,
    question_windows,
    text_pieces,
    text_windows,
    token_span,
    trim_answer,
    word_pieces,
    word_windows,
)
from data.tasks import read_task
from tests.helpers import REAL_TOKENIZER, SHARED, needs, transformers_tokenizer

PIAF, XNLI = SHARED / "data/qa/piaf-v1.0.json", SHARED / "data/nli/xnli.fr.dev.tsv"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(demo.FOLDER)


@pytest.fixture(scope="module")
def real():
    return Tokenizer(REAL_TOKENIZER)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return transformers_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def ignore(sentence: str) -> None:
    """What read_task reports is another test's."""


# ---- texts and pairs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [16, 17, 100, 512])
def test_windows_of_a_text_are_the_text(tokenizer, most):
    text = " ".join(islice(demo.texts(), 20))
    (ids,) = tokenizer.encode_plain([text])
    windows = text_windows(tokenizer, text, most)
    assert all(window[0] == tokenizer.bos_id and window[-1] == tokenizer.eos_id for window in windows)
    assert [i for window in windows for i in window[1:-1]] == ids
    assert all(len(window) == most for window in windows[:-1]) and 2 < len(windows[-1]) <= most


def test_the_last_window_of_a_text_is_full_or_not_there(tokenizer):
    text = "Le film"
    (ids,) = tokenizer.encode_plain([text])
    assert text_windows(tokenizer, text, len(ids) + 2) == [tokenizer.encode(text)]
    assert len(text_windows(tokenizer, text, len(ids) + 1)) == 2
    assert text_windows(tokenizer, "", 16) == text_windows(tokenizer, "  ", 16) == [[5, 6]]


@needs(REAL_TOKENIZER, XNLI)
@pytest.mark.parametrize("most", [20, 32, 50, 512])
def test_pairs_are_cut_as_transformers_cuts_them(real, theirs, most):
    """Its longest_first, where the room for tokens is even, as that of 512 is."""
    examples = read_task("nli", [XNLI], ignore)[:500]
    examples += [(a.premise, b.hypothesis * 9) for a, b in zip(examples, examples[50:100])]
    pairs = [example[:2] for example in examples]
    expected = theirs(pairs, truncation="longest_first", max_length=most)["input_ids"]
    whole = theirs(pairs)["input_ids"]
    for pair, ids, uncut in zip(pairs, expected, whole, strict=True):
        assert pair_ids(real, *pair, most) == (ids, len(uncut) > most)


@needs(REAL_TOKENIZER, XNLI)
def test_pairs_with_odd_room(real, theirs):
    """A decision: if both are cut, the odd token is the first text's. In transformers it is that of the longer one."""
    for example in read_task("nli", [XNLI], ignore)[:300]:
        actual, cut = pair_ids(real, example.premise, example.hypothesis, 21)
        expected = theirs(example.premise, example.hypothesis, truncation="longest_first", max_length=21)["input_ids"]
        assert len(actual) == len(expected) <= 21
        assert abs(actual.index(real.eos_id) - expected.index(real.eos_id)) <= 1
        if cut and actual != expected:
            assert (actual.index(real.eos_id), expected.index(real.eos_id)) == (10, 9)


def test_a_pair_by_hand(tokenizer):
    one, two = tokenizer.encode_plain(["Le film est long.", "Il est court."])
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    assert min(len(one), len(two)) >= 4
    whole = [bos, *one, eos, eos, *two, eos]
    assert pair_ids(tokenizer, "Le film est long.", "Il est court.", len(whole)) == (whole, False)
    cut = [bos, *one[:3], eos, eos, *two[:2], eos]
    assert pair_ids(tokenizer, "Le film est long.", "Il est court.", 9) == (cut, True)
    assert pair_ids(tokenizer, "", "", 16) == ([bos, eos, eos, eos], False)
    assert pair_ids(tokenizer, "", "Il est court.", 7) == ([bos, eos, eos, *two[:3], eos], True)


# ---- words -----------------------------------------------------------------------------------------------------


def test_words_are_joined_as_french_writes_them():
    words = ["L'", "été", "à", "Nantes", "(", "44", ")", ",", "c'", "est", "l’", "eau", "…", "!"]
    text, starts = join_words(words)
    assert text == "L'été à Nantes (44), c'est l’eau… !"
    assert [text[start : start + len(word)] for start, word in zip(starts, words)] == words
    assert join_words([]) == ("", [])


def check_pieces(tokenizer, words):
    pieces = word_pieces(tokenizer, words)
    _, starts = join_words(words)
    assert len(pieces.ids) == len(pieces.words) == len(pieces.spans)
    assert list(dict.fromkeys(pieces.words)) == list(range(len(words)))  # each has a piece, and they are in order
    for word, (start, end) in zip(pieces.words, pieces.spans):
        assert starts[word] <= start <= end <= starts[word] + len(words[word]) or not words[word].strip()
    return pieces


@needs(REAL_TOKENIZER)
@pytest.mark.parametrize(
    "words",
    [
        ["Le", "chat"],
        ["en", "2006", ",", "à"],  # one piece of two words
        ["en", "2006", ",5"],  # which the second has another piece of
        ["\u200b", "chat"],  # a word that the tokenizer drops
        ["chat", "\u200b"],
        ["\u0301", "x"],
        ["e", "\u0301"],
        ["<mask>", "a", "<s>"],
        ["🙂", "🙂", "漢"],
        ["a b", "c"],  # a space in a word
        ["New\u00a0York", "x"],
        ["."],
        [".", ".", ".", "."],
        ["▁", "a"],
        ["l'", "l'", "l'"],
        ["(", "(", "a"],
        ["½", "ﷺ"],
        [],
    ],
    ids=str,
)
def test_every_word_has_a_piece_of_its_own(real, words):
    pieces = check_pieces(real, words)
    if words == ["Le", "chat"]:
        assert pieces == (real.encode("Le chat")[1:-1], [0, 1], [(0, 2), (3, 7)])
    if "\u200b" in words:
        assert pieces.ids[words.index("\u200b")] == real.unk_id


def test_every_word_of_hostile_sentences_has_a_piece(tokenizer):
    rng = random.Random(0)
    parts = [
        *"é,.…()½«»'-",
        "le",
        "film",
        "l'",
        "e\u0301",
        "\u0301",
        "\u200b",
        "🙂",
        "2006",
        "<mask>",
        "\u00a0",
        "▁",
        "zzz",
    ]
    for _ in range(1000):
        check_pieces(tokenizer, rng.choices(parts, k=rng.randrange(1, 8)))


def test_pieces_of_running_text_begin_words_at_spaces(tokenizer):
    text = "Le film, à Brest ."
    pieces = text_pieces(tokenizer, text)
    found = [{place for w, span in zip(pieces.words, pieces.spans) if w == word for place in range(*span)} for word in
             range(5)]  # fmt: skip
    assert ["".join(text[place] for place in sorted(places)) for places in found] == text.split()
    assert pieces.words == sorted(pieces.words) and max(pieces.words) == 4
    assert pieces.ids == tokenizer.encode(text)[1:-1]
    assert text_pieces(tokenizer, " ") == ([], [], [])


def test_windows_of_words():
    assert list(word_windows([0, 0, 1, 1, 2], 5)) == [(0, 5)]
    assert list(word_windows([0, 0, 1, 1, 2], 4)) == [(0, 4), (4, 5)]
    assert list(word_windows([0, 0, 1, 1, 2], 3)) == [(0, 2), (2, 5)]
    assert list(word_windows([0] * 7, 3)) == [(0, 3), (3, 6), (6, 7)]  # a word of more pieces than fit
    assert list(word_windows([0, 1, 1, 1, 1, 2], 3)) == [(0, 1), (1, 4), (4, 6)]
    assert list(word_windows([], 3)) == [(0, 0)]


def test_windows_of_words_cut_between_words_where_they_can():
    rng = random.Random(0)
    for _ in range(2000):
        words = [word for word in range(rng.randrange(12)) for _ in range(rng.randrange(1, 6))]
        room = rng.randrange(1, 9)
        windows = list(word_windows(words, room))
        assert [place for start, end in windows for place in range(start, end)] == list(range(len(words)))
        assert all(end - start <= room for start, end in windows)
        for (start, end), (_, after) in pairwise(windows):
            assert words[end - 1] != words[end] or Counter(words)[words[end]] > room
            following = end + next((i for i, w in enumerate(words[end:]) if w != words[end]), len(words) - end)
            assert following - start > room  # no whole word more would have fitted
            assert after > end


# ---- questions -------------------------------------------------------------------------------------------------


@needs(REAL_TOKENIZER, PIAF)
@pytest.mark.parametrize(("most", "stride"), [(512, 128), (100, 30), (64, 0), (60, 13)])
def test_windows_of_questions_are_those_of_transformers(real, theirs, most, stride):
    """There, too, the stride is what neighbours share, not how far the window moves."""
    examples = random.Random(0).sample(read_task("qa", [PIAF], ignore), 150)
    lengths = [len(ids) for ids in real.encode_plain([example.question for example in examples])]
    fits = [n <= (most - 4) // 2 and stride <= (most - 4 - n) // 2 for n in lengths]  # where ours cuts no question
    examples = [example for example, fit in zip(examples, fits) if fit]
    assert len(examples) > 130
    count = 0
    for example in examples:
        expected = theirs(
            example.question, example.context, truncation="only_second", max_length=most, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        windows = question_windows(real, example.question, example.context, most, stride)
        assert [window.ids for window in windows] == expected["input_ids"]
        for place, window in enumerate(windows):
            inside = [i for i, part in enumerate(expected.sequence_ids(place)) if part == 1]
            assert inside == list(range(window.first, len(window.ids) - 1))
            assert window.spans == [expected["offset_mapping"][place][i] for i in inside]
        count += len(windows)
    assert count > len(examples) or most == 512


def test_windows_of_questions_end(tokenizer):
    """Whatever the stride and however long the question: every token of the context is in a window, none too long."""
    rng = random.Random(0)
    texts = list(islice(demo.texts(), 40))
    for _ in range(200):
        question = " ".join(rng.choices(texts, k=rng.randrange(3)))
        context = " ".join(rng.choices(texts, k=rng.randrange(4)))
        most, stride = rng.randrange(16, 200), rng.choice((0, 1, 10, 128, 10_000))
        windows = question_windows(tokenizer, question, context, most, stride)
        ids, spans = tokenizer.encode_spans(context)
        place = 0
        for window in windows:
            assert len(window.ids) <= most
            part = window.ids[window.first : -1]
            assert len(part) == len(window.spans)
            place = next(i for i in range(place, len(ids) + 1) if spans[i : i + len(part)] == window.spans)
            assert part == ids[place : place + len(part)]
        assert place + len(part) == len(ids)
        starts = [window.spans[0] for window in windows if window.spans]
        assert starts == sorted(set(starts))
        assert len(windows) <= max(1, len(ids))


def test_an_empty_context_is_one_window(tokenizer):
    (window,) = question_windows(tokenizer, "Où ?", "", 20, 5)
    assert window.spans == [] and window.ids == tokenizer.encode("Où ?", "")


def test_the_tokens_of_an_answer():
    window = Window([5, 9, 6, 6, 20, 21, 22, 23, 6], 4, [(0, 2), (3, 5), (5, 9), (10, 11)])
    assert token_span(window, 0, 2) == (4, 4)
    assert token_span(window, 3, 9) == (5, 6)
    assert token_span(window, 3, 5) == (5, 5) and token_span(window, 5, 9) == (6, 6)  # and no neighbour
    assert token_span(window, 4, 8) == (5, 6)  # inside tokens: those that hold it
    assert token_span(window, 0, 11) == (4, 7)
    assert token_span(window, 5, 12) is None
    later = Window(window.ids, 4, [(20, 22), (23, 25), (25, 29), (30, 31)])
    assert token_span(later, 0, 2) is None  # all of it is elsewhere
    assert token_span(later, 19, 22) is None  # its beginning is
    assert token_span(later, 30, 40) is None
    assert token_span(Window([5, 6, 6, 6], 3, []), 0, 1) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2006,", "2006"),
        (" le chat ", "le chat"),
        ("(le chat)", "(le chat)"),  # both halves are inside
        ("le chat)", "le chat"),
        ("« le chat", "le chat"),
        ("« le chat »", "« le chat »"),
        ("J.-C.", "J.-C."),  # a full stop at the end can be an abbreviation's
        (".NET", "NET"),
        ("le chat ;", "le chat"),
        (",;:", ""),
        ("", ""),
        ("[a]", "[a]"),
        ("“a", "a"),
        ("a\u00a0:", "a"),
        ("a (b", "a (b"),  # inside, nothing goes
    ],
)
def test_what_an_answer_is_trimmed_to(text, expected):
    around = f"xx{text}yy"
    start, end = trim_answer(around, 2, 2 + len(text))
    assert around[start:end] == expected
    assert 2 <= start <= end <= 2 + len(text)
    assert trim_answer(around, start, end) == (start, end)


# ---- batches ---------------------------------------------------------------------------------------------------


def test_batches_hold_every_text_once_within_the_budget():
    rng = random.Random(0)
    for _ in range(300):
        lengths = [rng.randrange(1, 100) for _ in range(rng.randrange(200))]
        budget = rng.choice((1, 50, 300, 10**6))
        for order in (None, random.Random(1)):
            batches = budget_batches(lengths, budget, order)
            assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
            for batch in batches:
                assert batch
                assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
                assert [lengths[i] for i in batch] == sorted(lengths[i] for i in batch)
        ordered = [lengths[i] for batch in budget_batches(lengths, budget) for i in batch]
        assert ordered == sorted(lengths)


def test_batches_are_as_full_as_they_can_be():
    lengths = [5] * 10
    assert [len(batch) for batch in budget_batches(lengths, 20)] == [4, 4, 2]
    assert [len(batch) for batch in budget_batches(lengths, 4)] == [1] * 10
    assert budget_batches([], 20) == budget_batches([], 20, random.Random(0)) == []


def test_batches_of_a_random_order():
    lengths = [1 + i % 50 for i in range(3000)]
    one, two = (budget_batches(lengths, 100, random.Random(seed)) for seed in (0, 1))
    assert one == budget_batches(lengths, 100, random.Random(0)) and one != two
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in one]
    assert means != sorted(means)  # not the short texts first
    assert sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in one) / len(one) < 10  # yet alike
