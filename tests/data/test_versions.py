"""The project's commit: of its own repository and no other, or none."""

import platform
import shutil
import subprocess

import pytest
import torch

from data import versions

GIT = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-c", "init.defaultBranch=main"]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def repository(tmp_path):
    """A repository with a data/versions.py, and its commit."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "versions.py").write_text("", encoding="utf-8")
    return tmp_path, make_commit(tmp_path)


@pytest.fixture(autouse=True)
def no_memory():
    versions.commit.cache_clear()
    yield
    versions.commit.cache_clear()


def make_commit(folder):
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x", "--allow-empty"]):
        subprocess.run([*GIT, *words], cwd=folder, check=True)
    head = subprocess.run([*GIT, "rev-parse", "--short=12", "HEAD"], cwd=folder, check=True, capture_output=True)
    return head.stdout.decode().strip()


def test_the_commit(repository, monkeypatch, tmp_path_factory):
    folder, commit = repository
    other = tmp_path_factory.mktemp("other")
    make_commit(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook of another repository
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert versions.commit(folder) == commit
    (folder / "data" / "versions.py").write_text("changed", encoding="utf-8")
    assert versions.commit(folder) == commit  # asked once per process
    versions.commit.cache_clear()
    assert versions.commit(folder) == f"{commit} + changes"


def test_a_tag_is_not_the_commit(repository):
    folder, commit = repository
    subprocess.run([*GIT, "tag", "-a", "v1", "-m", "x"], cwd=folder, check=True)
    assert versions.commit(folder) == commit


def test_none_for_another_repositorys_folder(repository, monkeypatch):
    folder, _ = repository
    (folder / "inside" / "data").mkdir(parents=True)
    (folder / "inside" / "data" / "versions.py").write_text("", encoding="utf-8")
    make_commit(folder)
    assert versions.commit(folder / "inside") is None  # copied into a repository: its commit is not this project's
    (folder / "inside" / ".git").mkdir()  # damaged
    versions.commit.cache_clear()
    assert versions.commit(folder / "inside") is None


def test_none_for_an_untracked_copy_no_commit_and_no_git(tmp_path, repository, monkeypatch):
    folder, _ = repository
    subprocess.run([*GIT, "rm", "-q", "--cached", "data/versions.py"], cwd=folder, check=True)
    assert versions.commit(folder) is None
    (empty := tmp_path / "empty").mkdir()
    subprocess.run([*GIT, "init", "-q"], cwd=empty, check=True)
    assert versions.commit(empty) is None
    monkeypatch.setenv("PATH", str(empty))
    versions.commit.cache_clear()
    assert versions.commit(folder) is None


def test_versions(monkeypatch):
    monkeypatch.setattr(versions, "commit", lambda folder: None)
    found = {"python": platform.python_version(), "torch": torch.__version__}
    assert versions.versions() == found
    assert versions.version_line() == f"commit unknown, torch {found['torch']}, Python {found['python']}"
    monkeypatch.setattr(versions, "commit", lambda folder: "0123 + changes")
    assert versions.versions() == found | {"commit": "0123 + changes"}
