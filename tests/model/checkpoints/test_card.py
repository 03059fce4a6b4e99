"""The model card: what it says of each way in which a model can be made, and of damaged provenance."""

import json
import shlex
from dataclasses import asdict

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.cli import parse_options
from model import EncoderConfig, MaskedLM, save_model
from model.checkpoints.card import command, last_metrics, model_card, read_provenance
from model.training.options import Options
from tests.model.checkpoints.files import as_file, headed_model

DISTILLED = {
    "options": {"teacher": "camembert-base", "corpus": ["oscar/", "deux mots"], "steps": 10, "tokenizer": None},
    "versions": {"python": "3.11", "torch": "2.13"},
    "held_out_accuracy": {"teacher": 0.5, "student after": 0.4321},
}
METRICS = {"step": 10, "loss": 1.25, "soft_label_loss": 0.5, "cosine_loss": None, "mlm_loss": 2.0}
FINE_TUNED = {
    "task": "nli",
    "model": "0123",
    "teacher": None,
    "command": "python -m eval finetune nli --model student.safetensors --train a.tsv b.tsv --dev dev.tsv --out 'a b'",
    "options": {"model": "student.safetensors", "train": ["a.tsv", "b.tsv"], "dev": ["dev.tsv"], "test": []}
    | {"teacher": None, "soft_weight": 0.7, "temperature": 2.0, "lr": 5e-5},
    "files": {"a.tsv": "45", "b.tsv": "67", "dev.tsv": "89"},
    "seeds": [0, 1],
    "examples": {"train": "ab", "dev": "cd"},
    "versions": {"python": "3.11"},
    "run": {"seed": 1, "epoch": 3, "dev": {"accuracy": {"value": 0.75, "low": 0.5, "high": 0.875}, "count": 8}},
}
SEQUENCES = "CamembertForSequenceClassification"


def assert_says(card, *sentences, absent=()):
    assert [each for each in sentences if each not in card] == []
    assert [each for each in absent if each in card] == []


def test_a_student():
    card = model_card("CamembertForMaskedLM", 6, DISTILLED, METRICS)
    assert_says(card, "pipeline_tag: fill-mask", "language: fr", "license:  # fill in", "6 layers", "torch 2.13")
    assert_says(card, "Distilled from `camembert-base` by DistilCamemBERT's method, on `oscar/`, `deux mots`:")
    assert_says(card, "python train.py --teacher camembert-base --corpus oscar/ 'deux mots' --steps 10\n")
    assert_says(card, "step 10", "| total | 1.2500 |", "| masked LM | 2.0000 |", "| student after | 43.2% |")
    assert_says(card, absent=("cosine", "tokenizer", "None"))  # unknown values are left out


def test_a_model_without_a_teacher_and_a_converted_one():
    options = {"teacher": "none", "corpus": ["oscar/"], "steps": 10}
    card = model_card("CamembertForMaskedLM", 1, {"options": options}, {})
    assert_says(card, "Trained from random weights, without a teacher, on `oscar/`:")
    assert_says(card, "python train.py --teacher none --corpus oscar/ --steps 10\n", absent=("Distilled", "losses"))
    card = model_card("CamembertForTokenClassification", 6, {"converted from": "x"}, METRICS)
    assert_says(card, "Converted from `x`", "pipeline_tag: token-classification", absent=("losses", "train.py"))


@pytest.mark.parametrize(
    "architecture, head, sentence",
    [
        (SEQUENCES, "regression", "The output is a value"),
        (SEQUENCES, "multi_label_classification", "A text can have several labels"),
        ("CamembertForQuestionAnswering", -1.25, "by more than -1.2500 (transformers' `null_score_diff_threshold`)"),
        ("CamembertForQuestionAnswering", 2, "by more than 2.0000"),
    ],
)
def test_how_outputs_are_read(architecture, head, sentence):
    assert_says(model_card(architecture, 6, {}, {}, head), sentence)
    plain = model_card(architecture, 6, {}, {}, "single_label_classification" if architecture == SEQUENCES else None)
    assert plain == model_card(architecture, 6, {}, {})


def test_a_fine_tuned_model():
    card = model_card(SEQUENCES, 6, {**FINE_TUNED, "converted from": "x"}, METRICS)
    assert_says(card, "pipeline_tag: text-classification", "license:  # fill in", "(epoch 3, seed 1)", "python 3.11")
    assert_says(card, "Fine-tuned from `student.safetensors` for natural language inference:\n")
    assert_says(card, f"```\n{FINE_TUNED['command']}\n```")
    assert_says(card, "Trained on `a.tsv`, `b.tsv`; best epoch chosen on `dev.tsv`.\n")
    absent = ("istilled", "train.py", "None", "Tested", "test", "losses", "unknown", "Converted", "count")
    assert_says(card, "| figure | dev |\n| --- | --- |\n| accuracy | 0.7500 |\n\n", absent=absent)


def test_a_fine_tuned_model_with_a_teacher_and_a_test_set():
    options = {**FINE_TUNED["options"], "teacher": "tuned/model.safetensors", "test": ["test.tsv"]}
    run = {**FINE_TUNED["run"], "test": {"accuracy": {"value": 0.625}}}
    card = model_card(SEQUENCES, 6, {**FINE_TUNED, "options": options, "run": run}, {})
    assert_says(card, "distilled from `tuned/model.safetensors`, a teacher of the same task")
    assert_says(card, "(weight of its soft labels 0.7, temperature 2.0)", "Tested on `test.tsv`.")
    assert_says(card, "| figure | dev | test |\n| --- | --- | --- |\n| accuracy | 0.7500 | 0.6250 |\n")


def test_a_model_of_table2_whose_examples_were_split():
    files = [*FINE_TUNED["files"]]
    options = {**FINE_TUNED["options"], "train": files, "dev": files}
    card = model_card(SEQUENCES, 6, {**FINE_TUNED, "options": options}, {})
    assert "Trained and evaluated on parts of `a.tsv`, `b.tsv`, `dev.tsv`." in card and "Trained on" not in card


DEEP = json.loads("[" * 400 + "]" * 400)
DAMAGED = [None, 3, True, "x\n```\n# `title`", [1], {"a": 1}, [None, {}], float("nan"), DEEP]


@pytest.mark.parametrize("provenance", [DISTILLED, FINE_TUNED], ids=["distilled", "fine-tuned"])
@pytest.mark.parametrize("value", DAMAGED, ids=lambda value: str(value)[:10])
def test_damaged_provenance_still_gives_a_card(provenance, value):
    """Each value in turn is replaced, at every depth."""

    def damaged(tree):
        for key, inner in tree.items():
            yield {**tree, key: value}
            if isinstance(inner, dict):
                yield from ({**tree, key: other} for other in damaged(inner))

    for tree in (*damaged(provenance), dict.fromkeys(provenance, value)):
        for metrics in ({}, *damaged(METRICS)):
            card = model_card(SEQUENCES, 6, tree, metrics)
            lines = card.splitlines()
            assert "None" not in card and "{" not in card and "[[" not in card
            assert lines[0] == "---" and sum(line.startswith("```") for line in lines) in (0, 2)
            assert sum(line.startswith("# ") for line in lines) == 1


def test_provenance_is_read_from_native_files_only(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(MaskedLM(EncoderConfig(1, 8, 2, 8, 20)), path, DISTILLED)
    assert read_provenance(path) == DISTILLED
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for text in ("{", "[1]", "null", "3", "[" * 100_000):
        save_file(load_file(path), path, metadata={**metadata, "provenance": text})
        assert read_provenance(path) == {}
    assert read_provenance(as_file(headed_model(MaskedLM), tmp_path / "theirs")) == {}


def test_the_command_restores_the_options():
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
