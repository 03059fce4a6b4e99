"""What the folder of a run says about it. Any of its files may be missing, damaged, of another version, or hostile."""

import json
import os
import stat
from pathlib import Path

from data.cli import DataError
from model.training.run_state import FOLDER, RUN, STUDENT, TENSORS, VALUES, list_checkpoints

RESULTS, MODEL, TABLE = "results.json", "model.safetensors", "table2.json"
MOST_JSON, MOST_LINES = 64 << 20, 1 << 20  # bytes that are read of a JSON file, and of the end of metrics.jsonl


def read_end(path: Path, most: int) -> bytes:
    """At most so many bytes from the end of a regular file.  Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would block
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"{path.name} is not a file")
        file.seek(max(state.st_size - most, 0))
        return file.read(most)


def read_json(path: Path) -> dict:
    """The object in a JSON file; {} if there is no such file.  Raises DataError if it is damaged or cannot be read."""
    try:
        content = read_end(path, MOST_JSON + 1)
        if len(content) > MOST_JSON:
            raise ValueError("it is too long")
        values = json.loads(content)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({str(error)[:100]}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no JSON object.")
    return values


def read_records(path: Path) -> list[dict]:
    """The last records of metrics.jsonl, oldest first; lines that are no records are left out."""
    try:
        lines = read_end(path, MOST_LINES).splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):  # the first line is cut where the file is long
            continue
    return [record for record in records if isinstance(record, dict) and is_number(record.get("step"))]


def dict_in(values: dict, *path: str) -> dict:
    """The dictionary at a path of keys in nested ones; {} where there is none."""
    for name in path:
        values = values.get(name)
        if not isinstance(values, dict):
            return {}
    return values


def is_number(value: object) -> bool:
    """Whether it can be shown as a number; JSON also has NaN, infinity, and integers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def printable(value: object) -> str:
    """For a terminal, which obeys some characters of a hostile name."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run of train.py, newest first, whose files are all there; their contents are not checked."""
    names = (STUDENT, TENSORS, VALUES)
    return [path for path in list_checkpoints(folder / FOLDER) if all((path / name).is_file() for name in names)]


def run_folder_of(path: Path) -> Path | None:
    """The folder of the run of train.py that a model's file, or its folder, belongs to; None if there is none."""
    folder = path if path.is_dir() else path.parent
    return next((each for each in (folder, folder.parent.parent) if (each / RUN).is_file()), None)
