"""The store through which the ranks of a run meet: torchrun's, or rank 0's if they are started by hand."""

import queue
import threading
from collections.abc import Callable

import torch.distributed as dist

ANSWER = 3.0  # seconds


class Store:
    """A connection to the store, whose operations raise RuntimeError if it does not answer within ANSWER seconds.

    Those of PyTorch's TCPStore wait for ever for a host that is gone without having closed its connection.
    """

    def __init__(self, store: "dist.Store"):
        self._store, self._jobs = store, queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def set(self, key: str, value: str) -> None:
        self._ask(self._store.set, key, value)

    def has(self, *keys: str) -> bool:
        """Whether it has all of these keys."""
        return self._ask(self._store.check, list(keys))

    def read(self, key: str) -> bytes | None:
        return self._ask(self._store.get, key) if self.has(key) else None

    def is_first(self, key: str) -> bool:
        """Whether this is the first rank that asks for this key."""
        return self._ask(self._store.add, f"claim/{key}", 1) == 1

    def _ask(self, operation: Callable[..., object], *arguments: object) -> object:
        answer = queue.SimpleQueue()
        self._jobs.put((answer, operation, arguments))
        try:
            value = answer.get(timeout=ANSWER)
        except queue.Empty:
            raise RuntimeError("the store does not answer") from None
        if isinstance(value, RuntimeError):
            raise value
        return value

    def _work(self) -> None:
        while True:
            answer, operation, arguments = self._jobs.get()
            try:
                answer.put(operation(*arguments))
            except RuntimeError as error:
                answer.put(error)
