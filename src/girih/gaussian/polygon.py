r"""Log-mass and moments of the standard normal over convex polygons, bounded or not.

Two forms, chosen for each polygon. The signed one (`polygon_signed`) has an absolute error of about 1e-16 per edge and
is taken where the mass is above 1e-5 per edge: a relative error near 1e-11. Elsewhere slices
(`polygon_slices`) are integrated in log space, where nothing cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian.edges import describe
from girih.gaussian.polygon_signed import signed_mass, signed_moments
from girih.gaussian.polygon_slices import sliced_log_mass, sliced_moments
from girih.gaussian.ragged import buckets, gather, slots

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
        `(count,)` nats; error below 1e-10 max(1, |log P|), for masses however small. -inf for polygons without area.

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
        log_mass[chosen] = padded_log_mass(*(_pad(ends, index, real) for ends in (tail, head)))
    return log_mass


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
    log_mass, mean = tail.new_zeros(count), tail.new_zeros(count, 2)
    covariance = tail.new_zeros(count, 2, 2)
    size, _ = slots(owner, count)
    for chosen, width in buckets(size, 64 * _CHUNK):
        index, real = gather(chosen, width, size)
        parts = padded_moments(*(_pad(ends, index, real) for ends in (tail, head)))
        log_mass[chosen], mean[chosen], covariance[chosen] = parts
    return log_mass, mean, covariance


def _pad(ends: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """A padded table; empty places hold an edge wholly at infinity, which every form ignores."""
    if not len(ends):
        return ends.new_zeros(*index.shape, ends.shape[-1])
    return torch.where(real[..., None], ends[index], 0.0)


def padded_log_mass(tail: Tensor, head: Tensor) -> Tensor:
    """`polygon_log_mass` for polygons in a padded table `(n, K, 3)`."""
    edges = describe(tail, head)
    mass = signed_mass(edges)
    small = mass < _LARGE * edges.real.sum(-1)
    log_mass = mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
    for part in small.nonzero()[:, 0].split(max(1, _CHUNK // max(1, tail.shape[1]))):
        log_mass[part] = sliced_log_mass(tail[part], head[part], type(edges)(*(field[part] for field in edges)))
    return log_mass


def padded_moments(tail: Tensor, head: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`polygon_moments` for polygons in a padded table `(n, K, 3)`."""
    edges = describe(tail, head)
    mass, first, second = signed_moments(edges)
    tiny = torch.finfo(mass.dtype).tiny
    mean = first / mass.clamp(min=tiny)[:, None]
    covariance = second / mass.clamp(min=tiny)[:, None, None] - mean[:, :, None] * mean[:, None, :]
    # smallest eigenvalue, without cancellation to speak of
    trace = covariance[:, 0, 0] + covariance[:, 1, 1]
    least = trace.square() - 4.0 * (covariance[:, 0, 0] * covariance[:, 1, 1] - covariance[:, 0, 1].square())
    least = 0.5 * (trace - least.clamp(min=0.0).sqrt())
    weight = mass * least.clamp(max=1.0) / (1.0 + mean.square().sum(-1))
    small = ~(weight > _WIDE * edges.real.sum(-1))
    log_mass = mass.clamp(min=tiny).log()
    for part in small.nonzero()[:, 0].split(max(1, _CHUNK // max(1, tail.shape[1]))):
        some = type(edges)(*(field[part] for field in edges))
        log_mass[part], mean[part], covariance[part] = sliced_moments(tail[part], head[part], some)
    return log_mass, mean, covariance
