"""Rows that a model was fitted to, and the models of the average that have not seen them.

Each row of a table that is divided into folds was held out once. A strange row is learned in part by the models that
have seen it, so it is judged by those of its own fold. Rows are recognised by their entries: two that are equal count
as the first of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from girih.tables.member import Ensemble


@dataclass(frozen=True)
class Unseen:
    """What was held out where.

    Attributes:
        keys: `(N,)`, of the rows that were held out.
        folds: `(N,)`, where each was.
        number: of folds; the members of the average are those of all folds for the first setting, for the second, ...
    """

    keys: Tensor
    folds: Tensor
    number: int

    @staticmethod
    def of(x: Tensor, codes: Tensor, folds: Tensor, number: int) -> Unseen:
        """For rows `(N, D)` with categories `(N, C)`."""
        return Unseen(row_keys(x, codes), folds, number)

    @staticmethod
    def nothing() -> Unseen:
        """For a model that has no folds, or has seen all of them."""
        empty = torch.empty(0, dtype=torch.long)
        return Unseen(empty, empty, 1)

    def folds_of(self, x: Tensor, codes: Tensor) -> Tensor:
        """The fold of each row `(N,)`, and -1 for fresh ones."""
        if not self._known:
            return torch.full((len(x),), -1)
        return torch.tensor([self._known.get(key, -1) for key in row_keys(x, codes).tolist()], dtype=torch.long)

    @cached_property
    def _known(self) -> dict[int, int]:
        known: dict[int, int] = {}
        for key, fold in zip(self.keys.tolist(), self.folds.tolist(), strict=True):
            known.setdefault(key, fold)
        return known

    def parts(self, ensemble: Ensemble, folds: Tensor) -> Iterator[tuple[Ensemble, Tensor]]:
        """The models that have not seen rows of these folds, with the places of those rows."""
        for fold in folds.unique().tolist():
            yield self._of_fold(ensemble, fold), (folds == fold).nonzero()[:, 0]

    def _of_fold(self, ensemble: Ensemble, fold: int) -> Ensemble:
        if fold < 0:
            return ensemble
        weights = ensemble.weights[fold :: self.number]
        return Ensemble(ensemble.members[fold :: self.number], weights / weights.sum())


def row_keys(x: Tensor, codes: Tensor) -> Tensor:
    """Numbers `(N,)` that rows with the same entries share, and others do not."""
    x = torch.where(x.isnan(), torch.nan, x + 0.0)  # one NaN, and one zero
    both = torch.cat((x.contiguous().view(torch.long), codes), 1).contiguous().numpy()
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in both)
    return torch.tensor([int.from_bytes(one, "little", signed=True) for one in digests], dtype=torch.long)
