r"""The exact distribution of the missing entries of rows, given the observed ones.

For every row it is a flat list of pieces (`girih.tables.pieces`): the terms of
`p(x_missing | x_observed) = sum_piece P(piece | x_observed) p(x_missing | piece, x_observed)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from girih.errors import NonFiniteError, ParameterError, ShapeError
from girih.tables import moments
from girih.tables.draws import drawn
from girih.tables.member import Ensemble
from girih.tables.moments import Atom, Entries, mean_and_variance, numbers_and_atoms
from girih.tables.pieces import Pieces, Units, pieces_of
from girih.tables.quantiles import Marginals

__all__ = ["Atom", "Conditional", "reasons"]

_AT_ONCE = 1 << 23  # numbers in the largest array


class Conditional:
    """p(missing | observed) of an ensemble, for N rows with holes; observed entries are certain.

    Args:
        ensemble: the joint model.
        x: encoded numbers `(N, D)`, NaN where missing.
        codes: encoded categories `(N, C)`, -1 where missing.
        atoms: which columns of categories belong to numbers, and the values they stand for.

    Raises:
        ShapeError: `x` or `codes` has not the columns of the model, or they differ in their rows.
        NonFiniteError: an entry is infinite, or a row has no density that a double can hold.
        ParameterError: a code is not one of its column, or a row has an atom and a number in one column.
    """

    def __init__(self, ensemble: Ensemble, x: Tensor, codes: Tensor, atoms: Sequence[Atom] = ()) -> None:
        self.ensemble = ensemble
        self.atoms = tuple(atoms)
        self.x, self.codes = _checked(ensemble, x, codes, self.atoms)
        self.tables = tuple(torch.cat(part) for part in zip(*(m.mixture.tables for m in ensemble.members), strict=True))
        self.units = Units.of(ensemble)
        self.known = self.x.clone()  # with the atoms, in units of the data
        for atom in self.atoms:
            code = self.codes[:, atom.code]
            here = (code >= 0) & (code < len(atom.values))
            self.known[here, atom.x] = x.new_tensor(atom.values)[code[here]]
        self.columns = torch.arange(x.shape[1])
        self.code_columns = torch.arange(codes.shape[1])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def missing(self) -> Tensor:
        """Which numbers are not known and belong to this distribution, `(N, D)` booleans, D of the whole table."""
        chosen = torch.zeros(self.x.shape[1], dtype=torch.bool)
        chosen[self.columns] = True
        return self.known.isnan() & chosen

    def blocks(self) -> Iterator[tuple[slice, Pieces]]:
        """The pieces, some rows at a time."""
        D = self.x.shape[1]
        each = sum(m.mixture.components * (len(m.mixture.basis.constant) + D) * D for m in self.ensemble.members)
        size = max(1, _AT_ONCE // max(each, 1))
        for start in range(0, len(self), size):
            here = slice(start, start + size)
            yield here, pieces_of(self.ensemble, self.x[here], self.codes[here])

    def marginal(self, columns: Sequence[int], code_columns: Sequence[int] = ()) -> Conditional:
        """The conditional distribution of some columns alone, in the order given; what was observed stays observed.

        Args:
            columns: places among the numbers of this distribution.
            code_columns: places among its categories; that of an atom column must come with its number.

        Raises:
            ParameterError: an atom column comes without its number, or its number without it.
        """
        own = object.__new__(Conditional)
        own.__dict__.update(
            {k: v for k, v in self.__dict__.items() if not isinstance(getattr(type(self), k, None), cached_property)}
        )
        own.columns = self.columns[torch.as_tensor(columns, dtype=torch.long)]
        own.code_columns = self.code_columns[torch.as_tensor(code_columns, dtype=torch.long)]
        for atom in self.atoms:
            if bool((own.columns == atom.x).any()) != bool((own.code_columns == atom.code).any()):
                raise ParameterError(
                    f"number {atom.x} and category {atom.code} are one column of the table: a marginal needs both or neither"
                )
        return own

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, variance = self.known.nan_to_num(0.0), torch.zeros_like(self.known)
        for here, pieces in self.blocks():
            each = self._piecewise(here, pieces)
            share = pieces.share[:, None]
            gone = self.missing[here]
            centre = torch.zeros_like(mean[here]).index_add_(0, pieces.row, share * each[0])
            apart = each[1] + (each[0] - centre[pieces.row]).square()
            total = torch.zeros_like(centre).index_add_(0, pieces.row, share * apart)
            mean[here] = torch.where(gone, centre, mean[here])
            variance[here] = torch.where(gone, total.nan_to_num(torch.inf), 0.0)
        if not bool(mean.isfinite().all() and variance.isfinite().all()):
            columns = (~mean.isfinite() | ~variance.isfinite()).any(0).nonzero()[:, 0].tolist()
            warnings.warn(
                f"means or variances of columns {columns} overflow in some rows, since a heavy tail is certain there; they "
                "are given as infinite: use quantiles",
                RuntimeWarning,
                stacklevel=3,
            )
        return mean, variance

    def _piecewise(self, here: slice, pieces: Pieces) -> tuple[Tensor, Tensor]:
        chances = numbers_and_atoms(self.tables, self.atoms, pieces, self.codes[here])
        known = torch.where(self.missing[here], torch.nan, self.known[here].nan_to_num(0.0))
        entries = Entries.of(pieces, self.missing[here])
        return mean_and_variance(pieces, entries, self.units, known, self.atoms, chances)

    @property
    def mean(self) -> Tensor:
        """`E[x | observed]`, `(N, D)` in units of the data, observed entries themselves; infinite with a warning."""
        return self._moments[0][:, self.columns]

    @property
    def variance(self) -> Tensor:
        """`(N, D)`, 0 where observed."""
        return self._moments[1][:, self.columns]

    @property
    def std(self) -> Tensor:
        """The square root of `variance`, `(N, D)`."""
        return self.variance.sqrt()

    @property
    def covariance(self) -> Tensor:
        """`(N, D, D)`; rows and columns of observed entries are 0."""
        mean, _ = self._moments
        D = len(self.columns)
        out = self.x.new_zeros(len(self), D, D)
        for here, pieces in self.blocks():
            each, variance = self._piecewise(here, pieces)
            number, _ = numbers_and_atoms(self.tables, self.atoms, pieces, self.codes[here])
            gone = self.missing[here]
            apart = torch.where(gone[pieces.row], each - mean[here][pieces.row], 0.0)
            rows = torch.zeros(len(gone), *2 * (len(gone[0]),), dtype=mean.dtype)
            for some in torch.arange(len(each)).split(max(1, _AT_ONCE // 8 // max(1, gone.shape[1] ** 2))):
                part = pieces.some(some)
                own = moments.covariance(part, self.units, gone, number[some], variance[some])
                own += apart[some, :, None] * apart[some, None, :]
                rows.index_add_(0, part.row, part.share[:, None, None] * own)
            rows = rows[:, self.columns][:, :, self.columns]
            out[here] = 0.5 * (rows + rows.mT)
        return out

    def cdf(self, values: Tensor) -> Tensor:
        """`P(x_j <= values_j | observed)` of every column alone, `(N, D)` for values `(N, D)` in units of the data.

        An observed entry is certain: 0 or 1. The error is below 1e-10.
        """
        full = self.x.new_full(self.x.shape, torch.nan)
        full[:, self.columns] = values.to(self.x.dtype).expand(len(self), len(self.columns))
        out = (self.known <= full).to(self.x.dtype)
        for here, pieces in self.blocks():
            marginals = self.marginals(here, pieces)
            row, column = marginals.slots
            out[here][row, column] = marginals.cdf(full[here][row, column])
        return out[:, self.columns]

    def marginals(self, here: slice, pieces: Pieces) -> Marginals:
        """The distributions of single columns of some rows."""
        chances = numbers_and_atoms(self.tables, self.atoms, pieces, self.codes[here])
        return Marginals.of(pieces, self.missing[here], self.units, self.atoms, chances)

    def quantile(self, q: float | Tensor) -> Tensor:
        """The least x with `P(x_j <= x | observed) >= q` of every column alone, in units of the data.

        Args:
            q: one level, for `(N, D)`, or Q of them, for `(Q, N, D)`; from 0, the lower end, to 1, the upper.

        Returns:
            Right to 1e-9 of a column's spread; the probability is right to 1e-10, so that levels nearer to 0 or 1 than
            that are not resolved.

        Raises:
            ParameterError: a level is not between 0 and 1.
        """
        levels = torch.as_tensor(q, dtype=self.x.dtype)
        if levels.ndim > 1 or not bool(((levels >= 0.0) & (levels <= 1.0)).all()):
            raise ParameterError(f"q must be one level between 0 and 1, or a list of them; got {q}")
        out = self.known.repeat(levels.numel(), 1, 1)
        for here, pieces in self.blocks():
            marginals = self.marginals(here, pieces)
            row, column = marginals.slots
            for one, level in zip(out, levels.reshape(-1).tolist(), strict=True):
                one[here][row, column] = marginals.quantile(level)
        return out[..., self.columns].reshape(*levels.shape, len(self), len(self.columns))

    def probabilities(self, code_column: int) -> Tensor:
        """`P(category | observed)`, `(N, L)`; 1 and 0 where it was observed. Of an atom column: its atoms, then a number.

        Raises:
            ParameterError: there is no such column of categories.
        """
        if not 0 <= code_column < len(self.code_columns):
            raise ParameterError(f"code_column must be from 0 to {len(self.code_columns) - 1}; got {code_column}")
        c = int(self.code_columns[code_column])
        table, code = self.tables[c], self.codes[:, c]
        out = torch.nn.functional.one_hot(code.clamp(min=0), table.shape[1]).to(table.dtype)
        if bool((code < 0).any()):
            for here, pieces in self.blocks():
                sums = torch.zeros_like(out[here])
                sums.index_add_(0, pieces.row, pieces.share[:, None] * table[pieces.component])
                out[here] = torch.where(code[here, None] < 0, sums, out[here])
        return out

    def sample(self, m: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Joint draws of everything that is missing: `x (m, N, D)` and `codes (m, N, C)`, encoded like the rows.

        Where a draw is an atom its number is NaN, as in encoded rows.
        """
        x, codes = self.x.repeat(m, 1, 1), self.codes.repeat(m, 1, 1)
        for here, pieces in self.blocks():
            x[:, here], codes[:, here] = drawn(
                pieces, self.units, self.tables, self.atoms, self.x[here], self.codes[here], m, generator
            )
        return x[..., self.columns], codes[..., self.code_columns]

    def log_prob(self, x: Tensor, codes: Tensor) -> Tensor:
        """`log p(given | observed)`, nats in units of the data, `(N,)`.

        Args:
            x: `(N, D)` values for some of the missing numbers, NaN for others; observed ones may be repeated.
            codes: `(N, C)` values for some of the missing categories, -1 for others.

        Raises:
            ParameterError: a value contradicts what was observed, or a row has nothing new.
        """
        both_x, both_codes = self.x.clone(), self.codes.clone()
        given_x, given_codes = torch.full_like(self.x, torch.nan), torch.full_like(self.codes, -1)
        given_x[:, self.columns], given_codes[:, self.code_columns] = x, codes
        wrong = (given_x != self.x) & ~given_x.isnan() & ~self.x.isnan()
        wrong_codes = (given_codes != self.codes) & (given_codes >= 0) & (self.codes >= 0)
        for what, bad in (("number", wrong), ("category", wrong_codes)):
            if bool(bad.any()):
                n, j = (int(part) for part in bad.nonzero()[0])
                raise ParameterError(
                    f"row {n} was observed with another value in {what} {j}: give NaN or the same value"
                )
        both_x = torch.where(both_x.isnan(), given_x, both_x)
        both_codes = torch.where(both_codes < 0, given_codes, both_codes)
        both_x, both_codes = _checked(self.ensemble, both_x, both_codes, self.atoms)
        new = (both_x.isnan() != self.x.isnan()).any(1) | (both_codes != self.codes).any(1)
        if not bool(new.all()):
            n = int((~new).nonzero()[0])
            raise ParameterError(f"row {n} gives no value for an entry that was missing: there is nothing to judge")
        return self.ensemble.log_prob(both_x, both_codes) - self.ensemble.log_prob(self.x, self.codes)


def _checked(ensemble: Ensemble, x: Tensor, codes: Tensor, atoms: tuple[Atom, ...]) -> tuple[Tensor, Tensor]:
    mixture = ensemble.members[0].mixture
    D, C = mixture.maps.shape[1], len(mixture.tables)
    if x.ndim != 2 or codes.ndim != 2 or x.shape[1] != D or codes.shape != (len(x), C):
        raise ShapeError(f"rows must be x (N, {D}) and codes (N, {C}); got {tuple(x.shape)} and {tuple(codes.shape)}")
    if bool(x.isinf().any()):
        n, j = (int(part) for part in x.isinf().nonzero()[0])
        raise NonFiniteError(f"row {n} is infinite in number {j}: give a finite value, or NaN for a missing one")
    for c, table in enumerate(mixture.tables):
        if bool(((codes[:, c] < -1) | (codes[:, c] >= table.shape[1])).any()):
            raise ParameterError(f"category {c} has codes 0 to {table.shape[1] - 1}, and -1 where missing; got others")
    codes = codes.clone()
    for atom in atoms:
        seen, code, last = ~x[:, atom.x].isnan(), codes[:, atom.code], len(atom.values)
        if bool((seen & (code >= 0) & (code < last)).any()):
            raise ParameterError(
                f"a row has an atom and a number in number {atom.x}: where it is an atom x must be NaN"
            )
        codes[:, atom.code] = torch.where(seen, last, code)
    return x, codes


def reasons(
    ensemble: Ensemble, x: Tensor, codes: Tensor, groups: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Tensor:
    """How strange each column makes each row: `log p(x) - log p(x without the column)`, `(N, columns)`, nats.

    It is the log density of the column given the others; 0 where the column is missing.

    Args:
        ensemble: the joint model.
        x: encoded numbers `(N, D)`.
        codes: encoded categories `(N, C)`.
        groups: for each column of the table, its numbers and its categories.
    """
    whole = ensemble.log_prob(x, codes)
    out = whole.new_zeros(len(x), len(groups))
    for column, (numbers, categories) in enumerate(groups):
        numbers, categories = list(numbers), list(categories)
        seen = (~x[:, numbers].isnan()).any(1) | (codes[:, categories] >= 0).any(1)
        less_x, less_codes = x[seen], codes[seen]
        less_x[:, numbers], less_codes[:, categories] = torch.nan, -1
        out[seen, column] = whole[seen] - ensemble.log_prob(less_x, less_codes)
    return out
