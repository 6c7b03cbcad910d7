"""Probability and moments of a Gaussian on any polytope of one, two or three dimensions: for use by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from girih._arrays import ArrayLike, as_tensor
from girih.errors import EmptyDataError, LatentDimensionError, NoiseError, NonFiniteError, ParameterError, ShapeError
from girih.gaussian.clipping import from_halfspaces
from girih.gaussian.halfspaces import Array, halfspaces_of, tidy
from girih.gaussian.interval import interval_log_mass, interval_moments

Points = ArrayLike | Sequence[ArrayLike]
Rays = ArrayLike | Sequence[ArrayLike | None]
Halfspaces = tuple[ArrayLike, ArrayLike] | Sequence[tuple[ArrayLike, ArrayLike]]


class Moments(NamedTuple):
    """They are log-probability (nats), mean and covariance of a Gaussian given that it lies in a polytope."""

    log_mass: Tensor  # () or (n,)
    mean: Tensor  # (S,) or (n, S)
    covariance: Tensor  # (S, S) or (n, S, S)


def log_mass(
    vertices: Points | None = None,
    halfspaces: Halfspaces | None = None,
    mean: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    *,
    rays: Rays | None = None,
) -> Tensor:
    r"""`log P(x in polytope)` for `x ~ N(mean, covariance)`, S = 1, 2 or 3.

    Deterministic, with an error below `1e-8 max(1, |log P|)` nats also where P itself would underflow. The error of
    rounding in the input remains: a polytope thinner than 1e-8 standard deviations should lie near the origin.

    Args:
        vertices: `(k, S)`, in any order, points inside allowed: the polytope is their convex hull. Or a list of such
            arrays, one for each polytope.
        halfspaces: instead of vertices, a pair `(H, h)` of shapes `(m, S)` and `(m,)` for `{x: H x <= h}`, bounded or
            not, redundant rows allowed; or a list of such pairs.
        mean: `(S,)`, default 0.
        covariance: `(S, S)`, symmetric positive definite, default the identity.
        rays: with vertices, directions `(r, S)` in which the polytope is unbounded; or a list, one entry a polytope.

    Returns:
        A float64 scalar, or `(n,)` for a list, in nats; -inf for half-spaces that no open set satisfies.

    Raises:
        ShapeError: arrays that do not fit together.
        NonFiniteError: NaN or infinite entries.
        EmptyDataError: no vertices, or an empty list.
        ParameterError: neither or both of `vertices` and `halfspaces`; vertices without volume; a zero ray.
        NoiseError: a covariance that is not symmetric positive definite.
        LatentDimensionError: S > 3.

    Source:
        `Polygons` and `Polyhedra`, on `L^-1 (x - mean)`, `L L' = covariance`.

    Example:
        >>> import girih.gaussian, numpy as np
        >>> girih.gaussian.log_mass(halfspaces=(-np.eye(3), np.zeros(3))).exp()  # the octant x, y, z > 0
        tensor(0.1250, dtype=torch.float64)
        >>> girih.gaussian.log_mass(vertices=[[30.0, 0], [31, 0], [30, 1]])
        tensor(-455.4208, dtype=torch.float64)
    """
    polytopes, single, mu, _ = _prepare(vertices, halfspaces, mean, covariance, rays)
    S = len(mu)
    if S == 1:
        out = interval_log_mass(*_bounds(polytopes))
    else:
        shapes, empty = from_halfspaces(polytopes)
        out = shapes.log_mass().masked_fill(empty, -torch.inf)
    return out[0] if single else out


def moments(
    vertices: Points | None = None,
    halfspaces: Halfspaces | None = None,
    mean: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    *,
    rays: Rays | None = None,
) -> Moments:
    r"""Log-probability, `E[x | x in polytope]` and `Cov[x | x in polytope]` for `x ~ N(mean, covariance)`.

    Args:
        vertices: see `log_mass`.
        halfspaces: see `log_mass`.
        mean: see `log_mass`.
        covariance: see `log_mass`.
        rays: see `log_mass`.

    Returns:
        `Moments`, with a leading dimension for a list of polytopes.

    Raises:
        EmptyDataError: also for half-spaces that no open set satisfies, since nothing has its moments there.
        GirihError: the other errors of `log_mass`.

    Example:
        >>> import girih.gaussian, numpy as np
        >>> girih.gaussian.moments(halfspaces=(-np.eye(2), np.zeros(2))).mean
        tensor([0.7979, 0.7979], dtype=torch.float64)
    """
    polytopes, single, mu, root = _prepare(vertices, halfspaces, mean, covariance, rays)
    S = len(mu)
    if S == 1:
        lower, upper = _bounds(polytopes)
        line = interval_moments(lower, upper)
        parts = (line.log_mass, (line.anchor + line.mean)[:, None], line.variance.sqrt()[:, None, None])
        nothing = upper <= lower
    else:
        shapes, empty = from_halfspaces(polytopes)
        parts = shapes.roots()
        nothing = empty | torch.isneginf(parts[0])
    if nothing.any():
        raise EmptyDataError(f"polytope {int(nothing.nonzero()[0, 0])} holds no open set, so it has no moments")
    spread = root @ parts[2]
    out = Moments(parts[0], torch.as_tensor(mu) + parts[1] @ root.mT, spread @ spread.mT)
    return Moments(*(part[0] for part in out)) if single else out


def _prepare(
    vertices: Points | None,
    halfspaces: Halfspaces | None,
    mean: ArrayLike | None,
    covariance: ArrayLike | None,
    rays: Rays | None,
) -> tuple[list[tuple[Array, Array]], bool, Array, Tensor]:
    """Half-spaces `(H, h)` of every polytope in whitened coordinates, whether one was given, mean and Cholesky root."""
    if (vertices is None) == (halfspaces is None):
        raise ParameterError("give either vertices or halfspaces, and not both")
    if rays is not None and vertices is None:
        raise ParameterError("rays go with vertices; half-spaces say by themselves where a polytope is unbounded")
    arrays, single = _from_halfspaces(halfspaces) if vertices is None else _from_vertices(vertices, rays)
    S = arrays[0][0].shape[1]
    if any(first.shape[1] != S for first, _ in arrays):
        raise ShapeError("all polytopes must have the same dimension")
    if not 1 <= S <= 3:
        raise LatentDimensionError(f"polytopes of dimension {S}: only 1, 2 and 3 are exact; sample in higher ones")
    mu, root = _gaussian(mean, covariance, S)
    L = root.numpy()
    if vertices is not None:
        polytopes = [
            halfspaces_of(*(np.linalg.solve(L, (x - m).T).T for x, m in ((p, mu), (w, 0.0)))) for p, w in arrays
        ]
    else:
        polytopes = [(H @ L, h - H @ mu) for H, h in arrays]
    return polytopes, single, mu, root


def _from_vertices(vertices: Points, rays: Rays | None) -> tuple[list[tuple[Array, Array]], bool]:
    """Vertices and rays of every polytope, and whether one was given."""
    single = _is_array(vertices, 2)
    listed = [vertices] if single else list(cast("Sequence[Points]", vertices))
    directions = [rays] if single or rays is None else list(cast("Sequence[Rays | None]", rays))
    directions = directions * len(listed) if rays is None else directions
    if len(directions) != len(listed):
        raise ShapeError(f"{len(listed)} polytopes but {len(directions)} sets of rays")
    out = []
    for v, r in zip(listed, directions, strict=True):
        points = _array(v, "vertices", 2)
        if not points.size:
            raise EmptyDataError(f"vertices of shape {points.shape}: at least one point is needed")
        ways = np.zeros((0, points.shape[1])) if r is None else _array(r, "rays", 2)
        if ways.shape[1] != points.shape[1]:
            raise ShapeError(f"rays {ways.shape} do not go with vertices {points.shape}")
        if (ways == 0).all(1).any():
            raise ParameterError("a ray is 0: every ray needs a direction")
        out.append((points, ways))
    return _listed(out), single


def _from_halfspaces(halfspaces: Halfspaces | None) -> tuple[list[tuple[Array, Array]], bool]:
    """`(H, h)` of every polytope, and whether one was given."""
    single = isinstance(halfspaces, tuple) and len(halfspaces) == 2 and _is_array(halfspaces[1], 1)
    out = []
    for pair in [halfspaces] if single else list(cast("Sequence[object]", halfspaces)):
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ShapeError("half-spaces are a pair (H, h), or a list of such pairs")
        H, h = _array(pair[0], "H", 2), _array(pair[1], "h", 1)
        if len(H) != len(h):
            raise ShapeError(f"H {H.shape} and h {h.shape} must have the same number of rows")
        out.append((H, h))
    return _listed(out), single


def _listed(arrays: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
    if not arrays:
        raise EmptyDataError("the list of polytopes is empty")
    return arrays


def _is_array(value: object, ndim: int) -> bool:
    """True where `value` is, or is a list for, an array with `ndim` dimensions."""
    try:
        return np.ndim(cast("ArrayLike", value)) == ndim
    except ValueError:  # ragged
        return False


def _array(value: object, name: str, ndim: int) -> Array:
    out = as_tensor(value, name).detach().cpu().numpy().copy()
    if out.ndim != ndim:
        raise ShapeError(f"{name} must have {ndim} dimensions, not shape {out.shape}")
    if not np.isfinite(out).all():
        raise NonFiniteError(f"{name} holds NaN or infinite values; leave out half-spaces that do not bind")
    return out


def _gaussian(mean: ArrayLike | None, covariance: ArrayLike | None, S: int) -> tuple[Array, Tensor]:
    mu = np.zeros(S) if mean is None else _array(mean, "mean", 1)
    sigma = np.eye(S) if covariance is None else _array(covariance, "covariance", 2)
    if mu.shape != (S,) or sigma.shape != (S, S):
        raise ShapeError(f"mean {mu.shape} and covariance {sigma.shape} do not go with polytopes of dimension {S}")
    symmetric = bool(np.abs(sigma - sigma.T).max() <= 1e-10 * np.abs(sigma).max())
    root, info = torch.linalg.cholesky_ex(torch.as_tensor(0.5 * (sigma + sigma.T)))
    if not symmetric or info.item():
        raise NoiseError("covariance must be symmetric positive definite")
    return mu, root


def _bounds(polytopes: list[tuple[Array, Array]]) -> tuple[Tensor, Tensor]:
    """Intervals `{x: H x <= h}`; equal bounds for empty ones."""
    rows = []
    for H, h in polytopes:
        H, h, impossible = tidy(H, h)
        a, b = float(-h[H[:, 0] < 0].min(initial=np.inf)), float(h[H[:, 0] > 0].min(initial=np.inf))
        rows.append((0.0, 0.0) if impossible or b <= a else (a, b))
    table = torch.tensor(rows, dtype=torch.float64)
    return table[:, 0], table[:, 1]
