"""The density of generated points on the manifold of the generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih.geometry.cells import Cells, box
from girih.geometry.preimages import TOLERANCE, Preimages, preimages
from girih.geometry.priors import UniformPrior, as_prior
from girih.geometry.sampling import distinct_cells
from girih.geometry.shown import Shown
from girih.geometry.spectrum import log_volume
from girih.networks import Trace, trace
from girih.partition import Partition


@dataclass(frozen=True, repr=False)
class ManifoldDensity(Shown):
    """Densities of points with respect to the S-dimensional volume of the manifold.

    Attributes:
        log_density: natural logs, `(N,)`: minus infinity off the manifold and where the prior is 0, plus infinity on
            the image of a degenerate cell, which has positive mass on a set without S-dimensional volume.
        count: the number of latents that are mapped to each point, `(N,)`; a degenerate cell counts once.
        degenerate: whether the point is in the image of a degenerate cell, `(N,)`.
        preimages: the latents themselves.
    """

    log_density: Tensor
    count: Tensor
    degenerate: Tensor
    preimages: Preimages


def density(
    net: nn.Module | Trace | Partition, x: Any, prior: Any = None, tolerance: float = TOLERANCE
) -> ManifoldDensity:
    r"""`p(x) = sum_{z: g(z) = x} p(z) / sqrt det(A_z^T A_z)` for S <= 3: points may have several preimages.

    Args:
        net: a partition, or any module with S <= 3 that `girih.trace` supports.
        x: points `(N, D)`.
        prior: a variance, a covariance `(S, S)`, or `Uniform(low, high)`; by default that of the partition, or 1.
        tolerance: a point is on the manifold where `|g(z) - x| <= tolerance (1 + |x|)` for some z.

    Returns:
        Log densities in nats with the preimages, those in the domain of the partition: for a network and a uniform
        prior, its box. (Of a partition that is larger than the box, a degenerate cell counts by the one latent that
        is found in it.) On the common face of two cells it is the density of one of them.

    Raises:
        LatentDimensionError: S is larger than 3; `latent_density` works for any S.
        ShapeError, NonFiniteError: x or the prior has the wrong shape, or is not finite.
        ParameterError, NoiseError: a prior or tolerance that is not positive.

    Source:
        MAS, section 5.1, Theorem 3; appendix B, Corollary 2 and eq. 6. The paper asks for an injective generator;
        the sum over preimages does not need that.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([1, 2], seed=0)  # a line in the plane
        >>> found = girih.geometry.density(net, torch.stack((net[0].bias, net[0].bias + 1.0)).detach())
        >>> found.count, bool(found.log_density[1].isinf())
        (tensor([1, 0]), True)
    """
    traced = net.trace if isinstance(net, Partition) else trace(net)
    if prior is None:
        prior = net.prior_covariance if isinstance(net, Partition) else 1.0
    latent = as_prior(prior, traced.latent_dim)
    if isinstance(net, Partition):
        part = net
    elif isinstance(latent, UniformPrior):
        part = Partition(traced, domain=box(latent.low, latent.high), progress=False)
    else:
        part = Partition(traced, progress=False)
    found = preimages(part, x, tolerance)
    count = len(as_rows(x, "x", part.trace.output_dim, "the output dimension D"))
    volume = log_volume_of(part, found.cell)
    edge = torch.where(found.degenerate, 1e-9 * (1.0 + found.latent.norm(dim=1)), 0.0)  # their latents touch faces
    value = latent.log_prob(found.latent, edge)
    value = torch.where(value.isinf(), value, value - volume)  # where the prior is 0 the density is
    out = _log_sum(value, found.row, count)
    flags = torch.zeros(count, dtype=torch.bool, device=value.device)
    flags[found.row[found.degenerate]] = True
    return ManifoldDensity(out, torch.bincount(found.row, minlength=count), flags, found)


def _log_sum(value: Tensor, row: Tensor, count: int) -> Tensor:
    top = value.new_full((count,), -torch.inf).scatter_reduce(0, row, value, "amax")
    shift = torch.where(top.isinf(), 0.0, top)
    total = torch.zeros_like(top).index_add(0, row, (value - shift[row]).exp())
    return torch.where(top.isinf(), top, shift + total.log())


def log_volume_of(part: Partition, cell: Tensor | None = None) -> Tensor:
    """The log volume `(K,)` of some cells of a partition, each computed once; of all by default."""
    if cell is None:
        return log_volume(_plain(part.trace, part.patterns, part.interior)).values
    used, where = cell.unique(return_inverse=True)
    return log_volume(_plain(part.trace, part.patterns[used], part.interior[used.cpu()])).values[where]


def _plain(traced: Trace, patterns: Tensor, points: Tensor) -> Cells:
    unknown = torch.full((len(patterns),), torch.nan, dtype=torch.float64)
    return Cells(traced, patterns, points, unknown, unknown)


def latent_density(net: nn.Module | Trace | Partition, z: Any, prior: Any = 1.0) -> Tensor:
    r"""`log p(g(z)) = log p(z) - log sqrt det(A_z^T A_z)` at generated points, any S, for an injective generator.

    Where other latents are mapped to the same point, this is a lower bound of the density; `density` has their sum.

    Args:
        net: any module that `girih.trace` supports.
        z: latents `(N, S)`.
        prior: a variance, a covariance `(S, S)`, or `Uniform(low, high)`.

    Returns:
        Log densities `(N,)` in nats; plus infinity in degenerate cells.

    Raises:
        ShapeError, NonFiniteError: z or the prior has the wrong shape, or is not finite.
        ParameterError, NoiseError: a prior that is not positive.

    Source:
        MAS, section 5.1, Theorem 3.

    Example:
        >>> import girih, torch
        >>> girih.geometry.latent_density(girih.mlp([10, 16, 40], seed=0), torch.zeros(3, 10)).shape
        torch.Size([3])
    """
    traced = net.trace if isinstance(net, Partition) else trace(net)
    rows = as_rows(z, "z", traced.latent_dim, "the latent dimension S", device=traced.device).detach()
    value = as_prior(prior, traced.latent_dim).log_prob(rows)
    patterns, points, _, owner = distinct_cells(traced, rows)
    volume = log_volume(_plain(traced, patterns, points)).values[owner.to(rows.device)]
    return torch.where(value.isinf(), value, value - volume)
