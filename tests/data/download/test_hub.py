"""Downloading a model: which files, from which commit, into which folder, and what of the hub's answers is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from data import demo
from data.download import hub, transfer
from data.download.hub import download
from model.checkpoints.load import load_checkpoint
from tests.data.download.fake_hub import COMMIT, CONFIG, FILES, OTHER, PUSHED, REPOSITORY, WEIGHTS, assert_refused, tree
from tests.helpers import huggingface_model, run_command


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


@pytest.mark.parametrize("relative", [False, True])
def test_the_token_is_sent_to_the_hub_only(fake, tmp_path, monkeypatch, relative):
    fake.relative = relative
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    download(REPOSITORY, tmp_path)
    tokens = {host: {request.token for request in fake.requests if request.host == host} for host in ("hub", "cdn")}
    assert tokens == {"hub": {"Bearer hf_secret"}, "cdn": {None}}


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


@pytest.mark.parametrize(
    ("index_name", "suffix", "other"),
    [(hub.INDEX, "safetensors", "pytorch_model.bin"), (hub.BIN_INDEX, "bin", "model.pt")],
)
def test_shards_are_downloaded_with_their_index(fake, tmp_path, index_name, suffix, other):
    names = [f"model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    index = json.dumps({"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}).encode()
    files = {index_name: index, names[0]: WEIGHTS, names[1]: OTHER}
    fake.commits[COMMIT] = files | {other: OTHER}
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
    fake.commits[PUSHED] = {name: content[::-1] for name, content in FILES.items()}

    def push(request):
        fake.main = COMMIT if len(fake.requests) == 1 else PUSHED

    fake.before = push
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    assert tree(download(REPOSITORY, tmp_path)) == fake.commits[PUSHED]
    assert len(list((tmp_path / "almanach--camembert-base").iterdir())) == 2
    assert download(REPOSITORY, tmp_path, COMMIT).name == COMMIT


def test_the_cache_folder(fake, tmp_path, monkeypatch):
    folders = {"HOME": "HOME/.cache/distilcamembert", "XDG_CACHE_HOME": "XDG_CACHE_HOME/distilcamembert"}
    folders |= {"DISTILCAMEMBERT_CACHE": "DISTILCAMEMBERT_CACHE"}
    for variable in folders:
        monkeypatch.delenv(variable, raising=False)
    for variable, folder in folders.items():  # the later ones take precedence
        monkeypatch.setenv(variable, str(tmp_path / variable))
        assert download(REPOSITORY).is_relative_to(tmp_path / folder)
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


NO_METADATA = "responds without commit, size and hash"
WRONG_HEADERS = [("X-Repo-Commit", value, NO_METADATA) for value in ("../../../evil", "A" * 40, "")]
WRONG_HEADERS += [("X-Linked-ETag", value, NO_METADATA) for value in ('"abc"', "", '"../../x"')]
ARABIC_DIGIT = "٣".encode().decode("latin-1")
WRONG_HEADERS += [("X-Linked-Size", value, NO_METADATA) for value in ("", "-5", ARABIC_DIGIT, "9" * 30)]
SIZES = {0: "0", 20 * 10**9 + 1: "20,000,000,001"}
WRONG_HEADERS += [("X-Linked-Size", str(n), f"has {text} bytes according to the hub") for n, text in SIZES.items()]
WRONG_HEADERS += [("X-Repo-Commit", PUSHED, f"responds with another commit, {PUSHED}")]


@pytest.mark.parametrize(("header", "value", "message"), WRONG_HEADERS)
def test_wrong_metadata_is_refused(fake, tmp_path, header, value, message):
    fake.announce["model.safetensors"] = {header: value}
    assert_refused(tmp_path, f"model.safetensors {message}")
    assert not fake.gets("model.safetensors")
    assert set(tree(tmp_path)) <= {f"almanach--camembert-base/{COMMIT}/config.json"}


def test_a_huge_json_is_not_read_into_memory(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "MAX_JSON_BYTES", len(CONFIG) - 1)
    assert_refused(tmp_path, f"config.json has {len(CONFIG)} bytes according to the hub")
    assert not tree(tmp_path)


HTTP_ERRORS = [
    (401, "RepoNotFound", f"There is no repository {REPOSITORY} at http.*or it is private.*HF_TOKEN"),
    (404, "RepoNotFound", "There is no repository"),
    (401, None, "There is no repository.*a private one needs a valid HF_TOKEN"),
    (401, "GatedRepo", f"is gated. Accept its terms at http.*/{REPOSITORY}, then set HF_TOKEN"),
    (403, "GatedRepo", "is gated"),
    (404, "RevisionNotFound", "has no revision main"),
    (403, None, "config.json was refused with HTTP status 403"),
    (200, "a web page", "config.json returned a web page.*HF_ENDPOINT is not a hub"),
]


@pytest.mark.parametrize(("status", "code", "message"), HTTP_ERRORS)
def test_http_errors(fake, tmp_path, status, code, message):
    fake.status["config.json"] = [status]
    fake.headers = {"X-Error-Code": code} if code else {}
    if code == "a web page":
        fake.headers = {"Content-Type": "text/html", "ETag": '"x"'}
    assert_refused(tmp_path, message)
    assert len(fake.requests) == 1 and not tree(tmp_path)  # no retry


def test_a_missing_repository_or_revision(fake, tmp_path):
    assert_refused(tmp_path, "There is no repository almanach/nothing", "almanach/nothing")
    assert_refused(tmp_path, "no revision v9", revision="v9")
    fake.requests.clear()
    assert_refused(tmp_path, "no revision refs/pr/1", revision="refs/pr/1")
    assert fake.requests[0].path == f"/{REPOSITORY}/resolve/refs%2Fpr%2F1/config.json"  # the slashes are escaped


CIRCULAR = ["", f"/{REPOSITORY}/resolve/main/config.json", "config.json"]
NOT_HTTP = ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "data:text/plain,x"]


@pytest.mark.parametrize("location", CIRCULAR + NOT_HTTP)
def test_circular_redirects_end_and_only_http_redirects_are_followed(fake, tmp_path, location):
    fake.location = location
    circular, problem = location in CIRCULAR, "to an address that is not http or https"
    assert_refused(tmp_path, f"config.json redirects {'too many times' if circular else problem}")
    assert len(fake.requests) == (transfer.MAX_REDIRECTS if circular else 1) and not tree(tmp_path)


UNSAFE = ["../../../evil.safetensors", "/tmp/evil.safetensors", "a/b.safetensors", "..safetensors", ".safetensors"]
UNSAFE += ["a\\b.safetensors", "evil.py", "model..safetensors", "a\n.safetensors", "a.safetensors\n", "-o.safetensors"]
UNSAFE += ["a?b.safetensors", "é.safetensors", 7, None, ["a.safetensors"]]
INDEXES = [json.dumps({"weight_map": {"tensor": name}}).encode() for name in UNSAFE]
INDEXES += [b'{"weight_map": {}}', b"{", b"[]", b'{"weight_map": 3}', b"\xff", b"[" * 99_999, b"{}"]


@pytest.mark.parametrize("index", INDEXES)
def test_a_hostile_or_malformed_index_is_refused(fake, tmp_path, index):
    fake.commits[COMMIT] = {"config.json": CONFIG, hub.INDEX: index}
    assert_refused(tmp_path, "does not list .safetensors files in its own folder")
    assert {request.name for request in fake.requests} == {"config.json", "model.safetensors", hub.INDEX}
    assert {Path(path).name for path in tree(tmp_path)} == {"config.json", hub.INDEX}


def test_an_index_of_missing_or_too_many_shards(fake, tmp_path, monkeypatch):
    index = json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).encode()
    fake.commits[COMMIT] = {hub.INDEX: index}
    assert_refused(tmp_path, "is incomplete: its model.safetensors.index.json lists a.safetensors, which is missing")
    fake.commits[COMMIT] = {hub.BIN_INDEX: index}
    assert_refused(tmp_path, "does not list .bin files in its own folder")
    fake.commits[COMMIT] = {hub.INDEX: index}
    monkeypatch.setattr(hub, "MAX_SHARDS", 1)
    assert_refused(tmp_path, "does not list")


REPOSITORIES = ["", "camembert-base", "a/b/c", "../b", "a/..", "a/b..c", "/a/b", "a/", "a/.b", "-a/b", "a/b?c", "a/b#c"]
REPOSITORIES += ["a b/c", "a/b\n", "é/b", "https://huggingface.co/a/b", "a\\b/c"]
WRITTEN = f"A repository is written owner/name, like {REPOSITORY}"
INVALID = [("repository", value, WRITTEN) for value in REPOSITORIES]
INVALID += [("revision", value, "A revision is a branch") for value in ("", "../x", "a//b", "/a", "a?b", "-a", "a b")]
ENDPOINTS = ("huggingface.co", "file:///etc", "http://", "http://a b", "https://u:p@host", "ftp://a")
INVALID += [("HF_ENDPOINT", value, "HF_ENDPOINT must be a web address") for value in ENDPOINTS]
INVALID += [("HF_TOKEN", "hf_sec\nret", "HF_TOKEN contains characters")]


@pytest.mark.parametrize(("setting", "value", "message"), INVALID)
def test_invalid_settings_are_refused_before_any_request(fake, tmp_path, monkeypatch, setting, value, message):
    if setting.startswith("HF_"):
        monkeypatch.setenv(setting, value)
    error = assert_refused(tmp_path, message, **({} if setting.startswith("HF_") else {setting: value}))
    assert not fake.requests and "hf_sec" not in error  # the token is not printed


def test_convert_weights_downloads(fake, tmp_path, monkeypatch):
    theirs = huggingface_model(vocab_size=1005).float()
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(demo.FOLDER / "sentencepiece.bpe.model", tmp_path / "theirs")
    fake.commits[COMMIT] = {name: (tmp_path / "theirs" / name).read_bytes() for name in FILES}
    monkeypatch.setenv("DISTILCAMEMBERT_CACHE", str(tmp_path / "cache"))
    result = run_command("convert_weights.py", "--download", REPOSITORY, tmp_path / "hf", "--to", "hf")
    assert result.returncode == 0, result.stderr
    loaded = load_checkpoint(tmp_path / "hf")
    assert torch.equal(loaded.dense.weight, theirs.lm_head.dense.weight)
    assert (tmp_path / "hf" / "sentencepiece.bpe.model").exists()
    assert f"Converted from `{REPOSITORY}`" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")


def test_convert_weights_reports_download_errors(fake, tmp_path):
    for repository, message in (("camembert-base", "is written owner/name"), ("nobody/nothing", "nobody/nothing")):
        result = run_command("convert_weights.py", "--download", repository, tmp_path / "out")
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
