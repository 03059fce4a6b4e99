"""Small runs of train.py for the tests, in this process or in one of their own, and micro-batches."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy
import torch
from safetensors import safe_open

from data import Tokenizer, demo
from data.blocks import make_batch
from data.corpus.shuffle import key_of
from data.masking import Masking
from model import EncoderConfig, MaskedLM, load_model, save_model
from model.checkpoints.native import fingerprint
from model.training.log import MetricsLogger
from model.training.run_state import read
from tests.helpers import REPOSITORY, full_blocks, run_command

TOKENIZER = Tokenizer(demo.FOLDER)
TEXTS = list(itertools.islice(demo.texts(), 300))
SMALL = dict(steps=4, batch_size=2, block_size=32, log_every=2, precision="fp32", device="cpu")
LONGER = dict(steps=8, accumulate=2, dropout=0.1, log_every=3, eval_every=4)
SIZES = dict(teacher="none", num_layers=1, hidden_size=16, num_heads=2, intermediate_size=24)
DISABLED = torch.amp.GradScaler("cpu", enabled=False)
AT_ONCE = 1e-7  # hours: a run with this --max-hours stops after its first step


def make_teacher():
    torch.manual_seed(0)
    return MaskedLM(EncoderConfig(4, 32, 2, 64, 1005, dropout=0.0)).eval().requires_grad_(False)


def write_inputs(folder):
    """A small teacher and a corpus; the first run prepares the corpus."""
    save_model(make_teacher(), folder / "teacher.safetensors")
    (folder / "corpus.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder


def arguments(place, **changed):
    """Of train.py, with the inputs in `place`; an option that is None is left out."""
    paths = dict(teacher=place / "teacher.safetensors", corpus=place / "corpus.txt", out=place / "out")
    options = dict(tokenizer=demo.FOLDER, cache=place / "cache", **paths) | SMALL | changed
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        elif value is not None:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run(place, status=0, **changed):
    """train.py in this process, which must end with this exit status."""
    result = run_command("train.py", *arguments(place, **changed))
    assert result.returncode == status and "Traceback" not in result.stderr, result.stderr
    return result


def run_longer(place, out, **changed):
    """A run with dropout, two micro-batches per step, and validations."""
    return run(place, out=out, **LONGER | changed)


def batch_of(blocks, number=0):
    return make_batch(blocks, Masking(TOKENIZER), key_of(number, numpy.arange(len(blocks))))


def uneven_batches():
    """Four micro-batches with very different numbers of real and of masked tokens."""
    parts = full_blocks(TEXTS, TOKENIZER, 24)[:8].clone().split(2)
    for number, blocks in enumerate(parts):
        blocks[:, 24 - 6 * number :] = TOKENIZER.pad_id
    batches = [batch_of(blocks, number) for number, blocks in enumerate(parts)]
    assert [batch.has_padding for batch in batches] == [False, True, True, True]
    return batches


def metrics(out):
    """The logged steps; the first line, which is left out, has the held-out figures before them."""
    first, *lines = all_metrics(out)
    assert first.keys() == {"step", "held_out"} and first["step"] == 0
    return lines


def all_metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed_metrics(out):
    """metrics.jsonl without the speed, which differs from run to run, and its share of a known GPU's peak."""
    lines = all_metrics(out)
    for line in lines:
        if line["step"] == 0:  # the held-out figures before the first step
            continue
        assert (line.pop("tokens_per_second") > 0) == (line["tokens"] > 0)
        del line["share_of_peak"]
    return lines


def provenance(out, name="student"):
    with safe_open(out / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["provenance"])


def state_dict(out):
    return load_model(out / "student.safetensors").state_dict()


def weights(out, name="student"):
    """A hash of the student's weights."""
    return fingerprint(load_model(out / f"{name}.safetensors"))


def steps_kept(out):
    """The steps of the checkpoints, which must all be intact."""
    return sorted(read(path).values["step"] for path in (out / "checkpoints").glob("step-*"))


def assert_same_run(out, whole):
    """Two runs have the same students and the same metrics, and left no temporary files."""
    assert weights(out) == weights(whole) and weights(out, "best") == weights(whole, "best")
    pairs = itertools.zip_longest(untimed_metrics(out), untimed_metrics(whole))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    assert not differing, differing[:1]
    assert not (left := list(out.rglob(".*"))), left


def memory_of_run(place, out, **changed):
    """A run in this process -> the resident memory in MB at each logged step."""
    resident, log = {}, MetricsLogger.log

    def watch(self, record, *seconds_left):
        resident[record["step"]] = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
        return log(self, record, *seconds_left)

    with mock.patch.object(MetricsLogger, "log", watch):
        run_longer(place, out, **changed)
    return resident


class Command(subprocess.Popen):
    """train.py in a process of its own, whose output is read line by line. It is killed at the end of the block."""

    def __init__(self, *words, **settings):
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        settings |= dict(
            env=environment | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
        )
        settings |= dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        super().__init__([sys.executable, *map(str, words)], **settings)
        self.output = ""

    def wait_for(self, words):
        for line in self.stdout:
            self.output += line
            if words in line:
                return
        raise AssertionError(f"it ended without {words!r}:\n{self.output}")

    def end(self, seconds=60):
        """Waits for the end -> exit status."""
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        self.output += self.stdout.read()  # until every process that could write has ended
        timer.cancel()
        return self.wait(seconds)

    def kill(self):
        if self.poll() is None:  # else another process may have its pid by now
            for pid in ranks_of(self.pid).values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            super().kill()

    def __exit__(self, *error):
        self.kill()
        super().__exit__(*error)


def ranks_of(launcher):
    """The pids of a launcher's children by rank."""
    ranks = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + stat.with_name("environ").read_bytes())
            if int(parent) == launcher and state != "Z" and rank:
                ranks[int(rank[1])] = int(stat.parent.name)
    return ranks
