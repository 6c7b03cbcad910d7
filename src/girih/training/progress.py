"""A progress bar of gradient steps that shows the loss."""

from __future__ import annotations

from collections.abc import Mapping

from rich import progress
from rich.console import Console


class Progress:
    """A bar on the terminal or in a notebook; silent when `show` is false or standard error is a file.

    Args:
        total: gradient steps of the whole run.
        done: steps taken before, in a run that goes on.
        show: whether to draw anything.
    """

    def __init__(self, total: int, done: int, show: bool) -> None:
        console = Console(stderr=True)
        columns = (
            progress.TextColumn("training"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
        )
        hidden = not show or not (console.is_terminal or console.is_jupyter)
        self._bar = progress.Progress(*columns, console=console, transient=True, disable=hidden, refresh_per_second=4)
        self._task = self._bar.add_task("training", total=total, completed=done, numbers="")
        self._bar.start()

    def show(self, steps: int, loss: float | None, entry: Mapping[str, float]) -> None:
        """Move to `steps`, with the mean loss since the last record and the numbers of that record."""
        if self._bar.disable:
            return
        numbers = {"loss": loss if loss is not None else entry["loss"]}
        numbers |= {name: entry[name] for name in ("nll", "kl") if name in entry}
        text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._bar.update(self._task, completed=steps, numbers=text)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()
