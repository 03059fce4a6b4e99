"""Downloads from a fake hub and CDN in this process, and every way in which they can fail."""

import hashlib
import json
import random
import re
import shutil
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from data import DataError, demo
from data.download import hub, transfer
from data.download.hub import download
from model.checkpoints.load import load_checkpoint
from tests.helpers import huggingface_model, run_command

TOKENIZER_NAME = "sentencepiece.bpe.model"
REPOSITORY = "almanach/camembert-base"
COMMIT, NEXT_COMMIT = "a" * 40, "b" * 40
WEIGHTS = random.Random(0).randbytes(300_001)
OTHER = random.Random(1).randbytes(300_001)
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
        fake = self.server.fake
        if self.command == "HEAD" and fake.status.get(name):
            return self.answer(fake.status[name].pop(0), fake.headers)
        if fake.location is not None:
            return self.answer(302, {"Location": fake.location})
        if commit not in fake.commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in fake.commits[commit]:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = fake.commits[commit][name]
        metadata = {"X-Repo-Commit": commit}
        if name in fake.large:
            metadata |= {
                "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            }
            metadata |= {"ETag": '"d41d8"', "Location": f"{fake.cdn}/signed/{commit}/{name}?for=GET"}
            return self.answer(302, metadata | fake.announce.get(name, {}))
        metadata["ETag"] = f'W/"{hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()}"'
        if relative:
            location = f"/api/resolve-cache/models/{REPOSITORY}/{commit}/{name}"
            return self.answer(307, {"X-Repo-Commit": commit, "Location": location})
        self.content(content, request, metadata | fake.announce.get(name, {}))

    def answer(self, status, headers=(), body=b"Found. Redirecting.\n"):
        self.send_response(status)
        for header, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def content(self, content, request, headers):
        fake = self.server.fake
        if request.method == "HEAD":
            if request.host == "cdn":
                return self.answer(403)
            return self.answer(200, headers, content)
        fault = fake.faults[request.name].pop(0) if fake.faults.get(request.name) else "none"
        status, start = 200, 0
        if request.range and fault != "without ranges":
            status, start = 206, int(request.range.removeprefix("bytes=").removesuffix("-"))
            last = len(content) - 1
            headers["Content-Range"] = f"bytes {start - (fault == 'from elsewhere')}-{last}/{len(content)}"
        rest = content[start:]
        if fault.isdigit():
            return self.answer(int(fault))
        if fault == "page":
            return self.answer(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)
        if fault == "hidden page":
            return self.answer(200, {}, PAGE)
        if fault == "other bytes":
            return self.answer(status, headers, bytes(len(rest)))
        if fault == "longer":
            return self.answer(status, headers, rest + b"more")
        if fault == "shorter":
            return self.answer(status, headers, rest[:-4])
        if fault == "none" or fault in ("without ranges", "from elsewhere"):
            return self.answer(status, headers, rest)
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        if fault in ("breaks", "stalls"):
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if fault in ("endless", "without a length"):
            self.wfile.write(rest + OTHER * (fault == "endless"))
        elif fault in ("breaks", "stalls"):
            self.wfile.write(rest[: len(rest) // 2])
            if fault == "stalls":
                fake.release.wait(3)
        else:
            raise AssertionError(fault)
        self.close_connection = True


@pytest.fixture(scope="module")
def servers():
    servers = []
    for name in ("hub", "cdn"):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.name, server.daemon_threads = name, True
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
        servers.append(server)
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fake(servers, monkeypatch):
    fake = FakeHub()
    for server in servers:
        server.fake = fake
    fake.hub, fake.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    monkeypatch.setenv("HF_ENDPOINT", fake.hub + "/")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    monkeypatch.setattr(transfer, "TIMEOUT", 5.0)
    monkeypatch.setattr(transfer, "CHUNK", 1 << 14)
    yield fake
    fake.release.set()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(cache: Path, message: str, repository: str = REPOSITORY, **settings) -> str:
    """download() raises this error and leaves no weights under a final name -> the whole message"""
    with pytest.raises(DataError, match=message) as caught:
        download(repository, cache, **settings)
    assert not [path for path in cache.rglob("*") if path.suffix in (".safetensors", ".bin")]
    return str(caught.value)


# ---- successful downloads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True])
def test_every_file_is_downloaded_once(fake, tmp_path, capsys, relative):
    fake.relative = relative
    folder = download(REPOSITORY, tmp_path)
    assert folder == tmp_path / "almanach--camembert-base" / COMMIT
    assert tree(tmp_path) == {f"almanach--camembert-base/{COMMIT}/{name}": FILES[name] for name in FILES}
    assert {request.name for request in fake.requests if request.host == "cdn"} == fake.large & set(FILES)
    assert "note" not in capsys.readouterr().err
    fake.requests.clear()
    assert download(REPOSITORY, tmp_path) == folder
    assert fake.requests and not fake.gets()


@pytest.mark.parametrize("relative", [False, True])
def test_huggingface_hub_downloads_the_same_from_the_fake_hub(fake, tmp_path, relative):
    """The fake hub behaves as Hugging Face's own client expects."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    fake.relative = relative
    folder = download(REPOSITORY, tmp_path / "ours")
    for name, content in FILES.items():
        path = Path(huggingface_hub.hf_hub_download(REPOSITORY, name, endpoint=fake.hub, cache_dir=tmp_path / "theirs"))
        assert path.read_bytes() == content == (folder / name).read_bytes()
        assert path.parent.name == folder.name == COMMIT
        assert path.resolve().name == hub.file_metadata(name, hub.Hub(fake.hub, REPOSITORY, ""), "main").digest


def test_a_file_damaged_in_the_cache_is_downloaded_again(fake, tmp_path):
    for damaged in (OTHER, WEIGHTS[:-1]):
        folder = download(REPOSITORY, tmp_path)
        (folder / "model.safetensors").write_bytes(damaged)
        fake.requests.clear()
        assert tree(download(REPOSITORY, tmp_path)) == FILES
        assert [request.name for request in fake.gets()] == ["model.safetensors"] * 2  # hub, CDN


@pytest.mark.parametrize("names", [("model.safetensors", "pytorch_model.bin"), ("pytorch_model.bin",)])
def test_safetensors_are_preferred(fake, tmp_path, names):
    fake.commits[COMMIT] = dict.fromkeys(names, WEIGHTS)
    assert tree(download(REPOSITORY, tmp_path)) == {names[0]: WEIGHTS}


def test_shards_are_downloaded_with_their_index(fake, tmp_path):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.dumps({"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}).encode()
    files = {hub.INDEX: index, names[0]: WEIGHTS, names[1]: OTHER}
    fake.commits[COMMIT] = files | {"pytorch_model.bin": OTHER}
    fake.large.update(names)
    assert tree(download(REPOSITORY, tmp_path)) == files


def test_missing_files_are_reported(fake, tmp_path, capsys):
    fake.commits[COMMIT] = {"model.safetensors": WEIGHTS}
    assert tree(download(REPOSITORY, tmp_path)) == {"model.safetensors": WEIGHTS}
    err = capsys.readouterr().err
    assert "has no config.json" in err and "has no sentencepiece.bpe.model" in err
    del fake.commits[COMMIT]["model.safetensors"]
    assert_refused(tmp_path / "other", f"{REPOSITORY} at {fake.hub} has no weights: none of model.safetensors, ")


def test_a_push_meanwhile_does_not_mix_two_versions(fake, tmp_path):
    fake.commits[NEXT_COMMIT] = {name: content[::-1] for name, content in FILES.items()}

    def push(request):
        fake.main = COMMIT if len(fake.requests) == 1 else NEXT_COMMIT

    fake.before = push
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    assert tree(download(REPOSITORY, tmp_path)) == fake.commits[NEXT_COMMIT]
    assert len(list((tmp_path / "almanach--camembert-base").iterdir())) == 2
    assert download(REPOSITORY, tmp_path, COMMIT).name == COMMIT


def test_the_cache_folder(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("DISTILCAMEMBERT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert download(REPOSITORY).is_relative_to(tmp_path / "home/.cache/distilcamembert")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert download(REPOSITORY).is_relative_to(tmp_path / "xdg/distilcamembert")
    monkeypatch.setenv("DISTILCAMEMBERT_CACHE", str(tmp_path / "own"))
    assert download(REPOSITORY).is_relative_to(tmp_path / "own")
    assert download(REPOSITORY, tmp_path / "argument").is_relative_to(tmp_path / "argument")


def test_progress_is_lines_in_a_log_and_one_line_on_a_terminal(fake, tmp_path, capsys, monkeypatch):
    download(REPOSITORY, tmp_path / "log")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == list(FILES)
    assert "0.3 of 0.3 MB  100 %" in lines[1] and "MB/s  ETA 0:00" in lines[1]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    fake.faults["model.safetensors"] = ["breaks"]
    download(REPOSITORY, tmp_path / "terminal")
    lines = capsys.readouterr().err.splitlines()  # also splits at \r
    assert all(len(line) <= 59 for line in lines if not line.startswith("note: "))
    assert any(line.startswith("model.safetensors  0.3 of 0.3 MB  100 %") for line in lines)
    assert any(line.startswith("note: ") for line in lines)  # on a line of its own


# ---- transfers that break --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["breaks", "stalls"])
def test_a_broken_transfer_resumes(fake, tmp_path, monkeypatch, capsys, fault):
    if fault == "stalls":
        monkeypatch.setattr(transfer, "TIMEOUT", 0.4)
    fake.faults["model.safetensors"] = [fault]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    ranges = [request.range for request in fake.gets("model.safetensors") if request.host == "cdn"]
    assert ranges == [None, f"bytes={HALF}-"]
    reason = r" \(.*timed out\)" if fault == "stalls" else ""
    assert re.search(rf"stopped after {HALF:,} of {len(WEIGHTS):,} bytes{reason}\. Trying", capsys.readouterr().err)


def test_the_next_call_resumes(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ATTEMPTS", 2)
    fake.faults["model.safetensors"] = ["breaks", "breaks"]
    assert_refused(
        tmp_path, r"stopped after 225,0\d\d of 300,001 bytes\. 2 attempts failed.*same command again: it resumes"
    )
    (partial,) = tmp_path.rglob("*.partial")
    have = partial.stat().st_size
    assert partial.read_bytes() == WEIGHTS[:have] and have > HALF
    fake.requests.clear()
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    assert fake.gets("model.safetensors")[-1].range == f"bytes={have}-"
    assert not fake.gets("config.json")


@pytest.mark.parametrize("fault", ["without ranges", "from elsewhere", "416"])
def test_a_server_that_cannot_resume_starts_again(fake, tmp_path, fault):
    fake.faults["model.safetensors"] = ["breaks", fault]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    ranges = [request.range for request in fake.gets("model.safetensors") if request.host == "cdn"]
    assert ranges == [None, f"bytes={HALF}-"] + [None] * (fault != "without ranges")


def test_a_download_does_not_resume_from_other_content(fake, tmp_path):
    def change(request):
        if request.method == "HEAD" and fake.gets("model.safetensors"):
            fake.commits[COMMIT]["model.safetensors"] = OTHER

    fake.before = change
    fake.faults["model.safetensors"] = ["breaks"]
    assert tree(download(REPOSITORY, tmp_path)) == FILES | {"model.safetensors": OTHER}  # and no .partial
    assert [request.range for request in fake.gets("model.safetensors")] == [None] * 4


def test_a_partial_file_that_is_complete_or_too_long_is_not_requested(fake, tmp_path):
    """After a run that was killed before its last step, and after damage on the disk."""
    folder = tmp_path / "almanach--camembert-base" / COMMIT
    partial = folder / f"model.safetensors.{hashlib.sha256(WEIGHTS).hexdigest()[:12]}.partial"
    folder.mkdir(parents=True)
    partial.write_bytes(WEIGHTS)
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    assert not fake.gets("model.safetensors")
    (folder / "model.safetensors").unlink()
    partial.write_bytes(WEIGHTS + b"more")
    assert_refused(tmp_path, "does not match its hash.*run the command again")
    assert tree(download(REPOSITORY, tmp_path)) == FILES


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_retried(fake, tmp_path, monkeypatch, status):
    fake.status["config.json"] = [status]
    fake.faults["model.safetensors"] = [str(status)]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    fake.status["config.json"] = [status] * 9
    assert_refused(tmp_path / "other", f"config.json failed with HTTP status {status}. {hub.ATTEMPTS} attempts failed")
    assert len(fake.status["config.json"]) == 9 - hub.ATTEMPTS


def test_no_server_is_an_error(tmp_path, monkeypatch, fake):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert_refused(tmp_path, "127.0.0.1 does not respond .*refused.*Check the connection .and HF_ENDPOINT")
    assert not tree(tmp_path)


# ---- wrong responses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_content_is_deleted(fake, tmp_path, name):
    fake.faults[name] = ["other bytes"]
    assert_refused(tmp_path, f"{name} does not match its hash.*run the command again")
    assert name not in {path.name.split(".partial")[0] for path in tmp_path.rglob("*.*")}
    assert not list(tmp_path.rglob("*.partial"))
    assert tree(download(REPOSITORY, tmp_path)) == FILES


def test_a_wrong_hash_is_refused_like_wrong_content(fake, tmp_path):
    fake.announce["model.safetensors"] = {"X-Linked-ETag": f'"{"0" * 64}"'}
    assert_refused(tmp_path, "model.safetensors does not match its hash")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("fault", ["longer", "shorter"])
def test_contradictory_lengths_are_refused(fake, tmp_path, fault):
    fake.faults["model.safetensors"] = [fault]
    length = len(WEIGHTS) + (4 if fault == "longer" else -4)
    assert_refused(tmp_path, f"should send {len(WEIGHTS):,} bytes, but announces {length}. Try again later")


def test_no_more_bytes_are_read_than_the_size(fake, tmp_path):
    fake.faults["model.safetensors"] = ["endless"]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    fake.announce["model.safetensors"] = {"X-Linked-Size": "1000"}
    fake.faults["model.safetensors"] = ["endless"]
    read = []
    transfer_is_complete = transfer.is_complete

    def is_complete(path, size, digest):
        read.append(path.stat().st_size)
        return transfer_is_complete(path, size, digest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "is_complete", is_complete)
        assert_refused(tmp_path / "other", "does not match its hash")
    assert read[-1] == 1000


def test_a_size_above_the_content_is_a_broken_transfer(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ATTEMPTS", 2)
    fake.announce["model.safetensors"] = {"X-Linked-Size": str(len(WEIGHTS) + 100)}
    fake.faults["model.safetensors"] = ["without a length"] * 2
    assert_refused(tmp_path, "model.safetensors could not be resumed")  # at the end of the content
    fake.announce["config.json"] = {"Content-Length": str(len(CONFIG) + 100)}
    assert_refused(tmp_path / "other", "config.json could not be resumed")
    assert not list((tmp_path / "other").rglob("config.json"))


def test_a_size_below_the_content_is_a_wrong_hash(fake, tmp_path):
    fake.announce["config.json"] = {"Content-Length": str(len(CONFIG) - 5)}
    assert_refused(tmp_path, "config.json does not match its hash")
    assert not tree(tmp_path)


WRONG_HEADERS = [("X-Repo-Commit", value) for value in ("../../../evil", "A" * 40, "")]
WRONG_HEADERS += [("X-Linked-ETag", value) for value in ('"abc"', "", '"../../x"')]
WRONG_HEADERS += [("X-Linked-Size", value) for value in ("", "-5", "٣".encode().decode("latin-1"), "9" * 30)]


@pytest.mark.parametrize(("header", "value"), WRONG_HEADERS)
def test_wrong_metadata_is_refused(fake, tmp_path, header, value):
    fake.announce["model.safetensors"] = {header: value}
    assert_refused(tmp_path, "model.safetensors responds without commit, size and hash")
    assert not fake.gets("model.safetensors")
    assert set(tree(tmp_path)) <= {f"almanach--camembert-base/{COMMIT}/config.json"}


@pytest.mark.parametrize("size", [0, 20 * 10**9 + 1])
def test_an_impossible_size_is_refused(fake, tmp_path, size):
    fake.announce["model.safetensors"] = {"X-Linked-Size": str(size)}
    assert_refused(tmp_path, f"has {size:,} bytes according to the hub")
    assert not fake.gets("model.safetensors")


def test_a_huge_json_is_not_read_into_memory(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "MAX_JSON_BYTES", len(CONFIG) - 1)
    assert_refused(tmp_path, f"config.json has {len(CONFIG)} bytes according to the hub")
    assert not tree(tmp_path)


def test_another_commit_than_requested_is_refused(fake, tmp_path):
    fake.announce["model.safetensors"] = {"X-Repo-Commit": NEXT_COMMIT}
    assert_refused(tmp_path, f"another commit, {NEXT_COMMIT}")


# ---- web pages, HTTP errors, redirects -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["page", "hidden page"])
def test_a_web_page_is_not_taken_for_weights(fake, tmp_path, fault):
    fake.faults["model.safetensors"] = [fault]
    assert_refused(tmp_path, "model.safetensors returned a web page.*Open the address in a browser")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_web_page_in_place_of_the_hub_is_refused(fake, tmp_path):
    fake.headers = {"Content-Type": "text/html", "ETag": '"x"'}
    fake.status["config.json"] = [200]
    assert_refused(tmp_path, "config.json returned a web page.*HF_ENDPOINT is not a hub")
    assert not tree(tmp_path)


@pytest.mark.parametrize(
    "status, code, message",
    [
        (401, "RepoNotFound", "There is no repository almanach/camembert-base at http.*or it is private.*HF_TOKEN"),
        (404, "RepoNotFound", "There is no repository"),
        (401, None, "There is no repository.*a private one needs a valid HF_TOKEN"),
        (401, "GatedRepo", "is gated. Accept its terms at http.*/almanach/camembert-base, then set HF_TOKEN"),
        (403, "GatedRepo", "is gated"),
        (404, "RevisionNotFound", "has no revision main"),
        (403, None, "config.json was refused with HTTP status 403"),
    ],
)
def test_http_errors(fake, tmp_path, status, code, message):
    fake.status["config.json"] = [status]
    fake.headers = {"X-Error-Code": code} if code else {}
    assert_refused(tmp_path, message)
    assert len(fake.requests) == 1  # no retry


def test_a_missing_repository_or_revision(fake, tmp_path):
    assert_refused(tmp_path, "There is no repository almanach/nothing", "almanach/nothing")
    assert_refused(tmp_path, "no revision v9", revision="v9")


@pytest.mark.parametrize("location", ["", "/somewhere/else/resolve/main/config.json", "config.json"])
def test_circular_redirects_end(fake, tmp_path, location):
    fake.location = location.replace("/somewhere/else", f"/{REPOSITORY}")
    assert_refused(tmp_path, "config.json redirects too many times")
    assert len(fake.requests) == transfer.MAX_REDIRECTS


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "data:text/plain,x"])
def test_only_http_redirects_are_followed(fake, tmp_path, location):
    fake.location = location
    assert_refused(tmp_path, "config.json redirects to an address that is not http or https")
    assert not tree(tmp_path)


@pytest.mark.parametrize("relative", [False, True])
def test_the_token_is_sent_to_the_hub_only(fake, tmp_path, monkeypatch, relative):
    fake.relative = relative
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    download(REPOSITORY, tmp_path)
    tokens = {host: {request.token for request in fake.requests if request.host == host} for host in ("hub", "cdn")}
    assert tokens == {"hub": {"Bearer hf_secret"}, "cdn": {None}}


def test_an_invalid_token_is_not_printed(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sec\nret")
    assert "hf_sec" not in assert_refused(tmp_path, "HF_TOKEN contains characters")
    assert not fake.requests


# ---- untrusted names -------------------------------------------------------------------------------------------


UNSAFE = ["../../../evil.safetensors", "/tmp/evil.safetensors", "a/b.safetensors", "..safetensors", ".safetensors"]
UNSAFE += ["a\\b.safetensors", "evil.py", "model..safetensors", "a\n.safetensors", "a.safetensors\n", "-o.safetensors"]
UNSAFE += ["a?b.safetensors", "é.safetensors", 7, None, ["a.safetensors"]]


@pytest.mark.parametrize("names", [[], *([name] for name in UNSAFE)])
def test_a_hostile_index_is_refused(fake, tmp_path, names):
    index = json.dumps({"weight_map": {f"tensor {i}": name for i, name in enumerate(names)}})
    fake.commits[COMMIT] = {"config.json": CONFIG, hub.INDEX: index.encode()}
    assert_refused(tmp_path, "does not list .safetensors files in its own folder")
    assert {request.name for request in fake.requests} == {"config.json", "model.safetensors", hub.INDEX}
    assert {Path(path).name for path in tree(tmp_path)} == {"config.json", hub.INDEX}


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": 3}', b"\xff", b"[" * 99_999, b"{}"])
def test_a_malformed_index_is_refused(fake, tmp_path, index):
    fake.commits[COMMIT] = {hub.INDEX: index}
    assert_refused(tmp_path, "does not list .safetensors files in its own folder")


def test_an_index_of_missing_or_too_many_shards(fake, tmp_path, monkeypatch):
    index = json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).encode()
    fake.commits[COMMIT] = {hub.INDEX: index}
    assert_refused(tmp_path, "is incomplete: its model.safetensors.index.json lists a.safetensors, which is missing")
    monkeypatch.setattr(hub, "MAX_SHARDS", 1)
    assert_refused(tmp_path, "does not list")


INVALID = ["", "camembert-base", "a/b/c", "../b", "a/..", "a/b..c", "/a/b", "a/", "a/.b", "-a/b", "a/b?c", "a/b#c"]
INVALID += ["a b/c", "a/b\n", "é/b", "https://huggingface.co/a/b", "a\\b/c"]


@pytest.mark.parametrize("repository", INVALID)
def test_an_invalid_repository_name(fake, tmp_path, repository):
    assert_refused(tmp_path, "A repository is written owner/name, like almanach/camembert-base", repository)
    assert not fake.requests


@pytest.mark.parametrize("revision", ["", "../x", "a//b", "/a", "a?b", "-a", "a b"])
def test_an_invalid_revision(fake, tmp_path, revision):
    assert_refused(tmp_path, "A revision is a branch", revision=revision)
    assert not fake.requests


def test_a_slash_in_a_revision_is_escaped(fake, tmp_path):
    assert_refused(tmp_path, "no revision refs/pr/1", revision="refs/pr/1")
    assert fake.requests[0].path == f"/{REPOSITORY}/resolve/refs%2Fpr%2F1/config.json"


@pytest.mark.parametrize(
    "address", ["huggingface.co", "file:///etc", "http://", "http://a b", "https://u:p@host", "ftp://a"]
)
def test_an_invalid_endpoint(fake, tmp_path, monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert_refused(tmp_path, "HF_ENDPOINT must be a web address")


# ---- the disk --------------------------------------------------------------------------------------------------


def test_too_little_space_is_reported_before_the_download(fake, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage._replace(free=len(WEIGHTS) - 1))
    assert_refused(tmp_path, r"needs 0.3 MB, more than is free in .*DISTILCAMEMBERT_CACHE")
    assert not fake.gets("model.safetensors")


def test_a_cache_that_cannot_be_written_is_an_error(fake, tmp_path):
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", f"{tmp_path}/file.* cannot be written")


# ---- the command -----------------------------------------------------------------------------------------------


def test_convert_weights_downloads(fake, tmp_path, monkeypatch):
    theirs = huggingface_model(vocab_size=1005).float()
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(demo.FOLDER / TOKENIZER_NAME, tmp_path / "theirs")
    fake.commits[COMMIT] = {name: (tmp_path / "theirs" / name).read_bytes() for name in FILES}
    monkeypatch.setenv("DISTILCAMEMBERT_CACHE", str(tmp_path / "cache"))
    result = run_command("convert_weights.py", "--download", REPOSITORY, tmp_path / "hf", "--to", "hf")
    assert result.returncode == 0, result.stderr
    loaded = load_checkpoint(tmp_path / "hf")
    assert torch.equal(loaded.dense.weight, theirs.lm_head.dense.weight)
    assert (tmp_path / "hf" / TOKENIZER_NAME).exists()
    assert f"Converted from `{REPOSITORY}`" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")


def test_convert_weights_reports_download_errors(fake, tmp_path):
    for repository, message in (("camembert-base", "is written owner/name"), ("nobody/nothing", "nobody/nothing")):
        result = run_command("convert_weights.py", "--download", repository, tmp_path / "out")
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
