"""Mixtures of probabilistic PCA, which a generator is with implicit categories (EM-DGN, Proposition 1)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from sklearn.cluster import KMeans

from girih.errors import ParameterError
from girih_papers.arrays import Array
from girih_papers.rivals import Fitted, Rows

_TOLERANCE, _ITERATIONS = 1e-6, 500  # nats per row
_LEAST_ROWS = 1e-8  # a component that answers for fewer is dropped


@dataclass(frozen=True, eq=False)
class PPCA:
    r"""A mixture of K Gaussians `N(m_k, W_k W_k^T + s_k I)` with `W_k` of q columns.

        W_k W_k^T + s_k I = U_k diag(v_k) U_k^T + s_k (I - U_k U_k^T),   U_k^T U_k = I,   v_k >= s_k

    Attributes:
        weights: `(K,)`, their sum 1.
        means: `(K, D)`.
        axes: the columns of `U_k`, `(K, D, q)`.
        variances: `v_k` along them, `(K, q)`.
        noises: `s_k`, `(K,)`.

    Source:
        Tipping & Bishop, Mixtures of probabilistic principal component analyzers (1999).

    Example:
        >>> import numpy as np
        >>> from girih_papers.ppca import PPCA
        >>> rows = np.random.default_rng(0).standard_normal((200, 3)) * [3.0, 1.0, 0.1]
        >>> model = PPCA.fit(rows, latent_dim=1, components=1)
        >>> model.variances.round(1), model.parameters
        (array([[9.2]]), 7)
    """

    weights: Array
    means: Array
    axes: Array
    variances: Array
    noises: Array

    @classmethod
    def fit(cls, rows: Array, latent_dim: int, components: int, floor: float = 1e-6, seed: int = 0) -> PPCA:
        """Maximum likelihood by EM from a k-means partition of rows `(N, D)`.

        Args:
            rows: `(N, D)`.
            latent_dim: q, below D.
            components: K; those that lose all rows are dropped.
            floor: the least noise variance, without which a component on q + 1 rows has no maximum.
            seed: of k-means.

        Raises:
            ParameterError: q is not from 1 to D - 1, or the floor is not positive.
        """
        if not 1 <= latent_dim < rows.shape[1]:
            raise ParameterError(f"latent_dim must be from 1 to D - 1 = {rows.shape[1] - 1}; got {latent_dim}")
        if not floor > 0.0:
            raise ParameterError(f"floor must be a positive variance; got {floor}")
        labels = KMeans(components, n_init=1, random_state=seed).fit_predict(rows)
        model, last = cls._maximum(rows, np.eye(components)[labels], latent_dim, floor), -math.inf
        for _ in range(_ITERATIONS):
            joint = model.log_joint(rows)
            total = logsumexp(joint, axis=1)
            if total.mean() - last < _TOLERANCE:
                break
            last = float(total.mean())
            model = cls._maximum(rows, np.exp(joint - total[:, None]), latent_dim, floor)
        return model

    @classmethod
    def _maximum(cls, rows: Array, shares: Array, latent_dim: int, floor: float) -> PPCA:
        """The M-step: of each weighted covariance the first q eigenvectors, and the mean of its other eigenvalues."""
        shares = shares[:, shares.sum(0) > _LEAST_ROWS]
        parts = []
        for share in shares.T:
            used = share > np.finfo(float).eps * share.max()  # in many dimensions a row is all in one component
            share, mine = share[used], rows[used]
            mean = share @ mine / share.sum()
            centred = np.sqrt(share / share.sum())[:, None] * (mine - mean)
            _, singular, axes = np.linalg.svd(centred, full_matrices=False)
            values = np.zeros(rows.shape[1])
            values[: len(singular)] = singular**2
            # the likelihood rises with the noise up to the mean of the other eigenvalues, so that a floor is met
            noise = max(float(values[latent_dim:].mean()), floor)
            kept = np.zeros((rows.shape[1], latent_dim))
            kept[:, : len(axes)] = axes[:latent_dim].T
            parts.append((mean, kept, np.maximum(values[:latent_dim], noise), noise))
        means, axes, variances, noises = (np.array(part) for part in zip(*parts, strict=True))
        return cls(shares.mean(0) / shares.mean(0).sum(), means, axes, variances, noises)

    def log_joint(self, x: Array) -> Array:
        """`log p(x, k)` in nats, `(N, K)`."""
        columns = []
        q = self.variances.shape[1]
        for weight, mean, axes, variances, noise in zip(
            self.weights, self.means, self.axes, self.variances, self.noises, strict=True
        ):
            centred = x - mean
            along = centred @ axes
            beside = ((centred - along @ axes.T) ** 2).sum(1) / noise  # of what is left, so that nothing cancels
            log_det = np.log(variances).sum() + (x.shape[1] - q) * math.log(noise)
            distance = beside + (along**2 / variances).sum(1)
            columns.append(math.log(weight) - 0.5 * (distance + log_det + x.shape[1] * math.log(2.0 * math.pi)))
        return np.stack(columns, 1)

    def log_prob(self, x: Array) -> Array:
        """`log p(x)` in nats, `(N,)`."""
        return np.asarray(logsumexp(self.log_joint(x), axis=1))

    def sample(self, n: int, seed: int = 0) -> Array:
        """Draws without noise, `(n, D)`: points on the planes of the components."""
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), n, p=self.weights)
        z = rng.standard_normal((n, self.variances.shape[1])) * np.sqrt(self.variances - self.noises[:, None])[k]
        return np.asarray(self.means[k] + np.einsum("nds,ns->nd", self.axes[k], z))

    @property
    def parameters(self) -> int:
        """How many free numbers it has: shares, means, loadings but for their rotation, and noises."""
        K, D, q = self.axes.shape
        result: int = K * (D + D * q - q * (q - 1) // 2 + 1) + K - 1
        return result

    def bic(self, x: Array) -> float:
        """Schwarz's criterion of rows, `-2 log p + parameters log N`."""
        return float(self.parameters * math.log(len(x)) - 2.0 * self.log_prob(x).sum())


def mixture_of_ppca(
    rows: Rows, latent_dim: int, components: Sequence[int], floors: Sequence[float], seed: int
) -> Fitted:
    """A mixture of PPCA whose components and least noise are chosen by validation NLL.

    Args:
        rows: the rows.
        latent_dim: q of every component.
        components: the numbers to try.
        floors: the least noise variances to try.
        seed: of the k-means starts.
    """
    start, tried = time.perf_counter(), []
    for count in components:
        for floor in floors:
            model = PPCA.fit(rows.train, latent_dim, count, floor, seed)
            tried.append((-float(model.log_prob(rows.validation).mean()), count, floor, model))
    loss, count, floor, model = min(tried, key=lambda entry: entry[0])
    choice = {"components": count, "least_noise": floor, "validation_nll": loss, "tried": len(tried)}
    seconds = time.perf_counter() - start
    return Fitted("mixture of PPCA", model.parameters, model.log_prob, lambda n: model.sample(n, seed), seconds, choice)
