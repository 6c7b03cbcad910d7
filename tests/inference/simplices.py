"""The twin for S = 2, 3: dense Gauss-Legendre quadrature of the module itself, over small simplices.

Cells are clipped to a wide box and triangulated, so that the network is affine on each simplex; simplices are
halved along their longest edge until the integrand is smooth on them. Those on which `log p(x, z)`, a concave function,
is below its maximum by far are dropped: its tangent at the centre says so.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Tensor

import girih

BOX = 300.0
# largest diameter in deviations, largest range in nats, nodes an axis, depth in nats below which all is dropped
SMOOTH = {2: (3.0, 15.0, 16, 45.0), 3: (4.0, 10.0, 8, 30.0)}


class Twin(NamedTuple):
    log_prob: Tensor
    mean: Tensor
    covariance: Tensor
    entropy: Tensor


def triangulate(dgn: girih.DGN, box: float = BOX) -> Tensor:
    """Simplices `(T, S + 1, S)` that cover a box, each inside one cell."""
    S = dgn.latent_dim
    part = girih.Partition(dgn.net, domain=(np.full(S, -box), np.full(S, box)))
    parts = []
    for i in range(len(part)):
        points = part.vertices(i).numpy()
        if len(points) == S + 1:
            parts.append(points[None])
        elif S == 2:  # a fan, since vertices come in order
            parts.append(np.stack([points[[0, k, k + 1]] for k in range(1, len(points) - 1)]))
        else:
            middle, size = points.mean(0), np.abs(points - points.mean(0)).max(0)
            faces = points[ConvexHull((points - middle) / size, qhull_options="Qt").simplices]
            parts.append(np.concatenate((faces, np.broadcast_to(middle, (len(faces), 1, S))), 1))
    return torch.as_tensor(np.concatenate(parts))


def residual(dgn: girih.DGN, x: Tensor, z: Tensor) -> Tensor:
    """phi with `log p(x, z) = const - |phi|^2 / 2`, for z `(..., S)`."""
    seen = ~x.isnan()
    noise = dgn.noise.detach()
    noise = noise if noise.ndim == 2 else torch.diag(noise.expand(len(x)))
    data = torch.linalg.inv(torch.linalg.cholesky(noise[seen][:, seen]))
    prior = torch.linalg.inv(torch.linalg.cholesky(dgn.prior.detach()))
    flat = z.reshape(-1, z.shape[-1])
    with torch.no_grad():
        phi = torch.cat(((x[seen] - dgn.net(flat).reshape(len(flat), -1)[:, seen]) @ data.mT, flat @ prior.mT), 1)
    return phi.reshape(*z.shape[:-1], -1)


def constant(dgn: girih.DGN, x: Tensor) -> Tensor:
    seen = ~x.isnan()
    noise = dgn.noise.detach()
    noise = noise if noise.ndim == 2 else torch.diag(noise.expand(len(x)))
    total = torch.logdet(noise[seen][:, seen]) + torch.logdet(dgn.prior.detach())
    return -0.5 * (total + (int(seen.sum()) + dgn.latent_dim) * np.log(2 * np.pi))


def small_simplices(dgn: girih.DGN, x: Tensor, simplices: Tensor) -> Tensor:
    S = dgn.latent_dim
    diameter, height, _, depth = SMOOTH[S]
    done, top = [], -torch.inf
    pairs = torch.combinations(torch.arange(S + 1))
    while len(simplices):
        phi = residual(dgn, x, simplices)  # (T, S + 1, .)
        energy = -0.5 * phi.square().sum(-1)
        top = max(top, float(energy.max()))
        centre = phi.mean(1, keepdim=True)
        tangent = -0.5 * (centre * (2.0 * phi - centre)).sum(-1)  # above the concave energy, at the corners
        keep = tangent.amax(1) > top - depth
        simplices, phi, energy, tangent = simplices[keep], phi[keep], energy[keep], tangent[keep]
        edges = (phi[:, pairs[:, 0]] - phi[:, pairs[:, 1]]).norm(dim=-1)
        longest = edges.argmax(1)
        fine = (edges.amax(1) < diameter) & (torch.maximum(tangent.amax(1), energy.amax(1)) - energy.amin(1) < height)
        done.append(simplices[fine])
        rest, cut = simplices[~fine], pairs[longest[~fine]]
        rows = torch.arange(len(rest))
        middle = 0.5 * (rest[rows, cut[:, 0]] + rest[rows, cut[:, 1]])
        halves = [rest.clone(), rest.clone()]
        for half, end in zip(halves, cut.T, strict=True):
            half[rows, end] = middle
        simplices = torch.cat(halves)
        assert len(simplices) + sum(map(len, done)) < 1_000_000, "too hard a case for this twin"
    return torch.cat(done)


def collapsed_nodes(S: int, n: int) -> tuple[Tensor, Tensor]:
    """Barycentric nodes `(n^S, S + 1)` and weights of a simplex of volume 1."""
    at, weight = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(n))
    u = torch.cartesian_prod(*[0.5 * (at + 1.0)] * S)
    w = torch.cartesian_prod(*[0.5 * weight] * S).prod(1)
    left, parts = torch.ones(len(u), dtype=torch.float64), []
    for s in range(S):
        parts.append(left * u[:, s])
        w = w * left
        left = left * (1.0 - u[:, s])
    parts.append(left)
    return torch.stack(parts, 1), w / w.sum()


def quadrature(dgn: girih.DGN, x: Tensor, simplices: Tensor | None = None) -> Twin:
    """`log p(x)` and the posterior moments of one row."""
    S = dgn.latent_dim
    small = small_simplices(dgn, x, triangulate(dgn) if simplices is None else simplices)
    volume = torch.linalg.det(small[:, 1:] - small[:, :1]).abs() / (2.0 if S == 2 else 6.0)
    small, volume = small[volume > 0], volume[volume > 0]
    nodes, weight = collapsed_nodes(S, SMOOTH[S][2])
    corner = -0.5 * residual(dgn, x, small).square().sum(-1)
    top, home = corner.max(), small.flatten(0, 1)[corner.argmax()]
    total, first, second, energies = 0.0, 0.0, 0.0, 0.0
    for some, size in zip(small.split(200), volume.split(200), strict=True):
        off = nodes @ some - home
        energy = -0.5 * residual(dgn, x, off + home).square().sum(-1) - top
        share = energy.exp() * weight * size[:, None]
        total = total + share.sum()
        first = first + (share[..., None] * off).sum((0, 1))
        second = second + torch.einsum("tn,tni,tnj->ij", share, off, off)
        energies = energies + (share * energy).sum()
    log_p = top + total.log() + constant(dgn, x)
    mean = first / total
    covariance = second / total - torch.outer(mean, mean)
    entropy = total.log() - energies / total
    return Twin(log_p, home + mean, covariance, entropy)
