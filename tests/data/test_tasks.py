"""Files to examples: every format of the four tasks, every error message, and the counts of real files."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data import DataError, OptionError
from data.tasks import Answer, PairExample, QuestionExample, TextExample, WordsExample, labels_of, read_task
from tests.helpers import SHARED, needs

REAL = SHARED / "data"
ODD = "a\u2028b\x85c\u00a0d\x0be"  # str.splitlines and str.split would split it


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def json_lines(*values) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


@pytest.fixture
def examples(tmp_path):
    """A function of a task and a file's content -> its examples, the reports."""

    def read(task: str, content: str | bytes, name: str = "f"):
        reports = []
        return read_task(task, [write(tmp_path / name, content)], reports.append), reports

    return read


@pytest.fixture
def refused(tmp_path):
    """A check that the error for a content begins with the file's name and location, and contains these words."""

    def check(task: str, content: str | bytes, where: str, *words: str):
        with pytest.raises(DataError) as error:
            read_task(task, [write(tmp_path / "bad.x", content)], [].append)
        message = str(error.value)
        assert message.startswith(f"{tmp_path}/bad.x{where}"), message
        assert all(word in message for word in words), message
        assert message.endswith(".") and len(message.encode()) < 500  # raises for a lone surrogate

    return check


def pairs(*rows: tuple[str, str]) -> list[TextExample]:
    return [TextExample(*row) for row in rows]


# ---- sentiment -------------------------------------------------------------------------------------------------


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
        (None, r"labels of .*a_text.txt must be in .*a_labels.txt, which does not exist"),
    ):
        (tmp_path / "a_labels.txt").unlink()
        if labels:
            write(tmp_path / "a_labels.txt", labels)
        with pytest.raises(DataError, match=message):
            read_task("sentiment", [text], print)


def test_sentiment_errors(refused):
    good = {"review": "Un.", "polarity": 0}
    for bad, words in (
        ({"review": "Un."}, ("no label or polarity or stars", "It has review")),
        ({"polarity": 1, "note": 2}, ("no text or review or review_body or sentence", "polarity, note")),
        ({"review": 3, "polarity": 1}, ("review must be a string, not int",)),
        ({"review": None, "polarity": 1}, ("NoneType",)),
        ({"review": "Un.", "polarity": True}, ("polarity must be a string, not bool",)),
        ({"review": "Un.", "polarity": 1.0}, ("float",)),
        ({"review": "Un.", "label": " "}, ("label is empty",)),
        ({"review": "Un.", "stars": 6}, ("stars must be 1, 2, 3, 4 or 5", "not 6")),
        ({"review": "Un.", "stars": True}, ("bool",)),
        ({"\ud800": 1}, ("no text",)),
        (["Un.", 1], ("must be an object", "list")),
    ):
        refused("sentiment", "\n" + json_lines(good) + json.dumps(bad), " line 3", *words)
        refused("sentiment", json.dumps([good, bad]), ", object 2", *words)
    refused("sentiment", "Un film,0\nAutre,1\n", " line 1", "tab-separated header", "It has Un film,0")
    refused("sentiment", "text\tlabel\nUn\t1\nDeux\n", " line 3", "1 columns", "header has 2")
    refused("sentiment", "text\tlabel\nUn\tDeux\t1\n", " line 2", "3 columns")
    refused("sentiment", "text\tlabel\nUn\t\n", " line 2", "label is empty")
    refused("sentiment", "text\tstars\nUn\t0\n", " line 2", "stars must be", "not 0")
    refused("sentiment", "text\tlabel\n", " contains no sentiment example")


# ---- natural language inference --------------------------------------------------------------------------------

THREE = [PairExample("P", f"h{i}", label) for i, label in enumerate(("entailment", "neutral", "contradiction"))]
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
    quoted = f'premise\thypothesis\tlabel\tgenre\n"P\t{ODD}\tneutral\tg\n\t"\tneutral\t\n'
    assert examples("nli", quoted)[0] == [PairExample('"P', ODD, "neutral"), PairExample("", '"', "neutral")]


def test_only_the_french_rows_of_xnli_are_read(examples):
    rows = [(language, pair.label, *pair[:2]) for pair in THREE for language in ("ar", "fr", "vi")]
    assert examples("nli", official(*rows)) == (THREE, [])
    undecided = [(language, "-", "P", "h") for language in ("fr", "fr", "en")]
    found, (report,) = examples("nli", official(undecided[0], *rows, *undecided[1:]))
    assert found == THREE and "skipped 2 examples" in report and "/f:" in report


def test_nli_json(examples):
    values = [pair._asdict() for pair in THREE]
    assert examples("nli", json_lines(*values)) == (THREE, [])
    others = [{"sentence1": one, "sentence2": two, "gold_label": label, "language": "fr"} for one, two, label in THREE]
    english = {"sentence1": "a", "sentence2": "b", "gold_label": "neutral", "language": "en"}
    assert examples("nli", json_lines(english, *others, english)) == (THREE, [])
    found, (report,) = examples("nli", json_lines(*({**pair, "label": i} for i, pair in enumerate(values))))
    assert found == THREE and "{0: 'entailment', 1: 'neutral', 2: 'contradiction'}" in report


def test_nli_errors(refused):
    head = "premise\thypothesis\tlabel\n"
    unrelated = head + "a\tb\tneutral\na\tb\tunrelated\n"
    refused("nli", unrelated, " line 3", "label must be", "contradiction, not unrelated")
    refused("nli", head + "a\tb\t0\n", " line 2", "label must be one of", "not 0")
    refused("nli", head + "a\tb\t\n", " line 2", "label is empty")
    refused("nli", head + "a\tb\n", " line 2", "2 columns", "header has 3")
    refused("nli", head + "a\tb\t-\n", " contains no nli example")
    refused("nli", "a\tb\tneutral\n", " line 1", "premise or sentence1", "It has a, b, neutral")
    refused("nli", official(("en", "neutral", "a", "b"), ("de", "neutral", "a", "b")), " has no French", "de, en")
    good = {"premise": "a", "hypothesis": "b", "label": 2}
    for bad, words in (
        ({**good, "label": 3}, ("label must be", "not 3")),
        ({**good, "label": -1}, ("label must be", "not -1")),
        ({**good, "label": True}, ("bool",)),
        ({**good, "premise": {"fr": "a"}}, ("premise must be a string, not dict",)),
        ({**good, "hypothesis": None}, ("hypothesis",)),
        ({**good, "language": 3}, ("language",)),
        ({"premise": "a", "label": 1}, ("hypothesis or hypo or sentence2",)),
    ):
        refused("nli", json_lines(good, bad), " line 2", *words)


# ---- named entities --------------------------------------------------------------------------------------------

SENTENCES = [
    WordsExample(("Anne", "Roc", "vit", "à", "Aix", "#", "|"), ("B-PER", "I-PER", "O", "O", "I-LOC", "O", "O")),
    WordsExample(("#", "10\u00a0000", "[", "{", ODD), ("O", "O", "O", "B-MISC", "I-ORG")),
    WordsExample(("1",), ("O",)),
]


def columns(row: str, sentences=SENTENCES) -> str:
    """row: the format of a line, from the word's index (i from 0, j from 1), the word and its tag."""
    blocks = [[row.format(i=i, j=i + 1, word=w, tag=t) for i, (w, t) in enumerate(zip(*s))] for s in sentences]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("row", ["{word} {tag}", "{word} NOM B-NP {tag}", "{i} {word} {tag}", "{j} {word} NOM {tag}"])
def test_ner_columns(examples, separator, row):
    row = row.replace(" ", separator)
    content = columns(row)
    assert examples("ner", content) == (SENTENCES, [])
    around = "-DOCSTART- -X- O O\n\n# id = 1\n" + content + "\n\n \n-DOCSTART-\n# texte = Le groupe O\n\n" + content
    assert examples("ner", around) == (SENTENCES * 2, [])
    inside = content.replace("\n", "\n# un commentaire\n", 1)
    assert examples("ner", inside) == (SENTENCES, [])
    backwards = SENTENCES[1:] + SENTENCES[:1]  # begins with the word #
    assert examples("ner", columns(row, backwards))[0] == backwards


@pytest.mark.parametrize("word", ["[", "{", '{"', "[{"])
def test_ner_sentence_that_begins_with_a_bracket(examples, word):
    sentence = [WordsExample((word, "]"), ("O", "B-MISC"))]
    for content in (f"{word}\tO\n]\tB-MISC", f"{word} X O\n] X B-MISC", f"{word}|O ]|B-MISC", f"{word}|X|O ]|X|B-MISC"):
        assert examples("ner", content) == (sentence, [])


def test_words_that_are_numbers_are_not_an_index_column(examples):
    content = "1789 NUM O\nfut NOM B-MISC\n\n3 NUM O\n4 NUM O\n"
    expected = [WordsExample(("1789", "fut"), ("O", "B-MISC")), WordsExample(("3", "4"), ("O", "O"))]
    assert examples("ner", content)[0] == expected
    assert examples("ner", "0\tO\n1\tB-MISC\n")[0] == [WordsExample(("0", "1"), ("O", "B-MISC"))]


def test_ner_wikiner(examples):
    for parts in ("{}|NOM|{}", "{}|{}"):
        spelt = [" ".join(map(parts.format, *sentence)) for sentence in SENTENCES]
        assert examples("ner", "\n" + "\n\n".join(spelt) + " \n") == (SENTENCES, [])
        assert examples("ner", "\n".join(spelt)) == (SENTENCES, [])


@pytest.mark.parametrize("names", [("tokens", "ner_tags"), ("words", "tags")])
def test_ner_json(examples, names):
    values = [dict(zip(names, sentence)) for sentence in SENTENCES]
    assert examples("ner", json_lines(values[0], {name: [] for name in names}, *values[1:])) == (SENTENCES, [])
    assert examples("ner", json.dumps(values, indent=1)) == (SENTENCES, [])


def test_ner_errors(refused):
    for tag in ("S-PER", "E-PER", "U-PER", "L-PER", "B-", "B", "o", "PER", "B_PER", "I-", "OO", ""):
        refused("ner", f"0\tun\tO\n1\tdeux\t{tag}\n", " line 2", f"the tag '{tag}'", "B-TYPE")
        if tag:
            refused("ner", f"un O\ndeux {tag}\n", " line 2", f"the tag '{tag}'")
        refused("ner", f"un|N|O deux|N|O\nun|N|O deux|N|{tag}\n", " line 2", f"the tag '{tag}'")
        refused("ner", json_lines({"tokens": ["un"], "tags": [tag]}), " line 1", f"the tag '{tag}'")
    for word in ("", " ", "\u00a0", "\u2028"):
        refused("ner", f"0\tun\tO\n\n0\tdeux\tO\n1\t{word}\tO\n", " line 4", "empty word")
        refused("ner", f"un\tO\n{word}\tO\n", " line 2", "empty word")
        refused("ner", json_lines({"tokens": ["un", word], "tags": ["O", "O"]}), " line 1", "empty word")
    refused("ner", "un|N|O deux|N|O\n|N|O\n", " line 2", "empty word")
    refused("ner", "0\tun\tO\n1\tdeux\n", " line 2", "2 columns, not 3")
    refused("ner", "un NOM O\ndeux O\n", " line 2", "2 columns, not 3")
    refused("ner", "un\nO\n", " line 1", "1 columns, not 2")
    refused("ner", "0\tun\tO\n1\tdeux\tO\nx\ttrois\tO\n", " line 3", "begin with the index", "not with x")
    refused("ner", "un|N|O deux|N|O\nun|N|O deux|O\n", " line 2", "deux|O must have 3 parts")
    refused("ner", "un|O deux|O\nun|O deux\n", " line 2", "deux must have 2 parts")
    refused("ner", "# rien\n\n-DOCSTART- -X- O O\n", " contains no ner example")
    good = {"tokens": ["un", "deux"], "ner_tags": ["O", "O"]}
    for bad, words in (
        ({**good, "ner_tags": ["O"]}, ("2 words and 1 tags",)),
        ({**good, "ner_tags": [0, 1]}, ("integer tags", "names")),
        ({**good, "ner_tags": "OO"}, ("ner_tags must be a list, not str",)),
        ({**good, "tokens": ["un", 2]}, ("a string, not int",)),
        ({**good, "ner_tags": ["O", None]}, ("a string, not NoneType",)),
        ({"tokens": ["un"]}, ("no ner_tags or tags", "It has tokens")),
    ):
        refused("ner", json_lines(good, bad), " line 2", *words)


# ---- question answering ----------------------------------------------------------------------------------------

CONTEXT = "L'été\u2028dure 😀 trois mois."
QUESTION = {"id": "q1", "question": "Combien ?", "answers": [{"text": "trois", "answer_start": 13}]}
EXPECTED = QuestionExample("q1", CONTEXT, "Combien ?", (Answer("trois", 13),))


def squad(*qas: dict) -> dict:
    return {"version": "1", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": list(qas)}]}]}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_qa_squad(examples, indent, ascii_only):
    answers = [{"text": "mois", "answer_start": 19}, {"text": "été", "answer_start": 2}]
    two = {"id": 7, "question": "", "answers": answers}
    content = json.dumps(squad(QUESTION, two, QUESTION), indent=indent, ensure_ascii=ascii_only)
    second = QuestionExample("7", CONTEXT, "", (Answer("mois", 19), Answer("été", 2)))
    assert examples("qa", content) == ([EXPECTED, second, EXPECTED], [])


def test_qa_json_lines(examples):
    value = {**QUESTION, "context": CONTEXT}
    hub = {**value, "answers": {"text": ["trois"], "answer_start": [13]}}
    unnamed = {key: hub[key] for key in ("context", "question", "answers")}
    found = examples("qa", json_lines(value, hub, unnamed, {**value, "id": None}, {**value, "id": ""}))
    assert found == ([EXPECTED._replace(id=name) for name in ("q1", "q1", "3", "4", "5")], [])


def test_questions_without_an_answer_are_skipped(examples):
    none = [
        {"id": "i", "question": "?", "is_impossible": True, "answers": [], "plausible_answers": QUESTION["answers"]},
        {"id": "j", "question": "?", "is_impossible": True, "answers": QUESTION["answers"]},
        {"id": "k", "question": "?", "answers": []},
        {"id": "l", "question": "?", "answers": {"text": [], "answer_start": []}},
        {"id": "m", "question": "?", "answers": [{"text": " ", "answer_start": 5}]},
        {"id": "n", "question": "?", "is_impossible": True},
    ]
    found, (report,) = examples("qa", json.dumps(squad(*none, {**QUESTION, "is_impossible": False})))
    assert found == [EXPECTED] and "/f: skipped 6 questions" in report


STARTS = [12, 14, -11, 10**6, 10**4000, True, 13.0, "13", None, [13]]
WRONG_OFFSETS = [{"text": "trois", "answer_start": start} for start in STARTS]
WRONG_OFFSETS += [{"text": "'été", "answer_start": True}, {"text": "trois"}]  # True is not the offset 1


@pytest.mark.parametrize("answer", WRONG_OFFSETS)
def test_an_answer_that_is_not_at_its_offset_is_used_for_scoring_only(examples, answer):
    answers = [answer, *QUESTION["answers"]]
    found, (report,) = examples("qa", json.dumps(squad({**QUESTION, "answers": answers})))
    assert found == [EXPECTED._replace(answers=(Answer(answer["text"], None), Answer("trois", 13)))]
    assert len(report) < 400 and f"/f, question q1: the answer «{answer['text']}» is not at" in report
    assert answer.get("answer_start") != 12 or "answer_start 12, where the context has « troi»" in report


def test_qa_errors(refused):
    line = {**QUESTION, "context": CONTEXT}
    for bad, words in (
        ({**line, "answers": 3}, ("question q1", "answers must be a list, not int")),
        ({**line, "answers": ["trois"]}, ("question q1", "an answer must be an object")),
        ({**line, "answers": [{"answer_start": 13}]}, ("question q1", "no text", "It has answer_start")),
        ({**line, "answers": [{"text": 3, "answer_start": 13}]}, ("question q1", "a string, not int")),
        ({**line, "answers": {"text": ["trois"], "answer_start": []}}, ("question q1", "1 answers and 0 offsets")),
        ({**line, "answers": {"text": ["trois"]}}, ("question q1", "no answer_start")),
        ({**line, "question": None}, ("question q1", "question must be a string")),
        ({**line, "context": 3}, ("context must be a string",)),
        ({**line, "id": [3]}, ("question 2: id must be a string",)),
        ({"context": CONTEXT, "id": "q1", "answers": []}, ("question q1 has no question", "context, id, answers")),
        ({"question": "?", "id": "q1", "answers": []}, ("no context",)),
        ({"context": CONTEXT, "question": "?", "id": "q1"}, ("question q1 has no answers",)),
    ):
        refused("qa", json_lines(line, bad), " line 2", *words)
    refused("qa", json.dumps(squad(QUESTION, {"id": "q2", "question": "?"})), ", question q2", "no answers")
    refused("qa", json.dumps(squad(QUESTION, {"question": "?"})), ", question 2", "no answers")
    refused("qa", json.dumps(squad(QUESTION, "?")), ", article 1, paragraph 1: question 2", "an object")
    refused("qa", json.dumps(squad(QUESTION)).replace('"qas"', '"QAS"'), ", article 1, paragraph 1 has no qas")
    refused("qa", json.dumps(squad(QUESTION)).replace('"context"', '"c"'), ", article 1, paragraph 1 has no context")
    refused("qa", json.dumps(squad(QUESTION)).replace('"paragraphs"', '"p"'), ", article 1 has no paragraphs")
    refused("qa", json.dumps({"data": {}}), ": data must be a list, not dict")
    refused("qa", json.dumps({"data": []}), " contains no qa example")
    refused("qa", json.dumps(squad({**QUESTION, "answers": []})), " contains no qa example")


# ---- every task ------------------------------------------------------------------------------------------------

SMALL = {
    "sentiment": '{"text": "é", "label": 1}\n{"text": "b", "label": 0}\n',
    "nli": "premise\thypothesis\tlabel\né\tb\tneutral\na\tb\tneutral\n",
    "ner": "é\tO\nb\tO\n",
    "qa": json_lines(*[{**QUESTION, "context": CONTEXT}] * 2),
}


@pytest.mark.parametrize("task", SMALL)
def test_byte_order_marks_line_ends_and_compression_change_nothing(tmp_path, examples, task):
    expected = examples(task, SMALL[task])
    crlf = SMALL[task].replace("\n", "\r\n")
    assert examples(task, "\ufeff" + crlf) == expected
    assert examples(task, crlf.removesuffix("\r\n")) == expected
    assert examples(task, gzip.compress(SMALL[task].encode()), "f.gz") == expected
    path = write(tmp_path / "g", SMALL[task])
    assert read_task(task, [path, tmp_path / "f", str(path)], print) == expected[0] * 3


@pytest.mark.parametrize("task", SMALL)
def test_files_that_cannot_be_used(tmp_path, refused, task):
    for content in (b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf"):
        refused(task, content, " is empty")
    lines = SMALL[task].encode().split(b"\n")
    refused(task, b"\n".join([*lines[:1], b"\xff\xfe", *lines[1:]]), " line 2 is not UTF-8")
    refused(task, SMALL[task].encode("latin-1", "ignore") + b"\xe9", " line", "not UTF-8")
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "absent", "There is no file"), ("a\0b", "There is no")):
        with pytest.raises(DataError, match=words) as error:
            read_task(task, [path], print)
        assert str(path) in str(error.value)
    packed = gzip.compress(SMALL[task].encode() * 50)
    for content in (packed[:-9], b"x" + packed, packed[:12] + b"\0\0" + packed[14:]):
        with pytest.raises(DataError, match=r"damaged.gz cannot be read: .+"):
            read_task(task, [write(tmp_path / "damaged.gz", content)], print)
    with pytest.raises(DataError, match="at least one file"):
        read_task(task, [], print)


def test_invalid_json(refused):
    for task, good in (
        ("sentiment", {"text": "a", "label": 1}),
        ("nli", {"premise": "a", "hypothesis": "b", "label": "neutral"}),
        ("ner", {"tokens": ["a"], "tags": ["O"]}),
        ("qa", {**QUESTION, "context": CONTEXT}),
    ):
        line = json.dumps(good)
        refused(task, f"{line}\n\n{line[:-1]}\n{line}\n", " line 3, character", "is not JSON", "Correct or remove")
        refused(task, f"{line[:-1]}\n{line}\n", " line 1, character", "is not JSON")
        refused(task, json.dumps([good, good], indent=1).replace(",", ";", 1), " line ", "is not JSON")
        refused(task, f"{line}\n" + '{"a":' * 100_000, " line 2", "nested too deeply")
        refused(task, '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", " line 1", "nested too deeply")
        refused(task, f"{line}\n" + '{"a": ' + "9" * 5000 + "}", " line 2", "thousands of digits")


def test_lone_surrogates_become_question_marks(examples):
    assert examples("sentiment", '{"text": "a\\ud800b", "label": "\\udfff"}')[0] == pairs(("a?b", "?"))
    found = examples("qa", json.dumps({**QUESTION, "context": CONTEXT.replace("😀", "\ud83d")}))
    assert found == ([EXPECTED._replace(context=CONTEXT.replace("😀", "?"))], [])


def test_an_unknown_task():
    with pytest.raises(OptionError, match="no task pos. Choose one of sentiment, ner, nli, qa"):
        read_task("pos", ["x"], print)


def test_labels():
    assert labels_of(THREE[::-1]) == ["contradiction", "entailment", "neutral"]
    assert labels_of(pairs(("a", "O"), ("a", "1"), ("a", "O"), ("a", "A"))) == ["1", "A", "O"]
    assert labels_of(SENTENCES) == ["O", "B-MISC", "B-PER", "I-LOC", "I-ORG", "I-PER"]


# ---- the real files --------------------------------------------------------------------------------------------


def real(task: str, name: str) -> tuple[list, list[str]]:
    reports = []
    return read_task(task, [REAL / name], reports.append), reports


@needs(REAL / "nli")
def test_real_nli():
    found, reports = real("nli", "nli/xnli.fr.dev.tsv")
    assert Counter(pair.label for pair in found) == dict.fromkeys(("contradiction", "entailment", "neutral"), 830)
    counts = [len(real("nli", f"nli/sick-fr.{name}.tsv")[0]) for name in ("train", "trial", "test")]
    assert counts == [4439, 495, 4906] and reports == []


@needs(REAL / "ner/wikineural.fr.val.conllu")
def test_real_ner():
    found, reports = real("ner", "ner/wikineural.fr.val.conllu")
    lines = (REAL / "ner/wikineural.fr.val.conllu").read_bytes().split(b"\n")
    assert len(found) == 12600 and reports == []
    words = [f"{i}\t{w}\t{t}" for sentence in found for i, (w, t) in enumerate(zip(*sentence))]
    assert words == [line.decode() for line in lines if line] and len(labels_of(found)) == 9


@needs(REAL / "qa/piaf-v1.0.json")
def test_real_qa():
    found, reports = real("qa", "qa/piaf-v1.0.json")
    assert len(found) == 3835 and len({question.context for question in found}) <= 761
    wrong = [question.id for question in found for answer in question.answers if answer.start is None]
    assert len(wrong) == len(reports) == 2
    assert wrong == [re.search(r"question (\w+):", report)[1] for report in reports]
    for question in found:
        for text, start in question.answers:
            assert start is None or question.context[start : start + len(text)] == text


@needs(REAL / "sentiment/xlm-t_french")
def test_real_tweets():
    for name, count in (("train", 1839), ("val", 324), ("test", 870)):
        found, reports = real("sentiment", f"sentiment/xlm-t_french/{name}_text.txt")
        assert len(found) == count and labels_of(found) == ["0", "1", "2"] and reports == []
