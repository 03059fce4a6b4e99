"""data.prepare: the same bytes after any interruption, and everything that is dropped is counted."""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import zlib
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece

from data import DataError, Tokenizer, demo, prepare
from data.corpus import files, shards
from data.prepare import prepare_into_cache
from tests import torture_prepare as torture
from tests.data.prepared import (
    COMPRESS,
    TOKENIZER,
    assert_refused,
    command,
    encoded,
    lines,
    make,
    manifest,
    part_documents,
    shard_documents,
    states,
    texts,
    tree,
    write,
    write_parquet,
)
from tests.helpers import REAL_TEXT, REAL_TOKENIZER, needs

pytestmark = pytest.mark.filterwarnings("ignore:'data.prepare' found in sys.modules")


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 3000)


@pytest.fixture
def text(tmp_path):
    return write(tmp_path / "a.txt", lines(200))


def shard_files(manifest: dict) -> set[str]:
    """The names of all files of a finished corpus."""
    names = {shard["name"] for part in manifest["shards"].values() for shard in part}
    return {"manifest.json", "sentencepiece.bpe.model"} | {name + end for name in names for end in (".bin", ".ends")}


# ---- shards, manifest and summary ------------------------------------------------------------------------------


def test_the_shards_hold_the_ids_of_every_document(tmp_path, text, small_parts):
    made = make(tmp_path / "out", text, shard_tokens=2000)
    assert part_documents(tmp_path / "out", "train") == [encoded(line) for line in texts(200)]
    assert part_documents(tmp_path / "out", "held-out") == []
    assert set(tree(tmp_path / "out")) == shard_files(made) and len(made["shards"]["train"]) > 5
    assert all(2000 <= shard["tokens"] < 4000 for shard in made["shards"]["train"][:-1])
    assert [shard["name"] for shard in made["shards"]["held-out"]] == [
        f"held-out-{number:05}" for number in range(len(made["shards"]["train"]))
    ]


def test_the_manifest(tmp_path, text, small_parts):
    made = make(tmp_path / "out", text, tmp_path / "a.txt", held_out=0.2, shard_tokens=2000, min_tokens=3)
    stored = manifest(tmp_path / "out")
    assert stored == json.loads(json.dumps(made))
    documents = part_documents(tmp_path / "out", "train")  # checks the hashes and counts of the shards
    tokens = Counter(i for document in documents for i in [*document, TOKENIZER.eos_id])
    digest = hashlib.sha256((demo.FOLDER / "sentencepiece.bpe.model").read_bytes()).hexdigest()
    size = text.stat().st_size
    del stored["shards"]
    options = {"documents": "auto", "field": None, "min_tokens": 3, "max_unknown": 1.0, "duplicates_mb": 0}
    assert stored == {
        "format": "distilcamembert-corpus-1",
        "tokenizer": {"sha256": digest, "words": len(TOKENIZER)},
        "dtype": "<u2",
        "options": options | {"drop_control": False, "held_out": 0.2, "shard_tokens": 2000},
        "sources": 2 * [{"name": str(text), "kind": "line", "size": size}],
        "counts": {},
        "damaged": [],
        "token_counts": [tokens[i] for i in range(len(TOKENIZER))],
    }


def test_the_summary(tmp_path):
    write(tmp_path / "in.txt", lines(50))
    write(tmp_path / "in.jsonl", '{"text": "Un film."}\n{"body": "Un livre."}\nno JSON\n')
    write(tmp_path / "blank.txt.gz", "\n\n".join(f"{text}\n{text}" for text in texts(30)))
    result = command(tmp_path / "out", tmp_path / "in.*", tmp_path / "blank.txt.gz", "--held-out", 0)
    assert result.returncode == 0, result
    tokens = sum(shard["tokens"] for shard in manifest(tmp_path / "out")["shards"]["train"])
    assert result.stdout.splitlines() == [
        f"train     {tokens:,} tokens in 81 documents, 1 shards",
        "held-out  0 tokens in 0 documents, 1 shards",
        "read as   JSON lines (1 files), one document per line (1 files), documents separated by blank lines (1 files)",
        "note      1 JSON lines without a text; 1 lines that are not JSON",
    ]
    assert manifest(tmp_path / "out")["counts"] == {"JSON lines without a text": 1, "lines that are no JSON": 1}


def test_a_document_is_the_ids_of_its_paragraphs(tmp_path):
    path = write(tmp_path / "a.txt", "Un film.\nUn livre.\n\n Deux\u00a0films \n<mask> et\u200bpuis\n\n\x01\x02\n\nFin")
    made = make(tmp_path / "out", path, documents="blank")
    documents = [["Un film.", "Un livre."], [" Deux films ", "<mask> et puis"], ["Fin"]]
    expected = [[i for ids in TOKENIZER.encode_plain(paragraphs) for i in ids] for paragraphs in documents]
    assert part_documents(tmp_path / "out", "train") == expected
    assert made["counts"] == {"documents dropped, being empty": 1, "paragraphs with control characters": 1}


def test_every_format_and_compression_gives_the_same_documents(tmp_path, monkeypatch):
    expected = [encoded(text) for text in texts(60)]
    as_json = "".join(json.dumps({"content": text}) + "\n" for text in texts(60))
    paths = [write(tmp_path / f"a.txt{suffix}", lines(60)) for suffix in COMPRESS]
    paths += [write(tmp_path / f"b.json{suffix}", as_json) for suffix in COMPRESS]
    paths.append(write_parquet(tmp_path / "c.parquet", {"text": texts(60)}))
    for number, path in enumerate(paths):
        make(tmp_path / str(number), path)
        assert part_documents(tmp_path / str(number), "train") == expected, path
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(lines(60).encode()))))
    make(tmp_path / "stdin", "-")
    assert part_documents(tmp_path / "stdin", "train") == expected


@needs(REAL_TOKENIZER, REAL_TEXT)
def test_real_text_with_the_real_tokenizer(tmp_path):
    real = Tokenizer(REAL_TOKENIZER)
    (path,) = [path for path in sorted(REAL_TEXT.rglob("*.txt"))][:1]
    sample = path.read_bytes()[:300_000].rpartition(b"\n")[0]
    path = write(tmp_path / "a.txt", sample)
    assert command(tmp_path / "out", path, "--documents", "line", tokenizer=REAL_TOKENIZER).returncode == 0
    found = [tuple(each) for part in ("train", "held-out") for each in part_documents(tmp_path / "out", part)]
    expected = [tuple(real.encode(line)[1:-1]) for line in sample.decode().splitlines() if line.strip()]
    assert Counter(found) == Counter(filter(None, expected)) and len(found) > 100


# ---- filtering -------------------------------------------------------------------------------------------------


def test_only_documents_with_fewer_tokens_are_dropped(tmp_path, text):
    documents = [encoded(line) for line in texts(200)]
    least = sorted(map(len, documents))[100]  # several have exactly this length
    made = make(tmp_path / "out", text, min_tokens=least)
    assert part_documents(tmp_path / "out", "train") == [each for each in documents if len(each) >= least]
    assert made["counts"] == {"documents dropped, being short": sum(len(each) < least for each in documents)}


@pytest.mark.parametrize("most", [0.0, 0.25, 0.5, 0.99, 1.0])
def test_only_documents_with_more_unknown_tokens_are_dropped(tmp_path, most):
    documents = ["un film", "un film ¤ et", "un ¤", "¤", "un film ¤ et un ¤ <unk>", "<unk>", "<unk> <unk> un film"]
    shares = [encoded(document).count(TOKENIZER.unk_id) / len(encoded(document)) for document in documents]
    assert len({share <= most for share in shares}) == 2 or most >= 0.5  # some are kept, some dropped
    made = make(tmp_path / "out", write(tmp_path / "a.txt", "\n".join(documents)), max_unknown=most)
    kept = [encoded(document) for document, share in zip(documents, shares) if share <= most]
    assert part_documents(tmp_path / "out", "train") == kept
    dropped = len(documents) - len(kept)
    assert made["counts"] == ({"documents dropped, being unknown": dropped} if dropped else {})


def test_paragraphs_with_control_characters_are_dropped_on_request(tmp_path):
    content = "Un film.\nUn\x00 livre.\n\nDeux\x1b[0m films.\n\nUn\tlivre.\x0b\n\nFin."
    path = write(tmp_path / "a.txt", content)
    made = make(tmp_path / "out", path, documents="blank", drop_control=True)
    assert part_documents(tmp_path / "out", "train") == [encoded("Un film."), encoded("Fin.")]
    assert made["counts"] == {"paragraphs with control characters dropped": 3}
    made = make(tmp_path / "all", path, documents="blank")
    assert len(part_documents(tmp_path / "all", "train")) == 4
    assert made["counts"] == {"paragraphs with control characters": 3}


# ---- the held-out part -----------------------------------------------------------------------------------------


def held_out(out: Path) -> Counter:
    return Counter(map(tuple, part_documents(out, "held-out")))


def test_the_held_out_documents_do_not_depend_on_the_others_or_the_order(tmp_path, small_parts):
    first = [text for text in texts(600) if zlib.crc32(text.encode()) / 2**32 < 0.1]
    paths = [
        write(tmp_path / f"{number}.txt", "".join(f"{text}\n" for text in texts(600)[start : start + 200]))
        for number, start in enumerate((0, 200, 400))
    ]
    expected = Counter(tuple(encoded(text)) for text in first)
    assert 30 < expected.total() < 90
    orders = {"forwards": paths, "backwards": paths[::-1], "again": paths}
    for name, order in orders.items():
        make(tmp_path / name, *order, held_out=0.1, shard_tokens=5000, documents="line")
        assert held_out(tmp_path / name) == expected
        train = Counter(map(tuple, part_documents(tmp_path / name, "train")))
        assert train + expected == Counter(tuple(encoded(text)) for text in texts(600))
    make(tmp_path / "one", paths[1], held_out=0.1)
    assert held_out(tmp_path / "one") == expected & Counter(tuple(encoded(text)) for text in texts(600)[200:400])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_held_out_fraction(tmp_path, share):
    """Within four standard deviations, which 4,000 random draws exceed once in 16,000 times."""
    texts = "".join(f"{number} films\n" for number in range(4000))
    made = make(tmp_path / "out", write(tmp_path / "a.txt", texts), held_out=share)
    held_out, train = (sum(shard["documents"] for shard in made["shards"][part]) for part in ("held-out", "train"))
    assert held_out + train == 4000
    assert abs(held_out - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_no_held_out_documents_and_no_training_documents(tmp_path, text):
    made = make(tmp_path / "out", text, held_out=0.0)
    assert sum(shard["documents"] for shard in made["shards"]["held-out"]) == 0
    with pytest.raises(ValueError, match="--held-out must be at least 0 and below 1"):
        make(tmp_path / "all", text, held_out=1.0)


# ---- wrong input -----------------------------------------------------------------------------------------------


def test_wrong_input_is_counted_and_nothing_else_is_lost(tmp_path):
    good = "".join(f"{text}\r\n" for text in texts(20)).encode()
    write(tmp_path / "broken.txt", good + b"cass\xc3\n\x80\n" + "à moitié".encode()[:-1] + b"\n" + "à".encode())
    write(tmp_path / "mixed.txt", b"un film\rdeux films\r\ntrois films\n\n\nquatre films")
    write(tmp_path / "nul.txt", b"un\x00 film\n\x01deux\x0b\n")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / "rows.jsonl", b'{"text": "un livre"}\n{"body": 3}\n{"text": \n[]\n')
    write(tmp_path / "utf16.txt", good.decode().encode("utf-16"))
    compressed = gzip.compress(lines(200).encode())
    (tmp_path / "cut.txt.gz").write_bytes(compressed[: len(compressed) // 2])
    (tmp_path / "loop").symlink_to(tmp_path)
    result = command(tmp_path.parent / "out", tmp_path, "--held-out", 0)
    assert result.returncode == 0 and "Traceback" not in result.stderr
    stored = manifest(tmp_path.parent / "out")
    assert stored["counts"].pop("lines that are not UTF-8") in (3, 4)  # 4: the archive ends inside a character
    expected = {"JSON lines without a text": 2, "lines that are no JSON": 1, "paragraphs with control characters": 2}
    assert stored["counts"] == expected
    assert [Path(damage["source"]).name for damage in stored["damaged"]] == ["cut.txt.gz", "utf16.txt"]
    for name, why in (("cut.txt.gz", "ended before the end-of-stream"), ("utf16.txt", "it is UTF-16")):
        assert re.search(f"warning: .*{name} was not read to the end: .*{why}", result.stderr)
    found = part_documents(tmp_path.parent / "out", "train")
    expected = [encoded(text) for text in [*texts(20), "à"]]
    assert found[: len(expected)] == expected
    end = next(i for i, ids in enumerate(found) if ids == encoded("un film"))  # of the archive
    kept = found[len(expected) : end]
    assert 50 < len(kept) <= 200 and kept[:-1] == [encoded(text) for text in texts(200)][: len(kept) - 1]
    rest = ["un film", "deux films", "trois films", "quatre films", "un\x00 film", "deux", "un livre"]
    assert found[end:] == [encoded(text) for text in rest]


def test_a_very_long_line_is_split_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 1000)
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 5000)
    words = " ".join(texts(200))
    made = make(tmp_path / "out", write(tmp_path / "a.txt", f"un film\n{words}\nun livre\n"))
    documents = part_documents(tmp_path / "out", "train")
    assert documents[0] == encoded("un film") and documents[-1] == encoded("un livre")
    assert [i for document in documents[1:-1] for i in document] == encoded(words)
    assert made["counts"] == {"documents cut, being longer than 16 MB": len(words.encode()) // 5000}


EMPTY = {
    b"": "",
    b"\n \n\t\r\n": "",
    b"\xff\n\xfe\n": "2 lines that are not UTF-8",
    b"\x01\n\x02\x03": "2 empty documents dropped; 2 paragraphs with control characters",
    "é".encode("utf-16"): "",
}


@pytest.mark.parametrize("content", EMPTY)
def test_a_corpus_without_text_is_an_error_and_leaves_nothing(tmp_path, content):
    write(tmp_path / "a.txt", content)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".keep").write_text("mine")
    error = assert_refused(command(tmp_path / "out", tmp_path / "a.txt"), "The corpus has no usable text")
    assert EMPTY[content] in error
    assert set(tree(tmp_path / "out")) == {".keep"}
    write(tmp_path / "a.txt", "un film\n")
    assert command(tmp_path / "out", tmp_path / "a.txt").returncode == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("nothing.txt", "There is no corpus"),
        ("*.nothing", "There is no corpus"),
        ("empty", "The folder .*empty has no"),
        ("a.pdf", "is not text"),
        ("a.txt b.parquet", "b.parquet has no column text or content"),
        ("- -", "only once"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_wrong_inputs_are_errors(tmp_path, names, message, workers):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.pdf", b"%PDF")
    write(tmp_path / "a.txt", b"un film\n")
    if "b.parquet" in names:
        write_parquet(tmp_path / "b.parquet", {"title": ["un film"]})
    with pytest.raises(DataError, match=message):
        make(tmp_path / "out", *(name if name == "-" else tmp_path / name for name in names.split()), workers=workers)


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(path).write_text("un film\n")
    result = command(tmp_path / "out", path, "--held-out", 0)
    assert result.returncode == 0, result
    assert [source["name"] for source in manifest(tmp_path / "out")["sources"]] == [path]
    assert command(tmp_path / "out", path, "--held-out", 0).returncode == 0


# ---- existing output folders -----------------------------------------------------------------------------------


def test_a_finished_corpus_is_not_changed(tmp_path, text):
    first = command(tmp_path / "out", text)
    before = states(tmp_path / "out")
    again = command(tmp_path / "out", text, "--workers", 2)  # does not affect the output
    assert (again.returncode, again.stdout) == (0, first.stdout) == (0, again.stdout)
    assert states(tmp_path / "out") == before


CHANGES = [
    "--held-out 0.2",
    "--min-tokens 2",
    "--field x",
    "--documents blank",
    "--duplicates-mb 1",
    "--max-unknown 0.5",
]
CHANGES += ["--drop-control --shard-tokens 9999", "more.txt", "grown", "tokenizer"]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_with_another_corpus_is_refused(tmp_path, text, small_parts, finished, change):
    inputs, arguments = [text], ["--shard-tokens", 1000]
    assert command(tmp_path / "out", *inputs, *arguments).returncode == 0
    if not finished:
        unfinish(tmp_path / "out", 3)
    before, tokenizer = tree(tmp_path / "out"), demo.FOLDER
    if change == "tokenizer":
        tokenizer = tmp_path / "other.model"
        with tokenizer.open("wb") as model:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts(200)), model_writer=model, vocab_size=200, minloglevel=2
            )
    elif change == "more.txt":
        inputs.append(write(tmp_path / "more.txt", "un film\n"))
    elif change == "grown":
        text.write_text(lines(200) + "un film\n")
    else:
        arguments += change.split()
    result = command(tmp_path / "out", *inputs, *arguments, tokenizer=tokenizer)
    named = ", ".join(re.findall("--[a-z-]+", change)) or ("tokenizer" if change == "tokenizer" else "sources")
    error = assert_refused(result, f"out holds a corpus prepared with other {named}. Choose another --out")
    assert error.count("--") == named.count("--") + 1
    assert tree(tmp_path / "out") == before


def unfinish(folder: Path, shards: int) -> None:
    """Makes a finished corpus look like a run that was killed after some shards."""
    stored = manifest(folder)
    count = sum(shard["documents"] for part in stored["shards"].values() for shard in part[:shards])
    source = Path(stored["sources"][0]["name"])
    offset = len(b"".join(source.read_bytes().splitlines(keepends=True)[:count]))
    names = {"manifest.json"}
    for part in stored["shards"].values():
        names |= {shard["name"] + end for shard in part[shards:] for end in (".bin", ".ends")}
        del part[shards:]
    documents = [each for shard in stored["shards"]["train"] for each in shard_documents(folder, shard)]
    tokens = Counter(i for document in documents for i in [*document, TOKENIZER.eos_id])
    stored["token_counts"] = [tokens[i] for i in range(len(TOKENIZER))]
    first = {key: stored[key] for key in ("format", "tokenizer", "dtype", "options", "sources")}
    ordered = first | {"position": [0, offset]} | stored
    for name in names:
        (folder / name).unlink()
    (folder / "manifest.unfinished.json").write_text(json.dumps(ordered, indent=1) + "\n")


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
def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path, text, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    message = f"{tmp_path}/out holds {name}, which is not part of a corpus. Choose another --out"
    assert_refused(command(tmp_path / "out", text), message)
    assert tree(tmp_path / "out") == {name: b"mine"}


def test_files_of_a_run_killed_before_its_first_shard_are_overwritten(tmp_path, text):
    make(tmp_path / "whole", text)
    (tmp_path / "out").mkdir()
    leftovers = ["train-00000.bin", ".train-00000.ends.partial", ".manifest.unfinished.json.partial", "seen-00000.u8"]
    for name in [*leftovers, "sentencepiece.bpe.model", ".sentencepiece.bpe.model.partial", ".train-00009.bin.partial"]:
        (tmp_path / "out" / name).write_bytes(b"begun")
    make(tmp_path / "out", text)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_files_of_a_run_killed_at_its_last_step_are_removed(tmp_path, text):
    make(tmp_path / "out", text)
    whole = tree(tmp_path / "out")
    for name in ("manifest.unfinished.json", "seen-00000.u8"):
        (tmp_path / "out" / name).write_bytes(whole["manifest.json"])
    make(tmp_path / "out", text)
    assert tree(tmp_path / "out") == whole


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path, text):
    assert_refused(command(text, text), f"{text} cannot be written: File exists")
    assert_refused(command(text / "out", text), "cannot be written: Not a directory")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.unfinished.json"])
def test_a_damaged_manifest_is_an_error(tmp_path, text, small_parts, name):
    make(tmp_path / "out", text, shard_tokens=1000)
    if name != "manifest.json":
        unfinish(tmp_path / "out", 2)
    whole = (tmp_path / "out" / name).read_bytes()
    other = json.loads(whole)
    damaged = [b"", whole[:-9], b"[" * 99_999, b"[]", b"{}", b"3", b"\xff", whole.replace(b"corpus-1", b"corpus-2")]
    for key in other:
        damaged.append(json.dumps({each: value for each, value in other.items() if each != key}).encode())
        damaged.append(json.dumps(other | {key: 3}).encode())
    for content in damaged:
        (tmp_path / "out" / name).write_bytes(content)
        if name == "manifest.json" and b'"position": 3' in content:
            continue
        before = tree(tmp_path / "out")
        result = command(tmp_path / "out", text, "--held-out", 0, "--shard-tokens", 1000)
        assert_refused(result, f"{name} is not the manifest of a corpus|prepared with other")
        assert tree(tmp_path / "out") == before
    (tmp_path / "out" / name).write_bytes(whole)
    make(tmp_path / "out", text, shard_tokens=1000)


def test_a_damaged_table_of_seen_hashes_is_an_error(tmp_path, text, small_parts):
    make(tmp_path / "out", text, shard_tokens=1000, duplicates_mb=1)
    unfinish(tmp_path / "out", 2)
    for damage in (lambda path: None, lambda path: path.write_bytes(b"x" * 80)):
        damage(tmp_path / "out" / "seen-00001.u8")
        arguments = ["--held-out", 0, "--shard-tokens", 1000, "--duplicates-mb", 1]
        assert_refused(command(tmp_path / "out", text, *arguments), "seen-00001.u8 is missing or damaged")


def test_a_folder_in_use_is_refused(tmp_path, text):
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert_refused(command(tmp_path / "out", text), f"Another process is preparing a corpus in {tmp_path}/out")
    assert not tree(tmp_path / "out")
    os.close(handle)
    assert command(tmp_path / "out", text).returncode == 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("workers", 0, "--workers must be at least 1"),
        ("shard-tokens", 999, "--shard-tokens must be at"),
        ("max-unknown", "nan", "--max-unknown must be"),
        ("held-out", -0.1, "--held-out must be"),
        ("duplicates-mb", 10**7, "--duplicates-mb must be"),
        ("field", "", "--field is empty"),
        ("tokenizer", "nothing", "There is no tokenizer nothing"),
        ("tokenizer", __file__, "is not a SentencePiece"),
    ],
)
def test_wrong_options_are_errors(tmp_path, text, option, value, message):
    assert_refused(command(tmp_path / "out", text, f"--{option}", value), message)
    assert not (tmp_path / "out").exists()


# ---- the disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["add", "finish", "write_manifest"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path, text, small_parts, monkeypatch, step, workers):
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
            make(tmp_path / "out", text, **options)
    assert not list((tmp_path / "out").glob(".*")) and not (tmp_path / "out" / "manifest.json").exists()
    before = states(tmp_path / "out")
    finished = json.loads((tmp_path / "out" / "manifest.unfinished.json").read_text())["shards"]["train"]
    assert len(finished) >= 1
    make(tmp_path / "out", text, **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    after = states(tmp_path / "out")
    assert all(after[f"{shard['name']}.bin"] == before[f"{shard['name']}.bin"] for shard in finished)


@pytest.mark.parametrize("kilobytes", [20, 300])
def test_a_limit_on_file_size(tmp_path, kilobytes):
    """`ulimit -f`: the tokenizer exceeds the first limit, only the shard the second."""
    text = write(tmp_path / "a.txt", lines(2500))
    arguments = torture.command(text, tmp_path / "out", 2, "--held-out", "0", "--shard-tokens", "1000000")
    limited = f"ulimit -f {kilobytes}; exec {' '.join(arguments)}"
    result = subprocess.run(["bash", "-c", limited], cwd=torture.REPOSITORY, capture_output=True, text=True, timeout=60)
    error = assert_refused(result, "cannot be written: File too large")
    assert "the same command resumes" in error
    assert set(tree(tmp_path / "out")) <= {"sentencepiece.bpe.model"}
    result = subprocess.run(arguments, cwd=torture.REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    made = make(tmp_path / "whole", text, shard_tokens=1_000_000)
    assert 2 * made["shards"]["train"][0]["tokens"] > 300 << 10
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


# ---- workers, kills, Ctrl-C ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def various(tmp_path_factory):
    """Files of every compression, the largest in two parts -> their folder, the expected output, seconds to prepare"""
    folder = tmp_path_factory.mktemp("various")
    torture.write_corpus(folder / "corpus", 3)
    seconds = torture.run(folder / "corpus", folder / "whole", 1)
    return folder / "corpus", torture.content(folder / "whole"), seconds


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(tmp_path, various, workers):
    torture.run(various[0], tmp_path / "out", workers)
    assert torture.differences(tmp_path / "out", various[1]) == []


def test_kills_change_no_byte(tmp_path, various):
    """Six kills at random moments; finished shards are not written again."""
    inputs, expected, seconds = various
    chance, kills, before = random.Random(), 0, {}
    while kills < 6:
        process = torture.start(inputs, tmp_path / "out", 2)
        try:
            process.communicate(timeout=chance.uniform(0.1, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            torture.kill(process, alone=kills % 2 == 0)
            kills += 1
        if process.returncode == 0:
            assert torture.differences(tmp_path / "out", expected) == []
            shutil.rmtree(tmp_path / "out")
        after = finished(tmp_path / "out")
        assert not before or not after or before.items() <= after.items()
        before = after
    torture.run(inputs, tmp_path / "out", 2)
    assert torture.differences(tmp_path / "out", expected) == []
    assert before.items() <= states(tmp_path / "out").items()


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """The states of the files in the unfinished manifest."""
    try:
        unfinished = json.loads((folder / "manifest.unfinished.json").read_text())
    except FileNotFoundError:
        return {}
    names = {shard["name"] for part in unfinished["shards"].values() for shard in part}
    return {name: state for name, state in states(folder).items() if name.partition(".")[0] in names}


@pytest.fixture
def running(tmp_path):
    """A run with two workers, in its first shard, that waits for more on its standard input."""
    arguments = torture.command(Path("-"), tmp_path / "out", 2, "--shard-tokens", "100000000")
    code = "import runpy; from data.corpus import files; files.PART_BYTES = files.READ_BYTES = 3000; "
    code += "runpy.run_module('data.prepare', run_name='__main__', alter_sys=True)"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments[3:]], cwd=torture.REPOSITORY, start_new_session=True, **pipes
    )
    process.stdin.write(lines(200).encode())
    process.stdin.flush()
    until = time.monotonic() + 30
    while not (tmp_path / "out" / ".train-00000.bin.partial").exists():
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


def test_ctrl_c_leaves_no_worker_and_no_partial_file(tmp_path, running):
    assert len(workers_of(running)) == 2
    os.killpg(running.pid, signal.SIGINT)  # to all processes, like a terminal
    stderr = running.communicate(timeout=30)[1].decode()
    assert running.returncode == 130
    assert "data.prepare: interrupted; the same command resumes" in stderr and "Traceback" not in stderr
    torture.wait_until_gone(running.pid)
    assert set(tree(tmp_path / "out")) == {"sentencepiece.bpe.model"}


def test_ctrl_c_at_any_moment(tmp_path, various):
    """At random moments, from the start of the first worker."""
    chance = random.Random()
    for _ in range(4):
        process = torture.start(various[0], tmp_path / "out", 2)
        until = time.monotonic() + 30
        while not workers_of(process) and process.poll() is None:
            assert time.monotonic() < until
        time.sleep(chance.choice([0, 0.05, 0.1, chance.uniform(0, 0.5 * various[2])]))
        with contextlib.suppress(ProcessLookupError):  # it may have finished
            os.killpg(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=30)[1]
        assert process.returncode in (0, 130) and "Traceback" not in stderr, stderr
        torture.wait_until_gone(process.pid)
        assert not list((tmp_path / "out").glob(".*"))
    torture.run(various[0], tmp_path / "out", 2)
    assert torture.differences(tmp_path / "out", various[1]) == []


def test_a_killed_worker_is_an_error(tmp_path, running):
    os.kill(workers_of(running)[0], signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        running.stdin.write(lines(200).encode())
    stderr = running.communicate(timeout=30)[1].decode()  # closes its standard input
    assert running.returncode == 2 and "Traceback" not in stderr
    assert "data.prepare: A worker was killed, probably because memory ran out. Use fewer --workers." in stderr
    torture.wait_until_gone(running.pid)
    assert set(tree(tmp_path / "out")) == {"sentencepiece.bpe.model"}


def test_workers_end_with_the_main_process(running):
    torture.kill(running, alone=True)


# ---- a small corpus, prepared into the cache -------------------------------------------------------------------


def test_a_corpus_is_prepared_into_the_cache_once(tmp_path, text, capsys):
    folder = prepare_into_cache([str(text)], TOKENIZER, str(tmp_path / "cache"))
    before = states(folder)
    assert part_documents(folder, "held-out") and "tokens in" in capsys.readouterr().out
    assert prepare_into_cache([str(text)], TOKENIZER, str(tmp_path / "cache")) == folder
    assert states(folder) == before and capsys.readouterr().out == ""
    os.utime(text, ns=(1, 1))
    assert prepare_into_cache([str(text)], TOKENIZER, str(tmp_path / "cache")) != folder
    with pytest.raises(DataError, match="Standard input cannot be read twice"):
        prepare_into_cache(["-"], TOKENIZER, str(tmp_path / "cache"))
