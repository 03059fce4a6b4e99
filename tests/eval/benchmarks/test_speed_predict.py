"""The part `predict` of the inference benchmark: what is run, and the share that is computed of it."""

import json
import subprocess
from unittest.mock import Mock

import pytest

from data import Tokenizer, demo
from eval.benchmarks import speed, speed_predict
from eval.benchmarks.harness import Row, configs
from eval.benchmarks.speed_predict import MODEL, START_UP, WHOLE
from model import Encoder
from model.training.device import Runtime
from tests.eval.tasks.shared import RUNTIME

OPTIONS = speed.Options(small=True, device="cpu")
LINES = ["Elle habite à Brest.", "Le chat dort.", "Il a faim."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    speed_predict.write_inputs(Encoder(configs(small=True)[0]), Tokenizer(demo.FOLDER), LINES, 6, folder)
    return folder


def test_the_command_answers_every_line_of_the_file(folder):
    speed_predict.command_row(OPTIONS, RUNTIME, folder, WHOLE)()
    answers = [json.loads(line) for line in (folder / f"{WHOLE}.jsonl").read_text().splitlines()]
    assert [answer["line"] for answer in answers] == [1, 2, 3, 4, 5, 6] and set(answers[0]["scores"]) > {"LABEL_0"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_model_alone_runs_on_the_same_tokens(folder, monkeypatch, precision):
    infer = Mock(side_effect=speed_predict.infer_asked)
    monkeypatch.setattr(speed_predict, "infer_asked", infer)
    run = speed_predict.model_row(OPTIONS, Runtime(RUNTIME.device, precision), folder)
    assert not infer.called
    run()
    ((model, features, runtime, budget), _) = infer.call_args
    assert [each.ids for each in features] == [Tokenizer(demo.FOLDER).encode(line) for line in LINES for _ in (1, 2)]
    assert (runtime.precision, budget) == (precision, OPTIONS.batch_tokens) and infer.call_count == 1
    assert ("Quantised" in str(model)) == (precision == "int8")


def test_a_command_that_fails_is_said(folder, monkeypatch):
    monkeypatch.setattr(subprocess, "run", Mock(return_value=Mock(returncode=2, stderr="note: x\nIt is é.\n".encode())))
    with pytest.raises(RuntimeError, match="^It is é.$"):
        speed_predict.command_row(OPTIONS, RUNTIME, folder, START_UP)()


def rows(*seconds):
    """Of two rounds: the command, its start-up, the model alone."""
    return {name: Row(name, 0.0, list(each), 0, 0) for name, each in zip((WHOLE, START_UP, MODEL), seconds)}


@pytest.mark.parametrize(
    ("seconds", "share", "reached"),
    [
        (((11.0, 12.0, 7.0), (1.0, 2.0, 2.0), (9.5, 9.0, 4.9)), 0.95, True),  # of 0.95, 0.9 and 0.98
        (((3.0,), (1.0,), (1.7,)), 0.85, True),
        (((3.0,), (1.0,), (1.698,)), 0.849, False),
    ],
)
def test_the_share_is_of_the_time_without_the_start_up(tmp_path, monkeypatch, capsys, seconds, share, reached):
    """Through the command, with times that are known."""
    measured = rows(*seconds)
    monkeypatch.setattr(speed, "measure", lambda jobs, options: [measured[job.name] for job in jobs])
    monkeypatch.setattr(speed, "missing_for_onnx", lambda: ["onnx"])
    monkeypatch.setattr(speed, "transformers_model", Mock(side_effect=ImportError(name="transformers")))
    out = tmp_path / "speed.json"
    speed.main(["--small", "--only", "predict", "--predict-lines", "100", "--device", "cpu", "--out", str(out)])
    (verdict,) = json.loads(out.read_text(encoding="utf-8"))["verdicts"]
    assert verdict["share"] == pytest.approx(share) and verdict["reached"] is reached
    said = f"predict, fp32: predict {share:.1%} of the model's own rate (minimum 85.0%, goal 95.0%): "
    assert said + ("reached" if reached else "not reached") in capsys.readouterr().out


def test_the_table():
    report = speed_predict.predict_table(100, {"int8": rows((3.0,), (1.0,), (1.0,))})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines()]
    assert cells[0] == ["predict sentiment, 100 lines", "rate", MODEL, "share", "start-up"]
    assert cells[2] == ["int8", "50 lines/s", "100 lines/s", "50.0%", "1.00 s"]
