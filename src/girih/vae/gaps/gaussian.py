"""The Gaussian nearest to an exact posterior: many descents for each row, on expectations that are exact."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.inference import DGN
from girih.inference.posterior import Posterior, gaussian_entropy
from girih.vae.gaps.expected import Joint
from girih.vae.gaps.minimise import minimise


class Gaussians(NamedTuple):
    """T Gaussians for each of N rows."""

    mean: Tensor  # (N, T, S)
    factor: Tensor  # (N, T, S, S), lower triangular

    @property
    def deviation(self) -> Tensor:
        """Of each coordinate, for factors that are diagonal, `(N, T, S)`."""
        return self.factor.diagonal(dim1=2, dim2=3)

    def pick(self, which: Tensor) -> Gaussians:
        """Some of those of each row, `which` `(N, T')`."""
        row = torch.arange(len(which), device=which.device)[:, None]
        return Gaussians(self.mean[row, which], self.factor[row, which])


def starts_for(dgn: DGN, posterior: Posterior, mean: Tensor, deviation: Tensor, draws: int, seed: int) -> Gaussians:
    """Where to look for the nearest Gaussian of each row.

    The encoder's, which comes first; the prior; the one with the moments of the posterior; and about the mode and about
    draws of the posterior the Gaussian of the affine map there: a cell that holds much of the posterior is drawn often.

    Args:
        dgn: the exact density model.
        posterior: its posteriors of N rows.
        mean: the encoder's, `(N, S)`.
        deviation: the encoder's, `(N, S)`.
        draws: how many of them.
        seed: makes them reproducible.
    """
    count, S = mean.shape
    moments = posterior.variance.clamp(min=1e-12).sqrt()
    points = torch.cat((posterior.mode[:, None], posterior.sample((draws,), seed=seed).movedim(0, 1)), 1)
    slope, _ = dgn.trace.affine(points.reshape(-1, S))
    precision = 1.0 + (slope.square().sum(1) / dgn.noise).reshape(count, draws + 1, S)
    means = torch.cat((mean[:, None], torch.zeros_like(mean)[:, None], posterior.mean[:, None], points), 1)
    deviations = torch.cat(
        (deviation[:, None], torch.ones_like(deviation)[:, None], moments[:, None], precision.rsqrt()), 1
    )
    return Gaussians(means.detach(), torch.diag_embed(deviations).detach())


def nearest_gaussians(joint: Joint, starts: Gaussians, full: bool = False) -> tuple[Gaussians, Tensor]:
    r"""Descend from every start to a Gaussian that maximises the exact ELBO.

        -ELBO(m, F) = -H(N(m, F F^T)) - E[log p(x, z)],      m = m_0 + F_0 a,  F = F_0 L

    Args:
        joint: `log p(x, z)` of the rows.
        starts: `(N, T)` Gaussians.
        full: any covariance; otherwise the factors stay diagonal, as those of the starts must be then.

    Returns:
        The Gaussians, and their negative ELBO `(N, T)` in nats.

    Source:
        EM-DGN, eq. 3; the approximation gap of Cremer et al., Inference suboptimality in VAEs (2018).
    """
    N, T, S = starts.mean.shape
    mean, factor = starts.mean.reshape(-1, S), starts.factor.reshape(-1, S, S)
    row = torch.arange(N, device=mean.device).repeat_interleave(T)
    below = torch.tril_indices(S, S, -1, device=mean.device) if full else torch.empty(2, 0, dtype=torch.long)

    def unpack(point: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, r, rest = point[:, :S], point[:, S : 2 * S], point[:, 2 * S :]
        L = torch.diag_embed(r.exp())
        L[:, below[0], below[1]] = rest
        F0 = factor[which]
        return mean[which] + (F0 @ a[:, :, None])[:, :, 0], F0 @ L, L

    def negative_elbo(point: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        m, F, L = unpack(point, which)
        e = joint.expect(row[which], m, F)
        back = factor[which].mT
        by_L = back @ e.by_factor
        gradient = torch.cat(
            (
                -(back @ e.by_mean[:, :, None])[:, :, 0],
                -by_L.diagonal(dim1=1, dim2=2) * L.diagonal(dim1=1, dim2=2) - 1.0,
                -by_L[:, below[0], below[1]],
            ),
            1,
        )
        return -gaussian_entropy(F) - e.value, gradient

    start = mean.new_zeros(N * T, 2 * S + below.shape[1])
    found = minimise(negative_elbo, start)
    m, F, _ = unpack(found.point, torch.arange(N * T, device=mean.device))
    return Gaussians(m.reshape(N, T, S), F.reshape(N, T, S, S)), found.value.reshape(N, T)
