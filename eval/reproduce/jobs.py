"""Jobs in processes of their own, several at a time; those that are done are not done again."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

from data.cli import run_command, say
from model import ModelError
from model.training.plan import time_text
from model.training.state import Diverged

from ..benchmarks.harness import environment
from ..processes import exit_on_sigterm, kill_group, print_into

POLL_SECONDS = 1.0
GRACE_SECONDS = 15  # for a run of train.py to save a checkpoint
LAST_LINES = 3  # of a failed job's log, on screen
NO_TIME = "not enough time left"
UNFINISHED = "not finished yet"
FAILED = "failed"  # how the reason of a job that failed begins
ON_MEMORY = "Use fewer --jobs; or a smaller --batch-size, with another --out."


class Job(NamedTuple):
    name: str  # on screen, and of its log
    run: Callable[..., None]
    arguments: tuple
    done: tuple[Path, ...]  # the files that it writes: while all of them exist, the job is done
    seconds: float  # that it is expected to take
    after: tuple[str, ...] = ()  # the jobs whose results it needs
    alone: bool = False  # nothing else runs beside it

    def is_done(self) -> bool:
        return all(path.exists() for path in self.done)


class Pool(NamedTuple):
    """How jobs are run."""

    number: int  # at the same time
    threads: int  # of all; a job that runs alone has them to itself
    logs: Path
    # of time.monotonic(): running jobs are stopped then, and none begins that would end later
    deadline: float = math.inf

    @property
    def threads_each(self) -> int:
        """Of a job that runs beside others."""
        return max(1, self.threads // self.number)


def run_jobs(
    jobs: Sequence[Job], pool: Pool, report: Callable[[Mapping[str, str]], None] = lambda missing: None
) -> dict[str, str]:
    """Runs what is not done, in this order where possible -> {name: why it was not done}.

    report: called when jobs have ended, with such a dictionary of what is missing at that time. A job that fails does
    not end the others, but those that need it. A signal to this process, or its death, ends the jobs; runs of train.py
    save a checkpoint first.
    """
    by_name, running = {job.name: job for job in jobs}, {}
    waiting = [job for job in jobs if not job.is_done()]
    lost, clock, number = {}, Clock(), len(waiting)
    pool.logs.mkdir(parents=True, exist_ok=True)
    with stopping():
        while waiting or running:
            ended = [name for name, process in running.items() if not process.is_alive()]
            for name in ended:
                job, status = by_name[name], running.pop(name).exitcode
                if status or not job.is_done():
                    lost[name] = f"{FAILED} with status {status}: {last_lines(pool.logs / f'{name}.txt')}"
                seconds = clock.end(job, succeeded=name not in lost)
                news = f"{number - len(waiting) - len(running)} of {number}  {name}: "
                news += lost.get(name, f"done in {time_text(seconds)}")
                left = clock.seconds_left(waiting, [by_name[other] for other in running], pool.number)
                say(news + f"; about {time_text(left)} left" * bool(waiting or running))
            reserved = 0.0  # seconds, for those before that run alone: the others would else use up their time
            for job in list(waiting):
                missing = [name for name in job.after if name in lost]
                if missing:
                    lost[job.name] = f"needs what was not done: {missing[0]}"
                elif time.monotonic() + reserved + clock.expected(job) > pool.deadline:
                    lost[job.name] = NO_TIME
                elif may_begin(job, waiting, [by_name[name] for name in running], pool.number):
                    running[job.name] = start(job, pool)
                    clock.begin(job)
                else:
                    reserved += clock.expected(job) * job.alone
                    continue
                waiting.remove(job)
            if ended:  # the next are running
                report(lost | dict.fromkeys([*running, *(job.name for job in waiting)], UNFINISHED))
            if time.monotonic() > pool.deadline:
                stop(running.values())
                stopped = [name for name in running if not by_name[name].is_done()]
                lost |= dict.fromkeys(stopped, f"{NO_TIME}; the same command goes on with it")
                running.clear()
            wait([process.sentinel for process in running.values()], POLL_SECONDS)
    return lost


def may_begin(job: Job, waiting: Sequence[Job], running: Sequence[Job], number: int) -> bool:
    pending = {other.name for other in (*waiting, *running)}
    free = not running if job.alone else len(running) < number and not any(other.alone for other in running)
    return free and not any(name in pending for name in job.after)


class Clock:
    """What jobs take, against what was expected of them.

    Each kind has its own correction: what a short job takes to start says nothing about a long run.
    """

    def __init__(self):
        self.begun: dict[str, float] = {}
        self.ended: dict[Callable, tuple[float, float]] = {}  # {kind: expected and real seconds, of all together}

    def begin(self, job: Job) -> None:
        self.begun[job.name] = time.monotonic()

    def end(self, job: Job, succeeded: bool) -> float:
        """-> the seconds that it took; those of a job that failed say nothing about others"""
        seconds = time.monotonic() - self.begun[job.name]
        if succeeded:
            expected, real = self.ended.get(job.run, (0.0, 0.0))
            self.ended[job.run] = expected + job.seconds, real + seconds
        return seconds

    def expected(self, job: Job) -> float:
        """The expected seconds, corrected by how wrong expectations of such jobs were until now."""
        expected, real = self.ended.get(job.run, (1.0, 1.0))
        return job.seconds * real / expected

    def seconds_left(self, waiting: Sequence[Job], running: Iterable[Job], number: int) -> float:
        now = time.monotonic()
        left = sum(max(self.expected(job) - (now - self.begun[job.name]), 0.0) for job in running)
        left += sum(self.expected(job) for job in waiting if not job.alone)
        return left / number + sum(self.expected(job) for job in waiting if job.alone)


# ---- processes -------------------------------------------------------------------------------------------------


def start(job: Job, pool: Pool) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=job_process, args=(job, pool.logs))
    with environment([("OMP_NUM_THREADS", str(pool.threads if job.alone else pool.threads_each))]):
        process.start()
    return process


def job_process(job: Job, logs: Path) -> None:
    """A job's process, which prints into the job's log, and ends when its parent has."""
    print_into(logs / f"{job.name}.txt")
    threading.Thread(target=end_with_parent, daemon=True).start()

    def run() -> None:
        job.run(*job.arguments)

    run_command("error", run, ModelError, Diverged, on_memory=ON_MEMORY)


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Whatever ends the block also ends the jobs that are running, and one that was being started."""
    try:
        with exit_on_sigterm():
            yield
    finally:
        stop(multiprocessing.active_children())


def stop(processes: Collection[SpawnProcess]) -> None:
    """Ends the jobs, and what they have started; runs of train.py have time to save a checkpoint."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        kill_group(process)


def last_lines(log: Path) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:])
