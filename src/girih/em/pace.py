"""Which of two ways of moving pays more for each exact evaluation: EM steps or accelerated ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

# The first block of EM steps, and every later block: the basin is chosen by EM, which is the more robust.
_FIRST, _BLOCK = 20, 10

# The measured rate of the way that rests is trusted this much less after each block.
_FADE = 0.7


@dataclass(frozen=True)
class Pace:
    """Blocks of iterations of one kind; after each block the kind with the better gain for each evaluation goes on.

    Neither kind wins everywhere: far from the optimum the damped EM step moves further, near it the quasi-Newton
    step is worth many of them. So both are measured on the fit itself.

    Attributes:
        accelerated: the kind of the block under way.
        left: its iterations that are left.
        gain: the fall of the NLL in it.
        evaluations: exact evaluations in it.
        em, quasi_newton: gain for each evaluation in the last block of that kind, fading; `None` before the first.
    """

    accelerated: bool = False
    left: int = _FIRST
    gain: float = 0.0
    evaluations: int = 0
    em: float | None = None
    quasi_newton: float | None = None

    def after(self, gain: float, evaluations: int) -> Pace:
        """The state after an iteration.

        Example:
            >>> from girih.em.pace import Pace
            >>> pace = Pace(left=1).after(0.1, 2)
            >>> pace.accelerated, pace.em
            (True, 0.05)
        """
        total, count, left = self.gain + gain, self.evaluations + evaluations, self.left - 1
        if left > 0:
            return replace(self, left=left, gain=total, evaluations=count)
        rate = total / max(count, 1)
        other = self.em if self.accelerated else self.quasi_newton
        change = other is None or rate < _FADE * other
        if other is not None and not change:
            other *= _FADE
        em, quasi_newton = (other, rate) if self.accelerated else (rate, other)
        return Pace(self.accelerated != change, _BLOCK, 0.0, 0, em, quasi_newton)
