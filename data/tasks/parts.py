"""The part of a data set that a file or a row is for: train, dev or test, as whole words say it."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from ..cli import DataError

PARTS = ("train", "dev", "test")
NAMES = {
    "train": ("train", "training", "apprentissage", "entrainement", "entraînement"),
    "dev": ("dev", "devel", "development", "développement", "val", "valid", "validation", "trial", "testa"),
    "test": ("test", "tests", "testing", "testb"),  # testa, testb: CoNLL's
}
UNCLEAR = ("eval", "evaluation", "évaluation", "heldout", "holdout", "devtest")  # dev for some, test for others
SUFFIXES = ("", "set", "data")  # trainset, testdata
PART_OF_WORD = {name + suffix: part for part, names in NAMES.items() for name in names for suffix in SUFFIXES}
LETTERS = re.compile(r"[^\W\d_]+")
CURE = "Leave one word that says what it is: train, dev or test."
CAMEL_CASE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")


def words_of(text: str) -> Iterator[str]:
    """The runs of letters, in lower case; unless it names a part, trainSet is the words train and set."""
    for run in LETTERS.findall(unicodedata.normalize("NFC", text)):
        whole = run.casefold()
        yield from [whole] if whole in PART_OF_WORD else map(str.casefold, CAMEL_CASE.findall(run))


def part_of(text: str, location: str) -> str | None:
    """The part that the words of a path or of a value name, None without such a word.

    Raises DataError if they name two parts, or if it is open which.
    """
    words = list(words_of(text))
    found = {PART_OF_WORD[word]: word for word in words if word in PART_OF_WORD}
    unclear = {word for word in words if word in UNCLEAR}
    if len(found) > 1 or (unclear and "train" in found):
        raise DataError(f"{location} has the words {' and '.join([*found.values(), *unclear])}. {CURE}")
    if unclear and not found:
        raise DataError(f"{location} has the word {', '.join(unclear)}, which may mean dev or test. {CURE}")
    return next(iter(found), None)


def parts_of_files(folder: str, names: Iterable[str]) -> dict[str, str | None]:
    """{path below the folder of a data set: its part}, by the words of folders and file name.

    None for all if no name has such a word.  Raises DataError if some have one and others have not, see also part_of.
    """
    parts = {name: part_of(name, f"{folder}: {name}") for name in names}
    without = [name for name, part in parts.items() if part is None]
    if 0 < len(without) < len(parts):
        named = next(name for name, part in parts.items() if part)
        reason = f"{folder}: {without[0]} does not say whether it is for train, dev or test, as {named} does"
        raise DataError(f"{reason}. Put one of these words into its name, or move it out of the folder.")
    return parts
