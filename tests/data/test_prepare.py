"""Raw text to shards: the same bytes whatever is done to a run, everything said that is not in them."""

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
from data.corpus import files as corpus
from data.download.hub import shards
from data.prepare import prepare_into_cache
from tests import torture_prepare as torture
from tests.data.prepared import (
    PACKINGS,
    TOKENIZER,
    command,
    encoded,
    lines,
    make,
    manifest,
    part_documents,
    refused,
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
    monkeypatch.setattr(corpus, "PART_BYTES", 3000)


@pytest.fixture
def text(tmp_path):
    return write(tmp_path / "a.txt", lines(200))


def shard_files(manifest: dict) -> set[str]:
    """Every file that a finished corpus has."""
    names = {shard["name"] for part in manifest["shards"].values() for shard in part}
    return {"manifest.json", "sentencepiece.bpe.model"} | {name + end for name in names for end in (".bin", ".ends")}


# ---- what comes out --------------------------------------------------------------------------------------------


def test_the_shards_hold_every_document_as_the_tokenizer_has_it(tmp_path, text, small_parts):
    made = make(tmp_path / "out", text, shard_tokens=2000)
    assert part_documents(tmp_path / "out", "train") == [encoded(line) for line in texts(200)]
    assert part_documents(tmp_path / "out", "held-out") == []
    assert set(tree(tmp_path / "out")) == shard_files(made) and len(made["shards"]["train"]) > 5
    assert all(2000 <= shard["tokens"] < 4000 for shard in made["shards"]["train"][:-1])
    assert [shard["name"] for shard in made["shards"]["held-out"]] == [
        f"held-out-{number:05}" for number in range(len(made["shards"]["train"]))
    ]


def test_the_manifest_says_what_the_corpus_is(tmp_path, text, small_parts):
    made = make(tmp_path / "out", text, tmp_path / "a.txt", held_out=0.2, shard_tokens=2000, min_tokens=3)
    said = manifest(tmp_path / "out")
    assert said == json.loads(json.dumps(made))
    documents = part_documents(tmp_path / "out", "train")  # which checks every hash and count of a shard
    tokens = Counter(i for document in documents for i in [*document, TOKENIZER.eos_id])
    digest = hashlib.sha256((demo.FOLDER / "sentencepiece.bpe.model").read_bytes()).hexdigest()
    size = text.stat().st_size
    del said["shards"]
    assert said == {
        "format": "distilcamembert-corpus-1",
        "tokenizer": {"sha256": digest, "words": len(TOKENIZER)},
        "dtype": "<u2",
        "options": {
            "documents": "auto", "field": None, "min_tokens": 3, "max_unknown": 1.0, "duplicates_mb": 0,
            "drop_control": False, "held_out": 0.2, "shard_tokens": 2000,
        },
        "sources": 2 * [{"name": str(text), "kind": "line", "size": size}],
        "counts": {},
        "damaged": [],
        "token_counts": [tokens[i] for i in range(len(TOKENIZER))],
    }  # fmt: skip


def test_what_the_command_says(tmp_path):
    write(tmp_path / "in.txt", lines(50))
    write(tmp_path / "in.jsonl", '{"text": "Un film."}\n{"body": "Un livre."}\nno JSON\n')
    write(tmp_path / "blank.txt.gz", "\n\n".join(f"{text}\n{text}" for text in texts(30)))
    result = command(tmp_path / "out", tmp_path / "in.*", tmp_path / "blank.txt.gz", "--held-out", 0)
    assert result.returncode == 0, result
    tokens = sum(shard["tokens"] for shard in manifest(tmp_path / "out")["shards"]["train"])
    assert result.stdout.splitlines() == [
        f"train     {tokens:,} tokens in 81 documents, 1 shards",
        "held-out  0 tokens in 0 documents, 1 shards",
        "read as   JSON lines (1 files), a document a line (1 files), documents between blank lines (1 files)",
        "note      1 JSON lines without a text; 1 lines that are no JSON",
    ]
    assert manifest(tmp_path / "out")["counts"] == {"JSON lines without a text": 1, "lines that are no JSON": 1}


def test_paragraphs_follow_one_another_in_their_document(tmp_path):
    path = write(tmp_path / "a.txt", "Un film.\nUn livre.\n\n Deux\u00a0films \n<mask> et\u200bpuis\n\n\x01\x02\n\nFin")
    made = make(tmp_path / "out", path, documents="blank")
    documents = [["Un film.", "Un livre."], [" Deux films ", "<mask> et puis"], ["Fin"]]
    expected = [[i for ids in TOKENIZER.encode_plain(paragraphs) for i in ids] for paragraphs in documents]
    assert part_documents(tmp_path / "out", "train") == expected
    assert made["counts"] == {"documents dropped, being empty": 1, "paragraphs with control characters": 1}


def test_the_same_documents_from_whatever_they_are_packed_in(tmp_path, monkeypatch):
    expected = [encoded(text) for text in texts(60)]
    as_json = "".join(json.dumps({"content": text}) + "\n" for text in texts(60))
    paths = [write(tmp_path / f"a.txt{suffix}", lines(60)) for suffix in PACKINGS]
    paths += [write(tmp_path / f"b.json{suffix}", as_json) for suffix in PACKINGS]
    paths.append(write_parquet(tmp_path / "c.parquet", {"text": texts(60)}))
    for number, path in enumerate(paths):
        make(tmp_path / str(number), path)
        assert part_documents(tmp_path / str(number), "train") == expected, path
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(lines(60).encode()))))
    make(tmp_path / "stdin", "-")
    assert part_documents(tmp_path / "stdin", "train") == expected


@needs(REAL_TOKENIZER, REAL_TEXT)
def test_real_text_by_the_real_tokenizer_is_what_it_encodes(tmp_path):
    real = Tokenizer(REAL_TOKENIZER)
    (path,) = [path for path in sorted(REAL_TEXT.rglob("*.txt"))][:1]
    sample = path.read_bytes()[:300_000].rpartition(b"\n")[0]
    path = write(tmp_path / "a.txt", sample)
    assert command(tmp_path / "out", path, "--documents", "line", tokenizer=REAL_TOKENIZER).returncode == 0
    found = [tuple(each) for part in ("train", "held-out") for each in part_documents(tmp_path / "out", part)]
    expected = [tuple(real.encode(line)[1:-1]) for line in sample.decode().splitlines() if line.strip()]
    assert Counter(found) == Counter(filter(None, expected)) and len(found) > 100


# ---- what is kept ----------------------------------------------------------------------------------------------


def test_shorter_documents_are_dropped_and_no_others(tmp_path, text):
    documents = [encoded(line) for line in texts(200)]
    least = sorted(map(len, documents))[100]  # some have just as many
    made = make(tmp_path / "out", text, min_tokens=least)
    assert part_documents(tmp_path / "out", "train") == [each for each in documents if len(each) >= least]
    assert made["counts"] == {"documents dropped, being short": sum(len(each) < least for each in documents)}


@pytest.mark.parametrize("most", [0.0, 0.25, 0.5, 0.99, 1.0])
def test_documents_with_more_unknown_are_dropped_and_no_others(tmp_path, most):
    documents = ["un film", "un film ¤ et", "un ¤", "¤", "un film ¤ et un ¤ <unk>", "<unk>", "<unk> <unk> un film"]
    shares = [encoded(document).count(TOKENIZER.unk_id) / len(encoded(document)) for document in documents]
    assert len({share <= most for share in shares}) == 2 or most >= 0.5  # some are kept, some are not
    made = make(tmp_path / "out", write(tmp_path / "a.txt", "\n".join(documents)), max_unknown=most)
    kept = [encoded(document) for document, share in zip(documents, shares) if share <= most]
    assert part_documents(tmp_path / "out", "train") == kept
    dropped = len(documents) - len(kept)
    assert made["counts"] == ({"documents dropped, being unknown": dropped} if dropped else {})


def test_paragraphs_with_control_characters_are_dropped_if_one_wants(tmp_path):
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


def test_the_same_documents_are_held_out_whatever_else_there_is_and_in_whatever_order(tmp_path, small_parts):
    first = [text for text in texts(600) if zlib.crc32(text.encode()) / 2**32 < 0.1]
    paths = [
        write(tmp_path / f"{number}.txt", "".join(f"{text}\n" for text in texts(600)[start : start + 200]))
        for number, start in enumerate((0, 200, 400))
    ]
    expected = Counter(tuple(encoded(text)) for text in first)
    assert 30 < expected.total() < 90
    orders = {"forth": paths, "back": paths[::-1], "blank": paths}
    for name, order in orders.items():
        make(tmp_path / name, *order, held_out=0.1, shard_tokens=5000, documents="line")
        assert held_out(tmp_path / name) == expected
        train = Counter(map(tuple, part_documents(tmp_path / name, "train")))
        assert train + expected == Counter(tuple(encoded(text)) for text in texts(600))
    make(tmp_path / "one", paths[1], held_out=0.1)
    assert held_out(tmp_path / "one") == expected & Counter(tuple(encoded(text)) for text in texts(600)[200:400])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_share_that_is_held_out_is_the_one_asked_for(tmp_path, share):
    """Within four standard deviations of 4,000 drawings: by chance, once in 16,000 corpora."""
    texts = "".join(f"{number} films\n" for number in range(4000))
    made = make(tmp_path / "out", write(tmp_path / "a.txt", texts), held_out=share)
    held_out, train = (sum(shard["documents"] for shard in made["shards"][part]) for part in ("held-out", "train"))
    assert held_out + train == 4000
    assert abs(held_out - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_nothing_is_held_out_where_nothing_should_be(tmp_path, text):
    made = make(tmp_path / "out", text, held_out=0.0)
    assert sum(shard["documents"] for shard in made["shards"]["held-out"]) == 0
    with pytest.raises(ValueError, match="--held-out must be at least 0 and below 1"):
        make(tmp_path / "all", text, held_out=1.0)


# ---- bad input -------------------------------------------------------------------------------------------------


def test_bad_input_is_counted_and_nothing_else_is_lost(tmp_path):
    good = "".join(f"{text}\r\n" for text in texts(20)).encode()
    write(tmp_path / "broken.txt", good + b"cass\xc3\n\x80\n" + "à moitié".encode()[:-1] + b"\n" + "à".encode())
    write(tmp_path / "mixed.txt", b"un film\rdeux films\r\ntrois films\n\n\nquatre films")
    write(tmp_path / "nul.txt", b"un\x00 film\n\x01deux\x0b\n")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / "rows.jsonl", b'{"text": "un livre"}\n{"body": 3}\n{"text": \n[]\n')
    write(tmp_path / "utf16.txt", good.decode().encode("utf-16"))
    packed = gzip.compress(lines(200).encode())
    (tmp_path / "cut.txt.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "loop").symlink_to(tmp_path)
    result = command(tmp_path.parent / "out", tmp_path, "--held-out", 0)
    assert result.returncode == 0 and "Traceback" not in result.stderr
    said = manifest(tmp_path.parent / "out")
    assert said["counts"].pop("lines that are not UTF-8") in (3, 4)  # 4: the archive is cut inside a character
    assert said["counts"] == {
        "JSON lines without a text": 2, "lines that are no JSON": 1, "paragraphs with control characters": 2
    }  # fmt: skip
    assert [Path(damage["source"]).name for damage in said["damaged"]] == ["cut.txt.gz", "utf16.txt"]
    for name, why in (("cut.txt.gz", "ended before the end-of-stream"), ("utf16.txt", "it is UTF-16")):
        assert re.search(f"warning: .*{name} was read up to where it is damaged: .*{why}", result.stderr)
    found = part_documents(tmp_path.parent / "out", "train")
    expected = [encoded(text) for text in [*texts(20), "à"]]
    assert found[: len(expected)] == expected
    of_the_archive = next(place for place, ids in enumerate(found) if ids == encoded("un film"))
    kept = found[len(expected) : of_the_archive]
    assert 50 < len(kept) <= 200 and kept[:-1] == [encoded(text) for text in texts(200)][: len(kept) - 1]
    rest = ["un film", "deux films", "trois films", "quatre films", "un\x00 film", "deux", "un livre"]
    assert found[of_the_archive:] == [encoded(text) for text in rest]


def test_a_very_long_line_is_cut_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART_BYTES", 1000)
    monkeypatch.setattr(corpus, "LONGEST", 5000)
    words = " ".join(texts(200))
    made = make(tmp_path / "out", write(tmp_path / "a.txt", f"un film\n{words}\nun livre\n"))
    documents = part_documents(tmp_path / "out", "train")
    assert documents[0] == encoded("un film") and documents[-1] == encoded("un livre")
    assert [i for document in documents[1:-1] for i in document] == encoded(words)
    assert made["counts"] == {"documents cut, being longer than 16 MB": len(words.encode()) // 5000}


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", ""), (b"\n \n\t\r\n", ""), (b"\xff\n\xfe\n", "2 lines that are not UTF-8"),
     (b"\x01\n\x02\x03", "2 documents dropped, being empty; 2 paragraphs with control characters"),
     ("é".encode("utf-16"), "")],
)  # fmt: skip
def test_no_text_at_all_is_a_sentence_and_leaves_nothing(tmp_path, content, why):
    write(tmp_path / "a.txt", content)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".keep").write_text("mine")
    said = refused(command(tmp_path / "out", tmp_path / "a.txt"), "The corpus has no usable line of text")
    assert why in said
    assert set(tree(tmp_path / "out")) == {".keep"}
    write(tmp_path / "a.txt", "un film\n")
    assert command(tmp_path / "out", tmp_path / "a.txt").returncode == 0


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (["nothing.txt"], "There is no corpus"), (["*.nothing"], "There is no corpus"), (["."], "folder . has no"),
        (["a.pdf"], "is no text"), (["a.txt", "b.parquet"], "b.parquet has no column text or content"),
        (["-", "-"], "once"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("workers", [1, 2])
def test_inputs_that_are_none_are_a_sentence(tmp_path, monkeypatch, inputs, sentence, workers):
    if sentence.startswith("folder"):
        inputs, sentence = [tmp_path / "empty"], "The folder .*empty has no"
        (tmp_path / "empty").mkdir()
    write(tmp_path / "a.pdf", b"%PDF")
    write(tmp_path / "a.txt", b"un film\n")
    if "b.parquet" in inputs:
        write_parquet(tmp_path / "b.parquet", {"title": ["un film"]})
    with pytest.raises(DataError, match=sentence):
        make(tmp_path / "out", *(name if name == "-" else tmp_path / name for name in inputs), workers=workers)


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(path).write_text("un film\n")
    result = command(tmp_path / "out", path, "--held-out", 0)
    assert result.returncode == 0, result
    assert [source["name"] for source in manifest(tmp_path / "out")["sources"]] == [path]
    assert command(tmp_path / "out", path, "--held-out", 0).returncode == 0


# ---- folders that hold something -------------------------------------------------------------------------------


def test_a_finished_corpus_is_left_as_it_is(tmp_path, text):
    first = command(tmp_path / "out", text)
    before = states(tmp_path / "out")
    again = command(tmp_path / "out", text, "--workers", 2)  # which decides nothing
    assert (again.returncode, again.stdout) == (0, first.stdout) == (0, again.stdout)
    assert states(tmp_path / "out") == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--held-out", 0.2], "--held-out"), (["--min-tokens", 2], "--min-tokens"), (["--field", "x"], "--field"),
        (["--documents", "blank"], "--documents"), (["--duplicates-mb", 1], "--duplicates-mb"),
        (["--drop-control", "--shard-tokens", 9999], "--drop-control, --shard-tokens"),
        (["--max-unknown", 0.5], "--max-unknown"), (["more.txt"], "sources"), (["tokenizer"], "tokenizer"),
        (["grown"], "sources"),
    ],
)  # fmt: skip
def test_another_corpus_than_the_one_in_the_folder_is_refused(tmp_path, text, small_parts, finished, change, named):
    inputs, arguments = [text], ["--shard-tokens", 1000]
    assert command(tmp_path / "out", *inputs, *arguments).returncode == 0
    if not finished:
        unfinish(tmp_path / "out", 3)
    before, tokenizer = tree(tmp_path / "out"), demo.FOLDER
    if change == ["tokenizer"]:
        tokenizer, change = tmp_path / "other.model", []
        with tokenizer.open("wb") as model:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts(200)), model_writer=model, vocab_size=200, minloglevel=2
            )
    elif change == ["more.txt"]:
        inputs.append(write(tmp_path / "more.txt", "un film\n"))
        change = []
    elif change == ["grown"]:
        text.write_text(lines(200) + "un film\n")
        change = []
    result = command(tmp_path / "out", *inputs, *arguments, *change, tokenizer=tokenizer)
    said = refused(result, f"out holds a corpus that was prepared with other {named}. Choose another --out")
    assert said.count("--") == named.count("--") + 1
    assert tree(tmp_path / "out") == before


def unfinish(folder: Path, shards: int) -> None:
    """As if the run had been killed after so many shards."""
    said = manifest(folder)
    place = sum(shard["documents"] for part in said["shards"].values() for shard in part[:shards])
    source = Path(said["sources"][0]["name"])
    offset = len(b"".join(source.read_bytes().splitlines(keepends=True)[:place]))
    names = {"manifest.json"}
    for part in said["shards"].values():
        names |= {shard["name"] + end for shard in part[shards:] for end in (".bin", ".ends")}
        del part[shards:]
    documents = [each for shard in said["shards"]["train"] for each in shard_documents(folder, shard)]
    tokens = Counter(i for document in documents for i in [*document, TOKENIZER.eos_id])
    said["token_counts"] = [tokens[i] for i in range(len(TOKENIZER))]
    options = dict(format=said["format"], tokenizer=said["tokenizer"], dtype=said["dtype"], options=said["options"])
    ordered = options | {"sources": said["sources"], "position": [0, offset]} | said
    for name in names:
        (folder / name).unlink()
    (folder / "manifest.unfinished.json").write_text(json.dumps(ordered, indent=1) + "\n")


def test_a_run_goes_on_after_the_finished_shards_and_leaves_those_alone(tmp_path, text, small_parts):
    made = make(tmp_path / "whole", text, shard_tokens=1000, held_out=0.2)
    count = len(made["shards"]["train"])
    assert count >= 8
    for finished in (1, count // 2, count - 1):
        out = tmp_path / str(finished)
        shutil.copytree(tmp_path / "whole", out)
        unfinish(out, finished)
        before = states(out)
        (out / f"train-{finished:05}.bin").write_bytes(b"finished, but not said to be")
        (out / f".train-{finished:05}.ends.partial").write_bytes(b"begun")
        make(out, text, shard_tokens=1000, held_out=0.2)
        assert tree(out) == tree(tmp_path / "whole")
        del before["manifest.unfinished.json"]
        assert len(before) == 4 * finished + 1 and before.items() <= states(out).items()


@pytest.mark.parametrize("name", ["notes.txt", "train.py", "training-data.txt", "held-out-00000.csv", "a.safetensors"])
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path, text, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    refused(command(tmp_path / "out", text), f"{tmp_path}/out holds {name}, and no corpus. Choose another --out")
    assert tree(tmp_path / "out") == {name: b"mine"}


def test_what_a_run_left_that_was_killed_before_its_first_shard_is_no_obstacle(tmp_path, text):
    make(tmp_path / "whole", text)
    (tmp_path / "out").mkdir()
    leftovers = ["train-00000.bin", ".train-00000.ends.partial", ".manifest.unfinished.json.partial", "seen-00000.u8"]
    for name in [*leftovers, "sentencepiece.bpe.model", ".sentencepiece.bpe.model.partial", ".train-00009.bin.partial"]:
        (tmp_path / "out" / name).write_bytes(b"begun")
    make(tmp_path / "out", text)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_what_a_run_left_that_was_killed_at_its_last_step_is_cleared(tmp_path, text):
    make(tmp_path / "out", text)
    whole = tree(tmp_path / "out")
    for name in ("manifest.unfinished.json", "seen-00000.u8"):
        (tmp_path / "out" / name).write_bytes(whole["manifest.json"])
    make(tmp_path / "out", text)
    assert tree(tmp_path / "out") == whole


def test_a_file_in_the_place_of_the_folder_is_a_sentence(tmp_path, text):
    refused(command(text, text), f"{text} cannot be written: File exists")
    refused(command(text / "out", text), "cannot be written: Not a directory")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.unfinished.json"])
def test_a_damaged_manifest_is_a_sentence(tmp_path, text, small_parts, name):
    make(tmp_path / "out", text, shard_tokens=1000)
    if name != "manifest.json":
        unfinish(tmp_path / "out", 2)
    whole = (tmp_path / "out" / name).read_bytes()
    other = json.loads(whole)
    spoilt = [b"", whole[:-9], b"[" * 99_999, b"[]", b"{}", b"3", b"\xff", whole.replace(b"corpus-1", b"corpus-2")]
    for key in other:
        spoilt.append(json.dumps({each: value for each, value in other.items() if each != key}).encode())
        spoilt.append(json.dumps(other | {key: 3}).encode())
    for content in spoilt:
        (tmp_path / "out" / name).write_bytes(content)
        if name == "manifest.json" and b'"position": 3' in content:
            continue
        before = tree(tmp_path / "out")
        result = command(tmp_path / "out", text, "--held-out", 0, "--shard-tokens", 1000)
        refused(result, f"{name} is no manifest of a corpus|prepared with other")
        assert tree(tmp_path / "out") == before
    (tmp_path / "out" / name).write_bytes(whole)
    make(tmp_path / "out", text, shard_tokens=1000)


def test_a_table_of_what_came_before_that_is_damaged_is_a_sentence(tmp_path, text, small_parts):
    make(tmp_path / "out", text, shard_tokens=1000, duplicates_mb=1)
    unfinish(tmp_path / "out", 2)
    for damage in (lambda path: None, lambda path: path.write_bytes(b"x" * 80)):
        damage(tmp_path / "out" / "seen-00001.u8")
        arguments = ["--held-out", 0, "--shard-tokens", 1000, "--duplicates-mb", 1]
        refused(command(tmp_path / "out", text, *arguments), "seen-00001.u8 is missing or damaged")


def test_a_folder_that_is_being_prepared_is_refused(tmp_path, text):
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    refused(command(tmp_path / "out", text), f"{tmp_path}/out is being prepared by another process")
    assert not tree(tmp_path / "out")
    os.close(handle)
    assert command(tmp_path / "out", text).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", 0], "--workers must be at least 1"), (["--shard-tokens", 999], "--shard-tokens must be at"),
        (["--max-unknown", "nan"], "--max-unknown must be"), (["--held-out", -0.1], "--held-out must be"),
        (["--duplicates-mb", 10**7], "--duplicates-mb must be"), (["--field", ""], "--field is empty"),
        (["--tokenizer", "nothing"], "There is no tokenizer nothing"),
        (["--tokenizer", __file__], "is not a SentencePiece"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_a_sentence(tmp_path, text, arguments, sentence):
    refused(command(tmp_path / "out", text, *arguments), sentence)
    assert not (tmp_path / "out").exists()


# ---- the disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["add", "finish", "write_manifest"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path, text, small_parts, monkeypatch, step, workers):
    options = dict(shard_tokens=1000, held_out=0.2, workers=workers, duplicates_mb=1)
    make(tmp_path / "whole", text, **options)
    place, calls = (prepare if step == "write_manifest" else shards.ShardFile), []
    original = getattr(place, step)

    def full(*arguments):
        calls.append(step)
        if len(calls) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, step, full)
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
def test_a_disk_that_is_really_full(tmp_path, kilobytes):
    """As `ulimit -f` has it: no file may be larger. The tokenizer is, or the shard alone."""
    text = write(tmp_path / "a.txt", lines(2500))
    arguments = torture.command(text, tmp_path / "out", 2, "--held-out", "0", "--shard-tokens", "1000000")
    limited = f"ulimit -f {kilobytes}; exec {' '.join(arguments)}"
    result = subprocess.run(["bash", "-c", limited], cwd=torture.REPOSITORY, capture_output=True, text=True, timeout=60)
    said = refused(result, "cannot be written: File too large")
    assert "the same command goes on" in said
    assert set(tree(tmp_path / "out")) <= {"sentencepiece.bpe.model"}
    result = subprocess.run(arguments, cwd=torture.REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    made = make(tmp_path / "whole", text, shard_tokens=1_000_000)
    assert 2 * made["shards"]["train"][0]["tokens"] > 300 << 10
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


# ---- workers, kills, Ctrl-C ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def various(tmp_path_factory):
    """Files of every packing, two parts in the largest -> their folder, and what is to come of them."""
    place = tmp_path_factory.mktemp("various")
    torture.write_corpus(place / "corpus", 3)
    seconds = torture.run(place / "corpus", place / "whole", 1)
    return place / "corpus", torture.content(place / "whole"), seconds


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path, various, workers):
    torture.run(various[0], tmp_path / "out", workers)
    assert torture.differences(tmp_path / "out", various[1]) == []


def test_the_bytes_are_the_same_however_often_a_run_is_killed(tmp_path, various):
    """Six kills at random moments; what is finished then is not written again."""
    inputs, expected, seconds = various
    chance, kills, said = random.Random(), 0, {}
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
        assert not said or not after or said.items() <= after.items()
        said = after
    torture.run(inputs, tmp_path / "out", 2)
    assert torture.differences(tmp_path / "out", expected) == []
    assert said.items() <= states(tmp_path / "out").items()


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """The states of the files that the unfinished manifest names."""
    try:
        said = json.loads((folder / "manifest.unfinished.json").read_text())
    except FileNotFoundError:
        return {}
    names = {shard["name"] for part in said["shards"].values() for shard in part}
    return {name: state for name, state in states(folder).items() if name.partition(".")[0] in names}


@pytest.fixture
def running(tmp_path):
    """A run with two workers that waits for more on its standard input; it has begun its first shard."""
    arguments = torture.command(Path("-"), tmp_path / "out", 2, "--shard-tokens", "100000000")
    code = "import sys; from data import corpus; corpus.PART_BYTES = corpus.READ_BYTES = 3000; import runpy; "
    code += "runpy.run_module('data.prepare', run_name='__main__', alter_sys=True)"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments[3:]], cwd=torture.REPOSITORY, start_new_session=True,
        stdin=pipe, stdout=pipe, stderr=pipe,
    )  # fmt: skip
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


def test_ctrl_c_is_a_sentence_and_leaves_no_worker_and_no_partial_file(tmp_path, running):
    assert len(workers_of(running)) == 2
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does, to all of them
    stderr = running.communicate(timeout=30)[1].decode()
    assert running.returncode == 130
    assert "data.prepare: interrupted; the same command goes on" in stderr and "Traceback" not in stderr
    torture.wait_until_gone(running.pid)
    assert set(tree(tmp_path / "out")) == {"sentencepiece.bpe.model"}


def test_ctrl_c_at_any_moment(tmp_path, various):
    """From when the first worker is being started on."""
    chance = random.Random()
    for _ in range(4):
        process = torture.start(various[0], tmp_path / "out", 2)
        until = time.monotonic() + 30
        while not workers_of(process) and process.poll() is None:
            assert time.monotonic() < until
        time.sleep(chance.choice([0, 0.05, 0.1, chance.uniform(0, 0.5 * various[2])]))
        with contextlib.suppress(ProcessLookupError):  # it can have finished
            os.killpg(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=30)[1]
        assert process.returncode in (0, 130) and "Traceback" not in stderr, stderr
        torture.wait_until_gone(process.pid)
        assert not list((tmp_path / "out").glob(".*"))
    torture.run(various[0], tmp_path / "out", 2)
    assert torture.differences(tmp_path / "out", various[1]) == []


def test_a_worker_that_is_killed_is_a_sentence_and_no_hang(tmp_path, running):
    os.kill(workers_of(running)[0], signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        running.stdin.write(lines(200).encode())
    stderr = running.communicate(timeout=30)[1].decode()  # closes its standard input
    assert running.returncode == 2 and "Traceback" not in stderr
    assert "data.prepare: A worker was killed, most likely for want of memory: fewer --workers take less." in stderr
    torture.wait_until_gone(running.pid)
    assert set(tree(tmp_path / "out")) == {"sentencepiece.bpe.model"}


def test_workers_end_with_the_process_that_started_them(running):
    torture.kill(running, alone=True)


# ---- a small corpus, prepared on the fly -----------------------------------------------------------------------


def test_a_corpus_in_the_cache_is_made_once_for_these_files_and_this_tokenizer(tmp_path, text, capsys):
    folder = prepare_into_cache([str(text)], TOKENIZER, str(tmp_path / "cache"))
    before = states(folder)
    assert part_documents(folder, "held-out") and "tokens in" in capsys.readouterr().out
    assert prepare_into_cache([str(text)], TOKENIZER, str(tmp_path / "cache")) == folder
    assert states(folder) == before and capsys.readouterr().out == ""
    os.utime(text, ns=(1, 1))
    assert prepare_into_cache([str(text)], TOKENIZER, str(tmp_path / "cache")) != folder
    with pytest.raises(DataError, match="Standard input cannot be read again"):
        prepare_into_cache(["-"], TOKENIZER, str(tmp_path / "cache"))
