"""Delimited text: what pandas and the csv module write is read back, and XNLI's bare quotes stay."""

import csv
import io
import random

import pytest

from data.tasks.tables import find_delimiter, is_quoted, table_rows
from tests.data.tasks.files import REAL, pairs
from tests.helpers import needs

HARD = [
    "",
    "a",
    'Il a dit "bravo" hier',
    '"Oui"',
    '"',
    '""',
    "a\tb",
    "a,b;c",
    "l1\nl2",
    'a\n\n"b',
    "\u2028 x\u00a0",
    "l'été",
    '"b',
    'b"',
]


def written(rows, delimiter: str, quoting: int = csv.QUOTE_MINIMAL) -> str:
    """What Python's csv module writes, as pandas' to_csv does."""
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(rows)
    return file.getvalue().removesuffix("\n")


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("delimiter", "\t,;")
def test_what_the_csv_module_writes(delimiter, quoting):
    rng = random.Random(0)
    for count in (1, 2, 5, 40):
        for _ in range(20):
            rows = [["text", "label"], *([rng.choice(HARD), str(rng.randrange(3))] for _ in range(count))]
            text = written(rows, delimiter, quoting)
            if quoting == csv.QUOTE_MINIMAL and delimiter == "\t" and '"' not in text:
                assert not is_quoted(text)
            assert [fields for _, fields in table_rows("f", text, delimiter)] == rows


@pytest.mark.parametrize(
    "line",
    [
        '"Oui\tnon"\tneutral',  # a quotation that goes on in the next field
        '"Oui" dit-il\t"Non" dit-elle\tneutral',
        'Il dit "oui"\tIl dit ""\tneutral',
        '"Oui"\t"Non"\tneutral',  # pandas would not quote these
        '"\t"\tneutral',
        '""\ta\tneutral',
        '"a ""b"" c"\td "e\tneutral',  # every field with a quote would have quotes around it
    ],
)
def test_bare_quotes_stay(line):
    for count in (1, 2, 5):
        text = "\n".join(["premise\thypothesis\tlabel", *[line, "a\tb\tneutral"] * count])
        assert [fields for _, fields in table_rows("f", text, "\t")] == [row.split("\t") for row in text.split("\n")]


def test_a_header_without_quotes_above_rows_with_quotes():
    text = 'premise\thypothesis\tlabel\n"Oui"\t"Non"\t"neutral"\n"a"\t"b"\t"neutral"'
    assert [fields for _, fields in table_rows("f", text, "\t")][1:] == [
        ["Oui", "Non", "neutral"],
        ["a", "b", "neutral"],
    ]


@needs(REAL / "nli")
@pytest.mark.parametrize("name", ["xnli.fr.dev", "sick-fr.train", "sick-fr.trial", "sick-fr.test"])
def test_real_files_have_no_quotes_to_interpret(name):
    text = (REAL / "nli" / f"{name}.tsv").read_text(encoding="utf-8").removesuffix("\n")
    assert [fields for _, fields in table_rows("f", text, "\t")] == [line.split("\t") for line in text.split("\n")]
    rows = [line.split("\t") for line in text.split("\n")]
    marked = [[rows[0][0], *rows[0][1:]], *([f'"{row[0]}"', f'{row[1]} "', *row[2:]] for row in rows[1:])]
    assert [fields for _, fields in table_rows("f", "\n".join(map("\t".join, marked)), "\t")] == marked
    marked[5][0] = '"two\nlines"\tand a tab'
    again = written(marked, "\t")
    assert [fields for _, fields in table_rows("f", again, "\t")] == marked


def test_delimiters():
    wanted = (("text", "review"), ("label",))
    assert [
        find_delimiter(line, wanted) for line in ("text\tlabel", "a;text,label", '"Label";"a,b";"Text"', "a")
    ] == list("\t,;\t")


def test_comma_and_semicolon_separated_files(examples, refused):
    expected = pairs(('Il a dit "bravo", hier', "1"), ("deux\nlignes; nul", "0"))
    for delimiter in ",;":
        text = written([["id", "Review", "Label"], *([str(i), *row] for i, row in enumerate(expected))], delimiter)
        assert examples("sentiment", text) == (expected, [])
        assert (
            examples("sentiment", "\ufeff" + text.replace("\n", "\r\n") + "\r\n" + delimiter * 2 + "\r\n")[0]
            == expected
        )
    assert examples("sentiment", 'text,label\nil dit "oui",1')[0] == pairs(('il dit "oui"', "1"))  # as csv reads it
    refused("sentiment", 'text,label\na,1\n"b,1\nc,1\n', " line 3, field 1: a quote is not closed or not doubled")
    refused("sentiment", 'text,label\n"a\nb",1\n"c" d,1\n', " line 4, field 1: a quote is not closed")
    refused("sentiment", 'text,label\n"a\nb",1\nc,d,1\n', " line 4 has 3 columns, but the header has 2")
    refused("sentiment", 'text\tlabel\n"a\nb"\t1\nc\t\n', " line 4: label is empty")
