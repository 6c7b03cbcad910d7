r"""What the missing entries of a row are, given the observed ones: a mixture of truncated and smeared normals.

Given member, component and cell (a *piece*), with V the inverse root of the observed block of Sigma, `L = V^T V` and
`R = Sigma L`, which is the identity on the observed columns,

    z ~ N(mean, 1 / root^2) held to the cell,
    y = b + R (y_o - b) + (I - R) A z + N(0, C),    C = (I - R) Sigma (I - R)^T

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
from girih.tables.lines import Latent
from girih.tables.member import Ensemble
from girih.tables.mixture import Gaussians, Mixture, Observed, Rows, cells_of, gaussians_of, log_prior
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
        return self._replace(**{name: getattr(self, name)[piece] for name in self._fields[:-2]})

    @property
    def latent(self) -> Latent:
        """The latents of the pieces."""
        return Latent(self.anchor, self.below, self.above, self.log_k0)

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


def pieces_of(ensemble: Ensemble, x: Tensor, codes: Tensor, heavy: Tensor | None = None) -> Pieces:
    """The pieces of rows `(B, D)` with NaN where missing and categories `(B, C)`, -1 where missing.

    Left out are those with a share below 1e-12 of a row. A bent column can be so large on a piece that its moments
    depend on it all the same: with `heavy (B, D)`, the bound `2 |E T| + 2 V` of `log E[exp(2 |T|)]`, V the variance of
    T before the latent is held to the cell (which makes a Gaussian only more log-concave), is added to the logarithm
    of the share.

    Raises:
        NonFiniteError: a row has no density that a double can hold.
    """
    found = []
    for m, member in enumerate(ensemble.members):
        rows = member.rows(x, codes)
        observed = Observed.of(member.mixture.noise, rows.masks)
        gaussians = gaussians_of(member.mixture, rows, observed)
        cells = cells_of(member.mixture, rows, observed, heavy is not None, gaussians)
        prior = log_prior(member.mixture, rows.codes)  # (K, B)
        prior = prior + (ensemble.weights[m].log() + member.scales.log_slope(x).nan_to_num(0.0).sum(1))[rows.order]
        given = _Given.of(member.mixture, rows, observed, gaussians)
        found.append((rows, given, cells.log_p + prior[..., None], cells.mean))
    totals = torch.stack([rows.unsorted(log_w.logsumexp((0, 2))) for rows, _, log_w, _ in found], 1).logsumexp(1)
    if not bool(totals.isfinite().all()):
        first_bad = int((~totals.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"row {first_bad} is so far from everything the model knows, or holds so impossible a category, that its "
            "density is 0 in double precision; leave out what is wrong in it"
        )
    parts, noises, first, uses = [], [], 0, 0
    kept_share = torch.zeros_like(totals)
    for m, (rows, given, log_w, centre) in enumerate(found):
        log_share = log_w - totals[rows.order][:, None]
        size = (
            log_share
            if heavy is None
            else log_share + given.log_square(centre, ensemble.members[m].scales, heavy[rows.order])
        )
        k, n, r = (size > LOG_NEGLIGIBLE).nonzero(as_tuple=True)
        part = log_share[k, n, r].exp()
        kept_share.index_add_(0, rows.order[n], part)
        latent, place = given.latent(k, n, r)
        parts.append((rows.order[n], torch.full_like(k, m), first + k, part, *latent, uses + place))
        noises.append(given.noise.flatten(0, 1))
        first, uses = first + len(log_w), uses + len(noises[-1])
    flat = [torch.cat(column) for column in zip(*parts, strict=True)]
    by_row = flat[0].argsort(stable=True)
    row, of, component, share, anchor, below, above, base, slope, which = (column[by_row] for column in flat)
    log_k0, mean, variance = anchored_moments(below, above, anchor)
    most = sum(member.mixture.components * len(member.mixture.basis.constant) for member in ensemble.members)
    dropped = (1.0 - kept_share).clamp(min=0.0, max=most * math.exp(LOG_NEGLIGIBLE))
    share = share / kept_share[row]
    own = (row, of, component, share, anchor, below, above, log_k0, mean, variance, base, slope, which)
    return Pieces(*own, torch.cat(noises), dropped)


class _Given(NamedTuple):
    """The parameters of `y | z` of a mixture, for B rows with P patterns of holes."""

    edges: Tensor  # (R + 1,)
    pattern: Tensor  # (B,)
    gaussians: Gaussians
    along: Tensor  # (K, P, R, D), (I - R) A
    shift: Tensor  # (K, P, R, D), (I - R) b
    regression: Tensor  # (K, B, D), R y
    noise: Tensor  # (K, P, D, D), C

    @staticmethod
    def of(mixture: Mixture, rows: Rows, observed: Observed, gaussians: Gaussians) -> _Given:
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
        noise = rest @ mixture.noise[:, None] @ rest.mT
        noise = 0.5 * (noise + noise.mT)
        return _Given(mixture.basis.edges, rows.pattern, gaussians, along, shift, regression, noise)

    def log_square(self, z: Tensor, scales: Scales, heavy: Tensor) -> Tensor:
        """The largest bound of `log E[exp(2 |T|)]` among columns that are bent and wanted, `(K, B, R)`."""
        p = self.pattern
        along = self.along[:, p]
        y = self.regression[:, :, None] + self.shift[:, p] + along * z[..., None]
        own = self.noise.diagonal(dim1=2, dim2=3)[:, p, None] + along.square() / self.gaussians.precision[..., None]
        bound = 2.0 * (scales.centre + scales.spread * y).abs() + 2.0 * scales.spread.square() * own
        return torch.where(scales.bent & heavy[:, None], bound, 0.0).amax(-1) if len(scales.bent) else bound.sum(-1)

    def latent(self, k: Tensor, n: Tensor, r: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Anchor, below, above, base and slope of some cells, and the place of their noise."""
        p = self.pattern[n]
        mean, root = self.gaussians.mean[k, n, r], self.gaussians.precision[k, n, r].sqrt()
        lower, upper = self.edges[r], self.edges[r + 1]
        at = torch.minimum(torch.maximum(mean, lower), upper)
        slope = self.along[k, p, r]
        base = self.regression[k, n] + self.shift[k, p, r] + slope * at[:, None]
        own = ((at - mean) * root, (lower - at) * root, (upper - at) * root, base, slope / root[:, None])
        return own, k * self.noise.shape[1] + p
