"""The part of a data set that a file or a row is for: train, dev or test, as whole words say it."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from ..cli import DataError
from .rows import check_type, key_among, short

PARTS = ("train", "dev", "test")
NAMES = {
    "train": ("train", "training", "apprentissage", "entrainement"),
    "dev": ("dev", "devel", "development", "developpement", "val", "valid", "validation", "trial", "testa"),
    "test": ("test", "tests", "testing", "testb"),  # testa, testb: CoNLL's
}
UNCLEAR = ("eval", "evaluation", "heldout", "holdout", "devtest")  # dev for some, test for others
SUFFIXES = ("", "set", "data")  # trainset, testdata
PART_OF_WORD = {name + suffix: part for part, names in NAMES.items() for name in names for suffix in SUFFIXES}
PART_KEYS = ("SemEval_set", "split")  # columns; SICK's, the hub's
LETTERS = re.compile(r"[^\W\d_]+")
FRENCH_WORDS = {"fr", "fra", "fre", "french", "francais"}
OTHER_LANGUAGES = {"ar", "de", "el", "en", "es", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "vi", "zh"}
CURE = "Leave one word that says what it is: train, dev or test."
CAMEL_CASE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")


def words_of(text: str) -> Iterator[str]:
    """The runs of letters, without accents, in lower case; trainSet is train and set, unless it names a part itself."""
    bare = "".join(letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))
    for run in LETTERS.findall(bare):
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


def part_of_row(values: dict, location: str) -> str | None:
    """The part in a column such as SICK's SemEval_set, None without one.  Raises DataError for an unknown one."""
    key = key_among(PART_KEYS, values)
    if key is None:
        return None
    value = check_type(str, values[key], key, location)
    part = part_of(value, f"{location}: {key}")
    if part is None:
        reason = f"{location}: {key} must be train, dev (trial, validation) or test, not {short(value)}"
        raise DataError(f"{reason}. Rename the column if it is something else.")
    return part


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


def in_other_languages(names: Iterable[str]) -> list[str]:
    """The names with the word of another language, de/train.tsv, where others have the word of French."""
    words = {name: set(words_of(name)) for name in names}
    if all(FRENCH_WORDS.isdisjoint(found) for found in words.values()):
        return []
    return [name for name, found in words.items() if FRENCH_WORDS.isdisjoint(found) and found & OTHER_LANGUAGES]
