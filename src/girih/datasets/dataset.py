"""`Dataset`: a table of rows with its names, shape and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from girih.errors import ParameterError


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table of N rows and D columns; NaN entries are missing. It goes wherever an array goes.

    Attributes:
        X: the rows, `(N, D)` float64.
        feature_names: D names.
        name: the built-in name or the file name.
        description: one line on what the rows are.
        image_shape: `(h, w)` or `(h, w, c)` when every row is an image, else `None`.
        labels: a class for each row, `(N,)`, or `None`.
        entropy: differential entropy of the distribution that the rows were drawn from, in nats, if known.

    Example:
        >>> import numpy as np
        >>> from girih.datasets import load
        >>> circle = load("circle", n=100)
        >>> len(circle), np.asarray(circle).shape, round(circle.entropy, 2)
        (100, (100, 2), 0.26)
    """

    X: NDArray[np.float64] = field(repr=False)
    feature_names: list[str] = field(repr=False)
    name: str
    description: str
    image_shape: tuple[int, ...] | None = None
    labels: NDArray[Any] | None = field(default=None, repr=False)
    entropy: float | None = None

    def __len__(self) -> int:
        return len(self.X)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.X, dtype=dtype, copy=copy)

    def __getitem__(self, index: SupportsIndex | slice | NDArray[Any] | tuple[Any, ...]) -> Any:
        return self.X[index]

    def __dlpack__(self, **options: Any) -> object:
        return self.X.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.X.__dlpack_device__()

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, shape={self.shape}, {self.description})"

    @property
    def ndim(self) -> int:
        """Always 2, as of an array."""
        return self.X.ndim

    @property
    def shape(self) -> tuple[int, int]:
        """The shape `(N, D)`, as of an array."""
        return (self.X.shape[0], self.X.shape[1])

    def subset(self, n: int, seed: int = 0) -> Dataset:
        """`n` rows drawn without replacement and kept in their order.

        Raises:
            ParameterError: n is below 1 or larger than the number of rows.

        Example:
            >>> from girih.datasets import load
            >>> load("iris").subset(20, seed=1).shape
            (20, 4)
        """
        n = check_count(n)
        if n > len(self):
            raise ParameterError(
                f"n = {n} rows were asked of {self.name!r}, which has {len(self)}; lower n or leave it out"
            )
        index = np.sort(make_rng(seed).choice(len(self), n, replace=False))
        labels = None if self.labels is None else self.labels[index]
        return replace(self, X=self.X[index], labels=labels)


def check_count(n: int) -> int:
    """A number of rows as a positive int."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ParameterError(f"n must be a whole number of rows, 1 or more; got {n!r}")
    return int(n)


def make_rng(seed: int) -> np.random.Generator:
    """A generator of its own for each call, so that no global random state is used or changed."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ParameterError(f"seed must be a whole number, 0 or more; got {seed!r}")
    return np.random.default_rng(int(seed))
