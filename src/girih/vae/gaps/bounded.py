"""Gaps of VAEs whose latents live on a grid or in a box: categories and polynomial exponential families."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, OneHotCategorical, kl_divergence

from girih.errors import LatentDimensionError
from girih.inference import DGN
from girih.vae.bpef import BPEF, CoarseBPEF, polynomials
from girih.vae.bpef.polynomials import evaluate
from girih.vae.codes import MOST_CODES, log_joint
from girih.vae.gaps.adaptive import LogDensity, box_of, integrate
from girih.vae.gaps.product import Grid, conditioned, nearest_products, negative_elbo, starts_for

if TYPE_CHECKING:
    from girih.vae.model import VAE

# Panels and nodes on each axis of the grid that descents use, by S; values come from cubature instead. A posterior that
# is narrower than the nodes lie apart, 0.002, 0.008 and 0.06, misleads the descents: its best q may then not be found.
_PANELS = {1: (256, 4), 2: (64, 4), 3: (12, 3)}
_MOST_SIMPLICES = 400_000


class Measured(NamedTuple):
    """What `gap` reports, of one family: nats per row."""

    nll: Tensor  # (N,)
    own: Tensor  # (N,) KL(q(z | x) || p(z | x)) of the encoder's q
    least: Tensor  # (N,) that of the best q found
    error: Tensor  # (N,)
    best: Distribution


def coarse_gap(vae: VAE, x: Tensor, draws: int, seed: int) -> Measured:
    """Of discrete latents, all codes gone through: nothing is approximated but the search for the best q."""
    q, prior = vae.encode(x), vae.prior()
    assert isinstance(q, Independent) and isinstance(prior, Independent)
    own, first = q.base_dist, prior.base_dist
    S = prior.event_shape[0]
    polynomial = isinstance(first, CoarseBPEF)

    def member(parameters: Tensor) -> CoarseBPEF | OneHotCategorical:
        if polynomial:
            return CoarseBPEF(parameters, len(first.levels), first.basis)
        return OneHotCategorical(logits=parameters, validate_args=False)

    if polynomial:
        values, points, statistics = first.levels, first.levels[:, None], first.statistics
        encoder = own.coefficients
        known = torch.stack((encoder, first.coefficients.expand_as(encoder)), 1)
    else:
        values = points = statistics = torch.eye(prior.event_shape[1], dtype=torch.float64)
        encoder = own.logits
        known = torch.stack((encoder, first.logits.expand_as(encoder)), 1).clamp(min=-200.0)
    C = len(values)
    if C**S > MOST_CODES:
        raise LatentDimensionError(
            f"{S} latents of {C} values each have {C**S:,} codes, and the exact posterior over them is for at most "
            f"{MOST_CODES:,}; take fewer latents or levels, or continuous=True for a CGBPEFVAE with a piecewise affine "
            "decoder"
        )
    digits = torch.cartesian_prod(*[torch.arange(C)] * S).reshape(-1, S)
    codes = values[digits]
    joint = torch.cat([part for _, part in log_joint(vae, x, codes, prior)]).mT
    grid = Grid(joint.reshape(len(x), *[C] * S), torch.zeros(C, dtype=torch.float64), points)
    log_p = grid.log_evidence()
    coefficients, _ = _nearest(grid, statistics, known, draws, seed, polynomial)
    encoded = negative_elbo(grid, own.logits, torch.arange(len(x)))[0]
    found = negative_elbo(grid, member(coefficients).logits, torch.arange(len(x)))[0]
    best = member(torch.where((found < encoded)[:, None, None], coefficients, encoder))
    least = torch.minimum(found, encoded) + log_p
    return Measured(-log_p, encoded + log_p, least, torch.zeros_like(log_p), Independent(best, 1, validate_args=False))


def continuous_gap(vae: VAE, dgn: DGN, x: Tensor, draws: int, seed: int, tolerance: float) -> Measured:
    """Of a `CGBPEFVAE` with its latents on the whole of [-1, 1]: densities with the coefficients of the coarse ones."""
    q, prior = vae.encode(x), vae.prior()
    assert isinstance(q, Independent) and isinstance(prior, Independent)
    own, first, basis = q.base_dist.coefficients, prior.base_dist.coefficients, prior.base_dist.basis
    order = first.shape[1]
    box, p = box_of(dgn), BPEF(first, basis)
    grid = _nodes(vae, x, p)
    known = torch.stack((own, first.expand_as(own)), 1)
    coefficients, _ = _nearest(grid, polynomials(grid.points[:, 0], order, basis), known, draws, seed, True)
    families = [BPEF(c, basis) for c in (own, coefficients)]

    def density(family: BPEF) -> LogDensity:
        def log_density(z: Tensor, row: Tensor) -> Tensor:
            values = evaluate(family.coefficients[row][:, None], z, basis)
            return (values - family.log_partition[row][:, None]).sum(2)

        return log_density

    every = BPEF(first.expand_as(own), basis)
    found = integrate(
        box, x, density(every), [density(f) for f in families], families[1].mean, tolerance, _MOST_SIMPLICES
    )
    kl = torch.stack([kl_divergence(f, every).sum(1) for f in families], 1)
    kl = kl - found.log_likelihood + found.log_evidence[:, None]
    error = found.evidence_error + found.likelihood_error.amax(1)
    better = kl[:, 1] < kl[:, 0]
    best = BPEF(torch.where(better[:, None, None], coefficients, own), basis)
    return Measured(-found.log_evidence, kl[:, 0], kl.amin(1), error, Independent(best, 1, validate_args=False))


def _nearest(
    grid: Grid, statistics: Tensor, known: Tensor, draws: int, seed: int, condition: bool
) -> tuple[Tensor, Tensor]:
    """The best coefficients of each row, `(N, S, M)`, and their negative ELBO on the grid, `(N,)`."""
    if condition:
        used, change = conditioned(statistics, grid.base)
        known = torch.linalg.solve(change, known[..., None])[..., 0]
    else:
        used, change = statistics, None
    starts = starts_for(grid, used, known, draws, seed)
    found, value = nearest_products(grid, used, starts)
    best = value.argmin(1)
    row = torch.arange(len(best))
    chosen = found[row, best]
    return (chosen if change is None else chosen @ change.mT), value[row, best]


def _nodes(vae: VAE, x: Tensor, p: BPEF) -> Grid:
    """log p(x, z) at the nodes of a quadrature on each axis."""
    S = len(p.coefficients)
    panels, nodes = _PANELS[S]
    t, w = np.polynomial.legendre.leggauss(nodes)
    half = 1.0 / panels
    centre = -1.0 + half * (2.0 * np.arange(panels) + 1.0)
    points = torch.as_tensor((centre[:, None] + half * t).ravel())
    base = torch.as_tensor(np.tile(half * w, panels)).log()
    digits = torch.cartesian_prod(*[torch.arange(len(points))] * S).reshape(-1, S)
    z = points[digits]
    joint = torch.cat([part for _, part in log_joint(vae, x, z, Independent(p, 1, validate_args=False))]).mT
    return Grid(joint.reshape(len(x), *[len(points)] * S), base, points[:, None])
