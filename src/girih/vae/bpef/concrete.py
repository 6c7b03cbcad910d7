"""The Concrete relaxation of a category: a point of the simplex that can be differentiated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from girih.vae.bpef.checks import as_temperature


def log_concrete(
    logits: Tensor, temperature: float, shape: tuple[int, ...] = (), generator: torch.Generator | None = None
) -> Tensor:
    r"""Draws of log y, y from the Concrete law with these logits, one for each row of them.

        log y = log_softmax((phi + g) / T),   g_r = -log(-log u_r),   u_r uniform on (0, 1)

    The arg max of y is r with probability softmax(phi)_r at every temperature.

    Args:
        logits: phi, `(..., R)`, normalised or not.
        temperature: T, not checked here.
        shape: leading axes of the draws.
        generator: torch's global generator by default.

    Returns:
        `(*shape, ..., R)`, differentiable in the logits; its `.exp()` sums to one.

    Source:
        Maddison, Mnih, Teh, *The Concrete distribution* (2017); Coarse Grained Exponential VAEs, section 3.2.

    Example:
        >>> import torch
        >>> from girih.vae.bpef.concrete import log_concrete
        >>> y = log_concrete(torch.zeros(3), 0.5, (4,), torch.Generator().manual_seed(0)).exp()
        >>> y.shape, bool(((y.sum(-1) - 1).abs() < 1e-6).all())
        (torch.Size([4, 3]), True)
    """
    return torch.log_softmax((logits + gumbel(logits, shape, generator)) / temperature, -1)


def log_concrete_with(
    largest: Tensor, logits: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draws of log y, y from the Concrete law given which of its entries is the largest.

        g_k + phi_k = t,   g_r + phi_r = -log(exp(-t) + exp(-phi_r - g'_r)) <= t,   t = log sum exp(phi) + g'

    with g' standard Gumbel numbers: the largest of them is drawn first, and the others below it.

    Args:
        largest: k, whole numbers `(...)`.
        logits: phi, `(..., R)`, normalised or not; broadcast against k.
        temperature: T, not checked here.
        generator: torch's global generator by default.

    Returns:
        `(..., R)`.

    Source:
        Maddison, Tarlow & Minka, *A* sampling* (2014), section 3 and appendix.

    Example:
        >>> import torch
        >>> from girih.vae.bpef.concrete import log_concrete_with
        >>> largest = torch.tensor([0, 2, 2, 1])
        >>> bool((log_concrete_with(largest, torch.zeros(3), 0.5).argmax(-1) == largest).all())
        True
    """
    logits = logits.log_softmax(-1).expand(*largest.shape, logits.shape[-1])
    top = gumbel(logits[..., :1], (), generator)
    below = -torch.logaddexp(-top, -logits - gumbel(logits, (), generator))
    return torch.log_softmax(below.scatter(-1, largest[..., None], top) / temperature, -1)


def gumbel(like: Tensor, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel numbers, `(*shape, *like.shape)`: minus the logarithm of exponential ones, which are never 0."""
    empty = torch.empty((*shape, *like.shape), dtype=like.dtype, device=like.device)
    return -empty.exponential_(generator=generator).log()


def log_density(log_y: Tensor, logits: Tensor, temperature: float) -> Tensor:
    r"""The log of the Concrete density at y, in nats, with respect to (y_1, ..., y_{R-1}).

        log (R-1)! + (R-1) log T + sum_r [phi_r - (T + 1) log y_r] - R log sum_r exp(phi_r - T log y_r)

    Taken at log y, so that a y too small for a float does no harm.

    Args:
        log_y: `(..., R)`.
        logits: phi, `(..., R)`.
        temperature: T.

    Returns:
        `(...,)`.

    Raises:
        ParameterError: the temperature is not positive.

    Source:
        Maddison, Mnih, Teh (2017), eq. 10.

    Example:
        >>> import torch
        >>> from girih.vae.bpef.concrete import log_density
        >>> centre = torch.full((3,), 1 / 3, dtype=torch.float64)
        >>> round(log_density(centre.log(), torch.zeros(3), 1.0).exp().item(), 6)
        2.0
    """
    T, R = as_temperature(temperature), logits.shape[-1]
    scale = math.lgamma(R) + (R - 1) * math.log(T)
    odds = logits - T * log_y
    return scale + (odds - log_y).sum(-1) - R * torch.logsumexp(odds, -1)
