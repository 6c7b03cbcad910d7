"""Latents of given points: all preimages, the one whose image is nearest, and a local search for larger S."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from girih._arrays import ArrayLike, as_rows
from girih._options import real, whole
from girih.errors import ParameterError
from girih.geometry.cells import Shown, chunks
from girih.geometry.pieces import Rows
from girih.geometry.search import Search
from girih.networks import Trace, trace
from girih.partition import MAX_LATENT_DIM, Partition

TOLERANCE = 1e-8
_SLACK = 2.0  # images that are so many times farther than the tolerance are looked at
_FORWARD = 1 << 15
_STARTS = 1024
_STEPS = 60


@dataclass(frozen=True, repr=False)
class Inverse(Shown):
    """The nearest points of the manifold.

    Attributes:
        z: latents, `(N, S)`.
        distance: `|x - g(z)|`, `(N,)`.
        exact: whether that is the least distance of the whole domain (S <= 3), or an upper bound from a local search.
        cell: the cell of z in `partition`, `(N,)`, one of them where z is on a face; `None` for a local search.
        partition: the cells; `None` for a local search.
    """

    z: Tensor
    distance: Tensor
    exact: bool
    cell: Tensor | None = None
    partition: Partition | None = None


def invert(
    net: nn.Module | Trace | Partition, x: ArrayLike, restarts: int = 8, seed: int = 0, exact: bool | None = None
) -> Inverse:
    r"""`argmin_z |x - g(z)|` over all cells, exact for S <= 3; a local search with restarts for larger S.

    On a cell it is the point of a polytope nearest to x. A tree over the images of the cells finds those that can be
    nearer than a point that is known, so the answer is the global one and time hardly grows with the number of cells.
    For x on the manifold it is the inverse of the generator.

    For S > 3, damped Gauss-Newton steps lead down from several starting points, the nearest of 1024 standard normal
    latents: the result is an upper bound of the distance and may not be the global answer.

    Args:
        net: a partition, or any module that `girih.trace` supports.
        x: `(N, D)`.
        restarts: for a local search: how many starting points for each row, up to 1024.
        seed: for a local search: of the latents to choose them from.
        exact: whether to look at all cells; by default where S <= 3. False takes the local search there, too, for
            networks with too many cells.

    Returns:
        Latents, distances and cells. Of several latents at the same distance, one.

    Raises:
        ParameterError: `restarts` is not a whole number from 1 to 1024; a local search on a partition.
        LatentDimensionError: `exact=True` and S is larger than 3.
        ShapeError, NonFiniteError: x is not a table of finite numbers with D columns.

    Source:
        MAS, section 4.1, Proposition 4.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([2, 8, 5], seed=0)
        >>> found = girih.geometry.invert(net, net(torch.tensor([[0.3, -0.2]], dtype=torch.float64)).detach())
        >>> found.z, bool(found.distance < 1e-12)
        (tensor([[ 0.3000, -0.2000]], dtype=torch.float64), True)
    """
    traced = net.trace if isinstance(net, Partition) else trace(net)
    rows = as_rows(x, "x", traced.output_dim, "the output dimension D", device=traced.device).detach()
    restarts, seed = whole(restarts, "restarts"), whole(seed, "seed", None)
    if restarts > _STARTS:
        raise ParameterError(f"restarts may be {_STARTS} at most, got {restarts}")
    exact = traced.latent_dim <= MAX_LATENT_DIM if exact is None else exact
    if not exact:
        if isinstance(net, Partition):
            raise ParameterError("a local search knows no domain: pass the network, not a partition, or exact=True")
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(_STARTS, traced.latent_dim, generator=generator, dtype=torch.float64).to(rows.device)
        return Inverse(*_descend(traced, rows, _good_starts(traced, rows, draws, restarts)), exact=False)
    part = net if isinstance(net, Partition) else as_partition(traced)
    search = Search(part)
    shapes, places, pieces = search.images, [], []
    for some in search.batches(len(rows)):
        found = search.nearest(shapes.rows(rows[some]))
        places.append(shapes.origin[found.piece] + found.t)
        pieces.append(found.piece)
    z, cell = torch.cat(places).to(rows.device), shapes.cell[torch.cat(pieces)].to(rows.device)
    return Inverse(z, (images(traced, z) - rows).norm(dim=1), True, cell, part)


def images(traced: Trace, z: Tensor) -> Tensor:
    """g(z) in chunks, without gradients."""
    with torch.no_grad():
        return torch.cat([traced(some) for some in z.split(_FORWARD)] or [traced(z)])


def misses(traced: Trace, z: Tensor, x: Tensor, row: Tensor | None = None) -> Tensor:
    """`|g(z) - x|`, `(m,)`, of each latent and its row of x: the one of the same number by default."""
    parts = []
    for some in torch.arange(len(z), device=z.device).split(_FORWARD):
        at = some if row is None else row[some]
        parts.append((images(traced, z[some]) - x[at]).norm(dim=1))
    return torch.cat(parts) if parts else z.new_zeros(0)


def _descend(traced: Trace, x: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Damped Gauss-Newton steps from the best of some latents: `argmin_z |x - g(z)|`, locally.

    On one cell a step without damping is the exact least-squares answer. A step is taken only if it comes nearer.

    Args:
        traced: the generator.
        x: `(N, D)`.
        starts: latents to start from, `(N, m, S)`.

    Returns:
        The best latent `(N, S)` and its distance `(N,)`.
    """
    count, tries, S = starts.shape
    z, target = starts.reshape(-1, S).clone(), x.repeat_interleave(tries, 0)
    for rows in chunks(traced, len(z)):
        z[rows] = _search(traced, target[rows], z[rows])
    distance = misses(traced, z, target).reshape(count, tries)
    best = distance.argmin(1)
    index = torch.arange(count, device=x.device)
    return z.reshape(count, tries, S)[index, best], distance[index, best]


def _good_starts(traced: Trace, x: Tensor, draws: Tensor, tries: int) -> Tensor:
    """The draws `(m, S)` whose images are nearest to each row, `(N, tries, S)`."""
    with torch.no_grad():
        images = traced(draws)
    return draws[torch.cdist(x, images).topk(tries, dim=1, largest=False).indices]


def _search(traced: Trace, x: Tensor, z: Tensor) -> Tensor:
    z, damping = z.clone(), torch.full_like(z[:, 0], 1e-6)
    least = misses(traced, z, x)
    active = torch.arange(len(z), device=z.device)
    for _ in range(_STEPS):
        here, to = z[active], x[active]
        with torch.no_grad():
            jet = traced.output_jet(traced.pattern(here), here)
        gram = jet.slope.mT @ jet.slope
        size = gram.diagonal(dim1=1, dim2=2).amax(1).clamp(min=torch.finfo(torch.float64).tiny)
        room = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) * (damping[active] * size)[:, None, None]
        pull = (jet.slope.mT @ (to - jet.value)[:, :, None])[:, :, 0]
        new = here + torch.linalg.solve(gram + room, pull)
        value = misses(traced, new, to)
        better = value < least[active]
        gain = least[active] - value
        z[active[better]], least[active[better]] = new[better], value[better]
        damping[active] = torch.where(better, 0.1 * damping[active], 10.0 * damping[active]).clamp(1e-14, 1e14)
        stalled = torch.where(better, gain <= 1e-13 * (1e-300 + value), damping[active] > 1e8)
        active = active[~stalled]
        if not len(active):
            break
    return z


@dataclass(frozen=True, repr=False)
class Preimages(Shown):
    """Pairs of a row of x and a latent that is mapped to it, sorted by row.

    Attributes:
        row: the row of x, `(K,)`.
        cell: the cell of the latent, `(K,)`.
        latent: `(K, S)`.
        degenerate: whether the cell is mapped to a set of smaller dimension, `(K,)`; then the latents that it has
            for the row are a line, a plane or a whole cell, and one of them is given.
    """

    row: Tensor
    cell: Tensor
    latent: Tensor
    degenerate: Tensor


def preimages(net: nn.Module | Trace | Partition, x: ArrayLike, tolerance: float = TOLERANCE) -> Preimages:
    r"""All z with `g(z) = x`, one for each cell at most.

    A tree over the images of the cells finds those that may hold x. The least-squares latent `A^+ (x - b)` of each is
    a candidate; it counts where the network maps it to x and the partition's domain holds it. Latents that agree to
    `tolerance (1 + |z|)` on neighbouring cells are one.

    Args:
        net: a partition, or any module with S <= 3 that `girih.trace` supports.
        x: `(N, D)`.
        tolerance: `|g(z) - x|` may be up to this multiple of `1 + |x|`.

    Raises:
        LatentDimensionError: S is larger than 3.
        ShapeError, NonFiniteError: x is not a table of finite numbers with D columns.
        ParameterError: the tolerance is not positive.

    Source:
        MAS, section 4.1, Propositions 3 and 4.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([2, 8, 2], activation="relu", seed=0)
        >>> x = net(torch.tensor([[0.3, -0.2]], dtype=torch.float64)).detach()
        >>> girih.geometry.preimages(net, x).latent  # the generator folds
        tensor([[ 0.3000, -0.2000],
                [ 0.4432, -0.1232]], dtype=torch.float64)
    """
    part = as_partition(net)
    x = as_rows(x, "x", part.trace.output_dim, "the output dimension D", device=part.trace.device).detach()
    tolerance = real(tolerance, "tolerance")
    return preimages_by(Search(part), x, tolerance)


def preimages_by(search: Search, x: Tensor, tolerance: float = TOLERANCE) -> Preimages:
    """`preimages` of checked rows by a search that is there."""
    parts = [_of_rows(search, x[some], some.start, tolerance) for some in search.batches(len(x))]
    return Preimages(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def as_partition(net: nn.Module | Trace | Partition) -> Partition:
    """A partition as it is, or that of a network over the whole latent space."""
    return net if isinstance(net, Partition) else Partition(net, progress=False)


def _of_rows(search: Search, x: Tensor, first: int, tolerance: float) -> tuple[Tensor, ...]:
    shapes, part = search.images, search.images.part
    room = tolerance * (1.0 + x.norm(dim=1))
    rows, reach = shapes.rows(x), (_SLACK * room).cpu()
    close = (rows.far <= reach).nonzero()[:, 0]
    rows, reach = Rows(rows.y[close], rows.far[close]), reach[close]
    row, piece = search.within(rows, (reach.square() - rows.far.square()).clamp(min=0.0).sqrt())
    whole = shapes.rank[piece] == part.latent_dim
    t = torch.empty(len(row), part.latent_dim, dtype=torch.float64)
    t[whole] = shapes.free(rows, row[whole], piece[whole])
    t[~whole] = shapes.nearest(rows, row[~whole], piece[~whole])[0]
    latent = (shapes.origin[piece] + t).to(x.device)
    row, cell, degenerate = (column.to(x.device) for column in (close[row], shapes.cell[piece], ~whole))
    hit = misses(part.trace, latent, x, row) <= room[row]
    check = hit & ~degenerate
    hit[check] = part.locate(latent[check]).to(x.device) >= 0
    row, cell, latent, degenerate = row[hit], cell[hit], latent[hit], degenerate[hit]
    keep = _distinct(part, row, cell, latent, degenerate, tolerance)
    return row[keep] + first, cell[keep], latent[keep], degenerate[keep]


def _distinct(
    part: Partition, row: Tensor, cell: Tensor, latent: Tensor, degenerate: Tensor, tolerance: float
) -> Tensor:
    """One of each group of equal latents, that of the cell which holds it if there is one; sorted by row."""
    astray = (part.locate(latent).to(cell.device) != cell) & ~degenerate
    order = np.lexsort((cell.cpu().numpy(), astray.cpu().numpy(), row.cpu().numpy()))
    points, rows = latent.cpu().numpy()[order], row.cpu().numpy()[order]
    lines, cells = degenerate.cpu().numpy()[order], cell.cpu().numpy()[order]
    size = np.bincount(rows)
    start = np.cumsum(size) - size
    place = np.arange(len(order)) - start[rows]
    room = tolerance * (1.0 + np.abs(points).max(1, initial=0.0))
    keep = np.ones(len(order), bool)
    # later candidates of all rows at once against each earlier one that was kept
    for earlier in range(int(size.max(initial=0)) - 1):
        later = np.flatnonzero(place > earlier)
        first = start[rows[later]] + earlier
        near = np.abs(points[later] - points[first]).max(1) <= room[later]
        same = np.where(lines[later], lines[first] & (cells[later] == cells[first]), near & ~lines[first])
        keep[later[same & keep[first]]] = False
    return torch.as_tensor(order[keep], device=row.device)
