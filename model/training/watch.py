"""The ranks of a run watch one another.

A rank waits in a collective for as long as another does not come, and cannot tell why. So a thread of each rank writes
a beat to torchrun's store every second and reads the others'. It says which rank has not answered, ends this process
if that rank has died or does not come back in time, and passes on that another rank has ended with an error.
"""

import atexit
import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch.distributed as dist

from data.cli import DataError, OptionError, is_out_of_memory, warn

from ..config import ModelError

INTERVAL = 1.0  # seconds between two beats
SILENT = 15.0  # seconds without a beat after which the others say so
LATE = 5.0  # the same after a broken connection, which a rank that is gone explains
BUSY = 120.0  # seconds that all the others wait for a rank that answers, after which they say so
GRACE = 2.5  # seconds for the other ranks to meet the same error, or to notice this rank's
WRITING = 25.0  # seconds for a checkpoint that is being written; torchrun kills after 30
LOST = 4  # exit status: another rank has died, or did not answer in time
BROKEN = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE)


class Beat(NamedTuple):
    """What a rank tells the others."""

    host: str
    pid: int
    pids: int  # identifies the process ids that this one belongs to: containers of a host have their own
    count: int = 0
    step: int = 0  # the last completed one
    calls: int = 0  # of collectives
    waits: bool = False  # in a collective
    left: bool = False  # it has ended, or is about to, and knows why


# ---- what the beats tell ---------------------------------------------------------------------------------------


class Peers:
    """When each rank was last heard, by this process's clock: those of two hosts differ."""

    def __init__(self, rank: int, size: int, now: float):
        self.rank, self.beats = rank, [None] * size
        self.silent: set[int] = set()  # those of which it was said
        self._busy = (-1, -1)  # rank and calls, said last
        self.forget(now)

    def forget(self, now: float) -> None:
        """Counts from now: this process was stopped itself, so that it heard nobody."""
        self.heard = [now] * len(self.beats)
        self.moved = [now] * len(self.beats)

    def hear(self, rank: int, beat: Beat, now: float) -> None:
        old, self.beats[rank] = self.beats[rank], beat
        if old is None or old != beat:
            self.heard[rank] = now
        if old is None or old._replace(count=0) != beat._replace(count=0):
            self.moved[rank] = now

    def name(self, rank: int) -> str:
        beat = self.beats[rank]
        return f"rank {rank} on host {beat.host} (process {beat.pid})" if beat else f"rank {rank}"

    def silence(self, rank: int) -> str:
        beat = self.beats[rank]
        return f"{self.name(rank)} has not {f'answered since step {beat.step:,}' if beat else 'started'}"

    def lost(self, now: float, seconds: float) -> list[int]:
        """The other ranks that were not heard for so long, and have not said why, longest first."""
        found = [rank for rank, beat in enumerate(self.beats) if rank != self.rank and not (beat and beat.left)]
        return sorted((rank for rank in found if now - self.heard[rank] > seconds), key=self.heard.__getitem__)

    def news(self, now: float, silent: float, timeout: float) -> list[tuple[str, str]]:
        """Sentences that have become true -> each with a key, by which all ranks know that they mean the same."""
        found, lost = [], self.lost(now, silent)
        for rank in sorted(self.silent.union(lost)):
            beat, key = self.beats[rank], f"{rank}/{self.silent_at(rank)}"
            if rank not in self.silent:
                self.silent.add(rank)
                waiting = f"The others wait for it, {timeout:g} seconds in all (--timeout)."
                found.append((f"silent/{key}", f"{self.silence(rank)}. {waiting}"))
            elif rank not in lost:
                self.silent.discard(rank)
                if beat and not beat.left:
                    found.append((f"back/{rank}/{beat.pid}/{beat.step}", f"{self.name(rank)} answers again."))
        idle = [rank for rank, beat in enumerate(self.beats) if not (beat and (beat.waits or beat.left))]
        if len(idle) == 1 and self.beats[idle[0]] and idle[0] != self.rank and not lost:
            (rank,) = idle
            beat, seconds = self.beats[rank], now - self.moved[rank]
            if seconds > BUSY and self._busy != (rank, beat.calls):
                self._busy = (rank, beat.calls)
                busy = f"{self.name(rank)} answers, and has been busy for {seconds / 60:.0f} minutes after step"
                found.append((f"busy/{rank}/{beat.calls}", f"{busy} {beat.step:,}; the other ranks wait for it."))
        return found

    def silent_at(self, rank: int) -> int:
        return self.beats[rank].count if self.beats[rank] else 0


def pid_namespace() -> int:
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def has_ended(pid: int) -> bool:
    """Whether a process of this host has ended."""
    try:
        if Path("/proc/self/stat").exists():
            return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        pass
    return False


# ---- the watch of a rank ---------------------------------------------------------------------------------------


class Watch:
    """The beats of this rank, and the end of the run where another rank's end is the cause.

    timeout: seconds without an answer after which the run ends. advice: how to go on, for the last message. Both are
    set once the options are known.
    """

    def __init__(self, store: "dist.Store", rank: int, size: int, meeting: "dist.Store | None" = None):
        """store: shared by all ranks, over a connection of its own. meeting: the one in which process groups form."""
        self.store, self.rank, self.size, self.meeting = store, rank, size, meeting
        self.timeout, self.advice = 300.0, lambda: "The same command starts again."
        self.beat = Beat(socket.gethostname(), os.getpid(), pid_namespace())
        self.peers = Peers(rank, size, time.monotonic())
        self.reached = time.monotonic()  # when the store last answered
        self._stopped, self._ending, self._compared = threading.Event(), threading.Event(), 0

    def start(self) -> None:
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def leave(self) -> None:
        """This rank ends by itself; the others need not look for it."""
        self._ending.set()
        self._stopped.set()
        self.beat = self.beat._replace(left=True)
        with contextlib.suppress(RuntimeError):
            self._publish()

    # ---- said by the main thread

    def reach(self, step: int) -> None:
        """This rank has completed a step."""
        self.beat = self.beat._replace(step=step)

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """The block waits for the other ranks."""
        self.beat = self.beat._replace(calls=self.beat.calls + 1, waits=True)
        yield
        self.beat = self.beat._replace(waits=False)

    def share(self, values: dict[str, str], barrier: Callable[[], None]) -> list[dict[str, str]]:
        """-> every rank's values."""
        self._compared += 1
        key = f"compared/{self._compared}"
        self.store.set(f"{key}/{self.rank}", json.dumps(values))
        barrier()
        return [json.loads(self.store.get(f"{key}/{rank}")) for rank in range(self.size)]

    # ---- the store

    def _claim(self, key: str) -> bool:
        """Whether this is the first rank that asks, and is to speak for all; without a store, each speaks."""
        try:
            return self.store.add(f"claim/{key}", 1) == 1
        except RuntimeError:
            return True

    def _publish(self) -> None:
        self.beat = self.beat._replace(count=self.beat.count + 1)
        self.store.set(f"beat/{self.rank}", json.dumps(self.beat))

    def _read(self, key: str) -> bytes | None:
        return self.store.get(key) if self.store.check([key]) else None

    def _hear(self, rank: int) -> None:
        if value := self._read(f"beat/{rank}"):
            self.peers.hear(rank, Beat(*json.loads(value)), time.monotonic())

    def _exchange(self) -> None:
        """A thread of its own: an operation of the store does not return if the store's host is gone."""
        while not self._stopped.is_set():
            with contextlib.suppress(RuntimeError):
                self._publish()
                for rank in range(self.size):
                    self._hear(rank)
                self.reached = time.monotonic()
            self._stopped.wait(INTERVAL)

    def _status(self) -> int | None:
        """The exit status, if a rank has ended the run."""
        with contextlib.suppress(RuntimeError):
            value = self._read("end")
            return None if value is None else int(value)
        return None

    # ---- the judgement

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(INTERVAL / 2):
            now = time.monotonic()
            if now - last > SILENT / 3:
                self.peers.forget(now)
                self.reached = now
            last = now
            if now - self.reached > SILENT:
                self._without_store(now)
                continue
            if (status := self._status()) is not None:
                time.sleep(GRACE / 2)  # for the main thread, which may have met the same error
                self._exit(status)
            for key, sentence in self.peers.news(now, min(SILENT, self.timeout), self.timeout):
                if self._claim(key):
                    warn(sentence)
            dead = self._dead()
            late = self.peers.lost(now, self.timeout)
            if dead or late:
                self._say_lost(dead, (dead or late)[0])
                self._exit(LOST)

    def _dead(self) -> list[int]:
        """The ranks on this host whose processes have ended without a word."""
        found = []
        for rank, beat in enumerate(self.peers.beats):
            here = beat and (beat.host, beat.pids) == (self.beat.host, self.beat.pids) and not beat.left
            if here and rank != self.rank and has_ended(beat.pid):
                with contextlib.suppress(RuntimeError):
                    self._hear(rank)  # its last beat may have said that it leaves
                if not self.peers.beats[rank].left:
                    found.append(rank)
        return found

    def _without_store(self, now: float) -> None:
        """The process that holds the store, or its host, is gone: no rank can ask another who speaks."""
        seconds, speaks = now - self.reached, os.environ.get("LOCAL_RANK", "0") == "0"
        where = os.environ.get("MASTER_ADDR")
        host = f"The ranks' store on host {where} has not answered since step {self.beat.step:,}"
        if not self.peers.silent and speaks:
            warn(f"{host}. The ranks wait for it, {self.timeout:g} seconds in all (--timeout).")
        self.peers.silent.add(self.rank)
        if seconds > self.timeout:
            if speaks:
                self._print(f"{host}. {self.advice()}")
            self._exit(LOST)

    def _say_lost(self, dead: list[int], rank: int) -> None:
        """Says once, for all ranks, which one is lost, and how to go on."""
        finish_writing()
        if self._claim("end"):
            what = f"{self.peers.name(rank)} has died. It" if rank in dead else self.peers.name(rank)
            since = self.peers.silence(rank).removeprefix(self.peers.name(rank))
            self._print(f"{what}{since}. {self.advice()}")
            with contextlib.suppress(RuntimeError):
                self.store.set("end", str(LOST))

    def _print(self, sentence: str) -> None:
        print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)

    def _exit(self, status: int) -> None:
        """Ends this process, whose main thread may never return from a collective."""
        finish_writing()
        if self._ending.is_set():  # the main thread ends it
            threading.Event().wait()
        self.leave()
        exit_at_once(status)

    # ---- the end of the main thread

    def end(self, error: BaseException) -> NoReturn:
        """Raises the error in the rank that is to print it, SystemExit with its status in the others."""
        self._ending.set()
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from torchrun, since another rank has ended: say why
        terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
        broken = isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or BROKEN.search(str(error)))
        if broken or terminated:
            self._find_cause(LATE + 3 * INTERVAL if broken else INTERVAL)
        status = status_of(error)
        if terminated:
            self._finish(status)
            raise error
        self._raise_once(error, status)

    def _find_cause(self, seconds: float) -> None:
        """Raises SystemExit if another rank is the cause: it has ended with an error, or is lost."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            status = self._status()
            dead = self._dead() if status is None else []
            lost = dead or (self.peers.lost(time.monotonic(), LATE) if status is None else [])
            if lost:
                self._say_lost(dead, lost[0])
                status = LOST
            if status is not None:
                self._finish(status)
                raise SystemExit(status) from None
            time.sleep(INTERVAL / 10)

    def _raise_once(self, error: BaseException, status: int) -> NoReturn:
        with contextlib.suppress(RuntimeError):
            self.store.set(f"failed/{self.rank}", str(error))
        begun = time.monotonic()
        while self.rank and self._status() is None and time.monotonic() - begun < GRACE / 2:
            time.sleep(INTERVAL / 10)  # rank 0 speaks if it has met the error as well
        if not self._claim("end"):
            self._finish(self._status() or status)
            raise SystemExit(self._status() or status) from None
        with contextlib.suppress(RuntimeError):
            self.store.set("end", str(status))
            names = [f"failed/{rank}" for rank in range(self.size)]
            while not self.store.check(names) and time.monotonic() - begun < 2 * GRACE:
                time.sleep(INTERVAL / 10)
            if not self.store.check(names):
                print(f"{self.peers.name(self.rank)} ends the run:", file=sys.stderr)
        self._finish(status)
        raise error

    def _finish(self, status: int) -> None:
        """The interpreter ends without the destructors of the process groups, which wait for lost ranks."""
        self.leave()
        atexit.register(exit_at_once, status)


def finish_writing() -> None:
    """Waits for the threads that must not be cut off: a checkpoint that is being written."""
    deadline = time.monotonic() + WRITING
    for thread in threading.enumerate():
        if not thread.daemon and thread not in (threading.main_thread(), threading.current_thread()):
            thread.join(max(0.0, deadline - time.monotonic()))


def exit_at_once(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def status_of(error: BaseException) -> int:
    """The exit status that run_command gives this error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    for_user = isinstance(error, (DataError, OptionError, ModelError, OSError)) or is_out_of_memory(error)
    return getattr(error, "exit_status", 2 if for_user else 1)
