"""Shared by the tests of the tasks."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from data import Tokenizer, demo
from losses import IGNORE_INDEX
from model import save_model
from model.training.device import Runtime
from tests.helpers import REPOSITORY

TOKENIZER = Tokenizer(demo.FOLDER)
RUNTIME = Runtime(torch.device("cpu"))
ON_CPU = ("--device", "cpu", "--precision", "fp32")


def ignore(sentence: str) -> None:
    pass


def write(path: Path, *values) -> Path:
    """JSON lines; bytes are written as they are."""
    lines = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def save(model, path: Path, noise: float = 0.0) -> Path:
    """Saves a model, with the demo's tokenizer beside it. noise: added to weights, so that outputs differ by text."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    save_model(model.eval(), path, tokenizer=TOKENIZER)
    return path


def pipe(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(raw=io.BytesIO(content))))


def succeeded(result):
    assert result.returncode == 0, result.stderr
    return result


def run_with_closed_output(*arguments) -> int:
    """Runs python -m eval in a process whose standard output nobody reads -> its exit status"""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "eval", *map(str, arguments)]
    process = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=REPOSITORY, text=True)
    os.close(writing)
    assert "Traceback" not in process.stderr, process.stderr
    return process.returncode


def check_error(result, *sentences: str) -> None:
    """One message on stderr, exit status 2, no output."""
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("python -m eval: ") and all(s in result.stderr for s in sentences), result.stderr


def asked(outputs, features) -> list[torch.Tensor]:
    """Of the outputs of all tokens, those that the task decodes; of a text classifier, the one that there is."""
    return [each[list(feature.asked)] if each.ndim == 2 else each for each, feature in zip(outputs, features)]


def confident_outputs(features, num_labels: int) -> list[torch.Tensor]:
    """Outputs of a model that is certain of every target: logit 30 for the target, 0 for the rest."""
    outputs = []
    for feature in features:
        if isinstance(feature.target, int):
            output = F.one_hot(torch.tensor(feature.target), num_labels)
        elif feature.window is not None:
            output = torch.zeros(len(feature.ids), 2)
            output[list(feature.target), [0, 1]] = 1
        else:
            output = torch.zeros(len(feature.ids), num_labels)
            for position, target in enumerate(feature.target):
                if target != IGNORE_INDEX:
                    output[position, target] = 1
        outputs.append(30.0 * output.float())
    return asked(outputs, features)


def checked_metrics(report: dict):
    """All metrics of a report, after asserting that each lies in its interval."""
    for metric in report.values():
        if isinstance(metric, dict) and "value" in metric:
            assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
            yield metric
        elif isinstance(metric, dict):
            yield from checked_metrics(metric)
