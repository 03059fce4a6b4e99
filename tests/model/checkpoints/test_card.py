"""The model card of an exported student."""

import shlex

from data.cli import parse_options
from model.checkpoints.card import command, last_metrics, model_card
from train import Options

PROVENANCE = {
    "options": {"teacher": "camembert-base", "corpus": ["oscar/", "deux mots"], "steps": 10, "tokenizer": None},
    "versions": {"python": "3.11", "torch": "2.13"},
    "held_out_accuracy": {"teacher": 0.5, "student after": 0.4321},
}
METRICS = {"step": 10, "loss": 1.25, "soft_label_loss": 0.5, "cosine_loss": None, "mlm_loss": 2.0}


def test_what_a_student_s_card_says():
    card = model_card("CamembertForMaskedLM", 6, PROVENANCE, METRICS)
    for words in ("pipeline_tag: fill-mask", "language: fr", "license:  # fill in", "Distilled from `camembert-base`",
                  "--corpus oscar/ 'deux mots'", "| total | 1.2500 |", "| masked LM | 2.0000 |", "step 10",
                  "| student after | 43.2% |", "torch 2.13", "6 layers"):  # fmt: skip
        assert words in card, words
    assert "cosine" not in card and "tokenizer" not in card  # what is not known is not said


def test_a_card_that_knows_little():
    card = model_card("CamembertForTokenClassification", 6, {"converted from": "x"}, {})
    assert "Converted from `x`" in card and "pipeline_tag: token-classification" in card and "Losses" not in card
    assert "from random numbers" in model_card("CamembertForMaskedLM", 1, {"options": {"teacher": "none"}}, {})


def test_the_command_gives_the_options_back():
    from dataclasses import asdict

    options = Options(teacher="a b", corpus=("x", "y z"), weights=(0.1, 0.2, 0.7), dropout=0.0, layers=("0", "2"))
    words = shlex.split(command(asdict(options)))
    assert words[:2] == ["python", "train.py"]
    assert parse_options(Options, words[2:], "", "") == options


def test_the_last_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) == {}
    for text, expected in (("", {}), ('{"step": 1}\n{"step": 2}\n', {"step": 2}), ("[1]\n", {}), ("{torn", {})):
        path.write_text(text)
        assert last_metrics(path) == expected
