"""Points spread uniformly over the manifold, and whether a uniform prior makes them so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Tensor, nn

from girih._arrays import ArrayLike
from girih._options import real, whole
from girih.errors import ParameterError
from girih.geometry.cells import Shown, as_cells, jets, prior_of
from girih.geometry.density import log_volume_of
from girih.geometry.dimension import Source, log_volume
from girih.geometry.priors import PriorLike
from girih.networks import Trace
from girih.partition import Partition
from girih.partition.cells import Domain


@dataclass(frozen=True, repr=False)
class ManifoldSample(Shown):
    """Points that are uniform with respect to the S-dimensional volume of the image of a domain.

    Attributes:
        x: points of the manifold, `(n, D)`.
        z: their latents, `(n, S)`.
        cell: their cells in `partition`, `(n,)`.
        partition: the cells of the domain.
        image_volume: S-dimensional volume of the image of each cell, `(R,)`; 0 for degenerate cells.
        degenerate: how many cells are mapped to a set of smaller dimension and so have no points.
    """

    x: Tensor
    z: Tensor
    cell: Tensor
    partition: Partition
    image_volume: Tensor
    degenerate: int


def sample_uniform_on_manifold(
    net: nn.Module | Trace | Partition,
    n: int,
    domain: ArrayLike | Domain = None,
    seed: int = 0,
) -> ManifoldSample:
    r"""n points uniform on `g(domain)`: a cell with probability `volume_r sqrt det(A_r^T A_r)`, then uniform in it.

    Exact for S <= 3: cells are cut into simplices. Where the images of two cells overlap, a set without volume
    unless D = S or the generator folds, points are as dense as both together.

    Args:
        net: a partition of a bounded domain, or any module with S <= 3 that `girih.trace` supports.
        n: the number of points.
        domain: for a module, as in `girih.Partition`: bounded, for instance `(low, high)`.
        seed: of the draws.

    Raises:
        ParameterError: the domain is not bounded, is given twice or not at all, or all its cells are degenerate.
        LatentDimensionError: S is larger than 3.

    Source:
        MAS, section 5.1, Lemma 1, and appendix B, Proposition 6.

    Example:
        >>> import girih
        >>> sample = girih.geometry.sample_uniform_on_manifold(girih.mlp([2, 8, 3], seed=0), 100, domain=(-1.0, 1.0))
        >>> sample.x.shape, bool((sample.partition.locate(sample.z) == sample.cell).all())
        (torch.Size([100, 3]), True)
    """
    n, seed = whole(n, "n"), whole(seed, "seed", None)
    if isinstance(net, Partition) == (domain is not None):
        raise ParameterError("pass a bounded domain= with a network, and none with a partition, which has its own")
    part = net if isinstance(net, Partition) else Partition(net, domain=domain, progress=False)
    volume = part.volume
    if volume.isinf().any():
        raise ParameterError("points can be uniform on the image of a bounded domain only; pass domain=(low, high)")
    stretch = log_volume_of(part).cpu()
    image = volume * stretch.exp()
    if not float(image.sum()) > 0.0:
        raise ParameterError("all cells of this domain are degenerate: the manifold has no S-dimensional volume")
    rng = np.random.default_rng(seed)
    cell = np.sort(rng.choice(len(part), n, p=(image / image.sum()).numpy()))
    used, first, count = np.unique(cell, return_index=True, return_counts=True)
    z = torch.empty(n, part.latent_dim, dtype=torch.float64)
    for i, start, size in zip(used, first, count, strict=True):
        z[start : start + size] = torch.as_tensor(_in_cell(part.vertices(int(i)).cpu().numpy(), int(size), rng))
    order = rng.permutation(n)
    z, index = z[order], torch.as_tensor(cell[order])
    return ManifoldSample(_images(part, z, index), z, index, part, image, int(stretch.isinf().sum()))


def _images(part: Partition, z: Tensor, cell: Tensor) -> Tensor:
    """g(z), each by the map of its cell about a point of it."""
    origins = part.origins[cell]
    parts = [
        jet.value + (jet.slope @ (z - origins).to(jet.slope.device)[rows, :, None])[:, :, 0]
        for rows, jet in jets(part.trace, part.patterns[cell], origins)
    ]
    return torch.cat(parts)


def _in_cell(vertices: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Points uniform in the convex hull of vertices `(V, S)`, `(n, S)`."""
    simplices = _simplices(vertices)
    base = simplices[:, :1]
    size = np.abs(np.linalg.det(simplices[:, 1:] - base))
    which = rng.choice(len(simplices), n, p=size / size.sum())
    weights = rng.exponential(size=(n, vertices.shape[1] + 1))
    weights /= weights.sum(1, keepdims=True)
    result: np.ndarray = np.einsum("nk,nks->ns", weights, simplices[which])
    return result


def _simplices(vertices: np.ndarray) -> np.ndarray:
    """Simplices that fill the convex hull, `(K, S + 1, S)`."""
    S = vertices.shape[1]
    if S == 1:
        return np.stack((vertices.min(0), vertices.max(0)))[None]
    middle = vertices.mean(0)
    if S == 2:
        around = vertices - middle
        vertices = vertices[np.argsort(np.arctan2(around[:, 1], around[:, 0]), kind="stable")]
        sides = np.stack((vertices, np.roll(vertices, -1, 0)), 1)
    else:
        scale = np.abs(vertices - middle).max()
        sides = vertices[ConvexHull((vertices - middle) / scale).simplices]
    return np.concatenate((sides, np.broadcast_to(middle, (len(sides), 1, S))), 1)


@dataclass(frozen=True)
class Uniformity:
    """The evenness of a uniform prior on the manifold.

    Attributes:
        uniform: whether the log volumes of all cells with prior mass agree.
        least: the smallest log volume, nats; minus infinity where a cell is degenerate.
        most: the largest.
    """

    uniform: bool
    least: float
    most: float


def uniformity(cells: Source, prior: PriorLike | None = None, tolerance: float = 1e-9) -> Uniformity:
    r"""Tells whether `det(A^T A)` is the same on all cells with prior mass: then a uniform latent gives uniform points.

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
