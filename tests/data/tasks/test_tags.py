"""Tags of every scheme: by hand, against seqeval, and what is refused."""

import numpy
import pytest

pytest.importorskip("seqeval")  # on a machine that is lent for the tests of a GPU
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from data import DataError
from data.tasks.tags import entity_spans, read_tags, to_iob2, types_of


def mapped(tags: str) -> str:
    """The tags of a sentence that is a whole file -> IOB2"""
    found = tags.split()
    names = read_tags(dict.fromkeys(found, "f"))
    return " ".join(to_iob2([names[tag] for tag in found]))


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-PER I-PER O B-LOC B-LOC", "B-PER I-PER O B-LOC B-LOC"),  # IOB2
        ("I-PER I-PER B-PER O I-LOC", "B-PER I-PER B-PER O B-LOC"),  # IOB1
        ("I-PER I-PER I-LOC O", "B-PER I-PER B-LOC O"),  # IO, as WikiNER
        ("PER PER LOC O PER", "B-PER I-PER B-LOC O B-PER"),  # IO, as wikiner_fr
        ("geo-loc O Person", "B-geo-loc O B-Person"),
        ("B-PER E-PER S-PER O S-LOC", "B-PER I-PER B-PER O B-LOC"),  # BIOES
        ("B-PER I-PER E-PER", "B-PER I-PER I-PER"),
        ("B-PER L-PER U-PER O U-LOC", "B-PER I-PER B-PER O B-LOC"),  # BILOU
        ("B-PER I-PER L-PER", "B-PER I-PER I-PER"),
        ("B-O B-PER I-PER I-O", "O B-PER I-PER O"),
        ("S-O S-PER E-O", "O B-PER O"),
        ("B-PER I-LOC E-LOC E-LOC", "B-PER B-LOC I-LOC B-LOC"),  # breaks its own scheme
        ("O O", "O O"),
    ],
)
def test_every_scheme_becomes_iob2(tags, expected):
    assert mapped(tags) == expected
    assert mapped(expected) == expected


@pytest.mark.parametrize(
    "prefixes, scheme, names",
    [("IB", IOB1, "IB"), ("BI", IOB2, "IB"), ("BIES", IOBES, "BIES"), ("BIES", BILOU, "BILU")],
)
def test_entities_are_seqevals_where_the_tags_keep_to_their_scheme(prefixes, scheme, names):
    """Random entities, written in the scheme: seqeval finds them in its strict mode, and so does this project."""
    random = numpy.random.default_rng(0)
    for _ in range(300):
        tags, spans = [], []
        while len(tags) < 12:
            if random.random() < 0.4:
                tags.append("O")
                continue
            kind, length = str(random.choice(["PER", "LOC"])), int(random.integers(1, 4))
            after_same = bool(tags) and tags[-1].endswith(kind)
            spans.append((kind, len(tags), len(tags) + length))
            letters = ["B", *"I" * (length - 1)]
            if scheme is IOB1 and not after_same:
                letters[0] = "I"
            if len(names) == 4:
                letters[-1] = names[2] if length > 1 else names[3]
            tags += [f"{letter}-{kind}" for letter in letters]
        theirs = [(e.tag, e.start, e.end) for e in Entities([tags], scheme=scheme).entities[0]]
        read = read_tags(dict.fromkeys([*tags, "O"], "f"))
        assert entity_spans([read[tag] for tag in tags]) == theirs == spans
        assert entity_spans(to_iob2([read[tag] for tag in tags])) == spans


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_entities_are_seqevals_lenient_ones_in_any_order_of_tags(prefixes):
    random = numpy.random.default_rng(0)
    choices = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC"))]
    for _ in range(2000):
        tags = [str(tag) for tag in random.choice(choices, size=random.integers(12))]
        assert entity_spans(tags) == [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


@pytest.mark.parametrize(
    "tags, wrong, reason",
    [
        ("O B_PER", "B_PER", "neither O nor"),
        ("O b-per", "b-per", "neither O nor"),
        ("O PER-B", "PER-B", "neither O nor"),
        ("O M-PER", "M-PER", "neither O nor"),
        ("O B- B-PER", "B-", "neither O nor"),
        ("o PER", "o", "neither O nor"),
        ("B I O", "B", "neither O nor"),
        ("LABEL_0 LABEL_1", "LABEL_0", "neither O nor"),
        ("O 3", "3", "neither O nor"),
        ("O _", "_", "neither O nor"),
        ("O SpaceAfter=No", "SpaceAfter=No", "neither O nor"),
        ("NOUN DET VERB", "NOUN", "outside of entities must have O"),  # parts of speech
        ("O B-PER I-PER LOC", "LOC", "others have a prefix"),
        ("O PER LOC B-MISC", "B-MISC", "others have a prefix"),
        ("O B-PER E-PER L-PER", "L-PER", "E- or S-"),
        ("O U-PER S-PER", "U-PER", "E- or S-"),
    ],
)
def test_tags_of_no_scheme_are_refused_with_all_tags_named(tags, wrong, reason):
    locations = {tag: f"f line {number}" for number, tag in enumerate(tags.split(), 1)}
    with pytest.raises(DataError, match=f"^{locations[wrong]} has the tag '{wrong}': .*{reason}") as error:
        read_tags(locations)
    assert all(tag in str(error.value) for tag in locations) and "BIOES" in str(error.value)


def test_a_type_neither_begins_nor_ends_with_a_space():
    """It would be another type than PER, silently."""
    for tag in ("B-PER ", "B- PER"):
        with pytest.raises(DataError, match=f"f has the tag '{tag}'"):
            read_tags({"O": "f", tag: "f"})


def test_a_thousand_wrong_tags_are_not_all_named():
    with pytest.raises(DataError) as error:
        read_tags({f"word{number}": "f" for number in range(1000)})
    assert "and 980 more" in str(error.value) and len(str(error.value)) < 600


def test_types():
    assert types_of(["O", "B-PER", "I-PER", "S-SUB-LOC"]) == ["PER", "SUB-LOC"]
