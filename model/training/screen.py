"""What a person sees while a run goes on: a progress bar or lines, and a message when a step takes long.

On a terminal: a bar at the bottom, and a line for each validation. Without one (a file, a pipe, a job's log): a line
for each logged step, and a line at least every minute in which steps are completed.
"""

import contextlib
import os
import shutil
import sys
import threading
import time

from data.cli import say

LINE_SECONDS = 60.0  # without a terminal, the longest time without a line while steps are completed
SLOW_SECONDS = 60.0  # after this time in one step or one validation a message says so; then after twice the time, …
BAR_SECONDS = 0.2  # between two drawings of PlainBar
TQDM_FORMAT = "{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt}, {elapsed}<{remaining}{postfix}"


class PlainBar:
    """A progress line on stderr where tqdm is not installed, with the part of tqdm's interface that Screen uses."""

    def __init__(self, total: int, initial: int):
        self.total, self.n, self.first, self.text = total, initial, initial, ""
        self.begun, self.drawn = time.monotonic(), 0.0
        self.refresh()

    def update(self, steps: int) -> None:
        self.n += steps
        if time.monotonic() - self.drawn > BAR_SECONDS or self.n == self.total:
            self.refresh()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.text = f", {text}"
        if refresh:
            self.refresh()

    def refresh(self) -> None:
        self.drawn = time.monotonic()
        seconds, done = self.drawn - self.begun, self.n - self.first
        left = duration(seconds / done * (self.total - self.n)) if done else "?"
        line = f"{100 * self.n // self.total:3}%  {self.n}/{self.total}, {duration(seconds)}<{left}{self.text}"
        self._draw(line[: shutil.get_terminal_size().columns - 1])

    def clear(self) -> None:
        self._draw("")

    def close(self) -> None:
        self.refresh()
        print(file=sys.stderr, flush=True)

    def _draw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line:<{width}}" if line else f"\r{'':{width}}\r", end="", file=sys.stderr, flush=True)


class Screen:
    """The bar and the lines of a run, from its first validation to its end.

    A thread says when a step or a validation takes long, so that a run that computes is not taken for a dead one.
    """

    def __init__(self, steps: int, step: int):
        """steps: of the whole run; step: the last completed one."""
        self.steps, self.first, self.step = steps, step, step
        self.bar = None
        self.has_lines = not (sys.stdout.isatty() and sys.stderr.isatty())  # besides those of the validations
        self.lock = threading.RLock()  # a signal's handler may print while this thread holds it
        self.ended = threading.Event()
        self.begin("the start")
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def start(self) -> None:
        """The steps begin."""
        if sys.stderr.isatty():
            self.bar = open_bar(self.steps, self.first)
        self.begun = self.last_line = time.monotonic()
        self.begin_step()

    def close(self) -> None:
        self.ended.set()
        self.thread.join()
        self._on_bar("close")

    def begin(self, what: str) -> None:
        """what: the step or validation that runs from now on, for the message that it takes long."""
        self.current = what, time.monotonic()

    def begin_step(self) -> None:
        """The next one, or after the last one what is still written."""
        self.begin(f"step {self.step + 1:,}" if self.step < self.steps else "writing the last checkpoint")

    def complete(self, step: int) -> None:
        """Shows that a step is done, at once on the bar, in a log if a minute has passed without a line."""
        done, self.step = step - self.step, step
        self.begin_step()
        self._on_bar("update", done)
        now = time.monotonic()
        if self.has_lines and now - self.last_line >= LINE_SECONDS:
            each = (now - self.begun) / (step - self.first)
            self.line(f"{self.label(step)}  {each:,.1f} s a step  ETA {duration(each * (self.steps - step))}")

    def label(self, step: int) -> str:
        return f"step {step:>{len(str(self.steps))}}/{self.steps}"

    def show(self, text: str, short: str, is_odd: bool) -> None:
        """A logged step. text: its line; short: the same on the bar; is_odd: print the line in any case."""
        self._on_bar("set_postfix_str", short, refresh=False)
        if self.has_lines or is_odd:
            self.line(text)

    def line(self, text: str) -> None:
        """Prints a line, above the bar."""
        with self.lock:
            self.last_line = time.monotonic()
            self._on_bar("clear")
            say(text)
            self._on_bar("refresh")

    def _on_bar(self, method: str, *arguments, **keywords) -> None:
        with self.lock:
            try:
                if self.bar is not None:
                    getattr(self.bar, method)(*arguments, **keywords)
            except OSError:  # the terminal was closed, and the run goes on without it
                self.bar.disable = True  # else tqdm would write once more when it is collected
                self.bar = None

    def _watch(self) -> None:
        seen, after = self.current, SLOW_SECONDS
        while not self.ended.wait(min(1.0, SLOW_SECONDS / 4)):
            if self.current is not seen:
                seen, after = self.current, SLOW_SECONDS
            what, since = seen
            seconds = time.monotonic() - since
            if seconds >= after:
                after = 2 * seconds
                self.line(f"          still in {what}, for {duration(seconds)} so far")


def open_bar(steps: int, step: int):
    """tqdm's progress bar, or a plain one where it is not installed, or would hide on a terminal without a size."""
    try:
        from tqdm import tqdm
    except ImportError:
        return PlainBar(steps, step)
    with contextlib.suppress(OSError):
        if 0 in os.get_terminal_size(2):  # as in a container, or under `script`
            return PlainBar(steps, step)
    return tqdm(total=steps, initial=step, dynamic_ncols=True, smoothing=0.1, bar_format=TQDM_FORMAT)


def duration(seconds: float) -> str:
    """19 d 03:04:05, or 03:04:05."""
    days, rest = divmod(int(seconds), 86400)
    clock = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days} d {clock}" if days else clock
