r"""Exact draws of the standard normal on convex sets, in the tails too: a level, then a point of its slice.

In the coordinates of `slices` the level has a log-concave density; the point given the level is a normal truncated to
an interval (S = 2), or drawn on a polygon in the same way (S = 3). Levels are drawn by rejection from piecewise
exponentials, many at once.

Where a log-density g is concave, the chord over one interval of a grid, extended, lies above g on the neighbouring
intervals. The smaller of the chords from the left and from the right is an envelope of exponential pieces that needs no
derivative (Gilks, 1992), and the chord of the interval itself bounds g from below. Grids are refined where the two
differ until the area below is a third of that above: then a draw takes at most three proposals on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.interval import sample_truncated
from girih.gaussian.masses import slice_log_mass
from girih.gaussian.slices import Segments, cut, find_frame, tilted_frame
from girih.gaussian.tables import Table, slots

_GRID = 9  # points to start from
_GOOD = 0.4  # fraction accepted at which a grid is left alone
_WORST = 3  # intervals halved in a round of refinement
_REFINE = 60
_ROUNDS = 2000  # 1 in 2^1000 draws would need more
_CHUNK = 1 << 15  # draws at a time

LogDensity = Callable[[Tensor, Tensor], Tensor]  # of rows (m,) and points (m,)


def sample(table: Table, which: Tensor, generator: torch.Generator | None, tilt: Tensor | None = None) -> Tensor:
    """Draws `(m, S)` from the sets `which (m,)`; `tilt (n, S)` as in `tilted_frame`."""
    frame = find_frame(table) if tilt is None else tilted_frame(tilt)
    slices = cut(table, frame)
    panels = _make_panels(slices.owner, slices.lower, slices.upper, len(table.tail))
    if not len(slices.owner):
        return frame.anchor[which]

    def panel_of(row: Tensor, t: Tensor) -> Tensor:
        return panels.find(row, t).clamp(max=len(slices.owner) - 1)

    def log_f(row: Tensor, t: Tensor) -> Tensor:
        return slice_log_mass(slices, panel_of(row, t), t[:, None])[:, 0] - t * (frame.height[row] + 0.5 * t)

    t, alive = _sample_levels(panels.lower, panels.upper, log_f, which, generator)
    local = t.new_zeros(len(t), table.tail.shape[-1] - 1)
    local[alive, 0] = t[alive]
    rows = alive.nonzero()[:, 0]
    panel = panel_of(which[rows], t[rows])
    if isinstance(slices, Segments):
        local[rows, 1:] = sample_truncated(*slices.at(panel, t[rows, None]), generator)
    else:
        every = torch.arange(len(rows), device=rows.device)
        local[rows, 1:] = sample(slices.at(panel, t[rows, None]), every, generator)
    return frame.anchor[which] + (local[:, :, None] * frame.basis[which]).sum(1)


class _Panels(NamedTuple):
    """They say where the panels of each row end, to find the one that holds a level."""

    first: Tensor  # (n,)
    end: Tensor  # (n, P), inf from the last on
    lower: Tensor  # (n,) where the first panel starts; 0 for rows without panels
    upper: Tensor  # (n,)

    def find(self, row: Tensor, t: Tensor) -> Tensor:
        """The panel that holds level t, `(m,)`."""
        return self.first[row] + (t[:, None] > self.end[row]).sum(1)


class _Pieces(NamedTuple):
    """Exponential pieces: `value + slope s`, s from 0 to `width`, at `start + s` or, mirrored, `start - s`."""

    log_area: Tensor  # (n, M)
    start: Tensor  # (n, M)
    value: Tensor  # (n, M)
    slope: Tensor  # (n, M)
    width: Tensor  # (n, M)


def _make_panels(owner: Tensor, lower: Tensor, upper: Tensor, count: int) -> _Panels:
    """`_Panels` from a list that is sorted by owner and level."""
    size, place = slots(owner, count)
    end = upper.new_full((count, max(1, int(size.max()) if count else 1)), torch.inf)
    inner = place < size[owner] - 1
    end[owner[inner], place[inner]] = upper[inner]
    first = size.cumsum(0) - size
    low, high = lower.new_zeros(count), lower.new_zeros(count)
    low[owner[place == 0]], high[owner[~inner]] = lower[place == 0], upper[~inner]
    return _Panels(first, end, low, high)


def _sample_levels(
    lower: Tensor, upper: Tensor, log_f: LogDensity, which: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draws `(len(which),)` from `exp(log_f)` on the intervals of the rows `which`, and which of them have a density.

    Args:
        lower: lower ends, `(n,)`.
        upper: upper ends, `(n,)`.
        log_f: concave on each interval, up to a constant; -inf allowed. Where it is -inf at every point tried there is
            no density, and the lower end is returned.
        which: the row of each draw.
        generator: source of randomness.
    """
    x, g = _grid(lower, upper, log_f)
    pieces, _ = _envelope(x, g)
    pieces = _Pieces(*(part.flatten(1) for part in pieces))
    alive = torch.isfinite(pieces.log_area.amax(1)) if len(x) else lower > 0
    peak = pieces.log_area.amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).min)
    area = (pieces.log_area - peak).exp()
    cumulative = (area.cumsum(1) / area.sum(1, keepdim=True)).nan_to_num()
    draws, level = alive[which], lower[which]
    for part in draws.nonzero()[:, 0].split(_CHUNK):
        level[part] = _reject(pieces, cumulative, log_f, which[part], generator)
    return level, draws


def _grid(lower: Tensor, upper: Tensor, log_f: LogDensity) -> tuple[Tensor, Tensor]:
    """Points `(n, N)` in ascending order, the last repeated where there are fewer, and `log_f` at them."""
    n = len(lower)
    every = torch.arange(n, device=lower.device)
    x = torch.lerp(
        lower[:, None], upper[:, None], torch.linspace(0.0, 1.0, _GRID, dtype=lower.dtype, device=lower.device)
    )
    g = log_f(every.repeat_interleave(_GRID), x.flatten()).view_as(x)
    x, g = _tidy(x, g)
    rows = every
    for _ in range(_REFINE):
        _, (below, above) = _envelope(x[rows], g[rows])
        total = below.logsumexp(1)
        poor = ~(total > above.logsumexp(1) + math.log(_GOOD)) & (upper[rows] > lower[rows])
        rows, below, above = rows[poor], below[poor], above[poor]
        if not len(rows):
            break
        excess = torch.where(
            torch.isposinf(above), torch.inf, above + torch.log1p(-(below - above).exp().clamp(max=1.0))
        )
        excess = torch.where(x[rows].diff(dim=1) > 0, excess.nan_to_num(nan=-torch.inf, posinf=torch.inf), -torch.inf)
        # of intervals without any bound, the widest comes first
        excess = torch.where(torch.isposinf(excess), 1e300 * x[rows].diff(dim=1) / (upper - lower)[rows, None], excess)
        worst = excess.topk(min(_WORST, excess.shape[1]), 1)
        i = worst.indices
        new = 0.5 * (x[rows].gather(1, i) + x[rows].gather(1, i + 1))
        new = torch.where(torch.isneginf(worst.values), upper[rows, None], new)
        at = log_f(rows.repeat_interleave(i.shape[1]), new.flatten()).view_as(new)
        more, value = upper[:, None].repeat(1, i.shape[1]), g[:, -1:].repeat(1, i.shape[1])
        more[rows], value[rows] = new, torch.where(new < upper[rows, None], at, g[rows, -1:])
        x, g = _tidy(torch.cat((x, more), 1), torch.cat((g, value), 1))
    return x, g


def _tidy(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """In ascending order, and without points inside at which rounding has left nothing."""
    upper, last = x.amax(1, keepdim=True), g.gather(1, x.argmax(1, keepdim=True))
    lost = torch.isneginf(g) & (x > x.amin(1, keepdim=True))
    x, g = torch.where(lost, upper, x), torch.where(lost, last, g)
    x, order = x.sort(1)
    g = g.gather(1, order)
    used = int((x < upper).sum(1).max()) + 1 if len(x) else 1
    return x[:, :used], g[:, :used]


def _envelope(x: Tensor, g: Tensor) -> tuple[_Pieces, tuple[Tensor, Tensor]]:
    """Pieces `(n, N - 1, 2)` above the density, and log-areas `(n, N - 1)` of the chords below and of pieces above."""
    width = x.diff(dim=1)
    real = width > 0
    chord = torch.where(real, g.diff(dim=1) / torch.where(real, width, 1.0), torch.nan)
    missing = torch.full_like(chord[:, :1], torch.nan)
    left, right = torch.cat((missing, chord[:, :-1]), 1), torch.cat((chord[:, 1:], missing), 1)
    has_left, has_right = torch.isfinite(left) & torch.isfinite(g[:, :-1]), torch.isfinite(right)
    left, right = torch.where(has_left, left, 0.0), torch.where(has_right, right, 0.0)
    cross = ((chord - right) / (left - right)).nan_to_num(nan=0.5, posinf=0.5, neginf=0.5).clamp(0.0, 1.0)
    cross = torch.where(has_left, torch.where(has_right, cross, 1.0), 0.0)
    widths = torch.stack((width * cross, width * (1.0 - cross)), -1)
    slopes = torch.stack((left, -right), -1)
    values = torch.stack((g[:, :-1], g[:, 1:]), -1)
    starts = torch.stack((x[:, :-1], x[:, 1:]), -1)
    area = torch.where(widths > 0, values + widths.log() + _log_mean_exp(slopes * widths), -torch.inf)
    unbounded = real & ~has_left & ~has_right
    area = torch.where(unbounded[..., None], torch.inf, area)
    below = g[:, :-1] + width.log() + _log_mean_exp(torch.where(torch.isfinite(chord), chord, 0.0) * width)
    below = torch.where(real & torch.isfinite(chord), below, -torch.inf)
    return _Pieces(area, starts, values, slopes, widths), (below, area.logsumexp(-1))


def _log_mean_exp(y: Tensor) -> Tensor:
    """`log((exp(y) - 1) / y)`: the mean of `exp(y s)` over s in [0, 1]."""
    size = y.abs()
    ratio = torch.where(size > 1e-12, -torch.expm1(-size) / size.clamp(min=1e-12), 1.0)
    return y.clamp(min=0.0) + ratio.log()


def _reject(
    pieces: _Pieces, cumulative: Tensor, log_f: LogDensity, which: Tensor, generator: torch.Generator | None
) -> Tensor:
    level = torch.empty(len(which), dtype=cumulative.dtype, device=cumulative.device)
    left = torch.arange(len(which), device=which.device)
    for turn in range(_ROUNDS):
        row = which[left]
        choice, at, accept = torch.rand(3, len(left), dtype=level.dtype, device=level.device, generator=generator)
        k = (choice[:, None] >= cumulative[row]).sum(1).clamp(max=cumulative.shape[1] - 1)
        start, value, slope, width = (part[row, k] for part in pieces[1:])
        y = slope * width
        decay = -y.abs()  # the density falls from one end: by inversion from there
        s = torch.where(decay < -1e-12, torch.log1p(at * torch.expm1(decay)) / decay.clamp(max=-1e-12), at)
        s = torch.where(y > 0, 1.0 - s, s)
        t = torch.where(k % 2 == 0, start + s * width, start - s * width)
        done = accept.log() < log_f(row, t) - (value + s * y)
        if turn == _ROUNDS - 1:
            done[:] = True
        level[left[done]] = t[done]
        left = left[~done]
        if not len(left):
            break
    return level
