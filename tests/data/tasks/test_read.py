"""What holds for the files of every task."""

import gzip
import json

import pytest

from data import DataError, OptionError
from data.tasks import labels_of, read_task
from tests.data.tasks.files import CONTEXT, EXPECTED, QUESTION, SENTENCES, THREE, json_lines, pairs, write

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
    for content in (packed[:-9], packed[:12] + b"\0\0" + packed[14:]):
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
    assert labels_of(SENTENCES) == ["O", "B-LOC", "B-MISC", "B-ORG", "B-PER", "I-PER"]


ROWS = {  # of each task, a row as the hub has it
    "sentiment": {"text": "Bien.", "label": "pos"},
    "nli": {"premise": "P", "hypothesis": "h", "label": "neutral"},
    "ner": {"tokens": ["Aix"], "ner_tags": ["B-LOC"]},
    "qa": {"context": "Oui.", "question": "?", "answers": {"text": ["Oui"], "answer_start": [0]}},
}


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("split, language", [("split", "language"), ("Split", "Lang")])
def test_parts_and_languages_of_rows(tmp_path, task, split, language):
    marks = [("train", "fr"), ("train", "de"), ("test", "fr-CA"), ("test", "French")]
    path = write(tmp_path / "f", json_lines(*(ROWS[task] | {split: s, language: lang} for s, lang in marks)))
    found = {part: read_task(task, [path], lambda sentence: None, part=part) for part in ("train", "test", None)}
    assert {part: len(examples) for part, examples in found.items()} == {"train": 1, "test": 2, None: 3}


def test_a_column_that_is_twice_in_the_header(refused):
    for name in ("text", "label"):
        refused("sentiment", f"text,label,{name}\na,b,c", " line 1", f"2 columns {name}")
