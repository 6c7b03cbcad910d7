"""What a run needs around it: quiet logs, a Ctrl-C that ends it cleanly, a random state of its own."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from girih._signals import terminations_call


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notices out of the user's terminal, and four of its warnings; errors come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 builds torch's LeafSpec, which torch >= 2.11 deprecates; nothing we pass avoids it
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated")
            # the user asked for the CPU, and may keep parts of a model in evaluation mode on purpose
            warnings.filterwarnings("ignore", message="GPU available but not used")
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
            # a log of its own in the folder is replaced, as documented
            warnings.filterwarnings("ignore", message=r"Experiment logs directory .* exists and is not empty")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def interruptible(on_interrupt: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C into a call of `on_interrupt`; a second one interrupts as usual.

    SIGTERM and SIGHUP call it too, and exit when the block has ended, with the status that tells the signal.

    Only where Python's own handler is in charge, in the main thread; elsewhere nothing changes. Lightning itself
    would exit the interpreter and leave Ctrl-C switched off.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        on_interrupt()

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    try:
        with terminations_call(on_interrupt) as asked:
            yield
        if asked.number:
            raise SystemExit(asked.status)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for the duration, and put them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed %= 2**63  # what torch takes
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
