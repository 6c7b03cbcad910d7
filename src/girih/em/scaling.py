r"""Fitting in standard units, and the model in the units of the data.

Columns on very different scales drown each other under an isotropic noise, so a fit may standardise them:
`y = (x - mean) / scale`. A generator ends in an affine map, so the scaling folds into it and into the noise, and
what is kept is a plain `DGN` over x:

    g_x(z) = scale * g_y(z) + mean,    noise_x = scale noise_y scale,
    log p_x(x) = log p_y(y) - sum over observed columns of log scale
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from girih._arrays import as_tensor
from girih.em.estimator import DGNEstimator, count_parameters
from girih.em.initial import column_statistics
from girih.inference import DGN
from girih.networks import Affine, trace
from girih.networks.operators import LinearMap
from girih.networks.sources import Live
from girih.networks.stages import as_stage
from girih.networks.steps import AffineStep


@dataclass(frozen=True, eq=False)
class Scaling:
    """An affine map of each column: `of` gives every column mean 0 and variance 1.

    Attributes:
        mean: what is subtracted from each column, `(D,)`.
        scale: what each column is then divided by, `(D,)`, positive.

    Example:
        >>> import numpy as np
        >>> from girih.em.scaling import Scaling
        >>> scaling = Scaling.of(np.array([[1.0, 100.0], [3.0, np.nan], [5.0, 300.0]]))
        >>> scaling.mean.tolist(), scaling.apply(np.array([[3.0, 300.0]])).tolist()
        ([3.0, 200.0], [[0.0, 1.0]])
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, X: Any) -> Scaling:
        """To mean 0 and variance 1 of the observed entries of each column of `(N, D)`; a constant one is only moved."""
        x = as_tensor(X, "X")
        mean, variance = column_statistics(x, torch.ones(len(x), dtype=torch.float64))
        mean = torch.nan_to_num(mean)  # a column without entries has no mean; the fit refuses it by name
        # a constant column keeps its unit: rounding errors of its mean are no scale
        varies = variance > 1e-24 * mean.square()
        return cls(mean, torch.where(varies, variance, 1.0).sqrt())

    @classmethod
    def of_range(cls, X: Any) -> Scaling:
        """One scaling for all columns, from the range of the observed entries to [0, 1]; for images."""
        x = as_tensor(X, "X")
        values = x[~torch.isnan(x)]
        low, high = values.min(), values.max()
        scale = high - low if high > low else torch.ones_like(high)
        return cls(low.expand(x.shape[1]), scale.expand(x.shape[1]))

    def apply(self, X: Any) -> Tensor:
        """The rows in standard units, `(N, D)`; missing entries stay missing."""
        return (as_tensor(X, "X") - self.mean) / self.scale

    def log_jacobian(self, X: Any) -> Tensor:
        """What `log p` of each row is larger by in standard units, `(N,)`: the observed columns' log scales."""
        return torch.where(torch.isnan(as_tensor(X, "X")), 0.0, self.scale.log()).sum(1)

    def fold(self, dgn: DGN) -> DGN:
        """The same model over x, from a model over the standardised y; the argument is left as it is.

        An isotropic noise becomes a diagonal one where columns have different scales.
        """
        net = copy.deepcopy(dgn.net).double()
        steps = trace(net)
        last = as_stage(steps.steps[steps.output])
        head = last.module if isinstance(last, Affine) else None
        uses = [
            s.operator.weight for s in steps.steps if isinstance(s, AffineStep) and isinstance(s.operator, LinearMap)
        ]
        shared = head is not None and sum(isinstance(use, Live) and use.module is head for use in uses) > 1
        scale, mean = self.scale.to(dgn.trace.device), self.mean.to(dgn.trace.device)
        with torch.no_grad():
            if head is None or head.bias is None or shared:
                head = nn.utils.skip_init(nn.Linear, len(scale), len(scale), dtype=torch.float64)
                head.weight.copy_(torch.eye(len(scale)))
                head.bias.zero_()
                net = nn.Sequential(net, nn.Flatten(), head)
            head.weight.mul_(scale[:, None])
            head.bias.mul_(scale).add_(mean)
            noise = dgn.noise.detach()
            alike = bool((scale == scale[0]).all())
            if noise.ndim == 2:
                noise = noise * scale * scale[:, None]
            else:
                noise = noise * (scale[0] if noise.ndim == 0 and alike else scale).square()
        return DGN(net, noise=noise, prior=dgn.prior.detach(), tol=dgn.tol)


def fold_estimator(est: DGNEstimator, scaling: Scaling, X: Any) -> DGNEstimator:
    """Turn an estimator fitted to `scaling.apply(X)` into one over X, in place; returns it.

    Its NLL curve moves by the mean log-Jacobian. The parameters are counted anew: the scale of each column was
    taken from the data, and is now in the noise.
    """
    est.dgn_ = scaling.fold(est.dgn_)
    est.nll_curve_ = est.nll_curve_ + float(scaling.log_jacobian(X).mean())
    est.noise = ("isotropic", "diagonal", "full")[est.dgn_.noise.ndim]
    est.n_parameters_ = count_parameters(est.dgn_, est.learn_prior)
    return est
