"""Signals by which the system, or another program, asks this one to end: they are taken as Ctrl-C is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Of a scheduler or `kill`, and of a terminal that is closed; Windows has no SIGHUP.
_ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end; what Ctrl-C keeps is kept."""


class Asked:
    """`Asked` notes whether the process was asked to end, and by which signal."""

    def __init__(self) -> None:
        self.number = 0

    @property
    def status(self) -> int:
        """The exit status that tells the signal, as shells have it: 143 for SIGTERM."""
        return 128 + self.number


class _Raise:
    """The handler of a command: raises where the program is."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._asked.number = number
        raise TerminatedError


@contextmanager
def terminations_raise() -> Iterator[Asked]:
    """Raise `TerminatedError` where the process is asked to end, in place of a death without a word."""
    asked = Asked()
    with _handled(_Raise(asked), lambda before: before is signal.SIG_DFL):
        yield asked


@contextmanager
def terminations_call(function: Callable[[], None]) -> Iterator[Asked]:
    """Call `function` where the process is asked to end, unless the user's program has a handler of its own."""
    asked = Asked()

    def handler(number: int, frame: FrameType | None) -> None:
        asked.number = number
        function()

    with _handled(handler, lambda before: before is signal.SIG_DFL or isinstance(before, _Raise)):
        yield asked


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], replaces: Callable[[object], bool]) -> Iterator[None]:
    """Set a handler for the time of the block where `replaces` agrees; only the main thread can."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _ASKING if main}
    before = {number: old for number, old in before.items() if replaces(old)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
