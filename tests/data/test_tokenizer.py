"""Token ids and offsets, compared with transformers' CamembertTokenizer."""

import hashlib
import itertools
import random
import re
import shutil
import time
from pathlib import Path
from unicodedata import combining

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file

from data import DataError, Tokenizer, demo
from data.tokenizer import DIGEST, FILE_NAME, own_tokenizer
from tests.helpers import REAL_TEXT, REAL_TOKENIZER, needs

EXPECTED = {
    "J'aime le camembert !": "5 121 11 660 16 730 25543 110 83 6",
    "Le transformeur est un modèle d'apprentissage profond introduit en 2017, utilisé principalement dans le domaine "
    "du traitement automatique des langues (TAL).": "5 54 7196 297 30 23 776 18 11 3215 3705 8252 22 3164 1181 2116 29 "
    "16 813 25 791 3314 20 3446 38 27575 120 6",
    "À l'instar des réseaux de neurones récurrents (RNN), les transformeurs sont conçus pour gérer des données "
    "séquentielles, telles que le langage naturel, pour des tâches telles que la traduction et la synthèse de "
    "texte.": "5 468 17 11 9088 20 1517 8 22804 18818 10 38 629 607 607 142 19 7196 867 56 10326 24 2267 20 416 5072 "
    "15612 233 734 7 2399 27 16 3015 1649 7 24 20 4338 2399 27 13 3400 14 13 6189 8 930 9 6",
}
ODD = [
    *("", " ", "Le camembert est <mask> :)", "a<mask>b", "<mask>", "x <mask>, y", "le <mask><mask> chat"),
    *("x<s>y </s> z", "<pad>x <unk> y <s>NOTUSED z", "</s>NOTUSED a", "<MASK> < mask >", "日本 ☃ 🙂 x", "▁a ▁ b"),
    *("œuvre ﬁ ½ e\u0301", "a\u200bb \u2028c\u00a0d", "a\x00b", "  deux   espaces\tet\ntabulation "),
    *("ddd.ddd.ddd.ddd", "AAAA-MM-JJ hh:mm:ss", "=ROMAIN(999)", "zzz", "adresses.... Cela"),
    *("x" * 5000, "é" * 300, "🙂🙂 🙂"),
]
COMBINED = ["e\u0301a", "a\u0301\u0302b", "x\u0301 y", "a\u200b b", "\u200b", "a …b", "㍿ x"]


def real_lines(count: int, seed: int) -> list[str]:
    """Random lines of each real text."""
    texts = (path.read_text(encoding="utf-8").split("\n") for path in sorted(REAL_TEXT.glob("*.txt")))
    return [line for lines in texts for line in random.Random(seed).sample(lines, count)]


@needs(REAL_TOKENIZER)
def test_known_ids(real):
    assert len(real) == 32005
    special = (real.pad_id, real.unk_id, real.bos_id, real.eos_id, real.mask_id)
    assert special == (1, 3, 5, 6, 32004)
    assert real.pieces([7, 8, 9]) == [",", "▁de", "."]
    for text, ids in EXPECTED.items():
        assert real.encode(text) == [int(i) for i in ids.split()]


@needs(REAL_TOKENIZER)
@pytest.mark.parametrize("text", ODD)
def test_odd_texts_and_special_tokens_agree_with_transformers(real, reference, text):
    assert real.encode(text) == reference(text)["input_ids"]
    assert [real.encode("Un chat.", text)] == reference([("Un chat.", text)])["input_ids"]


@needs(REAL_TOKENIZER, REAL_TEXT)
def test_20_000_lines_of_real_text_agree_with_transformers(real, reference):
    lines = real_lines(2000, seed=0)
    assert len(lines) == 20_000
    expected = reference(lines, add_special_tokens=False)["input_ids"]
    for line, actual, wanted in zip(lines, real.encode_plain(lines), expected):
        assert actual == wanted, line


@needs(REAL_TOKENIZER, REAL_TEXT)
def test_decoding_returns_the_normalised_text(real):
    lines = (REAL_TEXT / "ud_french_sentences.txt").read_text(encoding="utf-8").split("\n")[:2000]
    normalize, checked = real._sentencepiece.normalize, 0
    for line in lines:
        ids = real.encode(line)
        if real.unk_id not in ids:
            assert real.decode(ids) == normalize(line).replace("▁", " ").strip()
            assert real.encode(real.decode(ids)) == ids
            checked += 1
    assert checked > 1900


@needs(REAL_TOKENIZER)
def test_decoding_of_special_tokens(real):
    assert real.decode(real.encode("Le camembert est <mask> :)")) == "Le camembert est <mask> :)"
    assert real.decode(real.encode("un chat", "un chien") + [1, 1]) == "un chat un chien"
    special = ["<s>", "<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "</s>", "<mask>"]
    assert real.pieces([5, 0, 1, 2, 3, 4, 6, 32004]) == special
    for wrong in (32005, -1):
        with pytest.raises(DataError, match="ids 0 to 32004"):
            real.decode([wrong])


def test_vocabulary_size_is_read_from_the_file():
    """The demo's tokenizer has another size, and another id for <mask>."""
    tokenizer = Tokenizer(demo.FOLDER)
    assert len(tokenizer) == tokenizer.mask_id + 1 == 1005
    assert tokenizer.ordinary_ids == range(7, 1004)
    text = "Le film se passe à Brest."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text)[0] == 5 and tokenizer.encode(text)[-1] == 6
    assert all(i in tokenizer.ordinary_ids for i in tokenizer.encode(text)[1:-1])


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("data.tokenizer.CACHE_SIZE", 10)
    tokenizer = Tokenizer(demo.FOLDER)
    first = tokenizer.encode("Le film")
    tokenizer.encode_plain([f"mot{i}" for i in range(100)])
    assert len(tokenizer._words) <= 10
    assert tokenizer.encode("Le film") == first


def model_file(path: Path, content: bytes | None, digest: str | None = None) -> Path:
    """A .safetensors file with a weight and, unless content is None, a tokenizer inside."""
    tensors = {"weight": torch.zeros(3, dtype=torch.bfloat16)}
    if content is not None:
        tensors[FILE_NAME] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    save_file(tensors, path, metadata={DIGEST: digest or hashlib.sha256(content or b"").hexdigest()})
    return path


def test_a_tokenizer_is_found_inside_a_models_file_then_beside_it(tmp_path):
    demo_file, own = demo.FOLDER / FILE_NAME, real_bytes()
    path = model_file(tmp_path / "model.safetensors", None)
    assert own_tokenizer(path) is None and own_tokenizer(tmp_path) is None
    for place in (path, tmp_path):
        with pytest.raises(DataError, match=f"no tokenizer (inside or beside|in) {re.escape(str(place))}"):
            Tokenizer(place)
    shutil.copyfile(demo_file, tmp_path / FILE_NAME)
    for place in (path, tmp_path):
        assert Tokenizer(place).path == tmp_path / FILE_NAME and len(Tokenizer(place)) == 1005
    model_file(path, own)
    for place in (path, tmp_path):
        found = Tokenizer(place)
        assert found.path == path and found.content == own and found.sha256() == hashlib.sha256(own).hexdigest()
    student = path.replace(tmp_path / "student.safetensors")  # of a run's folder
    assert Tokenizer(tmp_path).path == student
    renamed = student.replace(tmp_path / "any name")  # the file says what it is, not its name
    assert Tokenizer(renamed).content == own
    assert len(Tokenizer(tmp_path / FILE_NAME)) == 1005


def real_bytes() -> bytes:
    """Another tokenizer than the demo's: the same with a piece renamed, which is as long."""
    return (demo.FOLDER / FILE_NAME).read_bytes().replace("▁film".encode(), "▁filn".encode())


@pytest.mark.parametrize("digest", ["", "0" * 64, None])
def test_a_tokenizer_inside_that_does_not_match_its_hash_is_damage(tmp_path, digest):
    path = model_file(tmp_path / "m.safetensors", real_bytes(), digest or "x")
    if digest is None:
        save_file({FILE_NAME: torch.zeros(9)}, path)  # neither bytes nor a hash
    with pytest.raises(DataError, match=f"{path} is damaged: the tokenizer inside does not match its hash"):
        Tokenizer(path)


@pytest.mark.parametrize("content", [None, b"", b"Ceci n'est pas un tokenizer.\n" * 9, b"\x00\xff" * 500])
def test_errors_for_a_file_that_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "sentencepiece.bpe.model"
    if content is not None:
        path.write_bytes(content)
    message = "There is no tokenizer|not a SentencePiece model|are not CamemBERT's"
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", [FILE_NAME, "model.safetensors"])
def test_a_git_lfs_pointer_is_called_one(tmp_path, name):
    """Also in place of a model: its tokenizer is not looked for beside it, and not said to be missing."""
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 810912\n")
    for place in (tmp_path, path):
        with pytest.raises(DataError, match=f"{path} is a Git LFS pointer, not the file itself.* git lfs pull"):
            Tokenizer(place)


OTHER_KINDS = {
    "other special ids": (dict(pad_id=0, unk_id=1, bos_id=2, eos_id=3), "its ids, .* are not CamemBERT's"),
    "BPE": (dict(model_type="bpe"), "a BPE model"),
    "no dummy prefix": (dict(add_dummy_prefix=False), "no ▁ before a word"),
    "▁ after words": (dict(treat_whitespace_as_suffix=True), "no ▁ before a word"),
    "pieces across words": (dict(split_by_whitespace=False), "span several words"),
    "bytes": (dict(byte_fallback=True, vocab_size=400), "byte pieces"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_errors_for_a_sentencepiece_model_of_another_kind(tmp_path, kind):
    """Its ids would be wrong without any error."""
    settings, message = OTHER_KINDS[kind]
    settings = {"vocab_size": 200, "minloglevel": 2, **settings}
    with (tmp_path / "other.model").open("wb") as file:
        texts = itertools.islice(demo.texts(), 300)
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=file, **settings)
    with pytest.raises(DataError, match=message):
        Tokenizer(tmp_path / "other.model")


UNITS = ["a", " ", "\u00a0", "\t\n", "le chat mange ", "anticonstitutionnellement", ".", "▁", "<mask>", "<mask> a "]
UNITS += ["🙂", "🙂 ", "漢", "a漢", "\U0010ffff", "\u202e\u200fabc"]  # not in the vocabulary
UNITS += ["\0", "\u200b", "a\u200b", "각\u1100\u1161\u11a8", "e\u0301"]  # dropped, or one with its neighbours
LONG = [unit * (100_000 // len(unit)) for unit in UNITS]
LONG += ["e" + "\u0301" * 99_999, "ﷺ" * 5_000]  # one character, and many pieces per character


def is_dropped(tokenizer, text: str) -> bool:
    """Whether each of these characters is dropped after a letter, or combines with the one before."""
    return all(tokenizer.encode_plain(["a" + c]) == tokenizer.encode_plain(["a"]) or combining(c) for c in text)


def agree(tokenizer, text: str, ids, spans, offsets) -> bool:
    """Whether spans equal transformers' offsets, which lack characters dropped after a piece and include the space
    before <mask>."""
    for i, (start, end), (first, after) in zip(ids, spans, offsets, strict=True):
        if i == tokenizer.mask_id:
            first += len(text[first:after]) - len(text[first:after].lstrip(" "))
        if start != first or end < after or not is_dropped(tokenizer, text[after:end]):
            return False
    return True


@needs(REAL_TOKENIZER, REAL_TEXT)
def test_spans_of_real_text_are_the_offsets_of_transformers(real, reference):
    lines = real_lines(200, seed=1)
    assert len(lines) == 2000
    expected = reference(lines, add_special_tokens=False, return_offsets_mapping=True)
    same = 0
    for line, ids, offsets in zip(lines, expected["input_ids"], expected["offset_mapping"]):
        actual, spans = real.encode_spans(line)
        assert [actual] == real.encode_plain([line]) == [ids]
        assert agree(real, line, ids, spans, offsets), line
        same += spans == offsets
    assert same >= 1990  # the differences are rare


@needs(REAL_TOKENIZER)
@pytest.mark.parametrize("text", ODD + COMBINED)
def test_spans_of_odd_texts_are_the_offsets_of_transformers(real, reference, text):
    expected = reference(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = real.encode_spans(text)
    assert ids == expected["input_ids"]
    assert agree(real, text, ids, spans, expected["offset_mapping"]), spans


@needs(REAL_TOKENIZER)
def test_spans_that_differ_from_transformers(real, reference):
    """By hand: agree() must allow these two differences and no others."""

    def offsets(text):
        return reference(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    assert real.encode_spans("le <mask> chat")[1] == [(0, 2), (3, 9), (10, 14)]
    assert offsets("le <mask> chat") == [(0, 2), (2, 9), (10, 14)]
    assert real.encode_spans("e\u0301a")[1] == [(0, 2), (2, 3)]
    assert offsets("e\u0301a") == [(0, 1), (2, 3)]


@needs(REAL_TOKENIZER)
@pytest.mark.parametrize("text", LONG, ids=lambda text: ascii(text[:25]))
def test_spans_of_long_texts_take_linear_time(real, text):
    start = time.process_time()
    ids, spans = real.encode_spans(text)
    assert time.process_time() - start < 3  # seconds; 0.3 was measured, and quadratic time would be minutes
    assert [ids] == real.encode_plain([text]) and len(spans) == len(ids)
    assert all(0 <= first < after <= len(text) for first, after in spans)
    assert all(one[0] <= two[0] and one[1] <= two[1] for one, two in itertools.pairwise(spans))


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb c"])
def test_a_lone_surrogate_does_not_crash(text):
    """JSON can contain them. data.tasks replaces them, but a caller's text may not come from there."""
    tokenizer = Tokenizer(demo.FOLDER)
    ids, spans = tokenizer.encode_spans(text)
    assert [ids] == tokenizer.encode_plain([text])
    assert all(0 <= first <= after <= len(text) for first, after in spans)


def test_spans_of_random_texts_cover_all_but_spaces():
    tokenizer, rng = Tokenizer(demo.FOLDER), random.Random(0)
    parts = [*"aé lt'.,0…½ﬁ\u0301\u200b\u00a0🙂漢▁<\n", "<mask>", "</s>", "le ", "film"]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randrange(30)))
        ids, spans = tokenizer.encode_spans(text)
        assert [ids] == tokenizer.encode_plain([text])
        assert all(0 <= first < after <= len(text) for first, after in spans), text
        assert all(one[0] <= two[0] and one[1] <= two[1] for one, two in itertools.pairwise(spans)), text
        covered = {index for span in spans for index in range(*span)}
        left = "".join(c for index, c in enumerate(text) if index not in covered)
        assert all(c.isspace() or c in "▁\u200b\u0301" for c in left), text
        assert not any(text[first].isspace() for first, _ in spans), text
