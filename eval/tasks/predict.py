"""A fine-tuned model on what comes: lines or JSON lines in, JSON lines out, in the same order, as long as they come.

A line is, by task:
    sentiment   a text, or {"text": …}
    ner         a text, or {"text": …}, or {"words": […]}
    nli         premise and hypothesis with a tab between, or {"premise": …, "hypothesis": …}
    qa          question and context with a tab between, or {"question": …, "context": …}
A line that cannot be read is reported with its number and left out.
"""

import codecs
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from data import DataError
from data.cli import check, check_bounds, option, parse_options
from data.tasks import TASKS, Example, PairExample, QuestionExample, TextExample, WordsExample, short

from ..results import HALF, warn
from .evaluate import InferenceOptions, Task, open_model, predict
from .ner import Tags, entities_in
from .qa import AnswerSpan
from .sequences import Label

WINDOW_LINES, WINDOW_BYTES = 2048, 1 << 22  # lines that are held at once, sorted by length among themselves


@dataclass(frozen=True)
class Options(InferenceOptions):
    """What is predicted with what."""

    file: str | None = option(None, "lines or JSON lines (default: standard input)", "what is read",
                              positional=True, nargs="?", metavar="FILE")  # fmt: skip
    model: str | None = option(None, "a fine-tuned model, ours or Hugging Face's", metavar="FILE")

    def __post_init__(self):
        check_bounds(self)
        check(self.model is not None, "--model names the fine-tuned model to predict with.")


@contextlib.contextmanager
def open_lines(name: str | None) -> Iterator[BinaryIO]:
    """A file, or standard input.  Raises DataError."""
    if name in (None, "-") and sys.stdin is None:
        raise DataError("There is no standard input. Name a file.")
    try:
        with open(name, "rb") if name not in (None, "-") else sys.stdin.buffer as lines:
            yield lines
    except BrokenPipeError:
        raise
    except OSError as error:
        where = name or "standard input"
        raise DataError(f"{where} cannot be read, or the answers not be written: {error.strerror}.") from None


# ---- lines to examples -----------------------------------------------------------------------------------------


def read_line(task: str, line: bytes) -> Example:
    """What one line asks.  Raises ValueError, with what is wrong with it."""
    try:
        text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        values = json.loads(text) if text.lstrip().startswith("{") else plain_values(task, text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"character {error.colno} is no JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if task == "ner" and "words" in values:
        words = values["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError('"words" is a list of words')
        example = WordsExample(tuple(words), ())
    elif task in ("sentiment", "ner"):
        example = TextExample(field(values, "text"), "")
    elif task == "nli":
        example = PairExample(field(values, "premise"), field(values, "hypothesis"), "")
    else:
        example = QuestionExample("", field(values, "context"), field(values, "question"), ())
    if HALF.search(json.dumps(example, ensure_ascii=False)):
        raise ValueError("it has half a character (\\ud800 to \\udfff)")
    return example


def plain_values(task: str, text: str) -> dict[str, str]:
    if task in ("sentiment", "ner"):
        return {"text": text}
    names = ("premise", "hypothesis") if task == "nli" else ("question", "context")
    parts = text.split("\t")
    if len(parts) != 2:
        raise ValueError(f"{names[0]} and {names[1]} are wanted with one tab between; there are {len(parts) - 1} tabs")
    return dict(zip(names, parts))


def field(values: dict, name: str) -> str:
    if not isinstance(values.get(name), str):
        raise ValueError(f'there is no text under "{name}"; it has {short(", ".join(values)) or "nothing"}')
    return values[name]


def windows(lines: Iterable[bytes], task: str) -> Iterator[list[tuple[int, Example]]]:
    """Examples with their lines' numbers, as many as are held at once, one at least.

    Says which lines are left out, and at the end how many.  Raises DataError if those are all.
    """
    held, size, number, broken = [], 0, 0, 0
    for number, line in enumerate(lines, 1):
        try:
            held.append((number, read_line(task, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)))
        except ValueError as error:
            broken += 1
            warn(f"line {number} is left out: {error}.")
        size += len(line)
        if held and (len(held) >= WINDOW_LINES or size >= WINDOW_BYTES):
            yield held
            held, size = [], 0
    if held:
        yield held
    if broken:
        warn(f"{broken:,} of {number:,} lines were left out.")
    if broken and broken == number:
        raise DataError("Not one line could be read.")


# ---- predictions to lines --------------------------------------------------------------------------------------


def as_values(prediction: Label | Tags | AnswerSpan, example: Example, task: Task) -> dict:
    """What is printed of a prediction."""
    if isinstance(prediction, Label):
        scores = {name: round(score, 6) for name, score in zip(task.labels, prediction.scores.tolist())}
        return {"label": prediction.label, "score": scores[prediction.label], "scores": scores}
    if isinstance(prediction, AnswerSpan):
        return {**prediction._asdict(), "score": round(prediction.score, 6)}
    if isinstance(example, WordsExample):
        return {"words": example.words, "tags": prediction.tags}
    found = entities_in(prediction, task.labels)
    return {
        "entities": [
            {**entity._asdict(), "score": round(entity.score, 6), "text": example.text[entity.start : entity.end]}
            for entity in found
        ]
    }


def run(task_name: str, options: Options, lines: BinaryIO) -> None:
    """Reads, predicts and prints.  Raises DataError where no line can be read."""
    model, task, runtime = open_model(options.model, task_name, options)
    for held in windows(lines, task_name):
        examples = [example for _, example in held]
        predictions = predict(model, task, examples, runtime, options.batch_tokens, warn)
        for (number, example), prediction in zip(held, predictions):
            print(json.dumps({"line": number, **as_values(prediction, example, task)}, ensure_ascii=False))
        sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """The command.  Raises OptionError, DataError, ModelError."""
    task = arguments[0] if arguments and arguments[0] in TASKS else None
    usage = f"python -m eval predict {task or 'TASK'} --model FILE [FILE]"
    check(
        task is not None or "-h" in arguments or "--help" in arguments, f"Name a task: {', '.join(TASKS)}.\n\n{usage}"
    )
    options = parse_options(Options, arguments[1:] if task else arguments, usage, __doc__)
    with open_lines(options.file) as lines:
        run(task, options, lines)
