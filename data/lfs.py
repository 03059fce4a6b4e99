"""Git LFS pointers: the small text that a clone has in place of a large file, until that file is fetched."""

from pathlib import Path

FIRST_BYTES = b"version https://git-lfs.github.com/spec/"


def pointer_sentence(path: Path) -> str:
    """What to tell the user if a file is a pointer; empty for every other file.  Raises OSError."""
    with path.open("rb") as file:
        is_pointer = file.read(len(FIRST_BYTES)) == FIRST_BYTES
    return f"{path} is a Git LFS pointer, not the file itself. Fetch it: git lfs pull." if is_pointer else ""
