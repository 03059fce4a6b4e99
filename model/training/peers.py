"""What a rank knows of the others from their beats: which one does not answer, and which one keeps all waiting."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

BUSY = 120.0  # seconds that all the others wait for a rank that answers, after which they say so


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

    def since(self, rank: int, own_step: int) -> str:
        """A rank also answered in the last step that this one has completed, though its beat of then is not there."""
        beat = self.beats[rank]
        if beat is None and own_step == 0:
            return "has not started"
        return f"has not answered since step {max(beat.step if beat else 0, own_step):,}"

    def lost(self, now: float, seconds: float) -> list[int]:
        """The other ranks that were not heard for so long, and have not said why, longest first."""
        found = [rank for rank, beat in enumerate(self.beats) if rank != self.rank and not (beat and beat.left)]
        return sorted((rank for rank in found if now - self.heard[rank] > seconds), key=self.heard.__getitem__)

    def news(self, now: float, step: int, silent: float, timeout: float) -> list[tuple[str, str]]:
        """Sentences that have become true -> each with a key, by which all ranks know that they mean the same."""
        found, lost = [], self.lost(now, silent)
        for rank in sorted(self.silent.union(lost)):
            beat, key = self.beats[rank], f"{rank}/{self.silent_at(rank)}"
            if rank not in self.silent:
                self.silent.add(rank)
                waiting = f"The others wait for it, {timeout:g} seconds in all (--timeout)."
                found.append((f"silent/{key}", f"{self.name(rank)} {self.since(rank, step)}. {waiting}"))
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
