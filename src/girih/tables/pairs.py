r"""The pairwise density of rows, by which a strange row is told more surely than by the joint one.

    s(x) = m / 2 * mean over pairs i < j of log p(x_i, x_j)

for the m columns that a row shows; the mean of the pairs has all columns with the same weight, so units of measurement
add the same number to all rows, and for two columns it is `log p(x)`. Each `p(x_i, x_j)` is an exact marginal. A joint
density in many columns is known from few rows only roughly, and rows that are strange in a cluster of their own have a
component that learned them; in two columns at a time both matter less (composite likelihoods: Varin, Reid and Firth,
*An overview of composite likelihood methods*, 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from girih.tables.member import Ensemble, Member
from girih.tables.scales import Scales

MOST = 300  # pairs of columns

Group = tuple[Sequence[int], Sequence[int]]  # the numbers and the categories of a column of the table


def marginal(ensemble: Ensemble, numbers: Sequence[int], categories: Sequence[int]) -> Ensemble:
    """The exact density of some numbers and categories alone."""
    return Ensemble(
        tuple(_marginal(one, list(numbers), list(categories)) for one in ensemble.members), ensemble.weights
    )


def _marginal(member: Member, numbers: list[int], categories: list[int]) -> Member:
    mixture, scales = member.mixture, member.scales
    tables = tuple(mixture.tables[c] for c in categories)
    noise = mixture.noise[:, numbers][:, :, numbers]
    own = Scales(
        scales.bent[numbers],
        scales.origin[numbers],
        scales.unit[numbers],
        scales.centre[numbers],
        scales.spread[numbers],
    )
    return Member(replace(mixture, maps=mixture.maps[:, numbers], noise=noise, tables=tables, own=None), own)


def pairwise(
    ensemble: Ensemble, x: Tensor, codes: Tensor, groups: Sequence[Group], pairs: Sequence[tuple[int, int]]
) -> Tensor:
    """s of rows, `(N,)`, nats; of those that show one column its log density, and 0 of those that show none.

    Args:
        ensemble: the joint model.
        x: encoded numbers `(N, D)`, NaN where missing.
        codes: encoded categories `(N, C)`, -1 where missing.
        groups: for each column of the table, its numbers and its categories.
        pairs: of columns, see `strongest`.
    """
    seen = torch.stack([(~x[:, list(n)].isnan()).any(1) | (codes[:, list(c)] >= 0).any(1) for n, c in groups], 1)
    total, count = x.new_zeros(len(x)), x.new_zeros(len(x))
    for i, j in pairs:
        rows = (seen[:, i] & seen[:, j]).nonzero()[:, 0]
        numbers, categories = ([*one, *other] for one, other in zip(groups[i], groups[j], strict=True))
        if len(rows):
            both = marginal(ensemble, numbers, categories)
            total[rows] += both.log_prob(x[rows][:, numbers], codes[rows][:, categories])
            count[rows] += 1.0
    out = 0.5 * seen.sum(1) * total / count.clamp(min=1.0)
    alone = ((count == 0.0) & seen.any(1)).nonzero()[:, 0]  # no pair of them is looked at
    if len(alone):
        out[alone] = ensemble.log_prob(x[alone], codes[alone])
    return out


def strongest(x: Tensor, codes: Tensor, groups: Sequence[Group], most: int = MOST) -> list[tuple[int, int]]:
    """The pairs of columns that are looked at: all, or for each column those that it depends on most, by ranks.

    Args:
        x: complete rows drawn from the model, `(N, D)`.
        codes: `(N, C)`.
        groups: for each column of the table, its numbers and its categories.
        most: how many pairs, about.
    """
    used = [g for g, (numbers, categories) in enumerate(groups) if len(numbers) + len(categories)]
    if len(used) * (len(used) - 1) // 2 <= most:
        return list(combinations(used, 2))
    ranks = np.stack([rankdata(_ordered(x, codes, groups[g]).numpy()) for g in used])
    ranks -= ranks.mean(1, keepdims=True)
    size = np.linalg.norm(ranks, axis=1)
    size[size == 0.0] = 1.0
    dependence = np.abs(ranks @ ranks.T) / np.outer(size, size)
    np.fill_diagonal(dependence, -1.0)
    each = max(1, most // len(used))
    best = np.argsort(-dependence, axis=1, kind="stable")[:, :each]
    found = {(min(i, int(j)), max(i, int(j))) for i in range(len(used)) for j in best[i]}
    return [(used[i], used[j]) for i, j in sorted(found)]


def _ordered(x: Tensor, codes: Tensor, group: Group) -> Tensor:
    """A column of complete rows as numbers; a value that is a mass of its own comes below all others."""
    numbers, categories = group
    if not len(numbers):
        return codes[:, categories[0]].double()
    column = x[:, numbers[0]]
    return torch.where(column.isnan(), column.nan_to_num(torch.inf).amin() - 1.0, column)
