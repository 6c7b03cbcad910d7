r"""What the missing entries of a row are, given the observed ones: a mixture of truncated and smeared normals.

Given member, component and cell (a *piece*), with V the inverse root of the observed block of Sigma, `L = V^T V` and
`R = Sigma L`, which is the identity on the observed columns,

    z ~ N(mean, 1 / root^2) held to the cell,    y = b + R (y_o - b) + (I - R) A z + N(0, C),    C = (I - R) Sigma (I - R)^T

(the last is `Sigma - Sigma L Sigma` without its cancellation). The latent is counted in deviations t from its *anchor*,
the point of the cell nearest to the mean: its density is proportional to `exp(-c t - t^2 / 2)`, c the distance from the
mean to the anchor, and no digits are lost however far from the mean the cell lies. So each column of each piece is

    y_j = base_j + slope_j t + N(0, C_jj),

and so is any linear combination of columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from girih.errors import NonFiniteError
from girih.gaussian.interval import anchored_moments
from girih.tables.member import Ensemble
from girih.tables.mixture import Mixture, Observed, Rows, cells_of, gaussians_of, log_tables
from girih.tables.scales import Scales

LOG_NEGLIGIBLE = math.log(1e-12)  # share of a row below which a piece is left out


class Pieces(NamedTuple):
    """P pieces of B rows, ascending in the row."""

    row: Tensor  # (P,)
    member: Tensor  # (P,)
    component: Tensor  # (P,), counted through all members
    share: Tensor  # (P,), of sum 1 in each row
    anchor: Tensor  # (P,), c
    below: Tensor  # (P,), where t begins
    above: Tensor  # (P,), where it ends
    log_k0: Tensor  # (P,), log of the integral of exp(-c t - t^2 / 2)
    mean: Tensor  # (P,), E[t]
    variance: Tensor  # (P,), Var[t]
    base: Tensor  # (P, D)
    slope: Tensor  # (P, D)
    which: Tensor  # (P,), the noise of each
    noise: Tensor  # (U, D, D), C
    dropped: Tensor  # (B,), at most this share of each row was left out

    def some(self, piece: Tensor) -> Pieces:
        """Pieces chosen by their places."""
        return Pieces(*(part[piece] for part in self[:-2]), self.noise, self.dropped)

    def noise_of(self, piece: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """`C_ij` of pieces."""
        return self.noise[self.which[piece], i, j]


@dataclass(frozen=True)
class Units:
    """The scales of all members, one below the other: `(M, D)` each."""

    bent: Tensor
    origin: Tensor
    unit: Tensor
    centre: Tensor
    spread: Tensor

    @staticmethod
    def of(ensemble: Ensemble) -> Units:
        """Those of an ensemble."""
        scales = [member.scales for member in ensemble.members]
        names = ("bent", "origin", "unit", "centre", "spread")
        return Units(*(torch.stack([getattr(one, name) for one in scales]) for name in names))

    def at(self, member: Tensor, column: Tensor) -> Scales:
        """The scales of entries, each with a member and a column."""
        own = (part[member, column] for part in (self.bent, self.origin, self.unit, self.centre, self.spread))
        return Scales(*own)


def pieces_of(ensemble: Ensemble, x: Tensor, codes: Tensor) -> Pieces:
    """The pieces of rows `(B, D)` with NaN where missing and categories `(B, C)`, -1 where missing.

    Raises:
        NonFiniteError: a row has no density that a double can hold.
    """
    found = []
    for m, member in enumerate(ensemble.members):
        rows = member.rows(x, codes)
        observed = Observed.of(member.mixture.noise, rows.masks)
        cells = cells_of(member.mixture, rows, observed)
        prior = member.mixture.weights.log()[:, None] + log_tables(member.mixture, rows.codes)  # (K, B)
        prior = prior + (ensemble.weights[m].log() + member.scales.log_slope(x).nan_to_num(0.0).sum(1))[rows.order]
        found.append((rows, observed, cells.log_p + prior[..., None]))
    totals = torch.stack([rows.unsorted(log_w.logsumexp((0, 2))) for rows, _, log_w in found], 1).logsumexp(1)
    if not bool(totals.isfinite().all()):
        n = int((~totals.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"row {n} is so far from everything the model knows, or holds so impossible a category, that its density "
            "is 0 in double precision; leave out what is wrong in it"
        )
    parts, noises, first, uses = [], [], 0, 0
    kept_share = torch.zeros_like(totals)
    for m, (rows, observed, log_w) in enumerate(found):
        log_share = log_w - totals[rows.order][:, None]
        kept = log_share > LOG_NEGLIGIBLE
        k, n, r = kept.nonzero(as_tuple=True)
        mixture = ensemble.members[m].mixture
        part, noise = _part(mixture, rows, observed, (k, n, r))
        share = log_share[kept].exp()
        kept_share.index_add_(0, rows.order[n], share)
        member = torch.full_like(k, m)
        parts.append((rows.order[n], member, first + k, share, *part[:-1], uses + part[-1]))
        noises.append(noise.flatten(0, 1))
        first, uses = first + mixture.components, uses + len(noises[-1])
    flat = [torch.cat(column) for column in zip(*parts, strict=True)]
    by_row = flat[0].argsort(stable=True)
    row, member, component, share, *rest = (column[by_row] for column in flat)
    anchor, below, above, base, slope, which = rest
    moments = anchored_moments(below, above, anchor)
    dropped = sum(member.mixture.components * len(member.mixture.basis.constant) for member in ensemble.members)
    bound = (1.0 - kept_share).clamp(min=0.0, max=dropped * math.exp(LOG_NEGLIGIBLE))
    share = share / kept_share[row]
    return Pieces(
        row, member, component, share, anchor, below, above, *moments, base, slope, which, torch.cat(noises), bound
    )


def _part(
    mixture: Mixture, rows: Rows, observed: Observed, which: tuple[Tensor, Tensor, Tensor]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Anchor, below, above, base, slope and the place of the noise, and `C (K, P, D, D)`, of some cells."""
    k, n, r = which
    p = rows.pattern[n]
    gaussians = gaussians_of(mixture, rows, observed)
    mean, root = gaussians.mean[k, n, r], gaussians.precision[k, n, r].sqrt()
    lower, upper = mixture.basis.edges[r], mixture.basis.edges[r + 1]
    at = mean.clamp(lower, upper)
    anchor, below, above = (at - mean) * root, (lower - at) * root, (upper - at) * root
    A, b = mixture.affine()
    L = observed.whiten.mT @ observed.whiten
    R = mixture.noise[:, None] @ L  # (K, P, D, D)
    rest = (torch.eye(R.shape[-1], dtype=R.dtype) - R) * (1.0 - rows.masks)[:, :, None]
    along = torch.einsum("kpij,krj->kpri", rest, A)
    shift = torch.einsum("kpij,krj->kpri", rest, b)
    if len(rows.masks) == 1:
        regression = rows.x @ R[:, 0].mT
    else:
        regression = torch.einsum("kbij,bj->kbi", R[:, rows.pattern], rows.x)
    slope = along[k, p, r]
    base = regression[k, n] + shift[k, p, r] + slope * at[:, None]
    noise = rest @ mixture.noise[:, None] @ rest.mT
    return (anchor, below, above, base, slope / root[:, None], k * len(rows.masks) + p), 0.5 * (noise + noise.mT)
