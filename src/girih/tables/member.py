"""A mixture in the units of the data, and a weighted average of several: the density of a table."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from girih.tables.mixture import Mixture, Rows, log_prob
from girih.tables.scales import Scales


@dataclass(frozen=True)
class Member:
    """A mixture and the scales of its columns.

    Attributes:
        mixture: in its own units.
        scales: from the units of the data to those.
    """

    mixture: Mixture
    scales: Scales

    def settled(self) -> Member:
        """The same with every tensor in rows of its own memory: how it is laid out decides the last bits of products.

        So a model that is loaded gives the numbers of the one that was saved.
        """
        mixture, basis = self.mixture, self.mixture.basis
        one = replace(basis, **{field.name: _own(getattr(basis, field.name)) for field in fields(basis)})
        named = {name: _own(getattr(mixture, name)) for name in ("weights", "maps", "noise")}
        own = None if mixture.own is None else _own(mixture.own)
        kept = replace(mixture, basis=one, tables=tuple(map(_own, mixture.tables)), own=own, **named)
        return Member(kept, Scales(*(_own(getattr(self.scales, field.name)) for field in fields(Scales))))

    def rows(self, x: Tensor, codes: Tensor) -> Rows:
        """Rows `(N, D)` of the data, NaN where missing, with categories `(N, C)`, as the mixture takes them."""
        return Rows.of(self.scales.forward(x), codes)

    def log_prob(self, x: Tensor, codes: Tensor) -> Tensor:
        """`log p` of what is observed of each row, nats in the units of the data, `(N,)`."""
        return log_prob(self.mixture, self.rows(x, codes)) + self.scales.log_slope(x).nan_to_num(0.0).sum(1)


@dataclass(frozen=True)
class Ensemble:
    """`p(x) = sum_m w_m p_m(x)`.

    Attributes:
        members: the models.
        weights: `(M,)`, positive, of sum 1.
    """

    members: tuple[Member, ...]
    weights: Tensor

    def log_prob_each(self, x: Tensor, codes: Tensor) -> Tensor:
        """`log w_m + log p_m(x)`, `(N, M)`."""
        each = [member.log_prob(x, codes) for member in self.members]
        return torch.stack(each, 1) + self.weights.log()

    def log_prob(self, x: Tensor, codes: Tensor) -> Tensor:
        """`(N,)`, nats."""
        return self.log_prob_each(x, codes).logsumexp(1)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
