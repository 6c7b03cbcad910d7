r"""Levels at which slices through a convex set are taken, counted from the set's point nearest to the origin.

With `c` that point (the *anchor*), the density at `c + y` is proportional to `exp(-|c| t - |y|^2 / 2)`, `t >= 0` the
level of y. The set K, seen from its anchor, contains K/10; substituting `y = 10 y'` shows that the part beyond level T
holds less than `10^S exp(-0.9 |c| T - 0.495 T^2)` of the mass, which ends the range at less than 1e-16 of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DROP = 44.0  # 10^3 exp(-44) is 8e-17
_THIN = 1e-14  # panels thinner than this part of the range come from rounding


def reach(height: Tensor) -> Tensor:
    """The level above the anchor beyond which the mass is below 1e-17 of the whole, `height` the anchor's."""
    slope = 0.9 * height
    return 2.0 * _DROP / (slope + (slope.square() + 4.0 * 0.495 * _DROP).sqrt())


def level_panels(level: Tensor, vertex: Tensor, bounded: Tensor, height: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Panels between neighbouring levels of vertices: owner, lower and upper end, `(m,)` each.

    Args:
        level: levels of points, `(n, K)`.
        vertex: which of them are vertices, `(n, K)`.
        bounded: the sets of which no part lies beyond its vertices, `(n,)`.
        height: distance of the anchors from the origin, `(n,)`.
    """
    far = reach(height)[:, None]
    low = torch.where(vertex, level, torch.inf).amin(-1, keepdim=True)
    high = torch.where(vertex, level, -torch.inf).amax(-1, keepdim=True)
    low = torch.where(bounded[:, None], torch.maximum(low, -far), -far)
    high = torch.where(bounded[:, None], torch.minimum(high, far), far)
    inner = torch.cat((torch.where(vertex, level, high), -0.25 * far, 0.25 * far), -1)
    levels = torch.cat((low, torch.maximum(torch.minimum(inner, high), low), high), -1).sort(-1).values
    owner, place = (levels.diff(dim=-1) > _THIN * (high - low)).nonzero(as_tuple=True)
    return owner, levels[owner, place], levels[owner, place + 1]
