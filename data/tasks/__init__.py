"""The four downstream tasks of section 4: files to examples.

Files may be compressed (gzip, xz, bzip2, Zstandard) or in an archive; their format is detected from their bytes.
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
