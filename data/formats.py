"""Detects the format of a file from its first bytes, not from its name.

A form is a format's name as messages print it: "gzip", "JSON lines", "a PDF document". archives.py opens the forms that
contain other files; REFUSED lists those without readable text, each with what the user can do about it.
"""

import codecs
import json
import re
from pathlib import Path, PurePath

from .cli import DataError

SAMPLE_BYTES = 1 << 18  # of a file, from which its form is told
GZIP, XZ, BZIP2, ZSTD, ZIP, TAR = "gzip", "xz", "bzip2", "Zstandard", "a zip archive", "a tar archive"
UTF16_LE, UTF16_BE, UTF32_LE, UTF32_BE = "UTF-16-LE", "UTF-16-BE", "UTF-32-LE", "UTF-32-BE"  # also codecs' names
PARQUET, ARROW_FILE, ARROW_STREAM = "Parquet", "an Arrow file", "an Arrow stream"
JSON_LINES, JSON, TEXT, EMPTY = "JSON lines", "JSON", "plain text", "empty"  # JSON: values over several lines
TABLE = "a table"  # plain text in columns, which is detected by the readers of text

COMPRESSED = (GZIP, XZ, BZIP2, ZSTD)
ENCODINGS = (UTF16_LE, UTF16_BE, UTF32_LE, UTF32_BE)
MARKS = {codecs.BOM_UTF32_LE: UTF32_LE, codecs.BOM_UTF32_BE: UTF32_BE}  # before UTF-16's, which begin alike
MARKS |= {codecs.BOM_UTF16_LE: UTF16_LE, codecs.BOM_UTF16_BE: UTF16_BE}

NOT_UTF8, BINARY, TORCH, OFFICE = "not UTF-8", "binary data of an unknown kind", "a PyTorch file", "an Office document"
LIKE_JSON = "made of lines that look like JSON, but are not"
RARE_ZIP = "compressed in a way that is rare in zip archives"
BOOK, NUMPY, ENCRYPTED, DEEP = "an EPUB or OpenDocument", "a NumPy file", "encrypted", "an archive nested too deeply"
LFS_START, LFS_POINTER = b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself"
UNPACK, EXTRACT = "Unpack it first.", "Extract its text first, for example with"
CONVERT = "iconv -f WINDOWS-1252 -t UTF-8"
REFUSED = {  # form -> what to do
    "a PDF document": f"{EXTRACT} pdftotext.",
    "a PostScript document": f"{EXTRACT} ps2ascii.",
    "a DjVu document": f"{EXTRACT} djvutxt.",
    OFFICE: "Save it as plain text in UTF-8.",
    "an RTF document": "Save it as plain text in UTF-8.",
    BOOK: f"{EXTRACT} pandoc -t plain --wrap=none.",
    "an HTML page": f"{EXTRACT} pandoc -t plain --wrap=none. A download that failed also leaves an HTML page.",
    "XML": "Extract its text as JSON lines first; for a dump of Wikipedia, wikiextractor --json does so.",
    "WikiExtractor's output with tags": "Run wikiextractor with --json.",
    "subtitles with times": "Keep their text alone, for example with grep -vE '^[0-9]+.?$|-->'.",
    "a web archive (WARC)": f"{EXTRACT} warcio, as JSON lines.",
    "a 7z archive": UNPACK,
    "a RAR archive": UNPACK,
    "compressed with LZ4": "Decompress it first: lz4 -d.",
    "compressed with Snappy": "Decompress it first: snzip -d.",
    "compressed with lzop": "Decompress it first: lzop -d.",
    "compressed with compress": "Decompress it first: uncompress.",
    ENCRYPTED: "Decrypt it first.",
    RARE_ZIP: UNPACK,
    DEEP: UNPACK,
    LFS_POINTER: "Fetch the file: git lfs pull.",
    "a dump of a database": "Load it, and export its text column as JSON lines.",
    LIKE_JSON: "Write each line as JSON: names and texts in double quotes, nothing after the closing brace.",
    "an SQLite database": "Export its text column as JSON lines.",
    "an HDF5 file": "Export its text as JSON lines.",
    "an Avro file": "Convert it to JSON lines.",
    "encrypted Parquet": "Decrypt it first.",
    "Feather version 1": "Write it again as Arrow or Parquet.",
    "a safetensors file": "It holds the weights of a model, not text.",
    "a GGUF file": "It holds the weights of a model, not text.",
    TORCH: "It holds the weights of a model, not text.",
    "a Python pickle": "Pickles are never loaded: they can run any code. Write its texts as JSON lines.",
    NUMPY: "Write its texts as JSON lines.",
    "a program": "Give a text file.",
    "an image": "Give a text file.",
    "audio or video": "Give a text file.",
    NOT_UTF8: f"Convert it, for example with {CONVERT}.",
    BINARY: "Give text in UTF-8, JSON lines or Parquet, compressed or not. Parts of a split file: cat them into -.",
}
MAGIC = {  # first bytes -> form
    b"\x1f\x8b": GZIP,
    b"\xfd7zXZ\x00": XZ,
    b"]\x00\x00": XZ,  # .lzma, which lzma reads too
    b"(\xb5/\xfd": ZSTD,
    b"PK\x03\x04": ZIP,
    b"PK\x05\x06": ZIP,  # without members
    b"PK\x07\x08": ZIP,
    b"PAR1": PARQUET,
    b"ARROW1": ARROW_FILE,
    b"FEA1": "Feather version 1",
    b"%PDF-": "a PDF document",
    b"%!PS": "a PostScript document",
    b"AT&TFORM": "a DjVu document",
    b"{\\rtf": "an RTF document",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": OFFICE,
    b"7z\xbc\xaf'\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b'\x04"M\x18': "compressed with LZ4",
    b"\xff\x06\x00\x00sNaPpY": "compressed with Snappy",
    b"\x89LZO\x00": "compressed with lzop",
    b"\x1f\x9d": "compressed with compress",
    LFS_START: LFS_POINTER,
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"Obj\x01": "an Avro file",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": NUMPY,
    b"\x7fELF": "a program",
    b"MZ\x90\x00": "a program",
    b"\x89PNG\r\n\x1a\n": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF87a": "an image",
    b"GIF89a": "an image",
    b"II*\x00": "an image",
    b"MM\x00*": "an image",
    b"OggS\x00": "audio or video",
    b"fLaC": "audio or video",
    b"ID3\x03": "audio or video",
    b"ID3\x04": "audio or video",
    b"WARC/1.": "a web archive (WARC)",
    b"WARC/0.": "a web archive (WARC)",
}
MAGIC_PATTERNS = [
    (re.compile(rb"PARE.{0,4}[\x00-\x08]", re.DOTALL), "encrypted Parquet"),  # and not the word PAREIL
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", re.DOTALL), BZIP2),
    (re.compile(rb"[\x50-\x5f]\*M\x18", re.DOTALL), ZSTD),  # a skippable frame first, as pzstd writes
    (re.compile(rb"\xff{4}(?!\x00{4}).{3}\x00", re.DOTALL), ARROW_STREAM),
    (re.compile(rb"\x80[\x02-\x05](?:\x95.{6}\x00\x00|[\]}cX(\x8a\x8c])", re.DOTALL), "a Python pickle"),
    (re.compile(rb".{5}\x00\x00\x00\{\"", re.DOTALL), "a safetensors file"),  # after the header's length
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "an image"),
    (re.compile(rb"RIFF.{4}(?:WAVE|AVI )|\x00\x00..ftyp", re.DOTALL), "audio or video"),
]
MARKUP = [  # how text begins, after blanks
    (re.compile(rb"<!doctype html|<html", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"<\?xml[^>]*>\s*(?:<!doctype html|<html)", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"<\?xml|<mediawiki|<TEI[ >]"), "XML"),
    (re.compile(rb'<doc id="'), "WikiExtractor's output with tags"),
    (re.compile(rb"WEBVTT\s|\d+\s+\d\d:\d\d:\d\d[,.]\d{3} --> "), "subtitles with times"),
    (re.compile(rb"-- (?:MySQL|MariaDB|PostgreSQL database) dump"), "a dump of a database"),
]
CONTROL_BYTES = bytes({*range(0x20), 0x7F} - set(b"\t\n\v\f\r\x1b"))
JSON_ARRAY = re.compile(r"\[\s*")
BRACES = re.compile(r"\s*\{\s*['\"\w]+\s*:.*\}\W*")
SEPARATOR = re.compile(r"\s*([,\]]?)\s*")
JSON_OBJECT = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:')

PROMISED = {".gz": (GZIP,), ".xz": (XZ,), ".lzma": (XZ,), ".bz2": (BZIP2,), ".zst": (ZSTD,)}  # by suffix
PROMISED |= {".tgz": (GZIP, TAR), ".tbz2": (BZIP2, TAR), ".txz": (XZ, TAR), ".tar": (TAR,), ".zip": (ZIP,)}
PROMISED |= {".txt": (TEXT,), ".text": (TEXT,), ".jsonl": (JSON,), ".ndjson": (JSON,), ".json": (JSON,)}
PROMISED |= {".parquet": (PARQUET,), ".arrow": (ARROW_FILE,), ".feather": (ARROW_FILE,)}
PROMISED |= {".csv": (TABLE,), ".tsv": (TABLE,), ".tab": (TABLE,)}
PROMISED |= {".pdf": ("a PDF document",), ".safetensors": ("a safetensors file",), ".7z": ("a 7z archive",)}
DESCRIPTIONS = re.compile(  # names of files that describe the others in a folder or an archive
    # README_fr.txt and CITATION.cff, but not licence_droit.txt, citations.txt, citation.csv
    r"(?!.*\.(?:jsonl?|csv|tsv|parquet|arrow)\b)(?:readme|lisezmoi|licen[cs]es?|copying|changelog|citation)"
    r"(?:[-_]\w{1,3})?(?:\.\w+)*|(?:md5|sha\d+)sums?(?:\.txt)?|_success|"
    r"_(?:common_)?metadata|(?:dataset_(?:infos?|dict)|state|config)\.json|"
    r".*\.(?:md|rst|bib|py|sh|ya?ml|toml|cfg|ini|lock|log|crc|md5|sha256)",
    re.IGNORECASE,
)
SAME = {JSON_LINES: JSON, ARROW_STREAM: ARROW_FILE}  # forms that one suffix may name


class RefusedError(DataError):
    """A file has no readable text. The message says what it is, and what to do."""


def form_of(head: bytes) -> str:
    """The form of a file that begins with these bytes: SAMPLE_BYTES of them, or the whole file if it is smaller."""
    if not head:
        return EMPTY
    for mark, form in MARKS.items():
        if head.startswith(mark) and not head.startswith(b"\xff\xfe\xff\xfe"):
            return form
    for magic, form in MAGIC.items():
        if head.startswith(magic):
            return form
    for pattern, form in MAGIC_PATTERNS:
        if pattern.match(head):
            return form
    if is_tar_header(head[:512]):
        return TAR
    return utf16_without_mark(head) or text_form(head)


def is_tar_header(block: bytes) -> bool:
    """Whether 512 bytes have a tar header's checksum: the sum of all bytes, with blanks in its own place."""
    if len(block) < 512 or not block[0]:
        return False
    stated = re.match(rb" *([0-7]{1,7})[\x00 ]", block[148:156])
    return bool(stated) and int(stated[1], 8) == sum(block[:148]) + 8 * 0x20 + sum(block[156:])


def utf16_without_mark(head: bytes) -> str | None:
    """Of Latin text in UTF-16, most second bytes are zero, and few of the others."""
    pairs = min(len(head), 1 << 13) // 2
    even, odd = (head[start : 2 * pairs : 2].count(0) for start in (0, 1))
    if pairs >= 16 and max(even, odd) > 0.5 * pairs and min(even, odd) < 0.1 * pairs:
        return UTF16_LE if odd > even else UTF16_BE
    return None


def text_form(head: bytes) -> str:
    """The form of bytes that are none of the others."""
    if len(head) >= 64 and len(head) - len(head.translate(None, CONTROL_BYTES)) > 0.03 * len(head):
        return BINARY
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:4096]
    for pattern, form in MARKUP:
        if pattern.match(start):
            return form
    is_whole = len(head) < SAMPLE_BYTES
    lines = head.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    if is_in_another_encoding(lines if is_whole else lines[:-1] or lines):
        return NOT_UTF8
    return json_form(lines, is_whole) or TEXT


def is_in_another_encoding(lines: list[bytes]) -> bool:
    """Whether most lines with accented letters are not UTF-8: single damaged lines are dropped and counted instead.

    Where accented lines are few, whether the damaged ones are most of the text, and more than a letter in them is.
    """
    accented = [line for line in lines if not line.isascii()]
    wrong = [line for line in accented if not is_utf8(line)]
    if len(accented) < 5:
        letters = [letter for letter in b"".join(wrong).decode(errors="replace") if not letter.isascii()]
        is_most = sum(map(len, wrong)) > sum(map(len, lines)) / 2
        return is_most and letters.count("\ufffd") > len(letters) / 2
    return len(wrong) > len(accented) / 2


def is_utf8(line: bytes) -> bool:
    try:
        line.decode()
        return True
    except UnicodeDecodeError:
        return False


def json_form(lines: list[bytes], is_whole: bool) -> str | None:
    """JSON_LINES if most of the first lines are objects, JSON for other sequences of values, else None.

    LIKE_JSON if most lines are in braces, as Python prints a dictionary.
    """
    text = b"\n".join(lines).decode(errors="replace").removeprefix("\ufeff").lstrip()
    if is_array(text):
        return JSON
    complete = [line for line in (text if is_whole else text.rpartition("\n")[0]).split("\n") if line.strip()][:100]
    objects = sum(map(is_object, complete))
    if objects and 2 * objects >= len(complete):
        return JSON_LINES
    if JSON_OBJECT.match(text) and (form := form_after_object(text)):
        return form
    if len(complete) > 1 and all(map(is_string, complete)) and any("\\" in line for line in complete):
        return JSON  # without escapes, it is prose in quotes
    in_braces = sum(bool(BRACES.fullmatch(line)) for line in complete)
    return LIKE_JSON if in_braces and 2 * in_braces > len(complete) else None


def is_array(text: str) -> bool:
    """Whether text begins with an array of objects, strings or arrays, complete or cut short.

    '[1] Note', '[[Note]]', '["Oui", dit-il.]' and '["Oui"] Il part.' are plain text.
    """
    if not (start := JSON_ARRAY.match(text)):
        return False
    decode, place = json.JSONDecoder().raw_decode, start.end()
    try:
        first, place = decode(text, place)
    except (ValueError, RecursionError):
        return bool(JSON_OBJECT.match(text, place)) or not text[place:].strip("] \n\t")
    if type(first) not in (dict, str, list):
        return False
    while (separator := SEPARATOR.match(text, place))[1] == "," and type(first) is not dict:
        try:
            _, place = decode(text, separator.end())
        except (ValueError, RecursionError):
            return text[separator.end() :][:1] in ("", '"', "[") and "\n" not in text[separator.end() :]
    place = separator.end()
    return place == len(text) or separator[1] == "," or (separator[1] == "]" and text[place] in "[{")


def form_after_object(text: str) -> str | None:
    """The form of text that begins with an object of JSON, cut short or not; None if prose follows it."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        first, line_end, _ = text.partition("\n")
        if first.rstrip().endswith(("{", "[", ",", ":")):
            return JSON
        return None if line_end else JSON_LINES
    return JSON if text[end:].lstrip(", \t\n")[:1] in ("", "{", "[") else None


def is_object(line: str) -> bool:
    try:
        return line.lstrip("\ufeff \t").startswith("{") and isinstance(json.loads(line.lstrip("\ufeff")), dict)
    except (ValueError, RecursionError):
        return False


def is_string(line: str) -> bool:
    try:
        return line.startswith('"') and isinstance(json.loads(line), str)
    except ValueError:
        return False


# ---- what the name says ----------------------------------------------------------------------------------------


def promised(name: str) -> tuple[str, ...]:
    """The forms that a name's suffixes stand for, outermost first: (BZIP2, JSON) for a.jsonl.bz2, () for part-00000."""
    path, forms = PurePath(name), ()
    while path.suffix:
        found = PROMISED.get(path.suffix.lower(), ())
        forms, path = forms + found, path.with_suffix("")
        if not (len(found) == 1 and found[0] in COMPRESSED):
            break
    return forms


def is_description(name: str) -> bool:
    """Whether a file describes the others beside it, by the name that ends its path: README.md, dataset_infos.json."""
    return bool(DESCRIPTIONS.fullmatch(name.rpartition("/")[2]))


def contradiction(name: str, forms: tuple[str, ...]) -> str:
    """A sentence on what the file is if its name stands for another format, else "".  forms: outermost first."""
    if not (said := promised(name)):
        return ""
    found = [SAME.get(form, form) for form in forms if form not in ENCODINGS]
    if tuple(found[: len(said)]) == said or (found == [EMPTY] and said == (TEXT,)):
        return ""
    return f"{name} is {described(forms)}, in spite of its name."


def lfs_pointer(path: Path, head: bytes) -> str:
    """The message for a file that begins with head, if it is a Git LFS pointer; else ""."""
    return str(refusal(str(path), LFS_POINTER)) if head.startswith(LFS_START) else ""


def described(forms: tuple[str, ...]) -> str:
    """Forms in words, innermost first: "JSON lines in a tar archive in bzip2"."""
    return " in ".join(reversed(forms))


def refusal(name: str, form: str) -> RefusedError:
    """The error for a form in REFUSED."""
    return RefusedError(f"{name} is {form}. {REFUSED[form]}")
