r"""Where EM of a mixture of bent Gaussians starts.

A mixture of plain Gaussians starts from k-means. Bent ones start from a mixture of plain ones with *exactly* its
density: from `Sigma = Q diag(l) Q^T` the share alpha of the leading direction becomes the latent map,
`sqrt(alpha l_1) q_1`, and the rest stays noise. A single curve starts from an *ordering* of the rows as well: their
ranks along the first principal component, along the Fiedler vector of a graph of nearest neighbours, or around the
circle of its next two Laplacian eigenvectors, cut where the gap is largest (for closed curves).
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.manifold import spectral_embedding
from sklearn.neighbors import kneighbors_graph
from torch import Tensor

from girih.tables.basis import Basis
from girih.tables.fitting import Prior, fit, restricted
from girih.tables.mixture import Mixture, Rows

_SHARE = 0.8  # alpha


def gaussian(rows: Rows, prior: Prior, levels: tuple[int, ...] = ()) -> Mixture:
    """One Gaussian."""
    D = rows.x.shape[1]
    eye = torch.eye(D, dtype=rows.x.dtype)
    tables = tuple(eye.new_full((1, size), 1.0 / size) for size in levels)
    start = Mixture(Basis.plain(), eye.new_ones(1), eye.new_zeros(1, D, 1), eye[None], tables)
    complete = len(rows.masks) == 1 and bool(rows.masks.all())
    return fit(start, rows, prior, 2 if complete and prior.kind != "low_rank" else 60, 1e-5)[0]


def filled(rows: Rows, one: Mixture) -> Tensor:
    """Rows completed by their conditional means under one Gaussian, `(N, D)`."""
    Sigma, mean = one.noise[0], one.maps[0, :, 0]
    both = rows.masks[:, :, None] * rows.masks[:, None, :]
    L = torch.linalg.inv(Sigma * both + torch.diag_embed(1.0 - rows.masks)) * both
    e = torch.einsum("bij,bj->bi", L[rows.pattern], rows.x - mean * rows.masks[rows.pattern])
    guess = mean + e @ Sigma
    seen = rows.masks[rows.pattern] > 0
    return torch.where(seen, rows.x, guess)


def from_shares(
    x: Tensor, shares: Tensor, rows: Rows, prior: Prior, basis: Basis, phi: Tensor | None = None, levels=()
) -> Mixture:
    """The mixture that one M-step gives from completed rows and their shares `(N, K)` in the components."""
    K, D = shares.shape[1], x.shape[1]
    w = shares * rows.weight[:, None]
    phi = x.new_ones((len(x), 1)) if phi is None else phi
    maps = []
    noise = []
    for k in range(K):
        weighted = phi * w[:, k, None]
        P = torch.diag(basis.kinky) * prior.ridge + 1e-9 * torch.eye(basis.size, dtype=x.dtype)
        W = torch.linalg.solve(weighted.mT @ phi + P, weighted.mT @ x).mT
        e = x - phi @ W.mT
        maps.append(W)
        bent = W * basis.kinky
        noise.append((e * w[:, k, None]).mT @ e + prior.ridge * bent @ bent.mT)
    scatter, count = torch.stack(noise), w.sum(0)
    if prior.tied:
        scatter, count = scatter.sum(0, keepdim=True), count.sum(0, keepdim=True)
    scatter = scatter + prior.floor * torch.eye(D, dtype=x.dtype)
    if prior.strength and prior.centre is not None:
        scatter = scatter + prior.strength * prior.centre
    Sigma = restricted(scatter / (count + prior.strength)[:, None, None], prior, scatter)
    Sigma = Sigma.expand(K, D, D) + 1e-9 * torch.eye(D, dtype=x.dtype)
    a = prior.concentration
    pi = (w.sum(0) + a) / (w.sum(0) + a).sum()
    tables = []
    for code, size in zip(rows.codes.mT, levels):
        one = torch.nn.functional.one_hot(code.clamp(min=0), size).double() * (code >= 0)[:, None]
        t = w.mT @ one + a
        tables.append(t / t.sum(1, keepdim=True))
    return Mixture(basis, pi, torch.stack(maps), Sigma, tuple(tables))


def clustered(x: Tensor, rows: Rows, components: int, prior: Prior, seed: int, levels=()) -> Mixture:
    """Plain Gaussians on the clusters of k-means; `x` are completed rows."""
    features = [x]
    for code, size in zip(rows.codes.mT, levels):
        features.append(torch.nn.functional.one_hot(code.clamp(min=0), size).double() * (code >= 0)[:, None])
    labels = (
        KMeans(components, n_init=1, random_state=seed)
        .fit(torch.cat(features, 1).numpy(), sample_weight=rows.weight.numpy())
        .labels_
    )
    shares = torch.nn.functional.one_hot(torch.as_tensor(labels).long(), components).double()
    return from_shares(x, shares, rows, prior, Basis.plain(), levels=levels)


def bent(mixture: Mixture, basis: Basis, share: float = _SHARE) -> Mixture:
    """A mixture of plain Gaussians as one of lines, with the same density; its kinks are 0."""
    values, vectors = torch.linalg.eigh(mixture.noise)
    along = (share * values[:, -1]).sqrt()[:, None] * vectors[:, :, -1]  # (K, D)
    K, D, _ = mixture.maps.shape
    maps = torch.cat((mixture.maps, along[:, :, None], mixture.maps.new_zeros(K, D, basis.size - 2)), 2)
    return replace(mixture, basis=basis, maps=maps, noise=mixture.noise - along[:, :, None] * along[:, None, :])


def orderings(x: Tensor) -> list[Tensor]:
    """Ranks of rows along curves that may run through them, as latents: `z (N,)`, standard normal scores."""
    X = (x - x.mean(0)) / x.std(0).clamp(min=1e-12)
    out = [torch.linalg.svd(X, full_matrices=False)[0][:, 0]]
    if len(X) >= 20:
        graph = kneighbors_graph(X.numpy(), min(10, len(X) - 1), include_self=False)
        graph = 0.5 * (graph + graph.T)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            E = torch.as_tensor(spectral_embedding(graph, n_components=3, drop_first=True, random_state=0)).double()
        out.append(E[:, 0])
        angle = torch.atan2(E[:, 1] - E[:, 1].mean(), E[:, 0] - E[:, 0].mean())
        around = angle.sort().values
        gaps = torch.cat((around[1:] - around[:-1], (around[:1] + 2 * np.pi) - around[-1:]))
        cut = around[gaps.argmax()]
        out.append((angle - cut - 1e-12).remainder(2 * np.pi))
    N = len(X)
    return [torch.special.ndtri((v.argsort().argsort().double() + 0.5) / N) for v in out]


def curve(x: Tensor, rows: Rows, z: Tensor, basis: Basis, prior: Prior, levels=()) -> Mixture:
    """One curve through completed rows, by ridge regression on given latents."""
    return from_shares(x, x.new_ones((len(x), 1)), rows, prior, basis, basis.values(z), levels)
