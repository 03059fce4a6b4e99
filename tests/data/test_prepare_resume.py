"""data.prepare: the same bytes after any interruption, and a folder that holds anything else is not changed."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece

from data import DataError, demo, prepare
from data.corpus import shards
from data.locks import locked
from tests import torture_prepare as torture
from tests.data.prepared import assert_refused, command, lines, make, texts, write
from tests.data.stored import manifest, shard_documents, states, token_counts, tree

pytestmark = pytest.mark.filterwarnings("ignore:'data.prepare' found in sys.modules")


def unfinish(folder: Path, shards: int) -> None:
    """Makes a finished corpus look like a run that was killed after some shards."""
    stored = manifest(folder)
    count = sum(shard["documents"] for part in stored["shards"].values() for shard in part[:shards])
    source = Path(stored["sources"][0]["name"])
    offset = len(b"".join(source.read_bytes().splitlines(keepends=True)[:count]))
    (folder / "manifest.json").unlink()
    for part in stored["shards"].values():
        for path in (folder / (shard["name"] + end) for shard in part[shards:] for end in (".bin", ".ends")):
            path.unlink()
        del part[shards:]
    documents = [each for shard in stored["shards"]["train"] for each in shard_documents(folder, shard)]
    stored |= {"token_counts": token_counts(documents), "read_as": {}, "hold_out": "documents"}
    first = {key: stored[key] for key in ("format", "tokenizer", "dtype", "options", "sources")}
    ordered = first | {"position": [0, 0, offset]} | stored
    (folder / "manifest.unfinished.json").write_text(json.dumps(ordered, indent=1) + "\n")


# ---- existing output folders -----------------------------------------------------------------------------------


def test_a_finished_corpus_is_not_changed(out, text):
    first, before = command(out, text), states(out)
    again = command(out, text, "--workers", 2)  # does not affect the output
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert states(out) == before


CHANGES = ["--held-out 0.2", "--min-tokens 2", "--documents line", "--documents blank", "--duplicates-mb 1"]
CHANGES += ["--max-unknown 0.5", "--drop-control --shard-tokens 9999", "more.txt", "grown", "tokenizer"]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_with_another_corpus_is_refused(tmp_path, out, text, small_parts, finished, change):
    inputs, arguments, tokenizer = [text], ["--shard-tokens", 1000], demo.FOLDER
    assert command(out, *inputs, *arguments).returncode == 0
    if not finished:
        unfinish(out, 3)
    before = tree(out)
    if change == "tokenizer":
        tokenizer, settings = tmp_path / "other.model", dict(vocab_size=200, minloglevel=2)
        with tokenizer.open("wb") as model:
            trainer = sentencepiece.SentencePieceTrainer
            trainer.train(sentence_iterator=iter(texts(200)), model_writer=model, **settings)
    elif change == "more.txt":
        inputs.append(write(tmp_path / "more.txt", "un film\n"))
    elif change == "grown":
        text.write_text(lines(200) + "un film\n")
    else:
        arguments += change.split()
    result = command(out, *inputs, *arguments, tokenizer=tokenizer)
    named = ", ".join(re.findall("--[a-z-]+", change)) or ("tokenizer" if change == "tokenizer" else "sources")
    error = assert_refused(result, f"out holds a corpus prepared with other {named}. Choose another --out")
    assert error.count("--") == named.count("--") + 1
    assert tree(out) == before


def test_a_run_resumes_after_the_finished_shards_and_does_not_change_them(tmp_path, text, small_parts):
    made = make(tmp_path / "whole", text, shard_tokens=1000, held_out=0.2)
    count = len(made["shards"]["train"])
    assert count >= 8
    for finished in (1, count // 2, count - 1):
        out = tmp_path / str(finished)
        shutil.copytree(tmp_path / "whole", out)
        unfinish(out, finished)
        before = states(out)
        (out / f"train-{finished:05}.bin").write_bytes(b"finished, but not in the manifest")
        (out / f".train-{finished:05}.ends.partial").write_bytes(b"begun")
        make(out, text, shard_tokens=1000, held_out=0.2)
        assert tree(out) == tree(tmp_path / "whole")
        del before["manifest.unfinished.json"]
        assert len(before) == 4 * finished + 1 and before.items() <= states(out).items()


@pytest.mark.parametrize("name", ["notes.txt", "train.py", "training-data.txt", "held-out-00000.csv", "a.safetensors"])
def test_a_folder_with_other_files_is_refused_and_not_changed(out, text, name):
    out.mkdir()
    (out / name).write_text("mine")
    assert_refused(command(out, text), f"{out} holds {name}, which is not part of a corpus. Choose another --out")
    assert tree(out) == {name: b"mine"}


LEFTOVERS = ["train-00000.bin", ".train-00000.ends.partial", ".manifest.unfinished.json.partial", "seen-00000.u8"]
LEFTOVERS += ["sentencepiece.bpe.model", ".sentencepiece.bpe.model.partial", ".train-00009.bin.partial"]


def test_files_of_a_killed_run_are_overwritten_or_removed(tmp_path, out, text):
    """Killed before its first shard, or at its last step."""
    make(tmp_path / "whole", text)
    whole = tree(tmp_path / "whole")
    out.mkdir()
    for name in LEFTOVERS:
        (out / name).write_bytes(b"begun")
    make(out, text)
    assert tree(out) == whole
    for name in ("manifest.unfinished.json", "seen-00000.u8"):
        (out / name).write_bytes(whole["manifest.json"])
    make(out, text)
    assert tree(out) == whole


@pytest.mark.parametrize("name", ["manifest.json", "manifest.unfinished.json"])
def test_a_damaged_manifest_is_an_error(out, text, small_parts, name):
    make(out, text, shard_tokens=1000)
    if name != "manifest.json":
        unfinish(out, 2)
    whole = (out / name).read_bytes()
    other = json.loads(whole)
    damaged = [b"", whole[:-9], b"[" * 99_999, b"[]", b"{}", b"3", b"\xff", whole.replace(b"corpus-2", b"corpus-1")]
    for key in other:
        if key != "lost_lines":  # which earlier corpora do not have
            damaged.append(json.dumps({each: value for each, value in other.items() if each != key}).encode())
        damaged.append(json.dumps(other | {key: 3}).encode())
    for content in damaged:
        (out / name).write_bytes(content)
        before = tree(out)
        result = command(out, text, "--held-out", 0, "--shard-tokens", 1000)
        assert_refused(
            result, f"{name} is not the manifest of a corpus|prepared with other|prepared by another version"
        )
        assert tree(out) == before
    (out / name).write_bytes(whole)
    make(out, text, shard_tokens=1000)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["train-00001.bin", "held-out-00000.ends"])
def test_a_lost_or_truncated_shard_is_made_again_with_the_same_bytes(out, text, small_parts, name, finished):
    make(out, text, shard_tokens=1000)
    whole = tree(out)
    for damage in (Path.unlink, lambda path: path.write_bytes(b"x")):
        if not finished:
            unfinish(out, 2)
        damage(out / name)
        result = command(out, text, "--held-out", 0, "--shard-tokens", 1000)
        assert f"warning: {out / name} is missing or damaged: the corpus is prepared again" in result.stderr
        assert result.returncode == 0 and tree(out) == whole


@pytest.mark.parametrize("content", [None, b"x" * 80])
def test_a_lost_table_of_seen_hashes_does_not_cost_the_corpus(out, text, small_parts, content):
    make(out, text, shard_tokens=1000, duplicates_mb=1)
    whole = tree(out)
    unfinish(out, 2)
    if content:
        (out / "seen-00001.u8").write_bytes(content)
    result = command(out, text, "--held-out", 0, "--shard-tokens", 1000, "--duplicates-mb", 1)
    assert f"warning: {out / 'seen-00001.u8'} is missing or damaged: the corpus is prepared again" in result.stderr
    assert result.returncode == 0 and tree(out) == whole


def test_a_folder_in_use_or_a_file_in_its_place_is_refused(out, text):
    out.mkdir()
    with locked(out):
        assert_refused(command(out, text), rf"{out} is in use by another process \(host .*, process {os.getpid()}\)")
        assert list(tree(out)) == [".lock"]
    assert command(out, text).returncode == 0
    assert_refused(command(text, text), f"{text} cannot be written: File exists")
    assert_refused(command(text / "out", text), "cannot be written: Not a directory")


# ---- the disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["add", "finish", "write_manifest"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path, out, text, small_parts, monkeypatch, step, workers):
    options = dict(shard_tokens=1000, held_out=0.2, workers=workers, duplicates_mb=1)
    make(tmp_path / "whole", text, **options)
    owner, calls = (prepare if step == "write_manifest" else shards.ShardWriter), []
    original = getattr(owner, step)

    def full(*arguments):
        calls.append(step)
        if len(calls) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, full)
        with pytest.raises(DataError, match=r"out cannot be written: No space left on device\. .* the same command"):
            make(out, text, **options)
    assert not list(out.glob(".*")) and not (out / "manifest.json").exists()
    before = states(out)
    finished = json.loads((out / "manifest.unfinished.json").read_text())["shards"]["train"]
    assert len(finished) >= 1
    make(out, text, **options)
    assert tree(out) == tree(tmp_path / "whole")
    after = states(out)
    assert all(after[f"{shard['name']}.bin"] == before[f"{shard['name']}.bin"] for shard in finished)


@pytest.mark.parametrize("kilobytes", [20, 300])
def test_a_limit_on_file_size(tmp_path, out, kilobytes):
    """`ulimit -f`: the tokenizer exceeds the first limit, only the shard the second."""
    text = write(tmp_path / "a.txt", lines(2500))
    arguments = torture.command(text, out, 2, "--held-out", "0", "--shard-tokens", "1000000")
    settings = dict(cwd=torture.REPOSITORY, capture_output=True, text=True, timeout=60)
    limited = ["bash", "-c", f"ulimit -f {kilobytes}; exec {' '.join(arguments)}"]
    error = assert_refused(subprocess.run(limited, **settings), "cannot be written: File too large")
    assert "the same command resumes" in error
    assert set(tree(out)) <= {"sentencepiece.bpe.model"}
    result = subprocess.run(arguments, **settings)
    assert result.returncode == 0, result.stderr
    made = make(tmp_path / "whole", text, shard_tokens=1_000_000)
    assert 2 * made["shards"]["train"][0]["tokens"] > 300 << 10
    assert tree(out) == tree(tmp_path / "whole")


# ---- workers, kills, Ctrl-C ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def various(tmp_path_factory):
    """Files of every compression, the largest in two parts -> their folder, the expected output, seconds to prepare"""
    folder = tmp_path_factory.mktemp("various")
    torture.write_corpus(folder / "corpus", 3)
    seconds = torture.run(folder / "corpus", folder / "whole", 1)
    return folder / "corpus", torture.content(folder / "whole"), seconds


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(out, various, workers):
    torture.run(various[0], out, workers)
    assert torture.differences(out, various[1]) == []


def test_kills_change_no_byte(out, various):
    """Six kills at random moments; finished shards are not written again."""
    inputs, expected, seconds = various
    chance, kills, before = random.Random(), 0, {}
    while kills < 6:
        process = torture.start(inputs, out, 2)
        try:
            process.communicate(timeout=chance.uniform(0.1, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            torture.kill(process, alone=kills % 2 == 0)
            kills += 1
        if process.returncode == 0:
            assert torture.differences(out, expected) == []
            shutil.rmtree(out)
        after = finished(out)
        assert not before or not after or before.items() <= after.items()
        before = after
    torture.run(inputs, out, 2)
    assert torture.differences(out, expected) == []
    assert before.items() <= states(out).items()


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """The states of the files in the unfinished manifest."""
    try:
        unfinished = json.loads((folder / "manifest.unfinished.json").read_text())
    except FileNotFoundError:
        return {}
    names = {shard["name"] for part in unfinished["shards"].values() for shard in part}
    return {name: state for name, state in states(folder).items() if name.partition(".")[0] in names}


@pytest.fixture
def running(out):
    """A run with two workers, in its first shard, that waits for more on its standard input."""
    arguments = torture.command(Path("-"), out, 2, "--shard-tokens", "100000000")
    code = "import runpy; from data.corpus import parts; parts.PART_BYTES = parts.READ_BYTES = 3000; "
    code += "runpy.run_module('data.prepare', run_name='__main__', alter_sys=True)"
    settings = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments[3:]], cwd=torture.REPOSITORY, **settings)
    process.stdin.write(lines(200).encode() * 20)  # more than the sample that its form is told from
    process.stdin.flush()
    until = time.monotonic() + 30
    while not (out / ".train-00000.bin.partial").exists():
        assert time.monotonic() < until and process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    yield process
    torture.kill(process, alone=False)


def workers_of(process: subprocess.Popen) -> list[int]:
    found = []
    for pid in torture.group(process.pid):
        with contextlib.suppress(FileNotFoundError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_ctrl_c_leaves_no_worker_and_no_partial_file(out, running):
    assert len(workers_of(running)) == 2
    os.killpg(running.pid, signal.SIGINT)  # to all processes, like a terminal
    stderr = running.communicate(timeout=30)[1].decode()
    assert running.returncode == 130
    assert "data.prepare: interrupted; the same command resumes" in stderr and "Traceback" not in stderr
    torture.wait_until_gone(running.pid)
    assert set(tree(out)) == {"sentencepiece.bpe.model"}


def test_ctrl_c_at_any_moment(out, various):
    chance = random.Random()
    for _ in range(4):
        process = torture.start(various[0], out, 2)
        until = time.monotonic() + 30
        while not workers_of(process) and process.poll() is None:
            assert time.monotonic() < until
        time.sleep(chance.choice([0, 0.05, 0.1, chance.uniform(0, 0.5 * various[2])]))
        with contextlib.suppress(ProcessLookupError):  # it may have finished
            os.killpg(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=30)[1]
        assert process.returncode in (0, 130) and "Traceback" not in stderr, stderr
        torture.wait_until_gone(process.pid)
        assert not list(out.glob(".*"))
    torture.run(various[0], out, 2)
    assert torture.differences(out, various[1]) == []


def test_a_killed_worker_is_an_error(out, running):
    os.kill(workers_of(running)[0], signal.SIGKILL)
    until = time.monotonic() + 30
    while workers_of(running):  # the pool sees it, and ends the other one
        assert time.monotonic() < until
    with contextlib.suppress(BrokenPipeError):
        running.stdin.write(lines(200).encode())
    stderr = running.communicate(timeout=30)[1].decode()  # closes its standard input
    assert running.returncode == 2 and "Traceback" not in stderr
    assert "data.prepare: A worker was killed, probably because memory ran out. Use fewer --workers." in stderr
    torture.wait_until_gone(running.pid)
    assert set(tree(out)) == {"sentencepiece.bpe.model"}


def test_workers_end_with_the_main_process(running):
    torture.kill(running, alone=True)
