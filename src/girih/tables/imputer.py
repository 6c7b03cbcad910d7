"""`DGNImputer`: the imputations of `TableModel` as a transformer of scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.impute import MissingIndicator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from girih.errors import ParameterError
from girih.tables.checks import TakesTables, check_axes, check_rows
from girih.tables.conditional import Conditional
from girih.tables.extended import filled, selected, with_flags
from girih.tables.frames import Name, table
from girih.tables.model import TableModel


class DGNImputer(TakesTables, OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """A transformer that fills the holes of a table from the exact joint density of its columns.

    Use it in place of `IterativeImputer` or `KNNImputer`, in a `Pipeline` or a `ColumnTransformer`. A missing number
    becomes its mean given what is observed of its row, `E[x_missing | x_observed]`, a missing category or boolean the
    likeliest one. With `sample_posterior` they are one joint draw instead, as multiple imputation needs: fit once, and
    transform with several seeds.

    The output is a table of the kind that came, with the types of its columns where they can hold the values, unless
    `set_output` asks for another. Entries that were observed are never changed. A column without an observed entry in
    `fit` says nothing about itself: it is left out with a warning, or kept and filled with 0 (numbers) where
    `keep_empty_features`; text and booleans of that kind stay missing.

    Args:
        sample_posterior: whether to draw from the conditional density instead of taking its mean.
        add_indicator: whether columns that say what was missing are appended, one (as scikit-learn's
            `MissingIndicator` has them) for each column that had holes in `fit`.
        keep_empty_features: whether columns without an observed entry are kept.
        kinds: as in `TableModel`, for columns of which what is found out does not suit.
        n_folds: as in `TableModel`.
        random_state: seed or `RandomState`, of the fit and of the draws: equal calls of `transform` draw the same.
        verbose: 1 shows a progress bar.

    Attributes:
        model_: the `TableModel`, for everything else that is asked of the table.
        indicator_: the fitted `MissingIndicator`, or None.
        n_features_in_: the number of columns.
        feature_names_in_: their names, of a frame with names.

    Source:
        Rubin, *Multiple Imputation for Nonresponse in Surveys* (1987), for draws in place of means.

    Example:
        >>> import girih, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a = rng.normal(size=60)
        >>> X = np.column_stack([a, 2 * a + 0.1 * rng.normal(size=60)])
        >>> X[0] = 1.0, np.nan
        >>> imputer = girih.DGNImputer(n_folds=2, random_state=0)
        >>> bool(abs(imputer.fit_transform(X)[0, 1] - 2) < 0.2)
        True
    """

    model_: TableModel
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]

    def __init__(
        self,
        *,
        sample_posterior: bool = False,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        kinds: Mapping[Name, str] | None = None,
        n_folds: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.sample_posterior = sample_posterior
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.kinds = kinds
        self.n_folds = n_folds
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: object, y: object = None) -> Self:
        """Fit the density; the rows may have holes or none.

        Args:
            X: a data frame (pandas, polars, Arrow), an array or a list of rows; NaN and None are missing.
            y: ignored.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError, NotNumericError: X is not a table that can be modelled.
            ParameterError: an option is out of its domain.
        """
        for name in ("sample_posterior", "add_indicator", "keep_empty_features"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ParameterError(f"{name} must be True or False; got {getattr(self, name)!r}")
        check_axes(X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.model_ = TableModel(kinds=self.kinds, n_folds=self.n_folds, random_state=seed, verbose=self.verbose)
        self.model_.fit(X)
        self._seed = seed
        self._take_names(self.model_)
        items = self.model_.columns_.items
        self._empty = [place for place, item in enumerate(items) if item.x is None and item.code is None]
        if self._empty and not self.keep_empty_features:
            warnings.warn(
                f"columns without any observed value are left out: {[items[p].name for p in self._empty]}; pass "
                "keep_empty_features=True to keep them",
                UserWarning,
                stacklevel=2,
            )
        self.indicator_ = MissingIndicator(error_on_new=False).fit(self._holes(X)) if self.add_indicator else None
        return self

    def transform(self, X: object) -> object:
        """The rows without holes, as a table of the kind of X, `(N, columns)`.

        Raises:
            ShapeError, NonFiniteError, NotNumericError, ParameterError: the rows do not fit the table.
        """
        check_is_fitted(self)
        check_rows(self, X)
        columns = self.model_.columns_
        holes = self._holes(X) if self.indicator_ is not None else None
        if self.sample_posterior:
            given = Conditional(self.model_._ensemble, *columns.read(X), self.model_._atoms)
            x, codes = given.sample(1, torch.Generator().manual_seed(self._seed))
            whole = columns.write(x[0], codes[0], X, rounded=True)
        else:
            whole = self.model_.impute(X)
        for place in self._empty:
            if self.keep_empty_features and columns.items[place].kind == "number":
                whole = filled(whole, place, columns.names[place])
        kept = self._kept()
        whole = selected(whole, kept, [columns.names[place] for place in kept])
        if holes is None or self.indicator_ is None:
            return whole
        names = self.get_feature_names_out()[len(kept) :].tolist()
        return with_flags(whole, np.asarray(self.indicator_.transform(holes), dtype=bool), names)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """The names of the columns that come out: those that are kept, then `missingindicator_...`.

        Raises:
            ValueError: `input_features` are not the names of the columns of `fit`.
        """
        check_is_fitted(self)
        names = super().get_feature_names_out(input_features)
        kept = names[self._kept()]
        if self.indicator_ is None:
            return np.asarray(kept, dtype=object)
        flags = [f"missingindicator_{names[place]}" for place in self.indicator_.features_]
        return np.array([*kept, *flags], dtype=object)

    def _kept(self) -> list[int]:
        """The places of the columns that come out."""
        return [p for p in range(self.n_features_in_) if self.keep_empty_features or p not in self._empty]

    def _holes(self, X: object) -> NDArray[np.float64]:
        """NaN where an entry is missing and 0 where not, in the order of the columns of the fit."""
        given = table(X, "X", self.n_features_in_)
        flags = [
            np.isnan(raw.values) if isinstance(raw.values, np.ndarray) else [value is None for value in raw.values]
            for raw in given.columns
        ]
        return np.where(np.array(flags).T, np.nan, 0.0)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")
