r"""Chains of layers as flows: inverted layer by layer, and what a gradient owes to rows that cross kinks.

Chains of square layers with positive slopes are undone layer by layer, exactly and in any dimension.

Chains that need not be bijective have their preimages by cells. Where a preimage z of x, with weight
`w = p_z(z) / |det A|` in p(x), crosses the kink of a unit, A changes by a matrix of rank one and its determinant by a
factor r. Then `log p(x)` jumps by `log(1 + (1 / r - 1) w / p)`: also where the generator folds (r < 0), and z and its
mirror image on the other side are lost together. The mean over many rows changes by that jump times the density of rows
at the kink, here a Gaussian kernel density.
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.errors import NonFiniteError
from girih.networks import LinearStep, Trace

_WIDTH = 1.06  # of the kernel, in deviations times N^(-1/5): Silverman's rule
_WIDTH_BY_CELLS = (
    0.5  # of the kernel, in deviations times K^(-1/5): half of Silverman's rule, as densities jump at kinks
)
_LOST = 1e-2  # the least share of p(x) that a row is taken to keep where it leaves the image
_FLAT = 1e-10  # factors r of cells that are next to one of lower rank


def is_bijective_chain(traced: Trace) -> bool:
    """Tells whether a generator is a chain of square Linear layers and activations whose slopes are positive now.

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


def crossings(
    traced: Trace, patterns: Tensor, origin: Tensor, where: Tensor, z: Tensor, share: Tensor, slope: Tensor
) -> Tensor:
    """Zeros `(K,)`, to be added to `log p` of the rows of K latents, whose gradient is what crossings add.

    Args:
        traced: a chain.
        patterns: of the cells, `(R, U)`.
        origin: a point of each cell, `(R, S)`.
        where: the cell of each latent, `(K,)`.
        z: the latents, differentiable, `(K, S)`.
        share: w / p of each, `(K,)`.
        slope: A of each cell, invertible, `(R, S, S)`.

    Source:
        The coarea formula, for the likelihood of MAS, appendix C.
    """
    if not len(z):
        return share
    jets, stages = traced.jets(patterns, origin), traced.chain or ()
    eye, stop = torch.eye(traced.output_dim, dtype=torch.float64, device=z.device), patterns.shape[1]
    after = eye.expand(len(patterns), -1, -1)  # from the features after a stage to the output
    total, off = torch.zeros_like(share), z - origin[where]
    for stage, jet in zip(reversed(stages), reversed(jets[:-1]), strict=True):
        if isinstance(stage, LinearStep):
            after = after @ stage.weight.detach()
            continue
        codes = patterns[:, stop - stage.size : stop].to(z.device)
        stop -= stage.size
        here = stage.slopes(codes).detach()
        change = stage.slopes(-codes).detach() - here
        around = torch.linalg.solve(slope.detach(), after)  # (R, S, H)
        ratio = 1.0 + change * (jet.slope.detach().mT * around).sum(1)
        ratio, side = ratio[where], codes[where].to(z.dtype)
        steep = ratio.abs() > _FLAT
        inverse = torch.where(steep, 1.0 / torch.where(steep, ratio, 1.0), 1.0)
        jump = torch.log((1.0 + share[:, None] * (inverse - 1.0)).clamp(min=_LOST))  # to the other side
        value = jet.value[where] + (jet.slope[where] @ off[:, :, None])[:, :, 0]
        width = _WIDTH_BY_CELLS * value.detach().std(0, correction=0) * len(value) ** -0.2
        step = torch.special.ndtr(value / width.clamp(min=torch.finfo(z.dtype).tiny))
        total = total - (torch.where(steep, side * jump, 0.0) * (step - step.detach())).sum(1)
        after = after * here[:, None, :]
    return total
