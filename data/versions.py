"""The versions that a result depends on: the project's commit, Python, PyTorch."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str]:
    """Of Python, PyTorch, and the project's commit where it is known.  PyTorch is not imported."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "not installed"
    found = {"python": platform.python_version(), "torch": torch}
    return found | ({"commit": known} if (known := commit(REPOSITORY)) else {})


@functools.cache
def commit(folder: Path) -> str | None:
    """The commit checked out in the folder, with "+ changes" if tracked files differ; None if it is not known.

    The folder must be the root of a repository that tracks this file: git does not search the folders above, and
    ignores GIT_DIR, so that it never answers with the commit of another repository.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables |= {"GIT_CEILING_DIRECTORIES": str(folder.parent), "GIT_OPTIONAL_LOCKS": "0"}
    tracked = ["git", "ls-files", "--error-unmatch", str(Path(__file__).resolve().relative_to(REPOSITORY))]
    described = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty= + changes"]
    settings = dict(cwd=folder, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    try:
        subprocess.run(tracked, **settings, check=True)
        return subprocess.run(described, **settings, check=True).stdout.decode("ascii").strip() or None
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):  # no git, no repository, or another user's
        return None


def version_line() -> str:
    """What --version prints."""
    found = versions()
    return f"commit {found.get('commit', 'unknown')}, torch {found['torch']}, Python {found['python']}"
