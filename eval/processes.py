"""Several processes as one run, by PyTorch's engine; and what ends a run before its last step.

    torchrun --nproc-per-node N train.py …

Each process has a rank from torchrun's environment. They share the micro-batches of a step: what comes out is that of
one process, to rounding. Rank 0 writes and prints.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from data import OptionError

PATIENCE = timedelta(minutes=20)  # for the others: longer than rank 0 prepares a small corpus or measures
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is what SLURM is often asked to send beforehand
REPEATED = 1.0  # seconds in which a second signal is the same wish: launchers pass on what a terminal sent to all


@dataclass(frozen=True)
class Processes:
    """Who one is among how many. All that passes here between them is small, and on the CPU."""

    rank: int = 0
    count: int = 1
    group: object = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all of a small tensor, on every one."""
        if self.count > 1:
            values = values.detach().cpu().clone()
            dist.all_reduce(values, group=self.group)
        return values

    def largest(self, value: float) -> float:
        """The largest of the values that the processes have, on every one."""
        if self.count == 1:
            return value
        values = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values.item()

    def wait(self) -> None:
        """Until all have come so far."""
        if self.count > 1:
            dist.barrier(group=self.group)


ALONE = Processes()


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, str]]:
    """This process among those that torchrun started, else alone -> it, and its device's name.

    device: auto and cuda become this process's own GPU. Raises OptionError where they cannot find one another.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not torch.distributed.is_available():
        yield ALONE, device
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device in ("auto", "cuda") else device
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"The processes cannot find one another: {error}. Start them with torchrun.") from None
    try:
        yield Processes(dist.get_rank(), count, dist.new_group(backend="gloo", timeout=PATIENCE)), device
    finally:
        dist.destroy_process_group()


class Stop:
    """Whether the run is to end after this step: a signal came, or its hours are over.

    A second signal ends it at once.
    """

    def __init__(self, max_hours: float | None):
        self.signal = 0
        self._came = 0.0
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours

    def __enter__(self) -> "Stop":
        self._before = {}
        with contextlib.suppress(ValueError):  # not the main thread: a run inside somebody's program
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.signal and time.monotonic() - self._came > REPEATED:
            os._exit(128 + number)
        if not self.signal:
            self.signal, self._came = number, time.monotonic()

    def now(self, processes: Processes) -> int | None:
        """None to go on; else the exit status to end with, the same on all."""
        over = self._deadline is not None and time.monotonic() > self._deadline
        status = int(processes.largest(128 + self.signal if self.signal else 1 if over else 0))
        return None if status == 0 else 0 if status == 1 else status
