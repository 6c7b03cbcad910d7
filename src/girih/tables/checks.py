"""What scikit-learn asks of estimators that take tables, and of their rows before they are read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import _check_feature_names

from girih._arrays import column_labels
from girih.errors import ShapeError


class TakesTables(BaseEstimator):
    """An estimator of tables with holes, text and categories."""

    n_features_in_: int
    feature_names_in_: NDArray[np.object_]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags

    def _take_names(self, other: TakesTables) -> None:
        """Take over the number of columns and their names, or forget those of an earlier fit."""
        self.n_features_in_ = other.n_features_in_
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        if hasattr(other, "feature_names_in_"):
            self.feature_names_in_ = other.feature_names_in_


def check_rows(estimator: BaseEstimator, X: object, any_order: bool = False) -> None:
    """Refuse rows with other columns than those of the fit, in the words of scikit-learn.

    Args:
        estimator: a fitted one, with `n_features_in_`, and `feature_names_in_` if its table had names.
        X: the rows.
        any_order: whether the columns of a frame may come in another order, as they are found by name.

    Raises:
        ShapeError: X has one axis, another number of columns, or columns of other names.
    """
    check_axes(X)
    names = getattr(estimator, "feature_names_in_", None)
    given = column_labels(X)
    if any_order and names is not None and given is not None and sorted(map(str, given)) == sorted(names):
        return
    if names is None and given is not None and not all(isinstance(name, str) for name in given):
        return  # of names that are no strings scikit-learn takes no note; the table does
    try:
        _check_feature_names(estimator, X, reset=False)
    except (TypeError, ValueError) as error:
        raise ShapeError(" ".join(str(error).split())) from None
    shape = _shape(X)
    if given is None and len(shape) == 2 and shape[1] != estimator.n_features_in_:
        raise ShapeError(
            f"X has {shape[1]} features, but {type(estimator).__name__} is expecting {estimator.n_features_in_} "
            "features as input; pass the columns that the table had in fit"
        )


def check_axes(X: object) -> None:
    """Refuse rows with one axis.

    Raises:
        ShapeError: X has one axis.
    """
    shape = _shape(X)
    if len(shape) == 1 and column_labels(X) is None:
        raise ShapeError(
            f"X must be a table of two axes; got one, of shape {shape}. Reshape your data: X.reshape(-1, 1) if it is "
            "one column, X.reshape(1, -1) if it is one row"
        )


def _shape(X: object) -> tuple[int, ...]:
    """The lengths of the axes as far as they are known: of a list, by its first row."""
    if isinstance(X, (list, tuple)):
        if not X or isinstance(X[0], (str, bytes)) or not hasattr(X[0], "__len__"):
            return (len(X),)
        return len(X), len(X[0])
    shape = getattr(X, "shape", ())
    return tuple(shape) if isinstance(shape, tuple) or hasattr(shape, "__iter__") else ()
