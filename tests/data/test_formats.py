"""The form of a file by its bytes. Where a library writes the format, it wrote the file that is told here."""

import io
import json
import pickle
import tarfile

import numpy
import pytest
import torch
from safetensors.torch import save

from data import formats
from data.formats import (
    JSON,
    JSON_LINES,
    LIKE_JSON,
    NOT_UTF8,
    TEXT,
    contradiction,
    form_of,
    is_description,
    promised,
    refusal,
)
from tests.data.prepared import COMPRESS, lines

FRENCH = "Un été à la plage, près de l’île.\n"
LINES = "".join(json.dumps({"text": text}) + "\n" for text in lines(30).splitlines())
NAMES = {".gz": formats.GZIP, ".xz": formats.XZ, ".bz2": formats.BZIP2, ".zst": formats.ZSTD}


def tar(format: int) -> bytes:
    """An archive in one of the three formats of tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        archive.addfile(tarfile.TarInfo("é" * 120 if format == tarfile.PAX_FORMAT else "a"))
    return file.getvalue()


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
def test_compressions(suffix):
    for content in (b"", b"a", LINES.encode() * 20):
        assert form_of(COMPRESS[suffix](content)) == NAMES[suffix]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, "v7"])
def test_tar_of_every_age(format):
    archive = tar(tarfile.USTAR_FORMAT if format == "v7" else format)
    if format == "v7":  # without the magic that came in 1988
        header = archive[:257] + bytes(243) + bytes(12)
        total = sum(header[:148]) + 8 * 32 + sum(header[156:])
        archive = header[:148] + b"%06o\0 " % total + header[156:]
    assert form_of(archive) == formats.TAR and form_of(b"x" + archive[1:]) != formats.TAR


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be", "utf-16-le without its mark"])
def test_wide_encodings(encoding):
    codec, _, without = encoding.partition(" ")
    mark = "" if without or codec in ("utf-16", "utf-32") else "\ufeff"
    expected = {"utf-16": "UTF-16-LE", "utf-32": "UTF-32-LE"}.get(codec, codec.upper())
    assert form_of((mark + FRENCH * 9).encode(codec)) == expected


def test_parquet_and_arrow():
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["a"] * 300})
    writers = {formats.PARQUET: parquet.ParquetWriter, formats.ARROW_FILE: pyarrow.ipc.new_file}
    for form, open_writer in (writers | {formats.ARROW_STREAM: pyarrow.ipc.new_stream}).items():
        file = pyarrow.BufferOutputStream()
        with open_writer(file, table.schema) as writer:
            writer.write_table(table)
        assert form_of(file.getvalue().to_pybytes()) == form


def numpy_file() -> bytes:
    file = io.BytesIO()
    numpy.save(file, numpy.zeros(3))
    return file.getvalue()


FORMS = [
    (b"", formats.EMPTY),
    (FRENCH.encode(), TEXT),
    (b"\xef\xbb\xbf" + FRENCH.encode(), TEXT),
    (b"un\x00 film\n\x01deux\x0b\n", TEXT),  # control characters are counted, or dropped on request
    (FRENCH.encode("latin-1", "replace") * 9, NOT_UTF8),
    (FRENCH.encode("latin-1", "replace"), NOT_UTF8),  # a text in one line
    (("a" + "é" * formats.SAMPLE_BYTES).encode()[: formats.SAMPLE_BYTES], TEXT),  # the sample ends in a letter
    (FRENCH.encode() * 9 + FRENCH.encode("latin-1", "replace") * 3, TEXT),  # single lines are dropped and counted
    (numpy.random.default_rng(0).bytes(999), formats.BINARY),
    (save({"a": torch.zeros(3)}), "a safetensors file"),
    (numpy_file(), formats.NUMPY),
    *((pickle.dumps({"a": ["b", 1]}, protocol), "a Python pickle") for protocol in (2, 3, 4, 5)),
    (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF document"),
    (b"Rar!\x1a\x07\x01\x00", "a RAR archive"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer, not the file itself"),
    (b"\n <!doctype HTML>\n<p>", "an HTML page"),
    (b'<?xml version="1.0"?>\n<html xmlns="http://www.w3.org/1999/xhtml">', "an HTML page"),
    (b'\xef\xbb\xbf<?xml version="1.0"?>\n<TEI>', "XML"),
    (b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">', "XML"),
    (b"WARC/1.0\r\nWARC-Type: warcinfo\r\n", "a web archive (WARC)"),
    (b"1\r\n00:00:01,000 --> 00:00:02,500\r\nBonjour.\r\n", "subtitles with times"),
    (b"WEBVTT\n\n00:01.000 --> 00:02.500\nBonjour.\n", "subtitles with times"),
    (b"1\n00:00 et tout va bien.\n", TEXT),
    (b"WARC est un format\n", TEXT),
    (b"PARIS, 1830.\n", TEXT),
    ("PAREIL \u00e0 lui-m\u00eame\n".encode(), TEXT),
    (b"PARENTS\n", TEXT),
    (b"PARE\x2a\x01\x00\x00\x15", "encrypted Parquet"),
    (b"BZh est une suite de lettres", TEXT),
]


@pytest.mark.parametrize(("content", "form"), FORMS)
def test_forms(content, form):
    assert form_of(content) == form


JSON_FORMS = [
    (LINES, JSON_LINES),
    ("\ufeff\n\n" + LINES, JSON_LINES),
    (LINES.replace("\n", "\r\n"), JSON_LINES),
    ("# a header\n" + LINES + "an odd line\n", JSON_LINES),
    ('{"text": "' + "long " * 99_999, JSON_LINES),  # no line ends in the sample
    ('{"text": "cut', JSON_LINES),
    (json.dumps([{"text": "a"}]), JSON),
    (json.dumps([{"text": "a"}] * 3, indent=2), JSON),
    ('[\n{"text": "' + "long " * 99_999, JSON),
    ('["Un film.", "Un livre."]', JSON),
    ("[]\n", JSON),
    (json.dumps({"text": "a", "n": {"b": [1]}}, indent=2) * 3, JSON),
    ('{"text": "a"},\n{"text": "b"},\n', JSON),
    ("{'text': 'a'}\n{'text': 'b'}\n", LIKE_JSON),
    ("{Note} Un film.\n{Note} Un livre.\n", TEXT),
    ("{\nUn film.\n}\n", TEXT),
    ("[1] Note.\n[2] Note.\n", TEXT),
    ("[[Fichier:a.png]] Un film.\n", TEXT),
    ('["Bonjour" dit-il]\n', TEXT),
    ('["Bonjour", dit-il.]\nIl part.\n', TEXT),
    ('["Bonjour"]\nIl part.\n', TEXT),
    ('["Bonjour"] Il part.\n', TEXT),
    ('["Un film.", "cut', JSON),
    ('["Un film."]\n["Un livre."]\n', JSON),
    ('{"text": "a"}{"text": "b"}', JSON),
    ('{"text": "a"\n, "n": 1}\n{"text": "b"\n, "n": 2}\n', JSON),
    ('{"text": "cut short\n{"text": "b"}\n{"text": "c"}\n', JSON_LINES),
    ('{"nom": "Un film"} est un objet.\nUn livre.\n', TEXT),
    (r'"Un \u00e9t\u00e9."' + '\n"Un livre."\n', JSON),
    ('"Un film."\n"Un livre."\n', TEXT),  # prose in quotes
    (r'"Un \u00e9t\u00e9."' + "\nUn livre.\n", TEXT),
    ('Un film.\n{"text": "a"}\nUn livre.\n', TEXT),
]


@pytest.mark.parametrize(("text", "form"), JSON_FORMS)
def test_json_and_what_looks_like_it(text, form):
    assert form_of(text.encode()[: formats.SAMPLE_BYTES]) == form


def test_no_text_of_one_or_two_bytes_is_taken_for_another_form():
    for content in [bytes([byte]) for byte in range(9, 127)] + [b"PK", b"BM", b"MZ", b"{\n", b"[x"]:
        assert form_of(content) in (TEXT, JSON), content


NAMED = [
    ("a.jsonl.bz2", (formats.BZIP2, JSON_LINES), ""),
    ("a.json", (JSON_LINES,), ""),
    ("a.txt", (formats.UTF16_LE, TEXT), ""),
    ("a.bz2", (formats.BZIP2, formats.TAR), ""),
    ("a.TAR.GZ", (formats.GZIP, formats.TAR), ""),
    ("part-00000", (JSON_LINES,), ""),
    ("a.fr", (TEXT,), ""),
    ("a.txt", (formats.EMPTY,), ""),
    ("a.txt", (JSON_LINES,), "a.txt is JSON lines, in spite of its name."),
    ("a.json", (TEXT,), "a.json is plain text, in spite of its name."),
    ("a.gz", (TEXT,), "a.gz is plain text, in spite of its name."),
    ("a.txt", (formats.GZIP, TEXT), "a.txt is plain text in gzip, in spite of its name."),
    ("a.jsonl.bz2", (formats.BZIP2, formats.TAR), "a.jsonl.bz2 is a tar archive in bzip2, in spite of its name."),
    ("a.parquet", (formats.EMPTY,), "a.parquet is empty, in spite of its name."),
    ("a.csv", (TEXT,), "a.csv is plain text, in spite of its name."),
]


@pytest.mark.parametrize(("name", "forms", "sentence"), NAMED)
def test_what_contradicts_the_name_is_said(name, forms, sentence):
    assert contradiction(name, forms) == sentence


DESCRIBING = [
    "README",
    "a/README.md",
    "Readme_fr.txt",
    "LICENCE",
    "licences.txt.gz",
    "CITATION.cff",
    "x.bib",
    "_SUCCESS",
]
DESCRIBING += ["dataset_info.json", "a.zip/state.json", "SHA256SUMS", "load.py", "train.parquet.md5"]
NOT_DESCRIBING = ["citations.csv", "licenceplates.csv", "mystate.json", "README.md/a.txt", "journal.txt", "a.pdf", ""]


@pytest.mark.parametrize("name", DESCRIBING + NOT_DESCRIBING)
def test_names_of_files_that_describe_others(name):
    assert is_description(name) == (name in DESCRIBING)


def test_every_form_that_is_refused_has_a_cure():
    found = {form for _, form in [*FORMS, *formats.MAGIC.items(), *formats.MAGIC_PATTERNS, *formats.MARKUP]}
    readable = {*formats.COMPRESSED, *formats.ENCODINGS, formats.ZIP, formats.TAR, formats.PARQUET, formats.ARROW_FILE}
    readable |= {formats.ARROW_STREAM, JSON_LINES, JSON, TEXT, formats.EMPTY}
    assert found - readable <= formats.REFUSED.keys() and promised("a.pdf")[0] in formats.REFUSED
    for form, cure in formats.REFUSED.items():
        assert str(refusal("x", form)) == f"x is {form}. {cure}" and cure[-1] == "."
