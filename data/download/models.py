"""Models named on the command line: a path, or `owner/name[@revision]` of the Hugging Face hub."""

import dataclasses
import os
from pathlib import Path
from typing import TypeVar

from ..cli import DataError, note, similar_path
from ..tokenizer import FILE_NAME as TOKENIZER
from . import hub

T = TypeVar("T")
FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".model", ".tar", ".gz", ".tgz", ".zip")
KEYWORDS = ("demo", "none")  # what commands take in place of a model


def fetch_models(options: T, *names: str) -> T:
    """A command's options with these models found: a path stays, owner/name[@revision] becomes owner/name@commit.

    options: a dataclass; names: fields of it, model or tokenizer. A model on the hub is fetched into the cache, where
    local_path() finds it; a tokenizer on the hub becomes its path in the cache. Every command calls this first, so
    that a wrong name is reported before anything else.  Raises DataError.
    """
    found = {}
    for name in names:
        value = getattr(options, name)
        if value is None or value in KEYWORDS or os.path.exists(value):
            continue
        what = "tokenizer" if name == "tokenizer" else "model"
        if (remote := parse_name(value)) is None:
            kind = "file" if what == "model" and ("/" in value or value.endswith(FILE_SUFFIXES)) else what
            hint = "" if kind == "file" and "://" not in value else "; on the hub, it is written owner/name"
            raise DataError(f"There is no {kind} {value}.{similar_path(value) or f' Check the path{hint}.'}")
        folder = fetch(value, *remote, what)
        note(f"{value} is not a local path; it was found on the hub, commit {folder.name}.")
        found[name] = str(folder / TOKENIZER) if what == "tokenizer" else f"{remote[0]}@{folder.name}"
    return dataclasses.replace(options, **found)


def local_path(name: str | Path) -> Path:
    """The path itself; of a model on the hub, owner/name[@revision], the folder that it is fetched into.

    Raises DataError if it cannot be fetched. A path that does not exist is left to whoever reads it.
    """
    remote = None if os.path.exists(name) else parse_name(str(name))
    return fetch(str(name), *remote) if remote else Path(name)


def parse_name(name: str) -> tuple[str, str] | None:
    """-> repository, revision; None for what is not written owner/name[@revision], or has the suffix of a file."""
    repository, at, revision = name.partition("@")
    is_remote = hub.is_repository(repository) and not repository.lower().endswith(FILE_SUFFIXES)
    return (repository, revision if at else "main") if is_remote else None


def fetch(name: str, repository: str, revision: str, what: str = "model") -> Path:
    """download(), for a name that may also be a misspelt path.  Raises DataError."""
    try:
        return hub.download(repository, None, revision, what)
    except (hub.NoRepository, hub.Unreachable) as error:
        raise DataError(f"There is no file or folder {name} here, and none from the hub: {error}") from None
