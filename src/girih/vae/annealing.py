"""The temperature of a step as a function of its number alone, so that a run can go on from a checkpoint."""

from __future__ import annotations


def annealed(step: int, steps: int, initial: float, final: float) -> float:
    r"""The temperature of a gradient step: exponential decay over the first half of a run, then constant.

        T(t) = T_max (T_min / T_max)^min(1, 2 t / steps)

    Args:
        step: t, from 0.
        steps: of the whole run.
        initial: T_max.
        final: T_min.

    Source:
        CG-BPEF, section 3.3.

    Example:
        >>> from girih.vae.annealing import annealed
        >>> [annealed(step, 8, 1.0, 0.25) for step in (0, 2, 4, 7)]
        [1.0, 0.5, 0.25, 0.25]
    """
    return initial * (final / initial) ** min(1.0, 2.0 * step / steps)


class Annealing:
    """The temperature of the current step, for a loss; it is told the steps by the trainer.

    Args:
        steps: of the whole run.
        initial: T_max.
        final: T_min.

    Attributes:
        now: the temperature.

    Example:
        >>> from girih.vae.annealing import Annealing
        >>> annealing = Annealing(8, 1.0, 0.25)
        >>> annealing(2)
        >>> annealing.now
        0.5
    """

    def __init__(self, steps: int, initial: float, final: float) -> None:
        self._steps, self._initial, self._final = steps, initial, final
        self.now = initial

    def __call__(self, step: int) -> None:
        """Take note of a step."""
        self.now = annealed(step, self._steps, self._initial, self._final)
