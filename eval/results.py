"""Result files: the metrics of a measurement, with what is needed to reproduce it, as JSON and as lines on screen."""

import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path

from data.cli import OptionError
from data.tasks.contents import file_and_member
from data.versions import versions
from model.checkpoints.native import atomic_file, sha256


def provenance(command: str, options, files: Iterable[str | Path], seeds: Sequence[int]) -> dict:
    """Command line, options, versions, hashes of the input files, seeds, date.

    options: a dataclass or a dict; files: an archive's hash stands for archive/member.
    """
    return {
        "command": command,
        "options": asdict(options) if is_dataclass(options) else options,
        "versions": versions(),
        "files": {str(path): sha256(Path(file_and_member(str(path))[0])) for path in files},
        "seeds": list(seeds),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def command_line(name: str, arguments: Sequence[str] | None) -> str:
    """The shell command that runs `python -m eval NAME` with these arguments, by default those of sys.argv."""
    given = sys.argv[2:] if arguments is None else arguments
    return f"python -m eval {shlex.join([name, *given])}"


def check_writable(path: str | Path) -> None:
    """Creates the parent folders.  Raises OptionError if the file could not be written, before anything is computed."""
    path = Path(path)
    try:
        if path.is_dir():
            raise OptionError(f"{path} is a folder. Choose another --out.")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from None


def write_json(path: str | Path, values: Mapping) -> None:
    """Writes atomically.  Raises ModelError if it cannot."""
    with atomic_file(path) as temporary:
        text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names need not be UTF-8


def format_metrics(metrics: Mapping) -> str:
    """One line per metric with its interval; scores per label or entity type are indented below their name."""
    lines = []
    for name, metric in metrics.items():
        if not isinstance(metric, Mapping):
            lines.append(f"{name:<24} {f'{metric:.4f}' if isinstance(metric, float) else metric}")
        elif "value" in metric:
            interval = "" if metric["low"] is None else f"   [{metric['low']:.4f}, {metric['high']:.4f}]"
            lines.append(f"{name:<24} {metric['value']:.4f}{interval}")
        else:
            lines.append(name)
            for label, scores in metric.items():
                cells = [f"{key} {score['value']:.4f}" for key, score in scores.items() if isinstance(score, Mapping)]
                lines.append(f"  {label:<22} {'  '.join(cells)}  support {scores.get('support', '')}")
    return "\n".join(lines)
