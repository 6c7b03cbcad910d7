r"""Levels and polynomials on [-1, 1], and the integrals of the densities `exp(c . t(z))` that the polynomials are of.

Integrals are by Gauss-Legendre panels, narrow where a density may be. With z = -cos(a), a polynomial of degree M that
stays within a range of 2 K / M^2 has a second derivative of at most K in a (Bernstein's inequality, twice). Then its
exponential has no peak narrower than a deviation of `1 / sqrt(K)`, and where it is within 40 nats of its peak its slope
is at most `sqrt(80 K)`. Panels of three deviations in a with 16 nodes each resolve that to the last digits, at the ends
of the interval too, where the panels shrink in z as cos does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from girih._arrays import ArrayLike, as_tensor, check_finite
from girih._options import whole
from girih.errors import ParameterError, ShapeError


def levels(R: int) -> Tensor:
    r"""R points at even distances from -1 to 1: `zeta_r = (2 r - (R + 1)) / (R - 1)`, r = 1, ..., R.

    Args:
        R: how many, 3 or more: two levels are a coin, which no polynomial describes with fewer numbers.

    Returns:
        `(R,)`, float64, symmetric about 0 to the last bit.

    Raises:
        ParameterError: R is not a whole number of 3 or more.

    Source:
        Coarse Grained Exponential VAEs, section 3.2.

    Example:
        >>> from girih.vae.bpef import levels
        >>> levels(5)
        tensor([-1.0000, -0.5000,  0.0000,  0.5000,  1.0000], dtype=torch.float64)
    """
    R = whole(R, "levels", 3)
    return torch.arange(1 - R, R, 2, dtype=torch.float64) / (R - 1)


def polynomials(z: Tensor, order: int, basis: str = "monomial") -> Tensor:
    r"""The sufficient statistics t(z) of the family: polynomials of degree 1 to M, without the constant.

        monomial: (z, z^2, ..., z^M)        legendre: (P_1(z), ..., P_M(z))

    Both span the same polynomials, so both give the same densities. Legendre polynomials are orthogonal on [-1, 1]:
    changes of their coefficients hardly interfere, while those of z^M and z^(M-2) all but cancel.

    Args:
        z: any shape.
        order: M.
        basis: "monomial" or "legendre".

    Returns:
        `(..., M)`, differentiable in z.

    Raises:
        ParameterError: M is not a whole number of 1 or more, or the basis is unknown.

    Source:
        Coarse Grained Exponential VAEs, eq. 2.

    Example:
        >>> import torch
        >>> from girih.vae.bpef import polynomials
        >>> polynomials(torch.tensor(0.5), 3), polynomials(torch.tensor(0.5), 3, "legendre")
        (tensor([0.5000, 0.2500, 0.1250]), tensor([ 0.5000, -0.1250, -0.4375]))
    """
    order, basis = whole(order, "order"), check_basis(basis)
    return torch.stack(list(_BASES[basis](z, order)), -1)


def evaluate(coefficients: Tensor, z: Tensor, basis: str = "monomial") -> Tensor:
    """`c . t(z)` of coefficients `(..., M)` and z `(...)`, without room for all M polynomials at once.

    Example:
        >>> import torch
        >>> from girih.vae.bpef.exponential_polynomials import evaluate
        >>> evaluate(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0., 1., 3.])
    """
    terms = zip(coefficients.unbind(-1), _BASES[basis](z, coefficients.shape[-1]), strict=True)
    first, polynomial = next(terms)
    total = first * polynomial
    for number, polynomial in terms:
        total = total + number * polynomial
    return total


def to_basis(coefficients: Tensor, source: str, target: str) -> Tensor:
    """Write the same density in another basis: coefficients `(..., M)` to `(..., M)`, an exact linear map.

    The constant that appears is left out: the log-partition absorbs it. At M = 20 the map to monomials magnifies
    relative changes up to some million times, so go there only at the end.

    Raises:
        ParameterError: a basis is unknown.

    Example:
        >>> import torch
        >>> from girih.vae.bpef import to_basis
        >>> to_basis(torch.tensor([0.0, 1.0]), "legendre", "monomial")  # P_2(z) = 1.5 z^2 - 0.5
        tensor([0.0000, 1.5000])
    """
    check_basis(source)
    check_basis(target)
    if source == target:
        return coefficients
    change = _change(whole(coefficients.shape[-1], "order"), source)
    return coefficients @ change.to(coefficients.device, coefficients.dtype)


def check_basis(basis: str) -> str:
    """Refuse what is not the name of a basis."""
    if basis not in _BASES:
        raise ParameterError(f"basis must be one of {', '.join(map(repr, _BASES))}; got {basis!r}")
    return basis


def _powers(z: Tensor, order: int) -> Iterator[Tensor]:
    power = z
    for _ in range(order):
        yield power
        power = power * z


def _legendre(z: Tensor, order: int) -> Iterator[Tensor]:
    """Bonnet's recurrence, `(n + 1) P_{n+1} = (2 n + 1) z P_n - n P_{n-1}`, stable on [-1, 1]."""
    before, value = torch.ones_like(z), z
    for n in range(1, order + 1):
        yield value
        before, value = value, ((2 * n + 1) * z * value - n * before) / (n + 1)


_BASES: dict[str, Callable[[Tensor, int], Iterator[Tensor]]] = {"monomial": _powers, "legendre": _legendre}


@lru_cache(maxsize=64)
def _change(order: int, source: str) -> Tensor:
    """Rows: the polynomials of `source`, degree 1 to M, in the other basis; its constant column is dropped."""
    convert = legendre.poly2leg if source == "monomial" else legendre.leg2poly
    rows = np.zeros((order, order + 1))
    for m in range(1, order + 1):
        rows[m - 1, : m + 1] = convert(np.eye(order + 1)[m])[: m + 1]
    return torch.as_tensor(rows[:, 1:].copy())


def as_coefficients(coefficients: ArrayLike) -> Tensor:
    """Finite coefficients `(..., M)` in float64, M of at least 1; gradients are kept.

    Raises:
        ShapeError, ParameterError, NonFiniteError.
    """
    tensor = as_tensor(coefficients, "coefficients")
    if tensor.ndim == 0:
        raise ShapeError("coefficients must have shape (..., M), one number for each degree; got a single number")
    if tensor.shape[-1] == 0:
        raise ParameterError("the order M must be 1 or more; got coefficients of shape " + str(tuple(tensor.shape)))
    check_finite(tensor.detach(), "coefficients")
    return tensor


def check_order(order: int, levels: int) -> None:
    """Refuse as many coefficients as a table of all R probabilities has, or more: they would be redundant.

    Raises:
        ParameterError: M >= R - 1.

    Source:
        Coarse Grained Exponential VAEs, section 3.3.
    """
    if order >= levels - 1:
        raise ParameterError(
            f"the order M = {order} must be below R - 1 = {levels - 1}: on R = {levels} levels, R - 1 numbers describe "
            f"every distribution; lower the order to {levels - 2} or less, or take more levels"
        )


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
