"""`TableModel`: the exact joint density of the columns of a table with holes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from girih._jobs import alone
from girih._options import whole
from girih._progress import Counted
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.streams import Blocks, Processes, is_stream
from girih.tables.checks import TakesTables, check_axes, check_rows
from girih.tables.choice import EXPECTED, Choice, choose
from girih.tables.columns import Columns
from girih.tables.conditional import Conditional
from girih.tables.conditioned import TableConditional
from girih.tables.draws import seeded
from girih.tables.encoded import Atom
from girih.tables.events import probability
from girih.tables.finished import Finished
from girih.tables.fitter import Fitter
from girih.tables.frames import Name
from girih.tables.member import Ensemble, Member
from girih.tables.mixture import log_prob as log_prob_of
from girih.tables.mixture import posterior_of
from girih.tables.reasons import reasons
from girih.tables.results import results, simplest
from girih.tables.setting import Setting, Table
from girih.tables.stepwise import choose_once
from girih.tables.streamed import Whole, choose_streamed, observed
from girih.tables.unseen import Unseen
from girih.training.checkpoint import seed_of_run

Array = NDArray[np.float64]

_AT_ONCE = 4096  # rows
_ALONE = 1 << 15  # entries up to which one thread fits a table, as torch does with an array of that size
_DRAWN = 1000  # rows that say what is usual in a column


class TableModel(TakesTables, TransformerMixin, DensityMixin, BaseEstimator):
    r"""The exact joint density of all columns of a table, in which entries may be missing.

    Use it on a table of numbers, categories and booleans, with holes or without, to impute with honest spread, to find
    strange rows and what makes them strange, to draw rows, or to ask what one column says of another. No setting is
    needed. The density is a weighted average of mixtures,

        p(x) = sum_m w_m sum_k pi_mk int N(z; 0, 1) N(T_m(x); W_mk phi(z), Sigma_mk) dz |dT_m/dx|,

    of plain Gaussians and of curves with Gaussian noise, in scales that suit the columns; settings and weights are
    chosen by held-out likelihood on folds. Whatever is asked of it (marginals, conditionals, probabilities) is exact.

    Args:
        kinds: by column, "number", "category" or "boolean", where what is found out does not suit.
        n_folds: into how many parts the rows are divided for the choice, 2 or more; by default 10 up to 300 rows, 5
            beyond. With more than 4,000 rows one part is held out.
        random_state: seed or `RandomState`.
        verbose: 1 shows a progress bar.
        checkpoint: file that a killed fit goes on from, to the same numbers; it is removed when the fit is done.
        n_jobs: fits that are made at once, through joblib, to the same numbers; -1 for one on each processor, `None`
            for what `joblib.parallel_config` says, else one.

    Attributes:
        best_: the single model that the one-standard-error rule picks, fitted to all rows, as a `TableModel`.
        setting_: of a single model, what it is like (`girih.tables.Setting`).
        members_: the models that are averaged, `girih.tables.Member`.
        weights_: their weights `(M,)`.
        cv_results_: what was tried, best first: lists by name, `mean_test_score` in nats a row on held-out rows of the
            first folds, and `weight`.
        held_out_score_: the mean held-out log-likelihood of the average, nats a row; `best_.held_out_score_` is that of
            the single model.
        columns_: what was found out about each column, `girih.tables.Columns`.
        n_features_in_: the number of columns.
        feature_names_in_: their names, of a frame with names.

    Source:
        EM: EM-DGN, section 3, with fixed kinks. Factor analysis and mixtures as its cases without kinks; stacking:
        Smyth and Wolpert, *Linearly combining density estimators via stacking* (1999).

    Example:
        >>> import girih
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data[::3].copy()
        >>> X[3, 1] = float("nan")
        >>> model = girih.TableModel(random_state=0).fit(X)
        >>> model.impute(X)[3].shape, model.score_samples(X).shape
        ((4,), (50,))
    """

    setting_: Setting
    feature_names_in_: NDArray[np.object_]
    _usual: Array | None

    def __init__(
        self,
        *,
        kinds: Mapping[Name, str] | None = None,
        n_folds: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.kinds = kinds
        self.n_folds = n_folds
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.n_jobs = n_jobs

    def fit(self, X: object, y: object = None, sample_weight: object = None) -> Self:
        """Fit the density.

        Args:
            X: a data frame (pandas, polars, Arrow), an array or a list of rows; NaN and None are missing. Or a stream
                of rows that need not fit into memory: whatever `girih.Blocks` takes but for a table. A uniform sample,
                drawn in a first pass, then chooses settings and scales, and the few that are kept go on over all
                blocks, which several processes of `torch.distributed` may share. An iterator is passed once: its first
                13,000 rows choose, and stepwise EM learns the others (`girih.tables.stepwise`).
            y: ignored.
            sample_weight: `(N,)`, how many rows each counts for; not negative.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError, NotNumericError: X is not a table that can be modelled.
            ParameterError: an option or a weight is out of its domain.
            StreamError: a block of a stream cannot be read, or the blocks change between passes.
            ProcessError: another process of the run has ended or does not answer.
        """
        number = self.n_folds
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 2):
            raise ParameterError(f"n_folds must be a whole number, 2 or more, or None; got {number!r}")
        if self.random_state is None and self.checkpoint is not None:
            seed = seed_of_run(None, self.checkpoint)
        else:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if is_stream(X):
            if sample_weight is not None:
                raise ParameterError("rows in blocks have no sample_weight; leave it out, or give rows in memory")
            return self._fit_stream(Blocks.of(X), seed)
        return self._fit_rows(X, sample_weight, seed, Processes())

    def _fit_rows(self, X: object, sample_weight: object, seed: int, processes: Processes) -> Self:
        check_axes(X)
        columns = Columns.learn(X, self.kinds)
        x, codes = columns.read(X)
        weight = _weights(sample_weight, len(x))
        if not bool(weight.any()):
            raise ParameterError("every sample_weight is zero, so that no row counts; give some a weight above 0")
        kept = (weight > 0.0) & observed(x, codes)
        if int(kept.sum()) < 2:
            raise EmptyDataError(
                f"a table needs at least 2 rows with an observed entry to be modelled; got n_samples={int(kept.sum())}"
            )
        table = Table(x[kept], codes[kept], weight[kept], columns.width, columns.levels)
        finished = Finished(self.checkpoint, table, {"seed": seed, "n_folds": self.n_folds}, processes, self.n_jobs)
        with alone(table.x.numel(), _ALONE), self._bar(processes) as report:
            try:
                choice = choose(table, seed, report, finished, self.n_folds)
            finally:
                finished.save()
            self._take(columns, choice, table, Fitter(table, seed).fit)
        if choice.folds is not None:
            self._unseen = Unseen.of(table.x, table.codes, choice.folds, int(choice.folds.max()) + 1)
        finished.remove()
        return self

    def _fit_stream(self, blocks: Blocks, seed: int) -> Self:
        """Fit to rows that come in blocks; a stream that is all in the sample is a table in memory."""
        processes = Processes.now()
        seed = processes.agreed(lambda: seed)
        with self._bar(processes) as report:
            if blocks.once:
                found = choose_once(blocks, self.kinds, seed, report, self.n_jobs)
            else:
                found = choose_streamed(blocks, self.kinds, seed, report, self.checkpoint, self.n_jobs)
        if isinstance(found, Whole):
            return self._fit_rows(found.rows, None, seed, processes)
        columns, chosen = found
        self._take(columns, chosen.choice, chosen.held, chosen.members.__getitem__)
        chosen.finished.remove()
        return self

    @contextmanager
    def _bar(self, processes: Processes) -> Iterator[Counted]:
        bar = Counted("fitting the table", EXPECTED, show=bool(self.verbose) and processes.leads)
        try:
            yield bar
        finally:
            bar.close()

    def _take(self, columns: Columns, choice: Choice, table: Table, fit: Callable[[Setting], Member]) -> None:
        """Take over what was chosen; `fit` gives the fit of a setting to all rows."""
        self._set(columns, choice.ensemble)
        self.cv_results_ = results(choice)
        atoms = table.mean(columns.log_offset(table.codes))
        held = choice.weight / choice.weight.sum()
        self.held_out_score_ = atoms + float(held @ (choice.held_out + choice.weights.log()).logsumexp(1))
        best = simplest(choice, table.x.shape[1])
        self.best_ = self._single(fit(best), best)
        self.best_.held_out_score_ = atoms + float(held @ choice.held_out[:, choice.settings.index(best)])
        curves = [setting for setting, _ in choice.screened if setting.kinks and setting.components == 1]
        self._curve = fit(curves[0]).settled() if curves else None
        self.best_._curve = self._curve

    def _set(self, columns: Columns, ensemble: Ensemble) -> None:
        ensemble = Ensemble(tuple(member.settled() for member in ensemble.members), ensemble.weights.clone())
        self.columns_, self._ensemble = columns, ensemble
        self._unseen = Unseen.nothing()
        self._usual = None
        self.members_, self.weights_ = ensemble.members, ensemble.weights.numpy()
        self.n_features_in_ = len(columns)
        if hasattr(self, "feature_names_in_"):  # of an earlier fit
            del self.feature_names_in_
        if columns.named and all(isinstance(name, str) for name in columns.names):
            self.feature_names_in_ = np.array(columns.names, dtype=object)
        self._atoms = tuple(
            Atom(item.x, item.code, item.atoms)
            for item in columns.items
            if item.x is not None and item.code is not None
        )

    def _single(self, member: Member, setting: Setting) -> TableModel:
        """A model of one member."""
        one = TableModel(kinds=self.kinds, n_folds=self.n_folds, random_state=self.random_state)
        one._set(self.columns_, Ensemble((member,), torch.ones(1, dtype=torch.float64)))
        one.setting_ = setting
        one.best_ = one
        return one

    # What rows are like ----------------------------------------------------------------------------------------------

    def score_samples(self, X: object) -> Array:
        """`log p` of what is observed of each row, nats in the units of the data, `(N,)`.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        x, codes = self._read(X)
        return np.asarray(self._log_prob(x, codes).numpy())

    def score(self, X: object, y: object = None) -> float:
        """The mean of `score_samples`, nats a row."""
        return float(self.score_samples(X).mean())

    def score_held_out(self, X: object) -> Array:
        """`score_samples`, but rows of `fit` are judged by the models of the average that have not seen them, `(N,)`.

        Use it to look for strange rows in the table that was fitted: a model that has seen such a row has learned it
        in part. Fresh rows have their `score_samples`, and so has every row where more than 4,000 were fitted.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        x, codes = self._read(X)
        return np.asarray(self._log_prob(x, codes, self._unseen.folds_of(x, codes)).numpy())

    def explain(self, X: object, held_out: bool = False, relative: bool = False) -> Array:
        """How strange each column makes each row: `log p(x) - log p(x without the column)`, `(N, columns)`, nats.

        It is the log density of the entry given all others of its row, and 0 where missing. Within a column the lowest
        is the strangest; columns are compared by `relative`, as densities depend on units of measurement.

        Args:
            X: the rows.
            held_out: by the models that have not seen a row, as `score_held_out`.
            relative: less what it is on average for rows drawn from the model, in which units cancel.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        x, codes = self._read(X)
        out = self._reasons(x, codes, self._unseen.folds_of(x, codes) if held_out else torch.full((len(x),), -1))
        if not relative:
            return out
        return np.where(self._known(x, codes).numpy(), out - self._usual_reasons(), 0.0)

    def _usual_reasons(self) -> Array:
        """`explain` on average for rows drawn from the model, `(columns,)`, the same in every call."""
        if self._usual is None:
            drawn, codes = (part[:, 0] for part in self._anything().sample(_DRAWN, torch.Generator().manual_seed(0)))
            self._usual = self._reasons(drawn, codes, torch.full((_DRAWN,), -1)).mean(0)
        return self._usual

    def _known(self, x: Tensor, codes: Tensor) -> Tensor:
        """Which columns of the table each row shows, `(N, columns)`; those that are no part of the model never."""
        known = torch.zeros(len(x), len(self.columns_), dtype=torch.bool)
        for place, (numbers, categories) in enumerate(self._groups()):
            known[:, place] = (~x[:, numbers].isnan()).any(1) | (codes[:, categories] >= 0).any(1)
        return known

    def _groups(self) -> list[tuple[list[int], list[int]]]:
        """The encoded numbers and categories of each column of the table."""
        return [
            ([] if item.x is None else [item.x], [] if item.code is None else [item.code])
            for item in self.columns_.items
        ]

    def _reasons(self, x: Tensor, codes: Tensor, folds: Tensor) -> Array:
        """`explain` for encoded rows, by the models that have not seen their folds."""
        groups = self._groups()
        out = np.empty((len(x), len(groups)))
        for ensemble, rows in self._unseen.parts(self._ensemble, folds):
            out[rows] = reasons(ensemble, x[rows], codes[rows], groups).numpy()
        for place, item in enumerate(self.columns_.items):
            if item.code is not None:
                alone = torch.full_like(codes, -1)
                alone[:, item.code] = codes[:, item.code]
                out[:, place] += self.columns_.log_offset(alone).numpy()
        return out

    def condition(self, X: object) -> TableConditional:
        """The distribution of what is missing, given what is observed.

        Args:
            X: rows with holes, or a dict of known columns, for one row.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        x, codes = self._read(X)
        return TableConditional(self.columns_, Conditional(self._ensemble, x, codes, self._atoms))

    def impute(
        self, X: object, return_std: bool = False, draws: int | None = None, random_state: int | None = None
    ) -> object:
        """The rows without holes: conditional means of numbers, and the likeliest categories.

        The mean of a column that is taken on a bent scale is held to the values that were seen in `fit`: there the
        exact one, which `condition(X).mean` gives, hangs on a tail that no row has shown.

        Args:
            X: rows with holes.
            return_std: also give the standard deviation of each entry, `(N, columns)`, 0 where observed and NaN for
                text.
            draws: instead draw so many completions, as `TableConditional.sample`.
            random_state: the seed of the draws.

        Returns:
            A table of the kind of X; with `return_std` a pair; with `draws` those.
        """
        x, codes = self._read(X)
        inner = Conditional(self._ensemble, x, codes, self._atoms)
        given = TableConditional(self.columns_, inner)
        if draws is not None:
            return given.sample(draws, random_state)
        codes = codes.clone()
        for item in self.columns_.items:
            if item.code is not None:
                likeliest = inner.probabilities(item.code).argmax(1)
                if item.x is not None:  # the mean already counts the atoms in
                    likeliest = torch.full_like(likeliest, len(item.atoms))
                codes[:, item.code] = torch.where(codes[:, item.code] < 0, likeliest, codes[:, item.code])
        whole = self.columns_.write(self._held(inner), codes, None if isinstance(X, Mapping) else X)
        return (whole, given.std) if return_std else whole

    def _held(self, given: Conditional) -> Tensor:
        """Conditional means, those of bent columns between the ends of what was seen, `(N, D)`."""
        low, high = self.columns_.ends
        hold = given.missing & given.units.bent.any(0)
        return torch.where(hold, given.mean.clamp(low, high), given.mean)

    def probability(self, A: object, b: object) -> float:
        r"""`P(A x <= b)` for a fresh row, of events on one or two columns of numbers.

        Args:
            A: `(m, columns)`, of which at most two columns hold other numbers than 0; or `(columns,)`.
            b: `(m,)`, or a number.

        Raises:
            ParameterError: more than two columns; draw rows with `sample` for those.
            ShapeError: A or b has another shape.
        """
        check_is_fitted(self)
        matrix, bound = np.atleast_2d(np.asarray(A, dtype=float)), np.atleast_1d(np.asarray(b, dtype=float))
        if matrix.ndim != 2 or matrix.shape[1] != len(self.columns_) or bound.shape != (len(matrix),):
            raise ShapeError(
                f"A must be (m, {len(self.columns_)}) and b (m,), one inequality a row; got {matrix.shape} and "
                f"{bound.shape}"
            )
        inner = np.zeros((len(matrix), self._width()))
        for place, item in enumerate(self.columns_.items):
            if item.x is not None:
                inner[:, item.x] = matrix[:, place]
            elif matrix[:, place].any():
                raise ParameterError(f"column {item.name!r} holds no numbers: give it 0 in A, or use condition")
        return float(probability(self._anything(), torch.as_tensor(inner), torch.as_tensor(bound))[0])

    # Draws, components, embedding ------------------------------------------------------------------------------------

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> object:
        """Draw complete rows, as a table of the kind that was fitted.

        Raises:
            ParameterError: `n_samples` is not a whole number, 1 or more.
        """
        check_is_fitted(self)
        x, codes = self._anything().sample(whole(n_samples, "n_samples"), seeded(random_state))
        return self.columns_.write(x[:, 0], codes[:, 0], rounded=True)

    def predict(self, X: object) -> NDArray[np.int64]:
        """The component of `best_` that each row most probably comes from, `(N,)`."""
        x, codes = self._read(X)
        member = self.best_.members_[0]
        each = log_prob_of(member.mixture, member.rows(x, codes), by_component=True)
        return np.asarray(each.argmax(1).numpy())

    def transform(self, X: object, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Where each row lies along the best single curve through the table: `E[z | x]`, `(N, 1)`.

        Args:
            X: rows, with holes or without.
            return_std: also the standard deviation of z given x, `(N, 1)`.

        Raises:
            ParameterError: the table has no column of numbers.
        """
        x, codes = self._read(X)
        if self._curve is None:
            raise ParameterError("the table has no column of numbers, and so no curve to embed its rows on")
        mean, variance = posterior_of(self._curve.mixture, self._curve.rows(x, codes))
        place = mean.numpy()[:, None]
        return (place, np.sqrt(variance.numpy())[:, None]) if return_std else place

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """The name of the embedding's column."""
        return np.array(["tablemodel0"], dtype=object)

    def aic(self, X: object) -> float:
        """Akaike's criterion of `best_` on rows, nats times 2; lower is better."""
        return 2.0 * self.best_._parameters() - 2.0 * float(self.best_.score_samples(X).sum())

    def bic(self, X: object) -> float:
        """The Bayesian criterion of `best_` on rows; lower is better."""
        log_p = self.best_.score_samples(X)
        return math.log(len(log_p)) * self.best_._parameters() - 2.0 * float(log_p.sum())

    def _parameters(self) -> int:
        levels = sum(size - 1 for size in self.columns_.levels)
        setting: Setting = self.setting_
        return setting.parameters(self._width(), levels)

    # Inside ----------------------------------------------------------------------------------------------------------

    def _anything(self) -> Conditional:
        """One row of which nothing is known."""
        nothing = torch.full((1, self._width()), torch.nan, dtype=torch.float64)
        codes = torch.full((1, len(self.columns_.levels)), -1)
        return Conditional(self._ensemble, nothing, codes, self._atoms)

    def _log_prob(self, x: Tensor, codes: Tensor, folds: Tensor | None = None) -> Tensor:
        """`score_samples` of encoded rows, `(N,)`; of rows of `fit` by the models that have not seen their `folds`."""
        out = torch.empty(len(x), dtype=torch.float64)
        for ensemble, rows in self._unseen.parts(self._ensemble, torch.full((len(x),), -1) if folds is None else folds):
            for some in rows.split(_AT_ONCE):
                out[some] = ensemble.log_prob(x[some], codes[some])
        return out + self.columns_.log_offset(codes)

    def _width(self) -> int:
        return len(self.columns_.width)

    def _read(self, X: object) -> tuple[Tensor, Tensor]:
        check_is_fitted(self)
        if isinstance(X, Mapping):
            return self.columns_.row(X)
        check_rows(self, X, any_order=True)
        return self.columns_.read(X)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "columns_")


def _weights(sample_weight: object, rows: int) -> Tensor:
    if sample_weight is None:
        return torch.ones(rows, dtype=torch.float64)
    weight = torch.as_tensor(np.asarray(sample_weight, dtype=np.float64))
    if weight.shape != (rows,):
        raise ShapeError(f"sample_weight must have one number for each of the {rows} rows; got {tuple(weight.shape)}")
    if not bool(weight.isfinite().all()) or bool((weight < 0.0).any()):
        raise ParameterError("sample_weight holds a negative or infinite number; use weights of 0 or more")
    return weight
