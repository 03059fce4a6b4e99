"""The ranks of a run watch one another.

A rank waits in a collective for as long as another does not come, and cannot tell why. So a thread of each rank writes
a beat to torchrun's store every second and reads the others'. It says which rank has not answered, ends this process
if that rank has died or does not come back in time, and passes on that another rank has ended with an error.
"""

import atexit
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TextIO

import torch.distributed as dist

from data.cli import DataError, OptionError, is_out_of_memory

from ..config import ModelError
from .peers import Beat, Peers, has_ended, pid_namespace
from .store import ANSWER, Store

INTERVAL = 1.0  # seconds between two beats
SILENT = 15.0  # seconds without a beat after which the others say so
LATE = 5.0  # the same after a broken connection, which a rank that is gone explains
HELD = 5.0  # seconds in which rank 0 may say what another rank has to say
GRACE = 2.5  # seconds for the other ranks to meet the same error, or to notice this rank's
WRITING = 25.0  # seconds for a checkpoint that is being written; torchrun kills after 30
LOST = 4  # exit status: another rank has died, or did not answer in time
BROKEN = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE)


class SharedError:
    """Standard error of a rank, whose lines are kept to be compared with the other ranks'; rank 0 prints them too."""

    def __init__(self, stream: TextIO, lines: deque[tuple[float, str]], prints: bool):
        self.stream, self.lines, self.prints, self.rest = stream, lines, prints, ""

    def write(self, text: str) -> int:
        if self.prints:
            self.stream.write(text)
        *whole, rest = (self.rest + text).split("\n")
        self.lines.extend((time.monotonic(), line) for line in whole if line.strip())
        self.rest = rest.rpartition("\r")[2]
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


class Watch:
    """The beats of this rank, and the end of the run where another rank's end is the cause.

    timeout: seconds without an answer after which the run ends. advice: how to go on, for the last message. Both are
    set once the options are known.
    """

    def __init__(self, store: Store, rank: int, size: int, holder: str | None = None):
        """holder: of the store, for messages; None if it is rank 0."""
        self.store, self.rank, self.size, self.holder = store, rank, size, holder
        self.meeting: dist.Store | None = None  # another connection, through which process groups form
        self.timeout, self.advice = 300.0, lambda: "The same command starts again."
        self.me = Beat(socket.gethostname(), os.getpid(), pid_namespace())
        self.step, self.calls, self.waits, self.left = 0, 0, False, False  # of the beats
        self.peers = Peers(rank, size, time.monotonic())
        self.stderr, self._lines, self._lock = sys.stderr, deque(), threading.Lock()
        self._stopped, self._ending = threading.Event(), threading.Event()
        self._reached, self._unanswered = time.monotonic(), None  # when the store last answered, first did not
        self._said_unanswered, self._outages = False, 0

    def start(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._publish(HELD)  # before the first step, so that a rank that dies in it can be named
        threading.Thread(target=self._watch, daemon=True).start()

    def leave(self) -> None:
        """This rank ends by itself; the others need not look for it."""
        self._ending.set()
        self._stopped.set()
        self.left = True
        with contextlib.suppress(RuntimeError):
            self._publish(held=0.0)

    @contextlib.contextmanager
    def lines_once(self) -> Iterator[None]:
        """What all ranks write to standard error in the block, rank 0 alone prints; the rest has a rank's name."""
        with contextlib.redirect_stderr(SharedError(self.stderr, self._lines, prints=self.rank == 0)):
            yield

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """The block waits for the other ranks."""
        self.calls, self.waits = self.calls + 1, True
        yield
        self.waits = False

    # ---- the store

    def _claim(self, key: str) -> bool:
        """Whether this rank is to speak for all: the first that asks. Without the store, one rank of each host."""
        with contextlib.suppress(RuntimeError):
            if self._unanswered is None:
                return self.store.is_first(key)
        before = self.peers.beats[0 if self.holder else 1 : self.rank]  # rank 0 is not there if it holds the store
        return not any(self._is_here(beat) and not has_ended(beat.pid) for beat in before)

    def _publish(self, held: float) -> None:
        """The next beat, and lines of standard error."""
        with self._lock:
            self.me = self.me._replace(
                count=self.me.count + 1, step=self.step, calls=self.calls, waits=self.waits, left=self.left
            )
            self.store.set(f"beat/{self.rank}", json.dumps(self.me))
            self._pass_on_lines(held)

    def _hear(self, rank: int) -> None:
        if value := self.store.read(f"beat/{rank}"):
            self.peers.hear(rank, Beat(*json.loads(value)), time.monotonic())

    def _pass_on_lines(self, held: float) -> None:
        """Prints this rank's own lines, which rank 0 has not said within so many seconds."""
        while self._lines and (self.rank == 0 or time.monotonic() - self._lines[0][0] >= held):
            line = self._lines.popleft()[1]
            key = hashlib.sha256(line.encode(errors="replace")).hexdigest()
            if self.rank == 0:
                self.store.set(f"said/{key}", "")
            elif not self.store.has(f"said/{key}") and self._claim(f"line/{key}"):
                print(f"{self.peers.name(self.rank)}: {line}", file=self.stderr, flush=True)

    def _status(self) -> int | None:
        """The exit status, if a rank has ended the run."""
        with contextlib.suppress(RuntimeError):
            value = self.store.read("end")
            return None if value is None else int(value)
        return None

    # ---- the judgement

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self._publish(HELD)
                for rank in range(self.size):
                    self._hear(rank)
                self._store_answers()
                silent = min(SILENT, self.timeout)
                for key, sentence in self.peers.news(time.monotonic(), self.step, silent, self.timeout):
                    if self._claim(key):
                        self._warn(sentence)
                if (status := self._status()) is not None:
                    time.sleep(GRACE / 2)  # for the main thread, which may have met the same error
                    self._exit(status)
            except RuntimeError:
                self._store_does_not_answer()
            if lost := self._lost(self.timeout):
                self._say_lost(lost)
                self._exit(LOST)

    def _store_answers(self) -> None:
        now = time.monotonic()
        if now - self._reached > SILENT / 3:  # nobody was heard, or this process was stopped itself
            self.peers.forget(now)
        self._reached, self._unanswered = now, None
        if self._said_unanswered:
            self._said_unanswered, self._outages = False, self._outages + 1
            if self._claim(f"store/{self._outages}"):
                self._warn(f"{self._holder()} answers again.")

    def _store_does_not_answer(self) -> None:
        now = time.monotonic()
        self._unanswered = self._unanswered or now - ANSWER
        if now - self._unanswered > min(SILENT, self.timeout) and not self._said_unanswered:
            self._said_unanswered = True
            if self._claim("store"):
                self._warn(f"{self._store_lost()}. The run ends after {self.timeout:g} seconds of this (--timeout).")

    def _holder(self) -> str:
        return self.holder or self.peers.name(0)

    def _store_lost(self) -> str:
        return f"{self._holder()} has not answered since step {self.step:,}"

    def _lost(self, seconds: float) -> str | None:
        """A sentence about a rank that has died, or that was not heard for so long; None if all are there."""
        if dead := self._dead():
            return f"{self.peers.name(dead[0])} has died. It {self.peers.since(dead[0], self.step)}"
        now = time.monotonic()
        if self._unanswered is not None:  # so that nothing is known of the others
            return self._store_lost() if now - self._unanswered > seconds else None
        late = self.peers.lost(now, seconds)
        return f"{self.peers.name(late[0])} {self.peers.since(late[0], self.step)}" if late else None

    def _is_here(self, beat: Beat | None) -> bool:
        return beat is not None and (beat.host, beat.pids) == (self.me.host, self.me.pids)

    def _dead(self) -> list[int]:
        """The ranks on this host whose processes have ended without a word."""
        found = []
        for rank in range(self.size):
            if self.peers.beats[rank] is None:  # it may have died in the first second
                with contextlib.suppress(RuntimeError):
                    self._hear(rank)
            beat = self.peers.beats[rank]
            if rank != self.rank and self._is_here(beat) and not beat.left and has_ended(beat.pid):
                with contextlib.suppress(RuntimeError):
                    self._hear(rank)  # its last beat may have said that it leaves
                if not self.peers.beats[rank].left:
                    found.append(rank)
        return found

    def _say_lost(self, sentence: str) -> None:
        """Says once, for all ranks, which one is lost, and how to go on."""
        finish_writing()
        if self._claim("end"):
            print(f"{Path(sys.argv[0]).name}: {sentence}. {self.advice()}", file=self.stderr, flush=True)
            with contextlib.suppress(RuntimeError):
                self.store.set("end", str(LOST))

    def _warn(self, sentence: str) -> None:
        print(f"warning: {sentence}", file=self.stderr, flush=True)

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
            if status is None and (lost := self._lost(LATE)):
                self._say_lost(lost)
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
        others, met_by_all = [rank for rank in range(self.size) if rank != self.rank], False
        with contextlib.suppress(RuntimeError):  # rank 0 may hold the store, and has ended by now
            self.store.set("end", str(status))
            while time.monotonic() - begun < 2 * GRACE and any(map(self._goes_on, others)):
                time.sleep(INTERVAL / 10)
            met_by_all = self.store.has(*(f"failed/{rank}" for rank in others))
        if self.rank and not met_by_all:
            print(f"{self.peers.name(self.rank)} ends the run:", file=self.stderr, flush=True)
        self._finish(status)
        raise error

    def _goes_on(self, rank: int) -> bool:
        """Whether another rank has neither met an error nor noticed that the run ends."""
        beat = self.peers.beats[rank]
        return not (beat and beat.left) and not self.store.has(f"failed/{rank}")

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
