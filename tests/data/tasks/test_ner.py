"""Named entities: every format, every error message, and the counts of a real file."""

import json

import pytest

from data import OptionError
from data.tasks import WordsExample, labels_of
from data.tasks.ner import cut_sentence
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


def test_spaces_behind_a_tag_are_no_part_of_it(examples):
    assert examples("ner", columns("{word}\t{tag} ")) == (SENTENCES, [])


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
    assert examples("ner", "Anne 1\nRoc 2\nvit 0\n", label_map=label_map) == examples(
        "ner", numbers, label_map=label_map
    )
    renamed = examples("ner", columns("{word} {tag}"), label_map={"PER": "personne", "MISC": "O"})[0]
    assert renamed[0].tags == ("B-personne", "I-personne", "O", "O", "B-LOC", "O", "O")
    assert renamed[1].tags == ("O", "O", "O", "O", "B-ORG")
    with pytest.raises(OptionError, match="B-PER=… must name the type of entity, PER, without a prefix"):
        examples("ner", columns("{word} {tag}"), label_map={"LOC": "lieu", "B-PER": "B-personne"})


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-PER E-PER O S-LOC", "B-PER I-PER O B-LOC"),
        ("B-PER L-PER O U-LOC", "B-PER I-PER O B-LOC"),
        ("I-PER B-PER O I-LOC", "B-PER B-PER O B-LOC"),
        ("PER PER O LOC", "B-PER I-PER O B-LOC"),
        ("B-PER I-PER I-O B-LOC", "B-PER I-PER O B-LOC"),
    ],
)
def test_ner_schemes_are_mapped_in_every_format(examples, tags, expected):
    sentence = WordsExample(("Anne", "Roc", "à", "Aix"), tuple(tags.split()))
    found = [WordsExample(sentence.words, tuple(expected.split()))]
    assert examples("ner", columns("{i}\t{word}\t{tag}", [sentence])) == (found, [])
    assert examples("ner", columns("{word} {tag}", [sentence])) == (found, [])
    assert examples("ner", " ".join(map("{}|X|{}".format, *sentence))) == (found, [])
    assert examples("ner", json_lines({"tokens": sentence.words, "ner_tags": sentence.tags})) == (found, [])


def test_conllu_ranges_and_empty_nodes_are_no_words(examples, refused):
    lines = ["# text = au chat vu", "1-2\tau\t_\t_", "1\tà\tADP\tO", "2\tle\tDET\tO", "3\tchat\tNOUN\tB-MISC"]
    lines += ["3.1\test\tAUX\t_", "4\tvu\tVERB\tO", "", "1\t3-4\tNUM\tO", "2-3\tdu\t_\tO", "2\tde\tADP\tO"]
    expected = [
        WordsExample(("à", "le", "chat", "vu"), ("O", "O", "B-MISC", "O")),
        WordsExample(("3-4", "de"), ("O", "O")),
    ]
    assert examples("ner", "\n".join(lines)) == (expected, [])
    assert examples("ner", "\n".join(lines[1:])) == (expected, [])  # begins with a range
    assert examples("ner", "\n".join(lines).replace("\t", " "))[0] == expected
    refused("ner", "\n".join(lines).replace("2\tle", "2x\tle"), " line 4", "begin with the index", "not with 2x")
    years = "1914-1918 NUM B-MISC\n8.1 NUM O\n"  # a column of words, not of indices
    assert examples("ner", years) == ([WordsExample(("1914-1918", "8.1"), ("B-MISC", "O"))], [])


@pytest.mark.parametrize("index", ["{i}", "{j}"])
def test_indices_tell_sentences_apart_without_blank_lines(examples, index):
    content = columns(index + "\t{word}\tNOM\t{tag}", [*SENTENCES, *SENTENCES[2:], *SENTENCES]).replace("\n\n", "\n")
    assert examples("ner", content) == ([*SENTENCES, *SENTENCES[2:], *SENTENCES], [])


def test_a_file_without_blank_lines_is_cut(examples):
    sentence = SENTENCES[0]._replace(words=(*SENTENCES[0].words[:-1], "."))
    content = columns("{word} {tag}", [sentence] * 100)
    assert examples("ner", content) == ([sentence] * 100, [])
    found, (report,) = examples("ner", content.replace("\n\n", "\n"), "f")
    assert found == [sentence] * 100
    assert (
        "f line 1 begins a sentence of 700 words" in report and "blank lines" in report and "1 of 1 sentences" in report
    )
    assert len(examples("ner", "\n\n".join([content.replace("\n\n", "\n")] * 3))[1]) == 1  # warning


def test_long_sentences_are_cut_between_entities():
    tags = ["O"] * 95 + ["B-PER", *["I-PER"] * 9, "B-LOC"] + ["O"] * 80 + ["B-ORG", *["I-ORG"] * 150]
    example = WordsExample(tuple(str(i) for i in range(len(tags))), tuple(tags))
    parts = list(cut_sentence(example))
    assert [len(part.words) for part in parts] == [95, 91, 151]
    assert sum((part.words for part in parts), ()) == example.words
    assert sum((part.tags for part in parts), ()) == example.tags
    assert list(cut_sentence(WordsExample(("a", ".", "b"), ("O",) * 3))) == [
        WordsExample(("a", "."), ("O", "O")),
        WordsExample(("b",), ("O",)),
    ]


def test_only_the_french_sentences_are_read(examples):
    """MultiNERD's files name their language."""
    rows = [{"tokens": ["un"], "ner_tags": ["O"], "lang": lang} for lang in ("fr", "it", "fr")]
    found, (report,) = examples("ner", json_lines(*rows))
    assert len(found) == 2 and report.endswith(": skipped 1 examples in other languages (it).")


def test_ner_errors(refused):
    refused("ner", "0\tun\tO\n1\tdeux\t3\n", " line 2 has the tag 3, a number.", "--label-map 0=O 1=B-PER")
    for tag in ("B-", "B", "o", "B_PER", "I-", "_", ""):
        refused("ner", f"0\tun\tO\n1\tdeux\t{tag}\n", " line 2", f"the tag '{tag}'", "B-TYPE")
        if tag:
            refused("ner", f"un O\ndeux {tag}\n", " line 2", f"the tag '{tag}'")
        refused("ner", f"un|N|O deux|N|O\nun|N|O deux|N|{tag}\n", " line 2", f"the tag '{tag}'")
        refused("ner", json_lines({"tokens": ["un"], "tags": [tag]}), " line 1", f"the tag '{tag}'")
    refused("ner", "un O\ndeux B-PER\n\ntrois B-LOC\nquatre LOC\n", " line 5", "the tag 'LOC'", "B-LOC, LOC")
    refused("ner", "le DET\nchat NOUN\n", " line 1", "the tag 'DET'", "must have O", "DET, NOUN")
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
    rows = zip(words, [line.decode() for line in lines if line], strict=True)
    differing = [(ours, line) for ours, line in rows if ours != line]
    assert len(labels_of(found)) == 9
    assert len(differing) == 61  # entities that begin with I-
    assert all(ours == line.replace("\tI-", "\tB-") for ours, line in differing)


def test_comments_of_multiconer(examples):
    """With a tab, although the columns are separated by spaces."""
    content = "".join(f"# id 0{i}\tdomain=fr\nAnne _ _ B-PER\nvit _ _ O\n\n" for i in range(2))
    expected = [WordsExample(("Anne", "vit"), ("B-PER", "O"))] * 2
    assert examples("ner", content) == examples("ner", "\n" + content) == (expected, [])
