"""Runs that are stopped, killed or out of disk space resume and end with the same bits as an undisturbed run."""

import random
import re
import resource
import shutil
import signal
import time
from unittest import mock

import pytest
import torch

from model import load_model, save_model
from model.training.run_state import read
from tests import train_runs
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


def test_stopped_after_every_step_and_compiled(place, whole, tmp_path):
    options = dict(compile="on", steps=3, layers="0", chunk_mb=1, eval_every=0)
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
    message = "warning: The checkpoint .*step-000000003 is damaged .* Resuming from the one before."
    assert re.search(message, result.stderr)
    result = run(place, half)
    assert "resumed   after step 3" in result.stdout and "warning" not in result.stderr
    assert_same_run(half, whole())


DAMAGE = {
    "checkpoints/*/state.json": "is damaged. Restore one, or choose another --out.",
    "metrics.jsonl": "is shorter than at the last checkpoint",
    "run.json": "run.json cannot be read",
}


@pytest.mark.parametrize("damaged", DAMAGE)
def test_a_run_that_cannot_be_resumed_is_an_error_and_left_unchanged(place, half, damaged):
    for path in half.glob(damaged):
        path.write_text("{")
    assert_refused(place, half, DAMAGE[damaged])


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (dict(lr=1e-3), "--lr"),
        (dict(steps=9, dropout=0.2, masking="words"), "--dropout, --steps, --masking"),
        (dict(batch_size=4, accumulate=1), "--batch-size, --accumulate"),
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
    assert f"The run in {whole()} is finished. Choose another --out" in run(place, whole()).stdout
    assert content(whole()) == before
    assert_refused(place, whole(), "with different --steps", steps=9)


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
