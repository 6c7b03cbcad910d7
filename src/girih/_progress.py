"""The progress bar of everything that takes longer than a second."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich import progress
from rich.console import Console

_JSON: ContextVar[bool] = ContextVar("progress as lines of JSON", default=False)
_BETWEEN = 0.5  # seconds between two lines, at least


@contextmanager
def json_lines(wanted: bool = True) -> Iterator[None]:
    """Within this block progress is lines of JSON on standard error, for programs, in the place of bars.

    A line has `step`, `done`, `total`, `numbers` (a text, such as the best NLL so far) and `seconds`; there are at most
    two in a second, and always the first and the last of a step.
    """
    token = _JSON.set(wanted)
    try:
        yield
    finally:
        _JSON.reset(token)


def is_json() -> bool:
    """Tell whether progress is lines of JSON here."""
    return _JSON.get()


class Progress:
    """A bar on the terminal or in a notebook; silent when `show` is false or standard error is a file.

    Within `json_lines` it is lines of JSON instead.

    Args:
        description: what is going on, shown left of the bar.
        total: number of steps.
        done: steps taken before, in a run that goes on.
        show: whether to draw anything.
    """

    def __init__(self, description: str, total: int, done: int = 0, show: bool = True) -> None:
        self._lines = show and is_json()
        self._step, self._total, self._begun, self._next, self._last = description, total, time.monotonic(), 0.0, ""
        console = Console(stderr=True)
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
        )
        self.hidden = not show or self._lines or not (console.is_terminal or console.is_jupyter)
        self._bar = progress.Progress(
            *columns, console=console, transient=True, disable=self.hidden, refresh_per_second=4
        )
        self._task = self._bar.add_task(description, total=total, completed=done, numbers="")
        self._bar.start()

    def show(self, done: int, numbers: str, description: str | None = None, total: int | None = None) -> None:
        """Move to `done` steps, of another `total` where it is given, with a few numbers as text."""
        self._total = self._total if total is None else total
        if self._lines:
            self._line(done, numbers, description)
        if not self.hidden:
            self._bar.update(self._task, completed=done, numbers=numbers, description=description, total=total)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()
        if self._last:
            print(self._last, file=sys.stderr, flush=True)
            self._last = ""

    def _line(self, done: int, numbers: str, description: str | None) -> None:
        """Print a line, or keep it for the end of the step where the last one was just now."""
        now = time.monotonic()
        step, seconds = description or self._step, round(now - self._begun, 2)
        line = {"step": step, "done": done, "total": self._total, "numbers": numbers, "seconds": seconds}
        self._last = json.dumps(line)
        if now >= self._next:
            self._next = now + _BETWEEN
            print(self._last, file=sys.stderr, flush=True)
            self._last = ""


class Counted:
    """A bar of steps whose number is found out on the way, as that of the fits of a search.

    Args:
        description: what is going on.
        expected: about how many steps there are.
        show: whether to draw anything.
    """

    def __init__(self, description: str, expected: int, show: bool = True) -> None:
        self.done, self.total, self._known = 0, expected, False
        self._bar = Progress(description, expected, show=show)

    def step(self, words: str) -> None:
        """One more is done."""
        self.done += 1
        if not self._known:  # a search that takes longer than expected has a tenth left
            self.total = max(self.total, self.done + 1 + self.done // 10)
        self._bar.show(self.done, words, total=self.total)

    def left(self, steps: int, certain: bool = True) -> None:
        """So many are left, for certain or about."""
        self.total, self._known = self.done + steps, certain

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
