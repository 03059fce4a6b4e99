"""Runs that are stopped, killed, starved of disk, poisoned or shared by processes, and end as if nothing had been."""

import contextlib
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

import losses
from data import demo
from model import EncoderConfig, MaskedLM, load_model, save_model
from model.checkpoints.native import fingerprint
from model.training.log import MetricsLogger
from model.training.run_state import read
from tests.helpers import REPOSITORY, relative_norm, run_command

TEXTS = list(itertools.islice(demo.texts(), 300))
AT_ONCE = 1e-7  # hours: over before the first step is
LONG = dict(steps=50, log_every=1, eval_every=20)  # of the runs that something happens to from outside


def make_place(folder):
    """A small teacher and a corpus, which the first run prepares."""
    torch.manual_seed(0)
    save_model(MaskedLM(EncoderConfig(4, 32, 2, 64, 1005, dropout=0.0)).eval(), folder / "teacher.safetensors")
    (folder / "corpus.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


def arguments(place, out, **changed):
    """Of train.py: two micro-steps a step, with dropout. changed=None leaves an option out."""
    options = dict(
        teacher=place / "teacher.safetensors", tokenizer=demo.FOLDER, corpus=place / "corpus.txt",
        cache=place / "cache", out=out, steps=8, batch_size=2, block_size=32, accumulate=2, dropout=0.1, log_every=3,
        eval_every=4, precision="fp32",
    ) | changed  # fmt: skip
    given = []
    for name, value in options.items():
        if isinstance(value, bool):
            given.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        elif value is not None:
            given += [f"--{name.replace('_', '-')}", str(value)]
    return given


def run(place, out, **changed):
    return run_command("train.py", *arguments(place, out, **changed))


def until_the_end(place, out, **changed):
    """-> how often it was stopped, each time after one step."""
    for stopped in range(100):
        result = run(place, out, max_hours=AT_ONCE, **changed)
        assert result.returncode == 0, result.stderr
        if (out / "student.safetensors").exists():
            return stopped
        assert f"Stopped after step {stopped + 1}, with {out / 'checkpoints'}/step-{stopped + 1:09}. " in result.stderr
        assert "The same command goes on." in result.stderr and "Written" not in result.stdout
        assert stopped == 0 or f"resumed   after step {stopped}, from {out / 'checkpoints'}" in result.stdout
    raise AssertionError("it never ends")


def weights(out, name="student"):
    """Their sha256."""
    return fingerprint(load_model(out / f"{name}.safetensors"))


def lines(out):
    """metrics.jsonl, but for what a clock says."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        assert (line.pop("tokens_per_second") > 0) == (line["tokens"] > 0)
    return found


def same_run(out, whole):
    """Whether two runs ended with the same students and said the same on their way."""
    assert weights(out) == weights(whole)
    assert weights(out, "best") == weights(whole, "best")
    assert lines(out) == lines(whole)
    assert not list(out.rglob(".*"))  # nothing half written is left
    return True


def content(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def steps_kept(out):
    """The steps of the checkpoints there are, each of which can be read."""
    return sorted(read(path).values["step"] for path in (out / "checkpoints").glob("step-*"))


def copy(source, target):
    return Path(shutil.copytree(source, target))


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """A short run that nothing happens to, by its options."""
    runs = {}

    def get(**changed):
        key = tuple(sorted(changed.items()))
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("whole") / "out"
            assert run(place, runs[key], **changed).returncode == 0
        return runs[key]

    return get


@pytest.fixture(scope="module")
def stopped(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "out"
    for _ in range(3):
        assert run(place, out, max_hours=AT_ONCE).returncode == 0
    return out


@pytest.fixture
def half(stopped, tmp_path):
    """A short run that was stopped after 3 steps; whole() is what it would have been."""
    return copy(stopped, tmp_path / "half")


# ---- stopped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stopped_after_every_step_it_ends_with_the_same_bits(place, whole, tmp_path, precision):
    """Dropout, accumulation, the means of three steps, the best student: all as without a stop."""
    assert until_the_end(place, tmp_path / "out", precision=precision) == 7
    assert same_run(tmp_path / "out", whole(precision=precision))
    assert len(lines(tmp_path / "out")) == 4  # of steps 3, 4, 6, 8


def test_stopped_after_every_step_and_compiled(place, whole, tmp_path):
    options = dict(compile="on", steps=3, layers="0", chunk_mb=1, eval_every=0)
    torch._dynamo.reset()
    assert until_the_end(place, tmp_path / "out", **options) == 2
    torch._dynamo.reset()
    assert same_run(tmp_path / "out", whole(**options))


def test_without_a_teacher_and_with_one_of_another_width(place, tmp_path, whole):
    sizes = dict(teacher="none", num_layers=1, hidden_size=16, num_heads=2, intermediate_size=24, steps=4)
    assert until_the_end(place, tmp_path / "alone", **sizes) == 3
    assert same_run(tmp_path / "alone", whole(**sizes))
    narrow = dict(student=tmp_path / "alone" / "student.safetensors", steps=4)  # a projection is trained too
    assert until_the_end(place, tmp_path / "narrow", **narrow) == 3
    assert same_run(tmp_path / "narrow", whole(**narrow))


def test_checkpoints_at_other_moments_change_nothing_at_all(place, whole, tmp_path):
    """Sums of float64 are rounded: they must not depend on when they are read."""
    assert run(place, tmp_path / "out", checkpoint_every=2, keep=9, log_every=7, eval_every=0).returncode == 0
    assert lines(tmp_path / "out") == lines(whole(log_every=7, eval_every=0))
    assert steps_kept(tmp_path / "out") == [2, 4, 6, 8]
    out = copy(tmp_path / "out", tmp_path / "again")
    (out / "student.safetensors").unlink()
    for step in (6, 8):
        shutil.rmtree(out / "checkpoints" / f"step-{step:09}")
    assert run(place, out, log_every=7, eval_every=0).returncode == 0
    assert same_run(out, tmp_path / "out")


def test_lines_of_steps_that_are_done_again_are_not_there_twice(place, whole, half):
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4}\n{"ste')
    assert run(place, half).returncode == 0 and same_run(half, whole())


def test_killed_at_the_very_end_it_only_finishes(place, whole, half):
    assert run(place, half, checkpoint_every=8).returncode == 0
    (half / "student.safetensors").unlink()
    assert steps_kept(half)[-1] == 8
    result = run(place, half)
    assert result.returncode == 0, result.stderr
    assert same_run(half, whole())


def test_a_run_that_was_moved_goes_on(place, whole, half, tmp_path):
    half.rename(tmp_path / "moved")
    assert run(place, tmp_path / "moved").returncode == 0 and same_run(tmp_path / "moved", whole())


# ---- damaged ---------------------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_is_said_and_passed_over(place, whole, half):
    damaged = half / "checkpoints" / "step-000000003" / "state.safetensors"
    bits = bytearray(damaged.read_bytes())
    bits[len(bits) // 2] ^= 1
    damaged.write_bytes(bits)
    result = run(place, half, max_hours=AT_ONCE, keep=1)
    assert result.returncode == 0 and "resumed   after step 2" in result.stdout
    assert re.search("warning: The checkpoint .*step-000000003 is damaged .* before it is taken", result.stderr)
    assert steps_kept(half) == [3]
    result = run(place, half)
    assert "resumed   after step 3" in result.stdout and "warning" not in result.stderr and same_run(half, whole())


def test_when_all_checkpoints_are_damaged_it_says_so_and_touches_nothing(place, half):
    for path in half.glob("checkpoints/*/state.json"):
        path.write_text("{}")
    before = content(half)
    result = run(place, half)
    assert result.returncode == 2 and "is whole. Restore one, or choose another --out." in result.stderr
    assert content(half) == before


def test_metrics_that_are_gone_are_missed(place, half):
    (half / "metrics.jsonl").write_text("")
    result = run(place, half)
    assert result.returncode == 2 and "metrics.jsonl is shorter than when the run stopped" in result.stderr


# ---- not the same run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (dict(lr=1e-3), "--lr"),
        (dict(steps=9, dropout=0.2, masking="words"), "--dropout, --steps, --masking"),
        (dict(batch_size=4, accumulate=1), "--batch-size, --accumulate"),
        (dict(precision="bf16", seed=1), "--seed, --precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changed_options_are_refused_by_name(place, half, changed, names):
    before = content(half)
    result = run(place, half, **changed)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"holds a run with other {names}. Give the same to go on, or choose another --out." in result.stderr
    assert content(half) == before


def test_options_that_decide_nothing_may_differ(place, whole, half, tmp_path):
    result = run(place, half, log_every=1, eval_every=0, checkpoint_every=2, keep=3, max_skipped=3, device="cpu",
                 max_hours=5, cache=tmp_path / "cache")  # fmt: skip
    assert result.returncode == 0 and "resumed   after step 3" in result.stdout
    assert weights(half) == weights(whole()) and steps_kept(half) == [4, 6, 8]
    assert [line["step"] for line in lines(half)] == [3, 4, 5, 6, 7, 8]


def other_corpus(folder):
    (folder / "corpus.txt").write_text("\n".join(TEXTS[1:]), encoding="utf-8")


def other_teacher(folder):
    model = load_model(folder / "teacher.safetensors")
    with torch.no_grad():
        model.bias[3] += 1e-3
    save_model(model, folder / "teacher.safetensors")


@pytest.mark.parametrize("change", [other_corpus, other_teacher])
def test_another_corpus_or_teacher_of_the_same_name_is_refused(place, tmp_path, change):
    folder, out = copy(place, tmp_path / "place"), tmp_path / "out"
    assert run(folder, out, max_hours=AT_ONCE).returncode == 0
    change(folder)
    before = content(out)
    result = run(folder, out)
    name = change.__name__.removeprefix("other_")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"holds a run with another {name} than is there now. Restore it, or choose" in result.stderr
    assert content(out) == before


def test_a_finished_run_says_so_and_is_not_touched(place, whole):
    before = content(whole())
    result = run(place, whole())
    assert result.returncode == 0 and f"The run in {whole()} is finished. Choose another --out" in result.stdout
    assert content(whole()) == before
    result = run(place, whole(), steps=9)
    assert result.returncode == 2 and "other --steps" in result.stderr and content(whole()) == before


def test_no_resume_refuses_a_folder_that_holds_a_run(place, whole, half, tmp_path):
    for out in (half, whole()):
        before = content(out)
        result = run(place, out, resume=False)
        assert result.returncode == 2 and "of a run already. Choose another --out, or remove it." in result.stderr
        assert content(out) == before
    (half / "metrics.jsonl").unlink()  # its checkpoints are still there
    result = run(place, half, resume=False)
    assert result.returncode == 2 and "holds the run.json of a run already" in result.stderr
    assert run(place, tmp_path / "new", resume=False).returncode == 0
    assert weights(tmp_path / "new") == weights(whole())


def test_a_run_json_that_is_damaged_is_a_sentence(place, half):
    (half / "run.json").write_text("{")
    result = run(place, half)
    assert result.returncode == 2 and "run.json cannot be read" in result.stderr


# ---- numerical accidents ---------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch):
    """poison(calls): the loss of these micro-steps, counted from 0, is NaN, and with it the gradient."""
    original = losses.fused_distillation_loss

    def spoil(calls):
        count = itertools.count()

        def poisoned(*given, **named):
            total, terms = original(*given, **named)
            if next(count) in calls:
                return total * math.nan, type(terms)(*(term * math.nan for term in terms[:3]), *terms[3:])
            return total, terms

        monkeypatch.setattr(losses, "fused_distillation_loss", poisoned)

    return spoil


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("bad", [3, 1, 8], ids=["a step", "the first", "the last"])
def test_a_poisoned_batch_is_skipped_and_named(place, tmp_path, poison, bad, precision):
    poison({2 * bad - 1})  # the second micro-step of it
    result = run(place, tmp_path, log_every=4, precision=precision, max_skipped=2)
    assert result.returncode == 0, result.stderr
    found = lines(tmp_path)
    named = [each for line in found for each in line["skipped"]]
    assert named == [{"step": bad, "first_block": (bad - 1) * 4}] and f"skipped {bad}" in result.stdout
    assert [line["tokens"] for line in found] == [128 * (4 - len(line["skipped"])) for line in found]
    for line in found:
        assert 0 < line["loss"] <= line["highest_loss"] < 10
        assert (line["gradient_norm"] is None) == (line["step"] == bad)
    student = load_model(tmp_path / "student.safetensors")
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_a_skipped_step_changes_no_number_that_is_trained(place, tmp_path, poison):
    kept = {}
    poison({4, 5})
    assert run(place, tmp_path, checkpoint_every=1, keep=9).returncode == 0
    for step in (2, 3, 4):
        kept[step] = read(tmp_path / "checkpoints" / f"step-{step:09}")
    same = [torch.equal(kept[3].student[name], tensor) for name, tensor in kept[2].student.items()]
    assert all(same) and all(torch.equal(kept[3].tensors[name], kept[2].tensors[name]) for name in kept[2].tensors)
    assert not all(torch.equal(kept[4].student[name], tensor) for name, tensor in kept[2].student.items())


def test_a_line_of_nothing_but_skipped_steps(place, tmp_path, poison):
    poison({4, 5, 6, 7})
    result = run(place, tmp_path, log_every=1)
    assert result.returncode == 0, result.stderr
    assert [line["tokens"] for line in lines(tmp_path)] == [128, 128, 0, 0, 128, 128, 128, 128]


def test_skipped_steps_are_remembered_over_a_stop(place, tmp_path, poison):
    """For their line, and for the number in a row."""
    poison({4, 5})
    assert run(place, tmp_path / "whole", steps=4, log_every=4).returncode == 0
    for start in range(4):
        poison({0, 1} if start == 2 else set())
        assert run(place, tmp_path / "out", steps=4, log_every=4, max_hours=AT_ONCE).returncode == 0
    assert same_run(tmp_path / "out", tmp_path / "whole")
    assert [each["step"] for line in lines(tmp_path / "out") for each in line["skipped"]] == [3]
    poison(range(100))
    statuses = [run(place, tmp_path / "lost", max_skipped=3, max_hours=AT_ONCE).returncode for _ in range(3)]
    assert statuses == [0, 0, 3]


def test_too_many_in_a_row_end_with_status_3_and_the_last_good_checkpoint(place, whole, tmp_path, poison, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context():
        poison(range(10, 1000))  # from step 6 on
        result = run(place, out, checkpoint_every=4, max_skipped=3, log_every=1, eval_every=0)
    assert result.returncode == 3 and "Traceback" not in result.stderr
    assert "3 steps in a row up to step 8 had no finite gradient. Try a smaller --lr" in result.stderr
    assert steps_kept(out) == [4] and not (out / "student.safetensors").exists()
    assert [line["step"] for line in lines(out)] == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.undo()
    assert run(place, out, checkpoint_every=4, max_skipped=3, log_every=1, eval_every=0).returncode == 0
    assert same_run(out, whole(log_every=1, eval_every=0))


def test_accidents_that_are_not_in_a_row_do_not_end_it(place, tmp_path, poison):
    poison({2, 6, 10, 14})
    assert run(place, tmp_path, max_skipped=2).returncode == 0
    assert [each["step"] for line in lines(tmp_path) for each in line["skipped"]] == [2, 4, 6, 8]


# ---- a process of its own --------------------------------------------------------------------------------------


class Command:
    """train.py in a process of its own, whose lines are seen as they come. Nothing of it is left afterwards."""

    def __init__(self, *words, **settings):
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=REPOSITORY, env=environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings
        )  # fmt: skip
        self.pid, self.output = self.process.pid, ""

    def wait_for(self, words):
        for line in self.process.stdout:
            self.output += line
            if words in line:
                return
        raise AssertionError(f"it ended without {words!r}:\n{self.output}")

    def end(self, seconds=60):
        """-> exit status."""
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        self.output += self.process.stdout.read()  # until nobody is left to write
        timer.cancel()
        return self.process.wait(seconds)

    def send(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.process.poll() is None:  # else its number may be that of another by now
            for pid in ranks_of(self.pid).values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()
        self.process.wait()
        self.process.stdout.close()


def ranks_of(launcher):
    """The processes that a launcher started, by their rank."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + stat.with_name("environ").read_bytes())
            if int(parent) == launcher and state != "Z" and rank:
                found[int(rank[1])] = int(stat.parent.name)
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_where(place, whole, tmp_path, number, status):
    out = tmp_path / "out"
    with Command("train.py", *arguments(place, out, **LONG)) as command:
        command.wait_for("step  5/50")
        command.send(number)
        assert command.end() == status
    (step,) = steps_kept(out)
    assert 5 <= step < 50
    assert f"Stopped after step {step}, with {out}/checkpoints/step-{step:09}. The same command" in command.output
    assert "Traceback" not in command.output
    assert run(place, out, **LONG).returncode == 0 and same_run(out, whole(**LONG))


def test_killed_at_random_moments_it_ends_with_the_same_bits(place, whole, tmp_path):
    """Without a warning, and with a checkpoint after every step, so that some kills fall into its writing."""
    out, chance, done = tmp_path / "out", random.Random(0), []
    for _ in range(4):
        with Command("train.py", *arguments(place, out, checkpoint_every=1, **LONG)) as command:
            command.wait_for("step ")
            time.sleep(chance.uniform(0, 0.3))
            command.send(signal.SIGKILL)
            assert command.end() == -signal.SIGKILL
        done.append((steps_kept(out) or [0])[-1])
    assert done == sorted(done) and 0 < done[-1] < 50
    result = run(place, out, **LONG)
    assert result.returncode == 0 and f"resumed   after step {done[-1]}," in result.stdout
    assert same_run(out, whole(**LONG))


def limit_files():
    """The state of a checkpoint is twice as large as a student, and too large; all else is not."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


def test_a_disk_that_fills_while_a_checkpoint_is_written(place, whole, half):
    with Command("train.py", *arguments(place, half, checkpoint_every=2), preexec_fn=limit_files) as command:
        assert command.end() == 2, command.output
    assert "The checkpoint could not be written to" in command.output and "File too large" in command.output
    assert "The ones before are whole: make room, and the same command goes on" in command.output
    assert "Traceback" not in command.output
    assert steps_kept(half) == [2, 3] and not list(half.glob("checkpoints/.*"))
    result = run(place, half)
    assert result.returncode == 0 and "resumed   after step 3" in result.stdout and same_run(half, whole())


def memory(place, out, **changed):
    """A run in this process -> megabytes that are resident at each logged step."""
    resident, show = {}, MetricsLogger.show

    def watch(self, record, time_left):
        resident[record["step"]] = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
        return show(self, record, time_left)

    with mock.patch.object(MetricsLogger, "show", watch):
        assert run(place, out, **changed).returncode == 0
    return resident


def test_memory_does_not_grow(place, tmp_path):
    """tests/torture_train.py does 2,000 steps."""
    sizes = dict(accumulate=1, batch_size=1, block_size=16, layers="0")
    resident = memory(place, tmp_path, steps=300, log_every=60, checkpoint_every=30, eval_every=0, **sizes)
    assert abs(resident[300] - resident[60]) < 30, resident


# ---- several processes -----------------------------------------------------------------------------------------

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py")


def close(out, whole):
    """Whether the runs are the same but for rounding."""
    one, other = (load_model(each / "student.safetensors").state_dict() for each in (out, whole))
    assert one.keys() == other.keys()
    for name in one:
        if not name.endswith("attention.key.bias"):  # its gradient is rounding only, which AdamW makes large
            assert relative_norm(one[name], other[name]) < 1e-5, name
    for line, expected in zip(lines(out), lines(whole), strict=True):
        for name in ("step", "tokens", "learning_rate", "skipped"):
            assert line[name] == expected[name]
        for name in ("loss", "highest_loss", "soft_label_loss", "cosine_loss", "mlm_loss", "gradient_norm"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5), (line["step"], name)
        held_out, expected = line.get("held_out", {}), expected.get("held_out", {})
        assert held_out == pytest.approx(expected, rel=1e-5)
    return True


def test_two_processes_are_one_and_stopped_they_go_on_as_one_or_as_two(place, whole, tmp_path):
    out = tmp_path / "out"
    with Command(*TWO, *arguments(place, out, **LONG)) as command:
        command.wait_for("step  9/50")
        command.send(signal.SIGTERM)
        assert command.end() != 0
    (step,) = steps_kept(out)
    assert 9 <= step < 50 and f"Stopped after step {step}, with {out}/checkpoints" in command.output, command.output
    assert "2 processes" in command.output and command.output.count("Stopped after") == 1
    one = copy(out, tmp_path / "one")
    assert run(place, one, **LONG).returncode == 0 and close(one, whole(**LONG))
    with Command(*TWO, *arguments(place, out, **LONG)) as command:
        assert command.end() == 0, command.output
    assert f"resumed   after step {step}," in command.output and command.output.count("Written: ") == 1
    assert close(out, whole(**LONG))


def test_the_death_of_one_process_ends_all(place, tmp_path):
    endless = arguments(place, tmp_path / "out", steps=10**6, log_every=1, checkpoint_every=5, compile="off")
    with Command(*TWO, *endless) as command:
        command.wait_for("step       7/")
        ranks = ranks_of(command.pid)
        assert sorted(ranks) == [0, 1]
        os.kill(ranks[1], signal.SIGKILL)
        begun = time.monotonic()
        assert command.end(60) not in (0, None)
        assert time.monotonic() - begun < 60 and not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert steps_kept(tmp_path / "out")


def test_micro_steps_that_cannot_be_shared_out_are_a_sentence(place, tmp_path, monkeypatch):
    from model.training import distributed

    @contextlib.contextmanager
    def three(device):
        yield distributed.World(0, 3), device

    monkeypatch.setattr(distributed, "join_world", three)
    result = run(place, tmp_path / "out")
    assert result.returncode == 2
    assert "--accumulate 2 cannot be shared out among 3 processes: take a multiple." in result.stderr
    assert not (tmp_path / "out").exists()
