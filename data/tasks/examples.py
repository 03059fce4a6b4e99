"""The examples of the four tasks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Label = str | tuple[str, ...] | float  # one class; several (multi-label); a value (regression)


class TextExample(NamedTuple):  # sentiment
    text: str
    label: Label


class PairExample(NamedTuple):  # nli
    premise: str
    hypothesis: str
    label: Label


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
    answers: tuple[Answer, ...]  # empty if the context does not answer the question


Example = TextExample | PairExample | WordsExample | QuestionExample
Report = Callable[[str], None]

TASKS = ("sentiment", "ner", "nli", "qa")


def labels_of(examples: Sequence[TextExample | PairExample | WordsExample]) -> list[str]:
    """The names of the labels, sorted; tags with "O" first.  Not for values, which have none."""
    if examples and isinstance(examples[0], WordsExample):
        return sorted({tag for example in examples for tag in example.tags}, key=lambda tag: (tag != "O", tag))
    labels = [example.label for example in examples]
    return sorted({name for label in labels for name in ((label,) if isinstance(label, str) else label)})
