"""Table 2: published figures, the rows, and the whole command on a tiny teacher."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import eval.tasks.table2 as module
from data import demo
from data.demo import world
from data.demo.tasks import write_tasks
from data.locks import locked
from data.tasks import TASKS
from eval.tasks.finetune import __doc__ as finetune_doc
from eval.tasks.finetune import finetune
from eval.tasks.table2 import CARDS, PAPER, markdown, published, retained, rows_of
from model import EncoderConfig, MaskedLM, load_model, save_model
from model.checkpoints.native import sha256
from tests import helpers
from tests.eval.tasks.shared import ON_CPU, TOKENIZER, run_with_closed_output, save, succeeded
from tests.helpers import needs, run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(2, 16, 2, 16, 1005, max_positions=130)


@needs(helpers.PAPER)
def test_the_papers_figures_are_those_of_its_table_2():
    text = re.sub("</?b>", "", helpers.PAPER.read_text(encoding="utf-8"))
    names = ("CamemBERT", "DistilCamemBERT")
    rows = [re.search(rf"^{name}\s+×(\d)((?:\s+\d+,\d\d){{4}})$", text, re.M) for name in names]
    assert tuple(int(row[1]) for row in rows) == module.PAPER_SPEED_UP
    figures = [[float(cell.replace(",", ".")) for cell in row[2].split()] for row in rows]
    assert [task for task, _ in PAPER] == ["sentiment", "ner", "nli", "qa"]  # the order of its columns
    assert list(PAPER.values()) == list(zip(*figures))


def test_published_figures_have_a_row_and_the_documentation_agrees():
    for task, measure in (*PAPER, *CARDS):
        assert measure in module.MEASURES[task]
    losses = [PAPER[key][0] - PAPER[key][1] for key in (("nli", "macro_f1"), ("qa", "f1"))]
    assert "{:.2f} points of F1 below CamemBERT on NLI and {:.2f} on QA".format(*losses) in finetune_doc


def made_up(task, distilled=True):
    """Results in which every metric is 0.8 for the teacher, 0.6 for the student, 0.7 for the distilled student."""

    def tuned(mean, deviation):
        test = {measure: {"mean": mean, "deviation": deviation} for measure in module.MEASURES[task]}
        return {"over_seeds": {"test": test, "dev": {}}}

    result = {"teacher": tuned(0.8, 0.01), "student": tuned(0.6, None)}
    if distilled:
        result["distilled"] = tuned(0.7, 0.0)
    baseline = {measure: {"value": 0.5} for measure in module.MEASURES[task]}
    figures = {name: {key: {"value": x} for key in baseline} for name, x in (("int8", 0.597), ("fp32", 0.6))}
    result["student_int8"] = {"figures": figures, "equal_to_fp32": 0.992}
    times = {"teacher": 10.0, "student": 4.0, "student, int8": 2.0}
    return {"baseline": baseline, **result, "milliseconds": times}


def test_cells():
    assert module.percent({"mean": 0.1234, "deviation": 0.0123}) == "12.34 ± 1.2"
    assert module.percent({"mean": 1.0, "deviation": None}) == "100.00" and module.percent(None) == ""
    assert retained(0.4, 0.5) == "80.0%" and retained(None, 0.5) == retained(0.4, None) == retained(0.4, 0.0) == ""
    assert retained(0.0, 0.5) == "0.0%"
    assert published(None) == "" and published((None, 98.18)) == "– → 98.18"
    assert published((81.72, 77.45)) == "81.72 → 77.45 (94.8%)"


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_a_task(task):
    *measures, time, speed_up, equal = rows_of(task, made_up(task))
    assert [row[1] for row in measures] == [name.replace("_", " ") for name in module.MEASURES[task]]
    for row, measure in zip(measures, module.MEASURES[task]):
        assert row[2:8] == ["50.00", "80.00 ± 1.0", "60.00", "75.0%", "70.00 ± 0.0", "87.5%"]
        assert row[8] == "59.70 (-0.30)"
        assert row[9:] == [published(source.get((task, measure))) for source in (PAPER, CARDS)]
    assert time[:10] == [task, "ms per text", "", "10.00", "4.00", "", "", "", "2.00", ""]
    assert equal == [task, "labels as in fp32", "", "", "", "", "", "", "99.20%", "", ""]
    cards = {"ner": "88.49 → 43.44 (×2.04)", "nli": "105.00 → 51.35 (×2.04)", "qa": "432.17 → 216.96 (×1.99)"}
    assert time[10] == cards.get(task, "")
    assert speed_up == [task, "speed-up", "", "×1", "×2.50", "", "", "", "×5.00", "×1 → ×2", ""]
    assert len({len(row) for row in (*measures, time, speed_up, equal)}) == 1
    without = rows_of(task, made_up(task, distilled=False))
    assert all(row[6:8] == ["", ""] for row in without)


def test_markdown():
    text = markdown({task: made_up(task) for task in TASKS}, {"seeds": [0, 1]})
    lines = text.split("\n\n")[0].split("\n")
    assert len({line.count("|") for line in lines}) == 1 and re.fullmatch(r"[|-]+", lines[1])
    assert len(lines) == 2 + sum(len(names) + 3 for names in module.MEASURES.values())
    assert "Seeds: 0, 1; mean" in text
    assert all(published(figures) in text for figures in (*PAPER.values(), *CARDS.values()))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        save(MaskedLM(CONFIG), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder, {"sentiment": 16, "ner": 16, "nli": 16, "qa": 8})
    return folder


def command(models, data, out, *arguments):
    paths = ("--teacher", models / "teacher.safetensors", "--student", models / "student.safetensors", "--data", data)
    return run_command("-m eval", "table2", *paths, "--out", out, "--epochs", 1, *ON_CPU, *arguments)


def test_the_whole_command_interrupted_and_continued(models, data, tmp_path, monkeypatch):
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
    second = succeeded(command(models, data, out, "--seeds", 0, 1))
    assert second.stdout.count("already has the results of 2 seeds.") == 4
    assert {path: path.stat().st_mtime_ns for path in done} == done
    written = json.loads((out / "table2.json").read_text())
    assert list(written["results"]) == list(TASKS) and written["seeds"] == [0, 1]
    assert written["files"] == {str(path): sha256(path) for path in data.rglob("*.*")}
    for task, result in written["results"].items():
        assert set(result) == {"baseline", "teacher", "student", "distilled", "milliseconds", "student_int8"}
        assert 0.9 <= result["student_int8"]["equal_to_fp32"] <= 1
        assert all(value > 0 for value in result["milliseconds"].values())
        assert result["distilled"]["options"]["teacher"] == str(out / task / "teacher" / "model.safetensors")
        assert result["student"] == json.loads((out / task / "student" / "results.json").read_text())
        assert len(result["student"]["runs"]) == 2
    text = (out / "table2.md").read_text()
    assert text == markdown(written["results"], written) and text in second.stdout
    assert {path.name for path in out.iterdir()} <= {*TASKS, "table2.json", "table2.md", "table2.png"}

    other = command(models, data, out, "--seeds", 0, 1, "--lr", 1e-3)
    assert other.returncode == 2 and "belongs to a run with other inputs (--lr)" in other.stderr


def test_what_each_file_was_taken_for_is_printed_first(models, data, tmp_path):
    (tmp_path / "wrong.model").write_text("not a tokenizer")
    result = command(models, data, tmp_path, "--tasks", "sentiment", "nli", "--tokenizer", tmp_path / "wrong.model")
    assert result.returncode == 2 and "wrong.model is not a SentencePiece model" in result.stderr
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["sentiment:", f"{data}/sentiment"],
        *(
            ["dev", "2", "examples", f"{data}/sentiment/dev.jsonl"],
            ["test", "4", "examples", f"{data}/sentiment/test.jsonl"],
        ),
        ["train", "16", "examples", f"{data}/sentiment/train.jsonl"],
        ["nli:", f"{data}/nli"],
        *(["dev", "2", "examples", f"{data}/nli/dev.tsv"], ["test", "4", "examples", f"{data}/nli/test.tsv"]),
        ["train", "16", "examples", f"{data}/nli/train.tsv"],
    ]


def test_nothing_is_lost_if_nobody_reads_the_output(models, data, tmp_path):
    paths = ("--teacher", models / "teacher.safetensors", "--student", models / "student.safetensors", "--data", data)
    options = ("--tasks", "sentiment", "--no-distil", "--epochs", 1, *ON_CPU)
    assert run_with_closed_output("table2", *paths, "--out", tmp_path, *options) == 0
    assert "| sentiment | accuracy" in (tmp_path / "table2.md").read_text()
    assert list(json.loads((tmp_path / "table2.json").read_text())["results"]) == ["sentiment"]


def test_options_that_leave_parts_out(models, data, tmp_path):
    result = succeeded(command(models, data, tmp_path, "--tasks", "nli", "--no-distil", "--limit", 4))
    written = json.loads((tmp_path / "table2.json").read_text())["results"]
    assert list(written) == ["nli"] and "distilled" not in written["nli"]
    assert "4 train" in result.stdout
    assert sorted(path.name for path in (tmp_path / "nli").iterdir()) == ["student", "teacher"]


def test_the_demo(models, tmp_path, monkeypatch):
    """It has its own data and settings, and an existing student is not distilled again."""
    monkeypatch.setattr(module, "DEMO_COUNTS", {"sentiment": 12})
    monkeypatch.setattr(module, "DEMO_SETTINGS", {"epochs": 1, "lr": 1e-3, "dropout": 0.0})
    assert set(module.DEMO_LR) == {"nli", "qa"}
    monkeypatch.setattr(module, "DEMO_LR", {"sentiment": 2e-3})
    calls = []

    def fake(options):
        calls.append(options)
        Path(options.out).mkdir(parents=True)
        save_model(load_model(demo.TEACHER), Path(options.out) / "student.safetensors", tokenizer=TOKENIZER)

    monkeypatch.setattr(module.train, "train", fake)
    for _ in range(2):
        succeeded(run_command("-m eval", "table2", "--out", tmp_path / "out", *ON_CPU))
    assert len(calls) == 1 and calls[0].out == str(tmp_path / "out" / "student")
    written = json.loads((tmp_path / "out" / "table2.json").read_text())["results"]["sentiment"]
    assert written["student"]["options"]["lr"] == 2e-3
    examples = (tmp_path / "out" / "data" / "sentiment" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["review"] for line in examples] == [e.text for e in world.sentiment(12, 11, easy=True)]


DEMO_MODELS = ["--teacher", str(demo.TEACHER), "--student", str(demo.TEACHER)]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--student", "s"], "need --teacher"),
        (["--data", "d"], "need --teacher"),
        (["--teacher", "t"], "--teacher needs --student and --data"),
        (["--teacher", "t", "--student", "s"], "--teacher needs --student and --data"),
        ([*DEMO_MODELS, "--data", "/none"], "There is no file /none"),
        ([*DEMO_MODELS, "--data", "/proc"], "/proc has no subfolder sentiment, ner, nli, qa"),
        ([*DEMO_MODELS, "--data", "DATA", "--tasks", "ner"], "There is no file in "),
        (["--teacher", "t", "--student", "s", "--data", "DATA", "--tasks", "nli"], "There is no model t"),
        (["--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_error_messages(data, tmp_path, arguments, sentence):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "ner")
    (tmp_path / "data" / "ner").mkdir()
    arguments = [tmp_path / "data" if argument == "DATA" else argument for argument in arguments]
    result = run_command("-m eval", "table2", "--out", tmp_path / "out", *arguments)
    assert result.returncode == 2 and sentence in result.stderr and result.stderr.startswith("python -m eval: ")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_and_no_link_in_it_is_followed(models, data, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (out, elsewhere):
        folder.mkdir()
    with locked(out):
        refused = command(models, data, out)
        assert refused.returncode == 2 and "is in use by another process (host" in refused.stderr
    (out / "sentiment").symlink_to(elsewhere)
    refused = command(models, data, out)
    assert refused.returncode == 2 and "sentiment is a symbolic link, through which nothing" in refused.stderr
    assert not list(elsewhere.iterdir())
