"""Exported folders: transformers and its pipelines open them and compute the same."""

import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from data import Tokenizer, demo
from model import Encoder, EncoderConfig, MaskedLM, ModelError, SequenceClassifier, TokenClassifier
from model.checkpoints.export import export_huggingface
from model.checkpoints.load import load_checkpoint
from tests.model.checkpoints.files import LABELS, as_folder, headed_model

TOKENIZER = Tokenizer(demo.FOLDER)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    model = MaskedLM(EncoderConfig(1, 8, 2, 8, 20))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("")
    for folder in ("there", "new"):
        with pytest.raises(ModelError, match=f"{folder} cannot be written"):
            export_huggingface(model, tmp_path / folder, TOKENIZER)
        monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=OSError(28, "No space left on device")))
    assert os.listdir(tmp_path) == ["there"] and os.listdir(tmp_path / "there") == ["precious"]


def test_a_card_with_a_path_that_is_not_utf_8(tmp_path):
    card = f"from {os.fsdecode(b'caf' + bytes([233]))}"
    export_huggingface(MaskedLM(EncoderConfig(1, 8, 2, 8, 20)), tmp_path / "x", card=card)
    assert (tmp_path / "x" / "README.md").read_text() == "from caf\\udce9"


@pytest.mark.parametrize("kind", [SequenceClassifier, TokenClassifier])
def test_pipelines_of_transformers_take_classifiers(kind, tmp_path, monkeypatch):
    """(Transformers 5 has no pipeline for question answering any more.)"""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    ours = load_checkpoint(as_folder(headed_model(kind), tmp_path / "theirs"))
    export_huggingface(ours, tmp_path / "hf", TOKENIZER)
    probabilities = ours(torch.tensor([TOKENIZER.encode("Le film est bon.")])).softmax(dim=-1)[0]
    if kind is SequenceClassifier:
        task, expected, name, settings = "text-classification", probabilities[None], "label", {}
    else:  # one per token between <s> and </s>; by default the pipeline leaves out O
        task, expected, name, settings = "token-classification", probabilities[1:-1], "entity", {"ignore_labels": []}
    answers = transformers.pipeline(task, model=str(tmp_path / "hf"), **settings)("Le film est bon.")
    assert len(answers) == len(expected) > 0
    for answer, (score, label) in zip(answers, (row.max(dim=-1) for row in expected), strict=True):
        assert answer[name] == LABELS[label]
        assert answer["score"] == pytest.approx(score.item(), rel=1e-4)


def test_sentence_transformers_opens_an_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    ours = load_checkpoint(demo.TEACHER, kind=Encoder)
    export_huggingface(ours, tmp_path / "hf", TOKENIZER)
    sentences = ["Le film est bon.", "Une ville du nord, l'été."]
    vectors = library.SentenceTransformer(str(tmp_path / "hf"), device="cpu").encode(sentences)
    for sentence, vector in zip(sentences, vectors, strict=True):
        expected = ours(torch.tensor([TOKENIZER.encode(sentence)]))[0].mean(dim=0)
        assert torch.tensor(vector) == pytest.approx(expected.detach(), abs=1e-5)
