"""A run's folder: run.json identifies the run, and a checkpoint does if it is lost."""

import json
import shutil

import pytest

from data import DataError, OptionError
from model.training.options import MAY_DIFFER, Options
from model.training.run_folder import check_free, check_same_run, find_run, read_run, remove_partial_files, write_run
from model.training.run_state import CheckpointWriter
from tests.model.training.runs import Run, names, step_folder

OPTIONS = {
    "teacher": "demo",
    "corpus": ("demo",),
    "lr": 5e-4,
    "layers": ("alternate",),
    "weights": (0.5, 0.3, 0.2),
    "batch_size": 8,
    "accumulate": 2,
    "steps": 100,
    "out": "a",
    "keep": 2,
}
RUN = {"options": {**OPTIONS, "dropout": None}, "inputs": {"corpus": ["abc", "def"], "teacher": "123"}}


def changed(**options):
    return {**RUN, "options": {**RUN["options"], **options}}


def test_run_json_is_rewritten_only_if_it_differs(tmp_path):
    write_run(tmp_path, RUN)
    before = (tmp_path / "run.json").stat().st_mtime_ns
    assert read_run(tmp_path, pytest.fail) == json.loads(json.dumps(RUN))
    write_run(tmp_path, RUN)
    assert (tmp_path / "run.json").stat().st_mtime_ns == before
    write_run(tmp_path, changed(lr=1))
    assert read_run(tmp_path, pytest.fail)["options"]["lr"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("new", "differing"),
    [
        (dict(out="b", keep=7), None),  # these may differ
        (dict(batch_size=2, accumulate=8), None),  # the same blocks per step
        (dict(batch_size=2, accumulate=8, lr=1), "--lr"),
        (dict(batch_size=2), "--batch-size"),
        (dict(steps=101), None),  # an extension
        (dict(steps=99), "--steps"),
        (dict(steps=101, dropout=0.5), "--dropout"),
        (dict(lr=1e-3, batch_size=4, dropout=0.0, keep=3), "--lr, --batch-size, --dropout"),
        (dict(weights=(0.5, 0.2, 0.3)), "--weights"),
        (dict(new_one=1), "--new-one"),  # an option of a later version
    ],
)
def test_every_option_that_differs_is_named(tmp_path, new, differing):
    stored = json.loads(json.dumps(RUN))
    if differing is None:
        check_same_run(tmp_path, stored, changed(**new))
    else:
        with pytest.raises(OptionError, match=f"with different {differing}\\. Use the same options"):
            check_same_run(tmp_path, stored, changed(**new))


@pytest.mark.parametrize("field", Options.__dataclass_fields__)
def test_only_the_options_in_may_differ_may_differ(tmp_path, field):
    options = dict.fromkeys(Options.__dataclass_fields__, 2)
    stored, other = {"options": options, "inputs": {}}, {"options": {**options, field: 1}, "inputs": {}}
    if field in MAY_DIFFER:
        check_same_run(tmp_path, stored, other)
    else:
        with pytest.raises(OptionError, match=f"with different --{field.replace('_', '-')}\\."):
            check_same_run(tmp_path, stored, other)


@pytest.mark.parametrize("new", [{"corpus": ["abc", "dee"]}, {"corpus": ["abc"]}, {"teacher": "1"}, {"teacher": None}])
def test_another_teacher_or_corpus_of_the_same_name_is_refused(tmp_path, new):
    (name,) = new
    with pytest.raises(OptionError, match=f"a run with another {name}, which has changed since. Restore it"):
        check_same_run(tmp_path, json.loads(json.dumps(RUN)), {**RUN, "inputs": RUN["inputs"] | new})


def test_inputs_are_compared_by_content_and_not_by_path(tmp_path):
    stored = json.loads(json.dumps(changed(teacher="a.safetensors", corpus=("texts",), student="b")))
    check_same_run(tmp_path, stored, changed(teacher="./a.safetensors", corpus=("texts/",), student="b"))
    with pytest.raises(OptionError, match="with different --student"):  # whose content is not known here
        check_same_run(tmp_path, stored, changed(teacher="c.safetensors", corpus=("texts",), student="./b"))
    other = {**changed(teacher="c", corpus=("texts",), student="b"), "inputs": {**RUN["inputs"], "teacher": "1"}}
    with pytest.raises(OptionError, match="a run with another teacher. Use that one, or choose another --out"):
        check_same_run(tmp_path, stored, other)


def test_an_option_that_an_older_run_lacks_has_its_default(tmp_path):
    stored = json.loads(json.dumps(RUN))
    check_same_run(tmp_path, stored, changed(within_documents=False, corpus=("demo",)))
    with pytest.raises(OptionError, match="with different --within-documents"):
        check_same_run(tmp_path, stored, changed(within_documents=True))


def test_a_checkpoint_of_another_run_is_refused(out):
    for number, lr in ((3, 1), (4, 2)):
        run = Run().train(number)
        run.save(CheckpointWriter(out, 9), run=changed(lr=lr))
    write_run(out, changed(lr=2))
    with pytest.raises(OptionError, match=f"{step_folder(out, 3)} holds a run with different --lr"):
        find_run(out, changed(lr=2))
    shutil.rmtree(step_folder(out, 3))
    assert find_run(out, changed(lr=2))["options"]["lr"] == 2


NOT_A_RUN = [b"", b"[]", b"null", b"{}", b'{"options": {}}', b'{"options": [], "inputs": {}}', b"\xff"]
NOT_A_RUN += [b"[" * 100_000, b'{"options": null, "inputs": null}', json.dumps({**RUN, "inputs": []}).encode()]


@pytest.mark.parametrize("content", NOT_A_RUN, ids=lambda content: repr(content[:40]))
def test_a_damaged_run_json_is_replaced_by_the_newest_readable_checkpoints(out, content):
    (out / "run.json").write_bytes(content)
    assert read_run(out, pytest.fail) is None  # these checkpoints do not have it
    with pytest.raises(OptionError, match="already holds the run.json of a run, and no readable run.json to resume it"):
        check_free(out, resume=True)
    for number in (3, 4):
        run = Run().train(number)
        run.save(CheckpointWriter(out, 9), run=changed(lr=number))
    (step_folder(out, 4) / "state.json").write_text("{")
    messages = []
    assert read_run(out, messages.append)["options"]["lr"] == 3
    assert messages == [f"{out / 'run.json'} cannot be read; the options in {step_folder(out, 3)} take its place."]
    check_free(out, resume=True)
    with pytest.raises(OptionError, match="already holds the run.json of a run. Choose another --out"):
        check_free(out, resume=False)


@pytest.mark.parametrize("name", ["student.safetensors", "best.safetensors", "metrics.jsonl"])
def test_a_folder_with_files_of_a_run_is_not_free(tmp_path, name):
    check_free(tmp_path, resume=True)
    (tmp_path / name).write_text("")
    with pytest.raises(OptionError, match=f"already holds the {name} of a run") as caught:
        check_free(tmp_path, resume=True)
    assert "remove" not in str(caught.value)


def test_only_the_temporary_files_of_a_killed_run_are_removed(out):
    for name in (".step-000000003.partial", ".step-000000001.old"):
        shutil.copytree(step_folder(out, 1), out / "checkpoints" / name)
    partial = (".best.safetensors.ab12_x", ".student.safetensors.ab12_x", ".run.json.partial")
    partial += (".metrics.jsonl.ab12.partial", ".curves.png.ab12_x")
    for name in (".hidden", "checkpoints/notes.txt", *partial):  # the first two are the user's
        (out / name).write_text("")
    remove_partial_files(out)
    assert names(out) == ["notes.txt", "step-000000001", "step-000000002"]
    assert not list((out / "checkpoints").glob(".*"))
    assert sorted(path.name for path in out.iterdir()) == [".hidden", "checkpoints"]
    remove_partial_files(out / "nowhere")


def test_checkpoints_are_not_written_or_removed_through_links(tmp_path):
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    run = Run(0).train(1)
    run.save(CheckpointWriter(elsewhere, 2))
    before = sorted(elsewhere.rglob("*"))
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / ".step-000000009.partial").symlink_to(elsewhere)
    remove_partial_files(out)
    (step,) = names(elsewhere)
    for link in (step, "step-000000002"):  # to a folder; to none
        (out / "checkpoints" / link).symlink_to(elsewhere / "checkpoints" / link)
    run.train(1).save(CheckpointWriter(out, 1))
    assert sorted(elsewhere.rglob("*")) == before
    assert [path.name for path in (out / "checkpoints").iterdir() if not path.is_symlink()] == ["step-000000002"]
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").symlink_to(elsewhere / "checkpoints")
    with pytest.raises(DataError, match="checkpoints is a symbolic link, through which nothing is written"):
        check_free(out, resume=True)
