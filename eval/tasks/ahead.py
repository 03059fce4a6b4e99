"""Iteration one item ahead, in a thread: lines are read and tokenised while the model runs on those before them."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order; each is made while the caller works on the one before.

    An exception in the thread is raised where its item would have come. The thread ends with the process, also while
    it waits for input, so that Ctrl-C is not delayed.
    """
    wanted, made = threading.Semaphore(), queue.SimpleQueue()
    iterator, is_closed = iter(items), False

    def work() -> None:
        while wanted.acquire() and not is_closed:
            try:
                made.put((next(iterator), None))
            except BaseException as error:  # StopIteration, too
                made.put((None, error))
                return

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error:
                raise error
            wanted.release()
            yield item
    finally:
        is_closed = True
        wanted.release()
