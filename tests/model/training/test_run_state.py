"""A run's files: checkpoints are exact, and complete or absent."""

import contextlib
import itertools
import pickle
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file

from data import DataError
from model import EncoderConfig, MaskedLM, ModelError, load_model
from model.checkpoints.native import fingerprint
from model.training import run_state
from model.training.device import Runtime
from model.training.run_folder import remove_partial_files
from model.training.run_state import (
    CheckpointWriter,
    newest,
    read,
    resume,
)
from tests.model.training.runs import CONFIG, FILES, RUNTIME, WIDER, Run, falls_back, intact, names, same, step_folder

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("scaled", [False, True], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("teacher", [None, WIDER], ids=["no projection", "projection"])
def test_a_restored_run_continues_to_the_same_bits(tmp_path, teacher, scaled):
    run = Run(0, teacher, scaled).train(3)
    run.save(CheckpointWriter(tmp_path, 2))
    for steps_before in (0, 5):  # what the other run has trained is replaced
        other = Run(1, teacher, scaled).train(steps_before).restore(intact(tmp_path))
        assert same(run.tensors(), other.tensors()) and other.state == run.state
        assert run.scaler.state_dict() == other.scaler.state_dict()
    assert same(run.train(3).tensors(), other.train(3).tensors())
    assert run.scaler.get_scale() == other.scaler.get_scale() == (2.0**10 if scaled else 1.0)


def test_a_checkpoint_before_the_first_step(tmp_path):
    Run(0).save(CheckpointWriter(tmp_path, 2))
    assert same(Run(1).restore(intact(tmp_path)).train().tensors(), Run(0).train().tensors())


def test_resume_without_a_checkpoint_starts_at_step_0(tmp_path, capsys):
    for _ in range(2):
        run = Run()
        assert newest(tmp_path, pytest.fail) is None
        assert resume(tmp_path, run.distiller, run.optimiser, run.scaler, RUNTIME).step == 0
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("before", "now", "warned"),
    [
        (Runtime("cpu", "bf16", True), Runtime("cuda", "bf16", True), []),
        (Runtime("cpu", "bf16", True), Runtime("cpu", "fp32", True), ["precision bf16", "precision fp32"]),
        (Runtime("cpu", "bf16", False), Runtime("cpu", "bf16", True), ["compiled False", "compiled True"]),
        (Runtime("cuda", "fp32"), Runtime("cuda", "fp16"), ["precision fp32", "precision fp16"]),
        (Runtime("cuda", "fp16"), Runtime("cuda", "fp32"), ["precision fp16", "precision fp32"]),
    ],
)
def test_resume_warns_about_another_precision_or_compilation(tmp_path, capsys, before, now, warned):
    run, other = Run(0, scaled=before.precision == "fp16").train(3), Run(1, scaled=now.precision == "fp16")
    run.save(CheckpointWriter(tmp_path, 2), runtime=before.to_json())
    state = resume(tmp_path, other.distiller, other.optimiser, other.scaler, now)
    assert state == run.state and same(run.tensors(), other.tensors())
    output = capsys.readouterr()
    assert output.out == f"resumed   after step 3, from {step_folder(tmp_path, 3)}\n"
    expected = f"warning: the run had {warned[0]} until now and continues with {warned[1]}.\n" if warned else ""
    assert output.err == expected


def test_unusual_tensors_are_kept(tmp_path):
    """NaN, infinity, subnormal numbers, bf16, an empty tensor, and one that is not contiguous."""
    tensors = {
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "bf16": torch.randn(5).bfloat16(),
        "transposed": torch.randn(3, 4).t(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
    }
    writer = CheckpointWriter(tmp_path, 1)
    writer.save(1, MaskedLM(CONFIG), tensors, {"step": 1})
    writer.wait()
    assert save(intact(tmp_path).tensors) == save({name: tensor.contiguous() for name, tensor in tensors.items()})


def test_a_checkpoints_student_is_an_ordinary_model_file(written):
    out, contents = written
    model = load_model(step_folder(out, 2) / "student.safetensors")
    assert type(model) is MaskedLM and model.config == CONFIG and same(dict(model.state_dict()), contents[2].student)


def test_no_pickle_is_read_or_written(tmp_path, monkeypatch):
    for module, functions in ((torch, ("load", "save")), (pickle, ("load", "loads", "dump", "dumps", "Unpickler"))):
        for name in functions:
            monkeypatch.setattr(module, name, Mock(side_effect=AssertionError("a pickle")))
    run = Run(scaled=True).train(2)
    run.save(CheckpointWriter(tmp_path, 2))
    assert same(Run(1, scaled=True).restore(intact(tmp_path)).tensors(), run.tensors())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (dict(teacher=None, config=EncoderConfig(2, 8, 2, 12, 30, 12)), "Missing key"),
        (dict(teacher=SimpleNamespace(config=EncoderConfig(1, 20, 2, 12, 30))), "size mismatch"),
        (dict(teacher=None), "Unexpected key"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(written, other, reason):
    with pytest.raises(DataError, match="belongs to another run") as caught:
        Run(1, **other).restore(intact(written[0]))
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_number_of_checkpoints_kept(tmp_path, keep):
    writer, run = CheckpointWriter(tmp_path, keep), Run()
    for number in range(1, 5):
        run.train().save(writer)
        assert names(tmp_path) == [f"step-{each:09}" for each in range(max(1, number - keep + 1), number + 1)]
        assert all(read(tmp_path / "checkpoints" / name) for name in names(tmp_path))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_other_files_in_the_folder_are_neither_read_nor_counted_nor_removed(tmp_path):
    writer, run = CheckpointWriter(tmp_path, 1), Run()
    own = shutil.copytree(run.train().save(writer), tmp_path / "checkpoints" / "step-000000001-before-lunch")
    shutil.copytree(own, tmp_path / "checkpoints" / "step-zero")
    for _ in range(2):
        run.train().save(writer)
    assert names(tmp_path) == ["step-000000001-before-lunch", "step-000000003", "step-zero"]
    assert intact(tmp_path).values["step"] == 3


def test_step_numbers_of_more_than_nine_digits(tmp_path):
    writer, run = CheckpointWriter(tmp_path, 2), Run()
    for run.state.step in (10**9 - 2, 10**9 - 1, 10**9):
        run.save(writer)
    assert intact(tmp_path).values["step"] == 10**9 and len(names(tmp_path)) == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_are_overwritten_and_intact_ones_are_kept(out, keep):
    """A run that resumes from an earlier checkpoint reaches the steps of the damaged ones again."""
    run = Run().train(3)
    run.save(CheckpointWriter(out, 3))
    for number in (2, 3):
        (step_folder(out, number) / "state.safetensors").write_bytes(b"")
    messages = []
    again, writer = Run(1).restore(newest(out, messages.append)), CheckpointWriter(out, keep)
    assert again.state.step == 1 and len(messages) == 2
    for number in (2, 3, 4):
        again.train().save(writer)
        assert intact(out).values["step"] == number and len(names(out)) == min(keep, number)
    assert same(again.tensors(), run.train().tensors())


def test_save_copies_the_state_and_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    may_write, run, writer = threading.Event(), Run().train(), CheckpointWriter(tmp_path, 2)
    before, state = run.tensors(), replace(run.state)

    def slow(*arguments, **keywords):
        assert may_write.wait(20)
        return save_file(*arguments, **keywords)

    monkeypatch.setattr(run_state, "save_file", slow)
    tensors, values = run.gather()
    path = writer.save(1, run.distiller.student, tensors, values)
    values["step"] = 77
    run.state.new_line()
    run.train(2)
    with torch.no_grad():
        for parameter in run.distiller.parameters():
            parameter.fill_(7.0)
    assert not path.exists()
    may_write.set()
    writer.wait()
    other = Run(1).restore(intact(tmp_path))
    assert other.state == state and same(other.tensors(), before)


def test_one_checkpoint_is_written_at_a_time(tmp_path, monkeypatch):
    running, most = [], []

    def watched(*arguments, **keywords):
        running.append(1)
        most.append(len(running))
        save_file(*arguments, **keywords)
        running.pop()

    monkeypatch.setattr(run_state, "save_file", watched)
    run, writer = Run(), CheckpointWriter(tmp_path, 3)
    for number in (1, 2, 3):
        writer.save(number, run.train().distiller.student, *run.gather())
    writer.wait()
    assert max(most) == 1 and len(most) == 6 and len(names(tmp_path)) == 3


ERRORS = [FULL, SafetensorError("I/O error: no space left"), MemoryError("no memory"), RuntimeError("something else")]


@pytest.mark.parametrize("failing", [1, 2], ids=["student", "state"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", ["save", "wait"])
def test_a_failed_write_is_raised_by_the_next_call(out, written, monkeypatch, failing, error, at):
    run, writer, calls = Run().train(3), CheckpointWriter(out, 1), itertools.count(1)

    def save_or_fail(*arguments, **keywords):
        if next(calls) == failing:
            raise error
        return save_file(*arguments, **keywords)

    monkeypatch.setattr(run_state, "save_file", save_or_fail)
    writer.save(3, run.distiller.student, *run.gather())
    with pytest.raises(DataError, match="checkpoint could not be written to .*(o space left|no mem|else).*free some"):
        writer.wait() if at == "wait" else run.train().save(writer)
    assert names(out) == ["step-000000001", "step-000000002"] and not list((out / "checkpoints").glob(".*"))
    assert not falls_back(out, written[1])
    run.state.step = 5
    run.save(writer)  # the disk has space again
    assert names(out) == ["step-000000005"] and intact(out).values["step"] == 5


class Killed(BaseException):
    """Like SIGKILL: nothing is cleaned up."""


def test_killed_at_any_moment_of_writing_no_partial_checkpoint_is_visible(written, tmp_path, monkeypatch):
    """Before and after each operation on the disk."""
    left, moments = [10**9], []

    def deadly(name, function):
        def call(*arguments, **keywords):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            result = function(*arguments, **keywords)
            if left[0] == 0:
                moments.append(name)
                raise Killed
            left[0] -= 1
            return result

        return call

    operations = [(run_state, name) for name in ("save_file", "sha256", "flush")]
    operations += [(Path, name) for name in ("write_text", "rename", "mkdir")] + [(shutil, "rmtree")]
    with monkeypatch.context() as patch:
        for place, name in operations:
            patch.setattr(place, name, deadly(name, getattr(place, name)))
        for moment in itertools.count():
            out = shutil.copytree(written[0], tmp_path / str(moment))
            run, writer = Run().train(3), CheckpointWriter(out, 2)
            tensors, values = run.gather()
            weights, metadata = run_state.contents(run.distiller.student)
            left[0] = moment
            with contextlib.suppress(Killed):
                writer._write(step_folder(out, 3), weights, tensors, metadata, values)
            finished, left[0] = left[0] > 0, 10**9
            assert len(names(out)) in (2, 3) and all(read(out / "checkpoints" / name) for name in names(out))
            assert intact(out).values["step"] == int(names(out)[-1][-1])
            remove_partial_files(out)
            assert not list((out / "checkpoints").glob(".*"))
            Run().train(3).save(writer)
            assert names(out) == ["step-000000002", "step-000000003"]
            if finished:
                break
            shutil.rmtree(out)
    assert moment > 20 and {"save_file", "flush", "rename", "write_text", "sha256"} <= set(moments)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(DataError, match="checkpoint could not be written"):
        Run().train().save(CheckpointWriter(tmp_path, 2))


def test_files_have_the_usual_permissions(written, tmp_path):
    (tmp_path / "usual").write_text("")
    usual = (tmp_path / "usual").stat().st_mode & 0o777
    assert {(step_folder(written[0], 2) / name).stat().st_mode & 0o777 for name in FILES} == {usual}


def test_the_fingerprint_of_a_model_depends_on_its_weights_alone(written):
    file = step_folder(written[0], 2) / "student.safetensors"
    model, again = load_model(file), MaskedLM(CONFIG)
    expected = fingerprint(model)
    again.load_state_dict(dict(reversed(load_file(file).items())))
    assert fingerprint(again) == fingerprint(again.train()) == expected
    with torch.no_grad():
        again.bias[3] = torch.nextafter(again.bias[3], torch.tensor(10.0))
    assert fingerprint(again) != expected and fingerprint(model.double()) != expected
    assert fingerprint(torch.nn.Linear(2, 3)) != fingerprint(torch.nn.Linear(3, 2))


def test_a_missing_checkpoint_is_an_error_that_newest_catches():
    assert issubclass(DataError, ValueError) and issubclass(ModelError, ValueError)
    with pytest.raises(DataError):
        read(Path("/nowhere/step-000000001"))
