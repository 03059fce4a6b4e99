"""Which files a corpus has: those given, and those below the folders given."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..archives import DAMAGE, open_members
from ..cli import DataError, OptionError, similar_path
from ..download.datasets import PREFIX, RemoteText, dataset_files, parse_dataset
from ..formats import JSON_LINES, RefusedError, is_description
from .parts import (
    ROWS,
    STDIN,
    Source,
    describe,
    errors_in,
    kind_of,
    open_source,
    row_texts,
)

UNKNOWN = ""  # the kind of standard input and of archives, before they are read


class Candidate(NamedTuple):
    name: str
    is_given: bool  # by its name or a pattern, not found in a folder
    remote: RemoteText | None = None  # of a file on the hub


def check_corpus(paths: Iterable[str | Path]) -> None:
    """Raises DataError for a path that does not exist, a pattern without files, or a wrong name of a data set."""
    for path in map(str, paths):
        if path.startswith(PREFIX):
            parse_dataset(path)
        elif path != STDIN and not os.path.lexists(path) and not glob.glob(path, recursive=True):
            raise no_corpus(path)


def no_corpus(path: str) -> DataError:
    meant = similar_path(path) or " Check the path."
    return DataError(f"There is no corpus {path}.{meant} On the hub, it is written {PREFIX}owner/name.")


def corpus_files(paths: Iterable[str | Path]) -> list[Candidate]:
    """The files given, those that match the patterns given, all below the folders given but hidden ones, and those
    with text of the data sets given.

    The order is fixed: as given, sorted within each folder, pattern or data set.
    Raises DataError for a path that does not exist or is not a file, and a folder or pattern without files.
    """
    files, paths = [], list(paths)
    check_corpus(paths)
    for path in map(str, paths):
        if path.startswith(PREFIX):
            files += (Candidate(file.name, True, file) for file in dataset_files(path))
            continue
        if os.path.isdir(path):
            found = [Candidate(str(file), False) for file in sorted(files_below(Path(path)))]
            if not found:
                raise DataError(f"The folder {path} has no file in it or below it.")
        elif path == STDIN or os.path.lexists(path):
            found = [Candidate(path, True)]
        else:
            found = sorted(file for file in glob.glob(path, recursive=True) if not os.path.isdir(file))
            found = [Candidate(file, True) for file in found]
            if not found:
                raise no_corpus(path)
        for file in found:
            if file.name != STDIN and not os.path.isfile(file.name):
                raise DataError(f"{file.name} is not a file. Give files or folders, or pipe its text into -.")
        files += found
    if sum(file.name == STDIN for file in files) > 1:
        raise DataError(f"Standard input can be read only once. Give {STDIN} once.")
    return files


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; symbolic links are followed, and no folder is read twice.

    Raises DataError for a folder that cannot be read.
    """

    def unreadable(error: OSError):
        raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    visited = set()
    for path, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in names if not name.startswith("."))


def find_sources(
    files: Iterable[Candidate], field: str | None, documents: str, report: Callable[[str], None]
) -> list[Source]:
    """The files that can be read. Each is opened, so that what cannot be read is said before the work begins.

    report: called with a sentence for each file of a folder that is skipped, or several of them.
    Raises DataError for a file that cannot be opened or needs a package that is not installed, or, if it is given by
    name, has no text; OptionError for a field that no file can have.
    """
    sources, kinds, descriptions = [], set(), []
    for file in files:
        if file.remote:  # what it holds is known when it has been fetched
            sources.append(Source(file.name, file.remote.size, file.remote))
            kinds.add(UNKNOWN)
            continue
        with errors_in(file.name):
            source = Source(file.name, 0 if file.name == STDIN else os.path.getsize(file.name))
        if file.name == STDIN:
            kinds.add(UNKNOWN)
        elif not file.is_given and is_description(file.name):
            descriptions.append(file.name)
            continue
        else:
            try:
                kinds.add(look_at(source, field, documents))
            except RefusedError as error:
                if file.is_given:
                    raise
                report(f"{error} It was skipped.")
                continue
        sources.append(source)
    if descriptions:
        names = ", ".join(descriptions[:3]) + (", …" if len(descriptions) > 3 else "")
        report(f"{len(descriptions)} files have names of descriptions and were skipped ({names}).")
    if sources and UNKNOWN not in kinds:
        check_field(field, kinds)
    return sources


def check_field(field: str | None, kinds: Iterable[str]) -> None:
    """Raises OptionError if a field is given for files of these kinds, and none of them has fields."""
    if field and not {JSON_LINES, *ROWS}.intersection(kinds):
        raise OptionError(
            f"--field {field} has no meaning: the input is plain text, not JSON, Parquet, Arrow or a table."
        )


def look_at(source: Source, field: str | None, documents: str) -> str:
    """The kind of a file, UNKNOWN for an archive or damage.

    Raises RefusedError if it has no text, DataError if it cannot be opened or a package is missing.
    """
    with errors_in(source.name), open_source(source.name) as file:
        try:
            for member in open_members(file, source.name):
                if member.archives:
                    break
                kind = kind_of(member, documents, field)
                if kind.name in ROWS:
                    next(row_texts(member, kind, field), None)  # is the column there, and the package?
                return kind.name
        except DAMAGE as error:
            describe(error)  # read_parts() will report it
    return UNKNOWN
