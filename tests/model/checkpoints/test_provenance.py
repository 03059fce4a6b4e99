"""What is stored of how a model was made: its origin on the hub travels, its local paths do not."""

import json
import shlex
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data import demo
from data.cli import parse_options
from model import EncoderConfig, MaskedLM, save_model
from model.checkpoints.provenance import (
    base_model,
    is_demo,
    origins,
    read_metrics,
    read_provenance,
    read_results,
    shown,
    shown_command,
)
from model.training.options import Options
from tests.model.checkpoints.files import as_file, headed_model

BASE = f"almanach/camembert-base@{'0123456789' * 4}"
PROVENANCE = {"options": {"teacher": "none"}}


def saved(path, provenance):
    save_model(MaskedLM(EncoderConfig(1, 8, 2, 8, 20)), path, provenance)
    return str(path)


def test_the_name_on_the_hub_travels_from_run_to_run(tmp_path):
    converted = saved(tmp_path / "camembert.safetensors", {"converted from": BASE})
    options = {"teacher": converted, "student": None, "corpus": ["x"]}
    found = origins(SimpleNamespace(**options), ("teacher", "student"))
    assert found == {"origins": {"models": {"teacher": BASE}, "datasets": [], "demo": False}}
    student = saved(tmp_path / "run" / "student.safetensors", {"options": options, **found})
    assert base_model(read_provenance(tmp_path / "run" / "student.safetensors")) == BASE
    for model in (student, str(tmp_path / "run")):  # the file, or the folder of the run
        options = {"model": model, "teacher": BASE}
        found = origins(SimpleNamespace(**options), ("model", "teacher"))
        assert found["origins"]["models"] == {"model": BASE, "teacher": BASE}
        assert base_model({"task": "nli", "options": options, **found}) == BASE


def test_origins_of_other_models_and_of_texts(tmp_path):
    own = saved(tmp_path / "own.safetensors", {"converted from": "models/camembert", **PROVENANCE})
    cache = tmp_path / "models--a--b-c" / "snapshots" / BASE[-40:]  # of huggingface_hub
    cached = as_file(headed_model(MaskedLM), cache)
    options = SimpleNamespace(model=own, teacher=str(cached.parent), other="none")
    sources = [{"name": name} for name in ("hub:c/d/x/1.parquet", "hub:c/d/x/2.parquet", "/a/b.txt", "hub:no", None)]
    found = origins(options, ("model", "teacher", "other"), [*sources, {}])["origins"]
    assert found["datasets"] == ["c/d"] and not found["demo"]
    assert found["models"] == ({"teacher": f"a/b-c@{BASE[-40:]}"} if cached.is_relative_to(cache) else {})


def test_what_comes_from_the_demo(tmp_path):
    for value in ("demo", str(demo.TEACHER), saved(tmp_path / "x.safetensors", {"options": {"teacher": "demo"}})):
        assert origins(SimpleNamespace(model=value), ("model",))["origins"]["demo"], value
    assert is_demo({"options": {"teacher": "x", "corpus": ["demo"]}}) and not is_demo(PROVENANCE)


@pytest.mark.parametrize(
    "value, expected",
    [
        ("demo", "demo"),
        ("none", "none"),
        (BASE, BASE),
        ("hub:owner/data/fr@v1", "hub:owner/data/fr@v1"),
        ("hub:../x", "x"),
        ("almanach/camembert-base", "camembert-base"),  # may be a local path
        (f"../{BASE}", BASE.split("/")[1]),
        ("/home/jeanne/run/", "run"),
        ("/home/jeanne", "folder"),
        ("/home/jeanne//", "folder"),
        ("C:\\Users\\jeanne", "folder"),
        ("C:\\Users\\jeanne\\a.txt", "a.txt"),
        ("D:\\", "folder"),
        ("/Users/jeanne", "folder"),
        ("file:///home/jeanne", "folder"),
        ("~jeanne", "folder"),
        ("~", "folder"),
        ("/", "folder"),
        ("..", "folder"),
        ("", "folder"),
        ("x.zip/dev/a.tsv", "a.tsv"),
        (None, "unknown"),
        (3, "unknown"),
    ],
)
def test_a_path_as_a_card_shows_it(value, expected):
    assert shown(value) == expected


@pytest.mark.parametrize(
    "given, expected",
    [
        ("--model /a/b.safetensors --dev=c/d.tsv", "--model b.safetensors --dev=d.tsv"),
        ("--model almanach/camembert-base@main --train a/b", "--model almanach/camembert-base@main --train b"),
        ("--label-map a/b=c --lr 5e-4", "--label-map a/b=c --lr 5e-4"),
        ("--anything /a/b --other=~/c ./d", "--anything b --other=c d"),
        ("--train '/a b/c d' 'x\\y'", "--train 'c d' y"),
    ],
)
def test_a_command_without_paths(given, expected):
    stored = {"task": "nli", "command": f"python -m eval finetune nli {given}", "options": {"model": BASE}}
    assert shown_command(stored) == f"python -m eval finetune nli {expected}"


@pytest.mark.parametrize("command", [None, 3, "", "rm -rf /", "python -m eval 'open", "python x.py"])
def test_a_command_that_is_none(command):
    assert shown_command({"task": "nli", "command": command}) == ""


def test_the_command_of_train_restores_the_options():
    options = Options(teacher="a b", corpus=("x", "y z"), weights=(0.1, 0.2, 0.7), dropout=0.0, layers=("0", "2"))
    words = shlex.split(shown_command({"options": asdict(options)}))
    assert words[:2] == ["python", "train.py"]
    assert parse_options(Options, words[2:], "", "") == options


def test_provenance_is_read_from_native_files_only(tmp_path):
    path = tmp_path / "model.safetensors"
    saved(path, PROVENANCE)
    assert read_provenance(path) == PROVENANCE
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for text in ("{", "[1]", "null", "3", "[" * 100_000):
        save_file(load_file(path), path, metadata={**metadata, "provenance": text})
        assert read_provenance(path) == {}
    assert read_provenance(as_file(headed_model(MaskedLM), tmp_path / "theirs")) == {}


def test_the_metrics_of_the_same_student_only(tmp_path):
    """Not those of the last step, if the student is that of another one, or of another run."""
    path, held_out = tmp_path / "metrics.jsonl", {"loss": 0.5}
    assert read_metrics(path, {"held_out": held_out}) == {}
    records = [{"step": 1, "held_out": held_out}, {"step": 2}, {"step": 3, "held_out": {"loss": 0.75}}]
    path.write_text("\n".join(map(json.dumps, records)) + "\n{torn")
    assert read_metrics(path, {"held_out": held_out}) == records[0]
    assert read_metrics(path, {"held_out": {"loss": 0.75}}) == records[2]
    for other in ({}, {"held_out": None}, {"held_out": {"loss": 0.25}}):
        assert read_metrics(path, other) == {}
    for text in ("", "[1]\n", "{torn"):
        path.write_text(text)
        assert read_metrics(path, {"held_out": held_out}) == {}


def test_results_of_the_same_run_only(tmp_path):
    path, run = tmp_path / "results.json", {"seed": 1, "dev": {"f1": {"value": 0.5}}}
    about = {"task": "qa", "model": "m", "teacher": None, "tokenizer": "t", "examples": {"dev": "d"}}
    assert read_results(path, about) == {}
    results = {**about, "runs": [{"seed": 0}, run], "over_seeds": {}}
    path.write_text(json.dumps(results))
    assert read_results(path, {**about, "run": run}) == results
    for other in ({"run": {"seed": 2}}, {"run": run, "model": "n"}, {"run": run, "examples": {}}):
        assert read_results(path, {**about, **other}) == {}
    for text in ("{", "[]", '{"runs": 3}'):
        path.write_text(text)
        assert read_results(path, {"run": run}) == {}
