"""The models that are compared, generators of a grid and two baselines of scikit-learn; on which rows; and their fits.

A fit measures a candidate on the training rows of a split and on the rows held out. Baselines are fitted to the same
rows, their number of components chosen by BIC.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from girih._options import real, whole
from girih.em import NOISES, DGNEstimator, Scaling, fold_estimator
from girih.errors import EmptyDataError, ParameterError
from girih.inference import check_latent_dim

DGN_MODEL = "DGN"
BASELINES = ("GaussianMixture", "FactorAnalysis")

# Fewest rows to fit a model to.
_LEAST = 2
Array = NDArray[np.float64]

# The largest number of components of a baseline that is tried.
MOST_COMPONENTS = 10


@dataclass(frozen=True)
class Candidate:
    """A candidate is one model of the comparison.

    Attributes:
        model: "DGN", "GaussianMixture" or "FactorAnalysis".
        latent_dim: S of a DGN, else 0.
        hidden: widths of a DGN's hidden layers.
        noise: shape of a DGN's noise.

    Example:
        >>> from girih.selection import Candidate
        >>> Candidate("DGN", 1, (8, 16), "diagonal").label
        'DGN S=1 8,16 diagonal'
    """

    model: str
    latent_dim: int = 0
    hidden: tuple[int, ...] = ()
    noise: str = ""

    @property
    def is_dgn(self) -> bool:
        """It is a generator, not a baseline."""
        return self.model == DGN_MODEL

    @property
    def widths(self) -> str:
        """The widths as text."""
        return ",".join(str(width) for width in self.hidden) or "none"

    @property
    def label(self) -> str:
        """One line that names it."""
        return f"DGN S={self.latent_dim} {self.widths} {self.noise}" if self.is_dgn else self.model


def grid(
    latent_dims: Sequence[int] | int,
    hidden: Sequence[Sequence[int]],
    noise: str | Sequence[str],
    baselines: bool | str | Sequence[str],
) -> list[Candidate]:
    """All candidates, the smallest first.

    Raises:
        LatentDimensionError: S is too large for exact inference.
        ParameterError: an option is out of its domain, or nothing is left to compare.
    """
    dims = sorted({whole(dim, "a latent dimension") for dim in _several(latent_dims, "latent_dims")})
    for dim in dims:
        check_latent_dim(dim)
    widths = [_widths(value) for value in _layers(hidden)]
    noises = [noise] if isinstance(noise, str) else list(_several(noise, "noise"))
    for name in noises:
        if name not in NOISES:
            raise ParameterError(f"noise must be one of {', '.join(NOISES)}; got {name!r}")
    if not dims or not widths or not noises:
        raise ParameterError("latent_dims, hidden and noise need at least one value each")
    found = [Candidate(DGN_MODEL, S, layers, name) for S, layers, name in product(dims, widths, noises)]
    return list(dict.fromkeys(found)) + [Candidate(name) for name in _baselines(baselines)]


def _baselines(value: bool | str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, bool):
        return BASELINES if value else ()
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if name not in BASELINES:
            raise ParameterError(f"baselines must be True, False or some of {', '.join(BASELINES)}; got {name!r}")
    return tuple(dict.fromkeys(names))


def _several(value: object, name: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)
    values = tuple(value)
    if not values:
        raise ParameterError(f"{name} needs at least one value")
    return values


def _layers(hidden: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """`(8, 16)` alone would be one network or two: networks are tuples themselves."""
    values = list(_several(hidden, "hidden"))
    if not all(isinstance(value, Iterable) and not isinstance(value, str) for value in values):
        raise ParameterError(
            f"hidden is a list of networks, each a tuple of widths, e.g. ((8,), (16, 16)); got {hidden!r}"
        )
    return values


def _widths(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(whole(width, "a width of a hidden layer") for width in value)


class Split(NamedTuple):
    """A split says which rows are fitted and which are held out, in order; `test` may be empty."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]


def make_splits(count: int, validation: float | None, folds: int | None, seed: int) -> list[Split]:
    """Split rows once by a fraction, or once for each fold, every row held out once.

    Args:
        count: the number of rows.
        validation: the share that is held out, where there are no folds; `None` for none.
        folds: the number of folds; `None` for a single split.
        seed: of the order of the rows.

    Raises:
        ParameterError: an option is out of its domain.
        EmptyDataError: too few rows for it.

    Example:
        >>> from girih.selection import make_splits
        >>> [len(split.test) for split in make_splits(10, None, 3, seed=0)]
        [4, 3, 3]
    """
    order = np.random.default_rng(seed).permutation(count)
    if folds is not None:
        number = whole(folds, "folds", 2)
        if count < number * _LEAST:
            raise EmptyDataError(f"{count} rows are too few for {number} folds; use fewer folds")
        return [_split(order, part) for part in np.array_split(order, number)]
    if validation is None:
        if count < _LEAST:
            raise EmptyDataError(f"X needs at least {_LEAST} rows")
        return [Split(np.arange(count), np.arange(0))]
    held_out = round(_fraction(validation) * count)
    if held_out < 1 or count - held_out < _LEAST:
        raise EmptyDataError(
            f"validation={validation:g} of {count} rows leaves {count - held_out} to fit and {held_out} to hold "
            "out; pass more rows, or validation=None"
        )
    return [_split(order, order[:held_out])]


def _split(order: NDArray[np.intp], test: NDArray[np.intp]) -> Split:
    return Split(np.setdiff1d(order, test), np.sort(test))


def _fraction(value: float) -> float:
    number = real(value, "validation")
    if number >= 1.0:
        raise ParameterError(f"validation must be below 1; got {number:g}")
    return number


@dataclass(frozen=True)
class Shared:
    """All candidates share these options.

    Attributes:
        estimator: unfitted, with the options of all generators.
        standardize: whether columns are standardised.
        seed: of every fit.
    """

    estimator: DGNEstimator
    standardize: bool
    seed: int


@dataclass(frozen=True)
class Outcome:
    """An outcome holds the numbers of one fit.

    Attributes:
        n_train: rows that it was fitted to.
        n_parameters: free parameters.
        log_likelihood: exact, summed over the training rows, in nats.
        held_out: exact `log p(x)` of each held-out row, in the order of the split.
        unexplained: mean over the columns of noise variance over data variance; NaN where a model has no noise.
        seconds: time of the fit.
        n_iter: iterations.
        converged: whether the fit converged.
        components: of a baseline that chooses them, else 0.
    """

    n_train: int
    n_parameters: int
    log_likelihood: float
    held_out: list[float]
    unexplained: float
    seconds: float
    n_iter: int
    converged: bool
    components: int = 0


def fit_candidate(
    candidate: Candidate, X: Array, split: Split, shared: Shared, checkpoint: Path | None = None
) -> Outcome:
    """Fit and measure.

    Raises:
        KeyboardInterrupt: Ctrl-C; with a checkpoint the fit goes on from there later.
        GirihError: the rows cannot be fitted.
    """
    train, test = X[split.train], X[split.test]
    start = time.perf_counter()
    if not candidate.is_dgn:
        return fit_baseline(candidate.model, train, test, shared)
    est = fit_estimator(candidate, train, shared, checkpoint)
    seconds = time.perf_counter() - start
    variances = est.dgn_.noise_covariance.detached().variances.numpy()
    spread = np.nanvar(train, 0)
    varies = spread > 0
    shares = np.broadcast_to(variances, spread.shape)[varies] / spread[varies]
    return Outcome(
        n_train=len(train),
        n_parameters=est.n_parameters_,
        log_likelihood=float(est.score_samples(train).sum()),
        held_out=est.score_samples(test).tolist() if len(test) else [],
        unexplained=float(shares.mean()) if len(shares) else float("nan"),
        seconds=seconds,
        n_iter=est.n_iter_,
        converged=est.converged_,
    )


def fit_estimator(
    candidate: Candidate, X: Array, shared: Shared, checkpoint: Path | None = None, progress: bool = False
) -> DGNEstimator:
    """A fitted estimator in the units of X."""
    est: DGNEstimator = clone(shared.estimator).set_params(
        latent_dim=candidate.latent_dim,
        hidden=candidate.hidden,
        noise=candidate.noise,
        verbose=int(progress),
        checkpoint=checkpoint,
    )
    scaling = Scaling.of(X) if shared.standardize else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a column of the table says it
        est.fit(X if scaling is None else scaling.apply(X).numpy())
    if est.interrupted_:
        raise KeyboardInterrupt
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    if scaling is not None:
        fold_estimator(est, scaling, X)
    est.set_params(checkpoint=None, verbose=0)
    return est


def fit_baseline(name: str, train: Array, test: Array, shared: Shared) -> Outcome:
    """`GaussianMixture` (full covariances) or `FactorAnalysis`, with 1 to 10 components, the number by BIC.

    All other settings are scikit-learn's defaults. Densities are in the units of the data.
    """
    start = time.perf_counter()
    scaling = Scaling.of(train) if shared.standardize else None
    rows = train if scaling is None else scaling.apply(train).numpy()
    most = MOST_COMPONENTS if name == "GaussianMixture" else min(MOST_COMPONENTS, train.shape[1] - 1)
    best: tuple[float, int, GaussianMixture | FactorAnalysis, int] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in range(1, max(1, min(most, len(train) - 1)) + 1):
            if name == "GaussianMixture":
                model: GaussianMixture | FactorAnalysis = GaussianMixture(k, random_state=shared.seed).fit(rows)
                count = int(model._n_parameters())
            else:
                model = FactorAnalysis(k, random_state=shared.seed).fit(rows)
                count = factor_parameters(train.shape[1], k)
            bic = count * math.log(len(rows)) - 2.0 * float(model.score_samples(rows).sum())
            if best is None or bic < best[0]:
                best = bic, k, model, count
    assert best is not None
    _, k, model, count = best
    shift = 0.0 if scaling is None else float(scaling.scale.log().sum())
    noise = getattr(model, "noise_variance_", None)
    return Outcome(
        n_train=len(train),
        n_parameters=count,
        log_likelihood=float((model.score_samples(rows) - shift).sum()),
        held_out=_score(model, test, scaling, shift) if len(test) else [],
        unexplained=float("nan") if noise is None else float(np.mean(noise / np.maximum(rows.var(0), 1e-300))),
        seconds=time.perf_counter() - start,
        n_iter=int(model.n_iter_),
        converged=bool(getattr(model, "converged_", model.n_iter_ < getattr(model, "max_iter", 0))),
        components=k,
    )


def factor_parameters(columns: int, factors: int) -> int:
    """Free parameters of factor analysis: mean, noise and loadings, less a rotation of the factors."""
    return 2 * columns + columns * factors - factors * (factors - 1) // 2


def _score(model: GaussianMixture | FactorAnalysis, test: Array, scaling: Scaling | None, shift: float) -> list[float]:
    rows = test if scaling is None else scaling.apply(test).numpy()
    result: list[float] = (model.score_samples(rows) - shift).tolist()
    return result
