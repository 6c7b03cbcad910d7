"""The density of generated points on the manifold of the generator, and their entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from girih._arrays import ArrayLike, as_rows
from girih._options import whole
from girih.geometry.cells import Cells, Shown, as_cells, box, distinct_cells, prior_of
from girih.geometry.dimension import RANK_TOLERANCE, Source, log_volume
from girih.geometry.invert import TOLERANCE, Preimages, as_partition, preimages
from girih.geometry.priors import PriorLike, UniformPrior, as_prior
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
    net: nn.Module | Trace | Partition, x: ArrayLike, prior: PriorLike | None = None, tolerance: float = TOLERANCE
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


def latent_density(net: nn.Module | Trace | Partition, z: ArrayLike, prior: PriorLike = 1.0) -> Tensor:
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


@dataclass(frozen=True)
class Entropy:
    """A differential entropy with respect to the S-dimensional volume of the manifold, in nats.

    Attributes:
        value: the entropy; minus infinity where degenerate cells have mass.
        standard_error: 0 for enumerated cells, that of independent draws for sampled ones; NaN for an infinite value.
        degenerate_mass: the prior mass of the cells of rank below S.
        mean_log_volume: the average of `log sqrt det(A^T A)` over the prior mass of all other cells; NaN where there
            are none.
    """

    value: float
    standard_error: float
    degenerate_mass: float
    mean_log_volume: float


def entropy(cells: Source, prior: PriorLike | None = None, tolerance: float = RANK_TOLERANCE) -> Entropy:
    r"""`H[x] = H[z] + sum_r P(z in cell r) log sqrt det(A_r^T A_r)` of an injective generator.

    Exact for enumerated cells. From sampled cells it is the average over their draws, with its standard error. For
    a generator that folds, so that several latents have the same image, this is an upper bound of the entropy, and
    `folded_entropy` estimates the entropy itself.

    Args:
        cells: as in `singular_values`.
        prior: for a partition or a network: a variance, a covariance `(S, S)`, or `Uniform(low, high)`.
        tolerance: as in `intrinsic_dimension`.

    Raises:
        ParameterError: the cells have no prior masses, or those of another prior.
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, section 5.1, Corollary 1.

    Example:
        >>> import girih
        >>> net = girih.mlp([2, 8, 3], seed=0)
        >>> exact = girih.geometry.entropy(net)
        >>> sampled = girih.geometry.entropy(girih.geometry.sample_cells(net, 2000))
        >>> abs(exact.value - sampled.value) < 4 * sampled.standard_error
        True
    """
    cells = as_cells(cells, prior)
    latent = prior_of(cells)
    volume = log_volume(cells, tolerance)
    weight = cells.mass.to(volume.values.device)
    flat = volume.values.isinf()
    lost = float(weight[flat].clamp(min=0.0).sum())
    rest = float(weight[~flat].sum())
    mean = float((weight * volume.values)[~flat].sum()) / rest if rest > 0.0 else torch.nan
    if lost > 0.0:
        return Entropy(-torch.inf, torch.nan, lost, mean)
    return Entropy(latent.entropy() + mean, volume.mean_error, 0.0, mean)


def folded_entropy(
    net: nn.Module | Trace | Partition, n: int, prior: PriorLike | None = None, seed: int = 0
) -> tuple[float, float]:
    r"""`H[x] = -E log p(x)` by n draws of x, with `p(x)` summed over all preimages: S <= 3, injective or not.

    Args:
        net: a partition, or any module with S <= 3 that `girih.trace` supports.
        n: the number of draws, 2 or more.
        prior: a variance, a covariance `(S, S)`, or `Uniform(low, high)`; by default that of the partition, or 1.
        seed: of the draws.

    Returns:
        The estimate and its standard error, nats; minus infinity and NaN where a draw falls into a degenerate cell.

    Raises:
        LatentDimensionError: S is larger than 3.
        ParameterError, ShapeError, NoiseError: a prior that is not one, or n below 2.

    Source:
        MAS, section 5.1, Theorem 3 and Corollary 1.

    Example:
        >>> import girih, torch
        >>> fold = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), girih.networks.Abs()).double()
        >>> _ = torch.nn.init.ones_(fold[0].weight)  # |z| has log 2 nats less than z
        >>> value, error = girih.geometry.folded_entropy(fold, 500)
        >>> abs(girih.geometry.entropy(fold).value - 0.693147 - value) < 4 * error
        True
    """
    part = as_partition(net)
    n, seed = whole(n, "n", 2), whole(seed, "seed", None)
    latent = as_prior(part.prior_covariance if prior is None else prior, part.latent_dim)
    z = latent.sample(n, torch.Generator().manual_seed(seed)).to(part.trace.device)
    with torch.no_grad():
        x = part.trace(z)
    value = -density(part, x, latent).log_density
    if value.isinf().any():
        return -torch.inf, torch.nan
    return float(value.mean()), float(value.std()) / n**0.5
