"""Downloads a model from the Hugging Face hub: config.json, weights, tokenizer.

    HEAD {hub}/{owner}/{name}/resolve/{revision}/{file}    -> commit, size and hash
    GET  the same at that commit                           -> the content; large files from another host

It uses the standard library only. torch.hub.download_url_to_file neither resumes nor checks the hub's hashes, and
huggingface_hub as an option would be a second code path to test.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..cli import DataError
from ..tokenizer import FILE_NAME as TOKENIZER
from . import transfer

CONFIG, INDEX, BIN_INDEX = "config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", BIN_INDEX)  # in order of preference
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # no path, no option, no hidden file
COMMIT, HASH, SIZE = r"[0-9a-f]{40}", r'(?:W/)?"?([0-9a-f]{64}|[0-9a-f]{40})"?', r"[0-9]{1,18}"
ATTEMPTS, PAUSE = 5, 1.0  # per file; seconds before the second attempt, doubled before each further one
MAX_BYTES, MAX_JSON_BYTES, MAX_SHARDS = 20 * 10**9, 10**8, 1000


class Hub(NamedTuple):
    address: str
    repository: str
    token: str

    def url(self, revision: str, name: str) -> str:
        return f"{self.address}/{self.repository}/resolve/{quote(revision, safe='')}/{name}"


class RemoteFile(NamedTuple):
    """The hub's metadata of a file."""

    commit: str
    size: int
    digest: str  # sha256 of a large file, git's sha1 of a small one


def download(repository: str, cache: Path | None = None, revision: str = "main") -> Path:
    """Downloads a model -> the folder with its config.json, weights and sentencepiece.bpe.model, as far as they exist.

    repository: `owner/name`. cache: by default $DISTILCAMEMBERT_CACHE, else in the user's cache folder; it has one
    folder per commit, and complete files are not downloaded again. A note on stderr names each missing file.
    Environment: HF_ENDPOINT, another hub; HF_TOKEN, sent to that hub only.
    Raises DataError; partial files are kept, and the next call resumes from them.
    """
    if repository.count("/") != 1 or not all(map(is_safe_name, repository.split("/"))):
        raise DataError(f"A repository is written owner/name, like almanach/camembert-base, not {repository!r}.")
    if not all(map(is_safe_name, revision.split("/"))):
        raise DataError(f"A revision is a branch, a tag or a commit, not {revision!r}.")
    hub = Hub(endpoint(), repository, token())
    folder = (cache or default_cache()) / repository.replace("/", "--")
    for names in ((CONFIG,), WEIGHTS, (TOKENIZER,)):
        path = download_first(names, hub, revision, folder)
        if path is None and names is WEIGHTS:
            raise DataError(f"{repository} at {hub.address} has no weights: none of {', '.join(WEIGHTS)}.")
        if path is None:
            print(f"note: {repository} has no {names[0]}.", file=sys.stderr)
            continue
        revision = path.parent.name  # the commit from here on, so that a push meanwhile cannot mix two versions
        for shard in shard_names(path) if path.name in (INDEX, BIN_INDEX) else ():
            if download_first((shard,), hub, revision, folder) is None:
                raise DataError(f"{repository} is incomplete: its {path.name} lists {shard}, which is missing.")
    return folder / revision


def download_first(names: tuple[str, ...], hub: Hub, revision: str, folder: Path) -> Path | None:
    """Downloads the first of these files that the repository has; None if it has none.  Raises DataError."""
    return next(filter(None, (download_with_retries(name, hub, revision, folder) for name in names)), None)


def download_with_retries(name: str, hub: Hub, revision: str, folder: Path) -> Path | None:
    """Downloads one file to folder/commit -> its path; None if the repository does not have it.  Raises DataError."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            remote = file_metadata(name, hub, revision)  # in each attempt, because it may have changed
            if remote is None:
                return None
            path = folder / remote.commit / name
            transfer.download_file(hub.url(remote.commit, name), path, remote.size, remote.digest, hub.token)
            return path
        except transfer.TemporaryError as error:
            if attempt == ATTEMPTS:
                advice = "Check the connection (and HF_ENDPOINT, if set), then run the same command again: it resumes."
                raise DataError(f"{error} {ATTEMPTS} attempts failed. {advice}") from None
            print(f"note: {error} Trying again.", file=sys.stderr)
            time.sleep(PAUSE * 2 ** (attempt - 1))
        except OSError as error:
            raise DataError(f"{error.filename or folder} cannot be written: {error.strerror or error}.") from None


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
    if not 0 < int(size[0]) <= (MAX_JSON_BYTES if name.endswith(".json") else MAX_BYTES):
        raise DataError(f"{url} has {int(size[0]):,} bytes according to the hub, which cannot be right.")
    return RemoteFile(commit[0], int(size[0]), digest[1])


def check_repository(code: str | None, status: int, hub: Hub, revision: str) -> None:
    """Raises DataError for the hub's error codes: no such repository or revision, no access."""
    page = f"{hub.address}/{hub.repository}"
    if code == "GatedRepo":
        raise DataError(f"{hub.repository} is gated. Accept its terms at {page}, then set HF_TOKEN.")
    if code == "RevisionNotFound":
        raise DataError(f"{hub.repository} has no revision {revision}. See {page} for its revisions.")
    if code == "RepoNotFound" or status == 401:
        message = f"There is no repository {hub.repository} at {hub.address}, or it is private."
        raise DataError(f"{message} Check the name; a private one needs a valid HF_TOKEN.")


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
