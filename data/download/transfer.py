"""Downloads one file of known size and hash over HTTP: resumes, and gives it its name only when it is complete."""

import hashlib
import http.client
import os
import shutil
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

from ..cli import MB, DataError, Progress
from ..outputs import is_own_file, make_folder

TIMEOUT = 30.0  # seconds without data
REDIRECTS, MAX_REDIRECTS = (301, 302, 303, 307, 308), 10
CHUNK = 1 << 20


class TemporaryError(Exception):
    """A retry may succeed. The message says what happened."""


class AnyStatus(urllib.request.HTTPErrorProcessor):
    """Returns redirects and errors like other responses, because their headers are needed too."""

    def http_response(self, request, response):
        return response

    https_response = http_response


OPENER = urllib.request.build_opener(AnyStatus)  # verifies certificates and uses HTTPS_PROXY, as urllib does


def download_file(url: str, path: Path, size: int, digest: str, token: str = "", shown: bool = True) -> None:
    """Downloads a file to path, unless it is there already and complete.

    digest: sha256 of the content (64 hex digits), or git's sha1 of it as a blob (40). token: see send_request().
    shown: print the progress.
    Raises TemporaryError, and keeps the partial file; DataError for wrong content, which is deleted; OSError.
    """
    if path.is_file() and is_complete(path, size, digest):
        return
    make_folder(path.parent)
    # The name includes the hash, so that a download never resumes from a part of other content.
    partial = path.with_name(f"{path.name}.{digest[:12]}.partial")
    resume(url, partial, size, token, shown)
    if not is_complete(partial, size, digest):
        with partial.open("rb") as file:
            is_page = file.read(64).lstrip().startswith(b"<")
        partial.unlink()
        if is_page:
            raise web_page_error(url)
        raise DataError(f"{url} does not match its hash. The download was deleted; run the command again.")
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    for other in path.parent.glob(f"{path.name}.*.partial"):
        other.unlink(missing_ok=True)


def resume(url: str, partial: Path, size: int, token: str, shown: bool) -> None:
    """Downloads what the partial file lacks.  Raises TemporaryError, DataError, OSError."""
    if not is_own_file(partial):
        partial.unlink(missing_ok=True)
    offset = partial.stat().st_size if partial.exists() else 0
    if offset >= size:  # complete, or too long; the hash decides
        return
    if shutil.disk_usage(partial.parent).free < size - offset:
        message = f"{url} needs {(size - offset) / MB:,.1f} MB, more than is free in {partial.parent}."
        raise DataError(f"{message} Free some space, or choose another folder (DISTILCAMEMBERT_CACHE for models).")
    with send_request("GET", url, token, offset) as response:
        check_status(response, url)
        # No If-Range: the host that sends a large file uses an ETag of its own. The hash is checked at the end.
        if response.status == 200:
            offset = 0  # the server does not support Range
        elif response.headers.get("Content-Range") != f"bytes {offset}-{size - 1}/{size}":
            partial.unlink(missing_ok=True)
            raise TemporaryError(f"{url} could not be resumed at byte {offset:,}.")
        length = response.headers.get("Content-Length", str(size - offset))
        if length != str(size - offset):
            raise DataError(f"{url} should send {size - offset:,} bytes, but announces {length}. Try again later.")
        with partial.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            receive(response, file, offset, size, url, shown)


def receive(response: http.client.HTTPResponse, file: BinaryIO, offset: int, size: int, url: str, shown: bool) -> None:
    """Writes the response until the file has `size` bytes, never more.  Raises TemporaryError, OSError."""
    progress = Progress(unquote(url.rsplit("/", 1)[1]), size, offset) if shown else None
    try:
        while offset < size:
            try:
                piece = response.read1(min(CHUNK, size - offset))  # what has arrived, so that an error loses nothing
            except (OSError, http.client.HTTPException) as error:
                raise TemporaryError(f"{url} stopped after {offset:,} of {size:,} bytes ({error}).") from None
            if not piece:
                raise TemporaryError(f"{url} stopped after {offset:,} of {size:,} bytes.")
            file.write(piece)
            offset += len(piece)
            if progress:
                progress.show(offset)
    finally:
        if progress:
            progress.close()


def send_request(method: str, url: str, token: str = "", offset: int = 0) -> http.client.HTTPResponse:
    """Sends a request and follows redirects -> the last response, unread, with any status.

    token: sent to the host of url only, never to one that it redirects to. offset: first byte wanted.
    HEAD does not follow the hub's redirect to another host: the hub's headers have all that is needed, the other
    host's ETag is not a hash of the content, and its signed address often allows GET only.
    Raises TemporaryError, DataError.
    """
    if is_offline():
        raise DataError(f"{url} is needed, which HF_HUB_OFFLINE forbids to fetch. Unset it.")
    first = url
    for _ in range(MAX_REDIRECTS):
        headers = {"User-Agent": "distilcamembert"} | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            if token and origin(url) == origin(first):
                headers["Authorization"] = f"Bearer {token}"
            if urlsplit(url).scheme not in ("http", "https"):  # urllib would open file: too
                raise ValueError(url)
            response = OPENER.open(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT)
        except ValueError:
            raise DataError(f"{first} redirects to an address that is not http or https.") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise TemporaryError(f"{urlsplit(url).hostname} does not respond ({reason}).") from None
        target = redirect_target(response.headers.get("Location", ""), url)
        is_metadata = method == "HEAD" and "X-Repo-Commit" in response.headers and origin(target) != origin(url)
        if response.status not in REDIRECTS or is_metadata:
            return response
        response.close()
        url = target
    raise DataError(f"{first} redirects too many times. Check HF_ENDPOINT and the proxy settings.")


def is_offline() -> bool:
    """HF_HUB_OFFLINE, as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def redirect_target(location: str, url: str) -> str:
    """The address that a redirect from url leads to; "" if it is invalid."""
    try:
        target = urljoin(url, location)
        urlsplit(target)
    except ValueError:
        return ""
    return target


def origin(url: str) -> tuple[str, str]:
    """Scheme and host."""
    return urlsplit(url)[:2]


def check_status(response: http.client.HTTPResponse, url: str) -> None:
    """Raises TemporaryError or DataError for a response that is neither the file nor a redirect to it."""
    if response.status in (408, 429) or response.status >= 500:
        raise TemporaryError(f"{url} failed with HTTP status {response.status}.")
    if response.status not in (200, 206, 416, *REDIRECTS):
        raise DataError(f"{url} was refused with HTTP status {response.status}.")
    if response.status == 200 and response.headers.get_content_type() == "text/html":
        raise web_page_error(url)


def web_page_error(url: str) -> DataError:
    causes = "this network requires a login, a proxy intervened, or HF_ENDPOINT is not a hub"
    advice = "Open the address in a browser, then run the command again."
    return DataError(f"{url} returned a web page instead of the file: {causes}. {advice}")


def is_complete(path: Path, size: int, digest: str) -> bool:
    """Whether the file has this size and hash.  Raises OSError."""
    if path.stat().st_size != size:
        return False
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256" if len(digest) == 64 else lambda: blob).hexdigest() == digest
