"""Several processes as one run, with DistributedDataParallel.

    torchrun --nproc-per-node N train.py …

Each process takes its rank from torchrun's environment. The ranks share the micro-batches of a step; the result is
that of one process, to rounding. Rank 0 writes and prints.
"""

import contextlib
import hashlib
import io
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from data.cli import OptionError, check, first_line, warn

from .store import Store
from .watch import SILENT, Watch

T = TypeVar("T")
CONNECTING = timedelta(minutes=5)
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
            self.watch.step = step

    def gather(self, values: dict[str, str]) -> list[dict[str, str]]:
        """-> the values of every rank. As JSON: dist.all_gather_object would unpickle what it receives."""
        content = torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
        length = int(self.max(len(content)))
        parts = [torch.zeros(length, dtype=torch.uint8) for _ in range(self.size)]
        padded = torch.nn.functional.pad(content, (0, length - len(content)), value=ord(" "))
        dist.all_gather(parts, padded, group=self.group)
        return [json.loads(bytes(part.tolist())) for part in parts]

    def compare(self, read: Mapping[str, object]) -> None:
        """What this rank has read, or a short hash of it, by its name.  Raises OptionError if a rank's differs."""
        if self.size == 1:
            return
        values = {"": self.watch.me.host} | {name: shortened(str(value)) for name, value in read.items()}
        self.barrier()
        first, *others = self.gather(values)
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
    watch = connect()
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if on_main_thread else None
    watch.start()
    try:
        with watch.lines_once() if watch.size > 1 else contextlib.nullcontext():
            yield watch
        watch.leave()
    except BaseException as error:
        if watch.size == 1:
            watch.leave()
            raise
        watch.end(error)
    finally:
        if on_main_thread and signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, before)


def terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def connect() -> Watch:
    """Connects to the store: of torchrun, or of rank 0 if the ranks are started by hand.  Raises OptionError."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    check(not missing, f"This is one of several ranks, but not set: {', '.join(missing)}. Start them with torchrun.")
    by_torchrun, address = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True", os.environ["MASTER_ADDR"]
    holder = f"torchrun on host {address}" if by_torchrun else None
    try:
        rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        check(0 <= rank < size, f"RANK {rank} must be from 0 to {size - 1}, below WORLD_SIZE")
        meeting = open_store(address, port, rank == 0 and not by_torchrun, holder or "rank 0")
        store = open_store(address, port, False, holder or "rank 0")
    except (RuntimeError, ValueError) as error:
        raise cannot_connect(error) from None
    attempt = f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"  # torchrun keeps its store for the next
    watch = Watch(Store(dist.PrefixStore(f"{attempt}/watch", store)), rank, size, holder)
    watch.meeting = dist.PrefixStore(attempt, meeting)
    return watch


def open_store(address: str, port: int, is_master: bool, holder: str) -> "dist.Store":
    """A connection to the store, or the store itself.  Raises RuntimeError."""
    found, settings = queue.SimpleQueue(), dict(timeout=CONNECTING, wait_for_workers=False)

    def connect() -> None:
        try:
            found.put(dist.TCPStore(address, port, is_master=is_master, **settings))
        except (RuntimeError, ValueError) as error:
            found.put(error)

    threading.Thread(target=connect, daemon=True).start()  # another server at this port would be asked for ever
    limit = CONNECTING.total_seconds()
    try:
        try:
            store = found.get(timeout=SILENT)
        except queue.Empty:
            warn(f"{holder} at {address}:{port} does not answer. This rank waits for it, {limit:g} seconds in all.")
            store = found.get(timeout=limit - SILENT)
    except queue.Empty:
        raise RuntimeError(f"{holder} at {address}:{port} does not answer") from None
    if isinstance(store, Exception):
        raise store
    return store


def cannot_connect(error: Exception) -> OptionError:
    return OptionError(f"The ranks cannot connect to one another: {first_line(error)}. Start them with torchrun.")


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
