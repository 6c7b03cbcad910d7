"""The progress bar of everything that takes longer than a second."""

from __future__ import annotations

from rich import progress
from rich.console import Console


class Progress:
    """A bar on the terminal or in a notebook; silent when `show` is false or standard error is a file.

    Args:
        description: what is going on, shown left of the bar.
        total: number of steps.
        done: steps taken before, in a run that goes on.
        show: whether to draw anything.
    """

    def __init__(self, description: str, total: int, done: int = 0, show: bool = True) -> None:
        console = Console(stderr=True)
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
        )
        self.hidden = not show or not (console.is_terminal or console.is_jupyter)
        self._bar = progress.Progress(
            *columns, console=console, transient=True, disable=self.hidden, refresh_per_second=4
        )
        self._task = self._bar.add_task(description, total=total, completed=done, numbers="")
        self._bar.start()

    def show(self, done: int, numbers: str, description: str | None = None, total: int | None = None) -> None:
        """Move to `done` steps, of another `total` where it is given, with a few numbers as text."""
        if not self.hidden:
            self._bar.update(self._task, completed=done, numbers=numbers, description=description, total=total)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


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
