"""The examples of one task in any of its files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import DataError, OptionError
from .examples import TASKS, Example, Report
from .ner import read_ner
from .qa import read_qa
from .rows import read_text
from .sequences import read_nli, read_sentiment


def read_task(
    task: str, paths: Sequence[str | Path], report: Report, problem_type: str = "single_label_classification"
) -> list[Example]:
    """The examples of all files, in order.

    report: called with a sentence for everything that is skipped or assumed. problem_type, of sentiment and nli: what
    the labels are, by Hugging Face's name; multi_label_classification reads lists of labels, regression numbers.
    Raises OptionError for an unknown task, DataError (with file and line) for a file that cannot be used.
    """
    if task not in TASKS:
        raise OptionError(f"There is no task {task}. Choose one of {', '.join(TASKS)}.")
    if not paths:
        raise DataError(f"Give at least one file of {task} examples.")
    sequences = {"sentiment": partial(read_sentiment, problem_type=problem_type)}
    sequences["nli"] = partial(read_nli, problem_type=problem_type)
    readers = {**sequences, "ner": read_ner, "qa": read_qa}
    examples = []
    for path in map(str, paths):
        found = list(readers[task](path, read_text(path), report))
        if not found:
            raise DataError(f"{path} contains no {task} example.")
        examples += found
    return examples
