r"""Curves through a table: piecewise-linear functions of one latent with fixed kinks, and no latent at all.

A component of a mixture sends `z ~ N(0, 1)` to `W phi(z)`, with

    phi(z) = (1, z, max(0, z - kappa_1), ..., max(0, z - kappa_J)),

so that on the cell between two kinks it is affine: `phi(z) = constant + slope z`. Without a latent `phi = (1)`, and the
component is a plain Gaussian; with a latent and no kinks it is a Gaussian too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Basis:
    """The functions `phi` of a component, cell by cell.

    Attributes:
        edges: `(R + 1,)`, where the cells begin and end, infinite at both ends.
        constant: `(R, F)`.
        slope: `(R, F)`; on cell r, `phi(z) = constant[r] + slope[r] z`.
        kinky: `(F,)`, 1 for the functions that bend and 0 for the linear ones.
    """

    edges: Tensor
    constant: Tensor
    slope: Tensor
    kinky: Tensor

    @staticmethod
    def plain() -> Basis:
        """No latent: the one function 1."""
        one = torch.ones(1, 1, dtype=torch.float64)
        return Basis(_ends(one.new_empty(0)), one, torch.zeros_like(one), torch.zeros(1, dtype=torch.float64))

    @staticmethod
    def line(kinks: int) -> Basis:
        """One latent with kinks at equally likely places of `N(0, 1)`."""
        levels = torch.arange(1, kinks + 1, dtype=torch.float64) / (kinks + 1)
        at = torch.special.ndtri(levels)
        active = torch.ones(kinks + 1, kinks, dtype=torch.float64).tril(-1)  # cell r has passed the first r kinks
        ones = torch.ones(kinks + 1, 1, dtype=torch.float64)
        constant = torch.cat((ones, 0.0 * ones, -active * at), 1)
        slope = torch.cat((0.0 * ones, ones, active), 1)
        return Basis(_ends(at), constant, slope, torch.cat((torch.zeros(2), torch.ones(kinks))).double())

    @property
    def latent_dim(self) -> int:
        """S: 0 or 1."""
        return int(self.slope.any())

    @property
    def kinks(self) -> int:
        """J, the number of kinks."""
        return len(self.edges) - 2

    @property
    def size(self) -> int:
        """F, the number of functions."""
        return len(self.kinky)

    @cached_property
    def products(self) -> Tensor:
        """`(3 R, F F)`, by which masses, means and second moments of z on the cells give `E[phi phi^T]`."""
        c, s = self.constant, self.slope
        parts = ((c, c), (s, s)), ((c, s), (s, c))
        first = [(a[:, :, None] * b[:, None, :]).flatten(1) for a, b in parts[0]]
        mixed = sum((a[:, :, None] * b[:, None, :]).flatten(1) for a, b in parts[1])
        return torch.cat((first[0], torch.as_tensor(mixed), first[1]))

    def values(self, z: Tensor) -> Tensor:
        """`phi(z)` of latents `(...,)`, `(..., F)`."""
        cell = torch.bucketize(z, self.edges[1:-1])
        return self.constant[cell] + self.slope[cell] * z[..., None]


def _ends(kinks: Tensor) -> Tensor:
    end = kinks.new_full((1,), torch.inf)
    return torch.cat((-end, kinks, end))
