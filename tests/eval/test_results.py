"""Result files: complete or absent, with what is needed to reproduce them."""

import hashlib
import json
import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime

import pytest
import torch

from data import OptionError
from data.cli import warn
from eval.results import check_writable, command_line, format_metrics, provenance, write_json
from model import ModelError
from model.checkpoints.native import sha256


@dataclass
class Settings:
    model: str = "m"
    labels: tuple[str, ...] = ("a", "b")


def test_provenance(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    found = provenance("python -m eval x", Settings(), [path], (1, 2))
    assert found["options"] == {"model": "m", "labels": ("a", "b")} and found["seeds"] == [1, 2]
    assert found["command"] == "python -m eval x"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    assert {name: value for name, value in found["versions"].items() if name != "commit"} == versions
    assert found["files"] == {str(path): hashlib.sha256(b"abc").hexdigest()} == {str(path): sha256(path)}
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(found["date"])).total_seconds()) < 60
    assert provenance("", {"a": 1}, [], [])["options"] == {"a": 1}
    json.dumps(found)


def test_the_command_line_can_be_run_again(monkeypatch):
    arguments = ["--template", "Ce texte parle de {}.", "--labels", "l'été", "", "$HOME"]
    line = command_line("zero-shot", arguments)
    assert shlex.split(line) == ["python", "-m", "eval", "zero-shot", *arguments]
    monkeypatch.setattr(sys, "argv", ["eval", "zero-shot", *arguments])
    assert command_line("zero-shot", None) == line
    assert command_line("qa", ["--model", "runs/a.safetensors"]) == "python -m eval qa --model runs/a.safetensors"


def test_json_files_are_complete_or_absent(tmp_path):
    path = tmp_path / "new" / "r.json"
    values = {"été": 1, "labels": ("a", "🎬"), "file": "not-utf-8-\udcff"}
    write_json(path, values)
    assert json.loads(path.read_text()) == {**values, "labels": ["a", "🎬"]}
    assert "été" in path.read_text() and path.read_bytes().endswith(b"}\n")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["été"] == 1
    assert [each.name for each in path.parent.iterdir()] == ["r.json"]
    with pytest.raises(ModelError, match="cannot be written"):
        write_json(path / "below", {})


def test_writable_paths(tmp_path):
    check_writable(tmp_path / "new" / "r.json")
    assert [each.name for each in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "there").write_text("a")
    check_writable(tmp_path / "there")
    assert (tmp_path / "there").read_text() == "a"
    with pytest.raises(OptionError, match="is a folder. Choose another --out."):
        check_writable(tmp_path)
    with pytest.raises(OptionError, match="there/r.json cannot be written"):
        check_writable(tmp_path / "there" / "r.json")
    with pytest.raises(OptionError, match="cannot be written: File name too long"):
        check_writable(tmp_path / ("a" * 300) / "r.json")


def test_metrics_and_warnings_on_screen(capsys):
    figure = {"value": 0.5, "low": 0.25, "high": 0.75}
    by_label = {"oui": {"f1": figure, "support": 3}, "non": {}}
    alone = {"value": 1, "low": None, "high": None}  # one example
    text = format_metrics({"accuracy": figure, "f1": alone, "by_label": by_label, "count": 4})
    assert text.split("\n") == [
        f"{'accuracy':<24} 0.5000   [0.2500, 0.7500]",
        f"{'f1':<24} 1.0000",
        "by_label",
        f"  {'oui':<22} f1 0.5000  support 3",
        f"  {'non':<22}   support ",
        f"{'count':<24} 4",
    ]
    warn("Oh.")
    assert capsys.readouterr() == ("", "warning: Oh.\n")
