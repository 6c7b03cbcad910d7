r"""What is taken from the likelihood beside a weight prior: a floor of the noise, and a ridge on what bends.

Both are minus the logarithms of conjugate priors, so they enter the M-step as rows that were never seen:

- the *noise prior* (inverse Wishart) `rho tr(Sigma^-1 U) / 2`, U the diagonal of the variances of the data, which are 1
  in standard units: `Sigma = (scatter + rho U) / N`. Under a bound alone a column can collapse to it, with a likelihood
  that grows all the way; this ends it where the rows outweigh rho.
- the *kink ridge*. Let `l(z) = B z + c` be the best affine approximation of the last hidden features h(z) under the
  prior of z, `k = h - l` what bends, and `P = E[k k^T]`. The penalty

      lambda tr(Sigma^-1 W P W^T) / 2 = lambda E |Sigma^-1/2 (g(z) - its best affine approximation)|^2 / 2

  is a matrix-normal prior on W with row covariance Sigma and column precision lambda P. It is 0 exactly where g is
  affine, whatever its slope, and does not change when hidden units are rescaled or shifted against the layers about
  them: it is a property of the function g. (For fixed kinks, P is a constant that is 0 on the linear functions, as in
  `girih.tables`.) lambda counts rows: it acts like lambda rows drawn from the prior that lie on the best affine map.

So with T the moments of the prior on each piece, all M-steps and gradients come out right when these sums are added to
the statistics of the rows (see `girih.inference.statistics`), at unchanged weight:

    moments  lambda T                       pull     -lambda W^T Sigma^-1 W E[k (t, 1)^T]
    outer    -lambda W P  (0 for the bias)  features  lambda P  (0 for the bias)
    scatter  lambda W P W^T + rho U

P changes with W's features alone, not with W: the M-step of W, `d (G + lambda P) = outer - lambda W P`, is exact and
free of Sigma. The gradient in the hidden layers needs neither the change of l (it is the best: the envelope theorem)
nor that of the cells (k is continuous). T is that of a row without a single entry, whose posterior is the prior.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from girih.inference import Model, Statistics, sufficient_statistics


def penalised(model: Model, s: Statistics, ridge: float, noise: Tensor | None) -> tuple[Statistics, float]:
    """The statistics with the sums of the penalties, and the penalties themselves in nats.

    Args:
        model: at the current parameters.
        s: of the rows.
        ridge: lambda.
        noise: the variances `rho U`, `(D,)`, or `None` for none.
    """
    root = torch.zeros_like(model.bias) if noise is None else noise.sqrt()
    pairs = [(torch.diag(root), torch.diag(root))]
    if ridge:
        nothing = torch.full_like(model.bias, torch.nan)[None]
        prior = sufficient_statistics(model, nothing, nothing.new_full((1,), ridge))
        bends, P = _bends(model, prior.moments)
        image = model.weight @ P
        metric = model.weight.mT @ model.noise.solve(model.weight)
        pairs.append((image.mT, model.weight.mT))
        s = replace(
            s,
            moments=s.moments + prior.moments,
            pull=s.pull - metric @ bends @ prior.moments,
            outer=s.outer - torch.nn.functional.pad(image, (0, 1)),
            features=s.features + torch.nn.functional.pad(P, (0, 1, 0, 1)),
        )
    scatter = model.noise.scatter(*pairs)
    return replace(s, scatter=s.scatter + scatter), 0.5 * float(model.noise.mahalanobis(scatter))


def _bends(model: Model, moments: Tensor) -> tuple[Tensor, Tensor]:
    """`k` on each piece as a map of `(t, 1)`, `(P, H, S + 1)`, and `sum_p E[k k^T]` `(H, H)`, for prior moments."""
    cells = model.cells
    features = torch.cat((cells.slope, cells.value[:, :, None]), 2)  # h = features (t, 1)
    P, S = cells.origin.shape
    latents = torch.eye(S + 1, dtype=moments.dtype, device=moments.device).repeat(P, 1, 1)
    latents[:, :S, S] = cells.origin  # (z, 1) = latents (t, 1)
    cross = (features @ moments @ latents.mT).sum(0)
    second = (latents @ moments @ latents.mT).sum(0)
    bends = features - torch.linalg.solve(second, cross, left=False) @ latents
    return bends, (bends @ moments @ bends.mT).sum(0)
