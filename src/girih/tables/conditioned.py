"""`TableConditional`: what the missing entries of rows are, in the columns of the user's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih.errors import ParameterError
from girih.tables.columns import Columns
from girih.tables.conditional import Conditional
from girih.tables.draws import seeded
from girih.tables.frames import Name

Array = NDArray[np.float64]


class TableConditional:
    """The exact distribution of the missing entries of N rows, given their observed ones.

    Use it where one number in place of a missing value is not enough: for its spread, intervals, draws, or how likely
    something is. It is what `girih.TableModel.condition` returns. Arrays have a column for each column of the table;
    those of text are NaN in them, see `probabilities`. An observed entry is itself, without spread.

    Attributes:
        columns: the names of its columns.

    Example:
        >>> import girih, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a = rng.normal(size=60)
        >>> X = np.column_stack([a, 2 * a + 0.1 * rng.normal(size=60)])
        >>> c = girih.TableModel(random_state=0).fit(X).condition({0: 1.0})
        >>> c.mean.shape, bool(abs(c.mean[0, 1] - 2) < 0.1), bool(c.std[0, 1] < 0.3)
        ((1, 2), True, True)
    """

    def __init__(self, columns: Columns, conditional: Conditional, places: Sequence[int] | None = None) -> None:
        self._columns, self._conditional = columns, conditional
        self._places = list(range(len(columns)) if places is None else places)

    @property
    def columns(self) -> tuple[Name, ...]:
        """The names of its columns, or their places in an array."""
        return tuple(self._columns.names[place] for place in self._places)

    def __len__(self) -> int:
        return len(self._conditional)

    def __repr__(self) -> str:
        return f"TableConditional({len(self)} rows, columns {list(self.columns)})"

    @property
    def mean(self) -> Array:
        """`E[x | observed]`, `(N, columns)`; of a boolean column the probability that it is true."""
        return self._placed(self._conditional.mean, 0.0, moments=1)

    @property
    def variance(self) -> Array:
        """`(N, columns)`, 0 where observed."""
        return self._placed(self._conditional.variance, 0.0, moments=2)

    @property
    def std(self) -> Array:
        """The standard deviation of each entry, `(N, columns)`."""
        return np.asarray(np.sqrt(self.variance))

    @property
    def covariance(self) -> Array:
        """`(N, columns, columns)`, 0 for observed entries, NaN for columns of text and booleans."""
        inner = self._conditional.covariance.numpy()
        out = np.full((len(self), len(self._places), len(self._places)), np.nan)
        own = [(at, self._columns.items[place].x) for at, place in enumerate(self._places)]
        numbers = [(at, x) for at, x in own if x is not None]
        if numbers:
            at, x = (list(part) for part in zip(*numbers, strict=True))
            out[np.ix_(range(len(self)), at, at)] = inner[:, x][:, :, x]
        return out

    def quantile(self, q: float | Sequence[float]) -> Array:
        """The quantiles of every number alone, `(N, columns)`, or `(Q, N, columns)` for Q levels.

        Raises:
            ParameterError: a level is not between 0 and 1.
        """
        levels = torch.as_tensor(q, dtype=torch.float64)
        each = self._conditional.quantile(levels)
        if levels.ndim == 0:
            return self._placed(each, 0.0)
        return np.stack([self._placed(one, 0.0) for one in each]) if len(levels) else np.empty((0, len(self), 0))

    def cdf(self, values: object) -> Array:
        """`P(x_j <= value_j | observed)` of every number alone, `(N, columns)`; values as a table, or one row of it."""
        x, _ = self._columns.read(values)
        return self._placed(self._conditional.cdf(x.expand(len(self), -1)), 1.0)

    def probabilities(self, column: Name) -> dict[object, Array]:
        """`P(value | observed)` of a column of text, booleans or few values, by value, `(N,)` each.

        For a number that often has the same values (atoms) they are the probabilities of those.

        Raises:
            ParameterError: the column holds numbers without such values.
            ShapeError: there is no such column.
        """
        item = self._columns[column]
        labels = item.atoms or item.levels
        if item.code is None:
            raise ParameterError(f"column {column!r} holds numbers: use quantile, cdf or sample for it")
        each = self._conditional.probabilities(item.code).numpy()
        return {label: each[:, code] for code, label in enumerate(labels)}

    def sample(self, m: int, random_state: int | None = None) -> object:
        """Draw m completions of all rows: an array `(m, N, columns)`, or a list of m frames.

        Args:
            m: how many.
            random_state: the seed.
        """
        x, codes = self._conditional.sample(m, seeded(random_state))
        tables = [self._columns.write(one, code, rounded=True) for one, code in zip(x, codes, strict=True)]
        if isinstance(tables[0], np.ndarray):
            return np.stack(tables)[:, :, self._places]
        if isinstance(tables[0], Tensor):
            return torch.stack(tables)[:, :, self._places]
        return [table[[str(name) for name in self.columns]] if self._columns.named else table for table in tables]

    def log_prob(self, Y: object) -> Array:
        """`log p(Y | observed)` of values for the missing entries, nats in the units of the data, `(N,)`.

        Args:
            Y: the rows completed, or with some of the missing entries; a dict of columns for a single row.

        Raises:
            ParameterError: a value contradicts what was observed, or a row gives nothing new.
        """
        x, codes = self._columns.row(Y) if isinstance(Y, Mapping) else self._columns.read(Y)
        before = self._conditional
        for item in self._columns.items:  # an atom that was observed, or a number beside one, may be repeated
            if item.code is not None and item.x is not None:
                none = len(item.atoms)
                codes[:, item.code] = torch.where(
                    (codes[:, item.code] == none) & ~before.x[:, item.x].isnan(),
                    before.codes[:, item.code],
                    codes[:, item.code],
                )
        new = torch.where(before.codes < 0, codes, -1)
        return np.asarray((before.log_prob(x, codes) + self._columns.log_offset(new)).numpy())

    def marginal(self, columns: Name | Sequence[Name]) -> TableConditional:
        """The distribution of some columns alone, with the same observed entries.

        Raises:
            ShapeError: there is no such column.
        """
        names = [columns] if isinstance(columns, (str, int)) else list(columns)
        places = [self._columns.index(name) for name in names]
        return TableConditional(self._columns, self._conditional, places)

    def _placed(self, inner: Tensor, constant: float, moments: int = 0) -> Array:
        """Numbers `(N, D)` in the columns of the table; of constants the constant, or `constant` for a probability."""
        out = np.full((len(self), len(self._places)), np.nan)
        for at, place in enumerate(self._places):
            item = self._columns.items[place]
            if item.x is not None:
                out[:, at] = inner[:, item.x].numpy()
            elif item.code is not None and item.kind == "boolean" and moments:
                chance = (
                    self._conditional.probabilities(item.code)[:, item.levels.index(True)].numpy()
                    if (True in item.levels)
                    else np.zeros(len(self))
                )
                out[:, at] = chance if moments == 1 else chance * (1.0 - chance)
            elif item.constant is not None and isinstance(item.constant, (int, float)) and moments:
                out[:, at] = float(item.constant) if moments == 1 else 0.0
        return out
