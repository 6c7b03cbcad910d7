"""Encoded rows: what their columns mean and what they must be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from girih.errors import NonFiniteError, ParameterError, ShapeError
from girih.tables.member import Ensemble


@dataclass(frozen=True)
class Atom:
    """The values that a numeric column takes with a probability of their own.

    Attributes:
        x: the numeric column.
        code: the column of categories that says which: `code < len(values)` means `values[code]`, and
            `code == len(values)` a number other than these.
        values: the atoms, in units of the data.
    """

    x: int
    code: int
    values: tuple[float, ...]


def checked(ensemble: Ensemble, x: Tensor, codes: Tensor, atoms: tuple[Atom, ...]) -> tuple[Tensor, Tensor]:
    """The rows, with the codes that their numbers imply.

    Raises:
        ShapeError: they have not the columns of the model.
        NonFiniteError: an entry is infinite.
        ParameterError: a code is not one of its column, or a row has an atom and a number in one column.
    """
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
