r"""The schema of a table: rows of any container as rows of numbers and codes, and back.

An encoded table is `x (N, D)`, NaN where missing, and `codes (N, C)`, -1 where missing.

- A **number** has a column of x.
- A **category** (text, pandas categoricals, at most two values that repeat) and a **boolean** have a column of codes.
- A number with **atoms**, values that far more rows have than the values around them (rain = 0.0), has both: the code
  says which atom, or none of them, and x is NaN at atoms. With h the rounding width an atom counts as the density
  `P(atom) / h`, `-log h` of which is `Columns.log_offset`.
- A column with one value is **constant**. A density would be infinite there, so it counts as a category of two: that
  value, and anything else, which no row showed; a model that smooths its tables (Laplace) gives the second a small
  probability, so that a fresh value makes a row strange and not impossible. No `-log h` belongs to it, for no width
  can be known of one number: it adds about 0 nats to rows that have the value.
- A column without an observed entry is kept, but nothing was learned of it, and values in fresh rows are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih.errors import ModelFileError, ParameterError, ShapeError
from girih.tables.column import KINDS, Column, Kind, Unseen, decoded, encoded, learned, listed
from girih.tables.frames import Name, Raw, Table, of_labels, table
from girih.tables.written import Form, write_array, write_frame


@dataclass(frozen=True)
class Columns:
    """The columns of a table, which turn its rows into numbers and codes and back.

    Use it to fit a model of numbers and categories on a table as people have it.

    Attributes:
        items: one `Column` for each.
        source: the kind of container: "array", "tensor", or the package of a frame.

    Example:
        >>> from girih.tables.columns import Columns
        >>> rows = [[1.5, "a"], [2.5, "b"], [None, "a"], [4.0, None]]
        >>> columns = Columns.learn(rows)
        >>> x, codes = columns.read(rows)
        >>> codes[:, 0].tolist()
        [0, 1, 0, -1]
        >>> columns.write(x, codes)[1].tolist()
        [2.5, 'b']
    """

    items: tuple[Column, ...]
    source: str

    @staticmethod
    def learn(X: Any, kinds: Mapping[Name, str] | None = None) -> Columns:
        """The schema of a table.

        Args:
            X: a data frame that narwhals reads (pandas, polars, Arrow, ...), an array (of objects too), a tensor, a
                list of rows; NaN, None, `pd.NA`, `NaT` and masked entries are missing.
            kinds: by name or place, "number", "category" or "boolean" where it should not be found out.

        Raises:
            NotNumericError: dates, text among numbers, or other objects; it says what to do.
            NonFiniteError: infinite or huge values.
            ShapeError: not a table, or unknown names in `kinds`.
            ParameterError: an unknown kind, or text that is different in every row.
            EmptyDataError: no rows or no columns.
        """
        given = table(X)
        wanted = _wanted(given, kinds or {})
        items: list[Column] = []
        numbers = codes = 0
        for raw in given.columns:
            item = learned(raw, wanted.get(raw.name), numbers, codes)
            items.append(item)
            numbers += item.x is not None
            codes += item.code is not None
        return Columns(tuple(items), given.source)

    @property
    def names(self) -> tuple[Name, ...]:
        """The names of the columns of the table, or their places in an array."""
        return tuple(item.name for item in self.items)

    @property
    def named(self) -> bool:
        """Whether the names are the user's."""
        return self.source not in ("array", "tensor")

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each of the C columns of codes has."""
        return tuple(item.size for item in self.items if item.code is not None)

    @property
    def width(self) -> Tensor:
        """The rounding widths of the D columns of x, `(D,)`; 0 where values were not rounded."""
        return torch.tensor([item.width for item in self.items if item.x is not None], dtype=torch.float64)

    @property
    def ends(self) -> Tensor:
        """The least and the largest number that the D columns of x had, `(2, D)`; infinite where not known."""
        nothing = (-math.inf, math.inf)
        pairs = [item.seen or nothing for item in self.items if item.x is not None]
        return torch.tensor(pairs, dtype=torch.float64).view(-1, 2).mT

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Name) -> Column:
        return self.items[self.index(key)]

    def index(self, key: Name) -> int:
        """The place of a column, by its name or its place.

        Raises:
            ShapeError: there is none.
        """
        if key in self.names and not isinstance(key, bool):
            return self.names.index(key)
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < len(self):
            return int(key)
        raise ShapeError(f"there is no column {key!r}; the table has {listed(self.names)}")

    def read(self, X: Any, unseen: Unseen = "error") -> tuple[Tensor, Tensor]:
        """Rows as `x (N, D)` and `codes (N, C)`.

        Args:
            X: a table with the same columns; those of a frame may come in any order.
            unseen: what a category is that was not there before: an error, or "missing".

        Raises:
            ShapeError: missing or additional columns, by name.
            NotNumericError: see `learn`.
            NonFiniteError: infinite or huge values.
            ParameterError: a category that was not there before.
        """
        return self._encode(self._matched(table(X, "X", len(self))), unseen)

    def row(self, known: Mapping[Name, Any], unseen: Unseen = "error") -> tuple[Tensor, Tensor]:
        """One row `x (1, D)`, `codes (1, C)`, of which only the named columns are known.

        Raises:
            ShapeError: an unknown name; see `read` for the rest.
        """
        values: list[Any] = [None] * len(self)
        for key, value in known.items():
            values[self.index(key)] = value
        names = self.names
        columns = [of_labels(n, [v], f"the value of column {n!r}") for n, v in zip(names, values, strict=True)]
        return self._encode(columns, unseen)

    def write(self, x: Tensor, codes: Tensor, like: Any = None, rounded: bool = False) -> Any:
        """Encoded rows in the container of a table.

        "Anything else" than a constant is written as the entry of `like`, or as the constant where there is none; so
        are columns that are no part of the model.

        Args:
            x: `(N, D)`.
            codes: `(N, C)`.
            like: the rows that were read, or others of that kind: the container, the order of the columns of a frame,
                its index. Without it all is as it was learned.
            rounded: round the columns that held whole numbers only.

        Returns:
            A frame with the types of the columns restored where they can hold the values (sparse columns come back
            dense); an array of float64, of booleans if all are, or of objects if there is text; a tensor.
        """
        given = None if like is None else table(like, "like", len(self))
        matched = None if given is None else self._matched(given)
        old = matched if matched is not None and len(matched[0]) == len(x) else [None] * len(self)
        columns = [decoded(one, x, codes, kept, rounded) for one, kept in zip(self.items, old, strict=True)]
        source = self.source if given is None else given.source
        if source in ("array", "tensor"):
            return write_array(columns, source == "tensor")
        forms = [Form(item.dtype, item.levels, item.ordered) for item in self.items]
        if source != self.source and matched is not None:
            forms = [Form(raw.dtype, raw.levels or (), raw.ordered) for raw in matched]
        names, order = self.names, list(range(len(self)))
        if given is not None and given.named:
            names = tuple(raw.name for raw in given.columns)
            order = [self.index(name) for name in names] if self.named else order
        index = given.index if given is not None and len(given) == len(x) else None
        return write_frame(source, names, [columns[i] for i in order], [forms[i] for i in order], index)

    def log_offset(self, codes: Tensor) -> Tensor:
        """`-log h` summed over the entries of a row that are atoms, `(N,)`: add it to `log p`."""
        out = torch.zeros(len(codes), dtype=torch.float64)
        for item in self.items:
            if item.code is not None and item.atoms and not item.other:
                code = codes[:, item.code]
                out -= math.log(item.width) * ((code >= 0) & (code < len(item.atoms)))
        return out

    def summary(self) -> list[dict[str, str]]:
        """For each column its name, its kind, and what was done with it."""
        return [{"column": str(item.name), "kind": item.kind, "note": item.summary()} for item in self.items]

    def to_config(self) -> dict[str, Any]:
        """All of it as values that JSON has."""
        return {"source": self.source, "columns": [asdict(item) for item in self.items]}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Columns:
        """What `to_config` wrote.

        Raises:
            ModelFileError: it did not write this.
        """
        try:
            items = [_column(one) for one in config["columns"]]
            if any(item.kind not in KINDS for item in items):
                raise KeyError("kind")
            return Columns(tuple(items), str(config["source"]))
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"these are not the columns of a table: {error!r}; save the model again") from None

    def _matched(self, given: Table) -> list[Raw]:
        """The columns of a table in the order in which they were learned."""
        if self.named and given.named:
            by_name = {raw.name: raw for raw in given.columns}
            missing = [name for name in self.names if name not in by_name]
            more = [name for name in by_name if name not in self.names]
            if missing or more:
                parts = [f"lacks {listed(missing)}"] if missing else []
                parts += [f"has {listed(more)} besides"] if more else []
                raise ShapeError(
                    f"X has other columns than the table that was fitted: it {' and '.join(parts)}; pass "
                    f"{listed(self.names)}"
                )
            return [by_name[name] for name in self.names]
        if len(given.columns) != len(self):
            raise ShapeError(
                f"X has {len(given.columns)} columns, but the table that was fitted has {len(self)}; pass those"
            )
        return list(given.columns)

    def _encode(self, columns: Sequence[Raw], unseen: Unseen) -> tuple[Tensor, Tensor]:
        if unseen not in ("error", "missing"):
            raise ParameterError(f"unseen must be 'error' or 'missing'; got {unseen!r}")
        N = len(columns[0])
        x = np.full((N, sum(item.x is not None for item in self.items)), np.nan)
        codes = np.full((N, len(self.levels)), -1, dtype=np.int64)
        for item, raw in zip(self.items, columns, strict=True):
            if item.x is None and item.code is None:
                continue
            number, code = encoded(item, raw, unseen)
            if item.x is not None:
                x[:, item.x] = number
            if item.code is not None and code is not None:
                codes[:, item.code] = code
        return torch.from_numpy(x), torch.from_numpy(codes)


def _column(one: Mapping[str, Any]) -> Column:
    """What `asdict` made of a column, with the lists of JSON."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in one.items()}
    return Column(**values)


def _wanted(given: Table, kinds: Mapping[Name, str]) -> dict[Name, Kind]:
    names = [raw.name for raw in given.columns]
    out: dict[Name, Kind] = {}
    for key, kind in kinds.items():
        if key not in names and not (isinstance(key, int) and 0 <= key < len(names)):
            raise ShapeError(f"kinds names the column {key!r}, which X has not; it has {listed(names)}")
        if kind not in KINDS:
            raise ParameterError(f"kinds[{key!r}] must be 'number', 'category' or 'boolean'; got {kind!r}")
        name = key if key in names else names[int(key)]
        out[name] = "number" if kind == "number" else "category" if kind == "category" else "boolean"
    return out
