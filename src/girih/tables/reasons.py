"""Which columns make a row strange: the density of each column given all others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from girih.tables.member import Ensemble


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

    Example:
        >>> import torch
        >>> from girih.tables.basis import Basis
        >>> from girih.tables.member import Ensemble, Member
        >>> from girih.tables.mixture import Mixture
        >>> from girih.tables.reasons import reasons
        >>> from girih.tables.scales import Scales
        >>> one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        >>> Sigma = torch.tensor([[[1.0, 0.8], [0.8, 1.0]]], dtype=torch.float64)
        >>> mixture = Mixture(Basis.plain(), one[:1], zero[None, :, None], Sigma)
        >>> member = Member(mixture, Scales(zero.bool(), zero, one, zero, one))
        >>> x = torch.tensor([[2.0, -2.0]], dtype=torch.float64)
        >>> codes = torch.empty(1, 0, dtype=torch.long)
        >>> reasons(Ensemble((member,), one[:1]), x, codes, [((0,), ()), ((1,), ())])
        tensor([[-18.4081, -18.4081]], dtype=torch.float64)
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
