"""Files from a hub: against a server in this process that plays huggingface.co and its CDN, and every way to fail."""

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
from data.download import hub as module
from data.download import transfer
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


class Asked(NamedTuple):
    host: str  # "hub" or "cdn"
    method: str
    path: str
    range: str | None
    token: str | None

    @property
    def name(self):
        return self.path.rsplit("/", 1)[1]


class Play:
    """What the two servers have, do and have seen.

    announce: name -> headers that lie. status: name -> statuses of coming HEADs. do: name -> how the coming GETs of
    the content go wrong, each once; one that is not said goes right. before: called before each answer.
    """

    def __init__(self):
        self.commits = {COMMIT: dict(FILES)}
        self.main = COMMIT
        self.large = {"model.safetensors", "pytorch_model.bin", "sentencepiece.bpe.model"}
        self.announce, self.status, self.do, self.asked = {}, {}, {}, []
        self.headers, self.location, self.relative = {}, None, False
        self.before = lambda asked: None
        self.release = threading.Event()

    def gets(self, name=None):
        return [asked for asked in self.asked if asked.method == "GET" and name in (None, asked.name)]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        play, path = self.server.play, self.path.split("?")[0]
        asked = Asked(self.server.name, self.command, path, self.headers["Range"], self.headers["Authorization"])
        play.asked.append(asked)
        play.before(asked)
        if self.server.name == "cdn":
            commit, name = path.split("/")[-2:]
            self.content(play.commits[commit][name], asked, {"ETag": f'"{"c" * 64}"'})  # like Xet's: not the sha256
        elif "/api/resolve-cache/" in path:
            self.resolve(*path.split("/")[-2:], asked, False)
        else:
            owner, repository, resolve, revision, name = path.removeprefix("/").split("/")
            assert resolve == "resolve"
            if f"{owner}/{repository}" != REPOSITORY:
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            self.resolve(play.main if revision == "main" else revision, name, asked, play.relative)

    do_HEAD = do_GET

    def resolve(self, commit, name, asked, relative):
        """The hub's part: small files itself, directly or by a relative redirection, large ones from the CDN."""
        play = self.server.play
        if self.command == "HEAD" and play.status.get(name):
            return self.answer(play.status[name].pop(0), play.headers)
        if play.location is not None:
            return self.answer(302, {"Location": play.location})
        if commit not in play.commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in play.commits[commit]:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = play.commits[commit][name]
        said = {"X-Repo-Commit": commit}
        if name in play.large:
            said |= {"X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            said |= {"ETag": '"d41d8"', "Location": f"{play.cdn}/signed/{commit}/{name}?for=GET"}
            return self.answer(302, said | play.announce.get(name, {}))
        said["ETag"] = f'W/"{hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()}"'
        if relative:
            location = f"/api/resolve-cache/models/{REPOSITORY}/{commit}/{name}"
            return self.answer(307, {"X-Repo-Commit": commit, "Location": location})
        self.content(content, asked, said | play.announce.get(name, {}))

    def answer(self, status, headers=(), body=b"Found. Redirecting.\n"):
        self.send_response(status)
        for header, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def content(self, content, asked, headers):
        play = self.server.play
        if asked.method == "HEAD":
            if asked.host == "cdn":
                return self.answer(403)
            return self.answer(200, headers, content)
        how = play.do[asked.name].pop(0) if play.do.get(asked.name) else "well"
        status, start = 200, 0
        if asked.range and how != "without ranges":
            status, start = 206, int(asked.range.removeprefix("bytes=").removesuffix("-"))
            last = len(content) - 1
            headers["Content-Range"] = f"bytes {start - (how == 'from elsewhere')}-{last}/{len(content)}"
        rest = content[start:]
        if how.isdigit():
            return self.answer(int(how))
        if how == "page":
            return self.answer(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)
        if how == "hidden page":
            return self.answer(200, {}, PAGE)
        if how == "other bytes":
            return self.answer(status, headers, bytes(len(rest)))
        if how == "longer":
            return self.answer(status, headers, rest + b"more")
        if how == "shorter":
            return self.answer(status, headers, rest[:-4])
        if how == "well" or how in ("without ranges", "from elsewhere"):
            return self.answer(status, headers, rest)
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        if how in ("breaks", "stalls"):
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if how in ("endless", "without a length"):
            self.wfile.write(rest + OTHER * (how == "endless"))
        elif how in ("breaks", "stalls"):
            self.wfile.write(rest[: len(rest) // 2])
            if how == "stalls":
                play.release.wait(3)
        else:
            raise AssertionError(how)
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
def play(servers, monkeypatch):
    play = Play()
    for server in servers:
        server.play = play
    play.hub, play.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    monkeypatch.setenv("HF_ENDPOINT", play.hub + "/")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(transfer, "TIMEOUT", 5.0)
    monkeypatch.setattr(transfer, "CHUNK", 1 << 14)
    yield play
    play.release.set()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(cache: Path, sentence: str, repository: str = REPOSITORY, **settings) -> str:
    """download() says this, and leaves no weights under a final name; -> what it said."""
    with pytest.raises(DataError, match=sentence) as caught:
        download(repository, cache, **settings)
    assert not [path for path in cache.rglob("*") if path.suffix in (".safetensors", ".bin")]
    return str(caught.value)


# ---- what goes well --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True])
def test_every_file_comes_whole_and_only_once(play, tmp_path, capsys, relative):
    play.relative = relative
    folder = download(REPOSITORY, tmp_path)
    assert folder == tmp_path / "almanach--camembert-base" / COMMIT
    assert tree(tmp_path) == {f"almanach--camembert-base/{COMMIT}/{name}": FILES[name] for name in FILES}
    assert {asked.name for asked in play.asked if asked.host == "cdn"} == play.large & set(FILES)
    assert "note" not in capsys.readouterr().err
    play.asked.clear()
    assert download(REPOSITORY, tmp_path) == folder
    assert play.asked and not play.gets()


@pytest.mark.parametrize("relative", [False, True])
def test_hugging_faces_own_client_takes_this_server_for_a_hub(play, tmp_path, relative):
    """So that what the other tests hold download() to is not only this file's idea of a hub."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    play.relative = relative
    folder = download(REPOSITORY, tmp_path / "ours")
    for name, content in FILES.items():
        path = Path(huggingface_hub.hf_hub_download(REPOSITORY, name, endpoint=play.hub, cache_dir=tmp_path / "theirs"))
        assert path.read_bytes() == content == (folder / name).read_bytes()
        assert path.parent.name == folder.name == COMMIT
        assert path.resolve().name == module.find(name, module.Hub(play.hub, REPOSITORY, ""), "main").digest


def test_a_file_that_was_changed_in_the_cache_is_fetched_anew(play, tmp_path):
    for damaged in (OTHER, WEIGHTS[:-1]):
        folder = download(REPOSITORY, tmp_path)
        (folder / "model.safetensors").write_bytes(damaged)
        play.asked.clear()
        assert tree(download(REPOSITORY, tmp_path)) == FILES
        assert [asked.name for asked in play.gets()] == ["model.safetensors"] * 2  # hub, CDN


@pytest.mark.parametrize("there", [("model.safetensors", "pytorch_model.bin"), ("pytorch_model.bin",)])
def test_the_best_form_of_the_weights_is_taken(play, tmp_path, there):
    play.commits[COMMIT] = {name: WEIGHTS for name in there}
    assert tree(download(REPOSITORY, tmp_path)) == {there[0]: WEIGHTS}


def test_shards_come_with_their_index(play, tmp_path):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.dumps({"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}).encode()
    files = {module.INDEX: index, names[0]: WEIGHTS, names[1]: OTHER}
    play.commits[COMMIT] = files | {"pytorch_model.bin": OTHER}
    play.large.update(names)
    assert tree(download(REPOSITORY, tmp_path)) == files


def test_what_the_repository_lacks_is_said(play, tmp_path, capsys):
    play.commits[COMMIT] = {"model.safetensors": WEIGHTS}
    assert tree(download(REPOSITORY, tmp_path)) == {"model.safetensors": WEIGHTS}
    err = capsys.readouterr().err
    assert "has no config.json" in err and "has no sentencepiece.bpe.model" in err
    del play.commits[COMMIT]["model.safetensors"]
    refused(tmp_path / "other", f"{REPOSITORY} at {play.hub} has no weights: none of model.safetensors, ")


def test_a_push_meanwhile_does_not_mix_two_versions(play, tmp_path):
    play.commits[NEXT_COMMIT] = {name: content[::-1] for name, content in FILES.items()}

    def push(asked):
        play.main = COMMIT if len(play.asked) == 1 else NEXT_COMMIT

    play.before = push
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    assert tree(download(REPOSITORY, tmp_path)) == play.commits[NEXT_COMMIT]
    assert len(list((tmp_path / "almanach--camembert-base").iterdir())) == 2
    assert download(REPOSITORY, tmp_path, COMMIT).name == COMMIT


def test_where_the_cache_is(play, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("DISTILCAMEMBERT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert download(REPOSITORY).is_relative_to(tmp_path / "home/.cache/distilcamembert")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert download(REPOSITORY).is_relative_to(tmp_path / "xdg/distilcamembert")
    monkeypatch.setenv("DISTILCAMEMBERT_CACHE", str(tmp_path / "own"))
    assert download(REPOSITORY).is_relative_to(tmp_path / "own")
    assert download(REPOSITORY, tmp_path / "argument").is_relative_to(tmp_path / "argument")


def test_progress_is_lines_in_a_log_and_one_line_on_a_terminal(play, tmp_path, capsys, monkeypatch):
    download(REPOSITORY, tmp_path / "log")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == list(FILES)
    assert "0.3 of 0.3 MB  100 %" in lines[1] and "MB/s  0:00 left" in lines[1]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    play.do["model.safetensors"] = ["breaks"]
    download(REPOSITORY, tmp_path / "terminal")
    lines = capsys.readouterr().err.splitlines()  # at \r as well
    assert all(len(line) <= 59 for line in lines if not line.startswith("note: "))
    assert any(line.startswith("model.safetensors  0.3 of 0.3 MB  100 %") for line in lines)
    assert any(line.startswith("note: ") for line in lines)  # beside no bar


# ---- transfers that break --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["breaks", "stalls"])
def test_a_broken_transfer_asks_only_for_the_rest(play, tmp_path, monkeypatch, capsys, how):
    if how == "stalls":
        monkeypatch.setattr(transfer, "TIMEOUT", 0.4)
    play.do["model.safetensors"] = [how]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    ranges = [asked.range for asked in play.gets("model.safetensors") if asked.host == "cdn"]
    assert ranges == [None, f"bytes={HALF}-"]
    reason = r" \(.*timed out\)" if how == "stalls" else ""
    assert re.search(rf"broke off after {HALF:,} of {len(WEIGHTS):,} bytes{reason}\. Trying", capsys.readouterr().err)


def test_the_next_call_goes_on_where_one_gave_up(play, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    play.do["model.safetensors"] = ["breaks", "breaks"]
    refused(tmp_path, r"broke off after 225,0\d\d of 300,001 bytes\. 2 attempts failed.*same command goes on where")
    (partial,) = tmp_path.rglob("*.partial")
    have = partial.stat().st_size
    assert partial.read_bytes() == WEIGHTS[:have] and have > HALF
    play.asked.clear()
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    assert play.gets("model.safetensors")[-1].range == f"bytes={have}-"
    assert not play.gets("config.json")


@pytest.mark.parametrize("how", ["without ranges", "from elsewhere", "416"])
def test_a_server_that_cannot_go_on_begins_anew(play, tmp_path, how):
    play.do["model.safetensors"] = ["breaks", how]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    ranges = [asked.range for asked in play.gets("model.safetensors") if asked.host == "cdn"]
    assert ranges == [None, f"bytes={HALF}-"] + [None] * (how != "without ranges")


def test_other_content_under_the_same_name_is_not_gone_on_with(play, tmp_path):
    def change(asked):
        if asked.method == "HEAD" and play.gets("model.safetensors"):
            play.commits[COMMIT]["model.safetensors"] = OTHER

    play.before = change
    play.do["model.safetensors"] = ["breaks"]
    assert tree(download(REPOSITORY, tmp_path)) == FILES | {"model.safetensors": OTHER}  # and no .partial
    assert [asked.range for asked in play.gets("model.safetensors")] == [None] * 4


def test_a_partial_that_is_whole_or_too_long_is_not_asked_for(play, tmp_path):
    """A run that was killed before the last step; a disk that added to a file."""
    folder = tmp_path / "almanach--camembert-base" / COMMIT
    partial = folder / f"model.safetensors.{hashlib.sha256(WEIGHTS).hexdigest()[:12]}.partial"
    folder.mkdir(parents=True)
    partial.write_bytes(WEIGHTS)
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    assert not play.gets("model.safetensors")
    (folder / "model.safetensors").unlink()
    partial.write_bytes(WEIGHTS + b"more")
    refused(tmp_path, "other bytes than its hash announces.*run the command again")
    assert tree(download(REPOSITORY, tmp_path)) == FILES


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(play, tmp_path, monkeypatch, status):
    play.status["config.json"] = [status]
    play.do["model.safetensors"] = [str(status)]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    play.status["config.json"] = [status] * 9
    refused(tmp_path / "other", f"config.json answers with status {status}. {module.ATTEMPTS} attempts failed")
    assert len(play.status["config.json"]) == 9 - module.ATTEMPTS


def test_no_server_at_all_is_a_sentence(tmp_path, monkeypatch, play):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        refused(tmp_path, "127.0.0.1 does not answer .*refused.*Check the connection .and HF_ENDPOINT")
    assert not tree(tmp_path)


# ---- servers that lie ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_bytes_than_announced_are_deleted(play, tmp_path, name):
    play.do[name] = ["other bytes"]
    refused(tmp_path, f"{name} sent other bytes than its hash announces.*run the command again")
    assert name not in {path.name.split(".partial")[0] for path in tmp_path.rglob("*.*")}
    assert not list(tmp_path.rglob("*.partial"))
    assert tree(download(REPOSITORY, tmp_path)) == FILES


def test_a_wrong_hash_is_believed_no_more_than_wrong_bytes(play, tmp_path):
    play.announce["model.safetensors"] = {"X-Linked-ETag": f'"{"0" * 64}"'}
    refused(tmp_path, "model.safetensors sent other bytes than its hash announces")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("how", ["longer", "shorter"])
def test_two_lengths_for_one_file_are_refused(play, tmp_path, how):
    play.do["model.safetensors"] = [how]
    length = len(WEIGHTS) + (4 if how == "longer" else -4)
    refused(tmp_path, f"announces {len(WEIGHTS):,} bytes, but would send {length}. Try again later")


def test_no_more_is_read_than_was_announced(play, tmp_path):
    play.do["model.safetensors"] = ["endless"]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    play.announce["model.safetensors"] = {"X-Linked-Size": "1000"}
    play.do["model.safetensors"] = ["endless"]
    read = []
    transfer_is_whole = transfer.is_whole

    def is_whole(path, size, digest):
        read.append(path.stat().st_size)
        return transfer_is_whole(path, size, digest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "is_whole", is_whole)
        refused(tmp_path / "other", "sent other bytes than its hash announces")
    assert read[-1] == 1000


def test_a_length_above_what_is_sent_is_a_broken_transfer(play, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    play.announce["model.safetensors"] = {"X-Linked-Size": str(len(WEIGHTS) + 100)}
    play.do["model.safetensors"] = ["without a length"] * 2
    refused(tmp_path, "model.safetensors did not go on where it had stopped")  # at the end of what there is
    play.announce["config.json"] = {"Content-Length": str(len(CONFIG) + 100)}
    refused(tmp_path / "other", "config.json did not go on where it had stopped")
    assert not list((tmp_path / "other").rglob("config.json"))


def test_a_length_below_what_is_sent_is_a_wrong_hash(play, tmp_path):
    play.announce["config.json"] = {"Content-Length": str(len(CONFIG) - 5)}
    refused(tmp_path, "config.json sent other bytes than its hash announces")
    assert not tree(tmp_path)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Repo-Commit": "../../../evil"}, {"X-Repo-Commit": "A" * 40}, {"X-Repo-Commit": ""},
        {"X-Linked-ETag": '"abc"'}, {"X-Linked-ETag": ""}, {"X-Linked-ETag": '"../../x"'},
        {"X-Linked-Size": ""}, {"X-Linked-Size": "-5"}, {"X-Linked-Size": "٣"}, {"X-Linked-Size": "9" * 30},
    ],
)  # fmt: skip
def test_an_answer_that_announces_nothing_usable_is_no_hubs(play, tmp_path, headers):
    if "٣" in headers.values():
        headers = {"X-Linked-Size": "٣".encode().decode("latin-1")}
    play.announce["model.safetensors"] = headers
    refused(tmp_path, "model.safetensors answers without commit, size and hash")
    assert not play.gets("model.safetensors")
    assert set(tree(tmp_path)) <= {f"almanach--camembert-base/{COMMIT}/config.json"}


@pytest.mark.parametrize("size", [0, 20 * 10**9 + 1])
def test_an_impossible_size_is_refused(play, tmp_path, size):
    play.announce["model.safetensors"] = {"X-Linked-Size": str(size)}
    refused(tmp_path, f"announced with {size:,} bytes")
    assert not play.gets("model.safetensors")


def test_a_huge_json_is_not_read_into_memory(play, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_JSON", len(CONFIG) - 1)
    refused(tmp_path, f"config.json is announced with {len(CONFIG)} bytes")
    assert not tree(tmp_path)


def test_another_commit_than_asked_for_is_refused(play, tmp_path):
    play.announce["model.safetensors"] = {"X-Repo-Commit": NEXT_COMMIT}
    refused(tmp_path, f"another commit, {NEXT_COMMIT}")


# ---- web pages, refusals, redirections -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["page", "hidden page"])
def test_a_web_page_is_not_taken_for_weights(play, tmp_path, how):
    play.do["model.safetensors"] = [how]
    refused(tmp_path, "model.safetensors answers with a web page.*Open the address in a browser")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_web_page_in_place_of_the_hub(play, tmp_path):
    play.headers = {"Content-Type": "text/html", "ETag": '"x"'}
    play.status["config.json"] = [200]
    refused(tmp_path, "config.json answers with a web page.*HF_ENDPOINT is no hub")
    assert not tree(tmp_path)


@pytest.mark.parametrize(
    "status, code, sentence",
    [
        (401, "RepoNotFound", "There is no repository almanach/camembert-base at http.*or it is private.*HF_TOKEN"),
        (404, "RepoNotFound", "There is no repository"),
        (401, None, "There is no repository.*a token that is set may be out of date"),
        (401, "GatedRepo", "is gated: accept its terms at http.*/almanach/camembert-base, then set HF_TOKEN"),
        (403, "GatedRepo", "is gated"),
        (404, "RevisionNotFound", "has no revision main"),
        (403, None, "config.json is refused with status 403"),
    ],
)
def test_a_refusal_is_a_sentence(play, tmp_path, status, code, sentence):
    play.status["config.json"] = [status]
    play.headers = {"X-Error-Code": code} if code else {}
    refused(tmp_path, sentence)
    assert len(play.asked) == 1  # and is not asked again


def test_a_repository_that_is_not_there(play, tmp_path):
    refused(tmp_path, "There is no repository almanach/nothing", "almanach/nothing")
    refused(tmp_path, "no revision v9", revision="v9")


@pytest.mark.parametrize("location", ["", "/somewhere/else/resolve/main/config.json", "config.json"])
def test_a_circle_of_redirections_ends(play, tmp_path, location):
    play.location = location.replace("/somewhere/else", f"/{REPOSITORY}")
    refused(tmp_path, "config.json is redirected in a circle")
    assert len(play.asked) == transfer.REDIRECTIONS


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "data:text/plain,x"])
def test_only_the_web_is_followed(play, tmp_path, location):
    play.location = location
    refused(tmp_path, "config.json leads to an address that is not of the web")
    assert not tree(tmp_path)


@pytest.mark.parametrize("relative", [False, True])
def test_the_token_goes_to_the_hub_alone(play, tmp_path, monkeypatch, relative):
    play.relative = relative
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    download(REPOSITORY, tmp_path)
    tokens = {host: {asked.token for asked in play.asked if asked.host == host} for host in ("hub", "cdn")}
    assert tokens == {"hub": {"Bearer hf_secret"}, "cdn": {None}}


def test_a_token_that_is_none_is_not_printed(play, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sec\nret")
    assert "hf_sec" not in refused(tmp_path, "HF_TOKEN holds characters")
    assert not play.asked


# ---- names from anyone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["../../../evil.safetensors"], ["/tmp/evil.safetensors"], ["a/b.safetensors"], ["..safetensors"],
        [".safetensors"], ["a\\b.safetensors"], ["evil.py"], ["model..safetensors"], ["a\n.safetensors"],
        ["a.safetensors\n"], ["-o.safetensors"], ["a?b.safetensors"], ["é.safetensors"], [7], [None], [],
        [["a.safetensors"]],
    ],
)  # fmt: skip
def test_a_hostile_index_is_refused(play, tmp_path, names):
    index = json.dumps({"weight_map": {f"tensor {i}": name for i, name in enumerate(names)}})
    play.commits[COMMIT] = {"config.json": CONFIG, module.INDEX: index.encode()}
    refused(tmp_path, "does not list .safetensors files beside it")
    assert {asked.name for asked in play.asked} == {"config.json", "model.safetensors", module.INDEX}
    assert {Path(path).name for path in tree(tmp_path)} == {"config.json", module.INDEX}


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"weight_map": 3}', b"\xff", b"[" * 99_999, b"{}"])
def test_an_index_that_is_none_is_refused(play, tmp_path, index):
    play.commits[COMMIT] = {module.INDEX: index}
    refused(tmp_path, "does not list .safetensors files beside it")


def test_an_index_of_missing_or_too_many_shards(play, tmp_path, monkeypatch):
    index = json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).encode()
    play.commits[COMMIT] = {module.INDEX: index}
    refused(tmp_path, "lacks a.safetensors, of which its model.safetensors.index.json speaks")
    monkeypatch.setattr(module, "MOST_SHARDS", 1)
    refused(tmp_path, "does not list")


@pytest.mark.parametrize(
    "repository",
    [
        "", "camembert-base", "a/b/c", "../b", "a/..", "a/b..c", "/a/b", "a/", "a/.b", "-a/b", "a/b?c", "a/b#c",
        "a b/c", "a/b\n", "é/b", "https://huggingface.co/a/b", "a\\b/c",
    ],
)  # fmt: skip
def test_a_name_that_is_no_repository(play, tmp_path, repository):
    refused(tmp_path, "A repository is owner/name, say almanach/camembert-base", repository)
    assert not play.asked


@pytest.mark.parametrize("revision", ["", "../x", "a//b", "/a", "a?b", "-a", "a b"])
def test_a_name_that_is_no_revision(play, tmp_path, revision):
    refused(tmp_path, "A revision is a branch", revision=revision)
    assert not play.asked


def test_a_branch_with_a_slash_is_one_part_of_the_address(play, tmp_path):
    refused(tmp_path, "no revision refs/pr/1", revision="refs/pr/1")
    assert play.asked[0].path == f"/{REPOSITORY}/resolve/refs%2Fpr%2F1/config.json"


@pytest.mark.parametrize(
    "address", ["huggingface.co", "file:///etc", "http://", "http://a b", "https://u:p@host", "ftp://a"]
)
def test_an_endpoint_that_is_none(play, tmp_path, monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    refused(tmp_path, "HF_ENDPOINT must be a web address")


# ---- the disk --------------------------------------------------------------------------------------------------


def test_no_room_is_said_before_anything_is_fetched(play, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage._replace(free=len(WEIGHTS) - 1))
    refused(tmp_path, r"needs 0.3 MB, more than is free in .*DISTILCAMEMBERT_CACHE")
    assert not play.gets("model.safetensors")


def test_a_cache_that_cannot_be_written(play, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", f"{tmp_path}/file.* cannot be written")


# ---- the command -----------------------------------------------------------------------------------------------


def test_convert_weights_downloads(play, tmp_path, monkeypatch):
    theirs = huggingface_model(vocab_size=1005).float()
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(demo.FOLDER / TOKENIZER_NAME, tmp_path / "theirs")
    play.commits[COMMIT] = {name: (tmp_path / "theirs" / name).read_bytes() for name in FILES}
    monkeypatch.setenv("DISTILCAMEMBERT_CACHE", str(tmp_path / "cache"))
    result = run_command("convert_weights.py", "--download", REPOSITORY, tmp_path / "hf", "--to", "hf")
    assert result.returncode == 0, result.stderr
    loaded = load_checkpoint(tmp_path / "hf")
    assert torch.equal(loaded.dense.weight, theirs.lm_head.dense.weight)
    assert (tmp_path / "hf" / TOKENIZER_NAME).exists()
    assert f"Converted from `{REPOSITORY}`" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")


def test_convert_weights_says_what_went_wrong(play, tmp_path):
    for repository, sentence in (("camembert-base", "is owner/name"), ("nobody/nothing", "nobody/nothing")):
        result = run_command("convert_weights.py", "--download", repository, tmp_path / "out")
        assert result.returncode == 2 and sentence in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
