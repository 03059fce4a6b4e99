"""What is printed before the first step and at the end, and that its commands can be run."""

import importlib
import re
import shlex
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from data.cli import parse_options
from model.training import report
from model.training.device import Runtime
from model.training.plan import Work
from model.training.run_state import STUDENT
from model.training.state import TrainState

CPU = Runtime(torch.device("cpu"), "bf16")
WORK = Work(first=0, last=3600, blocks=8, block_size=128, eval_every=1800)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (None, "the demo's text, prepared in cache/ab, 20 blocks held out\nnote      the corpus is a demo:"),
        (["texts/"], "corpus    texts/, prepared in cache/ab, 20 blocks held out\n"),
        (["cache/ab"], "corpus    cache/ab, 20 blocks held out\n"),
        (list("abcde"), "corpus    a, b, c and 2 more, prepared in cache/ab, 20 blocks held out\n"),
    ],
)
def test_where_the_text_comes_from(capsys, paths, expected):
    report.print_corpus(paths, Path("cache/ab"), 20)
    assert expected in capsys.readouterr().out


def test_the_loss_names_its_divergence(capsys):
    report.print_loss((0.5, 0.3, 0.2), "teacher-student", 2.0)
    report.print_loss(None, "student-teacher", 1.0)
    loss = "0.5 soft label + 0.3 cosine + 0.2 masked LM, D_KL(teacher || student), temperature 2"
    assert capsys.readouterr().out == f"loss      {loss}\nloss      masked LM\n"


def test_the_folder_of_a_sample_is_not_named(capsys):
    report.print_corpus(["texts/"], None, 20)
    assert capsys.readouterr().out == "corpus    texts/\n"


def test_the_run_in_tokens_and_epochs(capsys):
    report.print_run(WORK, 1e-3 / 3, 14400, "", CPU, ranks=4)
    report.print_run(WORK, 1e-3, None, "45,000.0 MB in 12 files", CPU, ranks=1)
    known, unknown = capsys.readouterr().out.split("run  ")[1:]
    assert "3,600 steps on cpu, bf16, torch " in known and " thread" in known and known.count(", 4 ranks\n") == 1
    assert "\nlr        0.00033 after the warm-up\n" in known and "\nlr        0.001 after" in unknown
    assert known.endswith("tokens    1,024 a step, 3,686,400 in all: 2 epochs of 14,400 blocks of 128\n")
    assert "epochs are unknown until the corpus is fetched and prepared: 45,000.0 MB in 12 files\n" in unknown


@pytest.mark.parametrize(("blocks", "warns"), [(2880, False), (2879, True), (100, True)])
def test_a_corpus_that_is_repeated_more_than_ten_times_is_a_warning(capsys, blocks, warns):
    report.print_run(WORK, 1e-3, blocks, "", CPU, ranks=1)
    assert ("warning: the corpus is repeated" in capsys.readouterr().err) == warns


@pytest.mark.parametrize(("free", "warns"), [(10**9, False), (1000, True)])
def test_hours_and_disk(capsys, monkeypatch, tmp_path, free, warns):
    monkeypatch.setattr(report.plan.shutil, "disk_usage", lambda path: namedtuple("usage", "free")(free))
    distiller = nn.Module()
    distiller.student = nn.Linear(1000, 50, bias=False)  # 200 kB
    report.print_cost(WORK._replace(first=1800), 2.0, 90.0, tmp_path, distiller, keep=2)
    output = capsys.readouterr()
    assert "time      about 1.02 hours, until " in output.out and ": 2 s a step, 1 validation\n" in output.out
    assert f"disk      at most 2.2 MB in {tmp_path}; " in output.out
    assert ("too little room" in output.err) == warns


@pytest.mark.parametrize(
    ("step", "expected"),
    [(2.0, r"2 hours, until \d\d:\d\d: "), (400.0, r"400 hours, until \d\d \w+ \d\d:\d\d: "), (1e16, r" hours: ")],
)
def test_the_date_when_the_run_ends(capsys, tmp_path, step, expected):
    distiller = nn.Module()
    distiller.student = nn.Linear(10, 5)
    report.print_cost(WORK, step, 0.0, tmp_path, distiller, keep=2)
    assert re.search(rf"time      about \S*{expected}", capsys.readouterr().out)


def test_sizes_beside_the_teacher(capsys):
    models = {"teacher": nn.Linear(1000, 200, bias=False), "student": nn.Linear(1000, 100, bias=False)}
    report.print_sizes(models, {"teacher": 5000.0, "student": 9500.0})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["parameters", "200,000", "100,000", "×", "0.50"] in lines
    assert ["weights", "in", "fp32", "0.8", "MB", "0.4", "MB", "×", "0.50"] in lines
    assert ["encoder,", "tokens/s", "5,000", "9,500", "×", "1.90"] in lines
    report.print_sizes({"student": models["student"]}, {"student": 9500.0})
    assert "×" not in capsys.readouterr().out


def test_every_file_of_a_run_is_named_with_its_size_and_purpose(tmp_path, capsys):
    for name in report.PURPOSES:
        path = tmp_path / name if "." in name else tmp_path / name / "step-3" / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1200)
    report.print_files(tmp_path, TrainState(step=1500, seconds=3700.0, best_step=1200), 1024)
    out = capsys.readouterr().out
    assert f"1,500 steps, 1,536,000 tokens, in 01:01:40. Written to {tmp_path}:" in out
    assert out.count(" 1.2 kB  ") == len(report.PURPOSES) and "the student of step 1,200" in out
    (tmp_path / "best.safetensors").unlink()
    report.print_files(tmp_path, TrainState(step=1), 1)
    assert "best.safetensors" not in capsys.readouterr().out


MODULES = {"fill-mask": "eval.tasks.fill_mask", "table2": "eval.tasks.table2", "finetune": "eval.tasks.finetune"}
MODULES |= {"train.py": "model.training.options", "convert_weights.py": "convert_weights"}


@pytest.mark.parametrize(("teacher", "is_demo"), [("demo", True), ("a teacher.safetensors", False), (None, False)])
def test_the_three_next_commands_can_be_parsed(capsys, teacher, is_demo):
    commands = report.next_commands(Path("runs/été d'or"), teacher, is_demo)
    report.print_next(commands)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [shlex.split(line) for line in printed] == list(commands.values()) and len(commands) == 3
    for _python, *words in commands.values():
        name, *rest = words[2:] if words[0] == "-m" else words
        rest = rest[1:] if name == "finetune" else rest
        parse_options(importlib.import_module(MODULES[name]).Options, rest, "", "")
    assert any(str(Path("runs/été d'or") / STUDENT) in words for words in commands.values())
