r"""Orderings of the rows along curves that may run through them: where the fit of a curve starts.

A generator of one latent is a curve, and EM from random parameters often finds one that doubles back on itself. An
ordering gives each row a place on the curve: its rank along the first principal component, along the Fiedler vector of
a graph of nearest neighbours, or by the angle of the first two Laplacian eigenvectors, cut where the gap is largest
(for closed curves). The latent of a row is the normal score of its rank, `z = Phi^-1((rank + 1/2) / N)`, so that the
latents have the distribution of the prior, and what is left to do is a regression of x on the features of z.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from sklearn.manifold import spectral_embedding
from sklearn.neighbors import kneighbors_graph
from torch import Tensor

_NEIGHBOURS = 10
# Distinct rows that are ordered at most: the eigenvectors of the graph of more take longer than the fit.
_MOST = 1000
# Rows that are sorted to find the distinct ones at most.
_SORTED = 20_000
# Passes that complete rows with holes, and the components that they are completed by.
_PASSES, _COMPONENTS = 6, 3


@dataclass(frozen=True)
class Ordered:
    """Distinct rows without holes, and their place along a curve.

    Attributes:
        x: `(n, D)`.
        weight: `(n,)`; of rows that are equal the sum.
        z: normal scores of their ranks, `(n,)`.
    """

    x: Tensor
    weight: Tensor
    z: Tensor


def ordered_rows(x: Tensor, weight: Tensor) -> list[Ordered]:
    """The orderings of rows `(N, D)` with holes and weights `(N,)`, of 1,000 distinct rows at most.

    Equal rows are one row with the sum of their weights, and distinct rows are sorted first, so that neither the order
    of the rows nor repeating one instead of weighing it changes anything.
    Of more than 20,000 rows only so many, at even distances, are looked at.
    """
    kept = _spread((weight > 0).nonzero()[:, 0], _SORTED)
    # a missing entry equals itself only as a number
    rows, which = torch.unique(torch.nan_to_num(x[kept], nan=torch.inf), dim=0, return_inverse=True)
    total = weight.new_zeros(len(rows)).index_add_(0, which, weight[kept])
    rows, total = _spread(rows, _MOST), _spread(total, _MOST)
    filled = _completed(rows, total)
    return [Ordered(filled, total, z) for z in orderings(filled, total)]


def _spread(rows: Tensor, most: int) -> Tensor:
    """Rows at even distances, so many at most."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most, dtype=torch.float64, device=rows.device).round().long()]


def orderings(x: Tensor, weight: Tensor | None = None) -> list[Tensor]:
    """Normal scores `(N,)` of the ranks of complete rows `(N, D)` along curves that may run through them.

    The rank of a row with a weight is the weight of the rows before it, and half its own. The curves are the first
    principal component and, of more than 20 rows, the Fiedler vector and the circle of the first two Laplacian
    eigenvectors, in this order.

    Example:
        >>> import torch
        >>> from girih.em.orderings import orderings
        >>> [z] = orderings(torch.tensor([[0.0], [5.0], [1.0]]).double())
        >>> (z * z.sign()[1]).round(decimals=3).tolist()
        [-0.967, 0.967, 0.0]
    """
    weight = x.new_ones(len(x)) if weight is None else weight
    mean = (weight @ x) / weight.sum()
    root = weight.sqrt()[:, None]
    along = torch.linalg.svd(root * (x - mean), full_matrices=False)[2][0]
    along = along * along[along.abs().argmax()].sign()  # a decomposition may choose either
    places = [(x - mean) @ along]
    if len(x) > 2 * _NEIGHBOURS:
        graph = kneighbors_graph(x.cpu().numpy(), _NEIGHBOURS, include_self=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a graph in several pieces still gives an order
            vectors = spectral_embedding(0.5 * (graph + graph.T), n_components=3, drop_first=True, random_state=0)
        fiedler, second, _ = torch.as_tensor(vectors).to(x).mT
        places += [fiedler, _around(fiedler, second)]
    return [_normal_scores(place, weight) for place in places]


def _around(first: Tensor, second: Tensor) -> Tensor:
    """The angle of points in a plane about their mean, counted from behind the largest gap."""
    angle = torch.atan2(second - second.mean(), first - first.mean())
    sorted_angles = angle.sort().values
    gaps = sorted_angles.roll(-1) - sorted_angles
    gaps[-1] += 2.0 * math.pi
    after = sorted_angles.roll(-1)[gaps.argmax()]
    return (angle - after).remainder(2.0 * math.pi)


def _normal_scores(place: Tensor, weight: Tensor) -> Tensor:
    order = place.argsort(stable=True)
    sorted_weight = weight[order]
    level = torch.empty_like(weight)
    level[order] = (sorted_weight.cumsum(0) - 0.5 * sorted_weight) / weight.sum()
    scores: Tensor = torch.special.ndtri(level)
    return scores


def _completed(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows whose infinite entries are replaced: by the mean, then by the leading principal components, again and again.

    It has only to be good enough to order them.
    """
    seen = torch.isfinite(rows)
    share = weight[:, None] * seen
    mean = (share * torch.where(seen, rows, 0.0)).sum(0) / share.sum(0).clamp(min=torch.finfo(rows.dtype).tiny)
    filled = torch.where(seen, rows, mean)
    if bool(seen.all()):
        return filled
    for _ in range(_PASSES):
        centre = (weight @ filled) / weight.sum()
        basis = torch.linalg.svd(weight.sqrt()[:, None] * (filled - centre), full_matrices=False)[2]
        basis = basis[: max(1, min(_COMPONENTS, len(basis) - 1))]
        filled = torch.where(seen, rows, centre + (filled - centre) @ basis.mT @ basis)
    return filled
