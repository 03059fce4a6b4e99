"""What every measurement leaves: a JSON file with the figures and all that is needed to have them again."""

import json
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path

import torch

from data import OptionError
from model.checkpoints.native import atomic_file, sha256

# Of a character, or a byte of an argument that is not UTF-8: no tokenizer takes it.
HALF = re.compile("[\ud800-\udfff]")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}


def provenance(command: str, options, files: Iterable[str | Path], seeds: Sequence[int]) -> dict:
    """Command line, options, versions, the files' hashes, seeds, the time."""
    return {
        "command": command,
        "options": asdict(options) if is_dataclass(options) else options,
        "versions": versions(),
        "files": {str(path): sha256(Path(path)) for path in files},
        "seeds": list(seeds),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def command_line(name: str, arguments: Sequence[str] | None) -> str:
    given = sys.argv[2:] if arguments is None else arguments
    return f"python -m eval {shlex.join([name, *given])}"


def check_writable(path: str | Path) -> None:
    """Before anything is computed for a file of that name.  Raises OptionError where it could not be written."""
    path = Path(path)
    try:
        if path.is_dir():
            raise OptionError(f"{path} is a folder. Choose another --out.")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from None


def write_json(path: str | Path, values: Mapping) -> None:
    """Atomically.  Raises ModelError where it cannot be written."""
    with atomic_file(path) as temporary:
        text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names need not be UTF-8


def warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


def show(figures: Mapping) -> str:
    """The figures with their intervals, a line each; what is by label or type indented below."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, Mapping) and "value" in value:
            lines.append(f"{name:<24} {line(value)}")
        elif isinstance(value, Mapping):
            lines.append(f"{name}")
            for label, inner in value.items():
                cells = [f"{key} {v['value']:.4f}" for key, v in inner.items() if isinstance(v, Mapping)]
                lines.append(f"  {label:<22} {'  '.join(cells)}  support {inner.get('support', '')}")
        else:
            lines.append(f"{name:<24} {value}")
    return "\n".join(lines)


def line(figure: Mapping) -> str:
    return f"{figure['value']:.4f}   [{figure['low']:.4f}, {figure['high']:.4f}]"
