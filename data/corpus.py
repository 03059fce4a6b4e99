"""Reading raw text."""

import codecs
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError

NOT_PLAIN = {".gz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".json", ".jsonl", ".parquet", ".safetensors", ".bin"}


@dataclass
class Reading:
    """What was skipped."""

    not_utf8: int = 0  # lines


def corpus_files(paths: Iterable[str | Path]) -> list[Path]:
    """The plain-text files named, and every .txt below the folders named, in a fixed order.

    Raises DataError for a path that is not there, a folder without a .txt, or a file that is not plain text.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(text_files(path))
            if not found:
                raise DataError(f"The folder {path} has no .txt file in it or below it.")
            files += found
        elif not path.exists():
            raise DataError(f"There is no corpus {path}. Check the path.")
        elif path.suffix in NOT_PLAIN or not path.is_file():
            raise DataError(f"{path} is not a plain-text file. Unpack it into a .txt, a text a line.")
        else:
            files.append(path)
    return files


def text_files(folder: Path) -> Iterator[Path]:
    """Every .txt below a folder, also through links; a folder that links back to itself is read once."""

    def unreadable(error: OSError):
        raise DataError(f"The corpus folder {error.filename} cannot be read: {error.strerror}.")

    seen = set()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names if name.endswith(".txt"))


def read_texts(files: Iterable[Path], reading: Reading) -> Iterator[str]:
    """Yields the texts of plain UTF-8 files: one a line, blank lines left out, in order.

    A line that is not UTF-8 is counted in `reading` and skipped. Raises DataError for a file that cannot be read.
    """
    for path in files:
        try:
            with path.open("rb") as file:
                utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # else its zeros would pass for text
                file.seek(0)
                for number, line in enumerate(file):
                    try:
                        text = line.decode("utf-8-sig" if number == 0 else "utf-8").strip()
                    except UnicodeDecodeError:
                        text = None
                    if text is None or utf16:
                        reading.not_utf8 += 1
                        continue
                    if text:
                        yield text
        except OSError as error:
            raise DataError(f"The corpus file {path} cannot be read: {error.strerror}.") from None
