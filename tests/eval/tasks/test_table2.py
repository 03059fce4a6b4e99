"""Table 2: which file is for what, the split, the lines of the table, and the whole command on a tiny teacher."""

import json
import re
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch

import eval.tasks.table2 as module
from data import DataError, demo
from data.demo import world
from data.demo.tasks import write_tasks
from data.tasks import TASKS, Answer, QuestionExample, TextExample
from data.tokenizer import FILE_NAME
from eval.tasks.finetune import finetune
from eval.tasks.table2 import Options, find_files, kept, markdown, part_of, percent, read_parts, rows_of, split
from model import EncoderConfig, MaskedLM, save_model
from model.checkpoints.native import sha256
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(2, 16, 2, 16, 1005, max_positions=130)


# ---- which file is for what ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, part",
    [
        ("train.tsv", "train"),
        ("training.jsonl.gz", "train"),
        ("sick-fr.trial.tsv", "dev"),
        ("xnli.fr.dev.tsv", "dev"),
        ("validation.json", "dev"),
        ("TEST_text.txt", "test"),
        ("piaf-v1.0.json", "whole"),
    ],
)
def test_parts_by_name(name, part):
    assert part_of(name) == part


def test_files_of_a_folder(tmp_path):
    for name in (
        "b.train.tsv",
        "a/train.tsv",
        "test_text.txt",
        "test_labels.txt",
        "README.md",
        ".test.swp",
        "all.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    assert find_files(tmp_path) == {
        "train": [str(tmp_path / "a/train.tsv"), str(tmp_path / "b.train.tsv")],
        "test": [str(tmp_path / "test_text.txt")],
        "whole": [str(tmp_path / "all.json")],
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="There is no file in"):
        find_files(tmp_path / "empty")


# ---- the split -------------------------------------------------------------------------------------------------


def questions(contexts: int, each: int):
    answers = (Answer("contexte", 0),)
    return [QuestionExample(f"{c}-{q}", f"contexte {c}", "?", answers) for c in range(contexts) for q in range(each)]


@pytest.mark.parametrize("examples", [questions(30, 4), [TextExample("a", str(i)) for i in range(120)]])
def test_every_example_is_in_one_part(examples):
    parts = split(examples, 5, {"dev": 0.1, "test": 0.2})
    assert list(parts) == ["dev", "test", "train"]
    together = [example for part in parts.values() for example in part]
    assert Counter(together) == Counter(examples) and len(together) == 120
    assert len(parts["dev"]) == 12 and len(parts["test"]) == 24
    assert parts == split(examples, 5, {"dev": 0.1, "test": 0.2})
    assert parts != split(examples, 6, {"dev": 0.1, "test": 0.2})
    if isinstance(examples[0], QuestionExample):
        contexts = [{example.context for example in part} for part in parts.values()]
        assert not (contexts[0] & contexts[1] or contexts[0] & contexts[2] or contexts[1] & contexts[2])


def test_one_each_where_there_are_few():
    parts = split([TextExample("a", str(i)) for i in range(3)], 0, {"dev": 0.1, "test": 0.1})
    assert [len(part) for part in parts.values()] == [1, 1, 1]


def settings(tmp_path, **more):
    return Options(teacher="t", student="s", data=str(tmp_path), **more)


def review_file(path, start, count):
    path.write_text(
        "".join(json.dumps({"text": str(i), "label": str(i % 2)}) + "\n" for i in range(start, start + count))
    )


def texts(parts):
    return {part: [int(example.text) for example in examples] for part, examples in parts.items()}


def test_parts_from_files(tmp_path):
    review_file(tmp_path / "all.jsonl", 0, 40)
    parts, names = read_parts("sentiment", tmp_path, settings(tmp_path))
    assert names == [str(tmp_path / "all.jsonl")]
    found = texts(parts)
    assert sorted(chain(*found.values())) == list(range(40)) and len(found["dev"]) == len(found["test"]) == 4
    assert texts(read_parts("sentiment", tmp_path, settings(tmp_path))[0]) == found
    assert texts(read_parts("sentiment", tmp_path, settings(tmp_path, split_seed=1))[0]) != found

    review_file(tmp_path / "dev.jsonl", 40, 10)  # and nothing to train on: all are put together
    parts, _ = read_parts("sentiment", tmp_path, settings(tmp_path))
    assert sorted(chain(*texts(parts).values())) == list(range(50)) and len(parts["dev"]) == 5

    review_file(tmp_path / "train.jsonl", 50, 20)  # "all" is for training too; what is missing comes out of that
    parts, names = read_parts("sentiment", tmp_path, settings(tmp_path))
    found = texts(parts)
    assert found["dev"] == list(range(40, 50)) and len(found["test"]) == 6
    assert sorted(found["train"] + found["test"]) == [*range(40), *range(50, 70)]
    assert len(names) == 3

    review_file(tmp_path / "test.jsonl", 70, 3)
    parts, _ = read_parts("sentiment", tmp_path, settings(tmp_path))
    assert len(parts["train"]) == 60 and texts(parts)["test"] == [70, 71, 72]
    few = texts(read_parts("sentiment", tmp_path, settings(tmp_path, limit=7))[0])
    assert len(set(few["train"])) == 7 and set(few["train"]) <= set(texts(parts)["train"])
    assert few["dev"] == found["dev"] and few["test"] == [70, 71, 72]
    assert few == texts(read_parts("sentiment", tmp_path, settings(tmp_path, limit=7))[0])
    many = read_parts("sentiment", tmp_path, settings(tmp_path, limit=700))[0]
    assert many == parts


def test_too_few(tmp_path):
    review_file(tmp_path / "all.jsonl", 0, 2)
    with pytest.raises(DataError, match="too few examples: none is left to train on"):
        read_parts("sentiment", tmp_path, settings(tmp_path))


# ---- the table -------------------------------------------------------------------------------------------------


def made_up(task, distilled=True):
    """Results whose figures are 0.8 of the teacher, 0.6 of the student, 0.7 of the student that is taught the task."""

    def tuned(mean, deviation):
        test = {measure: {"mean": mean, "deviation": deviation} for measure in module.MEASURES[task]}
        return {"over_seeds": {"test": test, "dev": {}}}

    result = {"teacher": tuned(0.8, 0.01), "student": tuned(0.6, None)}
    if distilled:
        result["distilled"] = tuned(0.7, 0.0)
    baseline = {measure: {"value": 0.5} for measure in module.MEASURES[task]}
    return {"baseline": baseline, **result, "milliseconds": {"teacher": 10.0, "student": 4.0}}


def test_cells():
    assert percent({"mean": 0.1234, "deviation": 0.0123}) == "12.34 ± 1.2"
    assert percent({"mean": 1.0, "deviation": None}) == "100.00" and percent(None) == ""
    assert kept(0.4, 0.5) == "80.0%" and kept(None, 0.5) == kept(0.4, None) == kept(0.4, 0.0) == ""
    assert kept(0.0, 0.5) == "0.0%"


@pytest.mark.parametrize("task", TASKS)
def test_lines_of_a_task(task):
    *measures, speed = rows_of(task, made_up(task))
    assert [line[1] for line in measures] == [name.replace("_", " ") for name in module.MEASURES[task]]
    for line, measure in zip(measures, module.MEASURES[task]):
        assert line[2:8] == ["50.00", "80.00 ± 1.0", "60.00", "75.0%", "70.00 ± 0.0", "87.5%"]
        theirs = module.PUBLISHED.get((task, measure), (None, None))
        assert line[8:10] == ["" if value is None else f"{value:.2f}" for value in theirs]
    assert speed[:8] == [task, "ms a text", "", "10.00", "4.00", "2.50 × faster", "", ""]
    assert len({len(line) for line in (*measures, speed)}) == 1
    without = rows_of(task, made_up(task, distilled=False))
    assert all(line[6:8] == ["", ""] for line in without)


def test_markdown():
    text = markdown({task: made_up(task) for task in TASKS}, {"seeds": [0, 1]})
    lines = text.split("\n\n")[0].split("\n")
    assert len({line.count("|") for line in lines}) == 1 and re.fullmatch(r"[|-]+", lines[1])
    assert len(lines) == 2 + sum(len(names) + 1 for names in module.MEASURES.values())
    assert "over the seeds 0, 1, mean" in text
    assert "77.45" in text and "94.8%" in text  # of inference: 77.45 / 81.72


# ---- the command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shutil.copyfile(demo.FOLDER / FILE_NAME, folder / FILE_NAME)
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        save_model(MaskedLM(CONFIG), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder, {"sentiment": 16, "ner": 16, "nli": 16, "qa": 8})
    return folder


def command(models, data, out, *arguments):
    return run_command(
        "-m eval", "table2", "--teacher", models / "teacher.safetensors", "--student", models / "student.safetensors",
        "--data", data, "--out", out, "--epochs", 1, "--device", "cpu", "--precision", "fp32", *arguments,
    )  # fmt: skip


def test_the_whole_and_again_after_a_kill(models, data, tmp_path, monkeypatch):
    calls = []

    def killed(task, options, *rest):
        calls.append((task, Path(options.out).name))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return finetune(task, options, *rest)

    monkeypatch.setattr(module, "finetune", killed)
    out = tmp_path / "out"
    first = command(models, data, out, "--seeds", 0, 1)
    assert first.returncode == 130 and first.stderr.endswith("interrupted.\n")
    assert list(json.loads((out / "table2.json").read_text())["results"]) == ["sentiment"]
    assert not (out / "table2.md").exists()
    done = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    assert len(done) == 4

    monkeypatch.setattr(module, "finetune", finetune)
    second = command(models, data, out, "--seeds", 0, 1)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("has the results of 2 seeds already") == 4
    assert {path: path.stat().st_mtime_ns for path in done} == done
    written = json.loads((out / "table2.json").read_text())
    assert list(written["results"]) == list(TASKS) and written["seeds"] == [0, 1]
    assert written["files"] == {str(path): sha256(path) for path in data.rglob("*.*")}
    for task, result in written["results"].items():
        assert set(result) == {"baseline", "teacher", "student", "distilled", "milliseconds"}
        assert all(value > 0 for value in result["milliseconds"].values())
        assert result["distilled"]["options"]["teacher"] == str(out / task / "teacher" / "model.safetensors")
        assert result["student"] == json.loads((out / task / "student" / "results.json").read_text())
        assert len(result["student"]["runs"]) == 2
    text = (out / "table2.md").read_text()
    assert text == markdown(written["results"], written) and text in second.stdout
    assert {path.name for path in out.iterdir()} <= {*TASKS, "table2.json", "table2.md", "table2.png"}

    other = command(models, data, out, "--seeds", 0, 1, "--lr", 1e-3)
    assert other.returncode == 2 and "is the result of other inputs (--lr)" in other.stderr


def test_only_what_is_asked_for(models, data, tmp_path):
    result = command(models, data, tmp_path, "--tasks", "nli", "--no-distil", "--limit", 4)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "table2.json").read_text())["results"]
    assert list(written) == ["nli"] and "distilled" not in written["nli"]
    assert "4 to train" in result.stdout
    assert sorted(path.name for path in (tmp_path / "nli").iterdir()) == ["student", "teacher"]


def test_the_demo(models, tmp_path, monkeypatch):
    """Its own data and settings, and a student that is there already is not distilled again."""
    monkeypatch.setattr(module, "DEMO_COUNTS", {"sentiment": 12})
    monkeypatch.setattr(module, "DEMO_SETTINGS", {"epochs": 1, "lr": 1e-3, "dropout": 0.0})
    asked = []

    def fake(options):
        asked.append(options)
        Path(options.out).mkdir(parents=True)
        shutil.copyfile(demo.TEACHER, Path(options.out) / "student.safetensors")
        shutil.copyfile(demo.FOLDER / FILE_NAME, Path(options.out) / FILE_NAME)

    monkeypatch.setattr(module.train, "train", fake)
    for _ in range(2):
        result = run_command("-m eval", "table2", "--out", tmp_path / "out", "--device", "cpu", "--precision", "fp32")
        assert result.returncode == 0, result.stderr
    assert len(asked) == 1 and asked[0].out == str(tmp_path / "out" / "student")
    written = json.loads((tmp_path / "out" / "table2.json").read_text())["results"]["sentiment"]
    assert written["student"]["options"]["lr"] == 1e-3
    examples = (tmp_path / "out" / "data" / "sentiment" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["review"] for line in examples] == [e.text for e in world.sentiment(12, 11)]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--student", "s"], "go with --teacher"),
        (["--data", "d"], "go with --teacher"),
        (["--teacher", "t"], "--teacher goes with --student and --data"),
        (["--teacher", "t", "--student", "s"], "--teacher goes with --student and --data"),
        (["--teacher", "t", "--student", "s", "--data", "/none"], "/none has no folder sentiment, ner, nli, qa"),
        (["--teacher", "t", "--student", "s", "--data", "DATA", "--tasks", "ner"], "There is no file"),
        (["--teacher", "t", "--student", "s", "--data", "DATA", "--tasks", "nli"], "There is no file t"),
        (["--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_what_cannot_be(data, tmp_path, arguments, sentence):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "ner")
    (tmp_path / "data" / "ner").mkdir()
    arguments = [tmp_path / "data" if argument == "DATA" else argument for argument in arguments]
    result = run_command("-m eval", "table2", "--out", tmp_path / "out", *arguments)
    assert result.returncode == 2 and sentence in result.stderr and result.stderr.startswith("python -m eval: ")
    assert not (tmp_path / "out").exists()
