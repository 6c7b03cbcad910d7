"""Chains of square layers with positive slopes, undone layer by layer: exact in any dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.errors import NonFiniteError
from girih.networks import LinearStep, Trace

_WIDTH = 1.06  # of the kernel, in deviations times N^(-1/5): Silverman's rule


def is_bijective_chain(traced: Trace) -> bool:
    """Whether a generator is a chain of square Linear layers and activations whose slopes are positive now.

    Invertible weights are not checked here.
    """
    if traced.chain is None:
        return False
    size = traced.latent_dim
    for stage in traced.chain:
        if isinstance(stage, LinearStep):
            if stage.in_features != size or stage.out_features != size:
                return False
        elif not bool((stage.slope.detach() > 0.0).all()):
            return False
    return True


def invert_chain(traced: Trace, x: Tensor, smooth: bool = False) -> tuple[Tensor, Tensor]:
    r"""The latent z of x under a bijective chain, `(N, S)`, and `log|det dg/dz|` there, `(N,)`.

        log|det A(z)| = sum_layers log|det W| + sum_{units below 0} log slope

    An activation with positive slopes keeps signs, so those of its output tell which slope was taken. Differentiable
    in x and in the parameters.

    The determinant jumps where a row crosses a kink, which no derivative at a row sees. The mean over many rows does
    change smoothly when a kink moves, by `log slope` times the density of rows at the kink; with `smooth`, gradients
    (and they only) have that part too, with a Gaussian kernel density over the rows.

    Args:
        traced: for which `is_bijective_chain` holds.
        x: `(N, S)`.
        smooth: give gradients of the mean over the distribution of the rows, not of each row.

    Raises:
        NonFiniteError: the weight of a layer is singular, or close to it.

    Source:
        MAS, appendix C; the determinants as in Theorem 3.
    """
    h, total = x, torch.zeros_like(x[:, 0])
    for stage in reversed(traced.chain or ()):
        if isinstance(stage, LinearStep):
            weight = stage.weight
            size = torch.linalg.slogdet(weight).logabsdet
            factors, pivots, info = torch.linalg.lu_factor_ex(weight)
            if int(info) or not bool(torch.isfinite(size)):
                raise NonFiniteError(
                    f"the weight of layer '{stage.path}' is singular, so the generator has no inverse; start from "
                    "girih.flows.square_net, or train with a smaller lr"
                )
            h = torch.linalg.lu_solve(factors, pivots, (h - stage.bias).mT).mT
            total = total + size
        else:
            slopes = stage.slopes(h.detach())
            total = total + slopes.log().sum(1)
            if smooth:
                total = total + _crossings(h, stage.slope.detach())
            h = h / slopes
    return h, total


def _crossings(h: Tensor, slope: Tensor) -> Tensor:
    """Zeros `(N,)` whose gradient in h is that of `sum_units -log(slope) 1[h > 0]`, by a kernel as wide as h is."""
    width = _WIDTH * h.detach().std(0, correction=0) * len(h) ** -0.2
    step = torch.special.ndtr(h / width.clamp(min=torch.finfo(torch.float64).tiny))
    result: Tensor = (-slope.to(h.device).log() * (step - step.detach())).sum(1)
    return result
