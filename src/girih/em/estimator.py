"""`DGNEstimator`: exact EM behind scikit-learn's interface."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    check_array,
    check_is_fitted,
)
from torch import Tensor

from girih._arrays import Rows, as_rows, as_tensor, check_finite, check_largest, column_labels
from girih._options import real, whole, wholes
from girih.covariance import Covariance
from girih.em.fit import fit_em
from girih.em.mstep import WeightPrior
from girih.em.options import EMOptions
from girih.em.parameters import count_parameters
from girih.em.scaling import Scaling
from girih.em.starting_points import warm_model
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.inference import DGN
from girih.networks import mlp
from girih.streams import Blocks, Stream, is_stream
from girih.training import FitResult

NOISES = ("isotropic", "diagonal", "full", "low_rank")


class DGNEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    r"""You fit a low-dimensional piecewise-affine generator to a table with it, by exact EM, the way scikit-learn does.

    `x = g(z) + e`, `z ~ N(0, I)`, `e ~ N(0, noise)`, with g a small network. NaN entries of X (masked ones, `None`
    and `pd.NA` too) are missing values, in training as well as afterwards.

    Args:
        latent_dim: S.
        hidden: widths of the hidden layers.
        activation: "relu", "leaky_relu" or "abs".
        negative_slope: of the leaky ReLU.
        noise: "isotropic", "diagonal" or "full" covariance, or "low_rank": a diagonal one plus one of rank
            `noise_rank`, as in factor analysis.
        weight_prior: `None`, `("gaussian", s)`, `("laplace", s)` or `("uniform", s)`.
        max_iter: EM iterations of the run that is kept.
        tol: converged when three iterations in a row gain less than this (nats per row).
        n_init: random starts; the best after a short trial is continued. See `init`. Of more than 2,048 rows (16,384
            if `latent_dim` is 1) a sample of so many, drawn with `random_state` and with their weights, chooses it; the
            kept run is of all rows.
        warm_start: go on from the last fit instead of starting anew. Another kind of `noise` starts from the fitted
            variances; another `latent_dim`, `hidden`, `activation` or `negative_slope` is refused.
        random_state: seed or `RandomState`.
        verbose: 1 shows a progress bar.
        learn_prior: also fit the variance of z.
        noise_floor: lower bound on the noise variance, as a share of the variance of the data.
        checkpoint: file that a killed fit continues from.
        acceleration: "quasi-newton" or "none"; see `girih.em.fit_em`.
        batch_size: rows in a batch, for data with many rows; `None` uses all rows in each iteration.
        init: "auto" or "random". For S = 1, "auto" tries curves beside the random starts, which follow the rows in an
            order (along their first principal component, along a graph of neighbours, around a circle); with
            `n_init=1` the best curve is the only start.
        noise_rank: of low-rank noise, 1 to D.
        noise_prior: rho of an inverse Wishart prior on the noise, which keeps columns from collapsing: with U the
            variances of the data, the noise of N rows is `(scatter + rho U) / N`. 0 for none.
        kink_ridge: lambda of the penalty `lambda E |noise^-1/2 (g(z) - l(z))|^2 / 2` on how g departs from its best
            affine approximation l. It is 0 where g is affine, whatever its slope, and depends on the function g alone,
            not on how hidden units are scaled; lambda counts rows, so useful values are small (0.01 to 1), and large
            ones give factor analysis. 0 for none.
        early_stopping: hold out rows, stop when their exact likelihood no longer improves, and keep the parameters
            that are best on them.
        validation_fraction: share of the rows that is held out.
        n_iter_no_change: stop when this many iterations in a row gain less than `tol` on the held-out rows.
        n_jobs: starts that are tried at once, through joblib, to the same numbers; -1 for one on each processor, `None`
            for what `joblib.parallel_config` says, else one.
        m_step: "joint", or "layerwise" for the closed-form M-steps of EM-DGN, one hidden layer after the other, which
            is EM alone: see `girih.em.EMOptions`.
        safeguard: of "layerwise", whether steps that raise the exact NLL are shortened.

    Attributes:
        dgn_: the fitted `girih.DGN`.
        nll_curve_: penalised exact NLL (nats per row) of the kept run; it never increases but without `safeguard`.
        n_iter_: iterations of that run.
        converged_: whether `tol` was reached, or the held-out rows no longer improved.
        validation_scores_: mean exact log-likelihood of the held-out rows before the first iteration and after each,
            the best of which is kept; `None` without early stopping.
        n_parameters_: free parameters that the data can identify; see `aic`.
        overfit_: `None`, or what `girih.em.OverfitWarning` said: too many parameters for the data.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Source:
        EM-DGN, section 4.

    Example:
        >>> import girih
        >>> X = girih.datasets.load("circle", n=64, seed=0).X
        >>> est = girih.DGNEstimator(hidden=(4,), max_iter=50, tol=1e-2, n_init=2, random_state=0).fit(X)
        >>> est.score_samples(X).shape, est.transform(X).shape, est.sample(3).shape
        ((64,), (64, 1), (3, 2))
    """

    dgn_: DGN

    def __init__(
        self,
        latent_dim: int = 1,
        hidden: tuple[int, ...] = (8,),
        activation: str = "leaky_relu",
        negative_slope: float = 0.1,
        noise: str = "isotropic",
        weight_prior: WeightPrior | tuple[str, float] | str | None = None,
        max_iter: int = 200,
        tol: float = 1e-6,
        n_init: int = 5,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        learn_prior: bool = False,
        noise_floor: float = 1e-6,
        checkpoint: str | os.PathLike[str] | None = None,
        acceleration: str = "quasi-newton",
        batch_size: int | None = None,
        init: str = "auto",
        noise_rank: int = 1,
        noise_prior: float = 0.0,
        kink_ridge: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        n_jobs: int | None = None,
        m_step: str = "joint",
        safeguard: bool = True,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.activation = activation
        self.negative_slope = negative_slope
        self.noise = noise
        self.weight_prior = weight_prior
        self.max_iter = max_iter
        self.tol = tol
        self.n_init = n_init
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.learn_prior = learn_prior
        self.noise_floor = noise_floor
        self.checkpoint = checkpoint
        self.acceleration = acceleration
        self.batch_size = batch_size
        self.init = init
        self.noise_rank = noise_rank
        self.noise_prior = noise_prior
        self.kink_ridge = kink_ridge
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.n_jobs = n_jobs
        self.m_step = m_step
        self.safeguard = safeguard

    def fit(
        self,
        X: Rows | Stream,
        y: object = None,
        sample_weight: Tensor | np.ndarray | Sequence[float] | float | None = None,
    ) -> DGNEstimator:
        """Fit by exact EM.

        Args:
            X: `(N, D)`; NaN entries are missing. Or a stream of rows that need not fit into memory, see
                `girih.em.fit_em`: a path, a dataset of pyarrow, blocks of rows, `girih.Blocks` around a table.
            y: ignored.
            sample_weight: `(N,)` non-negative weights.

        Raises:
            NotNumericError: X holds text, dates or other objects, by column.
            ShapeError, EmptyDataError, NonFiniteError, ParameterError, ModelFileError, StreamError, ProcessError.
        """
        if is_stream(X):
            blocks = Blocks.of(X)
            self._validate(blocks.first(), reset=True)  # type: ignore[arg-type]
            return self._fit(blocks, None if sample_weight is None else np.asarray(sample_weight))
        X = self._validate(X, reset=True)  # type: ignore[arg-type]
        weight: np.ndarray | None = None
        if sample_weight is not None:
            given = sample_weight if np.isscalar(sample_weight) else _as_numpy(sample_weight, "sample_weight")
            weight = _check_sample_weight(given, X, dtype=np.float64, ensure_non_negative=True)
        return self._fit(X, weight)

    def _fit(self, X: np.ndarray | Blocks, weight: np.ndarray | None) -> DGNEstimator:
        warm = self.warm_start and hasattr(self, "dgn_")
        dgn = self._new_model(self.n_features_in_)
        if warm:
            dgn = warm_model(self.dgn_, dgn)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        whole(self.n_init, "n_init")
        options = self.em_options(seed)
        result = fit_em(
            dgn,
            X,
            sample_weight=weight,
            progress=bool(self.verbose),
            checkpoint=self.checkpoint,
            validation=self._validation(),
            n_jobs=self.n_jobs,
            **vars(replace(options, n_init=0) if warm else options),
        )
        self.dgn_ = dgn
        self._record(result)
        return self

    def em_options(self, seed: int = 0) -> EMOptions:
        """The options of `girih.em.fit_em` that `fit` uses, checked.

        Raises:
            ParameterError: one of them is out of its domain.
        """
        self._validation()
        patience = whole(self.n_iter_no_change, "n_iter_no_change")
        return EMOptions.among({**vars(self), "seed": seed, "patience": patience})

    def _validation(self) -> float | None:
        """The share of the rows that is held out, checked whether it is used or not."""
        if not isinstance(self.early_stopping, bool | np.bool_):
            raise ParameterError(f"early_stopping must be True or False; got {self.early_stopping!r}")
        fraction = real(self.validation_fraction, "validation_fraction")
        if fraction >= 1.0:
            raise ParameterError(f"validation_fraction must be below 1; got {fraction:g}")
        return fraction if self.early_stopping else None

    def _record(self, result: FitResult) -> None:
        self.nll_curve_ = result.curve
        self.n_iter_ = result.steps
        self.converged_ = result.converged
        self.interrupted_, self.overfit_ = result.ended == "interrupted", result.overfit
        self.n_parameters_ = count_parameters(self.dgn_, self.learn_prior)
        self._n_features_out = self.dgn_.latent_dim
        self.validation_scores_ = None if result.held_out is None else -result.history["held_out"]

    def _new_model(self, output_dim: int) -> DGN:
        if self.noise not in NOISES:
            raise ParameterError(f"noise must be one of {', '.join(NOISES)}; got {self.noise!r}")
        sizes = [whole(self.latent_dim, "latent_dim"), *wholes(self.hidden, "hidden"), output_dim]
        net = mlp(sizes, self.activation, self.negative_slope, seed=0)
        start = Covariance.diagonal(np.ones(output_dim))
        kind = "scalar" if self.noise == "isotropic" else self.noise
        return DGN(net, noise=start.to(kind, self._rank(output_dim)))

    def _rank(self, output_dim: int) -> int:
        rank = whole(self.noise_rank, "noise_rank")
        if self.noise == "low_rank" and rank > output_dim:
            raise ParameterError(f"noise_rank must be at most the number of columns, {output_dim}; got {rank}")
        return rank

    def _validate(self, X: Rows, reset: bool) -> np.ndarray:
        """The rows as float64, with NaN where they are missing, after scikit-learn's checks of names and shapes."""
        rows, labels = _as_numpy(X, "X"), column_labels(X)
        try:
            _check_feature_names(self, X, reset=reset)
            check_array(rows, ensure_all_finite=False, estimator=self)
            _check_n_features(self, rows, reset=reset)
        except (TypeError, ValueError) as error:
            raise (ShapeError if rows.size else EmptyDataError)(" ".join(str(error).split())) from None
        check_finite(torch.as_tensor(rows), "X", allow_missing=True, labels=labels)
        if reset:
            check_largest(torch.as_tensor(rows), "X", labels)
        return rows

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def score_samples(self, X: Rows) -> np.ndarray:
        """Exact `log p(x)` of each row in nats, `(N,)`; missing entries are marginalised."""
        X = self._fitted(X)
        with torch.no_grad():
            result: np.ndarray = self.dgn_().log_prob(X).cpu().numpy()
            return result

    def score(self, X: Rows, y: object = None) -> float:
        """Mean exact log-likelihood of the rows, in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Draw rows from the model, `(n_samples, D)`; reproducible if `random_state` is given."""
        check_is_fitted(self)
        shape = (whole(n_samples, "n_samples"),)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        result: np.ndarray = self.dgn_().sample(shape, seed=seed).cpu().numpy()
        return result

    def transform(self, X: Rows) -> np.ndarray:
        """The embedding: posterior mean of z for each row, `(N, S)`."""
        X = self._fitted(X)
        return self.dgn_.posterior(X).mean.cpu().numpy()

    def inverse_transform(self, Z: Rows) -> np.ndarray:
        """The generated rows `g(z)`, `(N, D)`."""
        check_is_fitted(self)
        with torch.no_grad():
            return (
                self.dgn_.trace(as_rows(Z, "Z", self.dgn_.latent_dim, "latent_dim", device=self.dgn_.trace.device))
                .cpu()
                .numpy()
            )

    def impute(
        self, X: Rows, return_std: bool = False, draws: int | None = None, random_state: int | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """X with its NaN entries replaced by `E[x_missing | x_observed]`, `(N, D)`.

        Args:
            X: rows with holes.
            return_std: also give the standard deviation of each entry, `(N, D)`, 0 where it was observed.
            draws: instead draw so many completions, `(draws, N, D)`.
            random_state: the seed of the draws.
        """
        X = self._fitted(X)
        if draws is None and return_std:
            filled, deviation = self.dgn_.impute(X, return_std=True)
            return filled.cpu().numpy(), deviation.cpu().numpy()
        if return_std:
            raise ParameterError("impute gives deviations of the means, or draws; ask for one of them")
        return self.dgn_.impute(X, draws=draws, seed=random_state).cpu().numpy()

    def aic(self, X: Rows) -> float:
        """Akaike's criterion `2 k - 2 log L` on X, from the exact likelihood; lower is better.

        `k = n_parameters_` counts identifiable parameters: a unit of a (leaky) ReLU or absolute-value layer can be
        rescaled against the next layer without any effect, so each unit has one parameter less than it stores.
        """
        return 2.0 * self.n_parameters_ - 2.0 * self._total(X)

    def bic(self, X: Rows) -> float:
        """Schwarz's criterion `k log N - 2 log L` on X, from the exact likelihood; lower is better."""
        scores = self.score_samples(X)
        return self.n_parameters_ * math.log(len(scores)) - 2.0 * float(scores.sum())

    def _total(self, X: Rows) -> float:
        return float(self.score_samples(X).sum())

    def _fitted(self, X: Rows) -> np.ndarray:
        check_is_fitted(self)
        return self._validate(X, reset=False)


def _as_numpy(value: Rows | Sequence[float] | float, name: str) -> np.ndarray:
    return as_tensor(value, name).detach().cpu().numpy()


def fold_estimator(est: DGNEstimator, scaling: Scaling, X: Rows) -> DGNEstimator:
    """Turn an estimator fitted to `scaling.apply(X)` into one over X, in place; returns it.

    Its NLL curve moves by the mean log-Jacobian. The parameters are counted anew: the scale of each column was
    taken from the data, and is now in the noise.
    """
    est.dgn_ = scaling.fold(est.dgn_)
    est.nll_curve_ = est.nll_curve_ + float(scaling.log_jacobian(X).mean())
    est.noise = est.dgn_.noise_covariance.name
    est.n_parameters_ = count_parameters(est.dgn_, est.learn_prior)
    return est
