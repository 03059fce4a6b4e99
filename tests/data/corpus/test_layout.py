"""How plain text is laid out: documents by line or blank line, lines wrapped at a fixed width."""

import textwrap
from itertools import islice

import pytest

from data import demo
from data.corpus.layout import BLANK, BLANK_WRAPPED, LINE, WRAPPED, Layout, join_wrapped, text_layout
from tests.data.corpus.test_documents import read
from tests.data.prepared import COMPRESS, parts, write
from tests.helpers import REAL_TEXT, needs

LINES = [b"", b"a\nb\nc\n", b"a\n\nb\n", b"\n\n\na\nb\n\n\n", b"a\n" * 900 + b"\nb\n\nc\n"]
BLANKS = [b"a\nb\n\nc\n\nd\n", b"a\r\n\r\nb\r\nb\r\n\r\nc\r\n", b"a\r\rb\r\rc", b"a\n \t\nb\n  \nc"]
PARAGRAPHS = [" ".join(islice(demo.texts(), number, number + number % 9 + 1)) for number in range(150)]


@pytest.mark.parametrize(("content", "kind"), [*((each, LINE) for each in LINES), *((each, BLANK) for each in BLANKS)])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_blank_lines_at_the_beginning_of_a_file_decide_its_kind(tmp_path, content, kind, suffix):
    path = write(tmp_path / f"a.txt{suffix}", content)
    assert parts(path, documents="auto")[-1].kind == kind
    for given in (LINE, BLANK):
        assert parts(path, documents=given)[-1].kind == given


def wrap(paragraphs: list[str], width: int, between: str = "\n", indent: str = "") -> str:
    settings = dict(break_long_words=False, break_on_hyphens=False)
    return between.join(textwrap.fill(each, width, initial_indent=indent, **settings) for each in paragraphs) + "\n"


@pytest.mark.parametrize("width", [55, 66, 72, 80, 100])
@pytest.mark.parametrize(("between", "indent"), [("\n\n", ""), ("\n", "   "), ("\n", "")])
def test_a_wrapped_book_has_its_paragraphs_as_documents(tmp_path, small_parts, width, between, indent):
    """Without blank lines or indents, a paragraph that ends near the margin cannot be told from one that goes on."""
    path = write(tmp_path / "a.txt", wrap(PARAGRAPHS, width, between, indent))
    found, _ = read(path, kind="auto")
    assert {part.kind for part in parts(path, documents="auto")} == {BLANK_WRAPPED if between == "\n\n" else WRAPPED}
    expected = [paragraph.split() for paragraph in PARAGRAPHS]
    assert " ".join(line for document in found for line in document).split() == " ".join(PARAGRAPHS).split()
    right = sum([line.split() for line in document] == [paragraph] for document in found for paragraph in expected)
    assert right >= (0.97 if between == "\n\n" else 0.7) * len(PARAGRAPHS)


def test_what_the_user_says_about_wrapping_is_obeyed(tmp_path):
    path = write(tmp_path / "a.txt", wrap(PARAGRAPHS, 66))
    assert len(read(path, kind="line")[0]) > 3 * len(PARAGRAPHS)
    short = write(tmp_path / "b.txt", b"un film\nqui finit\nbien.\n")  # too short to be seen
    assert read(short, kind="auto")[0] == [["un film"], ["qui finit"], ["bien."]]
    assert read(short, kind="wrapped")[0] == [["un film qui finit bien."]]


VERSE = """Demain, sans bruit, le vent du soir viendra chanter,
Et la forêt dira les mots que nous taisons,
Le fleuve, lent et gris, ira se lamenter
Au pied des peupliers qui bordent les maisons.
Ô nuit ! garde pour nous les clartés de l'été,
Les rires des enfants, l'odeur des fenaisons,
Et tout ce que le temps nous avait apporté
Avant que l'eau ne prît le chemin des saisons.
"""


@pytest.mark.parametrize(
    "text",
    [
        VERSE * 9,
        "".join(f"{number} films de la liste\n" for number in range(300)),
        "\n".join(sorted(islice(demo.texts(), 300), key=len)),
        "\n".join(PARAGRAPHS),
        "pomme\npoire\nprune\n" * 99,
    ],
)
def test_verse_lists_and_sentences_are_not_joined(text):
    assert text_layout(text.encode(), "auto") == Layout(LINE)


def test_verse_within_a_wrapped_book_keeps_its_lines():
    book = wrap(PARAGRAPHS[:40], 72, "\n\n")
    layout = text_layout(book.encode(), "auto")
    assert layout == Layout(BLANK_WRAPPED, layout.width) and 68 <= layout.width <= 72
    assert join_wrapped(VERSE.split("\n"), layout.width) == VERSE.strip().split("\n")


def test_where_a_paragraph_ends():
    full = "mot " * 16 + "fini."  # 69 characters
    cases = {
        (full, "et la suite"): 1,
        (full[:-1], "Suite"): 1,
        ("court", "et la suite"): 2,
        (full, "— Oui, dit-il."): 2,
        (full[:-1], "    Suite"): 2,
        (full, "", "suite"): 2,
        (full * 3, "et la suite"): 2,  # a line that is not wrapped
        ("  " + full[:-1], "  et la suite", "  fin"): 2,
    }
    for lines, count in cases.items():
        assert len(join_wrapped(list(lines), 70)) == count, lines
    filled = "mot " * 15
    for end, after, whole in (("c'est-à-", "dire", "c'est-à-dire"), ("enfin --", "dire", "enfin -- dire")):
        assert join_wrapped([filled + end, after], 70) == [filled + whole]
    assert join_wrapped([full, "et l'arc-", "en-ciel"], 70) == [f"{full} et l'arc-", "en-ciel"]


@needs(REAL_TEXT)
def test_real_text_with_a_paragraph_a_line_is_read_by_line():
    for path in sorted(REAL_TEXT.glob("*.txt")):
        with path.open("rb") as file:
            sample = file.read(1 << 18)
        assert text_layout(sample, "auto") == Layout(LINE), path
        for width, between in ((66, "\n\n"), (72, "\n")):
            wrapped = wrap(sample.decode(errors="ignore").split("\n")[:-1], width, between).encode()
            sentences = path.name.startswith("tatoeba")  # most are shorter than a line
            assert sentences or text_layout(wrapped[: 1 << 18], "auto").width == width
