"""The examples of the four tasks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class TextExample(NamedTuple):  # sentiment
    text: str
    label: str


class PairExample(NamedTuple):  # nli
    premise: str
    hypothesis: str
    label: str


class WordsExample(NamedTuple):  # ner
    words: tuple[str, ...]
    tags: tuple[str, ...]  # one per word: "O", "B-PER", "I-PER", …


class Answer(NamedTuple):
    text: str
    start: int | None  # offset in the context; None if the file's is wrong


class QuestionExample(NamedTuple):  # qa
    id: str
    context: str
    question: str
    answers: tuple[Answer, ...]  # at least one


Example = TextExample | PairExample | WordsExample | QuestionExample
Report = Callable[[str], None]

TASKS = ("sentiment", "ner", "nli", "qa")


def labels_of(examples: Sequence[TextExample | PairExample | WordsExample]) -> list[str]:
    """The names of the labels, sorted; tags with "O" first."""
    if examples and isinstance(examples[0], WordsExample):
        return sorted({tag for example in examples for tag in example.tags}, key=lambda tag: (tag != "O", tag))
    return sorted({example.label for example in examples})
