"""`DGNOutlierDetector`: the strange rows of a table with holes, as an outlier detector of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from girih._options import whole
from girih.errors import ParameterError
from girih.tables.checks import TakesTables, check_axes, check_rows
from girih.tables.conditional import Conditional
from girih.tables.frames import Name
from girih.tables.mixture import distinct_masks
from girih.tables.model import TableModel
from girih.tables.pairs import pairwise, strongest

Array = NDArray[np.float64]

_RANKED = 1000  # rows by whose ranks the dependence of columns is told
_REFERENCE = 1000  # rows by which rows with holes are judged
_LEAST = 200  # the same where a table has many patterns of holes
_BUDGET = 200_000  # rows that are scored for all patterns of the table together, about


class DGNOutlierDetector(TakesTables, OutlierMixin, BaseEstimator):
    r"""An outlier detector for tables with holes, from the exact joint density of all columns.

    Use it in place of `IsolationForest` where entries are missing, columns are mixed, or one wants to know *why* a row
    is strange: `explain` says it by column, `p_value` how rare such a row is.

    A row is an outlier where its score is below a threshold: by default the *pairwise* density, the mean over pairs of
    columns of `log p(x_i, x_j)`, times half the number of columns. Each is an exact marginal of the joint density and
    far better known from few rows than that, see "Tables with holes". With `score="joint"` it is `log p(x)` itself.

    Rows are compared with rows **that have the same holes**, since a density over four columns and one over three have
    different units. The threshold of complete rows is the `contamination` quantile of the score of the rows of `fit`,
    as everywhere in scikit-learn, where contamination is the share of outliers *in the table that is fitted*. For each
    pattern of holes it is the same quantile of the same rows, seen through those holes. (Rows of `fit` that have holes
    themselves are completed for this by a draw from the model.) So each pattern has its share of outliers and a row is
    no outlier for what it lacks; one without any observed entry is none.

    Rows of `fit` are judged by the models of the average that have not seen them (`TableModel.score_held_out`), as a
    strange row that was learned in part looks less strange; so the threshold holds for fresh rows as well. With more
    than 4,000 rows all models have seen them. `p_value` is a rate under the model, and needs no threshold.

    Args:
        contamination: the share of outliers among the rows of `fit`, above 0 and at most 0.5.
        score: "pairs" or "joint". With more than 25 columns about 300 pairs are looked at, for each column those with
            the columns that it depends on most.
        kinds: as in `TableModel`, for columns of which what is found out does not suit.
        n_folds: as in `TableModel`.
        random_state: seed or `RandomState`, of the fit and of all draws.
        verbose: 1 shows a progress bar.

    Attributes:
        model_: the `TableModel`, for everything else that is asked of the table.
        offset_: the threshold of the score of complete rows, nats; `decision_function` of such rows is
            `score_samples` less this.
        threshold_: the same.
        n_features_in_: the number of columns.
        feature_names_in_: their names, of a frame with names.

    Source:
        The p-value is that of a Monte Carlo test: Davison and Hinkley, *Bootstrap Methods* (1997), section 4.2.

    Example:
        >>> import girih, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a = rng.normal(size=60)
        >>> X = np.column_stack([a, 2 * a + 0.1 * rng.normal(size=60)])
        >>> detector = girih.DGNOutlierDetector(contamination=0.02, n_folds=2, random_state=0).fit(X)
        >>> detector.predict([[1.0, -2.0], [1.0, 2.0], [1.0, np.nan]]).tolist()  # -2 is common, but not beside 1
        [-1, 1, 1]
    """

    model_: TableModel
    offset_: float
    threshold_: float
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]
    _seed: int
    _reference: tuple[Tensor, Tensor, Tensor]
    _pairs: list[tuple[int, int]]

    def __init__(
        self,
        *,
        contamination: float = 0.01,
        score: Literal["pairs", "joint"] = "pairs",
        kinds: Mapping[Name, str] | None = None,
        n_folds: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.contamination = contamination
        self.score = score
        self.kinds = kinds
        self.n_folds = n_folds
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: object, y: object = None) -> Self:
        """Fit the density and the thresholds.

        Args:
            X: a data frame (pandas, polars, Arrow), an array or a list of rows; NaN and None are missing.
            y: ignored.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError, NotNumericError: X is not a table that can be modelled.
            ParameterError: an option is out of its domain.
        """
        share = self.contamination
        if isinstance(share, bool) or not isinstance(share, Real) or not 0.0 < share <= 0.5:
            raise ParameterError(f"contamination must be above 0 and at most 0.5; got {share!r}")
        if self.score not in ("pairs", "joint"):
            raise ParameterError(f"score must be 'pairs' or 'joint'; got {self.score!r}")
        check_axes(X)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.model_ = TableModel(kinds=self.kinds, n_folds=self.n_folds, random_state=self._seed, verbose=self.verbose)
        self.model_.fit(X)
        self._take_names(self.model_)
        x, codes = self.model_.columns_.read(X)
        generator = torch.Generator().manual_seed(self._seed)
        given = Conditional(self.model_._ensemble, x, codes, self.model_._atoms)
        patterns = len(distinct_masks(self.model_._known(x, codes))[0])
        folds = self.model_._unseen.folds_of(x, codes)
        x, codes = (part[0] for part in given.sample(1, generator))
        drawn = self.model_._anything().sample(_RANKED, generator)
        self._pairs = strongest(*(part[:, 0] for part in drawn), self.model_._groups())
        self.offset_ = self.threshold_ = self._quantile(self._score(x, codes, folds))
        size = int(np.clip(_BUDGET // patterns, _LEAST, _REFERENCE))
        chosen = torch.randperm(len(x), generator=generator)[:size]
        self._reference = x[chosen], codes[chosen], folds[chosen]
        self._offsets: dict[bytes, float] = {}
        return self

    def score_samples(self, X: object) -> Array:
        """The score of each row, nats in the units of the data, `(N,)`; lower is stranger.

        Rows of `fit` are judged by the models that have not seen them. Rows with other holes are not to be compared by
        it; `decision_function` and `p_value` are made for that.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        return np.asarray(self._scores(*self._read(X)).numpy())

    def decision_function(self, X: object) -> Array:
        """The score of each row less the threshold of its pattern of holes, nats, `(N,)`; outliers are below 0.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        x, codes = self._read(X)
        out = self._scores(x, codes)
        for pattern, rows in patterns_of(self.model_, x, codes):
            out[rows] = out[rows] - self._offset(pattern) if bool(pattern.any()) else 0.0
        return np.asarray(out.numpy())

    def predict(self, X: object) -> NDArray[np.int64]:
        """-1 for outliers and 1 for others, `(N,)`.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    def p_value(self, X: object, n_simulations: int = 999) -> Array:
        """How often the model draws a row that is as strange or more, with the same holes, `(N,)`.

        It is `(1 + #{score(draw) <= score(row)}) / (1 + n_simulations)`: under the model `P(p_value <= a) <= a` for
        every level a. The smallest value is `1 / (1 + n_simulations)`, 0.001 by default, so draw more where smaller
        ones matter. The draws are the same in every call. A row without an observed entry has 1.

        Args:
            X: the rows.
            n_simulations: how many rows are drawn, 1 or more.

        Raises:
            ShapeError, NonFiniteError, NotNumericError: the rows do not fit the table.
            ParameterError: they do not, or `n_simulations` is not a whole number, 1 or more.
        """
        n = whole(n_simulations, "n_simulations")
        x, codes = self._read(X)
        scores = self._scores(x, codes)
        return np.asarray(simulated_p_values(self.model_, x, codes, scores, n, self._seed, self._score).numpy())

    def explain(self, X: object, relative: bool = False) -> Array:
        """How strange each column makes each row: `log p(x) - log p(x without the column)`, `(N, columns)`, nats.

        It is the log density of the entry given all others of its row, and 0 where missing. Within a column the lowest
        is the strangest; columns are compared by `relative`, as in `TableModel.explain`.

        Args:
            X: the rows.
            relative: less what it is on average, in which units of measurement cancel.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        check_is_fitted(self)
        check_rows(self, X)
        return self.model_.explain(X, held_out=True, relative=relative)

    # Inside ----------------------------------------------------------------------------------------------------------

    def _scores(self, x: Tensor, codes: Tensor) -> Tensor:
        """By models that have not seen the rows."""
        return self._score(x, codes, self.model_._unseen.folds_of(x, codes))

    def _score(self, x: Tensor, codes: Tensor, folds: Tensor | None = None) -> Tensor:
        """Of encoded rows, `(N,)`; of rows of `fit` by the models that have not seen their `folds`."""
        model = self.model_
        if self.score == "joint":
            return model._log_prob(x, codes, folds)
        out = torch.empty(len(x), dtype=torch.float64)
        folds = torch.full((len(x),), -1) if folds is None else folds
        for ensemble, rows in model._unseen.parts(model._ensemble, folds):
            out[rows] = pairwise(ensemble, x[rows], codes[rows], model._groups(), self._pairs)
        return out + model.columns_.log_offset(codes)

    def _quantile(self, scores: Tensor) -> float:
        return float(np.percentile(scores.numpy(), 100.0 * self.contamination))

    def _read(self, X: object) -> tuple[Tensor, Tensor]:
        check_is_fitted(self)
        check_rows(self, X)
        return self.model_.columns_.read(X)

    def _offset(self, pattern: Tensor) -> float:
        """The threshold of a pattern of holes."""
        known = [item.x is not None or item.code is not None for item in self.model_.columns_.items]
        if pattern.tolist() == known:
            return self.offset_
        key = pattern.numpy().tobytes()
        if key not in self._offsets:
            x, codes, folds = self._reference
            self._offsets[key] = self._quantile(self._score(*through(self.model_, pattern, x, codes), folds))
        return self._offsets[key]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")


def simulated_p_values(
    model: TableModel,
    x: Tensor,
    codes: Tensor,
    scores: Tensor,
    n: int,
    seed: int,
    score: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """How often the model draws a row that is as strange or more, with the same holes, `(N,)`.

    Args:
        model: fitted.
        x: rows `(N, D)`, NaN where missing.
        codes: `(N, C)`, -1 where missing.
        scores: of these rows, nats.
        n: how many rows are drawn, the same for all patterns of holes.
        seed: of the draws.
        score: of rows; by default `log p`.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn_x, drawn_codes = (part[:, 0] for part in model._anything().sample(n, generator))
    out = torch.ones(len(x), dtype=torch.float64)
    for pattern, rows in patterns_of(model, x, codes):
        drawn = (score or model._log_prob)(*through(model, pattern, drawn_x, drawn_codes)).sort().values
        below = torch.searchsorted(drawn, scores[rows], right=True)
        out[rows] = (1.0 + below.double()) / (1.0 + n)
    return out


def patterns_of(model: TableModel, x: Tensor, codes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each pattern of holes `(columns,)`, True where observed, and its rows."""
    patterns, which = distinct_masks(model._known(x, codes))
    for p, pattern in enumerate(patterns):
        yield pattern, (which == p).nonzero()[:, 0]


def through(model: TableModel, pattern: Tensor, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Complete rows as a pattern of holes shows them."""
    x, codes = x.clone(), codes.clone()
    for item, shown in zip(model.columns_.items, pattern.tolist(), strict=True):
        if not shown and item.x is not None:
            x[:, item.x] = torch.nan
        if not shown and item.code is not None:
            codes[:, item.code] = -1
    return x, codes
