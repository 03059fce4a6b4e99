"""Baselines: against scikit-learn's dummy classifier, and contexts whose best words can be counted by hand."""

import numpy
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from data.tasks import Answer, PairExample, QuestionExample, TextExample, WordsExample
from eval.tasks.baselines import CONTEXT_WORDS, baseline_report, overlap_answer
from eval.tasks.qa import answer_f1


def reviews(labels):
    return [TextExample("a", label) for label in labels]


def question(asked, context, answer="Brest"):
    return QuestionExample("1", context, asked, (Answer(answer, None),))


@pytest.mark.parametrize(
    "train, test", [("aabbb", "ababab"), ("bbaa", "aab"), ("cabcab", "abc"), ("a", "a"), ("aab", "ccb"), ("ccb", "aaa")]
)
@pytest.mark.filterwarnings("ignore:A single label")
def test_the_majority_label(train, test):
    dummy = DummyClassifier(strategy="most_frequent").fit(numpy.zeros(len(train)), list(train))
    guesses = dummy.predict(numpy.zeros(len(test)))
    report = baseline_report(reviews(train), reviews(test))
    assert report["accuracy"]["value"] == pytest.approx(accuracy_score(list(test), guesses))
    assert report["mcc"]["value"] == pytest.approx(matthews_corrcoef(list(test), guesses))
    assert report["by_label"].keys() == set(train + test) and report["count"] == len(test)
    assert report == baseline_report([PairExample("", "", x) for x in train], [PairExample("", "", x) for x in test])


def test_top_2_are_the_two_most_frequent_labels():
    report = baseline_report(reviews("aaabbc"), reviews("abbc"))
    assert report["accuracy"]["value"] == 0.25 and report["top_2_accuracy"]["value"] == 0.75
    assert report["macro_f1"]["value"] == pytest.approx(f1_score(list("abbc"), list("aaaa"), average="macro"))


def test_no_entities():
    train = [WordsExample(("Brest",), ("B-LOC",))]
    test = [WordsExample(("Anne", "rit"), ("B-PER", "O")), WordsExample(("à", "Brest"), ("O", "B-LOC"))]
    report = baseline_report(train, test)
    assert report["entity_f1"]["value"] == report["entity_precision"]["value"] == 0
    assert report["subword_f1"]["value"] == pytest.approx(0.5 * 2 / 3)  # of four words two are O
    nothing = baseline_report(train, [WordsExample(("à",), ("O",))])
    assert nothing["entity_f1"]["value"] == 0 and nothing["subword_f1"]["value"] == 1


@pytest.mark.parametrize(
    "asked, context, width, answer",
    [
        ("Où habite Anne ?", "Anne habite Brest.", 1, "Brest"),
        ("Où habite Anne ?", "Paul court. " * 10 + "Anne habite Brest.", 1, "court"),  # the first of equals, 10 away
        ("Combien coûte la baguette ?", "Le pain : 2 euros, la baguette coûte 1,20 euro, dit-on.", 1, "Le"),  # a tie
        ("Anne", "Anne", 1, "Anne"),  # nothing else is there
        ("Anne", "Anne", 5, "Anne"),
        ("Anne", "un deux trois", 5, "un deux trois"),
        ("", "un deux trois", 2, "un deux"),
        ("Anne", "", 1, ""),
        ("Anne", " …!? ", 3, ""),
        ("prix", "« prix » : 1.234,5 euros", 2, "1.234,5 euros"),
    ],
)
def test_the_sliding_window_by_hand(asked, context, width, answer):
    assert overlap_answer(asked, context, width, "fr") == answer


def naive(asked, context, width):
    """The same word by word, for words without punctuation or articles."""
    words, asked = context.split(), set(asked.split())
    best = None
    for start in range(max(len(words) - width + 1, 1)):
        inside = words[start : start + width]
        around = words[max(start - CONTEXT_WORDS, 0) : start + width + CONTEXT_WORDS]
        score = sum(word in asked for word in around) - 2 * sum(word in asked for word in inside)
        if best is None or score > best[0]:
            best = score, " ".join(inside)
    return best[1]


def test_the_sliding_window_equals_a_naive_one():
    random = numpy.random.default_rng(0)
    for _ in range(200):
        context = " ".join(random.choice(list("bcdfghjkmn"), size=random.integers(1, 60)))
        asked = " ".join(random.choice(list("bcdfghjkmn"), size=3))
        width = int(random.integers(1, 6))
        assert overlap_answer(asked, context, width, "fr") == naive(asked, context, width)


def test_answers_have_the_median_length_of_training():
    train = [question("", "", answer) for answer in ("un deux", "un deux trois", "un", "…")]
    test = [question("Où habite Anne ?", "Anne habite Brest même, dit-elle."), question("Anne", "")]
    guess = overlap_answer(test[0].question, test[0].context, 2, "fr")  # the median of 2, 3, 1, 0 is 1.5
    assert guess == "Brest même"
    report = baseline_report(train, test)
    assert report["f1"]["value"] == pytest.approx(answer_f1(guess, ["Brest"], "fr") / 2)
    assert report["exact_match"]["value"] == 0 and report["inclusion"]["value"] == 0.5
    punctuation = baseline_report([question("", "", "…")], test)  # one word at least
    assert punctuation["exact_match"]["value"] == 0.5
