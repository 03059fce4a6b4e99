"""The README is true: its tree, its commands, its tables, its figures."""

import importlib
import re
import shlex

import pytest

import convert_weights
import train
from data.cli import parse_options
from data.tasks import TASKS
from model import EncoderConfig
from model.config import count_parameters
from tests.helpers import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines += re.findall(r"`(python [^`]+)`", README)  # and those in the running text
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return sorted({part for part in parts if part.startswith("python ")})


def test_the_tree_is_the_tree():
    tree = re.search(r"```\n(model/.*?)```", README, flags=re.DOTALL)[1]
    named, folder = set(), ""
    for line in filter(None, tree.splitlines()):
        name = line.split()[0]
        folder = "" if not line.startswith(" ") else folder
        named.add(folder + name)
        if not line.startswith(" ") and name.endswith("/"):
            folder = name
    assert all((REPOSITORY / name).exists() for name in named), named
    there = {path.name + "/" * path.is_dir() for path in REPOSITORY.iterdir()}
    there -= {"runs/", "LICENSE", "pyproject.toml", "__pycache__/"}
    assert {name for name in there if not name.startswith(".")} == {n for n in named if n.strip("/").count("/") == 0}
    for package in ("model", "losses", "data", "eval"):
        for path in (REPOSITORY / package).iterdir():
            if not path.name.startswith("__"):
                assert f"{package}/{path.name}{'/' * path.is_dir()}" in named, path


@pytest.mark.parametrize("command", commands())
def test_every_command_can_be_read(command):
    words = shlex.split(command, comments=True)[1:]
    if words[:2] in (["-m", "data.prepare"], ["-m", "data.inspect"]):
        parse_options(importlib.import_module(words[1]).Options, words[2:], "", "")
    elif words[:2] == ["-m", "eval"] and words[2:] not in (["TASK"], ["COMMAND"]):
        name, *rest = words[2:]
        module = "evaluate" if name in TASKS else name.replace("-", "_")
        rest = rest[1:] if name in ("finetune", "predict") else rest
        options = importlib.import_module(f"eval.{module}").Options
        if rest or name not in TASKS:  # `python -m eval nli` alone stands for the command
            parse_options(options, rest, "", "")
    elif words[0] == "-m":
        assert words[1] in ("venv", "pytest") or importlib.util.find_spec(words[1])
    elif words[0] == "train.py" and "--help" not in words:
        parse_options(train.Options, words[1:], "", "")
    elif words[0] == "convert_weights.py":
        parse_options(convert_weights.Options, words[1:], "", "")
    else:
        assert (REPOSITORY / words[0]).exists()


def test_the_two_commands_are_there_for_ci():
    assert "pip install -r requirements.txt && python train.py\n" in README
    assert "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest\n" in README


def test_every_function_of_the_equation_table_is_where_it_says():
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| `([\w.]+)` in `([\w/]+)\.py` \|$", README, flags=re.MULTILINE)
    assert len(rows) == 16
    for name, module in rows:
        found = importlib.import_module(module.replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)
        assert "quation" in found.__doc__ or "H_0" in found.__doc__ or "3.1" in found.__doc__


def test_the_figures():
    for config in (EncoderConfig.camembert(), EncoderConfig.distilcamembert()):
        assert f"{count_parameters(config):,}" in README
    options = train.Options()
    assert options.lr == 5e-4 and options.warmup == 0.05 and options.clip == 5 and options.weight_decay == 0
    assert train.BETAS == (0.9, 0.98) and train.EPSILON == 1e-6


def test_the_requirements_are_those_five():
    lines = (REPOSITORY / "requirements.txt").read_text().split()
    assert [re.match(r"\w+", line)[0] for line in lines] == ["torch", "sentencepiece", "numpy", "safetensors", "pytest"]
    assert "<2.14" in lines[0]


def test_the_demo_is_small():
    folder = REPOSITORY / "data/demo"
    assert sum((folder / name).stat().st_size for name in ("sentencepiece.bpe.model", "teacher.safetensors")) < 6e6
