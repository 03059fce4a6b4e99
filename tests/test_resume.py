"""Runs that are stopped, killed, poisoned and shared out, and go on as if nothing had happened."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest
import torch

import train
from data import demo
from model import EncoderConfig, MaskedLM, load_model, save_model
from tests.helpers import REPOSITORY, relative_norm, run_command

STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small teacher and a corpus."""
    folder = tmp_path_factory.mktemp("resume")
    torch.manual_seed(0)
    save_model(MaskedLM(EncoderConfig(4, 32, 2, 64, 1005)).eval(), folder / "teacher.safetensors")
    (folder / "corpus.txt").write_text("\n".join(islice(demo.texts(), 300)), encoding="utf-8")
    return folder


def command(place, out, **changed):
    options = dict(
        teacher=place / "teacher.safetensors", tokenizer=demo.FOLDER, corpus=place / "corpus.txt",
        cache=place / "cache", out=place / out, steps=STEPS, batch_size=2, accumulate=2, block_size=32, log_every=4,
        eval_every=3, checkpoint_every=2, dropout=0.1, precision="fp32",
    ) | changed  # fmt: skip
    return [str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


def run(place, out, *more, **changed):
    return run_command("train.py", *command(place, out, **changed), *more)


def start(place, out, *more, launcher=(), before=None, **changed):
    """The same as a process of its own."""
    words = [sys.executable, *launcher, "train.py", *command(place, out, **changed), *more]
    return subprocess.Popen(
        words, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=before,
    )  # fmt: skip


def weights(folder):
    return load_model(folder / "student.safetensors").state_dict()


def digest(folder):
    parts = [tensor.numpy().tobytes() for _, tensor in sorted(weights(folder).items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def lines(folder):
    result = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in result]


@pytest.fixture(scope="module")
def undisturbed(place):
    assert run(place, "undisturbed").returncode == 0
    return place / "undisturbed"


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)


# ---- stopped and gone on with ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_after_every_step_it_ends_with_the_same_bits(place, precision):
    """Each step in a run of its own, with dropout and accumulation; every line of metrics.jsonl is the same too."""
    assert run(place, f"whole-{precision}", precision=precision).returncode == 0
    out = place / f"parts-{precision}"
    for step in range(1, STEPS):
        result = run(place, out.name, precision=precision, max_hours=1e-9)
        assert result.returncode == 0 and not (out / "student.safetensors").exists()
        assert f"Stopped after step {step}, with {out / 'checkpoints' / f'step-{step:09}'}" in result.stderr
    result = run(place, out.name, precision=precision)
    assert f"resumed   after step {STEPS - 1}" in result.stdout
    assert digest(out) == digest(place / f"whole-{precision}")
    assert lines(out) == lines(place / f"whole-{precision}") and len(lines(out)) == 3
    assert (out / "best.safetensors").read_bytes() == (place / f"whole-{precision}" / "best.safetensors").read_bytes()


def test_compiled_too(place):
    torch._dynamo.reset()
    small = dict(compile="on", steps=2, layers="0", log_every=1)
    assert run(place, "compiled", **small).returncode == 0
    assert run(place, "compiled-parts", max_hours=1e-9, **small).returncode == 0
    torch._dynamo.reset()
    assert run(place, "compiled-parts", **small).returncode == 0
    assert digest(place / "compiled-parts") == digest(place / "compiled")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(place, number):
    out = place / f"signal-{number}"
    process = start(place, out.name, steps=100_000, checkpoint_every=0, log_every=1)
    wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_bytes(), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    found = re.search(r"Stopped after step (\d+), with (\S+)\. The same command goes on", said)
    assert found and (out / "checkpoints").is_dir() and os.path.isdir(found[2])
    assert len(lines(out)) == int(found[1])


def test_killed_at_random_moments_it_ends_with_the_same_bits(place):
    chance, out = random.Random(0), place / "killed"
    assert run(place, "not-killed", steps=40, checkpoint_every=1).returncode == 0
    for _ in range(4):
        process = start(place, out.name, steps=40, checkpoint_every=1)
        before = set(out.glob("checkpoints/step-*"))
        wait_for(lambda before=before: set(out.glob("checkpoints/step-*")) - before, process)
        time.sleep(chance.random() * 0.2)
        process.kill()
        process.communicate()
    assert not (out / "student.safetensors").exists()
    assert run(place, out.name, steps=40, checkpoint_every=1).returncode == 0
    assert digest(out) == digest(place / "not-killed") and lines(out) == lines(place / "not-killed")
    assert not list(out.glob(".*")) and not list(out.glob("checkpoints/.*"))


def test_a_damaged_checkpoint_is_passed_over_and_said(place, undisturbed):
    out = place / "damaged"
    assert run(place, out.name, max_hours=1e-9).returncode == 0
    assert run(place, out.name, max_hours=1e-9).returncode == 0
    path = out / "checkpoints/step-000000002/state.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = run(place, out.name)
    assert "step-000000002 is damaged" in result.stderr and "resumed   after step 1" in result.stdout
    assert digest(out) == digest(undisturbed)


def test_a_finished_run_is_left_alone(place, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    result = run(place, undisturbed.name)
    assert result.returncode == 0 and "is finished" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


# ---- refused ---------------------------------------------------------------------------------------------------


def test_other_options_are_refused_by_name_and_some_may_differ(place):
    out = "other"
    assert run(place, out, max_hours=1e-9).returncode == 0
    result = run(place, out, lr=1e-4, seed=3)
    assert result.returncode == 2 and "holds a run with other --lr, --seed." in result.stderr
    assert run(place, out, max_hours=1e-9, log_every=1, checkpoint_every=5, keep=3, eval_every=0).returncode == 0
    result = run(place, out, "--no-resume")
    assert result.returncode == 2 and "of a run already" in result.stderr


@pytest.mark.parametrize("what", ["teacher", "corpus"])
def test_another_teacher_or_corpus_of_that_name_is_refused(place, tmp_path, what):
    for name in ("teacher.safetensors", "corpus.txt"):
        shutil.copyfile(place / name, tmp_path / name)
    assert run(tmp_path, "out", max_hours=1e-9).returncode == 0
    if what == "teacher":
        torch.manual_seed(1)
        save_model(MaskedLM(EncoderConfig(4, 32, 2, 64, 1005)), tmp_path / "teacher.safetensors")
    else:
        (tmp_path / "corpus.txt").write_text("\n".join(islice(demo.texts(), 301)), encoding="utf-8")
    result = run(tmp_path, "out")
    assert result.returncode == 2 and f"a run with another {what} than is there now" in result.stderr


# ---- accidents -------------------------------------------------------------------------------------------------


def test_a_file_size_limit_loses_nothing(place, undisturbed):
    """As a full disk: the checkpoint that does not fit is an error, the one before is whole."""
    out = place / "limited"
    assert run(place, out.name, max_hours=1e-9).returncode == 0

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start(place, out.name, before=limit)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in said
    assert "checkpoint could not be written" in said or "cannot be written" in said
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000001"]
    assert run(place, out.name).returncode == 0
    assert digest(out) == digest(undisturbed)


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the loss of some steps NaN, by their number."""
    bad = set()
    accumulate = train.accumulate_gradients

    def poison(trainee, *arguments):
        sums = accumulate(trainee, *arguments)
        if arguments[-1] in bad:
            next(trainee.parameters()).grad[0] = float("nan")
            sums = sums * float("nan")
        return sums

    monkeypatch.setattr("train.accumulate_gradients", poison)
    return bad


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_poisoned_batch_is_skipped_and_named(place, poisoned, precision):
    poisoned |= {3}
    out = place / f"poisoned-{precision}"
    trained = train.train(train.parse_options(train.Options, command(place, out.name, precision=precision), "", ""))
    assert trained == 0
    line, *_ = lines(out)
    assert {"step": 3, "first_block": 8} in line["skipped"] and line["loss"] < 20
    assert all(tensor.isfinite().all() for tensor in weights(out).values())
    if precision == "fp32":
        assert [each["skipped"] for each in lines(out)] == [[{"step": 3, "first_block": 8}], [], []]


def test_a_skipped_step_changes_nothing(place, poisoned, monkeypatch):
    """Weights and the optimiser's moments after it are those before it."""
    poisoned |= {2}
    states = []
    step = train.optimiser_step

    def spy(trainee, optimiser, *arguments):
        result = step(trainee, optimiser, *arguments)
        moments = [value.clone() for state in optimiser.state.values() for value in state.values()]
        states.append([tensor.clone() for tensor in trainee.state_dict().values()] + moments)
        return result

    monkeypatch.setattr("train.optimiser_step", spy)
    train.train(train.parse_options(train.Options, command(place, "untouched", steps=3), "", ""))
    assert all(torch.equal(one, other) for one, other in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(states[1], states[2], strict=True))


def test_too_many_in_a_row_end_the_run_with_its_last_good_checkpoint(place, poisoned):
    poisoned |= {4, 5, 6}
    options = command(place, "given-up", max_skipped=3, checkpoint_every=3)
    with pytest.raises(train.Diverged, match="3 steps in a row up to step 6 had no finite gradient"):
        train.train(train.parse_options(train.Options, options, "", ""))
    assert [path.name for path in (place / "given-up/checkpoints").iterdir()] == ["step-000000003"]


def test_memory_is_flat(place, monkeypatch):
    seen = {}

    def watch(step, *arguments):
        if step in (100, 400):
            seen[step] = int(open("/proc/self/statm").read().split()[1]) * 4096  # noqa: SIM115
        return 1e-4

    monkeypatch.setattr("train.learning_rate", watch)
    options = command(place, "long", steps=400, log_every=50, eval_every=0, checkpoint_every=50, accumulate=1)
    assert train.train(train.parse_options(train.Options, options, "", "")) == 0
    assert abs(seen[400] - seen[100]) < 30e6


# ---- several processes -----------------------------------------------------------------------------------------


def torchrun(count):
    return (
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count),
        "--master-port",
        str(random.randrange(20000, 60000)),
    )


def test_two_processes_are_one_and_can_be_gone_on_with_as_one(place):
    """The same blocks, masks and dropout: losses agree to 1e-5, also where the number changes in between."""
    small = dict(steps=10, log_every=1, checkpoint_every=5)
    assert run(place, "one", **small).returncode == 0
    process = start(place, "two", launcher=torchrun(2), **small)
    out, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert out.count("student   2 layers") == 1  # one process speaks
    for one, other in zip(lines(place / "one"), lines(place / "two"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5) and other["tokens"] == one["tokens"]
    shutil.rmtree(place / "two/checkpoints/step-000000010")
    (place / "two/student.safetensors").unlink()
    assert "resumed   after step 5" in run(place, "two", **small).stdout
    one, two = (torch.cat([tensor.flatten() for tensor in weights(place / name).values()]) for name in ("one", "two"))
    assert relative_norm(two, one) < 1e-5


def test_one_process_that_dies_ends_all(place):
    out = place / "dies"
    process = start(place, out.name, launcher=torchrun(2), steps=100_000, log_every=1, checkpoint_every=0)
    wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_bytes(), process, 120)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode and time.monotonic() - began < 45 and "SIGKILL" in said


def test_micro_steps_that_cannot_be_shared_are_a_sentence(place):
    process = start(place, "three", launcher=torchrun(2), accumulate=3)
    _, said = process.communicate(timeout=120)
    assert process.returncode and "--accumulate 3 cannot be shared out among 2 processes: take a multiple." in said
