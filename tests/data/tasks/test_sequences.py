"""Sentiment and NLI: every format, every error message, and the counts of real files."""

import json
import math
from collections import Counter

import pytest

from data import DataError
from data.tasks import PairExample, labels_of, read_task
from tests.data.tasks.files import ODD, REAL, THREE, json_lines, pairs, real, write
from tests.helpers import needs


def test_sentiment_json_lines(examples):
    allocine = json_lines({"review": "Nul.", "polarity": 0}, {"polarity": 1, "film": "x", "review": ""})
    assert examples("sentiment", allocine) == (pairs(("Nul.", "0"), ("", "1")), [])
    named = json_lines({"text": ODD, "label": "bon"}, {"text": " x ", "label": -1})
    assert examples("sentiment", named)[0] == pairs((ODD, "bon"), (" x ", "-1"))
    amazon = json_lines(*({"review_body": "t", "stars": stars} for stars in (1, 2, "3", 4, 5)))
    found, _ = examples("sentiment", amazon)
    assert [example.label for example in found] == ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]


@pytest.mark.parametrize("indent", [None, 2])
def test_sentiment_json_array(examples, indent):
    values = [{"review": "Un.", "polarity": 0}, {"review": "Deux.", "polarity": 1}]
    assert examples("sentiment", json.dumps(values, indent=indent))[0] == pairs(("Un.", "0"), ("Deux.", "1"))
    assert examples("sentiment", json.dumps(values[0], indent=indent))[0] == pairs(("Un.", "0"))


def test_sentiment_tab_separated(examples):
    content = f'id\tlabel\tsentence\n1\tpos\t"Oui\n2\tneg\t{ODD}\n\n3\tneg\t'
    assert examples("sentiment", content)[0] == pairs(('"Oui', "pos"), (ODD, "neg"), ("", "neg"))
    assert examples("sentiment", "review\tpolarity\nUn\t1\n")[0] == pairs(("Un", "1"))
    assert examples("sentiment", " stars\treview_body \n1\tUn\n")[0] == pairs(("Un", "1 star"))


def test_sentiment_tweets_in_two_files(tmp_path):
    text = write(tmp_path / "a_text.txt", f"{{un\n{ODD}\n\nquatre")
    write(tmp_path / "a_labels.txt", "0\n1\n2\n0\n")
    expected = pairs(("{un", "0"), (ODD, "1"), ("", "2"), ("quatre", "0"))
    assert read_task("sentiment", [str(text)], print) == expected
    for labels, message in (
        ("0\n1\n2", r"a_text.txt has 4 lines, .*a_labels.txt 3; one label per text"),
        ("0\n1\n \n0\n", r"a_labels.txt line 3: label is empty"),
        (None, r"labels of .*a_text.txt must be in .*a_labels.txt. There is no file .*a_labels.txt"),
    ):
        (tmp_path / "a_labels.txt").unlink()
        if labels:
            write(tmp_path / "a_labels.txt", labels)
        with pytest.raises(DataError, match=message):
            read_task("sentiment", [text], print)


def test_sentiment_errors(refused):
    good = {"review": "Un.", "polarity": 0}
    for bad, words in (
        ({"review": "Un."}, ("no label_text or", "label or polarity or stars", "It has review")),
        ({"polarity": 1, "note": 2}, ("no text or review or review_body or sentence", "polarity, note")),
        ({"review": 3, "polarity": 1}, ("review must be a string, not int",)),
        ({"review": None, "polarity": 1}, ("NoneType",)),
        ({"review": "Un.", "polarity": True}, ("polarity must be a string, not bool",)),
        ({"review": "Un.", "polarity": 1.5}, ("float",)),
        ({"review": "Un.", "label": " "}, ("label is empty",)),
        ({"review": "Un.", "stars": 6}, ("stars must be 1, 2, 3, 4 or 5", "not 6")),
        ({"review": "Un.", "stars": True}, ("bool",)),
        ({"\ud800": 1}, ("no text",)),
        (["Un.", 1], ("must be an object", "list")),
    ):
        refused("sentiment", "\n" + json_lines(good) + json.dumps(bad), " line 3", *words)
        refused("sentiment", json.dumps([good, bad]), ", object 2", *words)
    refused("sentiment", "Un film,0\nAutre,1\n", " line 1", "header, separated by commas", "It has Un film, 0")
    refused("sentiment", "Un film\t0\n", " line 1", "header, separated by tabs", "It has Un film, 0")
    refused("sentiment", "text\tlabel\nUn\t1\nDeux\n", " line 3", "1 columns", "header has 2")
    refused("sentiment", "text\tlabel\nUn\tDeux\t1\n", " line 2", "3 columns")
    refused("sentiment", "text\tlabel\nUn\t\n", " line 2", "label is empty")
    refused("sentiment", "text\tstars\nUn\t0\n", " line 2", "stars must be", "not 0")
    refused("sentiment", "text\tlabel\n", " contains no sentiment example")


@needs(REAL / "sentiment/xlm-t_french")
def test_real_tweets():
    for name, count in (("train", 1839), ("val", 324), ("test", 870)):
        found, reports = real("sentiment", f"sentiment/xlm-t_french/{name}_text.txt")
        assert len(found) == count and labels_of(found) == ["0", "1", "2"] and reports == []


# ---- several labels a text, and values -------------------------------------------------------------------------


def test_several_labels(tmp_path):
    values = [{"text": "a", "labels": ["joie", "peur", "joie"]}, {"text": "b", "label": []}, {"text": "c", "label": 3}]
    values += [{"text": "d", "labels": [0, 27], "label": "not this"}]
    path = write(tmp_path / "f", json_lines(*values))
    found = read_task("sentiment", [path], print, "multi_label_classification")
    assert found == pairs(("a", ("joie", "peur")), ("b", ()), ("c", ("3",)), ("d", ("0", "27")))
    assert labels_of(found) == ["0", "27", "3", "joie", "peur"]
    pair = {"premise": "P", "hypothesis": "h", "label": ["neutral", "autre"]}
    found = read_task("nli", [write(tmp_path / "g", json_lines(pair))], print, "multi_label_classification")
    assert found == [PairExample("P", "h", ("neutral", "autre"))]


def test_values(tmp_path):
    values = [{"text": "a", "label": 0.5}, {"text": "b", "score": 3, "label": 1}, {"text": "c", "label": " -1e3 "}]
    found = read_task("sentiment", [write(tmp_path / "f", json_lines(*values))], print, "regression")
    assert found == pairs(("a", 0.5), ("b", 3.0), ("c", -1000.0))
    assert all(type(example.label) is float for example in found)
    stsb = "sentence1\tsentence2\tsimilarity_score\nun\tdeux\t4.75\ntrois\tquatre\t0\n"
    found = read_task("nli", [write(tmp_path / "g", stsb)], print, "regression")
    assert found == [PairExample("un", "deux", 4.75), PairExample("trois", "quatre", 0.0)]
    write(tmp_path / "a_labels.txt", "1\n2.5")
    text = write(tmp_path / "a_text.txt", "un\ndeux")
    assert read_task("sentiment", [text], print, "regression") == pairs(("un", 1.0), ("deux", 2.5))


@pytest.mark.parametrize(
    "problem_type, label, words",
    [
        ("single_label_classification", ["joie"], "label must be a string, not list. .*--problem-type"),
        ("single_label_classification", 0.5, "label must be a string, not float. .*--problem-type"),
        ("multi_label_classification", 0.5, "label must be a string, not float"),
        ("multi_label_classification", [["joie"]], "label must be a string, not list"),
        ("multi_label_classification", ["joie", " "], "label is empty"),
        ("multi_label_classification", None, "label is empty"),
        ("multi_label_classification", [0, 1, 0], "label has a number for each class, whose names"),
        ("multi_label_classification", [0.0, 1.0], "label has a number for each class, whose names"),
        ("multi_label_classification", "['joie', 'peur']", r"label is \['joie', 'peur'\], which may be several"),
        ("multi_label_classification", "joie,peur", "label is joie,peur, which may be several labels"),
        ("regression", "", "label must be a finite number, not empty"),
        ("regression", "bon", "label must be a finite number, not bon"),
        ("regression", True, "label must be a finite number, not True"),
        ("regression", float("nan"), "label must be a finite number, not nan"),
        ("regression", "inf", "label must be a finite number, not inf"),
        ("regression", 10**400, "label must be a finite number, not 1000"),
        ("regression", [1.5], r"label must be a finite number, not \[1.5\]"),
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path, problem_type, label, words):
    path = write(tmp_path / "f", json_lines({"text": "a", "label": "1"}, {"text": "b", "label": label}))
    with pytest.raises(DataError, match=f"f line 2: {words}"):
        read_task("sentiment", [path], print, problem_type)
    pair = {"premise": "P", "hypothesis": "h", "label": label}
    with pytest.raises(DataError, match=f"g line 1: {words}"):
        read_task("nli", [write(tmp_path / "g", json_lines(pair))], print, problem_type)


# ---- natural language inference --------------------------------------------------------------------------------

OFFICIAL = ["language", "gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse"]
OFFICIAL += ["sentence2_parse", "sentence1", "sentence2", "promptID", "pairID", "genre"]
OFFICIAL += ["label1", "label2", "label3", "label4", "label5", "match"]


def official(*rows: tuple[str, str, str, str]) -> str:
    """rows: language, label, premise and hypothesis."""
    lines = [[*row[:2], "", "", "", "", *row[2:], "1", "1", "g", *[row[1]] * 5, "True"] for row in rows]
    return "\n".join("\t".join(line) for line in [OFFICIAL, *lines]) + "\n"


def test_nli_tab_separated(examples):
    body = "".join("\t".join(pair) + "\n" for pair in THREE)
    assert examples("nli", "premise\thypothesis\tlabel\n" + body) == (THREE, [])
    translated = ("premise\thypo\tlabel\n" + body).replace("contradiction", "contradictory")
    assert examples("nli", translated) == (THREE, [])
    assert examples("nli", translated.upper().replace("H0", "h0").replace("H1", "h1").replace("H2", "h2"))[0] == THREE
    quoted = f'premise\thypothesis\tlabel\tgenre\n"P\t{ODD}\tneutral\tg\n\t"\tneutral\t\n'
    assert examples("nli", quoted)[0] == [PairExample('"P', ODD, "neutral"), PairExample("", '"', "neutral")]


def test_only_the_french_rows_are_read(examples, refused):
    rows = [(language, pair.label, *pair[:2]) for pair in THREE for language in ("ar", "fr", "vi")]
    found, (report,) = examples("nli", official(*rows))
    assert found == THREE and report.endswith("/f: skipped 6 examples in other languages (ar, vi).")
    undecided = [(language, "-", "P", "h") for language in ("fr", "fr", "en")]
    found, reports = examples("nli", official(undecided[0], *rows, *undecided[1:]))
    assert found == THREE and "skipped 7 examples in other languages (ar, en, vi)" in reports[0]
    assert "skipped 2 examples whose annotators" in reports[1]
    reviews = [{"review_body": "a", "stars": 1, "language": code} for code in ("de", "fr", "en")]  # Amazon's
    assert examples("sentiment", json_lines(*reviews))[0] == pairs(("a", "1 star"))
    refused("sentiment", json_lines(reviews[0], reviews[2]), " has no French example (language fr), only de, en")
    named = [{"text": "a", "label": "x", "lang": name} for name in ("French", "fr-FR", "it")]
    assert len(examples("sentiment", json_lines(*named))[0]) == 2


def test_the_french_of_translations(examples, refused):
    """The form that the hub calls all_languages."""
    row = {"premise": {"en": "a", "fr": "P"}, "label": "neutral"}
    row["hypothesis"] = {"language": ["ar", "fr"], "translation": ["b", "h1"]}
    assert examples("nli", json_lines(row))[0] == [THREE[1]]
    refused("nli", json_lines({**row, "premise": {"en": "a"}}), " line 1", "premise must be a string, not dict")


def test_nli_json(examples):
    values = [pair._asdict() for pair in THREE]
    assert examples("nli", json_lines(*values)) == (THREE, [])
    others = [{"sentence1": one, "sentence2": two, "gold_label": label, "language": "fr"} for one, two, label in THREE]
    english = {"sentence1": "a", "sentence2": "b", "gold_label": "neutral", "language": "en"}
    assert examples("nli", json_lines(english, *others, english))[0] == THREE


def test_labels_by_name_are_preferred_to_numbers(examples):
    """The same number means different things in different data sets."""
    for numbers in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        rows = [{**pair._asdict(), "label": n, "label_text": pair.label} for n, pair in zip(numbers, THREE)]
        assert examples("nli", json_lines(*rows)) == (THREE, [])
    reviews = [{"text": "a", "label": 1, "label_text": "positif"}]
    assert examples("sentiment", json_lines(*reviews))[0] == pairs(("a", "positif"))
    assert examples("sentiment", "text,label,label_name\na,1,positif\n")[0] == pairs(("a", "positif"))


def test_what_a_number_means_is_said_by_the_label_map(examples, refused):
    values = [{**pair._asdict(), "label": i} for i, pair in enumerate(THREE)]
    refused("nli", json_lines(*values), " line 1: label is 0, a number.", "--label-map 0=entailment 1=neutral")
    table = "premise\thypothesis\tlabel\n" + "".join(f"P\th{i}\t{i}\n" for i in range(3))
    refused("nli", table, " line 2: label is 0, a number.", "--label-map 0=entailment")
    refused("nli", table.replace("\t0\n", "\t-1\n"), " line 2: label is -1, a number.")
    for content in (json_lines(*values), table):
        label_map = {"0": "entailment", "1": "neutral", "2": "contradiction"}
        assert examples("nli", content, label_map=label_map) == (THREE, [])
        other_way_round = {"0": "contradiction", "1": "neutral", "2": "entailment"}
        labels = [pair.label for pair in examples("nli", content, label_map=other_way_round)[0]]
        assert labels == ["contradiction", "neutral", "entailment"]
    refused("nli", table, " line 4: label is 2, a number.", label_map={"0": "entailment", "1": "neutral"})


def test_any_labels_and_their_map(examples):
    two = "premise\thypothesis\tlabel\na\tb\tcompatibles\na\tb\tcontradiction\n"
    labels = [pair.label for pair in examples("nli", two)[0]]
    assert labels == ["compatibles", "contradiction"]
    mapped = examples("nli", two, label_map={"compatibles": "non-contradiction"})[0]
    assert [pair.label for pair in mapped] == ["non-contradiction", "contradiction"]
    dashes = two.replace("compatibles", "-").replace("contradiction", "-1")
    assert [pair.label for pair in examples("nli", dashes, label_map={"-": "oui", "-1": "non"})[0]] == ["oui", "non"]
    stars = "stars\treview_body\n1\ta\n5\tb\n4\tc\n"
    found = examples("sentiment", stars, label_map={"1": "nég", "5 stars": "pos", "4": "pos"})[0]
    assert found == pairs(("a", "nég"), ("b", "pos"), ("c", "pos"))


SICK = """pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set
1\tP\th0\tENTAILMENT\t4.5\tTRAIN
2\tP\th1\tNEUTRAL\t3.6\tTRIAL
3\tP\th2\tCONTRADICTION\t1\tTEST
"""


def test_the_original_columns_of_sick(examples, refused):
    assert examples("nli", SICK) == (THREE, [])
    for part, example in zip(("train", "dev", "test"), THREE):
        found, (report,) = examples("nli", SICK, part=part)
        assert found == [example]
        assert report.endswith(f"its rows say that they are of dev and test and train; 1 of 3 are read for {part}.")
    second = SICK.replace("TRAIN", "TRIAL").replace("TEST", "TRIAL")  # of one part: the file's user knows better
    found, (report,) = examples("nli", second, part="test")
    assert found == THREE and report.endswith("its rows say that they are of dev; 3 of 3 are read for test.")
    assert examples("nli", second, part="dev") == examples("nli", second) == (THREE, [])
    refused("nli", SICK.replace("TRIAL", "PART"), " line 3: SemEval_set must be train, dev (trial", "not PART")
    assert examples("nli", SICK.replace("\tSemEval_set", "\tx"), part="test") == (THREE, [])
    judged = SICK.replace("entailment_label", "entailment_judgment")  # as SemEval's files have it
    assert examples("nli", judged)[0] == THREE


def test_nli_errors(refused):
    head = "premise\thypothesis\tlabel\n"
    refused("nli", head + "a\tb\t\n", " line 2", "label is empty")
    refused("nli", head + "a\tb\n", " line 2", "2 columns", "header has 3")
    refused("nli", head + "a\tb\t-\n", " contains no nli example")
    refused("nli", "a\tb\tneutral\n", " line 1", "premise or sentence1", "It has a, b, neutral")
    refused("nli", official(("en", "neutral", "a", "b"), ("de", "neutral", "a", "b")), " has no French", "de, en")
    good = {"premise": "a", "hypothesis": "b", "label": "neutral"}
    for bad, words in (
        ({**good, "label": 3}, ("label is 3, a number",)),
        ({**good, "label": None}, ("label is empty",)),
        ({**good, "label": True}, ("bool",)),
        ({**good, "premise": {"en": "a"}}, ("premise must be a string, not dict",)),
        ({**good, "hypothesis": None}, ("hypothesis",)),
        ({**good, "language": 3}, ("language",)),
        ({"premise": "a", "label": 1}, ("hypothesis or hypo or sentence2",)),
    ):
        refused("nli", json_lines(good, bad), " line 2", *words)


@needs(REAL / "nli")
def test_real_nli():
    found, reports = real("nli", "nli/xnli.fr.dev.tsv")
    assert Counter(pair.label for pair in found) == dict.fromkeys(("contradiction", "entailment", "neutral"), 830)
    counts = [len(real("nli", f"nli/sick-fr.{name}.tsv")[0]) for name in ("train", "trial", "test")]
    assert counts == [4439, 495, 4906] and reports == []


def test_integers_with_gaps(examples, refused):
    """As pandas writes them."""
    rows = [{"text": "a", "label": 0.0}, {"text": "b", "label": 1.0}]
    assert examples("sentiment", json_lines(*rows)) == (pairs(("a", "0"), ("b", "1")), [])
    for value in (math.nan, None):
        refused("sentiment", json_lines(*rows, {"text": "c", "label": value}), " line 3", "label is empty")


def test_a_number_that_means_undecided(examples):
    rows = [{"premise": "P", "hypothesis": f"h{i}", "label": label} for i, label in enumerate((0, 1, 2, -1))]
    names = {"0": "entailment", "1": "neutral", "2": "contradiction", "-1": "-"}
    found, reports = examples("nli", json_lines(*rows), label_map=names)
    assert found == THREE and "skipped 1 examples" in reports[0]
