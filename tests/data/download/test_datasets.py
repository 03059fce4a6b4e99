"""A data set of the hub as a corpus: which files, prepared to the same bytes as local ones, fetched once, one ahead."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import DataError, demo
from data.cache import prepared_folder, sample_folder
from data.download import datasets, hub
from data.download.datasets import FETCHED, dataset_files, fetched, parse_dataset
from tests.data.download.fake_hub import COMMIT, DATASET, PUSHED, blob_hash, tree
from tests.data.prepared import TOKENIZER, command, make, texts, write_parquet
from tests.data.stored import manifest
from tests.helpers import REPOSITORY

NAME = f"hub:{DATASET}"


def json_lines(part: int) -> bytes:
    """A third of 300 texts."""
    return "".join(f"{json.dumps({'text': text})}\n" for text in texts(300)[part::3]).encode()


FILES = {  # of the data set
    ".gitattributes": b"*.gz filter=lfs\n",
    "README.md": b"# Textes\n",
    "data/dataset_infos.json": b"{}\n",
    "data/été@1.jsonl": json_lines(1),
    "data/a=1/train-00000.jsonl.gz": gzip.compress(json_lines(0), mtime=0),
    "data/train-00002.ndjson": json_lines(2),
    "data/empty.jsonl": b"",
}
PATHS = ["data/a=1/train-00000.jsonl.gz", "data/train-00002.ndjson", "data/été@1.jsonl"]  # as they are read


@pytest.fixture(autouse=True)
def data_set(fake):
    fake.texts = {COMMIT: dict(FILES), PUSHED: FILES | {"README.md": b"# Mes textes\n"}}


def local(folder: Path) -> Path:
    """The same files in a folder."""
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(FILES[path])
    return folder / "data"


def shards(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if name != "manifest.json"}


def assert_refused(message: str, name: str = NAME) -> None:
    with pytest.raises(DataError, match=message):
        dataset_files(name)


# ---- which files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [1, 3, 1000])
def test_the_text_files_are_listed_page_by_page(fake, capsys, page_size):
    fake.page_size = page_size
    files = dataset_files(NAME)
    assert [file.name for file in files] == [f"{NAME}/{path}" for path in PATHS]
    assert [file.size for file in files] == [len(FILES[path]) for path in PATHS]
    assert f"{NAME}: 3 files, 0.1 MB, of {DATASET}@{COMMIT}." in capsys.readouterr().err
    assert not [request for request in fake.requests if "/resolve/" in request.path and request.method == "GET"]


def test_huggingface_hub_lists_the_same_from_the_fake_hub(fake):
    """The fake hub behaves as Hugging Face's own client expects."""
    api = pytest.importorskip("huggingface_hub").HfApi(endpoint=fake.hub)
    fake.page_size = 2
    for folder in (None, "data", "data/a=1"):
        theirs = api.list_repo_tree(DATASET, folder, recursive=True, repo_type="dataset")
        theirs = {
            file.path: (file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in theirs
            if hasattr(file, "size")
        }
        ours = dataset_files(f"{NAME}/{folder}" if folder else NAME)
        assert {file.name.removeprefix(f"{NAME}/"): (file.size, file.digest) for file in ours}.items() <= theirs.items()


CHOICES = {
    "Parquet before JSON lines": (["a.jsonl", "b.parquet", "sub/c.PARQUET"], ["b.parquet", "sub/c.PARQUET"]),
    "JSON lines before JSON": (["a.json.gz", "b.jsonl.zst", "c.json"], ["b.jsonl.zst"]),
    "JSON": (
        ["a.json.xz", "mystate.json", "dataset_info.json", "b/state.json", "c.csv"],
        ["a.json.xz", "mystate.json"],
    ),
    "not what looks alike": (["a.parquet.md5", "ajsonl", "b.jsonl.txt", "b.ndjson.bz2"], ["b.ndjson.bz2"]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_files_of_one_kind_are_taken(fake, capsys, case):
    there, taken = CHOICES[case]
    fake.texts = {COMMIT: dict.fromkeys(there, b"x")}
    assert [file.name for file in dataset_files(NAME)] == [f"{NAME}/{path}" for path in taken]
    others = (
        set(there)
        - set(taken)
        - {"b/state.json", "dataset_info.json", "c.csv", "a.parquet.md5", "ajsonl", "b.jsonl.txt"}
    )
    expected = f"note: {len(others)} files of {NAME} are left out, such as {min(others)!r}" if others else ""
    assert expected in capsys.readouterr().err


def test_a_folder_a_file_and_a_revision(fake):
    fake.branches, fake.texts[PUSHED] = {"refs/convert/parquet": PUSHED}, {"fr/train/0000.parquet": b"x"}
    for name, paths in {
        f"{NAME}/data/a=1": PATHS[:1],
        f"{NAME}/data/": PATHS,
        f"{NAME}/data/été@1.jsonl@main": PATHS[2:],
        f"{NAME}@{COMMIT}": PATHS,
        f"{NAME}/fr@refs/convert/parquet": ["fr/train/0000.parquet"],
    }.items():
        assert [file.name for file in dataset_files(name)] == [f"{NAME}/{path}" for path in paths]
    assert fake.requests[-1].path.endswith("/resolve/refs%2Fconvert%2Fparquet/fr/train/0000.parquet")


WRONG_NAMES = [
    "hub:",
    "hub:textes",
    "hub:/a/b",
    "hub:a//b",
    "hub:a/b/../c",
    "hub:a/b//c",
    "hub:a/b/c\\d",
    "hub:a/b/\x1b",
]
WRONG_NAMES += ["hub:../b/c", "hub:a/b@", "hub:a/b@../x", "hub:a/b@-x", "hub:a--b/c", f"hub:a/b/{'x' * 2000}"]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_wrong_name_is_refused_before_any_request(fake, name):
    assert_refused("A data set on the hub is written hub:owner/dataset, |A revision is a branch", name)
    assert not fake.requests


def test_the_parts_of_a_name():
    assert parse_dataset("hub:a/b") == ("a/b", "", "main")
    assert parse_dataset("hub:a/b/c/d e@refs/pr/1") == ("a/b", "c/d e", "refs/pr/1")


ERRORS = [
    (401, "RepoNotFound", "There is no repository almanach/textes at http.*or it is private.*HF_TOKEN"),
    (401, None, "There is no repository"),
    (403, "GatedRepo", f"is gated. Accept its terms at http.*/datasets/{DATASET}, then set HF_TOKEN"),
    (403, None, "was refused with HTTP status 403"),
    (404, None, "has no files at revision main"),
]


@pytest.mark.parametrize(("status", "code", "message"), ERRORS)
def test_errors_of_the_hub(fake, status, code, message):
    fake.status["tree"], fake.headers = [status], {"X-Error-Code": code} if code else {}
    assert_refused(message)
    assert len(fake.requests) == 1


def test_a_gated_data_set_whose_listing_is_public(fake):
    fake.status[PATHS[0]], fake.headers = [403], {"X-Error-Code": "GatedRepo"}
    assert_refused(f"is gated. Accept its terms at http.*/datasets/{DATASET}, then set HF_TOKEN")


def test_what_does_not_exist(fake):
    assert_refused("There is no repository nobody/nothing", "hub:nobody/nothing")
    assert_refused("no revision v9", f"{NAME}@v9")
    assert_refused(f"{DATASET} has no parquet at revision main. See http.*/datasets/{DATASET}", f"{NAME}/parquet")
    assert_refused("no Parquet or JSON-lines file", f"{NAME}/data/other.jsonl")
    fake.texts[COMMIT] = {"a.csv": b"x", "b/c.csv": b"x", "README.md": b"x", "LICENSE": b"x", "d.jsonl": b""}
    assert_refused(r"has no Parquet or JSON-lines file. It has: 2 '.csv', 1 '.*'. Name another folder or revision")


def file_entry(**changed) -> dict:
    return {"type": "file", "path": "a.jsonl", "size": 1, "oid": blob_hash(b"x")} | changed


UNSAFE = ["../a.jsonl", "/etc/a.jsonl", "a//b.jsonl", "a/./b.jsonl", "a\\b.jsonl", "a\x1b[2J.jsonl", "a\n.jsonl"]
UNSAFE += ["\u202ea.jsonl", "\ud800.jsonl", f"{'a' * 2000}.jsonl"]
IMPOSSIBLE = [{"size": size} for size in (-1, 10**13, 1.5, "1", None, True)] + [{"oid": "x"}, {"oid": None}]
IMPOSSIBLE += [{"lfs": 3}, {"lfs": {"oid": "../x"}}, {"lfs": {"oid": 7}}, {"path": 7}, {"path": None}]
HOSTILE = [([file_entry(path=path)], "with an unsafe name") for path in UNSAFE]
HOSTILE += [([file_entry(**changed)], "without a size and a hash that can be right") for changed in IMPOSSIBLE]
HOSTILE += [({"error": "x"}, "does not respond with a list of files. 5 attempts failed")]
HOSTILE += [([None, 3, "x", [], {"type": "directory", "path": "a.jsonl"}], "It has: nothing")]


@pytest.mark.parametrize(("entries", "message"), HOSTILE)
def test_a_hostile_listing_is_refused(fake, tmp_path, entries, message):
    fake.entries = entries
    assert_refused(message)
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 4), ("MAX_PAGES", 2), ("MAX_PAGE_BYTES", 100)])
def test_an_endless_listing_is_refused(fake, monkeypatch, limit, value):
    monkeypatch.setattr(datasets, limit, value)
    fake.page_size = 2 if limit != "MAX_PAGE_BYTES" else 1000
    assert_refused("lists more than . files. Name a folder|does not respond with a list of files")


def test_the_next_page_is_asked_from_the_same_hub(fake, monkeypatch):
    """The Link header of a hub behind a proxy names another host, to which the token must not go."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake.hub, fake.page_size = fake.cdn, 2
    assert len(dataset_files(NAME)) == 3
    assert {(request.host, request.token) for request in fake.requests} == {("hub", "Bearer hf_secret")}


@pytest.mark.parametrize("link", ["", "http://[", "/api?", "?a b", "?a\x80"])
def test_a_next_page_that_cannot_be_asked_for_is_not_left_out(fake, monkeypatch, link):
    fake.page_size, fake.following = 2, link
    assert_refused("names a next page, .*, that cannot be asked for|redirects to an address|lists more than")


def test_a_push_while_it_is_listed(fake):
    def push(request):
        fake.main = PUSHED if len(fake.requests) == 2 else COMMIT

    fake.texts[PUSHED] = FILES | {PATHS[0]: gzip.compress(b"{}", mtime=0)}
    fake.before = push
    files = dataset_files(NAME)
    assert files[0].origin == f"{DATASET}@{COMMIT}" and files[0].size == len(FILES[PATHS[0]])


# ---- prepared --------------------------------------------------------------------------------------------------


def test_the_shards_are_those_of_the_same_files_here(fake, tmp_path):
    made = make(tmp_path / "out", NAME, shard_tokens=1000, held_out=0.1)
    assert made["hub"] == [f"{DATASET}@{COMMIT}"]
    assert [source["name"] for source in made["sources"]] == [f"{NAME}/{path}" for path in PATHS]
    assert made["sources"][1]["digest"] == blob_hash(FILES[PATHS[1]])
    make(tmp_path / "same", local(tmp_path / "in"), shard_tokens=1000, held_out=0.1)
    assert shards(tmp_path / "out") == shards(tmp_path / "same") and len(made["shards"]["train"]) == 3
    assert len([request for request in fake.gets() if request.host == "cdn" or "/datasets/" in request.path]) >= 3


def test_parquet(fake, tmp_path):
    for number in range(3):
        path = write_parquet(tmp_path / f"{number}.parquet", {"text": list(texts(90))[number::3], "id": [number] * 30})
        fake.texts[COMMIT][f"fr/{number}.parquet"] = path.read_bytes()
    make(tmp_path / "out", f"{NAME}/fr")
    make(tmp_path / "same", *(tmp_path / f"{number}.parquet" for number in range(3)))
    assert shards(tmp_path / "out") == shards(tmp_path / "same")
    fake.texts[COMMIT] = {"a.parquet": write_parquet(tmp_path / "a.parquet", {"body": ["x"]}).read_bytes()}
    with pytest.raises(DataError, match=f"{NAME}/a.parquet has no column text"):  # not the name that it has here
        make(tmp_path / "other", NAME)


def test_local_files_and_data_sets_together(tmp_path):
    first, last = (local(tmp_path / name) / name for name in ("été@1.jsonl", "train-00002.ndjson"))
    make(tmp_path / "out", first, f"{NAME}/data/a=1", last)
    (tmp_path / "middle.jsonl").write_bytes(json_lines(0))
    make(tmp_path / "same", first, tmp_path / "middle.jsonl", last)
    assert shards(tmp_path / "out") == shards(tmp_path / "same")


def test_a_data_set_twice(tmp_path):
    make(tmp_path / "out", f"{NAME}/data/a=1", NAME, NAME, shard_tokens=1000)
    there = local(tmp_path / "in")
    make(tmp_path / "same", there / "a=1", there, there, shard_tokens=1000)
    assert shards(tmp_path / "out") == shards(tmp_path / "same")


def content_gets(fake) -> list[str]:
    """The files of the data set whose content was sent, in order."""
    found = [request for request in fake.gets() if request.host == "cdn" or f"/datasets/{DATASET}/res" in request.path]
    return [request.name.rsplit("/", 1)[-1] for request in found if request.host == "cdn" or ".gz" not in request.path]


def test_each_file_is_fetched_once_and_removed_when_it_is_in_a_shard(fake, tmp_path):
    there = []
    fake.before = lambda request: there.append(len(list((tmp_path / "out" / FETCHED).glob("*n*"))))
    make(tmp_path / "out", NAME, shard_tokens=1000)
    assert content_gets(fake) == [path.rsplit("/", 1)[-1] for path in PATHS]
    assert max(there) <= 2 and not (tmp_path / "out" / FETCHED).exists()
    fake.requests.clear()
    make(tmp_path / "out", NAME, shard_tokens=1000)  # finished
    assert not content_gets(fake)


def test_one_file_is_fetched_ahead(fake, tmp_path):
    paths = fetched(dataset_files(NAME), tmp_path)
    for number in range(3):
        assert Path(next(paths)).read_bytes() == FILES[PATHS[number]]
        wanted, until = min(number + 2, 3), time.monotonic() + 5
        while len(list((tmp_path / FETCHED).glob("*n"))) + len(list((tmp_path / FETCHED).glob("*[lz]"))) < wanted:
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(content_gets(fake)) == wanted
    assert next(paths, None) is None


def test_a_broken_transfer_resumes(fake, tmp_path):
    fake.faults["train-00000.jsonl.gz"] = ["breaks", "503", "breaks"]
    fake.faults["été@1.jsonl"] = ["breaks"]
    make(tmp_path / "out", NAME)
    make(tmp_path / "same", local(tmp_path / "in"))
    assert shards(tmp_path / "out") == shards(tmp_path / "same")
    assert [request.range for request in fake.gets("été@1.jsonl")][-1].startswith("bytes=")


@pytest.mark.parametrize("fault", ["other bytes", "page"])
def test_wrong_content_is_not_read(fake, tmp_path, fault):
    fake.faults["train-00002.ndjson"] = [fault]
    with pytest.raises(DataError, match="does not match its hash|returned a web page"):
        make(tmp_path / "out", NAME, shard_tokens=1000)
    make(tmp_path / "out", NAME, shard_tokens=1000)
    make(tmp_path / "same", local(tmp_path / "in"), shard_tokens=1000)
    assert shards(tmp_path / "out") == shards(tmp_path / "same")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_does_not_fetch_finished_files_again(fake, tmp_path, number):
    out, last = tmp_path / "out", PATHS[2].rsplit("/", 1)[-1]
    fake.faults[last] = ["stalls"]
    arguments = ["--tokenizer", demo.FOLDER, "--out", out, "--workers", "1", "--shard-tokens", "1000", NAME]
    process = subprocess.Popen([sys.executable, "-m", "data.prepare", *map(str, arguments)], cwd=REPOSITORY)
    until = time.monotonic() + 60
    while not (out / "train-00001.bin").exists() or len(list((out / FETCHED).iterdir())) != 1:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert process.wait(timeout=20) in (130, -signal.SIGKILL)  # and does not wait for the file that is being fetched
    fake.release.set()
    fake.requests.clear()
    fake.main = PUSHED  # another README, but the same texts
    result = command(out, "--shard-tokens", "1000", NAME)
    assert result.returncode == 0, result.stderr
    assert content_gets(fake) == [last] and fake.gets(last)[-1].range.startswith("bytes=")
    make(tmp_path / "same", local(tmp_path / "in"), shard_tokens=1000, held_out=0.01)
    assert shards(out) == shards(tmp_path / "same") and not (out / FETCHED).exists()


def test_other_texts_are_another_corpus(fake, tmp_path):
    make(tmp_path / "out", NAME)
    fake.texts[PUSHED] = FILES | {PATHS[1]: b'{"text": "Un film."}\n'}
    fake.main = PUSHED
    with pytest.raises(DataError, match="holds a corpus prepared with other sources"):
        make(tmp_path / "out", NAME)
    make(tmp_path / "out", f"{NAME}@{COMMIT}")


def test_the_plan_of_a_run_fetches_nothing(fake, tmp_path):
    sample = sample_folder([NAME], TOKENIZER, str(tmp_path / "corpora"))
    assert sample.share is None and "MB in 3 files; to be prepared into" in sample.estimate
    assert not content_gets(fake) and not (tmp_path / "corpora").exists()


def test_a_prepared_data_set_needs_no_hub(fake, tmp_path, monkeypatch, capsys):
    folder = prepared_folder([NAME], TOKENIZER, str(tmp_path / "corpora"))
    assert manifest(folder)["hub"] == [f"{DATASET}@{COMMIT}"]
    fake.main = PUSHED
    fake.requests.clear()
    assert prepared_folder([NAME], TOKENIZER, str(tmp_path / "corpora")) == folder and not content_gets(fake)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake.requests.clear()
    assert prepared_folder([NAME], TOKENIZER, str(tmp_path / "corpora")) == folder and not fake.requests
    assert_refused(f"{NAME}/data is not complete in the cache, and HF_HUB_OFFLINE", f"{NAME}/data")
    with pytest.raises(DataError, match="train-00000.jsonl.gz is needed, which HF_HUB_OFFLINE forbids to fetch"):
        prepared_folder([NAME], TOKENIZER, str(tmp_path / "other"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fake.status["tree"] = [503]
    assert prepared_folder([NAME], TOKENIZER, str(tmp_path / "corpora")) == folder
    assert "the hub cannot be reached" in capsys.readouterr().err
    (listing,) = (tmp_path / "cache").rglob("*.json")
    listing.write_text("[[1]]")
    fake.status["tree"] = [503] * hub.ATTEMPTS
    assert_refused("HTTP status 503. 5 attempts failed")
