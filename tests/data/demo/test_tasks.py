"""The demo's tasks as files: reading them gives the examples of the demo world."""

import pytest

from data.demo import world
from data.demo.tasks import SEEDS, SIZES, write_tasks
from data.tasks import TASKS, labels_of, read_task

COUNTS = {"sentiment": 120, "ner": 80, "nli": 100, "qa": 60}
SUFFIXES = {"sentiment": "jsonl", "ner": "conllu", "nli": "tsv", "qa": "json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new"
    write_tasks(folder, COUNTS)
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_files_contain_the_examples(folder, task):
    found, reports = {}, []
    for part, share in SIZES.items():
        found[part] = read_task(task, [folder / task / f"{part}.{SUFFIXES[task]}"], reports.append)
        settings = {} if task == "ner" else {"easy": True}
        expected = list(getattr(world, task)(round(COUNTS[task] * share), SEEDS[part], **settings))
        assert len(expected) == round(COUNTS[task] * share)
        if task == "qa":
            assert all(e.context.startswith(a.text, a.start) for e in found[part] for a in e.answers)
        assert found[part] == expected
    assert not reports and not set(found["train"]) & {*found["dev"], *found["test"]}
    if task != "qa":
        assert set(labels_of(found["dev"])) | set(labels_of(found["test"])) <= set(labels_of(found["train"]))


def test_files_are_deterministic(folder, tmp_path):
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
    assert len(files) == 12
    for target in (folder, tmp_path):
        write_tasks(target, COUNTS)
        assert {path.relative_to(target): path.read_bytes() for path in target.rglob("*.*")} == files


def test_only_the_named_tasks_are_written(tmp_path):
    write_tasks(str(tmp_path), {"nli": 10})
    assert [path.name for path in tmp_path.iterdir()] == ["nli"]
