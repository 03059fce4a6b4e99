"""The four downstream tasks of section 4: files to examples.

What a file is, its bytes decide, not its name; it may be compressed (gzip, xz, bzip2, Zstandard) or in an archive.
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
