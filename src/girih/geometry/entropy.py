"""The entropy of generated points, and whether they are spread evenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from girih._options import real, whole
from girih.geometry.cells import as_cells, prior_of
from girih.geometry.density import density
from girih.geometry.preimages import as_partition
from girih.geometry.priors import as_prior
from girih.geometry.spectrum import RANK_TOLERANCE, Source, log_volume
from girih.networks import Trace
from girih.partition import Partition


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


def entropy(cells: Source, prior: Any = None, tolerance: float = RANK_TOLERANCE) -> Entropy:
    r"""`H[x] = H[z] + sum_r P(z in cell r) log sqrt det(A_r^T A_r)` of an injective generator.

    Exact for enumerated cells. From sampled cells it is the average over their draws, with its standard error. For
    a generator that folds, so that several latents have the same image, this is an upper bound of the entropy, and
    `folded_entropy` estimates the entropy itself.

    Args:
        cells: from `enumerate_cells` or `sample_cells`; a partition or a network with S <= 3 stands for all its
            cells.
        prior: for a partition or a network: a variance, a covariance `(S, S)`, or `Uniform(low, high)`.
        tolerance: singular values up to this multiple of the largest one of the cell count as 0.

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


def folded_entropy(net: nn.Module | Trace | Partition, n: int, prior: Any = None, seed: int = 0) -> tuple[float, float]:
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


@dataclass(frozen=True)
class Uniformity:
    """How evenly a uniform prior is spread over the manifold.

    Attributes:
        uniform: whether the log volumes of all cells with prior mass agree.
        least: the smallest log volume, nats; minus infinity where a cell is degenerate.
        most: the largest.
    """

    uniform: bool
    least: float
    most: float


def uniformity(cells: Source, prior: Any = None, tolerance: float = 1e-9) -> Uniformity:
    r"""Whether `det(A^T A)` is the same on all cells with prior mass: then a uniform latent gives uniform points.

    Args:
        cells: as in `entropy`; for sampled cells, whether it is the same on those.
        prior: as in `entropy`: the box, usually `Uniform(low, high)`.
        tolerance: how far log volumes may differ, nats.

    Raises:
        ParameterError: the cells have no prior masses, or those of another prior; a negative tolerance.
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, appendix B, Proposition 6 (for an injective generator).

    Example:
        >>> import girih
        >>> box = girih.geometry.Uniform(0.0, 1.0)
        >>> girih.geometry.uniformity(girih.mlp([2, 3], seed=0), box).uniform
        True
        >>> girih.geometry.uniformity(girih.mlp([2, 8, 3], seed=0), box).uniform
        False
    """
    tolerance = real(tolerance, "tolerance", positive=False)
    cells = as_cells(cells, prior)
    prior_of(cells)
    values = log_volume(cells).values[cells.mass.to(cells.patterns.device) > 0.0]
    least, most = float(values.min()), float(values.max())
    return Uniformity(least > -torch.inf and most - least <= tolerance, least, most)
