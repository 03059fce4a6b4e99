"""What a person sees of a prepared corpus."""

import re

import pytest

from data import Tokenizer, demo
from data.prepare import Options, prepare
from tests.helpers import run_command

TOKENIZER = Tokenizer(demo.FOLDER)
TEXTS = ["Un film.", "Le film se passe à Brest, et le début est bon.", "La fin est longue. Le film est bon."] * 30


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    out = tmp_path / "corpus"
    options = Options(inputs=(str(tmp_path / "text.txt"),), tokenizer=str(demo.FOLDER), out=str(out), workers=1,
                      held_out=0, shard_tokens=1000)  # fmt: skip
    prepare(options, TOKENIZER)
    return out


def test_counts_lengths_and_examples(corpus):
    result = run_command("-m data.inspect", corpus, "--examples", 4, "--block-size", 24, "--verify")
    assert result.returncode == 0, result.stderr
    tokens = sum(len(TOKENIZER.encode(text)) - 1 for text in TEXTS)
    assert f"train     {tokens:,} tokens in 90 documents" in result.stdout
    lengths = sorted(len(TOKENIZER.encode(text)) - 2 for text in TEXTS)
    assert f"in tokens: {lengths[0]}, {lengths[0]}, " in result.stdout and f", {lengths[-1]}\n" in result.stdout
    shown = re.findall(r"^document (\d+), \d+ tokens\n  (.*)$", result.stdout, flags=re.MULTILINE)
    assert len(shown) == 4 and all(TEXTS[int(number)] == text for number, text in shown)
    assert len(re.findall(r"^block \d+ masked\n  <s> .*\[▁?\S+\]", result.stdout, flags=re.MULTILINE)) == 4
    assert "the one that the corpus was prepared with" in result.stdout and "every file has the hash" in result.stdout


def test_examples_from_a_corpus_of_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("data.corpus.PART_BYTES", 500)
    monkeypatch.setattr("data.corpus.READ_BYTES", 400)
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 3))
    options = Options(inputs=(str(tmp_path / "text.txt"),), tokenizer=str(demo.FOLDER), out=str(tmp_path / "corpus"),
                      workers=1, held_out=0, shard_tokens=1000)  # fmt: skip
    assert len(prepare(options, TOKENIZER)["shards"]["train"]) > 1
    result = run_command("-m data.inspect", tmp_path / "corpus", "--examples", 1000)
    shown = re.findall(r"^document (\d+), \d+ tokens\n  (.*)$", result.stdout, flags=re.MULTILINE)
    assert [text for _, text in shown] == TEXTS * 3


def test_another_tokenizer_a_damaged_file_and_no_corpus_are_sentences(corpus, tmp_path):
    content = bytearray((corpus / "train-00000.bin").read_bytes())
    content[10] ^= 1
    (corpus / "train-00000.bin").write_bytes(content)
    result = run_command("-m data.inspect", corpus, "--verify")
    assert result.returncode == 2 and "train-00000.bin is damaged" in result.stderr
    (corpus / "sentencepiece.bpe.model").write_bytes(b"x")
    result = run_command("-m data.inspect", corpus)
    assert result.returncode == 2 and "not a SentencePiece model" in result.stderr
    result = run_command("-m data.inspect", tmp_path)
    assert result.returncode == 2 and "holds no finished corpus" in result.stderr
