"""A model's files from the hub: config.json, weights, tokenizer.

    HEAD {hub}/{owner}/{name}/resolve/{revision}/{file}    -> commit, size and hash
    GET  the same at that commit                           -> the bytes, large files from another host

Only the standard library is needed. torch.hub.download_url_to_file neither resumes nor knows the hub's hashes, and
huggingface_hub, used where it happens to be installed, would make two ways to test for the one that all have.
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

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin")  # the first that the repository has
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")  # no path, no option, no hidden file
COMMIT, HASH, SIZE = r"[0-9a-f]{40}", r'(?:W/)?"?([0-9a-f]{64}|[0-9a-f]{40})"?', r"[0-9]{1,18}"
ATTEMPTS, PAUSE = 5, 1.0  # at each file; seconds before the second attempt, doubled before each further one
LARGEST, LARGEST_JSON, MOST_SHARDS = 20 * 10**9, 10**8, 1000  # bytes; bytes of what is read into memory; files


class Hub(NamedTuple):
    address: str
    repository: str
    token: str

    def url(self, revision: str, name: str) -> str:
        return f"{self.address}/{self.repository}/resolve/{quote(revision, safe='')}/{name}"


def download(repository: str, cache: Path | None = None, revision: str = "main") -> Path:
    """Fetch a model -> the folder that holds config.json, the weights, sentencepiece.bpe.model (those there are).

    repository: `owner/name`. cache: by default $DISTILCAMEMBERT_CACHE, else the user's cache folder; in it each
    commit has a folder of its own. What is whole there already is not fetched again. A note on stderr says what
    the repository lacks. From the environment: HF_ENDPOINT, another hub; HF_TOKEN, sent to that hub only.
    Raises DataError, with what to do; what has come of a broken transfer is kept, the next call goes on from there.
    """
    if repository.count("/") != 1 or not all(map(is_plain, repository.split("/"))):
        raise DataError(f"A repository is owner/name, say almanach/camembert-base, not {repository!r}.")
    if not all(map(is_plain, revision.split("/"))):
        raise DataError(f"A revision is a branch, a tag or a commit, not {revision!r}.")
    hub = Hub(endpoint(), repository, token())
    place = (cache or default_cache()) / repository.replace("/", "--")
    for names in ((CONFIG,), WEIGHTS, (TOKENIZER,)):
        path = first_of(names, hub, revision, place)
        if path is None and names is WEIGHTS:
            raise DataError(f"{repository} at {hub.address} has no weights: none of {', '.join(WEIGHTS)}.")
        if path is None:
            print(f"note: {repository} has no {names[0]}.", file=sys.stderr)
            continue
        revision = path.parent.name  # the commit from here on: a push meanwhile cannot mix two versions
        for shard in shards(path) if path.name == INDEX else ():
            if first_of((shard,), hub, revision, place) is None:
                raise DataError(f"{repository} lacks {shard}, of which its {INDEX} speaks: it is not whole.")
    return place / revision


def first_of(names: tuple[str, ...], hub: Hub, revision: str, place: Path) -> Path | None:
    """The first of these files that the repository has, fetched.  Raises DataError."""
    return next(filter(None, (patiently(name, hub, revision, place) for name in names)), None)


def patiently(name: str, hub: Hub, revision: str, place: Path) -> Path | None:
    """One file into place/commit -> its path, None where the repository does not have it.  Raises DataError."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            remote = find(name, hub, revision)  # at each attempt: what it announces may have changed
            if remote is None:
                return None
            path = place / remote.commit / name
            transfer.fetch(hub.url(remote.commit, name), path, remote.size, remote.digest, hub.token)
            return path
        except transfer.Interrupted as error:
            if attempt == ATTEMPTS:
                raise DataError(
                    f"{error} {ATTEMPTS} attempts failed. Check the connection (and HF_ENDPOINT, if set); "
                    "the same command goes on where this one stopped."
                ) from None
            print(f"note: {error} Trying again.", file=sys.stderr)
            time.sleep(PAUSE * 2 ** (attempt - 1))
        except OSError as error:
            raise DataError(f"{error.filename or place} cannot be written: {error.strerror or error}.") from None


class Remote(NamedTuple):
    """What the hub announces of a file."""

    commit: str
    size: int
    digest: str  # sha256 of a large file, git's sha1 of a small one


def find(name: str, hub: Hub, revision: str) -> Remote | None:
    """What the hub announces of a file, None where it is not there.  Raises DataError, Interrupted."""
    url = hub.url(revision, name)
    with transfer.request("HEAD", url, hub.token) as response:
        headers, status = response.headers, response.status
    check_repository(headers.get("X-Error-Code"), status, hub, revision)
    if status == 404:
        return None
    transfer.check(response, url)
    own = headers if status == 200 else {}  # a redirection's own ETag and length are not the file's
    commit = re.fullmatch(COMMIT, headers.get("X-Repo-Commit", ""))
    digest = re.fullmatch(HASH, headers.get("X-Linked-ETag") or own.get("ETag", ""))
    size = re.fullmatch(SIZE, headers.get("X-Linked-Size") or own.get("Content-Length", ""))
    if not (commit and digest and size):
        raise DataError(f"{url} answers without commit, size and hash, so that nothing could be checked: it is no hub.")
    if re.fullmatch(COMMIT, revision) and revision != commit[0]:
        raise DataError(f"{url} answers with another commit, {commit[0]}. Run the command again.")
    if not 0 < int(size[0]) <= (LARGEST_JSON if name.endswith(".json") else LARGEST):
        raise DataError(f"{url} is announced with {int(size[0]):,} bytes, no size for such a file: it was not fetched.")
    return Remote(commit[0], int(size[0]), digest[1])


def check_repository(code: str | None, status: int, hub: Hub, revision: str) -> None:
    """Raises DataError where the hub says that the repository cannot be read, or is none."""
    if code == "GatedRepo":
        raise DataError(
            f"{hub.repository} is gated: accept its terms at {hub.address}/{hub.repository}, then set HF_TOKEN."
        )
    if code == "RevisionNotFound":
        raise DataError(f"{hub.repository} has no revision {revision}. {hub.address}/{hub.repository} lists them.")
    if code == "RepoNotFound" or status == 401:
        raise DataError(
            f"There is no repository {hub.repository} at {hub.address}, or it is private. Check the name; a private "
            "one needs HF_TOKEN, and a token that is set may be out of date."
        )


def shards(index: Path) -> list[str]:
    """The files that an index speaks of; anyone may have written their names.  Raises DataError."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        plain = all(is_plain(name) and name.endswith(".safetensors") for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = plain = None
    if not names or len(names) > MOST_SHARDS or not plain:
        raise DataError(f"{index} does not list .safetensors files beside it: the repository cannot be used.")
    return sorted(names)


def is_plain(name: str) -> bool:
    return PLAIN.fullmatch(name) is not None and ".." not in name


def endpoint() -> str:
    """HF_ENDPOINT, or the hub.  Raises DataError."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?", address):
        raise DataError(f"HF_ENDPOINT must be a web address, say https://huggingface.co, not {address!r}.")
    return address


def token() -> str:
    """HF_TOKEN, or nothing.  Raises DataError."""
    value = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", value):  # http.client would say so too, with the token in its message
        raise DataError("HF_TOKEN holds characters that no token has. Set it anew, or unset it.")
    return value


def default_cache() -> Path:
    own = os.environ.get("DISTILCAMEMBERT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distilcamembert"
