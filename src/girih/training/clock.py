"""A stopwatch for the time that training takes, without what is measured on the way."""

from __future__ import annotations

import time


class Clock:
    """Adds up the seconds between `start` and `stop`.

    Example:
        >>> from girih.training.clock import Clock
        >>> clock = Clock()
        >>> clock.start(); clock.stop()
        >>> clock.seconds >= 0.0
        True
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Start, or go on."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Pause; nothing happens if it does not run."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None
