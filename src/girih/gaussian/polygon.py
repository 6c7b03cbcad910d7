r"""Log-mass and moments of the standard normal over convex polygons, bounded or not.

Three forms, chosen for each polygon. The signed one (`polygon_signed`) has an absolute error of about 1e-16 per edge
and is taken where the mass is above 1e-5 per edge: a relative error near 1e-11. Elsewhere nothing may cancel: small
polygons are integrated as they are (`polygon_compact`), others by slices in log space (`polygon_slices`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian.compact import log_mass_of, moments_of
from girih.gaussian.edges import describe
from girih.gaussian.polygon_compact import compact_polygons
from girih.gaussian.polygon_signed import signed_mass, signed_moments
from girih.gaussian.polygon_slices import local_moments, sliced_log_mass, sliced_moments, tilted_frame
from girih.gaussian.ragged import buckets, gather, pad, slots
from girih.gaussian.roots import square_root, squared

_LARGE = 1e-5  # mass per edge above which the signed form is used
_WIDE = 1e-6  # for moments: mass times smallest variance, per edge
_CHUNK = 4096  # edges at a time in slices


def polygon_log_mass(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> Tensor:
    r"""`log P(x in polygon)` for `x ~ N(0, I)` in the plane, for a list of convex polygons.

    Args:
        tail: start of each edge, `(E, 3)` float64: `(x, y, 1)` is a point, `(x, y, 0)` is infinity in direction (x, y).
        head: end of each edge, `(E, 3)`. Edges run counter-clockwise, the polygon on their left; those of length 0
            or wholly at infinity change nothing.
        owner: the polygon of each edge, `(E,)` long, sorted, in `[0, count)`.
        count: the number of polygons; one without edges is the whole plane.

    Returns:
        `(count,)` nats; error below `1e-10 max(1, |log P|)`, for masses however small. -inf for polygons without area.

    Source:
        Owen (1956) for the signed form; the form by slices is girih's.

    Example:
        >>> import torch
        >>> from girih.gaussian import polygon_log_mass
        >>> tail = torch.tensor([[0.0, 1, 0], [0, 0, 1]], dtype=torch.float64)  # the quadrant x > 0, y > 0
        >>> head = torch.tensor([[0.0, 0, 1], [1, 0, 0]], dtype=torch.float64)
        >>> polygon_log_mass(tail, head, torch.tensor([0, 0]), 1).exp()
        tensor([0.2500], dtype=torch.float64)
    """
    log_mass = tail.new_zeros(count)
    size, _ = slots(owner, count)
    for chosen, width in buckets(size, 64 * _CHUNK):
        index, real = gather(chosen, width, size)
        log_mass[chosen] = padded_log_mass(*(pad(ends, index, real) for ends in (tail, head)))
    return log_mass


def polygon_mass(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> Tensor:
    """`P(x in polygon)` as in `polygon_log_mass`, to an absolute error of about 1e-16 per edge: much faster in tails.

    Returns:
        `(count,)`, 0 or more.
    """
    mass = tail.new_zeros(count)
    size, _ = slots(owner, count)
    for chosen, width in buckets(size, 64 * _CHUNK):
        index, real = gather(chosen, width, size)
        mass[chosen] = signed_mass(describe(*(pad(ends, index, real) for ends in (tail, head)))).clamp(min=0.0)
    return mass


def polygon_raw_moments(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`E[1]`, `E[x]` and `E[x x^T]` over each polygon, not divided by the mass, to an absolute error of about 1e-16.

    Returns:
        `(count,)`, `(count, 2)` and `(count, 2, 2)`.
    """
    mass, first, second = tail.new_zeros(count), tail.new_zeros(count, 2), tail.new_zeros(count, 2, 2)
    size, _ = slots(owner, count)
    for chosen, width in buckets(size, 64 * _CHUNK):
        index, real = gather(chosen, width, size)
        parts = signed_moments(describe(*(pad(ends, index, real) for ends in (tail, head))))
        mass[chosen], first[chosen], second[chosen] = parts
    return mass, first, second


def polygon_moments(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Log-mass, mean and covariance of `x ~ N(0, I)` truncated to each of a list of convex polygons.

    Args:
        tail: see `polygon_log_mass`.
        head: see `polygon_log_mass`.
        owner: see `polygon_log_mass`.
        count: see `polygon_log_mass`.

    Returns:
        Log-mass `(count,)`, mean `(count, 2)` and covariance `(count, 2, 2)`, the last two accurate relative to the
        spread of the truncated variable.

    Example:
        >>> import torch
        >>> from girih.gaussian import polygon_moments
        >>> tail = torch.tensor([[0.0, 1, 0], [0, 0, 1]], dtype=torch.float64)
        >>> head = torch.tensor([[0.0, 0, 1], [1, 0, 0]], dtype=torch.float64)
        >>> polygon_moments(tail, head, torch.tensor([0, 0]), 1)[1]
        tensor([[0.7979, 0.7979]], dtype=torch.float64)
    """
    log_mass, mean, root = polygon_roots(tail, head, owner, count)
    return log_mass, mean, squared(root)


def polygon_roots(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`polygon_moments` with roots R of the covariances, `C = R R^T`: see `roots`."""
    log_mass, mean, root = tail.new_zeros(count), tail.new_zeros(count, 2), tail.new_zeros(count, 2, 2)
    size, _ = slots(owner, count)
    for chosen, width in buckets(size, 64 * _CHUNK):
        index, real = gather(chosen, width, size)
        parts = padded_moments(*(pad(ends, index, real) for ends in (tail, head)))
        log_mass[chosen], mean[chosen], root[chosen] = parts
    return log_mass, mean, root


def tilted_polygon_moments(
    tail: Tensor, head: Tensor, owner: Tensor, count: int, tilt: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithm of the integral of `exp(-tilt y - |y|^2 / 2) / 2 pi` over each polygon, mean and covariance of y.

    A standard normal seen from a point of the polygon far out, `tilt (count, 2)`, nearest to its mean: 0 here.
    """
    log_mass, mean, covariance = tilt.new_zeros(count), torch.zeros_like(tilt), tilt.new_zeros(count, 2, 2)
    size, _ = slots(owner, count)
    for chosen, width in buckets(size, _CHUNK):
        index, real = gather(chosen, width, size)
        a, b = (pad(ends, index, real) for ends in (tail, head))
        log_mass[chosen], mean[chosen], root = local_moments(a, b, describe(a, b), tilted_frame(tilt[chosen]))
        covariance[chosen] = squared(root)
    return log_mass, mean, covariance


def _rest(rows: Tensor, done: Tensor) -> Tensor:
    left = torch.ones_like(rows, dtype=torch.bool)
    left[done] = False
    return rows[left]


def padded_log_mass(tail: Tensor, head: Tensor) -> Tensor:
    """`polygon_log_mass` for polygons in a padded table `(n, K, 3)`."""
    edges = describe(tail, head)
    mass = signed_mass(edges)
    small = mass <= _LARGE * edges.real.sum(-1)
    log_mass = mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
    some = small.nonzero()[:, 0]
    if not len(some):
        return log_mass
    done, cones = compact_polygons(tail[some], head[some])
    log_mass[some[done]] = log_mass_of(cones)
    for part in _rest(some, done).split(max(1, _CHUNK // max(1, tail.shape[1]))):
        log_mass[part] = sliced_log_mass(tail[part], head[part], type(edges)(*(field[part] for field in edges)))
    return log_mass


def padded_moments(tail: Tensor, head: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`polygon_roots` for polygons in a padded table `(n, K, 3)`."""
    edges = describe(tail, head)
    mass, first, second = signed_moments(edges)
    tiny = torch.finfo(mass.dtype).tiny
    mean = first / mass.clamp(min=tiny)[:, None]
    covariance = second / mass.clamp(min=tiny)[:, None, None] - mean[:, :, None] * mean[:, None, :]
    # smallest eigenvalue, without cancellation to speak of
    trace = covariance[:, 0, 0] + covariance[:, 1, 1]
    least = trace.square() - 4.0 * (covariance[:, 0, 0] * covariance[:, 1, 1] - covariance[:, 0, 1].square())
    least = 0.5 * (trace - least.clamp(min=0.0).sqrt())
    weight = mass * least.clamp(0.0, 1.0) / (1.0 + mean.square().sum(-1))
    small = ~((weight > _WIDE * edges.real.sum(-1)) & (mass > 0))  # both factors may be negative by rounding
    log_mass, root = mass.clamp(min=tiny).log(), square_root(covariance)
    rows = small.nonzero()[:, 0]
    if not len(rows):
        return log_mass, mean, root
    done, cones = compact_polygons(tail[rows], head[rows])
    at = rows[done]
    log_mass[at], mean[at], root[at] = moments_of(cones)
    for part in _rest(rows, done).split(max(1, _CHUNK // max(1, tail.shape[1]))):
        some = type(edges)(*(field[part] for field in edges))
        log_mass[part], mean[part], root[part] = sliced_moments(tail[part], head[part], some)
    return log_mass, mean, root
