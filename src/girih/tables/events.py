r"""Probabilities of events `A x <= b` in which one or two columns are not known.

One column: a difference of its distribution function. Two columns that no member bends, and one inequality: the sum
`a_1 x_1 + a_2 x_2` is a smeared truncated normal given the piece, like a column. Otherwise

    P = int p(x_1 | observed) P(l(x_1) <= x_2 <= u(x_1) | observed, x_1) dx_1,

l and u piecewise linear, both factors exact (the second is the conditional of a row with one more entry), by
Gauss-Legendre panels that end where l or u have a kink, and are halved until the panels' probabilities of x_1 alone
agree with its distribution function and those of the event with their halves.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from girih.errors import LatentDimensionError, NonFiniteError, ShapeError
from girih.tables.conditional import Conditional
from girih.tables.encoded import Atom
from girih.tables.lines import Lines
from girih.tables.member import Ensemble
from girih.tables.mixture import distinct_masks

_TOLERANCE = 1e-10  # of one panel
_ROUNDS = 25
_NODES = 16
_ROWS = 4096  # rows that are conditioned on at once
_X, _W = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(_NODES))


def probability(source: Ensemble | Conditional, A: Tensor, b: Tensor | float, atoms: tuple[Atom, ...] = ()) -> Tensor:
    """The probability that all of `A x <= b` hold, in units of the data.

    Args:
        source: a joint model, or a conditional of N rows.
        A: `(E, D)` or, for one inequality, `(D,)`.
        b: `(E,)`, or a number.
        atoms: those of the columns, if `source` is a joint model.

    Returns:
        `(N,)`, or a number for a joint model; right to 1e-8, and a warning says where that was not reached.

    Raises:
        ShapeError: A or b do not fit the columns or each other.
        NonFiniteError: A or b is not finite.
        LatentDimensionError: more than two columns with a coefficient are unknown in a row.

    Example:
        >>> import torch
        >>> from girih.tables.basis import Basis
        >>> from girih.tables.events import probability
        >>> from girih.tables.member import Ensemble, Member
        >>> from girih.tables.mixture import Mixture
        >>> from girih.tables.scales import Scales
        >>> one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        >>> Sigma = torch.tensor([[[1.0, 0.8], [0.8, 1.0]]], dtype=torch.float64)
        >>> mixture = Mixture(Basis.plain(), one[:1], zero[None, :, None], Sigma)
        >>> member = Member(mixture, Scales(zero.bool(), zero, one, zero, one))
        >>> ensemble = Ensemble((member,), one[:1])
        >>> probability(ensemble, one, 0.0), probability(ensemble, -torch.eye(2, dtype=torch.float64), zero)
        (tensor(0.5000, dtype=torch.float64), tensor(0.3976, dtype=torch.float64))
    """
    if isinstance(source, Ensemble):
        mixture = source.members[0].mixture
        x = torch.full((1, mixture.maps.shape[1]), torch.nan, dtype=mixture.maps.dtype)
        codes = torch.full((1, len(mixture.tables)), -1)
        return probability(Conditional(source, x, codes, atoms), A, b)[0]
    A = torch.as_tensor(A, dtype=source.x.dtype)
    A = A[None] if A.ndim == 1 else A
    b = torch.as_tensor(b, dtype=source.x.dtype).reshape(-1)
    if A.ndim != 2 or A.shape[1] != len(source.columns) or b.shape != A.shape[:1]:
        raise ShapeError(f"A must be (E, {len(source.columns)}) and b (E,); got {tuple(A.shape)} and {tuple(b.shape)}")
    if not bool(A.isfinite().all() and b.isfinite().all()):
        raise NonFiniteError("A and b must be finite: leave out inequalities that always hold")
    full = A.new_zeros(len(A), source.x.shape[1]).index_add_(1, source.columns, A)
    free = source.known.isnan() & (full != 0.0).any(0)
    if bool((free.sum(1) > 2).any()):
        raise LatentDimensionError(
            f"A x <= b is exact for one or two unknown columns in a row; row {int((free.sum(1) > 2).nonzero()[0])} has "
            f"{int(free.sum(1).max())}: estimate it from draws, (sample(m)[0] @ A.T <= b).all(-1).mean(0)"
        )
    rest = b - source.known.nan_to_num(0.0) @ full.mT  # (N, E)
    out = torch.zeros_like(rest[:, 0])
    for mask in distinct_masks(free)[0]:
        here = (free == mask).all(1).nonzero()[:, 0]
        columns = mask.nonzero()[:, 0].tolist()
        a = full[:, columns]
        if len(columns) == 0:
            out[here] = (rest[here] >= 0.0).all(1).to(out.dtype)
        elif len(columns) == 1:
            lower, upper = _interval(a[:, 0], rest[here])
            out[here] = _between(source, source.x[here], source.codes[here], columns[0], lower, upper)
        elif len(a) == 1 and not bool(source.units.bent[:, columns].any()) and not _with_atoms(source, columns, here):
            out[here] = _projected(source, here, columns, a[0], rest[here, 0])
        else:
            out[here] = _nested(source, here, columns, a, rest[here])
    return out.clamp(0.0, 1.0)


def _with_atoms(source: Conditional, columns: list[int], here: Tensor) -> bool:
    return any(atom.x in columns and bool((source.codes[here, atom.code] < 0).any()) for atom in source.atoms)


def _interval(a: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of `{x: a x <= rest}`, `(n,)`, for `a (E,)`, `rest (n, E)`; of the empty set lower > upper."""
    ends = rest / a
    lower = torch.where(a < 0, ends, -torch.inf).amax(1)
    upper = torch.where(a > 0, ends, torch.inf).amin(1)
    never = ((a == 0) & (rest < 0.0)).any(1)
    return torch.where(never, torch.inf, lower), torch.where(never, -torch.inf, upper)


def _between(
    source: Conditional, x: Tensor, codes: Tensor, column: int, lower: Tensor, upper: Tensor, numbers: bool = False
) -> Tensor:
    """`P(lower <= x_column <= upper)` of rows, atoms included unless `numbers`, `(n,)`."""
    rows = Conditional(source.ensemble, x, codes, source.atoms)
    rows.columns = torch.tensor([column])
    known = rows.known[:, column]
    out = ((lower <= known) & (known <= upper)).to(x.dtype)
    for here, pieces in rows.blocks():
        marginals = rows.marginals(here, pieces)
        at = marginals.slots[0]
        if len(at):
            out[here][at] = marginals.between(lower[here][at], upper[here][at], numbers)
    return out


def _projected(source: Conditional, here: Tensor, columns: list[int], a: Tensor, rest: Tensor) -> Tensor:
    rows = Conditional(source.ensemble, source.x[here], source.codes[here], source.atoms)
    out = torch.zeros_like(rest)
    for some, pieces in rows.blocks():
        units = rows.units
        weight = a * units.spread[pieces.member][:, columns]  # (P, 2)
        base = (a * units.centre[pieces.member][:, columns] + weight * pieces.base[:, columns]).sum(1)
        slope = (weight * pieces.slope[:, columns]).sum(1)
        noise = pieces.noise[:, columns][:, :, columns][pieces.which]
        deviation = torch.einsum("pi,pij,pj->p", weight, noise, weight).sqrt()
        part, _ = Lines(pieces.latent, base, slope, deviation).cdf(rest[some][pieces.row])
        out[some] = out[some].index_add(0, pieces.row, pieces.share * part)
    return out


def _nested(source: Conditional, here: Tensor, columns: list[int], a: Tensor, rest: Tensor) -> Tensor:
    """Two unknown columns, by the outer integral over the first."""
    i, j = columns
    x, codes = source.x[here], source.codes[here]
    before = source.ensemble.log_prob(x, codes)
    out = torch.zeros_like(before)

    def inner(n: Tensor, value: Tensor, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The density of the first column, and that times the probability of the second."""
        lower, upper = _interval(a[:, 1], rest[n] - value[:, None] * a[:, 0])
        p = (source.ensemble.log_prob(x, codes) - before[n]).exp()
        return p, p * _between(source, x, codes, j, lower, upper)

    def at_numbers(n: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for some in torch.arange(len(n)).split(_ROWS):
            given = x[n[some]]
            given[:, i] = value[some]
            own = codes[n[some]]
            for atom in source.atoms:
                if atom.x == i:
                    own[:, atom.code] = len(atom.values)
            parts.append(inner(n[some], value[some], given, own))
        return torch.cat([p for p, _ in parts]), torch.cat([f for _, f in parts])

    for atom in source.atoms:
        if atom.x == i:
            n = (codes[:, atom.code] < 0).nonzero()[:, 0]
            for code, value in enumerate(atom.values):
                own = codes[n]
                own[:, atom.code] = code
                out[n] += inner(n, torch.full_like(before[n], value), x[n], own)[1]
    n, start, end = _panels(source, x, codes, i, a, rest)
    scales = source.units.at(source.units.bent[:, [i]].to(a.dtype).argmax(0), torch.tensor([i]))
    error = torch.zeros_like(out)

    def gauss(n: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        half = 0.5 * (end - start)
        w = (0.5 * (start + end))[:, None] + half[:, None] * _X
        value = scales.inverse(w)
        weight = half[:, None] * _W * (-scales.log_slope(value)).exp()
        p, f = at_numbers(n.repeat_interleave(_NODES), value.flatten())
        return (weight * p.view_as(w)).sum(1), (weight * f.view_as(w)).sum(1)

    whole = gauss(n, start, end)[1]
    for turn in range(_ROUNDS):
        if not len(n):
            break
        middle = 0.5 * (start + end)
        p, f = gauss(n.repeat(2), torch.cat((start, middle)), torch.cat((middle, end)))
        sums = p.view(2, -1).sum(0), f.view(2, -1).sum(0)
        share = _between(source, x[n], codes[n], i, scales.inverse(start), scales.inverse(end), numbers=True)
        off = torch.maximum((sums[0] - share).abs(), (sums[1] - whole).abs())
        done = (off <= _TOLERANCE) | (turn == _ROUNDS - 1)
        out.index_add_(0, n[done], sums[1][done])
        error.index_add_(0, n[done], off[done])
        left = ~done
        n, whole = n[left].repeat(2), f.view(2, -1)[:, left].flatten()
        start, end = torch.cat((start[left], middle[left])), torch.cat((middle[left], end[left]))
    if bool((error > 1e-8).any()):
        warnings.warn(
            f"P(A x <= b) is right to {float(error.max()):.1e} only: some columns are nearly functions of each other",
            RuntimeWarning,
            stacklevel=3,
        )
    return out


def _panels(
    source: Conditional, x: Tensor, codes: Tensor, i: int, a: Tensor, rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, start and end of the first panels of column i, in its coordinate, ended by kinks of the interval."""
    rows = Conditional(source.ensemble, x, codes, source.atoms)
    rows.columns = torch.tensor([i])
    scales = source.units.at(source.units.bent[:, [i]].to(a.dtype).argmax(0), torch.tensor([i]))
    low, high = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    for here, pieces in rows.blocks():
        low[here], high[here] = rows.marginals(here, pieces).bracket()
    plain = a[:, 1] == 0.0
    if bool(plain.any()):
        lower, upper = _interval(a[plain, 0], rest[:, plain])
        low, high = torch.maximum(low, lower), torch.minimum(high, upper)
    ends = [low, high, *(q.clamp(low, high) for q in rows.quantile(torch.linspace(0.1, 0.9, 5))[:, :, 0])]
    tilted = (~plain).nonzero()[:, 0].tolist()
    for place, e in enumerate(tilted):
        for f in tilted[:place]:
            slope = a[e, 0] / a[e, 1] - a[f, 0] / a[f, 1]
            if slope != 0.0:
                at = (rest[:, e] / a[e, 1] - rest[:, f] / a[f, 1]) / slope
                ends.append(torch.minimum(torch.maximum(at, low), high))
    w = scales.forward(torch.stack(ends, 1)).sort(1).values
    n, k = ((w[:, 1:] > w[:, :-1]) & (low < high)[:, None]).nonzero(as_tuple=True)
    return n, w[n, k], w[n, k + 1]
