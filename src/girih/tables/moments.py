r"""Means and covariances of the missing entries in the units of the data, in closed form.

A bent column is `x = origin + unit sinh T` with T = c + d, c its mean and d a smeared truncated normal of mean 0. With
`L(h) = log E[exp(h d)]`, closed by `Latent.tilted`,

    E[sinh T] = (exp(c + L(1)) - exp(-c + L(-1))) / 2
    sinh T - sinh c = sum_s s exp(s c) (exp(s d) - 1) / 2,    s in {1, -1},
    E[(exp(d) - 1) (exp(d') - 1)] = expm1 L(1, 1) - expm1 L(1, 0) - expm1 L(0, 1),

so that small variances are not differences of large numbers. A column with atoms is a number with some probability and
one of the atoms otherwise, independently of the rest given the piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from girih.tables.lines import Latent, Lines
from girih.tables.pieces import Pieces, Units

_AT_ONCE = 1 << 20


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


class Entries(NamedTuple):
    """The missing numbers of all pieces, `(E,)` each."""

    piece: Tensor
    column: Tensor
    lines: Lines  # in the units of the member

    @staticmethod
    def of(pieces: Pieces, missing: Tensor) -> Entries:
        """Those of the columns that are missing, `(B, D)`."""
        piece, column = missing[pieces.row].nonzero(as_tuple=True)
        latent = Latent(pieces.anchor, pieces.below, pieces.above, pieces.log_k0)[piece]
        deviation = pieces.noise_of(piece, column, column).sqrt()
        lines = Lines(latent, pieces.base[piece, column], pieces.slope[piece, column], deviation)
        return Entries(piece, column, lines)


def numbers_and_atoms(
    tables: tuple[Tensor, ...], atoms: tuple[Atom, ...], pieces: Pieces, codes: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """P(the column is a number | piece) `(P, D)`, and for each atom column P(each atom | piece) `(P, L - 1)`."""
    number, levels = torch.ones_like(pieces.base), []
    for atom in atoms:
        table = tables[atom.code][pieces.component]
        free = (codes[:, atom.code] < 0)[pieces.row]
        number[:, atom.x] = torch.where(free, table[:, -1], 1.0)
        levels.append(torch.where(free[:, None], table[:, :-1], 0.0))
    return number, levels


def mean_and_variance(
    pieces: Pieces,
    entries: Entries,
    units: Units,
    known: Tensor,
    atoms: tuple[Atom, ...],
    chances: tuple[Tensor, list[Tensor]],
) -> tuple[Tensor, Tensor]:
    """Means and variances of each column given each piece, `(P, D)`, for rows `known (B, D)`, NaN where missing."""
    piece, column, _ = entries
    mean = known.nan_to_num(0.0)[pieces.row]
    variance = torch.zeros_like(mean)
    for some in torch.arange(len(piece)).split(_AT_ONCE):
        at = piece[some], column[some]
        mean[at], variance[at] = _moments(pieces, entries.lines.some(some), units, *at)
    number, levels = chances
    for atom, level in zip(atoms, levels, strict=True):
        j, value = atom.x, mean.new_tensor(atom.values)
        p, m = number[:, j], mean[:, j]
        free = known[:, j].isnan()[pieces.row]
        whole = torch.where(p > 0, p * m, 0.0) + level @ value
        apart = (value - whole[:, None]).square()
        spread = torch.where(p > 0, p * (variance[:, j] + (m - whole).square()), 0.0) + (level * apart).sum(1)
        mean[:, j] = torch.where(free, whole, m)
        variance[:, j] = torch.where(free, spread, variance[:, j])
    return mean, variance


def _moments(pieces: Pieces, lines: Lines, units: Units, piece: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    scales = units.at(pieces.member[piece], column)
    t, t_variance = pieces.mean[piece], pieces.variance[piece]
    c = scales.centre + scales.spread * (lines.base + lines.slope * t)
    own = scales.spread * lines.deviation
    mean, variance = c.clone(), (scales.spread * lines.slope).square() * t_variance + own.square()
    bent = scales.bent.nonzero()[:, 0]
    if len(bent):
        c, own, t, slope = c[bent], own[bent], t[bent], (scales.spread * lines.slope)[bent]
        latent = lines.latent[bent]
        L = {s: latent.tilted(s * slope)[0] - s * slope * t + 0.5 * (s * own).square() for s in (1, -1, 2, -2)}
        unit = scales.unit[bent]
        mean[bent] = scales.origin[bent] + unit * 0.5 * ((c + L[1]).exp() - (L[-1] - c).exp())
        up, down = L[1].expm1(), L[-1].expm1()
        off = 0.5 * (c.exp() * up - (-c).exp() * down)
        square = (2 * c).exp() * (L[2].expm1() - 2 * up) + (-2 * c).exp() * (L[-2].expm1() - 2 * down) + 2 * (up + down)
        variance[bent] = (unit.square() * (0.25 * square - off.square())).nan_to_num(torch.inf)
    return mean, variance


def covariance(pieces: Pieces, units: Units, missing: Tensor, number: Tensor, variance: Tensor) -> Tensor:
    """Covariances of the columns given each piece, `(P, D, D)`; `variance (P, D)` is that of the whole column."""
    member, mask = pieces.member, missing[pieces.row]
    slope = units.spread[member] * pieces.slope
    own = units.spread[member][:, :, None] * pieces.noise[pieces.which] * units.spread[member][:, None, :]
    out = pieces.variance[:, None, None] * slope[:, :, None] * slope[:, None, :] + own
    bent = units.bent[member] & mask
    pair = (bent[:, :, None] | bent[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    for p, i, j in zip(*(part.split(_AT_ONCE) for part in pair.triu(1).nonzero(as_tuple=True)), strict=True):
        out[p, i, j] = out[p, j, i] = _crossed(pieces, units, p, i, j, own[p, i, j])
    out = out * number[:, :, None] * number[:, None, :] * (mask[:, :, None] & mask[:, None, :])
    out.diagonal(dim1=1, dim2=2).copy_(variance)
    return out


def _crossed(pieces: Pieces, units: Units, p: Tensor, i: Tensor, j: Tensor, own: Tensor) -> Tensor:
    """The covariance of pairs of columns, of which one is bent at least."""
    member = pieces.member[p]
    swap = units.bent[member, i] & ~units.bent[member, j]  # the second is always bent
    i, j = torch.where(swap, j, i), torch.where(swap, i, j)
    latent = Latent(pieces.anchor, pieces.below, pieces.above, pieces.log_k0)[p]
    t = pieces.mean[p]
    one, other = units.at(member, i), units.at(member, j)
    a, b = one.spread * pieces.slope[p, i], other.spread * pieces.slope[p, j]
    c = [s.centre + s.spread * pieces.base[p, k] + g * t for s, k, g in ((one, i, a), (other, j, b))]
    noise = [s.spread.square() * pieces.noise_of(p, k, k) for s, k in ((one, i), (other, j))]

    def log_moment(s: int, r: int) -> tuple[Tensor, Tensor]:
        h = s * a + r * b
        value, mean = latent.tilted(h)
        square = s * s * noise[0] + r * r * noise[1] + 2 * s * r * own
        return value - h * t + 0.5 * square, mean

    alone = {r: log_moment(0, r) for r in (1, -1)}
    straight = sum(0.5 * r * (r * c[1] + L).exp() * (a * (m - t) + r * own) for r, (L, m) in alone.items())
    first = {s: log_moment(s, 0)[0].expm1() for s in (1, -1)}
    both, off = torch.zeros_like(t), [torch.zeros_like(t), torch.zeros_like(t)]
    for s in (1, -1):
        off[0] = off[0] + 0.5 * s * (s * c[0]).exp() * first[s]
        off[1] = off[1] + 0.5 * s * (s * c[1]).exp() * alone[s][0].expm1()
        for r in (1, -1):
            joint = log_moment(s, r)[0].expm1() - first[s] - alone[r][0].expm1()
            both = both + 0.25 * s * r * (s * c[0] + r * c[1]).exp() * joint
    bent = one.unit * (both - off[0] * off[1])
    return other.unit * torch.where(one.bent, bent, straight)
