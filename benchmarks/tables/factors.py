"""Mixtures of factor analysers by EM: `p(x) = sum_k pi_k N(x; mu_k, Lambda_k Lambda_k^T + Psi_k)`, Psi_k diagonal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from sklearn.cluster import KMeans

_LOG_2PI = np.log(2 * np.pi)


@dataclass
class FactorMixture:
    """Weights `(K,)`, means `(K, D)`, loadings `(K, D, q)` and the diagonals of the noise `(K, D)`."""

    weights: np.ndarray
    means: np.ndarray
    loadings: np.ndarray
    noise: np.ndarray

    def covariances(self) -> np.ndarray:
        """`(K, D, D)`."""
        low_rank = self.loadings @ self.loadings.transpose(0, 2, 1)
        return low_rank + np.stack([np.diag(psi) for psi in self.noise])

    def log_joint(self, X: np.ndarray) -> np.ndarray:
        """`log pi_k p_k(x)`, `(N, K)`."""
        columns = []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances(), strict=True):
            root = np.linalg.cholesky(covariance)
            white = solve_triangular(root, (X - mean).T, lower=True)
            log_det = 2 * np.log(np.diag(root)).sum()
            columns.append(np.log(weight) - 0.5 * ((white**2).sum(0) + log_det + X.shape[1] * _LOG_2PI))
        return np.stack(columns, 1)

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """`log p(x)`, `(N,)`."""
        return logsumexp(self.log_joint(X), axis=1)


def start(X: np.ndarray, components: int, factors: int, floor: float, seed: int) -> FactorMixture:
    """Clusters of k-means, each with its leading principal axes."""
    labels = KMeans(components, n_init=1, random_state=seed).fit(X).labels_
    random = np.random.default_rng(seed)
    D = X.shape[1]
    mixture = FactorMixture(*(np.zeros(shape) for shape in ((components,), (components, D))), np.zeros(0), np.zeros(0))
    loadings, noise = [], []
    for k in range(components):
        rows = X[labels == k]
        mixture.weights[k], mixture.means[k] = len(rows) / len(X), rows.mean(0)
        covariance = np.cov(rows.T, ddof=0).reshape(D, D) if len(rows) > 1 else np.zeros((D, D))
        values, vectors = np.linalg.eigh(covariance + max(floor, 1e-6) * np.eye(D))
        values, vectors = values[::-1][:factors], vectors[:, ::-1][:, :factors]
        loadings.append(vectors * np.sqrt(0.9 * values) + 1e-3 * random.normal(size=vectors.shape))
        noise.append(np.maximum(np.diag(covariance) - (loadings[-1] ** 2).sum(1), 0.1 * np.diag(covariance)) + 1e-3)
    mixture.loadings, mixture.noise = np.stack(loadings), np.stack(noise)
    return mixture


def step(mixture: FactorMixture, X: np.ndarray, shared: bool, floor: float) -> tuple[FactorMixture, float]:
    """One step of EM, and the mean log-likelihood before it.

    With responsibilities fixed, the mean and then one EM step of plain factor analysis on the scatter around it; each
    raises the expected complete log-likelihood, so that for `floor` 0 the likelihood never falls.
    """
    joint = mixture.log_joint(X)
    log_p = logsumexp(joint, axis=1)
    share = np.exp(joint - log_p[:, None])
    counts = share.sum(0) + 1e-10
    means, loadings, residuals = (share.T @ X) / counts[:, None], [], []
    for k, covariance in enumerate(mixture.covariances()):
        centred = X - means[k]
        scatter = (share[:, k, None] * centred).T @ centred / counts[k]
        old = mixture.loadings[k]
        beta = np.linalg.solve(covariance, old).T  # (q, D)
        second = np.eye(old.shape[1]) - beta @ old + beta @ scatter @ beta.T
        new = np.linalg.solve(second, beta @ scatter).T
        loadings.append(new)
        residuals.append(np.maximum(np.diag(scatter - new @ beta @ scatter), 1e-12))
    noise = np.stack(residuals)
    if shared:
        noise = np.broadcast_to(counts @ noise / counts.sum(), noise.shape)
    noise = noise + floor
    return FactorMixture(counts / counts.sum(), means, np.stack(loadings), noise), float(log_p.mean())


def fit(
    X: np.ndarray, components: int, factors: int, shared: bool, floor: float, seed: int, steps: int = 300
) -> FactorMixture:
    """EM until a step gains less than 1e-4 nats a row."""
    mixture = start(X, components, factors, floor, seed)
    before = -np.inf
    for _ in range(steps):
        following, reached = step(mixture, X, shared, floor)
        if abs(reached - before) < 1e-4:
            break
        mixture, before = following, reached
    return mixture
