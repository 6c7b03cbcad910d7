r"""Exact draws of the standard normal on convex polygons, in the tails too: a level, then a point of its slice.

In the coordinates of `polygon_slices` the level has the density `exp(-|c| t - t^2 / 2) P(l(t) < u < r(t))`, which is
log-concave (`level_sample`), and u given t is a normal truncated to the slice (`truncated`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian.edges import describe
from girih.gaussian.interval import interval_log_mass
from girih.gaussian.level_sample import make_panels, sample_levels
from girih.gaussian.polygon_slices import bounds, cut, find_frame, tilted_frame
from girih.gaussian.ragged import buckets, gather, pad, slots
from girih.gaussian.truncated import sample_truncated

_CELLS = 1 << 17  # edges at a time


def sample_polygons(
    tail: Tensor,
    head: Tensor,
    owner: Tensor,
    count: int,
    which: Tensor,
    generator: torch.Generator | None = None,
    tilt: Tensor | None = None,
) -> Tensor:
    """Exact draws of `x ~ N(0, I)` given that x lies in a polygon, for a list of convex polygons.

    Args:
        tail: see `polygon_log_mass`.
        head: see `polygon_log_mass`.
        owner: see `polygon_log_mass`.
        count: see `polygon_log_mass`.
        which: the polygon of each draw, `(n,)` long, in any order and with repetitions.
        generator: source of randomness; the same seed gives the same draws.
        tilt: where polygons are given relative to their points nearest to the origin, these points, `(count, 2)`.

    Returns:
        `(n, 2)`; a polygon without area gives its point nearest to the origin.

    Source:
        Gilks (1992), derivative-free adaptive rejection, for the level.

    Example:
        >>> import torch
        >>> from girih.gaussian import sample_polygons
        >>> tail = torch.tensor([[0.0, 1, 0], [30, 40, 1]], dtype=torch.float64)  # the quadrant x > 30, y > 40
        >>> head = torch.tensor([[30.0, 40, 1], [1, 0, 0]], dtype=torch.float64)
        >>> edge, which = torch.tensor([0, 0]), torch.zeros(1000, dtype=torch.long)
        >>> x = sample_polygons(tail, head, edge, 1, which, torch.Generator().manual_seed(0))
        >>> bool((x > torch.tensor([30.0, 40.0])).all()), bool((x < torch.tensor([30.5, 40.5])).all())
        (True, True)
    """
    out = tail.new_empty(len(which), 2)
    size, _ = slots(owner, count)
    asked, row = which.unique(return_inverse=True)
    for some, width in buckets(size[asked], _CELLS):
        index, real = gather(asked[some], width, size)
        place = torch.full_like(asked, -1)
        place[some] = torch.arange(len(some), device=some.device)
        draws = (place[row] >= 0).nonzero()[:, 0]
        a, b = pad(tail, index, real), pad(head, index, real)
        own = None if tilt is None else tilt[asked[some]]
        out[draws] = sample_padded(a, b, place[row[draws]], generator, own)
    return out


def sample_padded(
    tail: Tensor, head: Tensor, which: Tensor, generator: torch.Generator | None, tilt: Tensor | None = None
) -> Tensor:
    """`sample_polygons` for polygons in a padded table `(n, K, 3)`."""
    edges = describe(tail, head)
    frame = find_frame(tail, head, edges) if tilt is None else tilted_frame(tilt)
    slices = cut(tail, head, edges, frame)
    panels = make_panels(slices.owner, slices.lower, slices.upper, len(tail))
    if not len(slices.owner):
        return frame.anchor[which]

    def slice_at(row: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        panel = panels.find(row, t).clamp(max=len(slices.owner) - 1)
        lower, upper = bounds(slices, panel, t[:, None])
        return lower[:, 0], upper[:, 0]

    def log_f(row: Tensor, t: Tensor) -> Tensor:
        return interval_log_mass(*slice_at(row, t)) - t * (frame.height[row] + 0.5 * t)

    t, alive = sample_levels(panels.lower, panels.upper, log_f, which, generator)
    t = torch.where(alive, t, 0.0)
    lower, upper = slice_at(which, t)
    u = sample_truncated(torch.where(alive, lower, 0.0), torch.where(alive, upper, 0.0), generator)
    return frame.anchor[which] + t[:, None] * frame.up[which] + u[:, None] * frame.side[which]
