"""Parquet and Arrow, as the datasets library writes them: names of labels, nested values, damage."""

import io
import json
import sys

import pytest

from data import DataError
from data.tasks import PairExample, WordsExample, contents, read_task
from tests.data.tasks.files import CONTEXT, EXPECTED, QUESTION, THREE, pairs, write

pa = pytest.importorskip("pyarrow")
RELATIONS = {"names": ["entailment", "neutral", "contradiction"], "_type": "ClassLabel"}
STRING = {"dtype": "string", "_type": "Value"}
TAGS = {"names": ["O", "B-PER", "I-PER"], "_type": "ClassLabel"}


def stored(values: dict, form: str = "parquet", features: dict | None = None, schema=None) -> bytes:
    """Columns in a file. features: of the datasets library, which it keeps in the schema"""
    table = pa.table(values, schema=schema)
    if features is not None:
        about = json.dumps({"info": {"features": features}}) if isinstance(features, dict) else features
        table = table.replace_schema_metadata({"huggingface": about})
    file = io.BytesIO()
    if form == "parquet":
        pa.parquet.write_table(table, file)
    else:
        with (pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream)(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


import pyarrow.parquet  # noqa: E402, F401 (after importorskip)

NLI = {"premise": ["P"] * 3, "hypothesis": ["h0", "h1", "h2"], "label": [0, 1, 2]}


@pytest.mark.parametrize("name", ["f", "f.txt", "f.parquet", "f.jsonl"])
@pytest.mark.parametrize("form", ["parquet", "arrow", "stream"])
def test_the_names_of_labels_come_from_the_schema(examples, form, name):
    features = {"premise": STRING, "hypothesis": STRING, "label": RELATIONS}
    found, reports = examples("nli", stored(NLI, form, features), name)
    assert found == THREE and len(reports) == (name not in ("f", f"f.{form}"))
    assert all(report.endswith(", in spite of its name.") for report in reports)
    allocine = {"review": ["bien", "nul"], "label": [1, 0]}
    assert examples("sentiment", stored(allocine, form), name)[0] == pairs(("bien", "1"), ("nul", "0"))
    named = {"review": STRING, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    assert examples("sentiment", stored(allocine, form, named), name)[0] == pairs(("bien", "pos"), ("nul", "neg"))


@pytest.mark.parametrize("tags", [{"feature": TAGS, "_type": "List"}, {"feature": TAGS, "_type": "Sequence"}, [TAGS]])
def test_the_names_of_tags_in_lists(examples, tags):
    values = {"tokens": [["Anne", "Roc", "vit"], []], "ner_tags": [[1, 2, 0], []]}
    content = stored(values, features={"ner_tags": tags})
    assert examples("ner", content) == ([WordsExample(("Anne", "Roc", "vit"), ("B-PER", "I-PER", "O"))], [])


@pytest.mark.parametrize(
    "features",
    [{}, "not JSON", "[]", "{}", '{"info": {"features": [1]}}', {"label": {"names": [1, 2, 3], "_type": "ClassLabel"}}]
    + [{"label": {"names": "abc", "_type": "ClassLabel"}}, {"label": 3}, {"label": STRING}],
)
def test_numbers_without_names_stay_numbers(refused, examples, features):
    refused("nli", stored(NLI, features=features), " row 1: label is 0, a number.", "--label-map")
    label_map = {"0": "entailment", "1": "neutral", "2": "contradiction"}
    assert examples("nli", stored(NLI, features=features), label_map=label_map)[0] == THREE


def test_numbers_outside_of_the_names(refused):
    unlabelled = {**NLI, "label": [0, 1, -1]}
    refused("nli", stored(unlabelled, features={"label": RELATIONS}), " row 3: label is -1, a number")
    refused("nli", stored({**NLI, "label": [0, 3, 1]}, features={"label": RELATIONS}), " row 2: label is 3, a number")


def test_nested_and_binary_values(examples):
    row = {key: [value] for key, value in QUESTION.items() if key != "answers"} | {"context": [CONTEXT]}
    for answers in ({"text": ["trois"], "answer_start": [13]}, QUESTION["answers"]):
        assert examples("qa", stored({**row, "answers": [answers]})) == ([EXPECTED], [])
    texts = {"text": [b"caf\xc3\xa9", "é".encode()], "label": pa.array(["oui", "non"]).dictionary_encode()}
    assert examples("sentiment", stored(texts))[0] == pairs(("café", "oui"), ("é", "non"))
    all_languages = {
        "premise": [{"en": "a", "fr": "P"}],
        "hypothesis": [{"language": ["en", "fr"], "translation": ["b", "h"]}],
        "label": [1],
    }
    content = stored(all_languages, features={"label": RELATIONS})
    assert examples("nli", content)[0] == [PairExample("P", "h", "neutral")]


def test_rows_that_cannot_be_used(refused):
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
    values = {"text": ["a", "b", "c"], "label": [1, None, 0]}
    refused("sentiment", stored(values, schema=schema), " row 2: label is empty. Add the label or remove the example")
    values = {"text": ["a", None], "label": [1, 0]}
    refused("sentiment", stored(values, schema=schema), " row 2: text must be a string")
    refused("sentiment", stored({"text": [], "label": []}, schema=schema), " contains no sentiment example")
    refused("sentiment", stored({"text": [b"caf\xe9"], "label": [0]}), " row 1: text must be a string, not bytes")
    refused("sentiment", stored({"texte_brut": ["a"], "label": [0]}), " row 1 has no text or review", "texte_brut")


@pytest.mark.parametrize("form", ["parquet", "arrow", "stream"])
def test_damaged_files(refused, form):
    content = stored({"text": ["un texte"] * 5000, "label": list(range(5000))}, form)
    for damaged in (content[: len(content) // 2], content[: 2 * len(content) // 3]):
        refused("sentiment", damaged, " cannot be read")


def test_offsets_that_lie_are_not_followed(refused):
    """Arrow's own form is mapped into memory as it is: an offset outside of the data would be read."""
    content = bytearray(stored({"text": ["abcdefgh", "b"], "label": ["x", "y"]}, "stream"))
    offsets = b"\0\0\0\0\x08\0\0\0\x09\0\0\0"
    at = content.index(offsets)
    content[at : at + len(offsets)] = b"\0\0\0\0\x08\0\0\0\xff\xff\xff\x7f"
    refused("sentiment", bytes(content), " cannot be read after row 0")


def test_the_size_in_memory_is_bounded(monkeypatch, refused):
    """A few kilobytes of Parquet may have gigabytes of rows."""
    monkeypatch.setattr(contents, "MAX_BYTES", 1 << 20)
    content = stored({"text": ["a" * 1000] * 2000, "label": [0] * 2000})
    assert len(content) < 20_000
    refused("sentiment", content, " has more than 1 MB of rows. Split it into several files")


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "f.parquet", stored(NLI))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"f.parquet is Parquet. Run pip install pyarrow, or use JSON lines."):
        read_task("nli", [path], print)
