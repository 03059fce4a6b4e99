"""Text of a data set on the Hugging Face hub: `hub:owner/dataset[/folder][@revision]`.

    GET {hub}/api/datasets/{owner}/{dataset}/tree/{revision}/{folder}?recursive=true    -> paths, sizes and hashes
    GET {hub}/datasets/{owner}/{dataset}/resolve/{commit}/{path}                        -> the content

Its Parquet or JSON-lines files are listed first, then fetched one after another, each while the one before it is read.
"""

import contextlib
import hashlib
import http.client
import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..cli import MB, DataError, note
from ..formats import is_description
from ..outputs import write_file
from . import transfer
from .hub import (
    MAX_TEXT_BYTES,
    Hub,
    ask,
    check_repository,
    check_revision,
    default_cache,
    endpoint,
    file_metadata,
    is_repository,
    retried,
    token,
)

PREFIX = "hub:"
WRITTEN = "hub:owner/dataset, with /folder and @revision if needed"
FORMS = (  # ends of file names, in order of preference: a data set may have all its text in several forms
    re.compile(r"\.parquet$", re.IGNORECASE),
    re.compile(r"\.(jsonl|ndjson)(\.(gz|xz|bz2|zst))?$", re.IGNORECASE),
    re.compile(r"\.json(\.(gz|xz|bz2|zst))?$", re.IGNORECASE),
)
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FETCHED = ".fetched"  # folder for the files, in the output folder
DIGEST = r"[0-9a-f]{64}|[0-9a-f]{40}"
MAX_PAGE_BYTES, MAX_PAGES, MAX_FILES, MAX_PATH = 5 * 10**7, 2000, 200_000, 1000


class RemoteText(NamedTuple):
    """A file of text on the hub."""

    name: str  # hub:owner/dataset/path
    size: int
    digest: str  # as in hub.RemoteFile
    commit: str

    @property
    def place(self) -> tuple[str, str]:
        """-> owner/dataset, path"""
        owner, dataset, path = self.name.removeprefix(PREFIX).split("/", 2)
        return f"{owner}/{dataset}", path

    @property
    def origin(self) -> str:
        """owner/dataset@commit"""
        return f"{self.place[0]}@{self.commit}"


# ---- which files -----------------------------------------------------------------------------------------------


def parse_dataset(name: str) -> tuple[str, str, str]:
    """hub:owner/dataset[/folder][@revision] -> owner/dataset, folder or "", revision.  Raises DataError."""
    path, at, revision = name.removeprefix(PREFIX).rpartition("@")
    if not at:
        path, revision = revision, "main"
    *repository, folder = (path.rstrip("/") + "/").split("/", 2)
    repository, folder = "/".join(repository), folder.rstrip("/")
    if not is_repository(repository) or (folder and not is_safe_path(folder)):
        raise DataError(f"A data set on the hub is written {WRITTEN}, not {name!r}.")
    check_revision(revision)
    return repository, folder, revision


def is_safe_path(path: str) -> bool:
    """Whether it stays in its folder, and can be printed."""
    parts = path.split("/")
    return len(path) <= MAX_PATH and not UNSAFE.search(path) and not {"", ".", ".."} & set(parts)


def dataset_files(name: str) -> list[RemoteText]:
    """The text files of a data set, sorted by path; of one kind, because many data sets have all text in two kinds.

    A note on stderr says what is taken. The listing is kept in the cache, for when the hub does not answer.
    Raises DataError.
    """
    repository, folder, revision = parse_dataset(name)
    hub = Hub(endpoint(), repository, token(), "datasets/")
    cached = default_cache() / f"datasets--{repository.replace('/', '--')}"
    cached /= f"{hashlib.sha256(f'{folder}@{revision}'.encode()).hexdigest()[:16]}.json"

    def request(attempts: int) -> list[RemoteText]:
        files = retried(lambda: choose_files(hub, folder, revision), attempts)
        with contextlib.suppress(OSError):  # works without a cache, too
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_file(cached, json.dumps(files).encode())
        return files

    files = ask(name, revision, read_listing(cached), request)
    total = sum(file.size for file in files) / MB
    note(f"{name}: {len(files):,} files, {total:,.1f} MB, of {files[0].origin}.")
    return files


def read_listing(path: Path) -> list[RemoteText] | None:
    """The files of an earlier listing; None if there is none, or if it is damaged."""
    try:
        return [RemoteText(*values) for values in json.loads(path.read_text(encoding="ascii"))] or None
    except (OSError, ValueError, TypeError):
        return None


def choose_files(hub: Hub, folder: str, revision: str) -> list[RemoteText]:
    """The text files at the commit that the revision has now.  Raises DataError, TemporaryError."""
    where = f"{PREFIX}{hub.repository}{folder and '/'}{folder}"
    is_file = rank_of(folder) is not None
    listed = dict(list_files(hub, folder.rpartition("/")[0] if is_file else folder, revision))
    by_rank: dict[int, list[str]] = {}
    for path, (size, _) in sorted(listed.items()):
        if size and (rank := rank_of(path)) is not None and (not is_file or path == folder):
            by_rank.setdefault(rank, []).append(path)
    if not by_rank:
        ends = Counter(Path(path).suffix or path.rpartition("/")[2] for path in listed)
        has = ", ".join(f"{count:,} {end!r}" for end, count in ends.most_common(10)) or "nothing"
        raise DataError(f"{where} has no Parquet or JSON-lines file. It has: {has}. Name another folder or revision.")
    rank = min(by_rank)
    found = by_rank.pop(rank)
    left_out = [path for paths in by_rank.values() for path in paths]
    if left_out:
        note(f"{len(left_out):,} files of {where} are left out, such as {left_out[0]!r}.")
    if unsafe := [path for path in found if not is_safe_path(path)]:
        raise DataError(f"{where} lists a file with an unsafe name, {unsafe[0]!r}. It cannot be used.")
    first = file_metadata(found[0], hub, revision)
    if first is None or (first.size, first.digest) != listed[found[0]]:
        raise transfer.TemporaryError(f"{where} changed while it was listed.")
    return [RemoteText(f"{PREFIX}{hub.repository}/{path}", *listed[path], first.commit) for path in found]


def rank_of(path: str) -> int | None:
    """The index in FORMS, None for other files."""
    if is_description(path):
        return None
    return next((rank for rank, pattern in enumerate(FORMS) if pattern.search(path)), None)


def list_files(hub: Hub, folder: str, revision: str) -> Iterator[tuple[str, tuple[int, str]]]:
    """Every file below a folder: its path, (size, digest).  Raises DataError, TemporaryError."""
    url = f"{hub.address}/api/datasets/{hub.repository}/tree/{quote(revision, safe='')}"
    url, query, pages, count = f"{url}{folder and '/'}{quote(folder)}", "recursive=true", 0, 0
    while query:
        page, query = list_page(hub, f"{url}?{query}", revision, folder)
        for entry in page:
            if not isinstance(entry, dict) or entry.get("type") != "file":
                continue
            large = entry.get("lfs") or {}
            path, size = entry.get("path"), entry.get("size")
            digest = large.get("oid", entry.get("oid")) if isinstance(large, dict) else None
            known = isinstance(path, str) and type(size) is int and isinstance(digest, str)
            if not known or not re.fullmatch(DIGEST, digest) or not 0 <= size <= MAX_TEXT_BYTES:
                raise DataError(f"{url} lists {path!r} without a size and a hash that can be right.")
            yield path, (size, digest)
        pages, count = pages + 1, count + len(page)
        if count > MAX_FILES or pages > MAX_PAGES:
            raise DataError(f"{url} lists more than {min(count, MAX_FILES):,} files. Name a folder of the data set.")


def list_page(hub: Hub, url: str, revision: str, folder: str) -> tuple[list, str]:
    """One page of the listing -> its entries, the query of the next page or "".  Raises DataError, TemporaryError."""
    with transfer.send_request("GET", url, hub.token) as response:
        check_repository(response.headers.get("X-Error-Code"), response.status, hub, revision)
        if response.status == 404:
            raise DataError(f"{hub.repository} has no {folder or 'files'} at revision {revision}. See {hub.page}.")
        transfer.check_status(response, url)
        try:
            content = response.read(MAX_PAGE_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise transfer.TemporaryError(f"{url} stopped ({error}).") from None
        following = re.search(r'<([^<>]*)>\s*;\s*rel="?next"?', response.headers.get("Link", ""))
    try:
        page = json.loads(content) if len(content) <= MAX_PAGE_BYTES else None
    except (ValueError, RecursionError):
        page = None
    if not isinstance(page, list):
        raise transfer.TemporaryError(f"{url} does not respond with a list of files.")
    query = following[1].partition("?")[2] if following else ""
    if following and not re.fullmatch("[!-~]+", query):
        raise DataError(f"{url} names a next page, {following[1]!r}, that cannot be asked for. Check HF_ENDPOINT.")
    return page, query  # and not the whole address: the token must not go to another host


# ---- one after another -----------------------------------------------------------------------------------------


def fetched(files: Sequence[RemoteText | str], folder: Path) -> Iterator[str]:
    """The path of each file: itself, or where a file of the hub is now. While it is read, the next one is fetched.

    folder: for the files of the hub. They stay until remove_fetched().  Raises DataError.
    """
    pending = None
    for number, file in enumerate(files):
        path = (pending or start_fetching(file, folder, shown=True)).result()
        pending = start_fetching(files[number + 1], folder, shown=False) if number + 1 < len(files) else None
        yield path


def start_fetching(file: RemoteText | str, folder: Path, shown: bool) -> Future:
    """Fetches a file in a thread, which ends with the process -> the future path."""
    future: Future = Future()

    def fetch() -> None:
        try:
            future.set_result(fetch_file(file, folder, shown))
        except BaseException as error:
            future.set_exception(error)

    if isinstance(file, str):
        future.set_result(file)
    else:
        threading.Thread(target=fetch, daemon=True).start()
    return future


def fetch_file(file: RemoteText, folder: Path, shown: bool) -> str:
    """Raises DataError, OSError."""
    repository, name = file.place
    hub, path = Hub(endpoint(), repository, token(), "datasets/"), local_file(file, folder)
    url = hub.url(file.commit, name)
    retried(lambda: transfer.download_file(url, path, file.size, file.digest, hub.token, shown))
    return str(path)


def local_file(file: RemoteText, folder: Path) -> Path:
    """Where it is fetched to. Its name there is a hash, because its own comes from the network."""
    suffix = FORMS[rank_of(file.name)].search(file.name)[0]
    return folder / FETCHED / (hashlib.sha256(file.name.encode()).hexdigest()[:32] + suffix.lower())


def remove_fetched(files: Iterable[RemoteText | str], folder: Path) -> None:
    """Removes the files of the hub that are no longer needed.  Raises OSError."""
    for file in files:
        if isinstance(file, RemoteText):
            local_file(file, folder).unlink(missing_ok=True)
