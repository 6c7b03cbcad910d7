r"""The product of one-dimensional exponential families nearest to a posterior that is known on a tensor grid.

With masses `m_s ~ exp(base + t c_s)` on the C points of each axis and L `log p(x, z)` at all `C^S` of them,

    KL(q || p(z | x)) = sum_s sum_i m_si (log m_si - base_i) - E_q[L] + log p(x).

Where the points are all values of discrete latents, with base 0, that is the exact divergence. Where they are the nodes
of a quadrature, with base its log weights, it is that of densities up to the error of the quadrature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.errors import LatentDimensionError
from girih.vae.latent_model import MOST_CODES, LatentModel, every_code, log_joint
from girih.vae.nearest.search import Nearest, Search, minimise

_FLOOR = 1e-12  # the smallest weight in a fit of logarithms
_ENTRIES = 2**23


class Grid(NamedTuple):
    """A posterior on a tensor grid."""

    log_joint: Tensor  # (N, C, ..., C), log p(x, z)
    base: Tensor  # (C,) log weights of the points of an axis
    points: Tensor  # (C, k) coordinates of the points, for starts; one-hot for categories

    @property
    def latent_dim(self) -> int:
        """The number of latents S."""
        return self.log_joint.ndim - 1

    def log_weighted(self) -> Tensor:
        """`log_joint` with the weights of the points."""
        total = self.log_joint
        for s in range(self.latent_dim):
            total = total + self.base.reshape(-1, *[1] * (self.latent_dim - 1 - s))
        return total

    def log_evidence(self) -> Tensor:
        """log p(x), `(N,)`."""
        return torch.logsumexp(self.log_weighted().flatten(1), 1)

    def marginals(self) -> Tensor:
        """The posterior mass of each point of each axis, `(N, S, C)`."""
        mass = torch.softmax(self.log_weighted().flatten(1), 1).reshape(self.log_joint.shape)
        axes = range(1, self.latent_dim + 1)
        parts = [mass.sum([a for a in axes if a != s]) if self.latent_dim > 1 else mass for s in axes]
        return torch.stack(parts, 1)


def negative_elbo(grid: Grid, log_mass: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """`sum_s E[log m_s - base] - E_q[L]`, `(B,)`, and its gradient in `base + t c_s`, `(B, S, C)`.

    Args:
        grid: of N rows.
        log_mass: normalised, `(B, S, C)`.
        row: `(B,)`.
    """
    S, mass = grid.latent_dim, log_mass.exp()
    joint = grid.log_joint[row]
    # -inf log-masses count as exp(-745)
    own = log_mass.clamp(min=-745.0) - grid.base
    expected = torch.stack([_contracted(joint, mass, s) for s in range(S)], 1)
    slope = own - expected
    value = (mass * own).sum((1, 2)) - (mass[:, 0] * expected[:, 0]).sum(1)
    return value, mass * (slope - (mass * slope).sum(2, keepdim=True))


def _contracted(joint: Tensor, mass: Tensor, s: int) -> Tensor:
    """The mean of L over all axes but s, `(B, C)`."""
    for other in reversed(range(mass.shape[1])):
        if other != s:
            moved = joint.movedim(other + 1, -1)
            weight = mass[:, other].reshape(len(mass), *[1] * (moved.ndim - 2), -1, 1)
            joint = (moved[..., None, :] @ weight)[..., 0, 0]
    return joint


def nearest_products(grid: Grid, statistics: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Descend from every start to coefficients that maximise the ELBO.

    Args:
        grid: of N rows.
        statistics: `t` at the points of an axis, `(C, M)`, well conditioned.
        starts: coefficients `(N, T, S, M)`.

    Returns:
        Coefficients `(N, T, S, M)`, and their negative ELBO `(N, T)`.
    """
    N, T, S, M = starts.shape
    per_row = T * grid.log_joint[0].numel()
    out = []
    for part in torch.arange(N).split(max(1, _ENTRIES // per_row)):
        some = Grid(grid.log_joint[part], grid.base, grid.points)
        row = torch.arange(len(part)).repeat_interleave(T)

        def objective(point: Tensor, which: Tensor, some: Grid = some, row: Tensor = row) -> tuple[Tensor, Tensor]:
            logits = some.base + point.reshape(-1, S, M) @ statistics.mT
            value, slope = negative_elbo(some, torch.log_softmax(logits, 2), row[which])
            return value, (slope @ statistics).reshape(len(point), -1)

        found = minimise(objective, starts[part].reshape(-1, S * M), gain=1e-12, reach=10.0)
        out.append((found.point.reshape(-1, T, S, M), found.value.reshape(-1, T)))
    coefficients, values = zip(*out, strict=True)
    return torch.cat(coefficients), torch.cat(values)


def fitted(target: Tensor, weight: Tensor, statistics: Tensor) -> Tensor:
    """Coefficients of exponents nearest to log-densities by weighted least squares: `(..., C)` to `(..., M)`."""
    columns = torch.cat((torch.ones_like(statistics[:, :1]), statistics), 1)
    weighted = columns * weight[..., None]
    ridge = 1e-9 * weight.sum(-1)[..., None, None] * torch.eye(columns.shape[1], dtype=columns.dtype)
    right = (weighted.mT @ target[..., None]) if target.ndim > 1 else weighted.mT @ target[:, None]
    result: Tensor = torch.linalg.solve(weighted.mT @ columns + ridge, right)[..., 1:, 0]
    return result


def starts_for(grid: Grid, statistics: Tensor, known: Tensor, search: Search) -> Tensor:
    """Choose where to look for the nearest product of each row, coefficients `(N, T, S, M)`.

    Those that are known, first; fits to the logarithms of the marginals of the posterior, by their own weights and
    by even ones; and peaks about the mode and about draws of the posterior, of two widths.

    Args:
        grid: of N rows.
        statistics: `(C, M)`.
        known: `(N, K, S, M)`.
        search: how many draws of the posterior, and their seed.
    """
    N, S, C = len(grid.log_joint), grid.latent_dim, len(grid.base)
    marginal = grid.marginals().clamp(min=1e-300)
    target = (marginal.log() - grid.base).clamp(min=-200.0)
    out = [known, *(fitted(target, w, statistics)[:, None] for w in (marginal.clamp(min=_FLOOR), marginal.sqrt()))]
    flat = torch.softmax(grid.log_weighted().flatten(1), 1)
    generator = torch.Generator().manual_seed(search.seed)
    index = flat.argmax(1, keepdim=True)
    if search.draws:
        index = torch.cat((index, torch.multinomial(flat, search.draws, True, generator=generator)), 1)
    digits = torch.stack([index // C ** (S - 1 - s) % C for s in range(S)], 2)  # (N, T, S)
    mean = (marginal[..., None] * grid.points).sum(2)
    variance = (marginal * (grid.points - mean[:, :, None]).square().sum(3)).sum(2)  # (N, S)
    even = grid.base.exp().expand(N, search.draws + 1, S, C)
    for scale in (0.5, 0.1):
        away = (grid.points[digits][:, :, :, None] - grid.points).square().sum(4)  # (N, T, S, C)
        out.append(fitted(-0.5 * away / (scale**2 * variance[:, None, :, None]).clamp(min=1e-6), even, statistics))
    return torch.cat(out, 1)


def conditioned(statistics: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """The same span with unit covariance under the weights of the points: statistics and the map back.

    Returns:
        `u (C, M)` and `change (M, M)` with `u c = t (change c) + constant`.
    """
    weight = torch.softmax(base, 0)
    centred = statistics - weight @ statistics
    root = torch.linalg.qr(weight.sqrt()[:, None] * centred)[1]
    change = torch.linalg.inv(root)
    return centred @ change, change


def nearest_coefficients(
    grid: Grid, statistics: Tensor, known: Tensor, search: Search, condition: bool = True
) -> tuple[Tensor, Tensor]:
    """The best coefficients of each row, `(N, S, M)`, and their negative ELBO on the grid, `(N,)`.

    Args:
        grid: of N rows.
        statistics: `(C, M)`.
        known: where to start too, `(N, K, S, M)`.
        search: how many draws of the posterior to start from, and their seed.
        condition: whether to descend in statistics of unit covariance; not where they sum to a constant.
    """
    used, change = statistics, None
    if condition:
        used, change = conditioned(statistics, grid.base)
        known = torch.linalg.solve(change, known[..., None])[..., 0]
    found, value = nearest_products(grid, used, starts_for(grid, used, known, search))
    best = value.argmin(1)
    row = torch.arange(len(best))
    chosen = found[row, best]
    return (chosen if change is None else chosen @ change.mT), value[row, best]


def nearest_on_codes(
    model: LatentModel, x: Tensor, values: Tensor, statistics: Tensor | None, own: Tensor, first: Tensor, search: Search
) -> Nearest:
    """The best q of discrete latents, all codes gone through: nothing is approximated but the search for it.

    Args:
        model: whose latents they are.
        x: `(N, D)`.
        values: that a latent takes, `(C,)` or one-hot `(C, C)`.
        statistics: of the values, `(C, M)`; `None` where the coefficients are logits of the values.
        own: the encoder's coefficients, `(N, S, M)`.
        first: those of the prior, `(S, M)`.
        search: how many draws of the posterior to start from, and their seed.

    Raises:
        LatentDimensionError: there are more than 100,000 codes.
    """
    S, C = own.shape[1], len(values)
    if C**S > MOST_CODES:
        raise LatentDimensionError(
            f"{S} latents of {C} values each have {C**S:,} codes, and the exact posterior over them is for at most "
            f"{MOST_CODES:,}; take fewer latents or levels, or continuous=True for a CGBPEFVAE with a piecewise affine "
            "decoder"
        )
    joint = torch.cat([part for _, part in log_joint(model, x, every_code(values, S), model.prior())]).mT
    points = values if values.ndim == 2 else values[:, None]
    grid = Grid(joint.reshape(len(x), *[C] * S), torch.zeros(C, dtype=torch.float64), points)
    known, row, log_p = torch.stack((own, first.expand_as(own)), 1), torch.arange(len(x)), grid.log_evidence()
    if statistics is None:
        coefficients, _ = nearest_coefficients(grid, points, known.clamp(min=-200.0), search, condition=False)
    else:
        coefficients, _ = nearest_coefficients(grid, statistics, known, search)

    def loss(of: Tensor) -> Tensor:
        return negative_elbo(grid, torch.log_softmax(of if statistics is None else of @ statistics.mT, 2), row)[0]

    encoded, found = loss(own), loss(coefficients)
    best = torch.where((found < encoded)[:, None, None], coefficients, own)
    return Nearest(-log_p, encoded + log_p, torch.minimum(found, encoded) + log_p, torch.zeros_like(log_p), (best,))
