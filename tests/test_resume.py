"""Runs that are stopped, killed or out of disk space resume and end with the same bits as an undisturbed run."""

import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import time
from unittest import mock

import pytest
import torch
from safetensors import safe_open

from model import load_model, save_model
from model.training.run_state import read
from tests import train_runs
from tests.helpers import DEVICE
from tests.train_runs import AT_ONCE, SIZES, assert_same_run, provenance, steps_kept, untimed_metrics, weights
from tests.train_runs import run_longer as run

LONG = dict(steps=50, log_every=1, eval_every=20)  # for runs in a process of their own


def command(place, out, preexec_fn=None, **changed):
    """The same as run() in a process of its own."""
    words = train_runs.arguments(place, out=out, **train_runs.LONGER | changed)
    return train_runs.Command("train.py", *words, preexec_fn=preexec_fn)


def run_in_pieces(place, out, **changed):
    """Stops a run after each of its steps -> the number of stops."""
    for stops in range(100):
        result = run(place, out, max_hours=AT_ONCE, **changed)
        if (out / "student.safetensors").exists():
            return stops
        assert f"Stopped after step {stops + 1}; saved {out / 'checkpoints'}/step-{stops + 1:09}. " in result.stderr
        assert "The same command resumes." in result.stderr and "Written" not in result.stdout
        assert stops == 0 or f"resumed   after step {stops}, from {out / 'checkpoints'}" in result.stdout
    raise AssertionError("it never ends")


def content(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def assert_refused(place, out, message, **changed):
    """A message, status 2, and no file in the folder has changed."""
    before = content(out)
    assert message in run(place, out, status=2, **changed).stderr
    assert content(out) == before


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """whole(**options): the folder of a run that nothing happens to."""
    runs = {}

    def get(**changed):
        key = tuple(sorted(changed.items()))
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("whole") / "out"
            run(place, runs[key], **changed)
        return runs[key]

    return get


@pytest.fixture(scope="module")
def stopped(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "out"
    for _ in range(3):
        run(place, out, max_hours=AT_ONCE)
    return out


@pytest.fixture
def half(stopped, tmp_path):
    """A run that was stopped after step 3 of 8; resumed, it must end as whole() did."""
    return shutil.copytree(stopped, tmp_path / "half")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stopped_after_every_step_it_ends_with_the_same_bits(place, whole, tmp_path, precision):
    """Dropout, accumulation, means over three steps and the best student included."""
    assert run_in_pieces(place, tmp_path / "out", precision=precision) == 7
    assert_same_run(tmp_path / "out", whole(precision=precision))
    assert [line["step"] for line in untimed_metrics(tmp_path / "out")] == [0, 3, 4, 6, 8]


@pytest.mark.gpu
def test_stopped_after_every_step_and_compiled(place, whole, tmp_path):
    """On a GPU: each piece records CUDA graphs anew."""
    options = dict(compile="on", steps=3, layers="0", chunk_mb=1, eval_every=0, device=DEVICE.type)
    torch._dynamo.reset()
    assert run_in_pieces(place, tmp_path / "out", **options) == 2
    torch._dynamo.reset()
    assert_same_run(tmp_path / "out", whole(**options))


def test_stopped_without_a_teacher_and_with_one_of_another_width(place, tmp_path, whole):
    narrow = dict(student=tmp_path / "alone" / "student.safetensors", steps=4)  # a projection is trained too
    for name, options in (("alone", SIZES | dict(steps=4)), ("narrow", narrow)):
        assert run_in_pieces(place, tmp_path / name, **options) == 3
        assert_same_run(tmp_path / name, whole(**options))


def test_the_times_of_checkpoints_do_not_change_the_metrics(place, whole, tmp_path):
    """Sums in float64 are rounded: they must not depend on when they are read."""
    options = dict(log_every=7, eval_every=0)
    run(place, tmp_path / "out", checkpoint_every=2, keep=9, **options)
    assert untimed_metrics(tmp_path / "out") == untimed_metrics(whole(**options))
    assert steps_kept(tmp_path / "out") == [2, 4, 6, 8]
    out = shutil.copytree(tmp_path / "out", tmp_path / "again")
    (out / "student.safetensors").unlink()
    for step in (6, 8):
        shutil.rmtree(out / "checkpoints" / f"step-{step:09}")
    run(place, out, **options)
    assert_same_run(out, tmp_path / "out")


def test_metrics_of_repeated_steps_are_not_there_twice(place, whole, half):
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4}\n{"ste')
    run(place, half)
    assert_same_run(half, whole())


def test_killed_after_the_last_step_it_only_writes_the_student(place, whole, half):
    run(place, half, checkpoint_every=8)
    (half / "student.safetensors").unlink()
    assert steps_kept(half)[-1] == 8
    run(place, half)
    assert_same_run(half, whole())


def test_a_moved_run_resumes(place, whole, half, tmp_path):
    half.rename(tmp_path / "moved")
    run(place, tmp_path / "moved")
    assert_same_run(tmp_path / "moved", whole())


def runtime_of_newest(out):
    return read(max((out / "checkpoints").glob("step-*"))).values["runtime"]


def test_resuming_with_another_resolved_precision_warns(place, tmp_path, monkeypatch):
    """--precision auto is bf16 on the first processor and fp32 on the second."""
    out, options = tmp_path / "out", dict(precision="auto", steps=3)
    warning = "warning: the run had precision bf16 until now and continues with precision fp32.\n"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    for _ in range(2):
        assert "warning" not in run(place, out, max_hours=AT_ONCE, **options).stderr
    assert runtime_of_newest(out) == {"device": "cpu", "precision": "bf16", "compiled": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    result = run(place, out, **options)
    assert warning in result.stderr and "on cpu, fp32," in result.stdout
    about = provenance(out)
    assert about["runtime"] == {"device": "cpu", "precision": "fp32", "compiled": False}
    assert about["options"]["precision"] == "auto"


def test_resuming_with_another_resolved_compilation_warns(place, tmp_path, monkeypatch):
    """--compile auto finds a compiler on the first machine and none on the second."""
    out, options = tmp_path / "out", dict(compile="auto", steps=1000, max_hours=AT_ONCE)
    warning = "warning: the run had compiled True until now and continues with compiled False.\n"
    monkeypatch.setattr("losses.fused.compiled", lambda function: function)
    monkeypatch.setattr("torch.compile", lambda function, **settings: function)
    for _ in range(2):
        assert "warning" not in run(place, out, **options).stderr
    assert runtime_of_newest(out) == {"device": "cpu", "precision": "fp32", "compiled": True}
    monkeypatch.setattr("torch.compile", mock.Mock(side_effect=RuntimeError("no compiler found")))
    result = run(place, out, **options)
    assert warning in result.stderr
    assert "compile   off: torch.compile does not work here (no compiler found)" in result.stdout
    assert runtime_of_newest(out) == {"device": "cpu", "precision": "fp32", "compiled": False}


def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(place, whole, half):
    damaged = half / "checkpoints" / "step-000000003" / "state.safetensors"
    bits = bytearray(damaged.read_bytes())
    bits[len(bits) // 2] ^= 1
    damaged.write_bytes(bits)
    result = run(place, half, max_hours=AT_ONCE, keep=1)
    assert "resumed   after step 2" in result.stdout and steps_kept(half) == [3]
    message = "warning: The checkpoint .*step-000000003 is damaged .* Resuming after step 2 instead."
    assert re.search(message, result.stderr)
    result = run(place, half)
    assert "resumed   after step 3" in result.stdout and "warning" not in result.stderr
    assert_same_run(half, whole())


def test_a_run_that_cannot_be_resumed_is_an_error_and_left_unchanged(place, half):
    for path in half.glob("checkpoints/*/state.json"):
        path.write_text("{")
    kept = half / "checkpoints" / "step-000000003" / "student.safetensors"
    message = f"or begin a new run with its student: --student {kept} and another --out."
    assert_refused(place, half, f"No other checkpoint is left in {half}/checkpoints. Restore one of them, {message}")


@pytest.mark.parametrize("how", ["missing", "damaged"])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_lost_file_beside_a_checkpoint_does_not_cost_the_run(place, whole, half, name, how):
    original = (half / name).read_bytes()
    (half / name).unlink()
    if how == "damaged":
        (half / name).write_bytes(original[:20])
    result = run(place, half)
    assert "resumed   after step 3" in result.stdout and weights(half) == weights(whole())
    if name == "run.json":
        lost = "is missing" if how == "missing" else "cannot be read"
        assert f"warning: {half / name} {lost}; the options in {half}/checkpoints/step-000000003 take" in result.stderr
        assert json.loads((half / name).read_text())["inputs"] == json.loads(original)["inputs"]
    else:
        assert f"warning: {half / name} is shorter than at the last checkpoint: lines of earlier steps" in result.stderr
        assert untimed_metrics(half) == untimed_metrics(whole())[-len(untimed_metrics(half)) :]


def test_other_options_are_refused_also_by_a_checkpoint_alone(place, half):
    (half / "run.json").unlink()
    assert_refused(place, half, "holds a run with different --lr.", lr=2e-3)


def test_checkpoints_without_any_options_are_not_overwritten(place, half):
    (half / "run.json").unlink()
    for path in half.glob("checkpoints/*/state.json"):
        path.unlink()
    assert_refused(place, half, "already holds the metrics.jsonl of a run, and no readable run.json to resume it.")
    (half / "metrics.jsonl").unlink()
    assert_refused(place, half, "already holds the checkpoints/step-000000003 of a run, and no readable run.json")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (dict(lr=2e-3), "--lr"),
        (dict(steps=7, dropout=0.2, masking="words"), "--dropout, --steps, --masking"),
        (dict(batch_size=4, accumulate=2), "--batch-size"),
        (dict(steps=7), "--steps"),
        (dict(precision="bf16", seed=1), "--seed, --precision"),
    ],
)
def test_changed_options_are_refused_by_name(place, half, changed, names):
    message = f"holds a run with different {names}. Use the same options to resume it, or choose another --out."
    assert_refused(place, half, message, **changed)


def test_options_that_do_not_affect_the_student_may_differ(place, whole, half, tmp_path):
    logging = dict(log_every=1, eval_every=0, checkpoint_every=2, keep=3)
    result = run(place, half, max_skipped=3, device="cpu:0", max_hours=5, cache=tmp_path / "cache", **logging)
    assert "resumed   after step 3" in result.stdout
    assert weights(half) == weights(whole()) and steps_kept(half) == [4, 6, 8]
    assert [line["step"] for line in untimed_metrics(half)] == [0, 3, 4, 5, 6, 7, 8]


def other_corpus(folder):
    (folder / "corpus.txt").write_text("\n".join(train_runs.TEXTS[1:]), encoding="utf-8")


def other_teacher(folder):
    model = load_model(folder / "teacher.safetensors").requires_grad_(False)
    model.bias[3] += 1e-3
    save_model(model, folder / "teacher.safetensors")


@pytest.mark.parametrize("change", [other_corpus, other_teacher])
def test_another_corpus_or_teacher_of_the_same_name_is_refused(place, tmp_path, change):
    folder, out = shutil.copytree(place, tmp_path / "place"), tmp_path / "out"
    run(folder, out, max_hours=AT_ONCE)
    change(folder)
    name = change.__name__.removeprefix("other_")
    message = f"holds a run with another {name}, which has changed since. Restore it, or choose another --out."
    assert_refused(folder, out, message)


def test_a_finished_run_is_left_unchanged(place, whole):
    before = content(whole())
    assert f"The run in {whole()} is finished. More --steps extend it; another --out" in run(place, whole()).stdout
    assert content(whole()) == before
    assert_refused(place, whole(), "with different --steps", steps=7)


def test_a_finished_run_is_extended(place, whole, tmp_path):
    """As one that had the longer schedule from there on, also if it is stopped again and again."""
    out, other = (shutil.copytree(whole(), tmp_path / name) for name in ("out", "other"))
    assert steps_kept(out) == [8]
    result = run(place, out, steps=12)
    schedule = "the learning rate is 3.6e-04 now and decays linearly to 0 at step 12, no longer 8"
    assert f"extended  from 8 to 12 steps: {schedule}\n" in result.stdout and "resumed   after step 8" in result.stdout
    assert weights(out) != weights(whole()) and [line["step"] for line in untimed_metrics(out)][-3:] == [8, 9, 12]
    for _ in range(9):
        run(place, other, steps=12, max_hours=AT_ONCE)
    assert_same_run(other, out)
    assert [provenance(each)["schedules"] for each in (whole(), out, other)] == [[8], [8, 12], [8, 12]]
    assert_refused(place, other, "with different --steps")
    assert "is finished" in run(place, other, steps=12).stdout


def test_a_finished_run_without_checkpoints_says_how_to_train_its_student_further(place, whole, tmp_path):
    out = shutil.copytree(whole(), tmp_path / "out")
    shutil.rmtree(out / "checkpoints")
    message = f"the same options with --student {out / 'student.safetensors'} --steps 4 and another --out."
    assert_refused(place, out, message, steps=12)
    further = dict(student=out / "student.safetensors", steps=4)
    assert weights(out) != weights(run(place, tmp_path / "new", **further) and tmp_path / "new")


def test_a_lost_or_truncated_student_is_written_again_from_the_last_checkpoint(place, whole, tmp_path):
    out = shutil.copytree(whole(), tmp_path / "out")
    content = (out / "student.safetensors").read_bytes()
    (out / "student.safetensors").write_bytes(content[:1000])
    result = run(place, out)
    assert "It is written again from the last checkpoint." in result.stderr and "is finished" not in result.stdout
    assert_same_run(out, whole())


@pytest.mark.parametrize("content", [b"", b"x" * 100], ids=["empty", "no .safetensors"])
def test_a_damaged_student_is_not_a_finished_run(place, whole, tmp_path, content):
    out = shutil.copytree(whole(), tmp_path / "out")
    (out / "student.safetensors").write_bytes(content)
    assert "It is written again from the last checkpoint." in run(place, out).stderr
    assert_same_run(out, whole())


def test_a_damaged_best_student_is_written_again(place, whole, half):
    best = half / "best.safetensors"
    run(place, half, max_hours=AT_ONCE)  # the first validation
    content = weights(half, "best")
    best.write_bytes(best.read_bytes()[:2000])
    result = run(place, half, max_hours=AT_ONCE)
    assert f"warning: {best} is damaged, and is written again from" in result.stderr
    assert weights(half, "best") == content


def test_a_checkpoint_that_cannot_be_read_at_the_moment_is_not_damaged(place, half, monkeypatch):
    """It would be skipped, and deleted with the next checkpoint."""
    locked, full = PermissionError(13, "Permission denied", "state.json"), MEMORY_ERRORS[2]
    for name, error, message in (
        ("model.training.run_state.sha256", locked, "train.py: state.json: Permission denied."),
        ("model.training.run_state.read_safetensors", MemoryError(), "train.py: out of memory: "),
        ("torch.optim.AdamW.load_state_dict", full, "train.py: out of memory: "),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, mock.Mock(side_effect=error))
            assert_refused(place, half, message)


def test_inputs_may_be_named_otherwise(place, half):
    names = dict(teacher=f"{place}/./teacher.safetensors", corpus=f"{place}/../{place.name}/corpus.txt")
    assert "resumed   after step 3" in run(place, half, **names, max_hours=AT_ONCE).stdout


def test_smaller_micro_batches_of_the_same_step_resume(place, whole, half):
    """What a run out of memory needs: the same blocks per step, and the same result but for rounding and dropout."""
    run(place, half, batch_size=1, accumulate=4, chunk_mb=1)
    one, other = untimed_metrics(half), untimed_metrics(whole())
    assert [line.get("tokens") for line in one] == [line.get("tokens") for line in other]
    assert one[-1]["loss"] == pytest.approx(other[-1]["loss"], rel=0.01)


def test_a_second_run_in_the_folder_is_refused_and_hurts_nothing(place, whole, tmp_path):
    out = tmp_path / "out"
    with command(place, out, **LONG) as process:
        process.wait_for("step  5/50")
        message = f"{out} is in use by another process (host {socket.gethostname()}, process {process.pid})"
        assert message in run(place, out, status=2, **LONG).stderr
        process.send_signal(signal.SIGSTOP)
        with command(place, out, wait=True, **LONG) as waiting:
            waiting.wait_for("Waiting for its end")
            process.send_signal(signal.SIGCONT)
            assert process.end() == 0
            assert waiting.end() == 0
    assert "is finished" in waiting.output and "Traceback" not in waiting.output
    assert_same_run(out, whole(**LONG))


MEMORY_ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
]


OUT_OF_MEMORY = {  # where it happens
    "backward": "losses.fused_distillation_loss",
    "optimiser_step": "model.training.optim.optimiser_step",
    "validate": "eval.validation.validate",
    "load_models": "model.checkpoints.load.load_checkpoint",
    "prepare_models": "model.training.device.prepare_models",
}


def test_no_resume_refuses_a_folder_that_holds_a_run(place, whole, half, tmp_path):
    assert_refused(place, half, "already holds the metrics.jsonl of a run. Choose another --out", resume=False)
    assert_refused(place, whole(), "already holds the student.safetensors of a run.", resume=False)
    (half / "metrics.jsonl").unlink()  # its checkpoints are still there
    assert_refused(place, half, "already holds the run.json of a run.", resume=False)
    run(place, tmp_path / "new", resume=False)
    assert weights(tmp_path / "new") == weights(whole())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(place, whole, tmp_path, number, status):
    out = tmp_path / "out"
    with command(place, out, **LONG) as process:
        process.wait_for("step  5/50")
        process.send_signal(number)
        assert process.end() == status
    (step,) = steps_kept(out)
    assert 5 <= step < 50 and "Traceback" not in process.output
    assert f"Stopped after step {step}; saved {out}/checkpoints/step-{step:09}. The same command" in process.output
    run(place, out, **LONG)
    assert_same_run(out, whole(**LONG))


def test_a_signal_before_the_first_step_ends_the_run_before_it(place, half, monkeypatch):
    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # it is noted by another thread

    monkeypatch.setattr("model.training.report.print_cost", signalled)
    before = steps_kept(half)
    result = run(place, half, status=143)
    assert "Stopped after step 3; nothing new to save. The same command resumes." in result.stderr
    assert steps_kept(half) == before


def assert_same_bits_when_killed(place, whole, out, words, delays, **options):
    """Killed so many seconds after these words; with a checkpoint after every step, some while one is written."""
    done = []
    for seconds in delays:
        with command(place, out, checkpoint_every=1, **options) as process:
            process.wait_for(words)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            assert process.end() == -signal.SIGKILL
        done.append((steps_kept(out) or [0])[-1])
    assert done == sorted(done) and 0 < done[-1] < options["steps"]
    assert f"resumed   after step {done[-1]}," in run(place, out, **options).stdout
    assert_same_run(out, whole(**options))


def test_killed_at_random_moments_it_ends_with_the_same_bits(place, whole, tmp_path):
    chance = random.Random(0)
    delays = [chance.uniform(0, 0.3) for _ in range(4)]
    assert_same_bits_when_killed(place, whole, tmp_path / "out", "step ", delays, **LONG)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_killed_in_half_precision_it_ends_with_the_same_bits(place, whole, tmp_path, precision):
    """With blocks long enough for a GPU's flash attention to add up the parts of a gradient in any order."""
    options = LONG | dict(steps=12, device="auto", precision=precision, block_size=512, batch_size=1, eval_every=0)
    delay = random.Random(precision).uniform(0, 0.02)
    assert_same_bits_when_killed(place, whole, tmp_path / "out", "step  3/12", [delay], **options)


def limit_files():
    """To a size below that of a checkpoint's state, which is twice that of a student, and above all other files."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


def test_a_full_disk_while_a_checkpoint_is_written(place, whole, half):
    with command(place, half, checkpoint_every=2, eval_every=0, preexec_fn=limit_files) as process:
        assert process.end() == 2, process.output
    assert "The checkpoint could not be written to" in process.output and "File too large" in process.output
    assert "The earlier ones are intact: free some space, and the same command resumes from them." in process.output
    assert "Traceback" not in process.output and steps_kept(half) == [2, 3]
    assert not list(half.glob("checkpoints/.*")) and "resumed   after step 3" in run(place, half).stdout
    assert_same_run(half, whole())


def test_memory_does_not_grow(place, tmp_path):
    """Over 2,000 steps: tests/torture_train.py."""
    options = dict(steps=300, log_every=60, checkpoint_every=30, eval_every=0, accumulate=1, batch_size=1)
    resident = train_runs.memory_of_run(place, tmp_path, block_size=16, layers="0", **options)
    assert abs(resident[300] - resident[60]) < 30, resident


@pytest.mark.parametrize("stage, error", [*zip(OUT_OF_MEMORY, itertools.cycle(MEMORY_ERRORS))])
def test_out_of_memory_ends_with_a_cure_and_the_last_checkpoint_stays(place, half, monkeypatch, stage, error):
    before = content(half)
    with monkeypatch.context() as patch:
        patch.setattr(OUT_OF_MEMORY[stage], mock.Mock(side_effect=error))
        message = run(place, half, status=2).stderr
    assert message.startswith("train.py: out of memory: ") and message.count("\n") == 1
    assert "smaller --batch-size with a larger --accumulate" in message and "smaller --chunk-mb" in message
    assert {path: before[path] for path in before if "checkpoints" in str(path)}.items() <= content(half).items()


def test_the_student_in_a_checkpoint_says_how_it_was_made(half):
    with safe_open(half / "checkpoints" / "step-000000003" / "student.safetensors", "pt") as file:
        about = json.loads(file.metadata()["provenance"])
    assert about["step"] == 3 and about["options"]["steps"] == 8
