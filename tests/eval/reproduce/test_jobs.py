"""Jobs in processes: their order, what is not done again, failures, the deadline, and their parent's end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.reproduce import jobs as jobs_module
from eval.reproduce.jobs import NO_TIME, UNFINISHED, Clock, Job, Pool, may_begin, run_jobs

REPOSITORY = Path(__file__).resolve().parents[3]


def job(name, folder=Path("."), run=Path.touch, arguments=None, **settings):
    done = folder / name
    return Job(name, run, (done,) if arguments is None else arguments, (done,), **{"seconds": 1.0, **settings})


def test_what_can_be_done_is_done_and_only_once(tmp_path, capsys):
    """A failed job takes those with it that need its result, and no others."""
    (tmp_path / "before").touch()
    jobs = [
        job("before", tmp_path, os._exit, (9,)),
        job("fails", tmp_path, os._exit, (3,)),
        job("needs it", tmp_path, after=("fails",)),
        job("alone", tmp_path, after=("before",), alone=True),
        job("says nothing", tmp_path, os.getpid, ()),
        job("too long", tmp_path, seconds=10_000.0),
        job("without its file", tmp_path, Path.read_bytes, (tmp_path / "lost",)),
    ]
    reports = []
    pool = Pool(3, 1, tmp_path / "logs", time.monotonic() + 120)
    lost = run_jobs(jobs, pool, reports.append)
    assert set(lost) == {"fails", "needs it", "says nothing", "too long", "without its file"}
    assert lost["without its file"] == f"failed with status 2: error: {tmp_path / 'lost'}: No such file or directory."
    assert lost["fails"].startswith("failed with status 3") and lost["says nothing"].startswith("failed with status 0")
    assert lost["needs it"] == "needs what was not done: fails" and lost["too long"] == NO_TIME
    assert (tmp_path / "alone").exists() and reports[-1] == lost
    assert all(set(report) <= {job.name for job in jobs[1:]} for report in reports)
    lines = capsys.readouterr().out.splitlines()
    assert sum("alone: done in" in line for line in lines) == 1 and not any("before" in line for line in lines)


def write_threads(path):
    path.write_text(os.environ["OMP_NUM_THREADS"])


def test_a_job_that_runs_alone_has_the_threads_of_all(tmp_path):
    jobs = [job("alone", tmp_path, write_threads, alone=True), job("beside others", tmp_path, write_threads)]
    run_jobs(jobs, Pool(2, 5, tmp_path / "logs", time.monotonic() + 60))
    assert [(tmp_path / job.name).read_text() for job in jobs] == ["5", "2"]
    assert Pool(4, 2, tmp_path).threads_each == 1


def test_at_the_deadline_a_running_job_is_stopped(tmp_path):
    begun = time.monotonic()
    lost = run_jobs([job("sleeps", tmp_path, time.sleep, (600,))], Pool(1, 1, tmp_path / "logs", begun + 2))
    assert lost["sleeps"].startswith(NO_TIME) and time.monotonic() - begun < 30


KILLED = """
import sys, time
from pathlib import Path
from eval.reproduce.jobs import Job, Pool, run_jobs
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write = Job("write", Path.write_text, (folder / "begun", "x"), (folder / "begun",), 1.0)
    run_jobs([write, Job("sleep", time.sleep, (600,), (folder / "done",), 1.0)], Pool(1, 1, folder / "logs"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_its_parent(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, script, tmp_path], env=environment, start_new_session=True)
    wait_for(lambda: (tmp_path / "begun").exists() and (tmp_path / "logs" / "sleep.txt").exists())
    (child,) = children_of(parent.pid)
    parent.send_signal(number)
    parent.wait(60)
    wait_for(lambda: not is_alive(child))


def children_of(pid: int) -> list[int]:
    """But for multiprocessing's resource tracker."""
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_that_measures_time_runs_alone():
    first, timed, last = job("first"), job("timed", alone=True), job("last", after=("first",))
    assert may_begin(timed, [timed], [], 2) and not may_begin(timed, [timed], [first], 2)
    assert not may_begin(first, [first], [timed], 2) and may_begin(first, [first], [], 2)
    assert not may_begin(first, [first], [job("a"), job("b")], 2)
    assert not may_begin(last, [last], [first], 2) and not may_begin(last, [first, last], [], 2)


def test_the_time_left_is_corrected_by_what_jobs_took():
    clock, done, waiting = (
        Clock(),
        job("done", seconds=10.0),
        [job("a", seconds=6.0), job("b", seconds=2.0, alone=True)],
    )
    assert clock.expected(waiting[0]) == 6 and clock.seconds_left(waiting, [], 2) == 5
    clock.begin(done)
    clock.begun["done"] -= 20  # seconds, twice what was expected
    assert clock.end(done, succeeded=True) == pytest.approx(20, abs=1)
    assert clock.seconds_left(waiting, [], 2) == pytest.approx(10, rel=0.1)
    failed, other_kind = job("failed"), job("other", run=os.getpid)
    clock.begin(failed)
    clock.end(failed, succeeded=False)
    assert clock.expected(waiting[0]) == pytest.approx(12, rel=0.1) and clock.expected(other_kind) == 1


def test_time_is_kept_for_a_job_that_waits_to_run_alone(tmp_path, monkeypatch):
    """Not given to a later one, which could begin at once. All in this process."""

    def start(job, pool):
        job.run(*job.arguments)
        return SimpleNamespace(is_alive=lambda: False, exitcode=0, sentinel=-1)

    monkeypatch.setattr(jobs_module, "start", start)
    monkeypatch.setattr(jobs_module, "wait", lambda sentinels, seconds: None)
    first = job("first", tmp_path, Path.write_text, (tmp_path / "first", "x"))
    jobs = [first, job("alone", tmp_path, seconds=20.0, alone=True), job("later", tmp_path, seconds=50.0)]
    reports = []
    lost = run_jobs(jobs, Pool(2, 1, tmp_path / "logs", time.monotonic() + 60), reports.append)
    assert lost == {"later": NO_TIME} and (tmp_path / "alone").exists()
    assert reports == [{"alone": UNFINISHED, "later": NO_TIME}, {"later": NO_TIME}]


def test_a_job_is_done_when_all_its_files_exist(tmp_path):
    both = job("one", tmp_path)._replace(done=(tmp_path / "one", tmp_path / "two"))
    (tmp_path / "two").touch()
    assert not both.is_done()
    (tmp_path / "one").touch()
    assert both.is_done()
