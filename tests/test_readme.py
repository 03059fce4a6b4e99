"""The READMEs are true: their maps, commands, examples, equations and figures."""

import importlib
import re
import shlex

import pytest

import convert_weights
from data import demo
from data.cli import parse_options
from data.tasks import TASKS
from model import EncoderConfig, count_parameters
from model.training.optim import BETAS, EPSILON, default_lr
from model.training.options import Options
from tests.helpers import PAPER, REPOSITORY, needs

FOLDERS = ("model", "losses", "data", "eval")
READMES = {name: (REPOSITORY / name / "README.md").read_text(encoding="utf-8") for name in (".", *FOLDERS)}
ALL = "\n".join(READMES.values())
SAME = {r"\\[Vv]ert|\\[|lr]+vert|\\mid|\\\|": "|", r"\\(?:left|right|quad|,)|\s+": ""}  # spellings of one formula


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", ALL, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines += re.findall(r"`((?:\w+=\S+ )*python [^`]+)`", ALL)  # and those in running text
    parts = [re.sub(r"^(\w+=\S+ )+", "", part.strip()) for line in lines for part in line.split("&&")]
    parts = [re.sub(r"^torchrun (--\S+ \d+ )*", "python ", part) for part in parts]
    return sorted({part for part in parts if part.startswith("python ")})


def equation_rows():
    """(equation, formula, function, module) of every row of the equation tables."""
    row = r"^\| (\S+) \| (.+) \| `([\w.]+)` in `([\w/]+)\.py` \|$"
    return re.findall(row, ALL, flags=re.MULTILINE)


def test_the_map_is_the_tree():
    tree = re.search(r"```\n(model/.*?)```", READMES["."], flags=re.DOTALL)[1]
    named, folder = set(), ""
    for line in filter(None, tree.splitlines()):
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name if name.endswith("/") else ""
        named.add(folder + name if line.startswith(" ") else name)
    there = {path.name + "/" * path.is_dir() for path in REPOSITORY.iterdir() if not path.name.startswith(".")}
    there -= {"runs/", "LICENSE", "pyproject.toml", "__pycache__/"}
    for name in FOLDERS:
        inner = (path for path in (REPOSITORY / name).iterdir() if path.is_dir() and not path.name.startswith("__"))
        there |= {f"{name}/{path.name}/" for path in inner}
    assert named == there


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_readme_names_every_file_in_it(folder):
    names = {path.name + "/" * path.is_dir() for path in (REPOSITORY / folder).iterdir() if path.suffix in ("", ".py")}
    names = {name for name in names if not name.startswith("__")}
    assert {name for name in names if f"{name}`" not in READMES[folder]} == set()


@pytest.mark.parametrize("folder", READMES)
def test_every_link_leads_somewhere(folder):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", READMES[folder]):
        assert (REPOSITORY / folder / link).exists(), link


@pytest.mark.parametrize("command", commands())
def test_every_command_can_be_parsed(command):
    words = shlex.split(command, comments=True)[1:]
    if words[:2] in (["-m", "data.prepare"], ["-m", "data.inspect"]):
        parse_options(importlib.import_module(words[1]).Options, words[2:], "", "")
    elif words[:2] == ["-m", "eval"] and words[2:] not in (["TASK"], ["COMMAND"]):
        name, *rest = words[2:]
        module = "evaluate" if name in TASKS else name.replace("-", "_")
        package = "benchmarks" if name in ("speed", "throughput", "attention", "gpu") else "tasks"
        module = {"gpu": "gpu.results", "reproduce": "reproduce.command"}.get(name, module)
        rest = rest[1:] if name in ("finetune", "predict") else rest
        package = "" if name == "reproduce" else f"{package}."
        options = importlib.import_module(f"eval.{package}{module}").Options
        if rest or name not in TASKS:  # `python -m eval nli` alone stands for the command
            parse_options(options, rest, "", "")
    elif words[0] == "-m":
        assert words[1] in ("venv", "pytest") or importlib.util.find_spec(words[1])
    elif words[0] == "train.py" and "--help" not in words:
        parse_options(Options, words[1:], "", "")
    elif words[0] == "convert_weights.py" and words[1:] != ["--check"]:
        parse_options(convert_weights.Options, words[1:], "", "")
    else:
        assert (REPOSITORY / words[0]).exists()


@pytest.mark.parametrize("code", blocks("python"))
def test_every_example_runs(code, capsys):
    code = code.replace("runs/distilcamembert/student.safetensors", str(demo.TEACHER))
    exec(code.replace("runs/distilcamembert", str(demo.FOLDER)), {})
    assert capsys.readouterr().out


def test_the_two_commands_are_there_for_ci():
    assert "pip install -r requirements.txt && python train.py\n" in READMES["."]
    assert "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest\n" in READMES["."]


@pytest.mark.parametrize("equation, formula, name, module", equation_rows())
def test_an_equation_is_where_the_table_says(equation, formula, name, module):
    found = importlib.import_module(module.replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    opening = {"H_0": "H_0, section 2.", "§3.1": "Section 3.1"}.get(equation, f"Equation {equation}, section ")
    assert found.__doc__.lstrip().startswith(opening)


def test_every_equation_is_in_a_table():
    assert {row[0] for row in equation_rows()} == {"H_0", "§3.1", *(f"({n})" for n in range(1, 16))}


@needs(PAPER)
@pytest.mark.parametrize("equation, formula", [row[:2] for row in equation_rows() if "$" in row[1]])
def test_a_formula_is_the_papers(equation, formula):
    def plain(text):
        for pattern, replacement in SAME.items():
            text = re.sub(pattern, replacement, text)
        return text

    formulas = re.findall(r"\$\$((?:(?!\$\$).)*)\$\$", PAPER.read_text(encoding="utf-8"), flags=re.DOTALL)
    papers = [text for text in formulas if re.search(rf"(\\tag\{{{equation[1:-1]}\}}|\({equation[1:-1]}\))\s*$", text)]
    assert plain(papers[0]).startswith(plain(formula.strip("$")))


def test_the_figures():
    for config in (EncoderConfig.camembert(), EncoderConfig.distilcamembert()):
        assert f"{count_parameters(config):,}" in READMES["model"]
    options = Options()
    assert default_lr(256, True) == 1e-3 and options.warmup == 0.05
    assert options.clip == 5 and options.weight_decay == 0
    assert options.dropout == 0 and options.masking_rate == 0.4
    assert BETAS == (0.9, 0.98) and EPSILON == 1e-6 and options.weights == (0.5, 0.3, 0.2)
    rates = (f"{1e4 * default_lr(768, has_teacher):.1f}e-4" for has_teacher in (True, False))
    text = "learning rate 1e-3 (less for students wider than 256: {} for 768, and {} without a teacher), no dropout"
    assert text.format(*rates) in READMES["losses"]
    assert "40 % of the tokens masked in training" in READMES["losses"]
    assert "β 0.9 and 0.98, ε 1e-6, no weight decay, 5 % warm-up" in READMES["losses"]


@needs(PAPER)
def test_table_2_is_the_papers():
    lines = PAPER.read_text(encoding="utf-8").replace(",", ".").splitlines()
    papers = [re.findall(r"\d\d\.\d\d", line) for line in lines if re.match(r"(Distil)?CamemBERT\t×", line)]
    rows = [
        re.findall(r"\d\d\.\d\d", line) for line in READMES["."].splitlines() if "CamemBERT, " in line and "| ×" in line
    ]
    assert len(papers) == 2 and rows[:2] == papers


def test_the_requirements_are_those_five():
    lines = (REPOSITORY / "requirements.txt").read_text().split()
    assert [re.match(r"\w+", line)[0] for line in lines] == ["torch", "sentencepiece", "numpy", "safetensors", "pytest"]
    assert lines[0] == "torch>=2.11"  # no upper limit: the newest release is what users have
    assert "torch 2.11.0, 2.13.0 and 2.14.1" in READMES["."]


def test_the_demo_is_small():
    folder = REPOSITORY / "data/demo"
    assert sum((folder / name).stat().st_size for name in ("sentencepiece.bpe.model", "teacher.safetensors")) < 6e6
