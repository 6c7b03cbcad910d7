"""Rows that are held out of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih._options import real
from girih.errors import ParameterError


def split(rows: Tensor, validation: Any, seed: int, check: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Training rows and held-out rows.

    Args:
        rows: `(N, D)`, checked.
        validation: `None`, other rows `(M, D)`, or the fraction of `rows` to hold out.
        seed: of the draw of a fraction.
        check: from what the user gave as rows to checked ones.

    Raises:
        ParameterError: the fraction leaves no rows on one side.

    Example:
        >>> import torch
        >>> from girih.training.held_out import split
        >>> [len(part) for part in split(torch.zeros(10, 2), 0.3, 0, torch.as_tensor)]
        [7, 3]
    """
    if validation is None:
        return rows, None
    if np.ndim(validation) > 0:
        return rows, check(validation)
    share = real(validation, "validation")
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise ParameterError(
            f"validation={share:g} of {len(rows)} rows holds out {count}; it must be a fraction that leaves rows on "
            "both sides, an array of rows, or None"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed % 2**63)).to(rows.device)
    return rows[order[count:].sort().values], rows[order[:count].sort().values]
