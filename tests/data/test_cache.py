"""Text given to train.py as its corpus: prepared once, or sampled for an estimate."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

import data.cache
from data import DataError
from data.blocks import open_blocks
from data.cache import DEMO, prepared_folder, sample_folder
from tests.data.prepared import TOKENIZER, lines, write
from tests.data.stored import part_documents, states
from tests.helpers import REPOSITORY


def test_a_corpus_is_prepared_into_the_cache_once(tmp_path, text, capsys):
    folder = prepared_folder([str(text)], TOKENIZER, str(tmp_path / "cache"))
    before = states(folder)
    assert part_documents(folder, "held-out") and "tokens in" in capsys.readouterr().out
    assert prepared_folder([str(text)], TOKENIZER, str(tmp_path / "cache")) == folder
    assert states(folder) == before and capsys.readouterr().out == ""
    os.utime(text, ns=(1, 1))
    assert prepared_folder([str(text)], TOKENIZER, str(tmp_path / "cache")) != folder
    with pytest.raises(DataError, match="Standard input cannot be read twice"):
        prepared_folder(["-"], TOKENIZER, str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.ends", "manifest.json", "held-out-00000.bin"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_what_is_lost_or_damaged_in_the_cache_is_prepared_again(tmp_path, text, name, content):
    cache = str(tmp_path / "cache")
    folder = prepared_folder([str(text)], TOKENIZER, cache)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert prepared_folder([str(text)], TOKENIZER, cache) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_damaged_manifest_that_another_process_has_mended_meanwhile_stays(tmp_path, text, monkeypatch):
    cache = str(tmp_path / "cache")
    folder = prepared_folder([str(text)], TOKENIZER, cache)
    good = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(b"{")
    taken = data.cache.locked

    @contextlib.contextmanager
    def mended(*arguments, **settings):
        with taken(*arguments, **settings):
            (folder / "manifest.json").write_bytes(good)
            yield

    monkeypatch.setattr(data.cache, "locked", mended)
    before = states(folder)
    prepared_folder([str(text)], TOKENIZER, cache)
    assert {name: state for name, state in states(folder).items() if name != "manifest.json"} == {
        name: state for name, state in before.items() if name != "manifest.json"
    }


def test_a_prepared_corpus_is_its_own_sample(tmp_path, text):
    cache = str(tmp_path / "cache")
    folder = prepared_folder([str(text)], TOKENIZER, cache)
    for paths in ([str(text)], [str(folder)]):
        assert sample_folder(paths, TOKENIZER, cache)[:3] == (folder, 1.0, "")


@pytest.mark.parametrize("content", [b'{"data": {"text": "a"}}\n' * 3, b"%PDF-1.7\n"])
def test_a_corpus_without_text_has_no_sample_but_the_reason(tmp_path, content):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a").write_bytes(content)
    reason = "no usable text. 3 JSON lines without a text. Give the name" if b"data" in content else "no usable text"
    with pytest.raises(DataError, match=reason):
        sample_folder([str(tmp_path / "texts")], TOKENIZER, str(tmp_path / "cache"))


def test_a_plan_names_the_folder_of_the_demos_text(tmp_path):
    cache = str(tmp_path / "cache")
    planned = sample_folder(DEMO, TOKENIZER, cache).estimate
    folder = prepared_folder(DEMO, TOKENIZER, cache)
    assert planned.endswith(f"to be prepared into {folder}")
    assert sample_folder(DEMO, TOKENIZER, cache)[:3] == (folder, 1.0, "")


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_sample_estimates_the_size_of_a_corpus(tmp_path, suffix):
    """Of three files, 12 MB; the estimate is right to a few per cent, and nothing is left behind."""
    texts = lines(3000).splitlines() * 25
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        content = [json.dumps({"text": line}) if suffix == "jsonl" else line for line in texts]
        write(tmp_path / "corpus" / f"{number}.{suffix}", "\n".join(content))
    cache, paths = str(tmp_path / "cache"), [str(tmp_path / "corpus")]
    sample = sample_folder(paths, TOKENIZER, cache)
    assert not os.path.exists(cache) and 0 < sample.share < 0.9
    estimate = len(open_blocks(sample.folder, TOKENIZER, 32)[0]) / sample.share
    assert "estimated from" in sample.estimate and f"to be prepared into {cache}" in sample.estimate
    folder = sample.folder
    del sample
    assert not folder.exists()
    whole = len(open_blocks(prepared_folder(paths, TOKENIZER, cache), TOKENIZER, 32)[0])
    assert estimate == pytest.approx(whole, rel=0.05)


SLOW = """
import sys, time
import data.prepare
from data import Tokenizer, demo
from data.cache import prepared_folder
write = data.prepare.write_manifest
def slow(*arguments):
    print("begun", flush=True)
    time.sleep(float(sys.argv[3]))
    write(*arguments)
data.prepare.write_manifest = slow
print(prepared_folder([sys.argv[1]], Tokenizer(demo.FOLDER), sys.argv[2]))
"""


@pytest.mark.parametrize("seconds", [1, 60])
def test_a_second_run_waits_for_the_one_that_prepares(tmp_path, text, capsys, seconds):
    """Then it uses the result, or, if the first is killed, prepares itself."""
    cache = str(tmp_path / "cache")
    command = [sys.executable, "-c", SLOW, text, cache, str(seconds)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as first:
        assert first.stdout.readline() == b"begun\n"
        if seconds == 60:
            threading.Timer(1, first.kill).start()
        folder = prepared_folder([str(text)], TOKENIZER, cache)
        first.kill()
    said = capsys.readouterr().err
    assert (
        f"note: {folder} is in use by another process (host {socket.gethostname()}, process {first.pid}). Wait" in said
    )
    assert ("prepared " in said) == (seconds == 60)
    assert not list(folder.glob(".*")) and len(list(folder.glob("*.bin"))) == 2
