"""A fake hub and its CDN, with every way in which they can fail."""

import hashlib
import json
import random
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from data import DataError
from data.download.hub import download

REPOSITORY, DATASET = "almanach/camembert-base", "almanach/textes"
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
        return unquote(self.path).rsplit("/", 1)[1]


class FakeHub:
    """The state of the two servers: their files, their behaviour, and the requests they have received.

    announce: name -> wrong headers. status: name -> statuses of the next HEADs. faults: name -> faults of the next GETs
    of the content, in order; all others succeed. before: called before each response.
    texts: the files of the data set at each commit. entries, following: what its listing has instead of its files, and
    instead of the address of the next page.
    """

    def __init__(self):
        self.commits, self.texts = {COMMIT: dict(FILES)}, {}
        self.page_size, self.entries, self.following = 1000, None, None
        self.main, self.branches = COMMIT, {}
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
            files, commit, name = path.split("/")[-3:]
            files = fake.texts if files == "texts" else fake.commits
            self.content(
                files[commit][unquote(name)], request, {"ETag": f'"{"c" * 64}"'}
            )  # not the sha256, as with Xet
        elif "/api/resolve-cache/" in path:
            self.resolve(*path.split("/")[-2:], request, False)
        else:
            place, _, path = path.partition("/resolve/" if "/resolve/" in path else "/tree/")
            revision, _, name = path.partition("/")
            commit = fake.main if revision == "main" else fake.branches.get(unquote(revision), unquote(revision))
            if place not in (f"/{REPOSITORY}", f"/datasets/{DATASET}", f"/api/datasets/{DATASET}"):
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            if place.startswith("/api/"):
                return self.tree(commit, unquote(name))
            self.resolve(commit, unquote(name), request, fake.relative, place.startswith("/datasets/"))

    do_HEAD = do_GET

    def tree(self, commit, folder):
        """The hub's listing of a data set's folder, in pages."""
        fake, query = self.server.fake, parse_qs(urlsplit(self.path).query)
        if fake.status.get("tree"):
            return self.answer(fake.status["tree"].pop(0), fake.headers)
        if commit not in fake.texts:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        entries = [self.entry(name, content) for name, content in fake.texts[commit].items()]
        entries = [entry for entry in entries if not folder or entry["path"].startswith(f"{folder}/")]
        if not entries:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        folders = {str(Path(entry["path"]).parent) for entry in entries} - {"."}
        entries += [{"type": "directory", "oid": "d" * 40, "size": 0, "path": path} for path in sorted(folders)]
        entries = entries if fake.entries is None else fake.entries
        start = int(query.get("cursor", ["0"])[0])
        page, rest = entries, []
        if isinstance(entries, list):
            page, rest = entries[start : start + fake.page_size], entries[start + fake.page_size :]
        following = f"{fake.hub}{urlsplit(self.path).path}?recursive=true&cursor={start + fake.page_size}"
        following = following if fake.following is None else fake.following
        body, link = json.dumps(page).encode(), f'<{following}>; rel="next"' if rest else None
        self.answer(200, {"Content-Length": str(len(body)), "Link": link}, body)

    def entry(self, path, content):
        about = {"type": "file", "path": path, "size": len(content), "oid": blob_hash(content)}
        if path.endswith((".parquet", ".gz")):
            about["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return about

    def resolve(self, commit, name, request, relative, of_texts=False):
        """The hub: sends small files, directly or after a relative redirect, and redirects large ones to the CDN."""
        fake, metadata = self.server.fake, {"X-Repo-Commit": commit}
        commits, kind = (fake.texts, "texts") if of_texts else (fake.commits, "signed")
        if self.command == "HEAD" and fake.status.get(name):
            return self.answer(fake.status[name].pop(0), fake.headers)
        if fake.location is not None:
            return self.answer(302, {"Location": fake.location})
        if commit not in commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in commits[commit]:
            return self.answer(404, metadata | {"X-Error-Code": "EntryNotFound"})
        content, announced = commits[commit][name], fake.announce.get(name, {})
        if name in fake.large or name.endswith((".parquet", ".gz")):
            digest = hashlib.sha256(content).hexdigest()
            metadata |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": '"d41d8"'}
            return self.answer(
                302, metadata | {"Location": f"{fake.cdn}/{kind}/{commit}/{quote(name, '')}?for=GET"} | announced
            )
        if relative:
            return self.answer(307, metadata | {"Location": f"/api/resolve-cache/models/{REPOSITORY}/{commit}/{name}"})
        self.content(content, request, metadata | {"ETag": f'W/"{blob_hash(content)}"'} | announced)

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
            fake.release.wait(60)


def blob_hash(content: bytes) -> str:
    """git's hash of a file."""
    return hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(cache: Path, message: str, repository: str = REPOSITORY, **settings) -> str:
    """download() raises this error and leaves no weights under a final name -> the whole message"""
    with pytest.raises(DataError, match=message) as caught:
        download(repository, cache, **settings)
    assert not [path for path in cache.rglob("*") if path.suffix in (".safetensors", ".bin")]
    return str(caught.value)
