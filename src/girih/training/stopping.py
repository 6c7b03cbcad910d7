"""When a run has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Mapping

from girih._options import real, whole
from girih.errors import ParameterError


class Patience:
    """Stops when `patience` records in a row have not improved a number that should fall.

    An improvement is a fall by more than `min_improvement * max(1, |best|)`: relative for large values, absolute
    (nats per row) for values around 0, where a relative one has no meaning.

    Args:
        patience: records without improvement that end a run; `None` never ends one.
        min_improvement: what counts as an improvement.
        monitor: the name of the recorded number; by default "nll" where it is recorded, else "loss".

    Raises:
        ParameterError: an option is out of its domain, or `monitor` is not recorded.

    Example:
        >>> from girih.training.stopping import Patience
        >>> stopping = Patience(2, min_improvement=0.01)
        >>> [stopping.update({"nll": value}) for value in (3.0, 2.0, 1.999, 1.998)]
        [False, False, False, True]
    """

    def __init__(self, patience: int | None, min_improvement: float = 1e-4, monitor: str | None = None) -> None:
        self.patience = None if patience is None else whole(patience, "patience")
        self.min_improvement = real(min_improvement, "min_improvement", positive=False)
        self.monitor = monitor
        self.best = math.inf
        self.waited = 0

    @property
    def exhausted(self) -> bool:
        """Whether the run should end."""
        return self.patience is not None and self.waited >= self.patience

    def watched(self, entry: Mapping[str, float]) -> float:
        """The number of an entry that should fall.

        Raises:
            ParameterError: it is not recorded.
        """
        monitor = self.monitor or ("nll" if "nll" in entry else "loss")
        if monitor not in entry:
            raise ParameterError(f"monitor {monitor!r} is not recorded; choose one of {', '.join(sorted(entry))}")
        return entry[monitor]

    def update(self, entry: Mapping[str, float]) -> bool:
        """Take one record into account; returns `exhausted`."""
        value = self.watched(entry)
        if math.isnan(value):  # the training loss before the first step
            return self.exhausted
        if math.isinf(self.best) or value < self.best - self.min_improvement * max(1.0, abs(self.best)):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.exhausted
