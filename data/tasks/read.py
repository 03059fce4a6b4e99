"""The examples of one task in any of its files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..cli import DataError, OptionError
from .contents import read_content
from .examples import TASKS, Example, Report, WordsExample
from .ner import read_ner
from .qa import read_qa
from .sequences import SINGLE_LABEL, Labels, read_nli, read_sentiment, read_tweets
from .tags import PREFIXED

TWEETS = re.compile(r"(.*)_text\.txt(\.\w+)?")


def read_task(
    task: str,
    paths: Sequence[str | Path],
    report: Report,
    problem_type: str = SINGLE_LABEL,
    *,
    label_map: Mapping[str, str] | None = None,
    part: str | None = None,
) -> list[Example]:
    """The examples of all files, in order.

    report: called with a sentence for everything that is skipped or assumed.
    problem_type: of sentiment and nli, what the labels are, by Hugging Face's name; multi_label_classification reads
    lists of labels, regression numbers.
    label_map: {label or entity type in the files: its new name}; {number: tag} for tags that are numbers.
    part: "train", "dev" or "test" reads only its rows of a file whose rows are of several parts, as SICK's say.
    Raises OptionError for an unknown task or a tag in the map, DataError (with file and line) for an unusable file.
    """
    if task not in TASKS:
        raise OptionError(f"There is no task {task}. Choose one of {', '.join(TASKS)}.")
    if task == "ner" and (tag := next(filter(PREFIXED.fullmatch, label_map or {}), None)):
        raise OptionError(f"--label-map {tag}=… must name the type of entity, {tag[2:]}, without a prefix.")
    if not paths:
        raise DataError(f"Give at least one file of {task} examples.")
    examples = []
    for path in map(str, paths):
        found = read_file(task, path, report, Labels(problem_type, label_map or {}))
        named = {name for name, _ in found} - {None}
        wanted = (None, part) if part and len(named) > 1 else (None, *named)
        chosen = [example for name, example in found if name in wanted]
        if part and named - {part}:
            said = f"{path}: its rows say that they are of {' and '.join(sorted(named))}"
            report(f"{said}; {len(chosen):,} of {len(found):,} are read for {part}.")
        examples += chosen
    return examples


def read_file(task: str, path: str, report: Report, labels: Labels) -> list[tuple[str | None, Example]]:
    """-> the part, None if the row does not say it, and the example of each row.  Raises as read_task."""
    content, tweets = read_content(path, report), TWEETS.fullmatch(path)
    if task == "sentiment" and tweets and isinstance(content, str):
        labels_path = f"{tweets[1]}_labels.txt{tweets[2] or ''}"
        found = list(read_tweets(path, content, labels_path, read_labels(path, labels_path, report), labels))
    elif task in ("sentiment", "nli"):
        reader = read_sentiment if task == "sentiment" else read_nli
        found = list(reader(path, content, report, labels))
    elif task == "ner":
        sentences = read_ner(path, content, report, labels.names)
        found = [(part, rename_types(example, labels.names)) for part, example in sentences]
    else:
        found = list(read_qa(path, content, report))
    if not found:
        raise DataError(f"{path} contains no {task} example.")
    return found


def read_labels(path: str, labels_path: str, report: Report) -> str:
    """The text of the file with the labels of the texts in another.  Raises DataError."""
    try:
        labels = read_content(labels_path, report)
    except DataError as error:
        raise DataError(f"The labels of {path} must be in {labels_path}. {error}") from None
    if not isinstance(labels, str):
        raise DataError(f"The labels of {path} must be in {labels_path}, one per line, but that is not a text file.")
    return labels


def rename_types(example: WordsExample, label_map: Mapping[str, str]) -> WordsExample:
    """The tags with the new names of their types; a type named O becomes no entity."""
    types = (label_map.get(tag[2:], tag[2:]) for tag in example.tags)
    tags = (tag[:2] + name if name not in ("", "O") else "O" for tag, name in zip(example.tags, types))
    return example._replace(tags=tuple(tags))
