"""Jobs in processes of their own, several at a time; those that are done are not done again."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

from data.cli import DataError, OptionError, say
from data.outputs import open_to_append
from model import ModelError
from model.training.plan import time_text
from model.training.state import Diverged

from ..benchmarks.gpu.command import kill_group
from ..benchmarks.harness import environment

POLL_SECONDS = 1.0
GRACE_SECONDS = 15  # for a run of train.py to save a checkpoint
LAST_LINES = 3  # of a failed job's log, on screen
NO_TIME = "the time was used up"


class Job(NamedTuple):
    name: str  # on screen, and of its log
    run: Callable[..., None]
    arguments: tuple
    done: Path  # the file that it writes last: while it exists, the job is done
    seconds: float  # that it is expected to take
    after: tuple[str, ...] = ()  # the jobs whose results it needs
    alone: bool = False  # nothing else may run beside it: it measures time


class Pool(NamedTuple):
    """How jobs are run."""

    number: int  # at the same time
    threads: int  # of each
    logs: Path
    deadline: float = (
        math.inf
    )  # of time.monotonic(): running jobs are stopped then, and none begins that would end later


def run_jobs(jobs: Sequence[Job], pool: Pool, report: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Runs what is not done, in this order where possible -> {name: why it was not done}.

    report: called after each job that has ended. A job that fails does not end the others, but those that need it.
    A signal to this process, or its death, ends the jobs; runs of train.py save a checkpoint first.
    """
    by_name, running = {job.name: job for job in jobs}, {}
    waiting = [job for job in jobs if not job.done.exists()]
    lost, clock, number = {}, Clock(), len(waiting)
    pool.logs.mkdir(parents=True, exist_ok=True)
    with stopping(running):
        while waiting or running:
            for name in [name for name, process in running.items() if not process.is_alive()]:
                job, status, seconds = by_name[name], running.pop(name).exitcode, clock.end(by_name[name])
                if status or not job.done.exists():
                    lost[job.name] = f"failed with status {status}: {last_lines(pool.logs / f'{job.name}.txt')}"
                ended = f"{number - len(waiting) - len(running)} of {number}  {job.name}: "
                ended += lost.get(job.name, f"done in {time_text(seconds)}")
                left = clock.seconds_left(waiting, [by_name[name] for name in running], pool.number)
                say(ended + f"; about {time_text(left)} left" * bool(waiting or running))
                report()
            for job in list(waiting):
                missing = [name for name in job.after if name in lost]
                if missing:
                    lost[job.name] = f"needs what was not done: {missing[0]}"
                elif time.monotonic() + clock.expected(job) > pool.deadline:
                    lost[job.name] = NO_TIME
                elif may_begin(job, waiting, [by_name[name] for name in running], pool.number):
                    running[job.name] = start(job, pool)
                    clock.begin(job)
                else:
                    continue
                waiting.remove(job)
            if time.monotonic() > pool.deadline:
                lost |= {name: f"{NO_TIME}; the same command goes on with it" for name in running}
                stop(running)
            wait([process.sentinel for process in running.values()], POLL_SECONDS)
    return lost


def may_begin(job: Job, waiting: Sequence[Job], running: Sequence[Job], number: int) -> bool:
    pending = {other.name for other in (*waiting, *running)}
    free = not running if job.alone else len(running) < number and not any(other.alone for other in running)
    return free and not any(name in pending for name in job.after)


class Clock:
    """What jobs take, against what was expected of them."""

    def __init__(self):
        self.begun: dict[str, float] = {}
        self.expected_seconds = self.real_seconds = 0.0

    def begin(self, job: Job) -> None:
        self.begun[job.name] = time.monotonic()

    def end(self, job: Job) -> float:
        """-> the seconds that it took"""
        seconds = time.monotonic() - self.begun[job.name]
        self.expected_seconds, self.real_seconds = self.expected_seconds + job.seconds, self.real_seconds + seconds
        return seconds

    def expected(self, job: Job) -> float:
        """The expected seconds, corrected by how wrong expectations were until now."""
        return job.seconds * (self.real_seconds / self.expected_seconds if self.expected_seconds else 1.0)

    def seconds_left(self, waiting: Sequence[Job], running: Iterable[Job], number: int) -> float:
        now = time.monotonic()
        left = sum(max(self.expected(job) - (now - self.begun[job.name]), 0.0) for job in running)
        left += sum(self.expected(job) for job in waiting if not job.alone)
        return left / number + sum(self.expected(job) for job in waiting if job.alone)


# ---- processes -------------------------------------------------------------------------------------------------


def start(job: Job, pool: Pool) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=job_process, args=(job, pool.logs))
    with environment([("OMP_NUM_THREADS", str(pool.threads))]):
        process.start()
    return process


def job_process(job: Job, logs: Path) -> None:
    """A job's process, in a group of its own; it prints into the job's log, and ends when its parent has."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open_to_append(logs / f"{job.name}.txt") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        job.run(*job.arguments)
    except (DataError, OptionError, ModelError, Diverged) as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        sys.exit(1)


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def stopping(running: dict[str, SpawnProcess]) -> Iterator[None]:
    """Whatever ends the block also ends the jobs that are running."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        stop(running)


def stop(running: dict[str, SpawnProcess]) -> None:
    """Ends the jobs, and what they have started; runs of train.py have time to save a checkpoint."""
    for process in running.values():
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in running.values():
        process.join(max(0.0, deadline - time.monotonic()))
        kill_group(process)
    running.clear()


def last_lines(log: Path) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:])
