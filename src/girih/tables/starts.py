r"""Where EM of a mixture of bent Gaussians starts.

A mixture of plain Gaussians starts from k-means. Bent ones start from a mixture of plain ones with *exactly* its
density: from `Sigma = Q diag(l) Q^T` the share alpha of the leading direction becomes the latent map,
`sqrt(alpha l_1) q_1`, and the rest stays noise. A single curve starts from an ordering of the rows as well
(`girih.em.orderings`).
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from girih.tables.basis import Basis
from girih.tables.fitting import HELD, Prior, fit, shares_of, with_noise
from girih.tables.mixture import Mixture, Observed, Rows

_SHARE = 0.8  # alpha
_ONE = 60  # iterations of a single Gaussian, which converges slowly where rows have holes


def gaussian(rows: Rows, prior: Prior, levels: tuple[int, ...]) -> Mixture:
    """One Gaussian, and the frequencies of the categories."""
    D = rows.x.shape[1]
    eye = torch.eye(D, dtype=rows.x.dtype)
    tables = tuple(eye.new_full((1, size), 1.0 / size) for size in levels)
    start = Mixture(Basis.plain(), eye.new_ones(1), eye.new_zeros(1, D, 1), eye[None], tables)
    return fit(start, rows, prior, _ONE, 1e-5)[0]


def completed(rows: Rows, one: Mixture) -> Tensor:
    """Rows with their missing numbers replaced by conditional means under one Gaussian, `(N, D)`."""
    mean, V = one.maps[0, :, 0], Observed.of(one.noise, rows.masks).whiten[0]
    seen = rows.masks[rows.pattern]
    white = torch.einsum("bij,bj->bi", V[rows.pattern], rows.x - mean * seen)
    guess = mean + torch.einsum("bji,bj->bi", V[rows.pattern], white) @ one.noise[0]
    return torch.where(seen > 0, rows.x, guess)


def clustered(x: Tensor, rows: Rows, components: int, prior: Prior, levels: tuple[int, ...], seed: int) -> Mixture:
    """Plain Gaussians on the clusters of k-means of completed rows `x` and of their categories as 0 and 1."""
    flags = _flags(rows.codes, levels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        means = KMeans(min(components, len(x)), n_init=1, random_state=seed).fit(
            torch.cat((x, *flags), 1).numpy(), sample_weight=rows.weight.numpy()
        )
    shares = torch.nn.functional.one_hot(torch.as_tensor(means.labels_).long(), components).to(x.dtype)
    return _regressed(x, shares, Basis.plain(), x.new_ones((len(x), 1)), rows, prior, flags)


def bent(mixture: Mixture, basis: Basis) -> Mixture:
    """A mixture of plain Gaussians as one of lines, with the same density; its kinks are 0."""
    values, vectors = torch.linalg.eigh(mixture.noise)
    along = (_SHARE * values[:, -1]).sqrt()[:, None] * vectors[:, :, -1]  # (K, D)
    K, D, _ = mixture.maps.shape
    maps = torch.cat((mixture.maps, along[:, :, None], mixture.maps.new_zeros(K, D, basis.size - 2)), 2)
    noise = mixture.noise - along[:, :, None] * along[:, None, :]
    return replace(mixture, basis=basis, maps=maps, noise=noise, own=None)


def beside(mixture: Mixture, number: int) -> Mixture:
    """One curve as several side by side along the leading direction of its noise, of the same mean and variance."""
    values, vectors = torch.linalg.eigh(mixture.noise[0])
    levels = (torch.arange(number, dtype=values.dtype) + 0.5) / number
    steps = (values[-1].sqrt() * torch.special.ndtri(levels))[:, None] * vectors[:, -1]  # (K, D)
    maps = mixture.maps.repeat(number, 1, 1)
    maps[:, :, 0] += steps
    noise = (mixture.noise[0] - steps.mT @ steps / number).expand(number, -1, -1)
    tables = tuple(table.repeat(number, 1) for table in mixture.tables)
    weights = mixture.weights.repeat(number) / number
    return replace(mixture, weights=weights, maps=maps, noise=noise, tables=tables, own=None)


def curve(x: Tensor, z: Tensor, basis: Basis, rows: Rows, prior: Prior, levels: tuple[int, ...]) -> Mixture:
    """One curve through completed rows, by ridge regression on latents `z (N,)`."""
    return _regressed(x, x.new_ones((len(x), 1)), basis, basis.values(z), rows, prior, _flags(rows.codes, levels))


def _flags(codes: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
    """Categories as 0 and 1, `(N, L)` for each column; zeros where missing."""
    hot = [torch.nn.functional.one_hot(code.clamp(min=0), size) for code, size in zip(codes.mT, levels, strict=True)]
    return [one.double() * (code >= 0)[:, None] for one, code in zip(hot, codes.mT, strict=True)]


def _regressed(
    x: Tensor, shares: Tensor, basis: Basis, phi: Tensor, rows: Rows, prior: Prior, flags: list[Tensor]
) -> Mixture:
    """The M-step from completed rows with known `phi (N, F)` and shares `(N, K)` in the components."""
    r = (shares * rows.weight[:, None]).mT  # (K, N)
    weighted = r[:, :, None] * phi
    ridge = torch.diag(basis.kinky) * prior.ridge + HELD * torch.eye(basis.size, dtype=x.dtype)
    maps = torch.linalg.solve(weighted.mT @ phi + ridge, weighted.mT @ x).mT
    e = x - phi @ maps.mT
    counts = r.sum(1)
    tables = tuple(shares_of(r @ flag) for flag in flags)
    start = Mixture(basis, shares_of(counts), maps, torch.eye(x.shape[1], dtype=x.dtype).expand(len(r), -1, -1), tables)
    return with_noise(start, (r[:, :, None] * e).mT @ e, counts, prior)
