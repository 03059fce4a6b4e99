"""Reading raw text."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError

NOT_PLAIN = {".gz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".json", ".jsonl", ".parquet", ".safetensors", ".bin"}


@dataclass
class Reading:
    """What has been read so far, for the person who waits and for the warning at the end."""

    files: int = 0
    bytes: int = 0
    texts: int = 0
    not_utf8: int = 0


def corpus_files(paths: Iterable[str | Path]) -> list[Path]:
    """The plain-text files named, and every .txt below the folders named, in a fixed order.

    Raises DataError for a path that is not there, a folder without a .txt, or a file that is not plain text.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(  # os.walk follows no links, so a folder that links to itself ends
                Path(folder, name) for folder, _, names in os.walk(path) for name in names if name.endswith(".txt")
            )
            if not found:
                raise DataError(f"The folder {path} has no .txt file in it or below it.")
            files += found
        elif not path.exists():
            raise DataError(f"There is no corpus {path}. Check the path.")
        elif path.suffix in NOT_PLAIN:
            raise DataError(f"{path} is not plain text. Unpack it into a .txt, a text a line.")
        else:
            files.append(path)
    return files


def read_texts(files: Iterable[Path], reading: Reading) -> Iterator[str]:
    """Yields the texts of plain UTF-8 files: one a line, blank lines left out, in order.

    A line that is not UTF-8 is counted in `reading` and skipped. Raises DataError for a file that cannot be read.
    """
    for path in files:
        try:
            with path.open("rb") as file:
                reading.files += 1
                for number, line in enumerate(file):
                    reading.bytes += len(line)
                    try:
                        text = line.decode("utf-8-sig" if number == 0 else "utf-8").strip()
                    except UnicodeDecodeError:
                        reading.not_utf8 += 1
                        continue
                    if text:
                        reading.texts += 1
                        yield text
        except OSError as error:
            raise DataError(f"The corpus file {path} cannot be read: {error.strerror}.") from None
