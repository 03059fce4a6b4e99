"""Transfers that break, stall or send something else: a download resumes, or nothing wrong is kept."""

import hashlib
import os
import re
import shutil
import socket

import pytest

from data.download import hub, transfer
from data.download.hub import download
from tests.data.download.fake_hub import COMMIT, CONFIG, FILES, HALF, OTHER, REPOSITORY, WEIGHTS, assert_refused, tree

FAULTS = ["breaks", "stalls", "breaks, without ranges", "breaks, from elsewhere", "breaks, 416"]


@pytest.mark.parametrize("faults", FAULTS)
def test_a_broken_transfer_resumes_or_starts_again(fake, tmp_path, monkeypatch, capsys, faults):
    if faults == "stalls":
        monkeypatch.setattr(transfer, "TIMEOUT", 0.4)
    fake.faults["model.safetensors"] = faults.split(", ")
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    ranges = [request.range for request in fake.gets("model.safetensors") if request.host == "cdn"]
    assert ranges == [None, f"bytes={HALF}-"] + [None] * faults.endswith(("elsewhere", "416"))
    reason = r" \(.*timed out\)" if faults == "stalls" else ""
    assert re.search(rf"stopped after {HALF:,} of {len(WEIGHTS):,} bytes{reason}\. Trying", capsys.readouterr().err)


def test_the_next_call_resumes(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ATTEMPTS", 2)
    fake.faults["model.safetensors"] = ["breaks", "breaks"]
    failed = r"stopped after 225,0\d\d of 300,001 bytes\. 2 attempts failed.*same command again: it resumes"
    assert_refused(tmp_path, failed)
    (partial,) = tmp_path.rglob("*.partial")
    have = partial.stat().st_size
    assert partial.read_bytes() == WEIGHTS[:have] and have > HALF
    fake.requests.clear()
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    assert fake.gets("model.safetensors")[-1].range == f"bytes={have}-"
    assert not fake.gets("config.json")


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
def test_a_busy_server_is_retried(fake, tmp_path, status):
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


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("model.safetensors", "other bytes", "does not match its hash.*run the command again"),
        ("config.json", "other bytes", "does not match its hash.*run the command again"),
        ("model.safetensors", "page", "returned a web page.*Open the address in a browser"),
        ("model.safetensors", "hidden page", "returned a web page.*Open the address in a browser"),
        ("model.safetensors", "longer", "should send 300,001 bytes, but announces 300005. Try again later"),
        ("model.safetensors", "shorter", "should send 300,001 bytes, but announces 299997. Try again later"),
    ],
)
def test_wrong_content_is_not_kept(fake, tmp_path, name, fault, message):
    fake.faults[name] = [fault]
    assert_refused(tmp_path, f"{name} {message}")
    assert not [path for path in tmp_path.rglob("*.*") if path.name.startswith(name) or path.suffix == ".partial"]
    assert tree(download(REPOSITORY, tmp_path)) == FILES


def test_a_wrong_hash_or_a_size_below_the_content_is_refused(fake, tmp_path):
    fake.announce["model.safetensors"] = {"X-Linked-ETag": f'"{"0" * 64}"'}
    assert_refused(tmp_path / "hash", "model.safetensors does not match its hash")
    assert not list(tmp_path.rglob("*.partial"))
    fake.announce["config.json"] = {"Content-Length": str(len(CONFIG) - 5)}
    assert_refused(tmp_path / "size", "config.json does not match its hash")
    assert not tree(tmp_path / "size")


def test_a_size_above_the_content_is_a_broken_transfer(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ATTEMPTS", 2)
    fake.announce["model.safetensors"] = {"X-Linked-Size": str(len(WEIGHTS) + 100)}
    fake.faults["model.safetensors"] = ["without a length"] * 2
    assert_refused(tmp_path, "model.safetensors could not be resumed")  # at the end of the content
    fake.announce["config.json"] = {"Content-Length": str(len(CONFIG) + 100)}
    assert_refused(tmp_path / "other", "config.json could not be resumed")
    assert not list((tmp_path / "other").rglob("config.json"))


def test_no_more_bytes_are_read_than_the_size(fake, tmp_path, monkeypatch):
    fake.faults["model.safetensors"] = ["endless"]
    assert tree(download(REPOSITORY, tmp_path)) == FILES
    fake.announce["model.safetensors"] = {"X-Linked-Size": "1000"}
    fake.faults["model.safetensors"] = ["endless"]
    read = []

    def is_complete(path, size, digest, original=transfer.is_complete):
        read.append(path.stat().st_size)
        return original(path, size, digest)

    monkeypatch.setattr(transfer, "is_complete", is_complete)
    assert_refused(tmp_path / "other", "does not match its hash")
    assert read[-1] == 1000


def test_too_little_space_is_reported_before_the_download(fake, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage._replace(free=len(WEIGHTS) - 1))
    assert_refused(tmp_path, r"needs 0.3 MB, more than is free in .*DISTILCAMEMBERT_CACHE")
    assert not fake.gets("model.safetensors")


def test_a_cache_that_cannot_be_written_is_an_error(fake, tmp_path):
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", f"{tmp_path}/file.* cannot be written")


@pytest.mark.parametrize("kind", [os.symlink, os.link])
def test_a_download_does_not_resume_into_a_link(fake, tmp_path, kind):
    folder, target = tmp_path / "almanach--camembert-base" / COMMIT, tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    target.write_bytes(b"precious")
    kind(target, folder / f"model.safetensors.{hashlib.sha256(WEIGHTS).hexdigest()[:12]}.partial")
    assert tree(download(REPOSITORY, tmp_path)) == FILES and target.read_bytes() == b"precious"
