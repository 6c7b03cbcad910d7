"""The rivals for the density: for each family, ladders of settings from simple to rich."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import logsumexp
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

from tables import deep, factors

Density = Callable[[np.ndarray], np.ndarray]  # log p of standardised rows

# What a rival raises that cannot be fitted to these rows (too few for so many components, say).
UNFIT = (ValueError, np.linalg.LinAlgError, ArithmeticError)

COMPONENTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
KINDS = ("full", "tied", "diag", "spherical")
FLOORS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Candidate:
    """A setting, and how it is fitted: to rows, with the validation rows to stop early by (or what the first fit said).

    Attributes:
        label: the setting in words.
        fit: of the training rows, validation rows and what the first fit passed on; its result is a density, and what
            to pass on to the fit to all rows.
    """

    label: str
    fit: Callable[[np.ndarray, np.ndarray | None, object], tuple[Density, object]]


Ladder = Sequence[Candidate]


def _plain(fit: Callable[[np.ndarray], Density], label: str) -> Candidate:
    return Candidate(label, lambda X, validation, hint: (fit(X), None))


def _scores(model: object, X: np.ndarray) -> Density:
    return model.fit(X).score_samples  # type: ignore[attr-defined]


def _gaussian_mixture(X: np.ndarray, kind: str, components: int, floor: float, seed: int) -> Density:
    model = GaussianMixture(components, covariance_type=kind, reg_covar=floor, random_state=seed, max_iter=300)
    return _scores(model, X)


def gaussian_mixtures(rows: int, columns: int, quick: bool) -> list[Ladder]:
    kinds, floors, seeds = (KINDS, FLOORS, (0, 1, 2)) if not quick else (("full", "diag"), (1e-3,), (0,))
    counts = [k for k in COMPONENTS if k < rows / 3 and not (quick and k > 5)]
    return [
        [
            _plain(
                partial(_gaussian_mixture, kind=kind, components=k, floor=floor, seed=seed),
                f"{kind}, {k} components, reg_covar {floor:g}, seed {seed}",
            )
            for k in counts
        ]
        for kind, floor, seed in itertools.product(kinds, floors, seeds)
    ]


def _bayesian_mixture(X: np.ndarray, kind: str, components: int, concentration: float | None, floor: float) -> Density:
    return _scores(
        BayesianGaussianMixture(
            n_components=components,
            covariance_type=kind,
            weight_concentration_prior=concentration,
            reg_covar=floor,
            max_iter=500,
            random_state=0,
        ),
        X,
    )


def bayesian_mixtures(rows: int, columns: int, quick: bool) -> list[Ladder]:
    kinds, priors, floors = (KINDS, (None, 1e-3, 10.0), (1e-6, 1e-3)) if not quick else (("full",), (None,), (1e-3,))
    counts = [k for k in (1, 2, 3, 4, 6, 8, 16, 32) if k < rows / 3 and not (quick and k > 4)]
    return [
        [
            _plain(
                partial(_bayesian_mixture, kind=kind, components=k, concentration=prior, floor=floor),
                f"{kind}, {k} components, concentration {prior}, reg_covar {floor:g}",
            )
            for k in counts
        ]
        for kind, prior, floor in itertools.product(kinds, priors, floors)
    ]


def factor_analyses(rows: int, columns: int, quick: bool) -> list[Ladder]:
    return [
        [
            _plain(lambda X, q=q: _scores(FactorAnalysis(q, tol=1e-4, max_iter=3000), X), f"{q} factors")
            for q in range(1, min(columns, 25))
        ]
    ]


def principal_components(rows: int, columns: int, quick: bool) -> list[Ladder]:
    return [
        [_plain(lambda X, q=q: _scores(PCA(q), X), f"{q} components") for q in range(1, min(columns, rows // 2, 63))]
    ]


def factor_mixtures(rows: int, columns: int, quick: bool) -> list[Ladder]:
    ranks = [q for q in (1, 2, 4, 8, 12) if q < columns]
    shared, floors, seeds = ((False, True), (1e-5, *FLOORS[1:]), (0,)) if not quick else ((False,), (1e-3,), (0,))
    counts = [k for k in (1, 2, 3, 4, 6, 8, 12, 16) if k < rows / 6 and not (quick and k > 2)]
    return [
        [
            _plain(
                partial(factors.fit, components=k, factors=q, shared=tied, floor=floor, seed=seed),
                f"{k} components, {q} factors, {'shared' if tied else 'own'} noise, floor {floor:g}, seed {seed}",
            )
            for k in counts
        ]
        for q, tied, floor, seed in itertools.product(ranks[:2] if quick else ranks, shared, floors, seeds)
    ]


def kernel_density(X: np.ndarray, bandwidth: float, whiten: bool) -> Density:
    """Gaussian kernels around the rows; whitened, their covariance is that of the rows times `bandwidth^2`."""
    N, D = X.shape
    factor = np.linalg.cholesky(np.cov(X.T, ddof=0).reshape(D, D)) if whiten else np.diag(X.std(0))
    centres = np.linalg.solve(factor, X.T).T
    log_scale = np.log(np.diag(factor)).sum() + D * np.log(bandwidth) + 0.5 * D * np.log(2 * np.pi) + np.log(N)

    def log_prob(Y: np.ndarray) -> np.ndarray:
        points = np.linalg.solve(factor, Y.T).T
        square = (points**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * points @ centres.T
        return logsumexp(-0.5 * np.maximum(square, 0.0) / bandwidth**2, axis=1) - log_scale

    return log_prob


def kernel_densities(rows: int, columns: int, quick: bool) -> list[Ladder]:
    widths = np.geomspace(1.5, 0.01, 6 if quick else 40)
    return [
        [
            _plain(
                partial(kernel_density, bandwidth=width, whiten=whiten),
                f"{'whitened' if whiten else 'standardised'}, bandwidth {width:.3g}",
            )
            for width in widths
        ]
        for whiten in (False, True)
    ]


def spline_flows(rows: int, columns: int, quick: bool) -> list[Ladder]:
    if columns < 2:
        return []
    return [[Candidate(label, fit)] for label, fit in deep.spline_flows(columns, quick)]


def real_nvps(rows: int, columns: int, quick: bool) -> list[Ladder]:
    if columns < 2:
        return []
    return [[Candidate(label, fit)] for label, fit in deep.real_nvps(columns, quick)]


def continuous_mixtures(rows: int, columns: int, quick: bool) -> list[Ladder]:
    return [[Candidate(label, fit)] for label, fit in deep.continuous_mixtures(columns, quick)]


FAMILIES: dict[str, Callable[[int, int, bool], list[Ladder]]] = {
    "gmm": gaussian_mixtures,
    "bayesian_gmm": bayesian_mixtures,
    "factor_analysis": factor_analyses,
    "ppca": principal_components,
    "mfa": factor_mixtures,
    "kde": kernel_densities,
    "nsf": spline_flows,
    "real_nvp": real_nvps,
    "continuous_mixture": continuous_mixtures,
}


@dataclass(frozen=True)
class Found:
    """A fitted candidate and the mean NLL of the validation rows."""

    candidate: Candidate
    density: Density
    hint: object
    held_out: float


def fitted(candidate: Candidate, X: np.ndarray, validation: np.ndarray | None, hint: object) -> tuple[Density, object]:
    """The fit, without the warnings that rivals give on the way (no convergence after so many steps)."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return candidate.fit(X, validation, hint)


def search(ladders: Sequence[Ladder], train: np.ndarray, validation: np.ndarray, patience: int = 3) -> list[Found]:
    """All candidates that can be fitted, the best first.

    A ladder ends where so many steps in a row were worse than its best by more than 1 nat a row.
    """
    found: list[Found] = []
    for ladder in ladders:
        best, worse = np.inf, 0
        for candidate in ladder:
            try:
                density, hint = fitted(candidate, train, validation, None)
                held_out = -float(np.mean(density(validation)))
            except UNFIT:
                held_out = np.nan
            if np.isfinite(held_out):
                found.append(Found(candidate, density, hint, held_out))
            best = np.nanmin((best, held_out))
            worse = 0 if held_out <= best + 1.0 else worse + 1
            if worse >= patience:
                break
    return sorted(found, key=lambda one: one.held_out)


def average(densities: Sequence[Density]) -> Density:
    """Their mixture with equal weights."""
    return lambda X: logsumexp([density(X) for density in densities], axis=0) - np.log(len(densities))
