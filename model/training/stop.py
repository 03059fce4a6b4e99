"""What ends a run before its last step: a signal, or its time limit."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from .distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SLURM is often asked to send SIGUSR1 before the time limit
SAME_SIGNAL = 1.0  # seconds in which a second signal is the same one: launchers forward what the terminal sent to all


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """The processes that the block starts never receive these signals; this one receives them after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Stop:
    """Whether the run should end after this step: on a signal, or after max_hours.

    A second signal ends the process at once. A thread reads the signals, so that it answers also while the main thread
    is in a long operation of PyTorch. The main thread blocks them: the processes that it starts inherit that, so Ctrl-C
    or a signal to the whole process group does not kill the compiler in the middle of a step.
    """

    def __init__(self, max_hours: float | None, announces: bool = True):
        """announces: whether to print what a signal does; false on all ranks but one."""
        self.signal, self.announces = 0, announces
        self._received = 0.0
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours

    def __enter__(self) -> "Stop":
        self._handlers = {}
        if threading.current_thread() is not threading.main_thread():  # a run inside another program
            return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._handlers = {number: signal.signal(number, lambda *arguments: None) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()  # before they are blocked, which a thread inherits as well
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        return self

    def __exit__(self, *error) -> None:
        if not self._handlers:
            return
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._pipe[1])
        self._thread.join()
        os.close(self._pipe[0])

    def _watch(self) -> None:
        """Notes every signal until the pipe is closed."""
        while received := os.read(self._pipe[0], 1):
            if received[0] in SIGNALS:
                self._note(received[0])

    def _note(self, number: int) -> None:
        if self.signal and time.monotonic() - self._received > SAME_SIGNAL:
            os._exit(128 + number)
        if not self.signal:
            self.signal, self._received = number, time.monotonic()
            if self.announces:
                line = f"\n{signal.Signals(number).name}: stopping after this step; a second signal ends at once.\n"
                with contextlib.suppress(OSError, ValueError):  # a closed standard error
                    print(line, end="", file=sys.stderr, flush=True)

    def now(self, world: World) -> int | None:
        """None to continue; else the exit status to end with, the same on all ranks."""
        over = self._deadline is not None and time.monotonic() > self._deadline
        status = int(world.max(128 + self.signal if self.signal else 1 if over else 0))
        return None if status == 0 else 0 if status == 1 else status
