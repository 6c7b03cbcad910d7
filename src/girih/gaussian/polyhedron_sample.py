r"""Exact draws of the standard normal on convex polyhedra, in the tails too: a level, then a point of its slice.

As `polygon_sample`, one dimension up: the level's density has the mass of a polygon as its factor, and the point given
the level is drawn on that polygon.
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian.faces import Faces, plane_edges, select
from girih.gaussian.level_sample import make_panels, sample_levels
from girih.gaussian.polygon import padded_log_mass
from girih.gaussian.polygon_sample import sample_padded as sample_plane
from girih.gaussian.polyhedron import tables
from girih.gaussian.polyhedron_slices import cut, find_frame, polygons, tilted_frame

_CELLS = 1 << 13  # edges at a time


def sample_polyhedra(
    tail: Tensor,
    head: Tensor,
    face: Tensor,
    normal: Tensor,
    offset: Tensor,
    owner: Tensor,
    count: int,
    which: Tensor,
    generator: torch.Generator | None = None,
    tilt: Tensor | None = None,
) -> Tensor:
    """Exact draws of `x ~ N(0, I)` given that x lies in a polyhedron, for a list of convex polyhedra.

    Args:
        tail: see `polyhedron_log_mass`.
        head: see `polyhedron_log_mass`.
        face: see `polyhedron_log_mass`.
        normal: see `polyhedron_log_mass`.
        offset: see `polyhedron_log_mass`.
        owner: see `polyhedron_log_mass`.
        count: see `polyhedron_log_mass`.
        which: the polyhedron of each draw, `(n,)` long, in any order and with repetitions.
        generator: source of randomness; the same seed gives the same draws.
        tilt: where polyhedra are given relative to their points nearest to the origin, these points, `(count, 3)`.

    Returns:
        `(n, 3)`; a polyhedron without volume gives its point nearest to the origin.

    Source:
        Gilks (1992), derivative-free adaptive rejection, for the levels.

    Example:
        >>> import torch
        >>> from girih.gaussian import sample_polyhedra
        >>> edges, face = torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
        >>> normal = torch.tensor([[0.0, -1.0, 0.0]], dtype=torch.float64)  # the half-space y > 40
        >>> offset, owner = torch.tensor([-40.0], dtype=torch.float64), torch.tensor([0])
        >>> which = torch.zeros(100, dtype=torch.long)
        >>> x = sample_polyhedra(edges, edges, face, normal, offset, owner, 1, which, torch.Generator().manual_seed(0))
        >>> bool(((x[:, 1] > 40.0) & (x[:, 1] < 40.5)).all())
        True
    """
    out = tail.new_empty(len(which), 3)
    asked = torch.zeros(count, dtype=torch.bool, device=which.device)
    asked[which] = True
    for chosen, faces in tables(tail, head, face, normal, offset, owner, count):
        wanted = asked[chosen].nonzero()[:, 0]
        cells = max(1, faces.tail.shape[1] * max(1, faces.tail.shape[2]))
        for some in wanted.split(max(1, _CELLS // cells)) if len(wanted) else ():
            place = torch.full((count,), -1, device=which.device)
            place[chosen[some]] = torch.arange(len(some), device=which.device)
            draws = (place[which] >= 0).nonzero()[:, 0]
            own = None if tilt is None else tilt[chosen[some]]
            out[draws] = _sample(select(faces, some), place[which[draws]], generator, own)
    return out


def _sample(faces: Faces, which: Tensor, generator: torch.Generator | None, tilt: Tensor | None) -> Tensor:
    _, edges = plane_edges(faces)
    frame = find_frame(faces) if tilt is None else tilted_frame(tilt)
    slices = cut(faces, edges, frame)
    panels = make_panels(slices.owner, slices.lower, slices.upper, len(frame.height))
    if not len(slices.owner):
        return frame.anchor[which]

    def slice_at(row: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        panel = panels.find(row, t).clamp(max=len(slices.owner) - 1)
        return polygons(slices, panel, t[:, None])

    def log_f(row: Tensor, t: Tensor) -> Tensor:
        return padded_log_mass(*slice_at(row, t)) - t * (frame.height[row] + 0.5 * t)

    t, alive = sample_levels(panels.lower, panels.upper, log_f, which, generator)
    t = torch.where(alive, t, 0.0)
    local = t.new_zeros(len(t), 3)
    local[:, 0] = t
    rows = alive.nonzero()[:, 0]
    tail, head = slice_at(which[rows], t[rows])
    local[rows, 1:] = sample_plane(tail, head, torch.arange(len(rows), device=rows.device), generator)
    return frame.anchor[which] + (local[:, :, None] * frame.basis[which]).sum(1)
