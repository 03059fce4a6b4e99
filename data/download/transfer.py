"""One file over HTTP, when its size and hash are known: resumed, never longer than it may be, named when whole."""

import hashlib
import http.client
import os
import re
import shutil
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

from ..cli import MB, DataError, Progress

TIMEOUT = 30.0  # seconds without a byte
REDIRECTED, REDIRECTIONS = (301, 302, 303, 307, 308), 10
CHUNK = 1 << 20


class Interrupted(Exception):
    """Asking again may help. The message says what happened."""


class EveryAnswer(urllib.request.HTTPErrorProcessor):
    """Redirections and refusals are answers as well: their headers say what the hub knows of a file."""

    def http_response(self, request, response):
        return response

    https_response = http_response


OPENER = urllib.request.build_opener(EveryAnswer)  # verifies certificates and heeds HTTPS_PROXY, as urllib does


def fetch(url: str, path: Path, size: int, digest: str, token: str = "") -> None:
    """Bring a file to path, unless it is there and whole already.

    digest: 64 hex digits are the content's sha256, 40 git's sha1 of it as a blob. token: see request().
    Raises Interrupted, and keeps what has come; DataError, and deletes what is wrong; OSError.
    """
    if path.is_file() and is_whole(path, size, digest):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named by its hash too: what was begun of other content is never gone on with, in this run or a later one.
    partial = path.with_name(f"{path.name}.{digest[:12]}.partial")
    resume(url, partial, size, token)
    if not is_whole(partial, size, digest):
        with partial.open("rb") as file:
            page = file.read(64).lstrip().startswith(b"<")
        partial.unlink()
        raise DataError(
            web_page(url) if page else f"{url} sent other bytes than its hash announces: they were damaged on the way, "
            "or the hub is wrong. They were deleted; run the command again."
        )  # fmt: skip
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    for other in path.parent.glob(f"{path.name}.*.partial"):
        other.unlink(missing_ok=True)


def resume(url: str, partial: Path, size: int, token: str) -> None:
    """Bring partial to its size, going on from what is there.  Raises Interrupted, DataError, OSError."""
    have = partial.stat().st_size if partial.exists() else 0
    if have >= size:  # whole but for its name, or more than it can be: the hash will tell
        return
    if shutil.disk_usage(partial.parent).free < size - have:
        raise DataError(
            f"{url} needs {(size - have) / MB:,.1f} MB, more than is free in {partial.parent}. "
            "Make room, or choose another cache folder (DISTILCAMEMBERT_CACHE)."
        )
    with request("GET", url, token, have) as response:
        check(response, url)
        # No If-Range: the host that sends a large file has an ETag of its own. The hash is checked at the end.
        if response.status == 200:
            have = 0  # the server does not know Range
        elif response.headers.get("Content-Range") != f"bytes {have}-{size - 1}/{size}":
            partial.unlink(missing_ok=True)
            raise Interrupted(f"{url} did not go on where it had stopped.")
        length = response.headers.get("Content-Length", str(size - have))
        if length != str(size - have):
            raise DataError(f"{url} announces {size - have:,} bytes, but would send {length}. Try again later.")
        with partial.open("r+b" if have else "wb") as file:
            file.seek(have)
            receive(response, file, have, size, url)


def receive(response: http.client.HTTPResponse, file: BinaryIO, have: int, size: int, url: str) -> None:
    """Write what comes until the file has its size, never more, and show it.  Raises Interrupted, OSError."""
    progress = Progress(url.rsplit("/", 1)[1], size, have)
    try:
        while have < size:
            try:
                piece = response.read1(min(CHUNK, size - have))  # what is there: a break then loses none of it
            except (OSError, http.client.HTTPException) as error:
                raise Interrupted(f"{url} broke off after {have:,} of {size:,} bytes ({error}).") from None
            if not piece:
                raise Interrupted(f"{url} broke off after {have:,} of {size:,} bytes.")
            file.write(piece)
            have += len(piece)
            progress.show(have)
    finally:
        progress.close()


def request(method: str, url: str, token: str = "", offset: int = 0) -> http.client.HTTPResponse:
    """Ask, and follow redirections -> the last answer, unread, whatever its status.

    token: goes to url's own host, never to one that it sends on to. offset: the bytes before it are not wanted.
    HEAD stops where the hub sends on to another host: the hub has said all by then, and the other host's ETag is
    no hash of the content, and its address is often signed for GET alone.  Raises Interrupted, DataError.
    """
    asked = url
    for _ in range(REDIRECTIONS):
        headers = {"User-Agent": "distilcamembert"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            if token and origin(url) == origin(asked):
                headers["Authorization"] = f"Bearer {token}"
            if urlsplit(url).scheme not in ("http", "https"):  # urllib would open file: as well
                raise ValueError(url)
            response = OPENER.open(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT)
        except ValueError:
            raise DataError(f"{asked} leads to an address that is not of the web: it was not followed.") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Interrupted(f"{urlsplit(url).hostname} does not answer ({reason}).") from None
        target = absolute(response.headers.get("Location", ""), url)
        known = method == "HEAD" and "X-Repo-Commit" in response.headers and origin(target) != origin(url)
        if response.status not in REDIRECTED or known:
            return response
        response.close()
        url = target
    raise DataError(f"{asked} is redirected in a circle. Check HF_ENDPOINT and the network's proxy, or try later.")


def absolute(location: str, url: str) -> str:
    """Where a redirection from url leads; nowhere, if what it says is no address."""
    try:
        target = urljoin(url, location)
        urlsplit(target)
    except ValueError:
        return ""
    return target


def origin(url: str) -> tuple[str, str]:
    return urlsplit(url)[:2]


def check(response: http.client.HTTPResponse, url: str) -> None:
    """Raises Interrupted or DataError for an answer that is neither the file nor a redirection to it."""
    if response.status in (408, 429) or response.status >= 500:
        raise Interrupted(f"{url} answers with status {response.status}.")
    if response.status not in (200, 206, 416, *REDIRECTED):
        raise DataError(f"{url} is refused with status {response.status}.")
    if response.status == 200 and response.headers.get_content_type() == "text/html":
        raise DataError(web_page(url))


def web_page(url: str) -> str:
    return (
        f"{url} answers with a web page, not with the file: this network's login or a proxy is in between, or "
        "HF_ENDPOINT is no hub. Open the address in a browser, then run the command again."
    )


def is_whole(path: Path, size: int, digest: str) -> bool:
    """Whether a file has this size and this hash.  Raises OSError."""
    if path.stat().st_size != size:
        return False
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    actual = hashlib.sha256() if re.fullmatch(r"[0-9a-f]{64}", digest) else blob
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            actual.update(piece)
    return actual.hexdigest() == digest
