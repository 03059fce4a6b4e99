"""Downloads a model from the Hugging Face hub into a cache, once: config.json, weights, tokenizer.

    HEAD {hub}/{owner}/{name}/resolve/{revision}/{file}    -> commit, size and hash
    GET  the same at that commit                           -> the content; large files from another host

It uses the standard library only. torch.hub.download_url_to_file neither resumes nor checks the hub's hashes, and
huggingface_hub as an option would be a second code path to test.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from ..cli import DataError, note
from ..locks import locked
from ..outputs import make_folder, write_file
from ..tokenizer import FILE_NAME as TOKENIZER
from . import transfer

T = TypeVar("T")
CONFIG, INDEX, BIN_INDEX = "config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", BIN_INDEX)  # in order of preference
WANTED = {"model": ((CONFIG,), WEIGHTS, (TOKENIZER,)), "tokenizer": ((TOKENIZER,),)}  # one file of each group
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # no path, no option, no hidden file
COMMIT, HASH, SIZE = r"[0-9a-f]{40}", r'(?:W/)?"?([0-9a-f]{64}|[0-9a-f]{40})"?', r"[0-9]{1,18}"
ATTEMPTS, PAUSE = 5, 1.0  # per file; seconds before the second attempt, doubled before each further one
MAX_BYTES, MAX_JSON_BYTES, MAX_TEXT_BYTES, MAX_SHARDS = 20 * 10**9, 10**8, 10**12, 1000


class Unreachable(DataError):
    """Every attempt to ask the hub has failed."""


class NoRepository(DataError):
    """The hub does not have the repository, or does not show it."""


class Hub(NamedTuple):
    address: str
    repository: str
    token: str
    prefix: str = ""  # "datasets/" for a data set

    @property
    def page(self) -> str:
        return f"{self.address}/{self.prefix}{self.repository}"

    def url(self, revision: str, name: str) -> str:
        return f"{self.page}/resolve/{quote(revision, safe='')}/{quote(name)}"


class RemoteFile(NamedTuple):
    """The hub's metadata of a file."""

    commit: str
    size: int
    digest: str  # sha256 of a large file, git's sha1 of a small one


# ---- a model into the cache ------------------------------------------------------------------------------------


def download(repository: str, cache: Path | None = None, revision: str = "main", what: str = "model") -> Path:
    """Downloads a model -> the folder with its config.json, weights and sentencepiece.bpe.model, as far as they exist.

    repository: `owner/name`. cache: by default $DISTILCAMEMBERT_CACHE, else in the user's cache folder; it has one
    folder per commit, and complete files are not downloaded again. what: "tokenizer" for that file alone. A note on
    stderr names each missing file. A copy that is complete in the cache is used without the hub if the revision is a
    commit, and if the hub does not answer.
    Environment: HF_ENDPOINT, another hub; HF_TOKEN, sent to that hub only; HF_HUB_OFFLINE=1, the cache alone.
    Raises DataError; partial files are kept, and the next call resumes from them.
    """
    if not is_repository(repository):
        raise DataError(f"A repository is written owner/name, like almanach/camembert-base, not {repository!r}.")
    check_revision(revision)
    hub = Hub(endpoint(), repository, token())
    folder = (cache or default_cache()) / repository.replace("/", "--")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(folder, os.W_OK)  # a complete copy in a read-only cache can be used, too
        with locked(folder, wait=True) if is_writable else contextlib.nullcontext():
            known = read_complete(folder, what, revision)
            return ask(repository, revision, known, lambda attempts: snapshot(hub, what, revision, folder, attempts))
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be written: {error.strerror or error}.") from None


def snapshot(hub: Hub, what: str, revision: str, folder: Path, attempts: int) -> Path:
    """Downloads the files to folder/commit, and notes that it is complete -> folder/commit.  Raises DataError, OSError.

    attempts: to find the commit. It is used from then on, so that a push meanwhile cannot mix two versions.
    """
    commit = commit_of([name for names in WANTED[what] for name in names], hub, revision, attempts)
    for names in WANTED[what]:
        path = download_first(names, hub, commit, folder)
        if path is None and (names is WEIGHTS or what == "tokenizer"):
            wanted = "weights" if names is WEIGHTS else what
            raise DataError(f"{hub.repository} at {hub.address} has no {wanted}: none of {', '.join(names)}.")
        if path is None:
            note(f"{hub.repository} has no {names[0]}.")
            continue
        for shard in shard_names(path) if path.name in (INDEX, BIN_INDEX) else ():
            if download_first((shard,), hub, commit, folder) is None:
                raise DataError(f"{hub.repository} is incomplete: its {path.name} lists {shard}, which is missing.")
    done = (what, "tokenizer") if (folder / commit / TOKENIZER).is_file() else (what,)
    for each in done:
        for name in (revision, commit):
            write_complete(folder, each, name, commit)
    return folder / commit


def ask(what: str, revision: str, known: T | None, request: Callable[[int], T]) -> T:
    """The hub's answer, or an earlier one: of a commit, which does not change, or if the hub cannot be reached.

    what: its name for messages; known: the earlier answer, if there is one; request: asks the hub, given the number of
    attempts.  Raises DataError.
    """
    if known is not None and re.fullmatch(COMMIT, revision):
        return known
    if transfer.is_offline():
        if known is None:
            raise DataError(f"{what} is not complete in the cache, and HF_HUB_OFFLINE forbids to fetch it. Unset it.")
        return known
    try:
        return request(ATTEMPTS if known is None else 1)
    except Unreachable:
        if known is None:
            raise
        note(f"the hub cannot be reached. {what} is used as it is in the cache.")
        return known


def complete_file(folder: Path, what: str, revision: str) -> Path:
    """The file with the commit of a revision whose download is complete."""
    return folder / "complete" / f"{what}@{quote(revision, safe='')}"


def read_complete(folder: Path, what: str, revision: str) -> Path | None:
    """The folder of a revision whose download is complete, None if there is none."""
    try:
        commit = complete_file(folder, what, revision).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return folder / commit if re.fullmatch(COMMIT, commit) and (folder / commit).is_dir() else None


def write_complete(folder: Path, what: str, revision: str, commit: str) -> None:
    if read_complete(folder, what, revision) != folder / commit:  # the cache may be read-only
        path = complete_file(folder, what, revision)
        make_folder(path.parent)
        write_file(path, commit.encode())


# ---- files -----------------------------------------------------------------------------------------------------


def commit_of(names: Iterable[str], hub: Hub, revision: str, attempts: int) -> str:
    """The commit of a revision, by the first of these files that it has; if it has none, the revision.

    Raises DataError.
    """
    if re.fullmatch(COMMIT, revision):
        return revision
    for name in names:
        if remote := retried(lambda name=name: file_metadata(name, hub, revision), attempts):
            return remote.commit
    return revision


def download_first(names: tuple[str, ...], hub: Hub, commit: str, folder: Path) -> Path | None:
    """Downloads the first of these files that the repository has to folder/commit -> its path, None if it has none.

    Raises DataError, OSError.
    """

    def download_one(name: str) -> Path | None:
        remote = file_metadata(name, hub, commit)  # in each attempt, because it may have changed
        if remote is None:
            return None
        path = folder / remote.commit / name
        transfer.download_file(hub.url(remote.commit, name), path, remote.size, remote.digest, hub.token)
        return path

    return next(filter(None, (retried(lambda name=name: download_one(name)) for name in names)), None)


def retried(action: Callable[[], T], attempts: int | None = None) -> T:
    """The result of action(), which is tried again after a TemporaryError.  Raises Unreachable, and what it raises."""
    attempts = attempts or ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except transfer.TemporaryError as error:
            if attempt == attempts:
                advice = "Check the connection (and HF_ENDPOINT, if set), then run the same command again: it resumes."
                raise Unreachable(f"{error} {attempts} attempts failed. {advice}") from None
            note(f"{error} Trying again.")
            time.sleep(PAUSE * 2 ** (attempt - 1))


def file_metadata(name: str, hub: Hub, revision: str) -> RemoteFile | None:
    """The hub's metadata of a file, None if there is no such file.  Raises DataError, TemporaryError."""
    url = hub.url(revision, name)
    with transfer.send_request("HEAD", url, hub.token) as response:
        headers, status = response.headers, response.status
    check_repository(headers.get("X-Error-Code"), status, hub, revision)
    if status == 404:
        return None
    transfer.check_status(response, url)
    own = headers if status == 200 else {}  # a redirect's own ETag and length are not the file's
    commit = re.fullmatch(COMMIT, headers.get("X-Repo-Commit", ""))
    digest = re.fullmatch(HASH, headers.get("X-Linked-ETag") or own.get("ETag", ""))
    size = re.fullmatch(SIZE, headers.get("X-Linked-Size") or own.get("Content-Length", ""))
    if not (commit and digest and size):
        raise DataError(f"{url} responds without commit, size and hash: it is not a hub. Check HF_ENDPOINT.")
    if re.fullmatch(COMMIT, revision) and revision != commit[0]:
        raise DataError(f"{url} responds with another commit, {commit[0]}. Run the command again.")
    most = MAX_TEXT_BYTES if hub.prefix else MAX_JSON_BYTES if name.endswith(".json") else MAX_BYTES
    if not 0 < int(size[0]) <= most:
        raise DataError(f"{url} has {int(size[0]):,} bytes according to the hub, which cannot be right.")
    return RemoteFile(commit[0], int(size[0]), digest[1])


def check_repository(code: str | None, status: int, hub: Hub, revision: str) -> None:
    """Raises DataError for the hub's error codes: no such repository or revision, no access."""
    if code == "GatedRepo":
        raise DataError(f"{hub.repository} is gated. Accept its terms at {hub.page}, then set HF_TOKEN.")
    if code == "RevisionNotFound":
        raise DataError(f"{hub.repository} has no revision {revision}. See {hub.page} for its revisions.")
    if code == "RepoNotFound" or status == 401:
        message = f"There is no repository {hub.repository} at {hub.address}, or it is private."
        raise NoRepository(f"{message} Check the name; a private one needs a valid HF_TOKEN.")


def shard_names(index: Path) -> list[str]:
    """The files that an index lists. The names come from the network and are checked.  Raises DataError."""
    suffix = ".bin" if index.name == BIN_INDEX else ".safetensors"
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        safe = all(is_safe_name(name) and name.endswith(suffix) for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = safe = None
    if not names or len(names) > MAX_SHARDS or not safe:
        raise DataError(f"{index} does not list {suffix} files in its own folder. The repository cannot be used.")
    return sorted(names)


# ---- names and environment ---------------------------------------------------------------------------------------


def is_repository(name: str) -> bool:
    """Whether it is written owner/name. It has no --, which the hub forbids and the cache has in place of the slash."""
    return name.count("/") == 1 and "--" not in name and all(map(is_safe_name, name.split("/")))


def check_revision(revision: str) -> None:
    """Raises DataError unless it can be a branch, a tag or a commit."""
    if len(revision) > 200 or not all(map(is_safe_name, revision.split("/"))):
        raise DataError(f"A revision is a branch, a tag or a commit, not {revision!r}.")


def is_safe_name(name: str) -> bool:
    return SAFE_NAME.fullmatch(name) is not None and ".." not in name


def endpoint() -> str:
    """HF_ENDPOINT, by default https://huggingface.co.  Raises DataError."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?", address):
        raise DataError(f"HF_ENDPOINT must be a web address like https://huggingface.co, not {address!r}.")
    return address


def token() -> str:
    """HF_TOKEN, by default empty.  Raises DataError, without the token in the message."""
    value = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", value):  # http.client would print the token
        raise DataError("HF_TOKEN contains characters that are not allowed in a token. Correct it, or unset it.")
    return value


def default_cache() -> Path:
    own = os.environ.get("DISTILCAMEMBERT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distilcamembert"
