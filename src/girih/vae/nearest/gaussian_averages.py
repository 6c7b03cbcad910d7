r"""Averages over Gaussians and their mixtures, by which the best of them are found: of `log p(x, z)`, and of the label.

On a cell `log p(x, z) = h(z)` is a quadratic, and h is continuous across cells, so with `z = m + F u`, u standard
normal,

    d E[h] / d m = E[grad h(z)],        d E[h] / d F = E[grad h(z) u^T],

need no more than the mass and two moments of u on each cell, as the expectation itself does.

The entropy of a mixture `q = sum_k w_k q_k` with responsibilities `r_k = w_k q_k / q` is no sum over its components:

    E_q[log q] = sum_k w_k (log w_k - H(q_k)) + I,      I = sum_k w_k E_k[-log r_k],      0 <= I <= log K,

so only I, how uncertain it is which component a point came from, has to be integrated numerically. It vanishes for
components that lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.inference import DGN, Output
from girih.inference.cubature import expected_with_slopes
from girih.inference.cubature_rows import OutputRows
from girih.inference.model import Expected, reduce_complete

_ENTRIES, _NODE_ENTRIES = 2**22, 2**20
_EDGE = 8.5  # deviations of a component; beyond them lie 2e-17 of it


class Joint:
    """`log p(x_n, z)` of N rows under a `DGN` whose prior is `N(0, I)`, ready to be averaged over Gaussians.

    Args:
        dgn: the decoder as an exact density model.
        x: complete rows `(N, D)`.
        quick: whether an average over Gauss-Hermite nodes will do for outputs that are not Gaussian, to descend by, in
            place of cubature over the cells.

    Example:
        >>> import girih, torch
        >>> from girih.vae.nearest.gaussian_averages import Joint
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.1)
        >>> x, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        >>> q = torch.distributions.Normal(one, one)
        >>> value = Joint(dgn, x).expect(torch.tensor([0]), one, one[:, :, None]).value
        >>> bool((value + 1.4189385332046727 - dgn.elbo(x, q)).abs() < 1e-10)
        True
    """

    def __init__(self, dgn: DGN, x: Tensor, quick: bool = True) -> None:
        self._average: Callable[[Tensor, Tensor, Tensor], Expected]
        if dgn.output is not None:
            self._cells = 1
            self._average = partial(_by_nodes, dgn, dgn.output, x) if quick else _by_cubature(dgn, x)
            return
        model = dgn.model()
        self._cells = len(model.cells.origin)
        self._average = model.cells.region.average(model, reduce_complete(model, x))

    def expect(self, row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
        """Average under `N(mean, factor factor^T)`, `(B, S)` and `(B, S, S)`, each for the row `(B,)` named."""
        size = max(1, _ENTRIES // self._cells)
        parts = [self._average(row[i], mean[i], factor[i]) for i in torch.arange(len(row)).split(size)]
        return parts[0] if len(parts) == 1 else Expected(*(torch.cat(column) for column in zip(*parts, strict=True)))


_HERMITE = {1: 48, 2: 16, 3: 9}  # nodes a dimension


@cache
def _hermite(dim: int) -> tuple[Tensor, Tensor]:
    """Points `(Q, S)` and weights of an average over `N(0, I)`."""
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(_HERMITE[dim]))
    points = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
    weight = torch.cartesian_prod(*[weights / weights.sum()] * dim).reshape(-1, dim).prod(1)
    return points, weight


def _by_nodes(dgn: DGN, output: Output, x: Tensor, row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
    """`E_q[log p(x, z)]` of a DGN with the prior N(0, I), and the derivatives of this very sum."""
    dim = mean.shape[1]
    points, weight = (part.to(mean.device) for part in _hermite(dim))
    rows, parts = output.observe(x, dgn.noise if output.scaled else None), []
    for some in torch.arange(len(row), device=row.device).split(max(1, _NODE_ENTRIES // (len(points) * x.shape[1]))):
        z = (mean[some][:, None] + points @ factor[some].mT).detach().requires_grad_()
        with torch.enable_grad():
            eta = dgn.trace(z.flatten(0, 1)).reshape(*z.shape[:2], -1)
            of_rows = rows.take(row[some])
            value = output.log_density(of_rows.between(), eta, dgn.noise if output.scaled else None)
            value = value + of_rows.constant[:, None] - 0.5 * (z.square().sum(2) + dim * math.log(2.0 * math.pi))
            (slope,) = torch.autograd.grad(value.sum(), z)
        slope = weight[:, None] * slope
        parts.append((value.detach() @ weight, slope.sum(1), slope.mT @ points))
    return Expected(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _by_cubature(dgn: DGN, x: Tensor) -> Callable[[Tensor, Tensor, Tensor], Expected]:
    """The same by cubature over the cells: exact up to its error."""
    model = dgn.output_model()
    rows = model.output.observe(x, model.scale)

    def average(row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
        some = OutputRows(model.output, rows.take(row), model.weight, model.bias, model.scale)
        return expected_with_slopes(model.mesh, some, mean, factor)

    return average


class Rule(NamedTuple):
    """A `Rule` says how fine the quadrature is."""

    panels: int  # between -8.5 and 8.5 deviations of each component
    nodes: int  # of Gauss-Legendre on each panel
    shared: bool = True  # whether panels end at the multiples of all components


# By S: for descents from many starts, for the last one, and two for values; the difference of these is the error that
# is stated.
COARSE = {1: Rule(6, 5), 2: Rule(4, 5, False), 3: Rule(3, 4, False)}
MEDIUM = {1: Rule(10, 6), 2: Rule(4, 5), 3: Rule(3, 4)}
FINE = {1: (Rule(20, 8), Rule(24, 9)), 2: (Rule(8, 6), Rule(9, 6)), 3: (Rule(6, 4), Rule(7, 4))}


def label_entropy(log_weight: Tensor, mean: Tensor, deviation: Tensor, rule: Rule) -> Tensor:
    """I of B mixtures of K diagonal Gaussians in S dimensions, `(B,)` nats; differentiable.

    The nodes of each component are those of a tensor product, with panels that end at multiples of the deviations of
    all components, if they are shared: a narrow component inside of a wide one is not missed.

    Args:
        log_weight: `(B, K)`, normalised.
        mean: `(B, K, S)`.
        deviation: `(B, K, S)`.
        rule: the panels and the nodes.

    Example:
        >>> import torch
        >>> from girih.vae.nearest.gaussian_averages import FINE, label_entropy
        >>> log_weight, mean = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[[0.0], [0.0]]]).double()
        >>> value = label_entropy(log_weight, mean, torch.ones_like(mean), FINE[1][0])
        >>> round(value.item(), 12)  # two components that are the same: log 2
        0.69314718056
    """
    B, K, S = mean.shape
    per_row = (K + 1) * ((rule.panels + 1) * (K if rule.shared else 1) * rule.nodes) ** S
    parts = torch.arange(B).split(max(1, _ENTRIES // per_row))
    return torch.cat([_entropy(log_weight[i], mean[i], deviation[i], rule) for i in parts])


def _entropy(log_weight: Tensor, mean: Tensor, deviation: Tensor, rule: Rule) -> Tensor:
    total = log_weight.new_zeros(len(mean))
    for k in range(mean.shape[1]):
        u, weight = _nodes(mean, deviation, k, rule)  # (B, Q, S), (B, Q)
        z = mean[:, k, None] + deviation[:, k, None] * u
        v = (z[:, :, None] - mean[:, None]) / deviation[:, None]  # (B, Q, K, S)
        log_q = (log_weight - deviation.log().sum(2))[:, None] - 0.5 * v.square().sum(3)
        surprise = torch.logsumexp(log_q, 2) - log_q[:, :, k]
        total = total + log_weight[:, k].exp() * (weight * surprise).sum(1)
    return total


def _nodes(mean: Tensor, deviation: Tensor, k: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """Nodes in deviations of component k, `(B, Q, S)`, and their weights under it, `(B, Q)`; constants."""
    B, _, S = mean.shape
    with torch.no_grad():
        ends = torch.linspace(-_EDGE, _EDGE, rule.panels + 1, dtype=mean.dtype, device=mean.device)
        panels = slice(None) if rule.shared else slice(k, k + 1)
        at = mean[:, panels, :, None] + deviation[:, panels, :, None] * ends  # (B, K, S, ends)
        cuts = ((at - mean[:, k, None, :, None]) / deviation[:, k, None, :, None]).clamp(-_EDGE, _EDGE)
        cuts = cuts.movedim(1, 2).reshape(B, S, -1).sort(-1).values
        x, w = _legendre(rule.nodes)
        half = 0.5 * cuts.diff(dim=2)[..., None]
        u = (cuts[..., :-1, None] + half * (1.0 + x)).reshape(B, S, -1)
        weight = ((half * w).reshape(B, S, -1) * (-0.5 * u.square()).exp()) / math.sqrt(2.0 * math.pi)
        n = u.shape[2]
        along = [u[:, s].reshape(B, *(n if j == s else 1 for j in range(S))) for s in range(S)]
        grid = torch.stack(torch.broadcast_tensors(*along), -1)
        product = weight[:, 0]
        for s in range(1, S):
            product = product[..., None] * weight[:, s].reshape(B, *[1] * s, n)
        return grid.reshape(B, -1, S), product.reshape(B, -1)


@cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.as_tensor(x), torch.as_tensor(w)
