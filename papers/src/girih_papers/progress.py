"""The progress bar of a reproduction."""

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
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not show or not (console.is_terminal or console.is_jupyter),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(description, total=total, completed=done, numbers="")
        self._bar.start()

    def show(self, done: int, numbers: str) -> None:
        """Move to `done` steps, with a few numbers as text."""
        self._bar.update(self._task, completed=done, numbers=numbers)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()
