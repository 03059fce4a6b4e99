"""Exported folders: transformers and its pipelines open them and compute the same."""

import os

import pytest
import torch

from data import Tokenizer, demo
from model import EncoderConfig, MaskedLM, ModelError, SequenceClassifier, TokenClassifier
from model.checkpoints.export import export_huggingface
from model.checkpoints.load import load_checkpoint
from tests.helpers import huggingface_model, padded_batch, run_command
from tests.model.checkpoints.files import LABELS, as_folder, headed_model


def run(*arguments):
    return run_command("convert_weights.py", *arguments)


def test_the_round_trip_in_float64_is_exact_to_1e9(tmp_path):
    from transformers import AutoModelForMaskedLM

    theirs = huggingface_model(vocab_size=1005, hidden_act="relu")
    theirs.save_pretrained(tmp_path / "theirs")
    export_huggingface(load_checkpoint(tmp_path / "theirs"), tmp_path / "back")
    back = AutoModelForMaskedLM.from_pretrained(tmp_path / "back").eval()
    assert back.dtype == torch.float64 and back.config.hidden_act == "relu"
    input_ids, mask = padded_batch((30, 1, 7), 1005)
    with torch.no_grad():
        outputs = [model(input_ids, attention_mask=mask.long()).logits for model in (back, theirs)]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-9


def test_a_failure_leaves_nothing(tmp_path):
    model = MaskedLM(EncoderConfig(1, 8, 2, 8, 20))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("")
    for folder, tokenizer in (("there", None), ("new", tmp_path / "no tokenizer")):
        with pytest.raises(ModelError, match=f"{folder} cannot be written"):
            export_huggingface(model, tmp_path / folder, tokenizer)
    assert os.listdir(tmp_path) == ["there"] and os.listdir(tmp_path / "there") == ["precious"]


def test_a_card_with_a_path_that_is_not_utf_8(tmp_path):
    export_huggingface(
        MaskedLM(EncoderConfig(1, 8, 2, 8, 20)), tmp_path / "x", card=f"from {os.fsdecode(b'caf' + bytes([233]))}"
    )
    assert (tmp_path / "x" / "README.md").read_text() == "from caf\\udce9"


@pytest.mark.parametrize(
    ("kind", "task"), [(SequenceClassifier, "text-classification"), (TokenClassifier, "token-classification")]
)
def test_pipelines_of_transformers_take_classifiers(kind, task, tmp_path, monkeypatch):
    """(Transformers 5 has no pipeline for question answering any more.)"""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    as_folder(headed_model(kind), tmp_path / "theirs")
    result = run(tmp_path / "theirs", tmp_path / "hf", "--to", "hf", "--tokenizer", demo.FOLDER)
    assert result.returncode == 0
    ours, ids = load_checkpoint(tmp_path / "hf"), Tokenizer(demo.FOLDER).encode("Le film est bon.")
    probabilities = ours(torch.tensor([ids])).softmax(dim=-1)[0]
    if task == "text-classification":
        expected, name, settings = probabilities[None], "label", {}
    else:  # one per token between <s> and </s>; by default the pipeline leaves out O
        expected, name, settings = probabilities[1:-1], "entity", {"ignore_labels": []}
    answers = transformers.pipeline(task, model=str(tmp_path / "hf"), **settings)("Le film est bon.")
    assert len(answers) == len(expected) > 0
    for answer, (score, label) in zip(answers, (row.max(dim=-1) for row in expected), strict=True):
        assert answer[name] == LABELS[label]
        assert answer["score"] == pytest.approx(score.item(), rel=1e-4)


def test_sentence_transformers_opens_an_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    assert run(demo.TEACHER, tmp_path / "hf", "--to", "hf", "--kind", "encoder").returncode == 0
    sentences = ["Le film est bon.", "Une ville du nord, l'été."]
    vectors = library.SentenceTransformer(str(tmp_path / "hf"), device="cpu").encode(sentences)
    ours, tokenizer = load_checkpoint(tmp_path / "hf"), Tokenizer(demo.FOLDER)
    for sentence, vector in zip(sentences, vectors, strict=True):
        expected = ours(torch.tensor([tokenizer.encode(sentence)]))[0].mean(dim=0)
        assert torch.tensor(vector) == pytest.approx(expected.detach(), abs=1e-5)
