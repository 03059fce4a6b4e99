"""The table of runs: states, figures, and trees whose files are missing, damaged, of another version, or hostile."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from data.locks import LOCK, locked
from eval.benchmarks.harness import table, table_on_screen
from eval.tasks.run_folders import MOST_JSON, is_number, printable, read_records
from eval.tasks.runs import Row, describe, folders_below
from tests.eval.tasks.shared import succeeded
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
HELD_OUT = {"loss": 1.25, "accuracy": 0.5, "pseudo_perplexity": 4.0}
FIGURES = "held-out loss 1.2500, accuracy 50.0%, pseudo-perplexity 4.00 at step 20"
RUN = json.dumps({"options": {"teacher": "demo", "steps": 3000}, "inputs": {}})
LINES = "".join(
    json.dumps(each) + "\n" for each in ({"step": 10}, {"step": 20, "held_out": HELD_OUT}, {"step": 30, "loss": 1.0})
)


def weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.zeros(3)}, path)
    return path


def checkpoint(out: Path, step: int, complete: bool = True) -> None:
    folder = out / "checkpoints" / f"step-{step:09}"
    weights(folder / "student.safetensors")
    if complete:
        weights(folder / "state.safetensors")
        (folder / "state.json").write_text("{}")


def write(out: Path, **files: str) -> Path:
    """Files of a run's folder; __ stands for the dot of their names."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name.replace("__", ".")).write_text(content, encoding="utf-8")
    return out


def row_of(folder: Path) -> Row | None:
    return describe(next(each for each in folders_below(folder) if each.path == folder))


# ---- states ----------------------------------------------------------------------------------------------------


def test_a_run_of_train_through_its_life(tmp_path):
    out = write(tmp_path / "run")
    assert row_of(out) is None
    with locked(out):
        assert row_of(out).state.startswith("running (host ") and row_of(out).state.endswith("nothing written yet")
    write(out, run__json=RUN)
    assert row_of(out) == Row("distillation", "not started")
    write(out, metrics__jsonl=LINES)
    assert row_of(out) == Row("distillation", "stopped at step 30 of 3,000, before a checkpoint", FIGURES)
    with locked(out):
        assert row_of(out).state == f"running (host {os.uname().nodename}, process {os.getpid()}), step 30 of 3,000"
    checkpoint(out, 10)
    checkpoint(out, 20)
    checkpoint(out, 30, complete=False)
    assert row_of(out).state == "stopped, resumes after step 20 of 3,000"
    (out / LOCK).touch()  # left by a run that was killed
    assert row_of(out).state == "stopped, resumes after step 20 of 3,000"
    weights(out / "student.safetensors")
    assert row_of(out) == Row("distillation", "finished", FIGURES)
    (out / "student.safetensors").write_bytes((out / "student.safetensors").read_bytes()[:-1])
    damaged = row_of(out)
    assert damaged.state == "stopped, resumes after step 20 of 3,000, student.safetensors is not complete"
    rows = [describe(each) for each in folders_below(tmp_path)]
    assert [row for row in rows if row] == [damaged]  # no row for a checkpoint


def test_checkpoints_that_all_lack_files_are_damage(tmp_path):
    out = write(tmp_path / "run", run__json=RUN)
    checkpoint(out, 20, complete=False)
    assert row_of(out).state == "damaged: no checkpoint in checkpoints has all of its files"
    (out / "student.safetensors").touch()
    assert row_of(out).state == "damaged: student.safetensors is not complete"


def tuned(mean):
    return {"over_seeds": {part: {"accuracy": {"mean": mean}, "macro_f1": {"mean": 0.5}} for part in ("dev", "test")}}


def test_fine_tuning_and_table_2(tmp_path):
    out, about = tmp_path / "table2" / "nli" / "teacher", {"task": "nli", "seeds": [0, 1]}
    for runs, state in ([], "not started"), ([{}], "stopped after 1 of 2 seeds"), ([{}, {}], "finished, 2 of 2 seeds"):
        write(out, results__json=json.dumps(about | {"runs": runs} | (tuned(0.75) if runs else {})))
        weights(out / "model.safetensors")
        assert row_of(out) == Row("nli, fine-tuned", state, "test accuracy 0.7500, macro f1 0.5000" if runs else "")
    with locked(out):
        assert row_of(out).state.endswith(", 2 of 2 seeds done")
    (out / "model.safetensors").unlink()
    assert row_of(out).state == "damaged: model.safetensors is missing."
    results = {"nli": {"teacher": tuned(0.75), "student": tuned(0.7)}}
    table = {"options": {"tasks": ["nli", "qa"]}, "results": results}
    write(tmp_path / "table2", table2__json=json.dumps(table))
    figures = "nli accuracy 0.7500 → 0.7000"
    assert row_of(tmp_path / "table2") == Row("table 2", "stopped, 1 of 2 tasks", figures)
    write(tmp_path / "table2", table2__md="")
    assert row_of(tmp_path / "table2") == Row("table 2", "finished, 1 of 2 tasks", figures)


def test_the_command(tmp_path):
    write(tmp_path / "b", run__json=RUN, metrics__jsonl=LINES)
    os.utime(tmp_path / "b", (0, 0))
    write(tmp_path / "a" / "deep", run__json=RUN.replace('"demo"', '"none"'), big="x" * 2_000_000)
    lines = succeeded(run_command("-m eval", "runs", tmp_path)).stdout.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["run", "kind", "state", "figures", "updated", "size"]
    assert cells[2][:4] == [str(tmp_path / "a" / "deep"), "masked LM", "not started", ""] and cells[2][5] == "2.0 MB"
    assert cells[3][3] == FIGURES and cells[3][4] == f"{time.localtime().tm_year}{cells[3][4][4:]}" and len(cells) == 4


def test_a_terminal_that_is_narrower_than_the_table(monkeypatch):
    rows = (["run", "kind", "state"], ["a", "ner", "finished"], ["b", "", "stopped"])
    width = table(*rows).index("\n")
    monkeypatch.setenv("COLUMNS", str(width - 1))
    assert table_on_screen(*rows) == table(*rows)  # to a file
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    assert table_on_screen(*rows) == "a\n  kind   ner\n  state  finished\n\nb\n  kind   \n  state  stopped"
    monkeypatch.setenv("COLUMNS", str(width))
    assert table_on_screen(*rows) == table(*rows)


@pytest.mark.parametrize("folder, sentence", [("empty", "There is no run below"), ("gone", "cannot be read")])
def test_a_folder_without_runs(tmp_path, folder, sentence):
    (tmp_path / "empty").mkdir()
    result = run_command("-m eval", "runs", tmp_path / folder)
    assert result.returncode == 2 and sentence in result.stderr and not result.stdout


# ---- hostile trees ---------------------------------------------------------------------------------------------

CONTENTS = [
    b"",
    b"\0\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"3",
    b"null",
    b"[]",
    b"{}",
    b'{"options": [], "runs": {}, "results": [], "task": 3, "step": {}}',
    b'{"options": {"steps": "x", "teacher": [], "tasks": 3}, "results": {"\x1b[2J": {"teacher": 3}}, "step": "x"}',
    b'{"options": {"steps": 1e999}, "step": NaN, "held_out": {"loss": Infinity}}',
    b'{"options": {"steps": ' + b"9" * 4000 + b'}, "step": ' + b"9" * 4000 + b', "held_out": {"loss": []}}',
    b'{"options": {"steps": ' + b"9" * 5000 + b"}}",
    b'{"task": "\\ud800\\u001b[2J", "runs": [3], "seeds": [], "over_seeds": {"test": {"accuracy": {"mean": true}}}}',
    b'{"task": "nli", "runs": [], "seeds": [0], "over_seeds": {"test": {"accuracy": {"mean": 1e999}}}}',
]
NAMES = ["run.json", "metrics.jsonl", "results.json", "table2.json", "student.safetensors", "model.safetensors", LOCK]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
@pytest.mark.parametrize("names", [*([name] for name in NAMES), NAMES[:2], NAMES[2:4], NAMES], ids="+".join)
def test_any_content_of_any_file(tmp_path, names, content):
    out = write(tmp_path / "run")
    for name in names:
        (out / name).write_bytes(content)
    for row in filter(None, map(describe, folders_below(tmp_path))):
        assert all(text.isprintable() for text in row), row


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "link to a pipe", "unreadable"])
@pytest.mark.parametrize("name", [*NAMES, "checkpoints", "table2.md"])
def test_what_is_no_file(tmp_path, name, kind):
    out = write(tmp_path / "run", run__json=RUN, metrics__jsonl=LINES, results__json="{}")
    path = out / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "unreadable":
        path.touch(mode=0)
    else:
        pipe = path if kind == "pipe" else tmp_path / "pipe"
        os.mkfifo(pipe)
        if pipe != path:
            path.symlink_to(pipe)
    for folder in folders_below(tmp_path):
        describe(folder)


def test_links_are_not_followed_and_loops_end(tmp_path):
    out = write(tmp_path / "runs" / "one", run__json=RUN)
    write(tmp_path / "elsewhere", run__json=RUN, big="x" * 10_000)
    (out / "up").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "other").symlink_to(tmp_path / "elsewhere")
    found = folders_below(tmp_path / "runs")
    assert [each.path for each in found] == [tmp_path / "runs", out] and found[0].size < 10_000


def test_names_and_depths(tmp_path):
    """Names that a terminal would obey, that are not UTF-8, and paths longer than the system takes."""
    write(tmp_path / "a\nb\x1b[2J", run__json=RUN)
    raw = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(raw)
    Path(os.fsdecode(raw), "run.json").write_text(RUN)
    here, start = tmp_path / "deep", os.getcwd()
    here.mkdir()
    try:
        os.chdir(here)
        for _ in range(30):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(start)
    stdout = succeeded(run_command("-m eval", "runs", tmp_path)).stdout
    assert f"{tmp_path}/a?b?[2J " in stdout and f"{tmp_path}/? " in stdout and len(stdout.splitlines()) == 4


def test_it_is_quick_on_big_files(tmp_path):
    """Checkpoints and long logs are not read: these files have holes of 1 TB in all."""
    out = write(tmp_path / "run", run__json=RUN)
    checkpoint(out, 20)
    for path in (
        out / "checkpoints/step-000000020/state.safetensors",
        out / "metrics.jsonl",
        tmp_path / "results.json",
    ):
        with path.open("wb") as file:
            file.truncate(1 << 38)
    begun = time.monotonic()
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b"\n" + LINES.encode())
    assert row_of(out) == Row("distillation", "stopped, resumes after step 20 of 3,000", FIGURES)
    assert row_of(tmp_path).state.endswith("cannot be read (it is too long).")
    assert time.monotonic() - begun < 2 and MOST_JSON < 1 << 30


def test_a_table_does_not_write(tmp_path):
    out = write(tmp_path / "run", run__json=RUN)
    (out / LOCK).touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    succeeded(run_command("-m eval", "runs", tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_helpers(tmp_path):
    assert not any(map(is_number, (True, None, "1", float("nan"), float("inf"), 10**400))) and is_number(0)
    assert printable("a\x1b\n\udcffé") == "a???é"
    (tmp_path / "metrics.jsonl").write_text(f'ep": 3}}\n{LINES}[]\n{{"step": 4')
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [10, 20, 30]
