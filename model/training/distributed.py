"""Several processes as one run, with DistributedDataParallel.

    torchrun --nproc-per-node N train.py …

Each process takes its rank from torchrun's environment. The ranks share the micro-batches of a step; the result is
that of one process, to rounding. Rank 0 writes and prints.
"""

import contextlib
import hashlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from data.cli import OptionError, check

from .watch import Watch

T = TypeVar("T")
CONNECTING = timedelta(minutes=10)
COLLECTIVE = timedelta(days=7)  # rank 0 may prepare a large corpus; the watch ends a wait for a rank that is lost


@dataclass(frozen=True)
class World:
    """This process's rank among all ranks, and small exchanges between them, on the CPU."""

    rank: int = 0
    size: int = 1
    group: object = None  # for the exchanges; None without torchrun
    watch: Watch | None = None  # of the other ranks; None without torchrun

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a small tensor over all ranks."""
        if self.size > 1:
            values = values.detach().cpu().clone()
            with self.watch.collective():
                dist.all_reduce(values, group=self.group)
        return values

    def max(self, value: float) -> float:
        """The largest value of all ranks."""
        if self.size == 1:
            return value
        values = torch.tensor(value, dtype=torch.float64)
        with self.watch.collective():
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values.item()

    def barrier(self) -> None:
        """Returns when all ranks have called it. A signal is answered meanwhile: rank 0 may take hours."""
        if self.size > 1:
            with self.watch.collective():
                work = dist.barrier(group=self.group, async_op=True)
                while not work.is_completed():
                    time.sleep(0.01)
                work.wait()

    def reach(self, step: int) -> None:
        """This rank has completed a step, which the others name if it does not answer any more."""
        if self.watch is not None:
            self.watch.reach(step)

    def compare(self, read: Mapping[str, object]) -> None:
        """What this rank has read, or a short hash of it, by its name.  Raises OptionError if a rank's differs."""
        if self.size == 1:
            return
        values = {"": self.watch.beat.host} | {name: shortened(str(value)) for name, value in read.items()}
        first, *others = self.watch.share(values, self.barrier)
        for rank, other in enumerate(others, 1):
            pairs = [(name, other[name], first[name]) for name in first if name]
            differ = [f"{name}: {its}, not {main}" for name, its, main in pairs if its != main]
            message = f"Rank {rank} on host {other['']} and rank 0 on host {first['']} have read different things"
            check(not differ, f"{message} ({'; '.join(differ)}). Give all ranks the same options and files.")

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block alone, then the others: they find what it has written."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


def shortened(text: str) -> str:
    """The text, or a hash of it if it is long."""
    return text if len(text) <= 40 else hashlib.sha256(text.encode()).hexdigest()[:16]


SINGLE = World()


@contextlib.contextmanager
def meet() -> Iterator[Watch | None]:
    """Watches the other ranks during the block, None if torchrun has not started this process.

    An exception in the block ends all ranks with its exit status; one of them raises it, the others SystemExit. A rank
    that has died or is lost is named by one of them, with the exit status watch.LOST. Raises OptionError if the ranks
    cannot connect.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and not {"RANK", "MASTER_ADDR"} <= os.environ.keys()
    if alone or not dist.is_available():
        yield None
        return
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=CONNECTING))
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        own = dist.TCPStore(address, port, is_master=False, timeout=CONNECTING, wait_for_workers=False)
    except (RuntimeError, ValueError, KeyError) as error:
        raise cannot_connect(error) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store when it starts them again
    watch = Watch(dist.PrefixStore(f"watch/{attempt}", own), rank, size, store)
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if on_main_thread else None
    watch.start()
    try:
        yield watch
        watch.leave()
    except BaseException as error:
        if size == 1:
            watch.leave()
            raise
        watch.end(error)
    finally:
        if on_main_thread and signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, before)


def terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def cannot_connect(error: Exception) -> OptionError:
    return OptionError(f"The ranks cannot connect to one another: {error}. Start them with torchrun.")


def parsed(watch: Watch | None, parse: Callable[[], T]) -> T:
    """The options. Among several ranks, argparse's message becomes an OptionError, which one of them prints."""
    if watch is None:
        return parse()
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text), contextlib.ExitStack() as stack:
            if watch.rank:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # of --help
            return parse()
    except SystemExit as end:
        if not end.code:
            raise
        raise OptionError(text.getvalue().strip().rpartition("error: ")[2]) from None


@contextlib.contextmanager
def join_world(watch: Watch | None, device: str) -> Iterator[tuple[World, str]]:
    """This process's world: with a watch, among the ranks that torchrun has started, else SINGLE; and its device.

    device: auto and cuda become this process's own GPU. Raises OptionError if the ranks cannot connect.
    """
    if watch is None:
        yield SINGLE, device
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device in ("auto", "cuda") else device
        torch.cuda.set_device(device)
    settings = dict(store=watch.meeting, rank=watch.rank, world_size=watch.size, timeout=COLLECTIVE)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", **settings)
    except ValueError as error:
        raise cannot_connect(error) from None
    yield World(watch.rank, watch.size, dist.new_group(backend="gloo", timeout=COLLECTIVE), watch), device
    dist.destroy_process_group()  # not after an error: it would wait for ranks that are lost
