"""Examples to token ids and back, compared with transformers' truncation and windows, and by hand."""

import random
from collections import Counter
from itertools import islice, pairwise

import pytest

from data import demo, features
from data.features import Window
from data.tasks import read_task
from tests.data.prepared import TOKENIZER
from tests.helpers import REAL_TOKENIZER, SHARED, needs

PIAF, XNLI = SHARED / "data/qa/piaf-v1.0.json", SHARED / "data/nli/xnli.fr.dev.tsv"
WIKINEURAL = SHARED / "data/ner/wikineural.fr.val.conllu"


@pytest.mark.parametrize("max_length", [16, 17, 100, 512])
def test_text_windows_together_are_the_text(max_length):
    text = " ".join(islice(demo.texts(), 20))
    (ids,) = TOKENIZER.encode_plain([text])
    windows = features.text_windows(TOKENIZER, text, max_length)
    assert all(window[0] == TOKENIZER.bos_id and window[-1] == TOKENIZER.eos_id for window in windows)
    assert [i for window in windows for i in window[1:-1]] == ids
    assert all(len(window) == max_length for window in windows[:-1]) and 2 < len(windows[-1]) <= max_length


def test_number_of_text_windows():
    text = "Le film"
    (ids,) = TOKENIZER.encode_plain([text])
    assert features.text_windows(TOKENIZER, text, len(ids) + 2) == [TOKENIZER.encode(text)]
    assert len(features.text_windows(TOKENIZER, text, len(ids) + 1)) == 2
    assert features.text_windows(TOKENIZER, "", 16) == features.text_windows(TOKENIZER, "  ", 16) == [[5, 6]]


@needs(REAL_TOKENIZER, XNLI)
@pytest.mark.parametrize("max_length", [20, 32, 50, 512])
def test_pairs_are_truncated_as_in_transformers(real, reference, max_length):
    """Its longest_first, if max_length is even (as 512 is)."""
    examples = read_task("nli", [XNLI], [].append)[:500]
    examples += [(a.premise, b.hypothesis * 9) for a, b in zip(examples, examples[50:100])]
    pairs = [example[:2] for example in examples]
    expected = reference(pairs, truncation="longest_first", max_length=max_length)["input_ids"]
    complete = reference(pairs)["input_ids"]
    for pair, ids, all_ids in zip(pairs, expected, complete, strict=True):
        assert features.pair_ids(real, *pair, max_length) == (ids, len(all_ids) > max_length)


@needs(REAL_TOKENIZER, XNLI)
def test_pairs_with_an_odd_max_length(real, reference):
    """If both texts are truncated, the first has one token more; in transformers, the longer one has."""
    for premise, hypothesis, _ in read_task("nli", [XNLI], [].append)[:300]:
        actual, truncated = features.pair_ids(real, premise, hypothesis, 21)
        expected = reference(premise, hypothesis, truncation="longest_first", max_length=21)["input_ids"]
        assert len(actual) == len(expected) <= 21
        assert abs(actual.index(real.eos_id) - expected.index(real.eos_id)) <= 1
        if truncated and actual != expected:
            assert (actual.index(real.eos_id), expected.index(real.eos_id)) == (10, 9)


def test_pair_ids_by_hand():
    one, two = TOKENIZER.encode_plain(["Le film est long.", "Il est court."])
    bos, eos = TOKENIZER.bos_id, TOKENIZER.eos_id
    assert min(len(one), len(two)) >= 4
    complete = [bos, *one, eos, eos, *two, eos]
    assert features.pair_ids(TOKENIZER, "Le film est long.", "Il est court.", len(complete)) == (complete, False)
    truncated = [bos, *one[:3], eos, eos, *two[:2], eos]
    assert features.pair_ids(TOKENIZER, "Le film est long.", "Il est court.", 9) == (truncated, True)
    assert features.pair_ids(TOKENIZER, "", "", 16) == ([bos, eos, eos, eos], False)
    assert features.pair_ids(TOKENIZER, "", "Il est court.", 7) == ([bos, eos, eos, *two[:3], eos], True)


def test_words_are_joined_with_french_spacing():
    words = ["L'", "été", "à", "Nantes", "(", "44", ")", ",", "c'", "est", "l’", "eau", "…", "!"]
    text, starts = features.join_words(words)
    assert text == "L'été à Nantes (44), c'est l’eau… !"
    assert [text[start : start + len(word)] for start, word in zip(starts, words)] == words
    assert features.join_words([]) == ("", [])


def check_pieces(tokenizer, words):
    pieces = features.word_pieces(tokenizer, words)
    _, starts = features.join_words(words)
    assert len(pieces.ids) == len(pieces.word_ids) == len(pieces.spans)
    assert list(dict.fromkeys(pieces.word_ids)) == list(range(len(words)))  # in order, at least one piece each
    for word, (start, end) in zip(pieces.word_ids, pieces.spans):
        assert starts[word] <= start <= end <= starts[word] + len(words[word]) or not words[word].strip()
    return pieces


WORDS = [["Le", "chat"], ["."], [".", ".", ".", "."], ["l'", "l'", "l'"], ["(", "(", "a"], []]
WORDS += [["en", "2006", ",", "à"], ["en", "2006", ",5"]]  # a piece spans two words; the second has another piece
WORDS += [["\u200b", "chat"], ["chat", "\u200b"], ["\u0301", "x"], ["e", "\u0301"]]  # the tokenizer drops a word
WORDS += [["<mask>", "a", "<s>"], ["🙂", "🙂", "漢"], ["▁", "a"], ["½", "ﷺ"], ["a b", "c"], ["New\u00a0York", "x"]]


@needs(REAL_TOKENIZER)
@pytest.mark.parametrize("words", WORDS, ids=str)
def test_every_word_has_its_own_piece(real, words):
    pieces = check_pieces(real, words)
    if words == ["Le", "chat"]:
        assert pieces == (real.encode("Le chat")[1:-1], [0, 1], [(0, 2), (3, 7)])
    if words == ["en", "2006", ",", "à"]:  # the running text has "▁2006,"
        assert real.pieces(pieces.ids) == ["▁en", "▁2006", ",", "▁à"]
    if "\u200b" in words:
        assert pieces.ids[words.index("\u200b")] == real.unk_id


def test_every_word_of_random_sentences_has_its_own_piece():
    rng = random.Random(0)
    parts = [*"é,.…()½«»'-🙂▁\u0301\u200b\u00a0", "le", "film", "l'", "e\u0301", "2006", "<mask>", "zzz"]
    for _ in range(1000):
        check_pieces(TOKENIZER, rng.choices(parts, k=rng.randrange(1, 8)))


@needs(REAL_TOKENIZER, WIKINEURAL)
def test_pieces_of_words_are_those_of_the_running_text_elsewhere(real):
    """Only where a piece of the running text spans two words, what stands between the spaces there differs."""
    differing, spanning = 0, 0
    for words, _ in read_task("ner", [WIKINEURAL], [].append)[:3000]:
        text, starts = features.join_words(words)
        ids, spans = real.encode_spans(text)
        spanned = [any(start < border < end for border in starts) for start, end in spans]
        chunk = [text.count(" ", 0, start) for start, _ in spans]
        bad = {number for number, spans_two in zip(chunk, spanned) if spans_two}
        found = features.word_pieces(real, words)
        ours = [(i, span) for i, span in zip(found.ids, found.spans) if text.count(" ", 0, span[0]) not in bad]
        assert ours == [(i, span) for i, span, number in zip(ids, spans, chunk) if number not in bad]
        differing, spanning = differing + (found.ids != ids), spanning + bool(bad)
    assert differing == spanning > 300


def test_borders_are_kept_and_the_rest_is_the_best_segmentation():
    ids, spans = TOKENIZER.encode_spans("Landerneau et Brest")
    assert TOKENIZER.encode_spans("Landerneau et Brest", [0, 11, 14]) == (ids, spans)  # at spaces
    for border in range(1, 10):
        cut_ids, cut_spans = TOKENIZER.encode_spans("Landerneau et Brest", [border])
        assert all(not start < border < end for start, end in cut_spans)
        assert TOKENIZER.decode(cut_ids) == "Landerneau et Brest"
        first, second = "▁Landerneau"[: border + 1], "Landerneau"[border:]
        segment = TOKENIZER._words.segmenter.segment
        assert cut_ids == [*segment(first), *segment(second), *ids[-sum(start > 10 for start, _ in spans) :]]


def test_pieces_of_running_text():
    """Windows are split at spaces; a piece ends where a word and punctuation meet."""
    text = "Le film, à Brest (2006) ."
    pieces = features.text_pieces(TOKENIZER, text)
    characters = [set() for _ in text.split()]
    for word, span in zip(pieces.word_ids, pieces.spans):
        characters[word].update(range(*span))
    assert ["".join(text[i] for i in sorted(found)) for found in characters] == text.split()
    assert pieces.word_ids == sorted(pieces.word_ids) and max(pieces.word_ids) == 5
    borders = {7, 18, 22}
    assert all(not start < border < end for border in borders for start, end in pieces.spans)
    assert features.text_pieces(TOKENIZER, " ") == ([], [], [])


@needs(REAL_TOKENIZER)
def test_a_piece_of_running_text_has_no_punctuation_beside_a_word(real):
    def pieces(text):
        return real.pieces(features.text_pieces(real, text).ids)

    assert pieces("en 2006, (4)") == ["▁en", "▁2006", ",", "▁(", "4", ")"]
    for text in ("aux États-Unis", "aujourd'hui", "l'été à Saint-Étienne"):  # hyphens and apostrophes may share one
        assert features.text_pieces(real, text).ids == real.encode(text)[1:-1]


WORDS_OF_TEXTS = {
    "l'Élysée, aujourd’hui": ["l", "Élysée", "aujourd", "hui"],
    "Jean-Pierre d'Artagnan": ["Jean", "Pierre", "d", "Artagnan"],
    "S.N.C.F. et 3,5 %": ["S", "N", "C", "F", "et", "3", "5"],
    "«\u00a0Été\u202f»": ["Été"],
    "E\u0301te\u0301 na\u00adtion": ["E\u0301te\u0301", "na\u00adtion"],  # combining accents, a soft hyphen
    "un\u200b👍🏽 \u0301 ▁ _a_": ["un", "a"],
    "lʼeau m² 漢字": ["l", "eau", "m²", "漢字"],
    "": [],
}


@pytest.mark.parametrize(("text", "expected"), WORDS_OF_TEXTS.items())
def test_words_of_running_text(text, expected):
    words = features.text_words(text)
    assert [text[start:end] for start, end in words] == expected
    assert words == sorted(words)


def test_pieces_of_each_word():
    spans = [(0, 2), (2, 5), (5, 5), (6, 9), (9, 10)]
    words = [(0, 1), (1, 3), (3, 5), (6, 10), (11, 12)]
    assert features.word_ranges(spans, words) == [range(0, 1), range(0, 2), range(1, 2), range(3, 5), range(5, 5)]
    assert features.word_ranges([], [(0, 1)]) == [range(0, 0)]


ENDS = {
    ("la S.N.C.F. va", "S.N.C.F"): "S.N.C.F.",
    ("avant J.-C. non", "J.-C"): "J.-C.",
    ("à Paris. Il", "Paris"): "Paris",
    ("plan B. Il", "plan B"): "plan B",
    ("Titanic (film) a", "Titanic (film"): "Titanic (film)",
    ("(le Titanic) a", "Titanic"): "Titanic",
    ("parti «\u00a0Vert\u00a0» a", "parti «\u00a0Vert"): "parti «\u00a0Vert\u00a0»",
    ("« Vert » a", "Vert"): "Vert",
    ("Titanic (film (2)) a", "Titanic (film (2)"): "Titanic (film (2))",
}


@pytest.mark.parametrize(("text", "found", "expected"), [(*key, value) for key, value in ENDS.items()])
def test_the_end_of_an_entity(text, found, expected):
    start = text.index(found)
    assert text[start : features.complete_end(text, start, start + len(found))] == expected


def test_what_stands_between_the_words_of_an_entity():
    assert all(features.joins_words(gap) for gap in ("-", "'", "’", " ", "\n", "\u00a0", "–", "' "))
    dashes = (" — ", " - ", "\u00a0–\u00a0")
    assert not any(features.joins_words(gap) for gap in (",", ". ", "\n\n", "\n \n", " (", " 👍 ", "/", *dashes))
    assert features.is_elision("l'été", 0, 1) and features.is_elision("QU’Anne", 0, 2)
    assert not features.is_elision("O'Connor", 0, 1) and not features.is_elision("l été", 0, 1)


def test_word_windows_by_hand():
    assert list(features.word_windows([0, 0, 1, 1, 2], 5)) == [(0, 5)]
    assert list(features.word_windows([0, 0, 1, 1, 2], 4)) == [(0, 4), (4, 5)]
    assert list(features.word_windows([0, 0, 1, 1, 2], 3)) == [(0, 2), (2, 5)]
    assert list(features.word_windows([0] * 7, 3)) == [(0, 3), (3, 6), (6, 7)]  # one word that is too long
    assert list(features.word_windows([0, 1, 1, 1, 1, 2], 3)) == [(0, 1), (1, 4), (4, 6)]
    assert list(features.word_windows([], 3)) == [(0, 0)]


def test_word_windows_are_full_and_split_between_words():
    rng = random.Random(0)
    for _ in range(2000):
        words = [word for word in range(rng.randrange(12)) for _ in range(rng.randrange(1, 6))]
        capacity = rng.randrange(1, 9)
        windows = list(features.word_windows(words, capacity))
        assert [index for start, end in windows for index in range(start, end)] == list(range(len(words)))
        assert all(end - start <= capacity for start, end in windows)
        for (start, end), (_, after) in pairwise(windows):
            assert words[end - 1] != words[end] or Counter(words)[words[end]] > capacity
            following = end + next((i for i, w in enumerate(words[end:]) if w != words[end]), len(words) - end)
            assert following - start > capacity  # the next word would not have fitted
            assert after > end


@needs(REAL_TOKENIZER, PIAF)
@pytest.mark.parametrize(("max_length", "stride"), [(512, 128), (100, 30), (64, 0), (60, 13)])
def test_question_windows_are_those_of_transformers(real, reference, max_length, stride):
    """In transformers too, the stride is the number of shared tokens, not the step between windows."""
    examples = random.Random(0).sample(read_task("qa", [PIAF], [].append), 150)
    longest = (max_length - 4) // 2  # question that this project does not truncate
    lengths = [len(ids) for ids in real.encode_plain([example.question for example in examples])]
    fits = [n <= longest and stride <= (max_length - 4 - n) // 2 for n in lengths]
    examples = [example for example, fit in zip(examples, fits) if fit]
    assert len(examples) > 130
    settings = dict(max_length=max_length, stride=stride, truncation="only_second")
    settings |= dict(return_overflowing_tokens=True, return_offsets_mapping=True)
    count = 0
    for example in examples:
        expected = reference(example.question, example.context, **settings)
        windows = features.question_windows(real, example.question, example.context, max_length, stride)
        assert [window.ids for window in windows] == expected["input_ids"]
        for index, window in enumerate(windows):
            inside = [i for i, part in enumerate(expected.sequence_ids(index)) if part == 1]
            assert inside == list(range(window.context_start, len(window.ids) - 1))
            assert window.spans == [expected["offset_mapping"][index][i] for i in inside]
        count += len(windows)
    assert count > len(examples) or max_length == 512


def test_question_windows_cover_the_context():
    rng = random.Random(0)
    texts = list(islice(demo.texts(), 40))
    for _ in range(200):
        question = " ".join(rng.choices(texts, k=rng.randrange(3)))
        context = " ".join(rng.choices(texts, k=rng.randrange(4)))
        max_length, stride = rng.randrange(16, 200), rng.choice((0, 1, 10, 128, 10_000))
        windows = features.question_windows(TOKENIZER, question, context, max_length, stride)
        ids, spans = TOKENIZER.encode_spans(context)
        index = 0
        for window in windows:
            assert len(window.ids) <= max_length
            part = window.ids[window.context_start : -1]
            assert len(part) == len(window.spans)
            index = next(i for i in range(index, len(ids) + 1) if spans[i : i + len(part)] == window.spans)
            assert part == ids[index : index + len(part)]
        assert index + len(part) == len(ids)
        starts = [window.spans[0] for window in windows if window.spans]
        assert starts == sorted(set(starts))
        assert len(windows) <= max(1, len(ids))
    (window,) = features.question_windows(TOKENIZER, "Où ?", "", 20, 5)
    assert window.spans == [] and window.ids == TOKENIZER.encode("Où ?", "")


def test_token_span():
    window = Window([5, 9, 6, 6, 20, 21, 22, 23, 6], 4, [(0, 2), (3, 5), (5, 9), (10, 11)])
    assert features.token_span(window, 0, 2) == (4, 4)
    assert features.token_span(window, 3, 9) == (5, 6)
    assert features.token_span(window, 3, 5) == (5, 5)  # adjacent tokens are not included
    assert features.token_span(window, 5, 9) == (6, 6)
    assert features.token_span(window, 4, 8) == (5, 6)  # parts of tokens: the tokens that contain it
    assert features.token_span(window, 0, 11) == (4, 7)
    assert features.token_span(window, 5, 12) is None
    later = Window(window.ids, 4, [(20, 22), (23, 25), (25, 29), (30, 31)])
    assert features.token_span(later, 0, 2) is None  # none of it is in the window
    assert features.token_span(later, 19, 22) is None  # its beginning is not
    assert features.token_span(later, 30, 40) is None
    assert features.token_span(Window([5, 6, 6, 6], 3, []), 0, 1) is None


TRIMMED = {"2006,": "2006", " le chat ": "le chat", "le chat ;": "le chat", "a\u00a0:": "a", ",;:": "", "": ""}
TRIMMED |= {"(le chat)": "(le chat)", "« le chat »": "« le chat »", "[a]": "[a]"}  # the counterpart is inside
TRIMMED |= {"le chat)": "le chat", "« le chat": "le chat", "“a": "a", "a (b": "a (b"}  # only the ends are trimmed
TRIMMED |= {"J.-C.": "J.-C.", ".NET": "NET"}  # a full stop at the end can be an abbreviation's


@pytest.mark.parametrize(("text", "expected"), TRIMMED.items())
def test_trim_answer(text, expected):
    around = f"xx{text}yy"
    start, end = features.trim_answer(around, 2, 2 + len(text))
    assert around[start:end] == expected
    assert 2 <= start <= end <= 2 + len(text)
    assert features.trim_answer(around, start, end) == (start, end)


def test_batches_contain_every_text_once_and_fill_the_budget():
    rng = random.Random(0)
    for _ in range(300):
        lengths = [rng.randrange(1, 100) for _ in range(rng.randrange(200))]
        budget = rng.choice((1, 50, 300, 10**6))
        for order in (None, random.Random(1)):
            batches = features.budget_batches(lengths, budget, order)
            assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
            for batch in batches:
                assert batch
                assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
                assert [lengths[i] for i in batch] == sorted(lengths[i] for i in batch)
        ordered = [lengths[i] for batch in features.budget_batches(lengths, budget) for i in batch]
        assert ordered == sorted(lengths)
    lengths = [5] * 10
    assert [len(batch) for batch in features.budget_batches(lengths, 20)] == [4, 4, 2]
    assert [len(batch) for batch in features.budget_batches(lengths, 4)] == [1] * 10
    assert features.budget_batches([], 20) == features.budget_batches([], 20, random.Random(0)) == []


def test_batches_in_random_order():
    lengths = [1 + i % 50 for i in range(3000)]
    one, two = (features.budget_batches(lengths, 100, random.Random(seed)) for seed in (0, 1))
    assert one == features.budget_batches(lengths, 100, random.Random(0)) and one != two
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in one]
    assert means != sorted(means)  # not sorted by length
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in one]
    assert sum(spread) / len(one) < 10  # but similar lengths within a batch
