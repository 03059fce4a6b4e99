"""What a person sees of work that is measured in bytes."""

import shutil
import sys
import time

MB = 1e6


class Progress:
    """A line that replaces itself on a terminal, and in a log a line now and then."""

    def __init__(self, name: str, size: int, done: int = 0):
        """size: all bytes, 0 where nobody knows; done: those of an earlier run."""
        self.name, self.size, self.start = name, size, done
        self.begun = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def show(self, done: int) -> None:
        """So many bytes are done now. Says so, if it has not just done so."""
        now = time.monotonic()
        if done == self.size or now - self.shown > (0.2 if self.terminal else 5.0):
            self.shown = now
            self._print(done, (done - self.start) / max(now - self.begun, 1e-9))

    def _print(self, done: int, speed: float) -> None:
        parts = [self.name, f"{done / MB:,.1f} MB", f"{speed / MB:,.1f} MB/s"]
        if self.size:
            minutes, seconds = divmod(round((self.size - done) / max(speed, 1.0)), 60)
            parts[1] = f"{done / MB:,.1f} of {self.size / MB:,.1f} MB  {100 * done // self.size} %"
            parts.append(f"{minutes}:{seconds:02} left")
        line = "  ".join(parts)
        width = shutil.get_terminal_size().columns - 1
        end = "" if self.terminal else "\n"
        print(f"\r{line[:width]:<{width}}" if self.terminal else line, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.terminal:
            print(file=sys.stderr)
