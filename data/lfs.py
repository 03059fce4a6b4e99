"""Git LFS pointers: the small text that a clone has in place of a large file, until that file is fetched."""

from pathlib import Path

START = b"version https://git-lfs.github.com/spec/"


def pointer_sentence(path: Path, content: bytes) -> str:
    """What to tell the user if a file with this content (or beginning) is a pointer; empty for every other file."""
    is_pointer = content.startswith(START)
    return f"{path} is a Git LFS pointer, not the file itself. Fetch it: git lfs pull." if is_pointer else ""
