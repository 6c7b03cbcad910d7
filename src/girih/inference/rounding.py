r"""Bounds on what rounding does to a row, in nats.

Rows, maps and noise are given in double precision, and products with them are rounded: the whitened row
`w = L^-1 (x - v)` and the images `g` of latents carry errors of up to

    unit (|w| + |w - g|),    unit = 2^-53 (D + H + 10) condition(noise),

2^-53 for each term of a sum. `log p(x | z)` is `-|w - g|^2 / 2`, so an error `e` of w - g changes it by `e |w - g|` at
most to first order, and the balance between two latents with images a distance d apart by `e d`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.inference.model import Model, Rows

MATTERS = 1e-16  # the part of a posterior up to which a cell does not
_ROUNDOFF = 2.0**-53


def unit(model: Model) -> float:
    """The relative error of whitened rows and of images."""
    return model.recall(_unit)


def _unit(model: Model) -> float:
    return _ROUNDOFF * (model.output_dim + model.weight.shape[1] + 10) * model.noise.condition


def lengths(rows: Rows, log_p: Tensor) -> Tensor:
    """`|w| + |w - g|` of each row `(n,)`, where `|w - g|^2 <= -2 log p(x) - log det(2 pi noise)` by Jensen."""
    size = torch.linalg.vector_norm(torch.cat((rows.y, rows.far2.sqrt()[:, None]), 1), dim=1)
    result: Tensor = size + (2.0 * (rows.constant - log_p)).clamp(min=0.0).sqrt()
    return result


def of_log_prob(model: Model, rows: Rows, log_p: Tensor) -> Tensor:
    """A bound on the error of each log p(x), `(n,)`."""
    error = unit(model) * lengths(rows, log_p)
    away = (2.0 * (rows.constant - log_p)).clamp(min=0.0).sqrt()
    return error * (away + 0.5 * error) + unit(model) * (1.0 + log_p.abs())


def of_posterior(model: Model, length: Tensor, spread: Tensor, pull: Tensor) -> Tensor:
    """A bound on the error of each log p(z | x), `(n,)`.

    Args:
        model: the parameters.
        length: `lengths` of the rows.
        spread: how long the images of the ways between the anchors that matter are, `(n,)`.
        pull: largest product of the length of an anchor z and of the slope of `log p(x, z)` there: what the rounding
            of z is worth.
    """
    return unit(model) * (length * (1.0 + spread) + pull)
