r"""What the gradient of a mean log-likelihood owes to rows that cross kinks, for chains that need not be bijective.

Where a preimage z of x, with weight `w = p_z(z) / |det A|` in p(x), crosses the kink of a unit, A changes by a matrix
of rank one and its determinant by a factor r. Then `log p(x)` jumps by `log(1 + (1 / r - 1) w / p)`: also where the
generator folds (r < 0), and z and its mirror image on the other side are lost together. The mean over many rows changes
by that jump times the density of rows at the kink, here a Gaussian kernel density.
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.networks import LinearStep, Trace

_WIDTH = 0.5  # of the kernel, in deviations times K^(-1/5): half of Silverman's rule, as densities jump at kinks
_LOST = 1e-2  # the least share of p(x) that a row is taken to keep where it leaves the image
_FLAT = 1e-10  # factors r of cells that are next to one of lower rank


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
        width = _WIDTH * value.detach().std(0, correction=0) * len(value) ** -0.2
        step = torch.special.ndtr(value / width.clamp(min=torch.finfo(z.dtype).tiny))
        total = total - (torch.where(steep, side * jump, 0.0) * (step - step.detach())).sum(1)
        after = after * here[:, None, :]
    return total
