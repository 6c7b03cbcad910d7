"""A slow conditional: every member and component as a dense grid of latents, each of them a plain Gaussian."""

from __future__ import annotations

import numpy as np
import torch
from scipy import special, stats

from girih.tables.basis import Basis
from girih.tables.member import Ensemble, Member
from girih.tables.mixture import Mixture
from girih.tables.moments import Atom
from girih.tables.scales import Scales


def ensemble(seed: int, D: int, bases: list[Basis], levels=(), bend=True, K=2, noise=0.3) -> Ensemble:
    """Members with everything at random; their scales differ."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def shares(*shape):
        p = uniform(*shape) + 0.2
        return p / p.sum(-1, keepdim=True)

    members = []
    for basis in bases:
        root = noise * normal(K, D, D)
        Sigma = root @ root.mT + 0.1 * noise**2 * torch.eye(D, dtype=torch.float64)
        tables = tuple(shares(K, size) for size in levels)
        mixture = Mixture(basis, shares(K), 0.7 * normal(K, D, basis.size), Sigma, tables)
        bent = (uniform(D) < 0.5) if bend else torch.zeros(D, dtype=torch.bool)
        scales = Scales(bent, 0.3 * normal(D), uniform(D) + 0.5, 0.2 * normal(D), 0.5 * uniform(D) + 0.5)
        members.append(Member(mixture, scales))
    return Ensemble(tuple(members), shares(len(members)))


class Brute:
    """The conditional of one row as a mixture of many plain Gaussians."""

    def __init__(self, ensemble: Ensemble, x, codes, atoms: tuple[Atom, ...] = (), reach: float = 12.0) -> None:
        x, codes = x.numpy(), codes.numpy()
        node, weight = np.polynomial.legendre.leggauss(20)
        logs, means, covs, self.member, self.component, first = [], [], [], [], [], 0
        seen, hole = ~np.isnan(x), np.isnan(x)
        for m, member in enumerate(ensemble.members):
            mix, s = member.mixture, member.scales
            y = s.forward(torch.as_tensor(x)).numpy()
            slope = np.nansum(s.log_slope(torch.as_tensor(x)).numpy())
            ends = np.unique(np.r_[np.linspace(-reach, reach, int(10 * reach) + 1), mix.basis.edges[1:-1]])
            z = (0.5 * (ends[1:] + ends[:-1])[:, None] + 0.5 * np.diff(ends)[:, None] * node).ravel()
            w = (0.5 * np.diff(ends)[:, None] * weight).ravel()
            phi = mix.basis.values(torch.as_tensor(z)).numpy()
            for k in range(mix.components):
                mu, S = phi @ mix.maps[k].numpy().T, mix.noise[k].numpy()
                log = np.log(w) + stats.norm.logpdf(z) + np.log(float(ensemble.weights[m] * mix.weights[k])) + slope
                for table, code in zip(mix.tables, codes):
                    log = log + (np.log(float(table[k, code])) if code >= 0 else 0.0)
                full, C = mu.copy(), np.zeros_like(S)
                if seen.any():
                    log = log + stats.multivariate_normal.logpdf(
                        y[seen] - mu[:, seen], np.zeros(seen.sum()), S[np.ix_(seen, seen)]
                    )
                    back = np.linalg.solve(S[np.ix_(seen, seen)], S[np.ix_(seen, hole)])
                    full[:, hole] += (y[seen] - mu[:, seen]) @ back
                    full[:, seen] = y[seen]
                    C[np.ix_(hole, hole)] = S[np.ix_(hole, hole)] - S[np.ix_(hole, seen)] @ back
                else:
                    C = S
                logs.append(log)
                means.append(full)
                covs.append(np.repeat(C[None], len(z), 0))
                self.member += [m] * len(z)
                self.component += [first + k] * len(z)
            first += mix.components
        log = np.concatenate(logs)
        self.log_p = special.logsumexp(log)
        kept = log - self.log_p > -45.0
        self.share, self.mean, self.cov = (
            np.exp(log - self.log_p)[kept],
            np.concatenate(means)[kept],
            np.concatenate(covs)[kept],
        )
        self.member, self.component = np.array(self.member)[kept], np.array(self.component)[kept]
        self.ensemble, self.x, self.codes, self.atoms = ensemble, x, codes, atoms
        self.tables = [
            np.concatenate([m.mixture.tables[c].numpy() for m in ensemble.members]) for c in range(len(codes))
        ]

    def values(self, y, columns):
        """Numbers of columns in units of the data, from `y (G, Q, n)` of the members."""
        out = np.empty_like(y)
        for m, member in enumerate(self.ensemble.members):
            s, here = member.scales, self.member == m
            for i, j in enumerate(columns):
                t = float(s.centre[j]) + float(s.spread[j]) * y[here, :, i]
                out[here, :, i] = float(s.origin[j]) + float(s.unit[j]) * np.sinh(t) if s.bent[j] else t
        return out

    def expectation(self, j, f):
        """`E[f(x_j)]`, smooth f, atoms counted."""
        node, weight = np.polynomial.hermite_e.hermegauss(60)
        y = self.mean[:, j, None] + np.sqrt(self.cov[:, j, j])[:, None] * node
        value = f(self.values(y[..., None], [j])[..., 0]) @ (weight / np.sqrt(2 * np.pi))
        for atom in self.atoms:
            if atom.x == j and self.codes[atom.code] < 0:
                table = self.tables[atom.code][self.component]
                value = table[:, -1] * value + table[:, :-1] @ f(np.array(atom.values))
        return float(self.share @ value)

    def cross(self, i, j):
        """`E[x_i x_j]` of two columns without atoms."""
        node, weight = np.polynomial.hermite_e.hermegauss(30)
        a, b = np.meshgrid(node, node, indexing="ij")
        w = np.outer(weight, weight).ravel() / (2 * np.pi)
        L = np.linalg.cholesky(self.cov[:, [i, j]][:, :, [i, j]])
        y = self.mean[:, None, [i, j]] + np.einsum("gij,qj->gqi", L, np.stack((a.ravel(), b.ravel()), 1))
        return float(self.share @ (self.values(y, [i, j]).prod(-1) @ w))

    def cdf(self, j, v):
        """`P(x_j <= v)`, atoms counted."""
        at = np.array(
            [
                float(m.scales.forward(torch.full((len(self.x),), v, dtype=torch.float64))[j])
                for m in self.ensemble.members
            ]
        )
        value = stats.norm.cdf((at[self.member] - self.mean[:, j]) / np.sqrt(self.cov[:, j, j]))
        for atom in self.atoms:
            if atom.x == j and self.codes[atom.code] < 0:
                table = self.tables[atom.code][self.component]
                value = table[:, -1] * value + table[:, :-1] @ (np.array(atom.values) <= v)
        return float(self.share @ value)

    def probabilities(self, c):
        return self.share @ self.tables[c][self.component]
