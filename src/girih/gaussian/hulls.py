"""Log-masses of convex hulls of points, differentiable in these: half-spaces through the corners of each side."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from girih._arrays import ArrayLike, as_tensor, bare
from girih.errors import DerivativeError, NonFiniteError, ShapeError
from girih.gaussian.batched import polytope_log_mass


def hull_log_mass(points: ArrayLike, mean: ArrayLike | None = None, covariance: ArrayLike | None = None) -> Tensor:
    r"""`log P(x in the convex hull of points)` of n sets at once, `x ~ N(mean, covariance)`, S = 1, 2 or 3.

    Use it for simplices and other sets that are known by their vertices, and for gradients in these.

    Args:
        points: `(n, K, S)`, or `(K, S)` for one set; those inside the hull change nothing and have no gradient.
        mean: as in `polytope_log_mass`.
        covariance: as in `polytope_log_mass`.

    Returns:
        As `polytope_log_mass`; -inf where the points span no area or volume.

    Raises:
        DerivativeError: a gradient is asked for in points more than S of which share a side: moved out of it they make
            new sides, moved in they make others, so there is no derivative.
        GirihError: the other errors of `polytope_log_mass`.

    Example:
        >>> import girih.gaussian, torch
        >>> triangle = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=torch.float64, requires_grad=True)
        >>> log_p = girih.gaussian.hull_log_mass(triangle)
        >>> log_p  # a quarter of the plane, or nearly so
        tensor(-1.3863, dtype=torch.float64, grad_fn=<SelectBackward0>)
        >>> log_p.backward()
        >>> triangle.grad[0]  # the corner at the mean; those far out hardly matter
        tensor([-0.7271, -0.7271], dtype=torch.float64)
    """
    at = as_tensor(points, "points")
    single = at.ndim == 2
    at = at[None] if single else at
    if at.ndim != 3 or not 1 <= at.shape[2] <= 3 or not at.shape[1]:
        raise ShapeError(f"points must be (n, K, S) or (K, S), S = 1, 2 or 3, K of them or more; got {tuple(at.shape)}")
    if not torch.isfinite(bare(at)).all():
        raise NonFiniteError("points holds NaN or infinite values; an unbounded set is given by its half-spaces")
    out = polytope_log_mass(*_sides(at), mean, covariance)
    return out[0] if single else out


def _sides(points: Tensor) -> tuple[Tensor, Tensor]:
    """The half-spaces of convex hulls, `(n, m, S)` and `(n, m)`, as functions of the points in their sides."""
    n, _, S = points.shape
    if S == 1:
        ends = torch.stack((points.amax(1), -points.amin(1)), 1)
        return torch.tensor([[1.0], [-1.0]]).to(points).expand(n, 2, 1), ends[:, :, 0]
    hulls = [_hull(one) for one in points.detach().cpu().numpy()]
    most = max([2, *(len(hull.simplices) for hull in hulls if hull is not None)])
    corner, outward = np.zeros((n, most, S), np.int64), np.zeros((n, most, S))
    flat = np.array([hull is None for hull in hulls], dtype=bool)
    for k, hull in enumerate(hulls):
        if hull is not None:
            corner[k, : len(hull.simplices)] = hull.simplices
            outward[k, : len(hull.simplices)] = hull.equations[:, :-1]
            if points.requires_grad and len(np.unique(hull.equations.round(12), axis=0)) < len(hull.simplices):
                raise DerivativeError(
                    f"points: more than {S} of set {k} share a side, and log P has no derivative where they part; give "
                    "a set in general position, or use polytope_log_mass, whose half-spaces have gradients"
                )
    v = points[torch.arange(n)[:, None, None], torch.as_tensor(corner)]  # (n, m, S, S)
    step = v[:, :, 1:] - v[:, :, :1]
    if S == 2:
        normal = torch.stack((step[:, :, 0, 1], -step[:, :, 0, 0]), -1)
    else:
        normal = torch.linalg.cross(step[:, :, 0], step[:, :, 1])
    facing = torch.as_tensor(outward).to(points)
    size = (normal.detach() * facing).sum(-1)  # with the sense of the normal; 0 where there is no side
    H = normal / torch.where(size == 0.0, 1.0, size)[:, :, None]
    H = torch.where((size != 0.0)[:, :, None], H, 0.0)
    h = torch.where(size != 0.0, (H * v[:, :, 0]).sum(-1), 1.0)
    nothing = torch.as_tensor(flat).to(points.device)
    H = torch.where(nothing[:, None, None], facing.new_ones(S) * _opposite(most).to(points)[:, None], H)
    return H, torch.where(nothing[:, None], -1.0, h)


def _opposite(count: int) -> Tensor:
    """Signs by which half-spaces at -1 leave nothing."""
    return 1.0 - 2.0 * (torch.arange(count) % 2)


def _hull(points: np.ndarray) -> ConvexHull | None:
    """The convex hull, its sides cut into simplices; `None` where there is no volume."""
    try:
        return ConvexHull(points)
    except QhullError:
        return None
