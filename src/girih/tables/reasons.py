r"""Which columns make a row strange: the density of each column given all others.

Leaving out one number j of a row changes what is known of the latent in closed form. With L the inverse of the observed
block of Sigma, `u = (L A)_j / sqrt(L_jj)`, `v = (L (x - b - A m))_j / sqrt(L_jj)`, and t, m precision and mean of z,

    t' = t - u^2,    m' = m - u v / t',    log p' = log p + (log 2pi - log L_jj - log(t' / t) + v^2 t / t') / 2

(L loses `L e_j e_j^T L / L_jj`), so all columns together cost little more than one density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from girih.gaussian import interval_log_mass
from girih.tables.member import Ensemble, Member
from girih.tables.mixture import Observed, gaussians_of, log_prior

_AT_ONCE = 1 << 20
_NEGLIGIBLE = 45.0  # nats below the best of a row


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
    quick = [c for c, (numbers, _) in enumerate(groups) if len(numbers) <= 1]
    for column, (numbers, categories) in enumerate(groups):
        numbers, categories = list(numbers), list(categories)
        seen = (~x[:, numbers].isnan()).any(1) | (codes[:, categories] >= 0).any(1)
        if column in quick:
            out[:, column] = seen.to(out.dtype)
            continue
        less_x, less_codes = x[seen], codes[seen]
        less_x[:, numbers], less_codes[:, categories] = torch.nan, -1
        out[seen, column] = whole[seen] - ensemble.log_prob(less_x, less_codes)
    if quick and len(x):
        chosen = [groups[c] for c in quick]
        cells = max(m.mixture.components * len(m.mixture.basis.constant) for m in ensemble.members)
        parts = torch.arange(len(x)).split(max(1, _AT_ONCE // (cells * max(len(chosen), x.shape[1], 1))))
        for some in parts:
            each = [
                _without(member, x[some], codes[some], chosen) + weight.log()
                for member, weight in zip(ensemble.members, ensemble.weights, strict=True)
            ]
            differences = whole[some, None] - torch.stack(each).logsumexp(0)
            out[some[:, None], torch.tensor(quick)] = torch.where(out[some][:, quick] > 0.0, differences, 0.0)
    return out


def _without(member: Member, x: Tensor, codes: Tensor, groups: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """`log p` of rows without each of J groups of at most one number, `(B, J)`."""
    mixture, rows = member.mixture, member.rows(x, codes)
    observed = Observed.of(mixture.noise, rows.masks)
    log_p, m, t = gaussians_of(mixture, rows, observed)  # (K, B, R)
    L = observed.whiten.mT @ observed.whiten
    A, b = mixture.affine()
    p = rows.pattern
    D = x.shape[1]
    place = torch.tensor([numbers[0] if len(numbers) else D for numbers, _ in groups])  # D: no number

    def padded(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (0, 1), value=fill)[..., place]

    seen = padded(rows.masks, 0.0)[p] > 0.0  # (B, J)
    size = torch.where(seen, padded(L.diagonal(dim1=2, dim2=3), 1.0)[:, p], 1.0)[:, :, None]  # L_jj (K, B, 1, J)
    along = torch.einsum("kpij,krj->kpri", L, A)
    shift = torch.einsum("kpij,krj->kpri", L, b)
    single = len(L[0]) == 1
    pulled = rows.x @ L[:, 0].mT if single else torch.einsum("kbij,bj->kbi", L[:, p], rows.x)
    u = padded(along, 0.0)[:, p]
    v = (padded(pulled, 0.0)[:, :, None] - padded(shift, 0.0)[:, p] - u * m[..., None]) / size.sqrt()  # (K, B, R, J)
    u = u / size.sqrt()
    t, m = t[..., None], m[..., None]
    less = t - u.square()
    mean = m - u * v / less
    constant = math.log(2.0 * math.pi) * seen[:, None].to(x.dtype)
    gain = constant - size.log() - (less / t).log() + v.square() * t / less
    log_p = log_p[..., None] + 0.5 * gain
    prior = torch.stack([_tables(member, rows.codes, categories) for _, categories in groups], -1)  # (K, B, J)
    log_p = log_p + prior[:, :, None]
    if mixture.basis.kinks:
        root = less.sqrt()
        lower = (mixture.basis.edges[:-1, None] - mean) * root
        upper = (mixture.basis.edges[1:, None] - mean) * root
        bound = log_p - 0.5 * (lower.clamp(min=0.0) + (-upper).clamp(min=0.0)).square()
        exact = torch.full_like(log_p, -torch.inf)
        done = torch.zeros_like(log_p, dtype=torch.bool)
        best = bound.amax((0, 2))
        for _ in range(2):  # the second time with the best that was found in place of a bound of it
            here = ~done & (bound > (best - _NEGLIGIBLE)[:, None])
            exact[here] = log_p[here] + interval_log_mass(lower[here], upper[here])
            done, best = done | here, exact.amax((0, 2))
        log_p = exact
    slope = member.scales.log_slope(x).nan_to_num(0.0)
    slopes = slope.sum(1, keepdim=True) - padded(slope, 0.0)
    return rows.unsorted(log_p.logsumexp((0, 2))) + slopes


def _tables(member: Member, codes: Tensor, left_out: Sequence[int]) -> Tensor:
    """`log pi + log p(categories | component)` without some, `(K, B)`."""
    codes = codes.clone()
    codes[:, list(left_out)] = -1
    return log_prior(member.mixture, codes)
