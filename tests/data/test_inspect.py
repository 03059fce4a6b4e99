"""data.inspect: counts, lengths, examples, and the errors for a damaged corpus."""

import re

import pytest

from tests.data.prepared import TOKENIZER, make, write
from tests.helpers import run_command

TEXTS = ["Un film.", "Le film se passe à Brest, et le début est bon.", "La fin est longue. Le film est bon."] * 30


@pytest.fixture
def corpus(tmp_path):
    make(tmp_path / "corpus", write(tmp_path / "text.txt", "\n".join(TEXTS)), shard_tokens=1000)
    return tmp_path / "corpus"


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


def test_examples_from_a_corpus_of_several_shards(tmp_path, small_parts):
    made = make(tmp_path / "corpus", write(tmp_path / "text.txt", "\n".join(TEXTS * 3)), shard_tokens=1000)
    assert len(made["shards"]["train"]) > 1
    result = run_command("-m data.inspect", tmp_path / "corpus", "--examples", 1000)
    shown = re.findall(r"^document (\d+), \d+ tokens\n  (.*)$", result.stdout, flags=re.MULTILINE)
    assert [text for _, text in shown] == TEXTS * 3


def test_a_wrong_tokenizer_a_damaged_file_and_a_missing_corpus_are_errors(corpus, tmp_path):
    content = bytearray((corpus / "train-00000.bin").read_bytes())
    content[10] ^= 1
    (corpus / "train-00000.bin").write_bytes(content)
    result = run_command("-m data.inspect", corpus, "--verify")
    assert result.returncode == 2 and "train-00000.bin is damaged" in result.stderr
    (corpus / "sentencepiece.bpe.model").write_bytes(b"x")
    result = run_command("-m data.inspect", corpus)
    assert result.returncode == 2 and "not a SentencePiece model" in result.stderr
    result = run_command("-m data.inspect", tmp_path)
    assert result.returncode == 2 and "is not a finished corpus" in result.stderr
