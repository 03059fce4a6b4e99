"""A fake hub and its CDN, with every way in which they can fail."""

import hashlib
import random
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import pytest

from data import DataError
from data.download.hub import download

REPOSITORY = "almanach/camembert-base"
COMMIT, PUSHED = "a" * 40, "b" * 40
WEIGHTS, OTHER = (random.Random(seed).randbytes(300_001) for seed in (0, 1))
HALF = len(WEIGHTS) // 2
CONFIG, TOKENIZER = b'{"model_type": "camembert"}\n', b"\n\x0e\n\x05<unk>" * 99
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "sentencepiece.bpe.model": TOKENIZER}
PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>".ljust(len(WEIGHTS))


class Request(NamedTuple):
    host: str  # "hub" or "cdn"
    method: str
    path: str
    range: str | None
    token: str | None

    @property
    def name(self):
        return self.path.rsplit("/", 1)[1]


class FakeHub:
    """The state of the two servers: their files, their behaviour, and the requests they have received.

    announce: name -> wrong headers. status: name -> statuses of the next HEADs. faults: name -> faults of the next GETs
    of the content, in order; all others succeed. before: called before each response.
    """

    def __init__(self):
        self.commits = {COMMIT: dict(FILES)}
        self.main = COMMIT
        self.large = {"model.safetensors", "pytorch_model.bin", "sentencepiece.bpe.model"}
        self.announce, self.status, self.faults, self.requests = {}, {}, {}, []
        self.headers, self.location, self.relative = {}, None, False
        self.before = lambda request: None
        self.release = threading.Event()

    def gets(self, name=None):
        return [request for request in self.requests if request.method == "GET" and name in (None, request.name)]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        fake, path = self.server.fake, self.path.split("?")[0]
        request = Request(self.server.name, self.command, path, self.headers["Range"], self.headers["Authorization"])
        fake.requests.append(request)
        fake.before(request)
        if self.server.name == "cdn":
            commit, name = path.split("/")[-2:]
            self.content(fake.commits[commit][name], request, {"ETag": f'"{"c" * 64}"'})  # not the sha256, as with Xet
        elif "/api/resolve-cache/" in path:
            self.resolve(*path.split("/")[-2:], request, False)
        else:
            owner, repository, resolve, revision, name = path.removeprefix("/").split("/")
            assert resolve == "resolve"
            if f"{owner}/{repository}" != REPOSITORY:
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            self.resolve(fake.main if revision == "main" else revision, name, request, fake.relative)

    do_HEAD = do_GET

    def resolve(self, commit, name, request, relative):
        """The hub: sends small files, directly or after a relative redirect, and redirects large ones to the CDN."""
        fake, metadata = self.server.fake, {"X-Repo-Commit": commit}
        if self.command == "HEAD" and fake.status.get(name):
            return self.answer(fake.status[name].pop(0), fake.headers)
        if fake.location is not None:
            return self.answer(302, {"Location": fake.location})
        if commit not in fake.commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in fake.commits[commit]:
            return self.answer(404, metadata | {"X-Error-Code": "EntryNotFound"})
        content, announced = fake.commits[commit][name], fake.announce.get(name, {})
        if name in fake.large:
            digest = hashlib.sha256(content).hexdigest()
            metadata |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": '"d41d8"'}
            return self.answer(302, metadata | {"Location": f"{fake.cdn}/signed/{commit}/{name}?for=GET"} | announced)
        if relative:
            return self.answer(307, metadata | {"Location": f"/api/resolve-cache/models/{REPOSITORY}/{commit}/{name}"})
        digest = hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()
        self.content(content, request, metadata | {"ETag": f'W/"{digest}"'} | announced)

    def answer(self, status, headers, body=b"Found. Redirecting.\n"):
        self.send_response(status)
        for header, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def content(self, content, request, headers):
        fake = self.server.fake
        if request.method == "HEAD":
            return self.answer(403, {}) if request.host == "cdn" else self.answer(200, headers, content)
        fault = fake.faults[request.name].pop(0) if fake.faults.get(request.name) else "none"
        if fault.isdigit():
            return self.answer(int(fault), {})
        if fault in ("page", "hidden page"):
            return self.answer(200, {"Content-Type": "text/html; charset=utf-8"} if fault == "page" else {}, PAGE)
        status, start = 200, 0
        if request.range and fault != "without ranges":
            status, start = 206, int(request.range.removeprefix("bytes=").removesuffix("-"))
            first, last = start - (fault == "from elsewhere"), len(content) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        rest = content[start:]
        bodies = {"breaks": rest[: len(rest) // 2], "stalls": rest[: len(rest) // 2], "other bytes": bytes(len(rest))}
        bodies |= {"longer": rest + b"more", "shorter": rest[:-4], "endless": rest + OTHER}
        bodies |= dict.fromkeys(("none", "without ranges", "from elsewhere", "without a length"), rest)
        if fault in ("breaks", "stalls"):
            headers["Content-Length"] = str(len(rest))
        if fault in ("endless", "without a length"):
            headers["Content-Length"] = None
        self.answer(status, headers, bodies[fault])
        if fault == "stalls":
            fake.release.wait(3)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(cache: Path, message: str, repository: str = REPOSITORY, **settings) -> str:
    """download() raises this error and leaves no weights under a final name -> the whole message"""
    with pytest.raises(DataError, match=message) as caught:
        download(repository, cache, **settings)
    assert not [path for path in cache.rglob("*") if path.suffix in (".safetensors", ".bin")]
    return str(caught.value)
