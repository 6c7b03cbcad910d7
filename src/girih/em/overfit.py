"""More free parameters than the data can carry: found before the numbers of such a fit are taken for an answer."""

from __future__ import annotations

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

# A fit with fewer observed numbers than this for each free parameter passes through its rows more than it averages.
_LEAST = 2.0


class OverfitWarning(ConvergenceWarning):
    """A model was fitted that has more free parameters than its data can carry."""


def overfit_reason(parameters: int, x: Tensor, weight: Tensor) -> str | None:
    """What to say of a fit with so many free parameters to the rows x `(N, D)`; `None` if they can carry them.

    Rows that occur several times count once: they say nothing new. A full noise, which has `D (D + 1) / 2` parameters
    of its own, thus needs more rows than columns; without them its likelihood grows without bound.

    Example:
        >>> import torch
        >>> from girih.em.overfit import overfit_reason
        >>> rows = torch.randn(10, 50, generator=torch.Generator().manual_seed(0)).double()
        >>> overfit_reason(60, rows, torch.ones(10)) is None
        True
        >>> overfit_reason(1700, rows, torch.ones(10)).split(":")[0]
        '1,700 free parameters were fitted to 500 observed numbers in 10 different rows of X'
    """
    rows, numbers = _different(x[weight > 0], _LEAST * parameters)
    if numbers >= _LEAST * parameters:
        return None
    return (
        f"{parameters:,} free parameters were fitted to {numbers:,} observed numbers in {rows:,} different rows of X: "
        "the fit is more a copy of these rows than a model of others, and its likelihood says nothing about new ones. "
        "Use a simpler noise ('diagonal' or 'isotropic'), fewer hidden units, or more rows"
    )


def _different(x: Tensor, enough: float) -> tuple[int, int]:
    """How many different rows there are and how many observed entries in them, counted until there are enough."""
    size = int(2.0 * enough / x.shape[1]) + 1
    while True:
        # a missing entry equals itself only as a number
        rows = torch.unique(torch.nan_to_num(x[:size], nan=torch.inf), dim=0)
        numbers = int(torch.isfinite(rows).sum())
        if numbers >= enough or size >= len(x):
            return len(rows), numbers
        size *= 8
