"""Command lines, the same for every command: options from a dataclass, errors and exit statuses, a progress line."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import io
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from .streams import discard, set_up_streams
from .versions import version_line

T = TypeVar("T")
MB = 1e6
NO_MEMORY = re.compile(  # in messages of PyTorch, CUDA, the kernel and Python's threads
    r"out of memory|not enough memory|can('t|not) allocate memory|alloc_failed|bad_alloc|start new thread",
    re.IGNORECASE,
)
SYNONYMS = {  # names that other projects give to an option
    "accumulate": ("gradient-accumulation-steps", "grad-accum"),
    "batch-size": ("train-batch-size", "per-device-train-batch-size", "micro-batch-size"),
    "checkpoint-every": ("save-steps",),
    "clip": ("max-grad-norm", "clip-norm"),
    "data": ("data-dir",),
    "dev": ("validation-file", "valid"),
    "epochs": ("num-train-epochs", "num-epochs"),
    "eval-every": ("eval-steps",),
    "log-every": ("logging-steps",),
    "lr": ("learning-rate", "peak-lr"),
    "max-length": ("max-seq-length",),
    "model": ("model-name-or-path",),
    "out": ("output-dir", "output", "save-dir"),
    "precision": ("bf16", "fp16", "dtype"),
    "steps": ("max-steps",),
    "student": ("student-model",),
    "teacher": ("teacher-model",),
    "tokenizer": ("tokenizer-name",),
    "train": ("train-file",),
    "warmup": ("warmup-ratio",),
    "workers": ("num-workers",),
}
VERSION_HELP = "print the versions of this project, PyTorch and Python, and exit"

# ---- errors ----------------------------------------------------------------------------------------------------


class DataError(ValueError):
    """A text, a tokenizer or a data set cannot be used. The message says which, where, and what to do."""


class OptionError(ValueError):
    """An option makes no sense. The message names it and the values it takes."""


def run_command(
    name: str,
    main: Callable[[], int | None],
    *user_errors: type[Exception],
    on_interrupt: str = "",
    on_memory: str = "",
) -> NoReturn:
    """Runs main() and exits with its status, 0 if it returns none.

    DataError, OptionError, OSError and user_errors are printed as "name: message", without a traceback; the status
    is the error's `exit_status`, by default 2. Ctrl-C exits with 130. A closed standard output is no error.
    on_interrupt: what Ctrl-C leaves behind, for its message. on_memory: what to do where memory is too small.
    """
    set_up_streams()
    status = 0
    try:
        status = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout.fileno())
    except (DataError, OptionError, *user_errors) as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = getattr(error, "exit_status", 2)
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            print(f"{name}: out of memory: {first_line(error)}. {on_memory}".rstrip(), file=sys.stderr)
        elif isinstance(error, OSError):  # a full disk, a folder without permission
            print(f"{name}: {error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        else:
            raise
        status = 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted{on_interrupt and '; '}{on_interrupt}.", file=sys.stderr)
        status = 130
    sys.exit(status)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the machine or of a GPU: a MemoryError, or an error of PyTorch, safetensors or the kernel that says so.

    Or an error that came of it, such as that of a CUDA graph whose recording it ended.
    """
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]


def warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


def note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr)


def say(line: str) -> None:
    """Prints a progress line. If standard output cannot be written, further output is discarded; the work continues."""
    try:
        print(line, flush=True)
    except OSError:  # a closed pipe, the terminal of a session that ended, a full disk
        with contextlib.suppress(io.UnsupportedOperation):
            discard(sys.stdout.fileno())


# ---- options ---------------------------------------------------------------------------------------------------


def option(default, help: str, group: str | None = None, *, least=None, above=None, most=None, below=None, **settings):
    """A field of a dataclass of options.

    group: its heading in --help, by default that of the field before. least, above, most, below: bounds that
    check_bounds enforces. settings: argparse's choices, nargs, metavar and type; positional=True for an argument
    without dashes.
    """
    bounds = {"least": least, "above": above, "most": most, "below": below}
    return dataclasses.field(default=default, metadata=dict(help=help, group=group, bounds=bounds, settings=settings))


class Version(argparse.Action):
    def __call__(self, parser, *_):
        print(version_line())
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Takes a word with a single dash for a value ("-" in a list of labels, "-1=no"), since only -h has one dash.

    Its messages are the same in every version of Python, and name what a mistyped word was probably meant to be.
    """

    def _parse_optional(self, word: str):
        return super()._parse_optional(word) if word.startswith("--") or word == "-h" else None

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            choices = [str(choice) for choice in action.choices]
            self.error(f"{name} must be {any_of(choices)}, not {value!r}.{did_you_mean(str(value), choices)}")

    def parse_args(self, arguments: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Names unknown options first, since a mistyped one also makes a required one missing."""
        words = list(sys.argv[1:] if arguments is None else arguments)
        options = self._option_string_actions
        for word in words[: words.index("--")] if "--" in words else words:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in options and " " not in word:
                self.error(f"There is no option {name}.{suggested_option(name, options)}")
        values, rest = self.parse_known_args(words, namespace)
        if rest:
            self.error(f"{rest[0]!r} is one word too many.{suggested_option(rest[0], options)}")
        return values

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"usage: {self.usage}\nerror: {message}\n")


def suggested_option(word: str, options: Iterable[str]) -> str:
    """The sentence that names the option meant by a word with dashes or underscores, as in another project; or ""."""
    name = re.sub(r"^[-\u2010-\u2015\u2212]+", "", word.partition("=")[0])
    if name == word:
        return ""
    name, names = name.replace("_", "-").lower(), [option.removeprefix("--") for option in options]
    synonym = next((option for option, others in SYNONYMS.items() if name in others), None)
    return f" Did you mean --{synonym}?" if synonym in names else did_you_mean(name, names, "--")


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """The sentence that names the closest of the names, to follow a message; "" if none is close."""
    names = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.65)
    close = close or [name for name in names if len(word) > 2 and name.startswith(word.lower())]
    return f" Did you mean {prefix}{names[close[0]]}?" if close else ""


def count(number: int, noun: str) -> str:
    """1 validation, 2 validations."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def any_of(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def no_file(path: str | Path) -> str:
    """The message for a path that does not exist, with a file of nearly the same name beside it."""
    return f"There is no file {path}.{similar_path(path) or ' Check the path.'}"


def similar_path(path: str | Path) -> str:
    """The sentence that names a file or folder of nearly the same name in the same folder; "" if there is none."""
    path = Path(path)
    try:
        return did_you_mean(path.name, os.listdir(path.parent), "" if path.parent == Path() else f"{path.parent}/")
    except (OSError, ValueError):  # no folder; a null byte
        return ""


def parse_options(options: type[T], arguments: Sequence[str] | None, usage: str, description: str) -> T:
    """The dataclass filled from the command line; arguments: those of sys.argv if None.

    Exits with status 2 and a message for an argument that cannot be parsed. Raises OptionError from the dataclass's
    own checks.
    """
    parser = make_parser(options, usage, description)
    values = vars(parser.parse_args(arguments))
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def make_parser(options: type, usage: str, description: str) -> Parser:
    """The parser of a dataclass of options.  Every option that has a default shows it once in --help."""
    width = min(110, max(60, shutil.get_terminal_size(fallback=(110, 24)).columns))
    layout = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=width)
    parser = Parser(usage=usage, description=description, allow_abbrev=False, formatter_class=layout)
    parser.add_argument("--version", action=Version, nargs=0, default=argparse.SUPPRESS, help=VERSION_HELP)
    group = parser
    for field in dataclasses.fields(options):
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        settings, help = dict(field.metadata["settings"]), field.metadata["help"]
        if settings.pop("positional", False):
            group.add_argument(field.name, help=help, **settings)
            continue
        if field.type is bool:
            settings["action"] = argparse.BooleanOptionalAction
            default = "on" if field.default else "off"
        else:
            settings.setdefault("type", field.type if field.type in (int, float) else str)
            if "choices" not in settings and settings["type"] is not str:
                settings.setdefault("metavar", "N" if settings["type"] is int else "X")
            default = " ".join(map(str, field.default if isinstance(field.default, tuple) else (field.default,)))
        if field.default not in (None, ()) and "default" not in help:
            help += f" (default: {default})"
        action = group.add_argument(dashed(field.name), default=field.default, help=help, **settings)
        action.help = help  # Python 3.11 and 3.12 add the default of a bool themselves
    return parser


def dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(condition: bool, message: str) -> None:
    """Raises OptionError with the message unless the condition holds."""
    if not condition:
        raise OptionError(message)


def check_bounds(options) -> None:
    """Raises OptionError for a number outside its field's bounds, for infinity and NaN, and for an empty string."""
    for field in dataclasses.fields(options):
        bounds = {word: bound for word, bound in field.metadata["bounds"].items() if bound is not None}
        values = getattr(options, field.name)
        for value in values if isinstance(values, tuple) else (values,):
            check(value != "", f"{dashed(field.name)} is empty.")
            if value is not None and bounds:
                words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
                wanted = " and ".join(
                    f"{words[word]} {f'{bound:,}' if isinstance(bound, int) else f'{bound:g}'}"
                    for word, bound in bounds.items()
                )
                check(within(value, **bounds), f"{dashed(field.name)} must be {wanted}, not {shown(value)}.")


def shown(value: float) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"{text[:20]}… ({len(text)} digits)"


def check_paths(options, *names: str) -> None:
    """Raises DataError for a path in one of these fields that does not exist; "-" is standard input."""
    for name in names:
        values = getattr(options, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value not in (None, "-") and not os.path.exists(value):
                raise DataError(no_file(value))


def within(value: float, least=-math.inf, above=-math.inf, most=math.inf, below=math.inf) -> bool:
    finite = isinstance(value, int) or math.isfinite(value)
    return finite and least <= value <= most and above < value < below


# ---- progress --------------------------------------------------------------------------------------------------


class Progress:
    """The bytes done so far, on stderr: one line that is redrawn on a terminal, else a line every few seconds."""

    def __init__(self, name: str, size: int, done: int = 0):
        """size: total bytes, 0 if unknown; done: bytes of an earlier run."""
        self.name, self.size, self.start = name, size, done
        self.begun = self.shown = time.monotonic()
        self.last = -1  # the bytes shown last
        self.terminal = sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Reports the bytes done so far, at most five times a second (every five seconds in a log)."""
        now = time.monotonic()
        is_complete = done == self.size != self.last  # files are read ahead, so that many parts can end there
        if is_complete or now - self.shown > (0.2 if self.terminal else 5.0):
            self.shown, self.last = now, done
            self._print(done, (done - self.start) / max(now - self.begun, 1e-9))

    def _print(self, done: int, speed: float) -> None:
        parts = [self.name, f"{done / MB:,.1f} MB", f"{speed / MB:,.1f} MB/s"]
        if self.size:
            minutes, seconds = divmod(round((self.size - done) / max(speed, 1.0)), 60)
            parts[1] = f"{done / MB:,.1f} of {self.size / MB:,.1f} MB  {100 * done // self.size} %"
            parts.append(f"ETA {minutes}:{seconds:02}")
        line = "  ".join(parts)
        width = shutil.get_terminal_size().columns - 1
        end = "" if self.terminal else "\n"
        print(f"\r{line[:width]:<{width}}" if self.terminal else line, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.terminal:
            print(file=sys.stderr)
