"""What a mixture is like (`Setting`), and the rows that it is fitted to (`Table`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from girih.tables.fitting import Kind, Prior


@dataclass(frozen=True)
class Setting:
    """What one mixture is like.

    Attributes:
        components: K.
        kind: of noise.
        tied: whether the components share it.
        rank: of low-rank noise.
        kinks: of each curve; 0 for plain Gaussians.
        ridge: lambda of the kinks.
        floor: rho of the noise.
        bend: whether columns may be transformed.
        shared: whether the curves have the same bends, side by side; only with noise that is tied.
    """

    components: int = 1
    kind: Kind = "full"
    tied: bool = False
    rank: int = 1
    kinks: int = 0
    ridge: float = 1.0
    floor: float = 0.01
    bend: bool = False
    shared: bool = False

    @property
    def latent_dim(self) -> int:
        """S: 1 for curves, 0 for plain mixtures."""
        return int(self.kinks > 0)

    def parameters(self, columns: int, levels: int = 0) -> int:
        """The number of free parameters in D columns, with `levels` more for each component."""
        each = {
            "full": columns * (columns + 1) // 2,
            "diagonal": columns,
            "spherical": 1,
            "low_rank": columns * (self.rank + 1) - self.rank * (self.rank - 1) // 2,
        }[self.kind]
        lines, bends = (
            columns * (2 if self.kinks else 1),
            columns * self.kinks * (1 if self.shared else self.components),
        )
        noises = each * (1 if self.tied else self.components)
        return self.components * (lines + levels + 1) - 1 + bends + noises

    def prior(self, least: Tensor) -> Prior:
        """What its fit is kept by."""
        return Prior(least, self.kind, self.tied, self.rank, self.ridge, self.floor, self.shared)


@dataclass(frozen=True)
class Table:
    """Encoded rows.

    Attributes:
        x: `(N, D)`, NaN where missing.
        codes: `(N, C)`, -1 where missing.
        weight: `(N,)`.
        width: `(D,)`, rounding widths, 0 for none.
        levels: how many categories each code has.
    """

    x: Tensor
    codes: Tensor
    weight: Tensor
    width: Tensor
    levels: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor | slice) -> Table:
        """Some of the rows."""
        return replace(self, x=self.x[index], codes=self.codes[index], weight=self.weight[index])

    def without(self, index: Tensor) -> Table:
        """The other rows."""
        left = torch.ones(len(self), dtype=torch.bool)
        left[index] = False
        return self.take(left.nonzero()[:, 0])

    def mean(self, values: Tensor) -> float:
        """The weighted mean of values of the rows."""
        return float((values * self.weight).sum() / self.weight.sum())
