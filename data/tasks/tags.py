"""Tags of named entities: the schemes of files and models, mapped to one.

    scheme        tags                       an entity is
    IO            TYPE or I-TYPE             consecutive words of one type
    IOB1          I-TYPE, B-TYPE             the same; B- begins one that follows another of its type
    IOB2          B-TYPE, I-TYPE             what begins with B-
    BIOES         and E-TYPE, S-TYPE         from B- to E-, or a single word S-
    BILOU         and L-TYPE, U-TYPE         from B- to L-, or a single word U-

A word outside of entities has O, B-O or I-O. One rule reads all schemes, and files that break their own: an entity
begins at B- and S-, after E- and S-, and where the type changes. For IOB tags this is conlleval's.
"""

import re
from collections.abc import Mapping, Sequence

from ..cli import DataError
from .rows import short

OUTSIDE = "O"
Spans = list[tuple[str, int, int]]  # of a sentence: type, index of the first word, one past the last
PREFIXED = re.compile(r"([BIESLU])-(\S(?:.*\S)?)")  # "PER " would be another type than "PER"
PREFIX = {"L": "E", "U": "S"}  # BILOU's names for BIOES's
TYPE = re.compile(r"[^\W\d_][^\t=|]*")  # without prefix: no number, no _, no feature of CoNLL-U
# another form of a prefix or of O, or a name that Hugging Face gives where there is none: not the name of a type
UNCLEAR = re.compile(r"[BIOESLUMW]([-_.:/].*)?|.*[-_.:/][BIOESLUMW]|LABEL_\d+", re.IGNORECASE)


def read_tags(locations: Mapping[str, str]) -> dict[str, str]:
    """The tags of a file or a model, of any scheme -> for each: O, B-TYPE, I-TYPE, E-TYPE or S-TYPE.

    locations: for each tag, where it is, for error messages. TYPE without prefix becomes I-TYPE.
    Raises DataError for tags of no scheme, or of two at once.
    """

    def check(fine: bool, tag: str, reason: str) -> None:
        if not fine:
            shown = ", ".join(short(name or "(empty)", 30) for name in list(locations)[:20])
            more = f" and {len(locations) - 20} more" * (len(locations) > 20)
            schemes = "O with B-TYPE and I-TYPE (B-PER, …), as IOB, BIOES or BILOU, or with TYPE alone"
            raise DataError(
                f"{locations[tag]} has the tag {tag[:60]!r}: {reason}. Use {schemes}. Found: {shown}{more}."
            )

    prefixed = {tag: match.groups() for tag in locations if (match := PREFIXED.fullmatch(tag))}
    plain = [tag for tag in locations if tag not in prefixed and tag != OUTSIDE]
    for tag in plain:
        check(not UNCLEAR.fullmatch(tag) and bool(TYPE.fullmatch(tag)), tag, "it is neither O nor the name of a type")
    if plain and prefixed:
        check(False, min(plain, list(prefixed), key=len)[0], "others have a prefix, or none, unlike it")
    for tag in plain:
        check(OUTSIDE in locations, tag, "without prefixes, words outside of entities must have O")
    bioes = any(prefix in "ES" for prefix, _ in prefixed.values())
    for tag, (prefix, _) in prefixed.items():
        check(not bioes or prefix not in "LU", tag, "others have E- or S-, which belong to another scheme")
    names = {OUTSIDE: OUTSIDE} | {tag: f"I-{tag}" for tag in plain}
    for tag, (prefix, kind) in prefixed.items():
        names[tag] = OUTSIDE if kind == OUTSIDE else f"{PREFIX.get(prefix, prefix)}-{kind}"
    return names


def entity_type(tag: str) -> str | None:
    """The type in a tag that read_tags returned, None for O."""
    return None if tag == OUTSIDE else tag[2:]


def types_of(tags: Sequence[str]) -> list[str]:
    """The types in tags, sorted."""
    return sorted({tag[2:] for tag in tags if tag != OUTSIDE})


def entity_spans(tags: Sequence[str]) -> Spans:
    """The entities of a sentence, from tags as read_tags returns them."""
    spans, start, current, ended = [], 0, None, False
    for index, tag in enumerate([*tags, OUTSIDE]):
        kind = entity_type(tag)
        if kind != current or ended or tag[0] in "BS":
            if current is not None:
                spans.append((current, start, index))
            start, current = index, kind
        ended = tag[0] in "ES"
    return spans


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """The same entities with B- for the first word of each and I- for the others."""
    found = [OUTSIDE] * len(tags)
    for kind, start, end in entity_spans(tags):
        found[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tuple(found)
