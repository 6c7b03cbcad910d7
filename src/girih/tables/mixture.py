r"""A mixture of bent Gaussians, its exact density and what EM needs of it, for rows with holes.

    p(x) = sum_k pi_k int N(z; 0, 1) N(x; W_k phi(z), Sigma_k) dz

With the cells of `phi` each component is a sum of Gaussian integrals over intervals. A row with holes has the density
of what was observed: `Sigma_k` restricted to those columns, by one factorisation for each pattern of holes.

The statistics of EM are written as gradients (Fisher's identity), which holes do not change: with `L` the inverse of
the observed part of Sigma, padded with zeros, and e = x - W phi(z),

    U = E[L e phi^T] = d/dW,    V = E[L e e^T L - L] = 2 d/dSigma,    G = E[phi phi^T],    all summed over rows,

the expected cross products of completed rows are `E[x phi^T] = W G + Sigma U` and `E[e e^T] = N Sigma + Sigma V Sigma`,
since given z the missing part of e has mean `Sigma L e` and covariance `Sigma - Sigma L Sigma`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian import interval_moments
from girih.gaussian.prepared import compiled_form
from girih.tables.basis import Basis

_LOG_2PI = math.log(2.0 * math.pi)
_NEGLIGIBLE = 60.0  # nats below the highest bound of a row: cells that are not integrated
_LOOSE = 20.0  # nats by which that bound may be too high, before all cells are
_AT_ONCE = 1 << 21  # numbers in the largest array
_DIGITS = 62  # of a whole number, besides its sign


@dataclass(frozen=True)
class Mixture:
    """The parameters of a mixture of K bent Gaussians in D columns.

    Attributes:
        basis: the functions phi, shared by the components.
        weights: pi `(K,)`.
        maps: W `(K, D, F)`.
        noise: Sigma `(K, D, D)`.
        own: `(K, D)`, the variances of low-rank noise beside its factor.
        tables: for each categorical column, the probabilities of its categories in each component, `(K, L)`.
    """

    basis: Basis
    weights: Tensor
    maps: Tensor
    noise: Tensor
    tables: tuple[Tensor, ...] = ()
    own: Tensor | None = None

    @property
    def components(self) -> int:
        """K."""
        return len(self.weights)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The maps of the cells: `A (K, R, D)` and `b (K, R, D)`, `g(z) = A z + b`."""
        A = torch.einsum("kdf,rf->krd", self.maps, self.basis.slope)
        return A, torch.einsum("kdf,rf->krd", self.maps, self.basis.constant)


@dataclass(frozen=True)
class Rows:
    """Rows sorted by which of their entries are missing.

    Attributes:
        x: `(N, D)`, with 0 where an entry is missing.
        codes: `(N, C)` categories, -1 where missing.
        weight: `(N,)`.
        pattern: `(N,)`, which of the masks a row has, ascending.
        masks: `(P, D)`, 1 where observed.
        order: `(N,)`, the places of these rows among those given.
    """

    x: Tensor
    codes: Tensor
    weight: Tensor
    pattern: Tensor
    masks: Tensor
    order: Tensor

    @staticmethod
    def of(x: Tensor, codes: Tensor | None = None, weight: Tensor | None = None) -> Rows:
        """Rows `(N, D)` with NaN where an entry is missing, their categories and their weights."""
        if codes is None:
            codes = x.new_empty((len(x), 0), dtype=torch.long)
        weight = x.new_ones(len(x)) if weight is None else weight
        seen = ~x.isnan()
        if x.shape[1] and len(x):
            masks, pattern = distinct_masks(seen)
        else:
            masks, pattern = seen[:1], torch.zeros(len(x), dtype=torch.long)
        order = pattern.argsort(stable=True)
        filled = x.nan_to_num(0.0)
        return Rows(filled[order], codes[order], weight[order], pattern[order], masks.to(x.dtype), order)

    def __len__(self) -> int:
        return len(self.x)

    def unsorted(self, values: Tensor) -> Tensor:
        """Values of these rows `(N, ...)` in the order in which the rows were given."""
        out = torch.empty_like(values)
        out[self.order] = values
        return out

    def parts(self, size: int) -> Iterator[Rows]:
        """Pieces of so many rows, with the masks of their own."""
        if len(self) <= size:
            yield self
            return
        for start in range(0, len(self), size):
            here = slice(start, start + size)
            first, last = int(self.pattern[start]), int(self.pattern[here][-1])
            yield Rows(
                self.x[here],
                self.codes[here],
                self.weight[here],
                self.pattern[here] - first,
                self.masks[first : last + 1],
                self.order[here],
            )


def distinct_masks(seen: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of booleans `(N, D)`, ascending, `(P, D)`, and which of them each row is, `(N,)`.

    As digits of a whole number, rows are sorted ten times as fast.

    Example:
        >>> import torch
        >>> from girih.tables.mixture import distinct_masks
        >>> distinct_masks(torch.tensor([[True, False], [False, True], [True, False]]))
        (tensor([[False,  True],
                [ True, False]]), tensor([1, 0, 1]))
    """
    D = seen.shape[1]
    if D > _DIGITS:
        masks, which = seen.unique(dim=0, return_inverse=True)
        return masks, which
    digits = 2 ** torch.arange(D - 1, -1, -1)
    keys, which = (seen * digits).sum(1).unique(return_inverse=True)
    return (keys[:, None] & digits) != 0, which


class Observed(NamedTuple):
    """Covariances `(K, D, D)` as P patterns of holes see them; zeros stand where an entry is missing."""

    whiten: Tensor  # V (K, P, D, D), L = V^T V
    log_det: Tensor  # (K, P)

    @staticmethod
    def of(noise: Tensor, masks: Tensor) -> Observed:
        """The inverse roots of the observed blocks."""
        both = masks[:, :, None] * masks[:, None, :]
        blocks = noise[:, None] * both + torch.diag_embed(1.0 - masks)
        factor = torch.linalg.cholesky(blocks)
        eye = torch.eye(noise.shape[-1], dtype=noise.dtype).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        return Observed(inverse * both, 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))


class Cells(NamedTuple):
    """What is known of each component and cell, given each of B rows: `(K, B, R)`."""

    log_p: Tensor  # log p(x, cell | component), -inf where it was proved negligible
    mean: Tensor  # E[z | x, cell]
    variance: Tensor  # Var[z | x, cell]


class Gaussians(NamedTuple):
    """The latent given each of B rows before it is held to a cell, `N(mean, 1 / precision)`: `(K, B, R)`."""

    log_p: Tensor  # log p(x | component) as if the map of the cell held everywhere
    mean: Tensor
    precision: Tensor


def gaussians_of(mixture: Mixture, rows: Rows, observed: Observed) -> Gaussians:
    r"""The Gaussians that the affine maps of the cells have, each extended to all z.

    With V the inverse root of the noise, `a = V A`, `e = V (x - b)`, precision `t = 1 + |a|^2` and mean `m = a.e / t`,

        log p = -(n log 2pi + log|Sigma| + log t + |e - a m|^2 + m^2) / 2

    Without a latent a = 0, t = 1 and m = 0.
    """
    V = observed.whiten
    size = (rows.masks.sum(-1) * _LOG_2PI + observed.log_det)[:, rows.pattern]  # (K, B)
    if mixture.basis.size == 1:  # no latent
        shift = torch.einsum("kpij,krj->kpri", V, mixture.maps.mT)[:, :, 0]  # (K, P, D)
        e = _by_pattern(V, rows) - (shift if len(rows.masks) == 1 else shift[:, rows.pattern])
        log_p = -0.5 * (size + e.square().sum(-1))[..., None]
        return Gaussians(log_p, torch.zeros_like(log_p), torch.ones_like(log_p))
    A, b = mixture.affine()
    along = torch.einsum("kpij,krj->kpri", V, A)  # (K, P, R, D)
    shift = torch.einsum("kpij,krj->kpri", V, b)
    t = 1.0 + along.square().sum(-1)  # (K, P, R)
    p = rows.pattern
    white = _by_pattern(V, rows)
    if len(rows.masks) > 1:
        along, shift, t = along[:, p], shift[:, p], t[:, p]
    e = white[:, :, None] - shift
    mean = (e * along).sum(-1) / t  # (K, B, R)
    rest = torch.addcmul(e, along, mean[..., None], value=-1.0).square().sum(-1) + mean.square()
    return Gaussians(-0.5 * (size[..., None] + t.log() + rest), mean, t.expand_as(mean))


def cells_of(
    mixture: Mixture, rows: Rows, observed: Observed, everything: bool = False, gaussians: Gaussians | None = None
) -> Cells:
    r"""Evidence and posterior moments of every cell, for every row.

    With the Gaussians of `gaussians_of`, `log p(x, cell) = log p + log P(cell; mean, 1 / precision)`. A cell is left
    out where `-d^2 / 2 >= log P`, d the distance from the mean to the cell in deviations, bounds it far below the best.
    """
    p = rows.pattern
    if gaussians is None:
        if mixture.basis.kinks and (fast := _fast()) is not None:
            return _compiled(fast, mixture, rows, observed, everything)
        gaussians = gaussians_of(mixture, rows, observed)
    constant, mean, t = gaussians
    if mixture.basis.kinks == 0:
        return Cells(constant, mean, 1.0 / t)
    root = t.sqrt()
    lower = (mixture.basis.edges[:-1] - mean) * root
    upper = (mixture.basis.edges[1:] - mean) * root
    off = lower.clamp(min=0.0) + (-upper).clamp(min=0.0)
    bound = constant - 0.5 * off.square()
    top = bound.amax((0, 2)) if not everything else bound.new_full((bound.shape[1],), -torch.inf)
    kept = bound > (top - _NEGLIGIBLE)[:, None]
    found = interval_moments(lower[kept], upper[kept])
    log_p = torch.full_like(constant, -torch.inf)
    log_p[kept] = constant[kept] + found.log_mass
    root = root[kept]
    centre, variance = torch.zeros_like(mean), torch.zeros_like(mean)
    centre[kept] = mean[kept] + (found.anchor + found.mean) / root
    variance[kept] = found.variance / root.square()
    if not everything and bool((best := log_p.amax((0, 2)) < top - _LOOSE).any()):
        some = best.nonzero()[:, 0]
        part = replace(rows, x=rows.x[some], codes=rows.codes[some], weight=rows.weight[some], pattern=p[some])
        for total, exact in zip((log_p, centre, variance), cells_of(mixture, part, observed, True), strict=True):
            total[:, some] = exact
    return Cells(log_p, centre, variance)


def _compiled(fast: ModuleType, mixture: Mixture, rows: Rows, observed: Observed, everything: bool) -> Cells:
    """`cells_of` by compiled code."""
    A, b = mixture.affine()
    V = observed.whiten
    along, shift = (torch.einsum("kpij,krj->kpir", V, part).contiguous() for part in (A, b))
    size = rows.masks.sum(-1) * _LOG_2PI + observed.log_det
    lines = along, shift, 1.0 + along.square().sum(2), size
    out = tuple(along.new_empty(len(V), len(rows), A.shape[1]) for _ in range(3))
    margins = (math.inf if everything else _NEGLIGIBLE, _LOOSE)
    fast.cells(
        _by_pattern(V, rows).numpy(),
        tuple(part.numpy() for part in lines),
        rows.pattern.numpy(),
        mixture.basis.edges.numpy(),
        margins,
        tuple(part.numpy() for part in out),
    )
    return Cells(*out)


def _fast() -> ModuleType | None:
    """The module of compiled code, where it can be had."""
    return compiled_form("girih.tables.kernels")


def _by_pattern(matrices: Tensor, rows: Rows) -> Tensor:
    """The rows by matrices `(K, P, D, D)`, each by those of its pattern, `(K, B, D)`."""
    if len(rows.masks) == 1:
        return rows.x @ matrices[:, 0].mT
    if (fast := _fast()) is None:
        return torch.einsum("kbij,bj->kbi", matrices[:, rows.pattern], rows.x)
    out = matrices.new_empty(len(matrices), *rows.x.shape)
    fast.products(matrices.numpy(), rows.pattern.numpy(), rows.x.numpy(), out.numpy())
    return out


def _outer_sums(y: Tensor, phi: Tensor, rows: Rows) -> Tensor:
    """The sums of `y phi^T` over the rows of each pattern, `(K, P, D, F)`, for `y (K, B, D)` and `phi (K, B, F)`."""
    out = y.new_zeros((len(y), len(rows.masks), y.shape[2], phi.shape[2]))
    if (fast := _fast()) is not None:
        fast.outer_sums(y.numpy(), phi.numpy(), rows.pattern.numpy(), out.numpy())
        return out
    for total, one, other in zip(out, y, phi, strict=True):
        total.index_add_(0, rows.pattern, one[:, :, None] * other[:, None, :])
    return out


def log_prior(mixture: Mixture, codes: Tensor) -> Tensor:
    """`log pi_k + log p(categories | component k)` of rows, `(K, B)`; missing categories count nothing."""
    out = mixture.weights.log()[:, None].repeat(1, len(codes))
    for table, code in zip(mixture.tables, codes.mT, strict=True):
        out += torch.nn.functional.pad(table.log(), (0, 1))[:, code]  # -1, a missing one, finds the last: 0
    return out


def _size(mixture: Mixture, rows: Rows) -> int:
    """How many rows to take at once."""
    D = rows.x.shape[1]
    patterns = len(rows.masks) / max(len(rows), 1)
    each = mixture.components * (len(mixture.basis.edges) * max(D, 8) + 3 * D * D * (patterns > 0.02))
    return max(32, int(_AT_ONCE / each))


class Statistics(NamedTuple):
    """Sums over rows, weighted by responsibility; see the top of this file."""

    log_likelihood: Tensor  # (), weighted
    counts: Tensor  # (K,)
    U: Tensor  # (K, D, F)
    V: Tensor  # (K, D, D)
    G: Tensor  # (K, F, F)
    tables: tuple[Tensor, ...]  # (K, L) each


def statistics(mixture: Mixture, rows: Rows) -> Statistics:
    """The E-step."""
    total: Statistics | None = None
    for part in rows.parts(_size(mixture, rows)):
        one = _statistics(mixture, part)
        total = one if total is None else _added(total, one)
    return total if total is not None else _statistics(mixture, rows)


def _added(a: Statistics, b: Statistics) -> Statistics:
    tables = tuple(p + q for p, q in zip(a.tables, b.tables, strict=True))
    first = a.log_likelihood + b.log_likelihood
    return Statistics(first, a.counts + b.counts, a.U + b.U, a.V + b.V, a.G + b.G, tables)


def _statistics(mixture: Mixture, rows: Rows) -> Statistics:
    observed = Observed.of(mixture.noise, rows.masks)
    cells = cells_of(mixture, rows, observed)
    prior = log_prior(mixture, rows.codes)
    joint = cells.log_p + prior[..., None]  # (K, B, R)
    log_p = joint.logsumexp((0, 2))
    e0 = (joint - log_p[:, None]).exp() * rows.weight[:, None]
    share = e0.sum(-1)  # (K, B)
    K, P = mixture.components, len(rows.masks)
    F = mixture.basis.size
    if F == 1:  # no latent
        moments, phi = [e0], e0
    else:
        moments = [e0, e0 * cells.mean, e0 * (cells.variance + cells.mean.square())]
        phi = e0 @ mixture.basis.constant + moments[1] @ mixture.basis.slope  # (K, B, F)
    if P == 1:
        sums = [e.sum(1, keepdim=True) for e in moments]  # (K, 1, R)
    else:
        sums = [e.new_zeros((K, P, e.shape[-1])).index_add_(1, rows.pattern, e) for e in moments]
    G = sums[0] if F == 1 else torch.cat(sums, -1) @ mixture.basis.products
    G = G.unflatten(-1, (F, F))  # (K, P, F, F)
    L = observed.whiten.mT @ observed.whiten  # (K, P, D, D)
    W = mixture.maps
    LW = L @ W[:, None]  # (K, P, D, F)
    LWG = LW @ G
    count = sums[0].sum(-1)  # (K, P)
    if P == 1:
        moment = L[:, 0] @ (rows.x.mT @ phi)  # sum of y phi^T, y = L x: (K, D, F)
        second = L[:, 0] @ (rows.x.mT @ (share[..., None] * rows.x)) @ L[:, 0]
        cross = moment @ LW[:, 0].mT
    else:
        y = _by_pattern(L, rows)
        if len(rows) < P * 4:
            moment = y.mT @ phi
            cross = y.mT @ (LW[:, rows.pattern] @ phi[..., None])[..., 0]
        else:
            each = _outer_sums(y, phi, rows)
            moment = each.sum(1)
            cross = (each @ LW.mT).sum(1)
        second = y.mT @ (share[..., None] * y)
    U = moment - LWG.sum(1)
    V = second - cross - cross.mT + (LWG @ LW.mT).sum(1) - (count[..., None, None] * L).sum(1)
    tables = tuple(
        share.new_zeros((K, table.shape[1])).index_add_(1, code.clamp(min=0), share * (code >= 0))
        for table, code in zip(mixture.tables, rows.codes.mT, strict=True)
    )
    return Statistics((log_p * rows.weight).sum(), share.sum(1), U, V, G.sum(1), tables)


def log_prob(mixture: Mixture, rows: Rows, by_component: bool = False) -> Tensor:
    """`log p(x)` of rows, `(N,)` in the order in which they were given; or `log pi_k p_k(x)`, `(N, K)`."""
    out = []
    for part in rows.parts(_size(mixture, rows)):
        cells = cells_of(mixture, part, Observed.of(mixture.noise, part.masks))
        each = cells.log_p.logsumexp(-1) + log_prior(mixture, part.codes)
        out.append(each.mT if by_component else each.logsumexp(0))
    return rows.unsorted(torch.cat(out))


def posterior_of(mixture: Mixture, rows: Rows) -> tuple[Tensor, Tensor]:
    """`E[z | x]` and `Var[z | x]` of rows, `(N,)` each in the order in which they were given, over all components."""
    means, variances = [], []
    for part in rows.parts(_size(mixture, rows)):
        cells = cells_of(mixture, part, Observed.of(mixture.noise, part.masks))
        prior = log_prior(mixture, part.codes)
        share = torch.softmax((cells.log_p + prior[..., None]).permute(1, 0, 2).flatten(1), 1)  # (B, K R)
        mean = cells.mean.permute(1, 0, 2).flatten(1)
        centre = (share * mean).sum(1)
        apart = cells.variance.permute(1, 0, 2).flatten(1) + (mean - centre[:, None]).square()
        means.append(centre)
        variances.append((share * apart).sum(1))
    return rows.unsorted(torch.cat(means)), rows.unsorted(torch.cat(variances))
