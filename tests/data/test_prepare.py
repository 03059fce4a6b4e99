"""data.prepare: the shards hold every document that is kept, and everything that is dropped is counted."""

import gzip
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import types
import zlib
from collections import Counter
from pathlib import Path

import pytest

from data import DataError, Tokenizer, demo
from data.cli import OptionError
from data.corpus import parts
from data.corpus.summary import print_summary
from tests.data.prepared import COMPRESS, TOKENIZER, assert_refused, command, lines, make, texts, write, write_parquet
from tests.data.stored import END, encoded, manifest, part_documents, token_counts, tree
from tests.helpers import REAL_TEXT, REAL_TOKENIZER, needs

pytestmark = pytest.mark.filterwarnings("ignore:'data.prepare' found in sys.modules")


def test_the_shards_hold_the_ids_of_every_document(out, text, small_parts):
    shards = make(out, text, shard_tokens=2000)["shards"]
    assert part_documents(out) == [encoded(line) for line in texts(200)]
    assert part_documents(out, "held-out") == []
    names = {shard["name"] for part in shards.values() for shard in part}
    names = {name + end for name in names for end in (".bin", ".ends")} | {"manifest.json", "sentencepiece.bpe.model"}
    assert set(tree(out)) == names and len(shards["train"]) > 5
    assert all(2000 <= shard["tokens"] < 4000 for shard in shards["train"][:-1])
    expected = [f"held-out-{number:05}" for number in range(len(shards["train"]))]
    assert [shard["name"] for shard in shards["held-out"]] == expected


def test_the_manifest(out, text, small_parts):
    made = make(out, text, text, held_out=0.2, shard_tokens=2000, min_tokens=3)
    stored = manifest(out)
    assert stored == json.loads(json.dumps(made))
    del stored["shards"]  # part_documents checks their hashes and counts
    options = {"documents": "auto", "field": None, "min_tokens": 3, "max_unknown": 1.0, "duplicates_mb": 0}
    digest = hashlib.sha256((demo.FOLDER / "sentencepiece.bpe.model").read_bytes()).hexdigest()
    assert stored == {
        "format": "distilcamembert-corpus-2",
        "tokenizer": {"sha256": digest, "words": len(TOKENIZER)},
        "dtype": "<u2",
        "options": options | {"drop_control": False, "held_out": 0.2, "shard_tokens": 2000},
        "sources": 2 * [{"name": str(text), "size": text.stat().st_size}],
        "hold_out": "documents",
        "read_as": {"line": 2},
        "notes": [],
        "counts": {},
        "damaged": [],
        "lost_lines": {},
        "token_counts": token_counts(part_documents(out)),
    }


def test_the_summary(tmp_path, out):
    write(tmp_path / "in.txt", lines(50))
    write(tmp_path / "in.jsonl", '{"text": "Un film."}\n{"body": "Un livre."}\nno JSON\n')
    write(tmp_path / "blank.txt.gz", "\n\n".join(f"{text}\n{text}" for text in texts(30)))
    result = command(out, tmp_path / "in.*", tmp_path / "blank.txt.gz", "--held-out", 0)
    assert result.returncode == 0, result
    tokens = sum(shard["tokens"] for shard in manifest(out)["shards"]["train"])
    assert result.stdout.splitlines() == [
        f"train     {tokens:,} tokens in 81 documents, 1 shard",
        "held-out  0 tokens in 0 documents, 1 shard",
        "read as   JSON lines (1 file), one document per line (1 file), documents separated by blank lines (1 file)",
        "note      1 JSON lines without a text; 1 lines that are not JSON",
    ]
    assert manifest(out)["counts"] == {"JSON lines without a text": 1, "lines that are no JSON": 1}


def test_a_document_is_the_ids_of_its_paragraphs(tmp_path, out):
    path = write(tmp_path / "a.txt", "Un film.\nUn livre.\n\n Deux\u00a0films \n<mask> et\u200bpuis\n\n\x01\x02\n\nFin")
    made = make(out, path, documents="blank")
    documents = [["Un film.", "Un livre."], [" Deux films ", "<mask> et puis"], ["Fin"]]
    expected = [[i for ids in TOKENIZER.encode_plain(paragraphs) for i in ids] for paragraphs in documents]
    assert part_documents(out) == expected
    assert made["counts"] == {"documents dropped, being empty": 1, "paragraphs with control characters": 1}


def test_every_format_and_compression_gives_the_same_documents(tmp_path, monkeypatch):
    as_json = "".join(json.dumps({"content": text}) + "\n" for text in texts(60))
    paths = [write(tmp_path / f"a.txt{suffix}", lines(60)) for suffix in COMPRESS]
    paths += [write(tmp_path / f"b.json{suffix}", as_json) for suffix in COMPRESS]
    paths += [write_parquet(tmp_path / "c.parquet", {"text": texts(60)}), "-"]
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(lines(60).encode()))))
    for number, path in enumerate(paths):
        make(tmp_path / str(number), path)
        assert part_documents(tmp_path / str(number)) == [encoded(text) for text in texts(60)], path


@needs(REAL_TOKENIZER, REAL_TEXT)
def test_real_text_with_the_real_tokenizer(tmp_path, out):
    real = Tokenizer(REAL_TOKENIZER)
    sample = min(REAL_TEXT.rglob("*.txt")).read_bytes()[:300_000].rpartition(b"\n")[0]
    path = write(tmp_path / "a.txt", sample)
    assert command(out, path, "--documents", "line", tokenizer=REAL_TOKENIZER).returncode == 0
    found = [tuple(each) for part in ("train", "held-out") for each in part_documents(out, part)]
    expected = [tuple(real.encode(line)[1:-1]) for line in sample.decode().splitlines() if line.strip()]
    assert Counter(found) == Counter(filter(None, expected)) and len(found) > 100


def test_only_documents_with_fewer_tokens_are_dropped(out, text):
    documents = [encoded(line) for line in texts(200)]
    least = sorted(map(len, documents))[100]  # several have exactly this length
    made = make(out, text, min_tokens=least)
    assert part_documents(out) == [each for each in documents if len(each) >= least]
    assert made["counts"] == {"documents dropped, being short": sum(len(each) < least for each in documents)}


@pytest.mark.parametrize("most", [0.0, 0.25, 0.5, 0.99, 1.0])
def test_only_documents_with_more_unknown_tokens_are_dropped(tmp_path, out, most):
    texts = ["un film", "un film ¤ et", "un ¤", "¤", "un film ¤ et un ¤ <unk>", "<unk>", "<unk> <unk> un film"]
    documents = [encoded(text) for text in texts]
    kept = [ids for ids in documents if ids.count(TOKENIZER.unk_id) <= most * len(ids)]
    dropped = len(documents) - len(kept)
    assert (kept and dropped) or most >= 0.5
    made = make(out, write(tmp_path / "a.txt", "\n".join(texts)), max_unknown=most)
    assert part_documents(out) == kept
    assert made["counts"] == ({"documents dropped, being unknown": dropped} if dropped else {})


def test_paragraphs_with_control_characters_are_dropped_on_request(tmp_path, out):
    path = write(tmp_path / "a.txt", "Un film.\nUn\x00 livre.\n\nDeux\x1b[0m films.\n\nUn\tlivre.\x0b\n\nFin.")
    made = make(out, path, documents="blank", drop_control=True)
    assert part_documents(out) == [encoded("Un film."), encoded("Fin.")]
    assert made["counts"] == {"paragraphs with control characters dropped": 3}
    made = make(tmp_path / "all", path, documents="blank")
    assert len(part_documents(tmp_path / "all")) == 4
    assert made["counts"] == {"paragraphs with control characters": 3}


def counted(documents) -> Counter:
    return Counter(map(tuple, documents))


def test_the_held_out_documents_do_not_depend_on_the_others_or_the_order(tmp_path, small_parts):
    expected = counted(encoded(text) for text in texts(600) if zlib.crc32(text.encode()) / 2**32 < 0.1)
    assert 30 < expected.total() < 90
    thirds = [texts(600)[start : start + 200] for start in (0, 200, 400)]
    paths = [write(tmp_path / f"{n}.txt", "".join(f"{text}\n" for text in third)) for n, third in enumerate(thirds)]
    for name, order in {"forwards": paths, "backwards": paths[::-1], "again": paths}.items():
        make(tmp_path / name, *order, held_out=0.1, shard_tokens=5000, documents="line")
        assert counted(part_documents(tmp_path / name, "held-out")) == expected
        assert counted(part_documents(tmp_path / name)) + expected == counted(encoded(text) for text in texts(600))
    make(tmp_path / "one", paths[1], held_out=0.1)
    found = counted(part_documents(tmp_path / "one", "held-out"))
    assert found == expected & counted(encoded(text) for text in thirds[1])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_held_out_fraction(tmp_path, out, share):
    """Within four standard deviations, which 4,000 random draws exceed once in 16,000 times."""
    texts = "".join(f"{number} films\n" for number in range(4000))
    made = make(out, write(tmp_path / "a.txt", texts), held_out=share)
    held_out, train = (sum(shard["documents"] for shard in made["shards"][part]) for part in ("held-out", "train"))
    assert held_out + train == 4000
    assert abs(held_out - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_wrong_input_is_counted_and_nothing_else_is_lost(tmp_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("outside") / "out"
    good = "".join(f"{text}\r\n" for text in texts(20)).encode()
    write(tmp_path / "broken.txt", good + b"cass\xc3\n\x80\n" + "à moitié".encode()[:-1] + b"\n" + "à".encode())
    write(tmp_path / "mixed.txt", b"un film\rdeux films\r\ntrois films\n\n\nquatre films")
    write(tmp_path / "nul.txt", b"un\x00 film\n\x01deux\x0b\n")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / "rows.jsonl", b'{"text": "un livre"}\n{"body": 3}\n{"text": \n[]\n')
    compressed = gzip.compress(lines(200).encode())
    (tmp_path / "cut.txt.gz").write_bytes(compressed[: len(compressed) // 2])
    (tmp_path / "loop").symlink_to(tmp_path)
    result = command(out, tmp_path, "--held-out", 0)
    assert result.returncode == 0 and "Traceback" not in result.stderr
    stored = manifest(out)
    assert stored["counts"].pop("lines that are not UTF-8") in (3, 4)  # 4: the archive ends inside a character
    expected = {"JSON lines without a text": 2, "lines that are no JSON": 1, "paragraphs with control characters": 2}
    assert stored["counts"] == expected
    assert [Path(damage["source"]).name for damage in stored["damaged"]] == ["cut.txt.gz"]
    assert re.search("warning: .*cut.txt.gz was not read to the end: .*ended before the end-of-stream", result.stderr)
    found = part_documents(out)
    expected = [encoded(text) for text in [*texts(20), "à"]]
    assert found[: len(expected)] == expected
    end = found.index(encoded("un film"))  # of the archive
    kept = found[len(expected) : end]
    assert 50 < len(kept) <= 200 and kept[:-1] == [encoded(text) for text in texts(200)][: len(kept) - 1]
    rest = ["un film", "deux films", "trois films", "quatre films", "un\x00 film", "deux", "un livre"]
    assert found[end:] == [encoded(text) for text in rest]


def test_a_very_long_line_is_split_and_counted(tmp_path, out, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1000)
    monkeypatch.setattr(parts, "MAX_DOCUMENT_BYTES", 5000)
    words = " ".join(texts(200))
    made = make(out, write(tmp_path / "a.txt", f"un film\n{words}\nun livre\n"))
    first, *middle, last = part_documents(out)
    assert (first, last) == (encoded("un film"), encoded("un livre"))
    assert [i for document in middle for i in document] == encoded(words)
    assert made["counts"] == {"documents cut, being longer than 16 MB": len(words.encode()) // 5000}


NO_TEXT = {b"": "", b"\n \n\t\r\n": "", b"     \n\xff\n\xfe\n": "2 lines that are not UTF-8"}
NO_TEXT |= {b"\x01\n\x02\x03": "2 empty documents dropped; 2 paragraphs with control characters"}


@pytest.mark.parametrize("content", NO_TEXT)
def test_a_corpus_without_text_is_an_error_and_leaves_nothing(tmp_path, out, content):
    path = write(tmp_path / "a.txt", content)
    out.mkdir()
    (out / ".keep").write_text("mine")
    assert NO_TEXT[content] in assert_refused(command(out, path), "The corpus has no usable text")
    assert set(tree(out)) == {".keep"}
    write(path, "un film\n")
    assert command(out, path).returncode == 0


def test_damage_is_shown_also_when_nothing_usable_remains(tmp_path, out):
    write(tmp_path / "a.txt.gz", lines(200))
    (tmp_path / "a.txt.gz").write_bytes((tmp_path / "a.txt.gz").read_bytes()[:30])
    write(tmp_path / "b.jsonl", '{"texte": "un film"}\n')
    write(tmp_path / "c.png", b"\x89PNG\r\n\x1a\n")
    error = assert_refused(command(out, tmp_path, "--min-tokens", 99), "The corpus has no usable text")
    for reason in (
        r"1 JSON lines without a text",
        r"a.txt.gz was not read to the end: Comp.*marker",
        "c.png is an image",
    ):
        assert re.search(reason, error), error
    assert tree(out) == {}
    assert_refused(command(out, tmp_path / "c.png"), "c.png is an image")
    (tmp_path / "only").mkdir()
    (tmp_path / "c.png").rename(tmp_path / "only" / "c.png")
    assert_refused(command(out, tmp_path / "only"), "no file that can be read. .*c.png is an image")


def pipe(monkeypatch, content: str) -> None:
    """As standard input."""
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content.encode()))))


def test_what_standard_input_holds_is_told_from_its_bytes(tmp_path, monkeypatch):
    as_json = "".join(json.dumps({"body": text}) + "\n" for text in texts(60))
    as_table = "id,body\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(texts(60)))
    for number, content in enumerate((as_json, as_table, json.dumps([{"body": text} for text in texts(60)], indent=1))):
        pipe(monkeypatch, content)
        make(tmp_path / str(number), "-", field="body")
        assert part_documents(tmp_path / str(number)) == [encoded(text) for text in texts(60)]


def test_standard_input_that_cannot_be_read_is_called_so(out, monkeypatch):
    pipe(monkeypatch, "%PDF-1.7\n")
    with pytest.raises(DataError, match="standard input is a PDF document"):
        make(out, "-")


def test_a_field_of_plain_text_is_an_error(tmp_path, out, text, monkeypatch):
    assert_refused(command(out, text, "--field", "body"), "--field body has no meaning: the input is plain text")
    for content in (lines(60), ""):
        pipe(monkeypatch, content)
        with pytest.raises(OptionError, match="--field body has no meaning"):
            make(out, "-", field="body")
        assert not list(out.glob("*.bin"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(text)
    assert_refused(command(out, tmp_path / "a.tar", "--field", "body"), "--field body has no meaning")
    assert not list(out.glob("*.bin"))


def test_few_documents_are_held_out_by_block(tmp_path, out, capsys):
    path = write(tmp_path / "a.txt", " ".join(texts(200)))
    made = make(out, path, held_out=0.01)
    ids = [i for part in ("train", "held-out") for document in part_documents(out, part) for i in [*document, END]]
    assert (made["hold_out"], made["token_counts"]) == (
        "blocks",
        token_counts(part_documents(out) + part_documents(out, "held-out")),
    )
    print_summary(made)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"corpus    {len(ids):,} tokens in 1 document, 2 shards"
    assert second == "held-out  1.0% of the blocks, as the documents are too few to hold out whole ones"
    many = write(tmp_path / "b.txt", lines(600))
    assert make(tmp_path / "many", many, held_out=0.01)["hold_out"] == "documents"
    assert make(tmp_path / "none", path, held_out=0.0)["hold_out"] == "documents"


WRONG_INPUTS = {"nothing.txt": "There is no corpus", "*.nothing": "There is no corpus", "a.pdf": "is a PDF document"}
WRONG_INPUTS |= {"empty": "The folder .*empty has no", "- -": "only once"}
WRONG_INPUTS |= {"a.txt b.parquet": "b.parquet has no column text or content"}


@pytest.mark.parametrize(("names", "message"), WRONG_INPUTS.items())
@pytest.mark.parametrize("workers", [1, 2])
def test_wrong_inputs_are_errors(tmp_path, out, names, message, workers):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.pdf", b"%PDF-1.7")
    write(tmp_path / "a.txt", b"un film\n")
    if "b.parquet" in names:
        write_parquet(tmp_path / "b.parquet", {"title": ["un film"]})
    with pytest.raises(DataError, match=message):
        make(out, *(name if name == "-" else tmp_path / name for name in names.split()), workers=workers)


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path, out):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(path).write_text("un film\n")
    for _ in range(2):
        result = command(out, path, "--held-out", 0)
        assert result.returncode == 0, result
        assert [source["name"] for source in manifest(out)["sources"]] == [path]


WRONG_OPTIONS = [
    ("workers", 0, "--workers must be at least 1"),
    ("shard-tokens", 999, "--shard-tokens must be at"),
    ("max-unknown", "nan", "--max-unknown must be"),
    ("held-out", -0.1, "--held-out must be"),
    ("held-out", 1.0, "--held-out must be at least 0 and at most 0.9"),
    ("duplicates-mb", 10**7, "--duplicates-mb must be"),
    ("field", "", "--field is empty"),
    ("tokenizer", "nothing", "There is no tokenizer nothing"),
    ("tokenizer", __file__, "is not a SentencePiece"),
]


@pytest.mark.parametrize(("option", "value", "message"), WRONG_OPTIONS)
def test_wrong_options_are_errors(out, text, option, value, message):
    assert_refused(command(out, text, f"--{option}", value), message)
    assert not out.exists()
