"""Several processes as one run, with DistributedDataParallel.

    torchrun --nproc-per-node N train.py …

Each process takes its rank from torchrun's environment. The ranks share the micro-batches of a step; the result is
that of one process, to rounding. Rank 0 writes and prints.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from data.cli import OptionError

TIMEOUT = timedelta(minutes=20)  # longer than rank 0 takes to prepare a small corpus or to validate


@dataclass(frozen=True)
class World:
    """This process's rank among all ranks, and small exchanges between them, on the CPU."""

    rank: int = 0
    size: int = 1
    group: object = None  # for the exchanges; None without torchrun

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a small tensor over all ranks."""
        if self.size > 1:
            values = values.detach().cpu().clone()
            dist.all_reduce(values, group=self.group)
        return values

    def max(self, value: float) -> float:
        """The largest value of all ranks."""
        if self.size == 1:
            return value
        values = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values.item()

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        if self.size > 1:
            dist.barrier(group=self.group)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block alone, then the others: they find what it has written."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


SINGLE = World()


@contextlib.contextmanager
def join_world(device: str) -> Iterator[tuple[World, str]]:
    """This process's world if torchrun started it, also as the only rank, else SINGLE; and the name of its device.

    device: auto and cuda become this process's own GPU. Raises OptionError if the ranks cannot connect.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if (size == 1 and not {"RANK", "MASTER_ADDR"} <= os.environ.keys()) or not torch.distributed.is_available():
        yield SINGLE, device
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device in ("auto", "cuda") else device
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"The ranks cannot connect to one another: {error}. Start them with torchrun.") from None
    try:
        yield World(dist.get_rank(), size, dist.new_group(backend="gloo", timeout=TIMEOUT)), device
    finally:
        dist.destroy_process_group()
