"""Named entities: every format, every error message, and the counts of a real file."""

import json

import pytest

from data.tasks import WordsExample, labels_of
from tests.data.tasks.files import REAL, SENTENCES, json_lines, real
from tests.helpers import needs


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


def test_the_label_map_names_integer_tags_and_renames_types(examples):
    numbers = json_lines({"tokens": ["Anne", "Roc", "vit"], "ner_tags": [1, 2, 0]})
    label_map = {"0": "O", "1": "B-PER", "2": "I-PER"}
    assert examples("ner", numbers, label_map=label_map)[0] == [
        WordsExample(("Anne", "Roc", "vit"), ("B-PER", "I-PER", "O"))
    ]
    renamed = examples("ner", columns("{word} {tag}"), label_map={"PER": "personne", "MISC": "O"})[0]
    assert renamed[0].tags == ("B-personne", "I-personne", "O", "O", "I-LOC", "O", "O")
    assert renamed[1].tags == ("O", "O", "O", "O", "I-ORG")


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
        ({**good, "ner_tags": [0, 1]}, ("the tag 0, a number", "--label-map 0=O")),
        ({**good, "ner_tags": "OO"}, ("ner_tags must be a list, not str",)),
        ({**good, "tokens": ["un", 2]}, ("a string, not int",)),
        ({**good, "ner_tags": ["O", None]}, ("a string, not NoneType",)),
        ({"tokens": ["un"]}, ("no ner_tags or tags", "It has tokens")),
    ):
        refused("ner", json_lines(good, bad), " line 2", *words)


@needs(REAL / "ner/wikineural.fr.val.conllu")
def test_real_ner():
    found, reports = real("ner", "ner/wikineural.fr.val.conllu")
    lines = (REAL / "ner/wikineural.fr.val.conllu").read_bytes().split(b"\n")
    assert len(found) == 12600 and reports == []
    words = [f"{i}\t{w}\t{t}" for sentence in found for i, (w, t) in enumerate(zip(*sentence))]
    assert words == [line.decode() for line in lines if line] and len(labels_of(found)) == 9
