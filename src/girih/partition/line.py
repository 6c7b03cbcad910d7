"""The partition of a one-dimensional latent space: exact breakpoints of every layer over all of R."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.errors import NonFiniteError
from girih.networks import LinearStep, Trace

_EPS = torch.finfo(torch.float64).eps

# Roots of nearly dead units can lie anywhere; beyond this, squares overflow, and no Gaussian has any mass.
_FARTHEST = 1e100


class Line(NamedTuple):
    """The cells of R, from left to right."""

    knots: Tensor  # (R - 1,) increasing
    patterns: Tensor  # (R, U) int8


def line_partition(trace: Trace) -> Line:
    """Cut R at every point where a hidden unit of any layer changes sign.

    Layer by layer: on each interval a pre-activation is affine, `p + d t`, so it has at most one root. A
    running bound on the rounding errors of p and d decides whether a root is real: a unit that is constant
    up to rounding has none, and roots that agree within their errors (duplicate units) are one breakpoint.
    """
    with torch.no_grad():
        return _line_partition(trace)


def _line_partition(trace: Trace) -> Line:
    device = trace.device
    knots = torch.empty(0, dtype=torch.float64, device=device)
    origin = cell_origins(knots)
    value, slope = origin[:, None], torch.ones(1, 1, dtype=torch.float64, device=device)
    value_error, slope_error = torch.zeros_like(value), torch.zeros_like(slope)
    signs: list[Tensor] = []
    for stage in trace.chain or ():
        if isinstance(stage, LinearStep):
            weight, bias = stage.weight, stage.bias
            size = weight.abs()
            rounding = _EPS * (stage.in_features + 1)
            value_error = value_error @ size.T + rounding * (value.abs() @ size.T + bias.abs())
            slope_error = slope_error @ size.T + rounding * (slope.abs() @ size.T)
            value, slope = value @ weight.T + bias, slope @ weight.T
            if not (torch.isfinite(value).all() and torch.isfinite(slope).all()):
                raise NonFiniteError(
                    f"layer '{stage.path}' has weights that are not finite, or so large that its output overflows; "
                    "reload the network, or train it with smaller steps"
                )
            continue
        roots, errors = _roots(knots, origin, value, slope, value_error, slope_error)
        new_knots = torch.cat((knots, _merge(roots, errors))).sort().values
        inside = interior_points(new_knots)
        parent = torch.searchsorted(knots, inside)
        new_origin = cell_origins(new_knots)
        step = (new_origin - origin[parent])[:, None]
        value, slope = value[parent] + slope[parent] * step, slope[parent]
        value_error = value_error[parent] + slope_error[parent] * step.abs() + _EPS * value.abs()
        slope_error = slope_error[parent]
        sign = torch.where(value + slope * (inside - new_origin)[:, None] > 0, 1, -1).to(torch.int8)
        signs = [earlier[parent] for earlier in signs] + [sign]
        knots, origin = new_knots, new_origin
        factor = stage.slopes(sign)
        value, slope = value * factor, slope * factor
        value_error, slope_error = value_error * factor.abs(), slope_error * factor.abs()
    patterns = torch.cat(signs, 1) if signs else torch.empty(1, 0, dtype=torch.int8, device=device)
    return Line(knots, patterns)


def cell_bounds(knots: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper end of each cell, infinite at the two outer ones."""
    infinity = knots.new_full((1,), torch.inf)
    return torch.cat((-infinity, knots)), torch.cat((knots, infinity))


def cell_origins(knots: Tensor) -> Tensor:
    """The point of each cell that is nearest to 0: the latent is then measured from it without losing digits."""
    return knots.new_zeros(len(knots) + 1).clamp(*cell_bounds(knots))


def interior_points(knots: Tensor) -> Tensor:
    """A point well inside each cell."""
    if not len(knots):
        return knots.new_zeros(1)
    first, last = knots[:1], knots[-1:]
    middle = 0.5 * (knots[:-1] + knots[1:])
    return torch.cat((first - first.abs().clamp(min=1.0), middle, last + last.abs().clamp(min=1.0)))


def _roots(
    knots: Tensor, origin: Tensor, value: Tensor, slope: Tensor, value_error: Tensor, slope_error: Tensor
) -> tuple[Tensor, Tensor]:
    """The sign changes strictly inside the cells, with bounds on their errors."""
    lower, upper = cell_bounds(knots)
    moves = slope.abs() > slope_error
    step = torch.where(moves, -value / torch.where(moves, slope, 1.0), torch.inf)
    root = origin[:, None] + step
    error = torch.where(
        moves, (value_error + step.abs() * slope_error) / slope.abs() + 4 * _EPS * root.abs(), torch.inf
    )
    keep = (root.abs() < _FARTHEST) & (root - error > lower[:, None]) & (root + error < upper[:, None])
    return root[keep], error[keep]


def _merge(roots: Tensor, errors: Tensor) -> Tensor:
    """One breakpoint for each group of roots that agree within their errors."""
    if not len(roots):
        return roots
    roots, order = roots.sort()
    errors = errors[order]
    apart = roots.diff() > errors[1:] + errors[:-1]
    return roots[torch.cat((apart.new_ones(1), apart))]
