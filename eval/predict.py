"""A fine-tuned model on what comes: lines or JSON lines in, JSON lines out, in the same order, as long as they come.

A line is, by task:
    sentiment   a text, or {"text": …}
    ner         a text, or {"text": …}, or {"words": […]}
    nli         premise and hypothesis with a tab between, or {"premise": …, "hypothesis": …}
    qa          question and context with a tab between, or {"question": …, "context": …}
A line that cannot be read is reported with its number and left out.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from data import DataError
from data.options import check, check_bounds, option, parse_options
from data.tasks import TASKS, Example, PairExample, QuestionExample, TextExample, WordsExample

from .evaluate import ReadingOptions, open_model, predict
from .results import warn
from .tasks import Label, Span, Tags, Task, entities_in

WINDOW_LINES, WINDOW_BYTES = 2048, 1 << 22  # lines that are held at once, sorted by length among themselves


@dataclass(frozen=True)
class Options(ReadingOptions):
    """What is predicted with what."""

    file: str | None = option(None, "lines or JSON lines (default: standard input)", "what is read",
                              positional=True, nargs="?", metavar="FILE")  # fmt: skip
    model: str | None = option(None, "a fine-tuned model, ours or Hugging Face's", metavar="FILE")

    def __post_init__(self):
        check_bounds(self)
        check(self.model is not None, "--model names the fine-tuned model to predict with.")


# ---- lines to examples -----------------------------------------------------------------------------------------


def read_line(task: str, line: bytes) -> Example:
    """What one line asks.  Raises ValueError, with what is wrong with it."""
    text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    values = json.loads(text) if text.lstrip().startswith("{") else plain_values(task, text)
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
    json.dumps(example, ensure_ascii=False).encode()  # half a character, by \ud800, can be neither read nor written
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
        raise ValueError(f'there is no text under "{name}", but {", ".join(values) or "nothing"}')
    return values[name]


def windows(lines: Iterable[bytes], task: str) -> Iterator[tuple[list[tuple[int, Example]], int]]:
    """Examples with their lines' numbers, as many as are held at once; how many lines before them were broken."""
    held, size, broken = [], 0, 0
    for number, line in enumerate(lines, 1):
        try:
            held.append((number, read_line(task, line)))
        except (ValueError, RecursionError) as error:
            broken += 1
            warn(f"line {number} is left out: {str(error) or 'it cannot be read'}.")
        size += len(line)
        if len(held) == WINDOW_LINES or size >= WINDOW_BYTES:
            yield held, broken
            held, size, broken = [], 0, 0
    yield held, broken


# ---- predictions to lines --------------------------------------------------------------------------------------


def as_values(prediction: Label | Tags | Span, example: Example, task: Task) -> dict:
    """What is printed of a prediction."""
    if isinstance(prediction, Label):
        scores = {name: round(score, 6) for name, score in zip(task.labels, prediction.scores.tolist())}
        return {"label": prediction.label, "score": scores[prediction.label], "scores": scores}
    if isinstance(prediction, Span):
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


def run(task_name: str, options: Options, lines: BinaryIO) -> tuple[int, int]:
    """Reads, predicts and prints -> lines predicted, lines left out."""
    model, task, machine = open_model(options.model, task_name, options)
    done = left_out = 0
    for held, broken in windows(lines, task_name):
        left_out += broken
        examples = [example for _, example in held]
        if examples:
            predictions = predict(model, task, examples, machine, options.batch_tokens, warn)
            for (number, example), prediction in zip(held, predictions):
                print(json.dumps({"line": number, **as_values(prediction, example, task)}, ensure_ascii=False))
            sys.stdout.flush()
        done += len(held)
    return done, left_out


def main(arguments: list[str]) -> None:
    """The command.  Raises OptionError, DataError, ModelError."""
    task = arguments[0] if arguments and arguments[0] in TASKS else None
    usage = f"python -m eval predict {task or 'TASK'} --model FILE [FILE]"
    check(
        task is not None or "-h" in arguments or "--help" in arguments, f"Name a task: {', '.join(TASKS)}.\n\n{usage}"
    )
    options = parse_options(Options, arguments[1:] if task else arguments, usage, __doc__)
    try:
        with open(options.file, "rb") if options.file not in (None, "-") else sys.stdin.buffer as lines:
            done, left_out = run(task, options, lines)
    except BrokenPipeError:  # whoever read has seen enough
        sys.stderr.close()
        return
    except OSError as error:
        raise DataError(f"{options.file or 'standard input'} cannot be read: {error.strerror}.") from None
    if left_out:
        warn(f"{left_out:,} of {done + left_out:,} lines were left out.")
        if not done:
            raise DataError("Not one line could be read.")
