"""French spelling, and the markup of entities and answers in sentences.

`spell` makes elisions, contractions and the capital: "la actrice de [LOC Le Havre]" -> "L'actrice du [LOC Havre]".
"[LOC Le Havre]" is a named entity, "<...>" the answer to a question. `plain`, `tagged` and `span` remove the markup.
"""

import re

MARKS = r"(?:<|\[[A-Z]+ )*"
ASPIRATED = "hamon|handball|harpe|haguenau|hautbois|hauts?|havre|haye|héros|hockey|homard|hors|huit|onze|oui"
VOWEL = rf"(?={MARKS}(?!(?:{ASPIRATED})\b)(?:[aeiouhâàéèêëîïôûœ]|y(?![aeiou])))"


def _contract(match: re.Match) -> str:
    """ "de le" -> "du", "à le" -> "au", "de les" -> "des", "à les" -> "aux", keeping marks and capital."""
    preposition, marks, article = match.groups()
    short = {"dele": "du", "deles": "des", "àle": "au", "àles": "aux"}[(preposition + article).lower()]
    return (short.capitalize() if preposition[0].isupper() else short) + " " + marks


RULES = (  # the order matters: "de le acteur" is "de l'acteur", not "du acteur"
    (re.compile(rf"\b(l)[ea] {VOWEL}", re.IGNORECASE), r"\1'"),
    (re.compile(rf"\b([mts])a {VOWEL}", re.IGNORECASE), r"\1on "),
    (re.compile(rf"\b(ce) {VOWEL}", re.IGNORECASE), r"\1t "),
    (re.compile(rf"\b(de|à) ({MARKS})(les?) ", re.IGNORECASE), _contract),
    (re.compile(rf"\b(d|qu|n|j|m|t|s|jusqu|lorsqu|puisqu)e {VOWEL}", re.IGNORECASE), r"\1'"),
    (re.compile(r"\b(s)i (?=ils?\b)", re.IGNORECASE), r"\1'"),
)


def spell(text: str) -> str:
    """The sentence with its elisions, contractions and capital."""
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return re.sub(rf"^({MARKS})(\w)", lambda match: match[1] + match[2].upper(), text)


def inside(region: str) -> str:
    """ "en Bretagne", "dans le Grand Est"."""
    return f"dans {region}" if region.startswith("le") else f"en {region}"


def plain(text: str) -> str:
    """The text without its marks."""
    return re.sub(r"\[[A-Z]+ |[]<>]", "", text)


def unanswered(text: str) -> str:
    """The text without its answer marks."""
    return text.replace("<", "").replace(">", "")


def span(text: str) -> tuple[str, int]:
    """The marked answer, and its offset in the text without marks."""
    before, rest = text.split("<")
    return plain(rest.split(">")[0]), len(plain(before))


WORD = re.compile(r"(?:jusqu|lorsqu|puisqu|qu|[cdjlmnst])'|\w+(?:[-']\w+)*|[^\w\s]", re.IGNORECASE)


def tagged(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of a marked text, and one tag per word."""
    words, tags = [], []
    for kind, name, other in re.findall(r"\[([A-Z]+) ([^]]+)]|([^[]+)", unanswered(text)):
        found = WORD.findall(name or other)
        words += found
        tags += [f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(len(found))]
    return tuple(words), tuple(tags)
