r"""Integrals over [-1, 1] of a density `exp(c . t(z))`, by Gauss-Legendre panels that are narrow where it may be.

With z = -cos(a), a polynomial of degree M that stays within a range of 2 K / M^2 has a second derivative of at most K
in a (Bernstein's inequality, twice). Then its exponential has no peak narrower than a deviation of `1 / sqrt(K)`, and
where it is within 40 nats of its peak its slope is at most `sqrt(80 K)`. Panels of three deviations in a with 16 nodes
each resolve that to the last digits, at the ends of the interval too, where the panels shrink in z as cos does.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.errors import ParameterError
from girih.vae.bpef.polynomials import polynomials

# Width of a panel in deviations of the narrowest peak that the degree and the range of the exponent allow.
_WIDTH = 3.0
_NODES = 16
# 65,536 panels: a range of 2e9 nats at M = 2, of 2e7 at M = 20.
_MOST = 2**16
# Numbers in the largest table of exponents that is held at once.
_BLOCK = 2**23


class Rule(NamedTuple):
    """Panels on [-1, 1], their nodes, and the polynomials there."""

    edges: Tensor  # (P + 1,)
    nodes: Tensor  # (P * 16,)
    log_weights: Tensor  # (P * 16,)
    statistics: Tensor  # (P * 16, M)


def rule_for(coefficients: Tensor, basis: str) -> Rule:
    """Panels that resolve every density of a batch of coefficients `(..., M)`.

    Raises:
        ParameterError: an exponent has so large a range that its density is narrower than the finest panels.
    """
    order = coefficients.shape[-1]
    spread = _range(coefficients.detach(), basis)
    panels = math.pi * order * math.sqrt(0.5 * spread) / _WIDTH
    if not panels <= _MOST:
        raise ParameterError(
            f"c . t(z) has a range of {spread:.2g} nats on [-1, 1], which makes a density of order {order} too narrow "
            f"to be integrated; keep it below {2.0 * (_MOST * _WIDTH / (math.pi * order)) ** 2:.2g}, or use CoarseBPEF"
        )
    count = 2 ** max(2, math.ceil(math.log2(max(panels, 1.0))))
    return _rule(count, order, basis, coefficients.device)


def _range(coefficients: Tensor, basis: str) -> float:
    """A bound on the largest range of `c . t(z)` in a batch: Chebyshev's points see all but 8% of it."""
    order = coefficients.shape[-1]
    points = -torch.cos(torch.linspace(0.0, math.pi, 4 * order + 1, dtype=torch.float64, device=coefficients.device))
    values = coefficients.reshape(-1, order) @ polynomials(points, order, basis).mT
    return 1.1 * float((values.amax(1) - values.amin(1)).max()) if len(values) else 0.0


@lru_cache(maxsize=32)
def _rule(count: int, order: int, basis: str, device: torch.device) -> Rule:
    edges = -np.cos(np.linspace(0.0, np.pi, count + 1))
    edges[count // 2] = 0.0
    x, weights = np.polynomial.legendre.leggauss(_NODES)
    half = 0.5 * np.diff(edges)[:, None]
    nodes = torch.as_tensor((edges[:-1, None] + half * (1.0 + x)).ravel(), device=device)
    log_weights = torch.as_tensor(np.log(half * weights).ravel(), device=device)
    return Rule(torch.as_tensor(edges, device=device), nodes, log_weights, polynomials(nodes, order, basis))


def log_masses(coefficients: Tensor, rule: Rule) -> Tensor:
    """log of the integral of `exp(c . t(z))` over each panel, for coefficients `(B, M)`: `(B, P)`."""

    def block(part: Tensor) -> Tensor:
        exponents = part @ rule.statistics.mT + rule.log_weights
        return torch.logsumexp(exponents.reshape(len(part), len(rule.edges) - 1, _NODES), -1)

    return torch.cat([block(part) for part in blocks(coefficients, rule)])


def blocks(coefficients: Tensor, rule: Rule) -> tuple[Tensor, ...]:
    """Rows of `(B, M)` in parts whose tables of exponents fit in memory; one empty part if there are none."""
    result: tuple[Tensor, ...] = coefficients.split(max(1, _BLOCK // len(rule.nodes)))
    return result


def within(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [lower, upper], inside a panel: `(..., 16)` each."""
    x, weights = (torch.as_tensor(part, device=lower.device) for part in np.polynomial.legendre.leggauss(_NODES))
    half = 0.5 * (upper - lower)[..., None]
    return lower[..., None] + half * (1.0 + x), half * weights
