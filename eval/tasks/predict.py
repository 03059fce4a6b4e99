"""Predictions of a fine-tuned model: lines of text or JSON in, one JSON line out for each, in the same order.

The format of a line depends on the task:
    sentiment   a text, or {"text": …}
    ner         a text, {"text": …}, or {"words": […]}
    nli         premise TAB hypothesis, or {"premise": …, "hypothesis": …}
    qa          question TAB context, or {"question": …, "context": …}
A multi-label model (multi_label_classification) gives the labels above 0.5, a regression model its value.
A model fine-tuned on unanswerable questions, too, gives no_answer_score: the logits of <s> minus those of the best
answer. Where it exceeds the threshold (--no-answer-threshold), "answer" is null, and "score" is the probability of no
answer against the best answer.
An invalid line is reported with its number and skipped; the exit status is then 1, or 2 if no line is valid. The
input may be compressed; it is processed in chunks, so it may be of any length.
"""

import codecs
import contextlib
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from data.archives import DAMAGE, Member, open_members
from data.cli import DataError, check, check_bounds, check_paths, option, parse_options, warn
from data.download.models import fetch_models
from data.formats import ARROW_FILE, ARROW_STREAM, ENCODINGS, JSON, PARQUET, REFUSED, refusal
from data.streams import print_json
from data.tasks import TASKS, Example, PairExample, QuestionExample, TextExample, WordsExample
from data.tasks.contents import contradicts_name
from data.tasks.rows import short

from .ahead import ahead
from .batching import infer_asked
from .checks import Answers
from .evaluate import MODEL_HELP, SURROGATE, InferenceOptions, Task, check_task, open_model
from .multi_label import LabelsPrediction
from .ner import EntityPrediction, TagPrediction
from .qa import AnswerSpan, QaTask
from .regression import ValuePrediction
from .sequences import LabelPrediction

Prediction = LabelPrediction | LabelsPrediction | ValuePrediction | TagPrediction | EntityPrediction | AnswerSpan

FILE_HELP = "lines of text or JSON (default: standard input)"
CHUNK_LINES, CHUNK_BYTES = 2048, 1 << 22  # read before a chunk is predicted, sorted by length


@dataclass(frozen=True)
class Options(InferenceOptions):
    file: str | None = option(None, FILE_HELP, "input", positional=True, nargs="?", metavar="FILE")
    model: str | None = option(None, MODEL_HELP, metavar="MODEL")

    def __post_init__(self):
        check_bounds(self)
        check(self.model is not None, "--model is missing: the fine-tuned model.")


@contextlib.contextmanager
def open_lines(name: str | None) -> Iterator[Iterator[bytes]]:
    """The lines of a file, or of standard input for None and "-", decompressed.  Raises DataError, see text_lines."""
    if name in (None, "-") and sys.stdin is None:
        raise DataError("There is no standard input. Name a file.")
    where = "standard input" if name in (None, "-") else name
    try:
        # unbuffered: a buffer that a thread waits to fill cannot be closed, not even after Ctrl-C
        with open(name, "rb", buffering=0) if name not in (None, "-") else sys.stdin.buffer.raw as file:
            yield text_lines(where, io.BufferedReader(file))
    except BrokenPipeError:
        raise
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{where} cannot be read, or the output cannot be written: {reason}.") from None


def text_lines(where: str, file: BinaryIO) -> Iterator[bytes]:
    """Raises DataError if the file has no lines of text, when the first is read."""
    member = next(open_members(file, where), None)
    if member is None or member.archives:
        raise DataError(f"{where} is an archive. Unpack it first.")
    check_has_lines(where, member)
    if said := contradicts_name(member):
        warn(said)
    yield from io.BufferedReader(member.stream)


def check_has_lines(where: str, member: Member) -> None:
    """Raises DataError for what is not text in UTF-8, or no line a text.  Single lines are checked by parse_line."""
    encoding = next((layer for layer in member.layers if layer in ENCODINGS), None)
    if encoding:
        raise DataError(f"{where} is {encoding}. Convert it to UTF-8: iconv -f {encoding[:6]} -t UTF-8.")
    if member.form in REFUSED:
        raise refusal(where, member.form)
    if member.form in (PARQUET, ARROW_FILE, ARROW_STREAM, JSON):
        described = "JSON over several lines" if member.form == JSON else member.form
        raise DataError(f"{where} is {described}. Write it as JSON lines: one object per line.")


# ---- lines to examples -----------------------------------------------------------------------------------------


def parse_line(task: str, line: bytes) -> Example:
    """The example in one line, without a label.  Raises ValueError, saying what is wrong."""
    try:
        text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        values = json.loads(text) if text.lstrip().startswith("{") else split_line(task, text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON at character {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if task == "ner" and "words" in values:
        words = values["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError('"words" must be a list of non-empty strings')
        example = WordsExample(tuple(words), ())
    elif task in ("sentiment", "ner"):
        example = TextExample(get_text(values, "text"), "")
    elif task == "nli":
        example = PairExample(get_text(values, "premise"), get_text(values, "hypothesis"), "")
    else:
        example = QuestionExample("", get_text(values, "context"), get_text(values, "question"), ())
    if SURROGATE.search(json.dumps(example, ensure_ascii=False)):
        raise ValueError("it has an unpaired surrogate (\\ud800 to \\udfff), which is not a character")
    return example


def split_line(task: str, text: str) -> dict[str, str]:
    """A line that is not JSON, as the same keys.  Raises ValueError."""
    if task in ("sentiment", "ner"):
        return {"text": text}
    names = ("premise", "hypothesis") if task == "nli" else ("question", "context")
    parts = text.split("\t")
    if len(parts) != 2:
        raise ValueError(f"expected {names[0]} and {names[1]} separated by one tab, found {len(parts) - 1} tabs")
    return dict(zip(names, parts))


def get_text(values: dict, name: str) -> str:
    if not isinstance(values.get(name), str):
        keys = short(", ".join(values)) or "none"
        raise ValueError(f'expected a string under the key "{name}"; the keys are: {keys}')
    return values[name]


@dataclass
class Lines:
    """Counts of the input."""

    read: int = 0
    skipped: int = 0

    @property
    def exit_status(self) -> int:
        """1 if lines were left out. If all were, read_chunks raises DataError, whose status is 2."""
        return int(self.skipped > 0)


def read_chunks(lines: Iterable[bytes], task: str, counts: Lines) -> Iterator[list[tuple[int, Example]]]:
    """Chunks of examples with their line numbers, at least one example each.  counts: updated

    Warns of every line that is skipped, and at the end of their number.  Raises DataError if all lines are.
    """
    chunk, size = [], 0
    for number, line in enumerate(lines, 1):
        counts.read = number
        try:
            chunk.append((number, parse_line(task, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)))
        except ValueError as error:
            counts.skipped += 1
            warn(f"line {number} skipped: {error}.")
        size += len(line)
        if chunk and (len(chunk) >= CHUNK_LINES or size >= CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
    if counts.skipped:
        warn(f"{counts.skipped:,} of {counts.read:,} lines skipped.")
    if counts.skipped and counts.skipped == counts.read:
        raise DataError("No line is valid. See --help for the format of a line.")


# ---- predictions to lines --------------------------------------------------------------------------------------


def to_json(prediction: Prediction, example: Example, task: Task) -> dict:
    """What is printed for one example, beside its line number."""
    if isinstance(prediction, LabelPrediction):
        scores = {name: round(score, 6) for name, score in zip(task.labels, prediction.scores.tolist())}
        return {"label": prediction.label, "score": scores[prediction.label], "scores": scores}
    if isinstance(prediction, LabelsPrediction):
        scores = {name: round(score, 6) for name, score in zip(task.labels, prediction.scores.tolist())}
        return {"labels": prediction.labels, "scores": scores}
    if isinstance(prediction, ValuePrediction):
        values = [round(value, 6) for value in prediction.values.tolist()]
        return {"value": values[0]} if len(values) == 1 else {"values": dict(zip(task.labels, values))}
    if isinstance(prediction, AnswerSpan):
        return answer_to_json(prediction, task)
    if isinstance(prediction, TagPrediction):
        return {"words": example.words, "tags": prediction.tags}
    found = [(e._asdict(), example.text[e.start : e.end]) for e in prediction.entities]
    return {"entities": [{**entity, "score": round(entity["score"], 6), "text": text} for entity, text in found]}


def answer_to_json(prediction: AnswerSpan, task: QaTask) -> dict:
    answer, start, end, score, no_answer = prediction
    if task.settings.no_answer_threshold is None:
        return {"answer": answer, "start": start, "end": end, "score": round(score, 6)}
    if task.says_none(prediction):
        answer, start, end, score = None, None, None, (1 + math.tanh(no_answer / 2)) / 2  # a sigmoid
    number = round(no_answer, 6) if math.isfinite(no_answer) else None  # an empty context
    return {"answer": answer, "start": start, "end": end, "score": round(score, 6), "no_answer_score": number}


def run(task_name: str, options: Options, lines: Iterable[bytes]) -> int:
    """Prints a JSON line per valid input line -> the exit status, 1 if lines were left out.

    Raises ModelError, OptionError, and DataError if no line is valid.
    """
    model, task, runtime = open_model(options.model, task_name, options)
    counts, answers = Lines(), Answers()
    chunks = read_chunks(lines, task_name, counts)
    encoded = ((chunk, task.encode([example for _, example in chunk], warn)) for chunk in chunks)
    for chunk, features in ahead(encoded):
        outputs = infer_asked(model, features, runtime, options.batch_tokens)
        predictions = task.decode(outputs, features, [example for _, example in chunk])
        answers.add(task, predictions)
        for (number, example), prediction in zip(chunk, predictions):
            print_json({"line": number, **to_json(prediction, example, task)})
        sys.stdout.flush()
    answers.warn_if_one("the input")
    return counts.exit_status


def main(arguments: list[str]) -> int:
    """The command `python -m eval predict` -> its exit status.  Raises OptionError, DataError, ModelError."""
    task = arguments[0] if arguments and arguments[0] in TASKS else None
    usage = f"python -m eval predict {task or 'TASK'} --model MODEL [FILE] [OPTIONS]"
    if task is None:
        check_task(arguments, usage)
    options = parse_options(Options, arguments[1:] if task else arguments, usage, __doc__)
    options = fetch_models(options, "model", "tokenizer")
    check_paths(options, "file")
    with open_lines(options.file) as lines:
        return run(task, options, lines)
