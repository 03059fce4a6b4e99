"""The four downstream tasks of section 4: files to examples.

The format of a file is recognised by its content; any file may be compressed (.gz, .xz, .bz2, .zst).
"""

from .examples import (
    TASKS,
    Answer,
    Example,
    PairExample,
    QuestionExample,
    Report,
    TextExample,
    WordsExample,
    labels_of,
)
from .read import read_task

__all__ = [
    "TASKS",
    "Answer",
    "Example",
    "PairExample",
    "QuestionExample",
    "Report",
    "TextExample",
    "WordsExample",
    "labels_of",
    "read_task",
]
