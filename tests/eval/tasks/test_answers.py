"""SQuAD's rules, by hand and word for word against a plain reading of them; French; reports."""

import json
import random
import re
import string

import numpy
import pytest

from data import DataError
from eval.tasks.qa import answer_f1, exact_match, inclusion, normalise, qa_report


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Cat, an  animal", "cat animal"),
        ("A", ""),
        ("theatre another a.n", "theatre another"),  # punctuation goes first: a.n is then an
        ("\tU.S.A.\u00a0!", "usa"),
        ("don't", "dont"),
        ("the-end", "theend"),
        ("«the» 3,000 $ 5 €", "« » 3000 5 €"),  # ASCII's punctuation only
        ("l'été le", "lété le"),  # not its articles
        ("don’t…", "don’t…"),
    ],
)
def test_english_by_hand(text, expected):
    assert normalise(text, "en") == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("L'été", "été"),
        ("L’été", "été"),
        ("à l'École, le soir", "à école soir"),
        ("Le la les l'x du des au aux un une x", "x x"),
        ("LES Unes", "unes"),
        ("de la Loire", "de loire"),  # "de" is not on FQuAD's list
        ("d'été aujourd’hui", "dété aujourdhui"),
        ("« dix-huit » – 1914–1918…", "dixhuit 19141918"),
        ("l'", ""),
        ("mal'x", "malx"),
        ("the a an", "the a an"),
        ("5\u202f000 €", "5 000 €"),
    ],
)
def test_french_by_hand(text, expected):
    assert normalise(text, "fr") == expected


def test_another_language_is_said():
    with pytest.raises(DataError, match="French .* or English .*, not in 'de'"):
        normalise("x", "de")


def squads_words(text: str) -> list[str]:
    """SQuAD's rules once more, from its paper: a substitution a rule."""
    text = re.sub("[" + re.escape(string.punctuation) + "]", "", text.lower())
    return [word for word in re.split(r"\s+", re.sub(r"(?<!\w)(the|an|a)(?!\w)", " ", text)) if word]


def test_english_is_squads_on_any_text():
    chance = random.Random(0)
    pieces = ["the", "The", "a", "an", "cat", "CAT", "été", "’s", "«", "\u00a0", "\t", "3", "theatre", "İ", "ß"]
    pieces = [*4 * pieces, *string.punctuation, " "]
    partly = 0
    for number in range(5000):
        between = ["", " "][number % 2]
        prediction, answer = (between.join(chance.choices(pieces, k=chance.randrange(12))) for _ in range(2))
        words, gold = squads_words(prediction), squads_words(answer)
        assert normalise(prediction, "en").split() == words
        assert exact_match(prediction, [answer], "en") == (words == gold)
        common = sum(min(words.count(word), gold.count(word)) for word in set(words))
        if not words or not gold:
            f1 = float(words == gold)
        elif not common:
            f1 = 0
        else:
            precision, recall = common / len(words), common / len(gold)
            f1 = 2 * precision * recall / (precision + recall)
        assert answer_f1(prediction, [answer], "en") == pytest.approx(f1)
        partly += 0 < f1 < 1
    assert partly > 300


@pytest.mark.parametrize(
    "prediction, answers, exact, f1, included",
    [
        ("l'été 1914", ["Été 1914."], 1, 1, 1),
        ("en été 1914", ["l’été 1914"], 0, 4 / 5, 1),
        ("1914", ["l’été 1914"], 0, 2 / 3, 0),  # the answer in the prediction, not the other way round
        ("Paris Paris", ["Paris"], 0, 2 / 3, 1),  # each word as often as it is there
        ("Paris Paris Lyon", ["Paris Nice Paris"], 0, 2 / 3, 0),
        ("Lyon", ["Paris", "Lyon", "à Lyon"], 1, 1, 1),
        ("à Lyon", ["Paris", "Lyon"], 0, 2 / 3, 1),
        ("1996", ["6"], 0, 0, 1),  # as characters
        ("Lyon", ["Paris"], 0, 0, 0),
        ("", [""], 1, 1, 1),
        ("le", [""], 1, 1, 1),
        ("Lyon", [""], 0, 0, 0),  # nothing is in everything; not here
        ("", ["Lyon"], 0, 0, 0),
        ("Lyon", ["", "Lyon"], 1, 1, 1),
    ],
)
def test_scores_by_hand(prediction, answers, exact, f1, included):
    assert exact_match(prediction, answers, "fr") == exact
    assert answer_f1(prediction, answers, "fr") == pytest.approx(f1)
    assert inclusion(prediction, answers, "fr") == included
    report = qa_report([prediction], [answers], "fr")
    expected = {"exact_match": exact, "f1": f1, "inclusion": included}
    assert {name: report[name]["value"] for name in expected} == pytest.approx(expected)


def test_the_language_is_that_of_the_caller():
    assert [exact_match("the cat", ["cat"], language) for language in ("en", "fr")] == [1, 0]
    assert [answer_f1("le chat", ["chat"], language) for language in ("en", "fr")] == pytest.approx([2 / 3, 1])
    assert [inclusion("l'un", ["l'un l'"], language) for language in ("en", "fr")] == [0, 1]
    assert qa_report(["the cat"], [["cat"]], "en")["exact_match"]["value"] == 1


def test_the_report_is_of_means_over_questions_with_intervals():
    chance = random.Random(0)
    words = ["un", "chat", "chien", "été", "l'eau", "3"]
    predictions = [" ".join(chance.choices(words, k=2)) for _ in range(400)]
    answers = [
        [" ".join(chance.choices(words, k=chance.randrange(1, 4))) for _ in range(chance.randrange(1, 4))]
        for _ in range(400)
    ]
    report = qa_report(predictions, answers, "fr")
    assert list(report) == ["exact_match", "f1", "inclusion", "count"] and report["count"] == 400
    assert report == json.loads(json.dumps(report))
    for name, measure in (("exact_match", exact_match), ("f1", answer_f1), ("inclusion", inclusion)):
        scores = [measure(prediction, gold, "fr") for prediction, gold in zip(predictions, answers)]
        found, mean, error = report[name], numpy.mean(scores), numpy.std(scores) / 20
        assert found["value"] == pytest.approx(mean) and 0.05 < mean < 0.95
        # a mean of 400 is about normal; the ends of an interval of 1,000 resamples vary by some 0.08 errors
        assert found["low"] == pytest.approx(mean - 1.96 * error, abs=0.35 * error)
        assert found["high"] == pytest.approx(mean + 1.96 * error, abs=0.35 * error)
    assert report["exact_match"]["value"] <= min(report["f1"]["value"], report["inclusion"]["value"])
    assert qa_report(predictions, answers, "fr", seed=1) != report


def test_the_gold_answers_themselves_score_1():
    for language in ("fr", "en"):
        texts = ["L'été", "« Oui »", "the end", "", "le", "a", "3,5 %"]
        report = qa_report(texts, [["autre", text] for text in texts], language)
        assert all(report[name] == {"value": 1, "low": 1, "high": 1} for name in ("exact_match", "f1", "inclusion"))


@pytest.mark.parametrize(
    "predictions, answers, message",
    [
        (["a"], [["a"], ["b"]], "1 predictions, but answers to 2 questions"),
        ([], [], "nothing to measure"),
        (["a", "b"], [["a"], []], "no gold answer"),
    ],
)
def test_what_is_wrong_is_said(predictions, answers, message):
    with pytest.raises(DataError, match=message):
        qa_report(predictions, answers, "fr")
