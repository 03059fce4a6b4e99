"""Standard output and standard error in any locale, closed, or read by nobody."""

import codecs
import io
import json
import os
import sys
import unicodedata

SPELLINGS = {  # of what has no decomposition into ASCII
    **{"→": "->", "←": "<-", "×": "x", "·": ".", "−": "-", "–": "-", "—": "-", "…": "...", "‖": "||", "≥": ">="},
    **{"≤": "<=", "±": "+/-", "≈": "~", "‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "œ": "oe"},
    **{"Œ": "OE", "æ": "ae", "Æ": "AE", "ß": "ss", "█": "#", "∈": "in", "Σ": "sum", "√": "sqrt", "€": "EUR", "•": "*"},
}


def respell(error: UnicodeError) -> tuple[str, int]:
    """The error handler "respell": × as x and é as e where the encoding lacks them, other characters as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(respelled, error.object[error.start : error.end])), error.end


def respelled(character: str) -> str:
    plain = SPELLINGS.get(character) or unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or character.encode("ascii", "backslashreplace").decode()


codecs.register_error("respell", respell)


class Unread(io.FileIO):
    """A stream whose reader may go, as in `2>&1 | head`: a terminal, pipe or full disk.  The work continues."""

    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError:
            discard(self.fileno())
            return len(content)


def set_up_streams() -> None:
    """Lets standard output and standard error keep the locale's encoding, never raise UnicodeEncodeError, and exist.

    An error of writing to standard error is ignored: no message is worth a run. One of standard output is raised;
    data.cli's say() ignores it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: COMMAND >&-
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), "utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="respell")
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        buffer = io.BufferedWriter(Unread(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(buffer, sys.stderr.encoding, "respell", line_buffering=True)


def discard(handle: int) -> None:
    """From now on, what is written to this descriptor goes nowhere, also what Python flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, handle)
    os.close(nowhere)


def print_json(values: dict) -> None:
    """Prints a JSON line, with escapes for all but ASCII unless standard output is UTF-8: JSON in any locale."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(json.dumps(values, ensure_ascii=codecs.lookup(encoding).name != "utf-8"))
