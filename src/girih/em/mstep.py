r"""The exact M-steps: last affine map, noise and latent prior, as functions of the statistics; and the weight prior.

Writing the expected complete-data log-likelihood in the statistics of `girih.inference.statistics`, a change
`d` of the last map `(W, v)` alters it by `tr(noise^-1 outer d^T) - tr(noise^-1 d features d^T) / 2`: a least
squares problem. Given the map, the noise is the expected scatter of the residuals, and the prior the expected
second moment of z (EM-DGN, appendix G.2, eq. 22-24 with `l = L`).

With a prior on the weights the E-step is unchanged and the M-step is penalised: a Gaussian prior gives ridge
regression, a Laplace prior the lasso, a uniform prior clipping (EM-DGN, appendix H). Biases are not penalised.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from girih.covariance import Covariance
from girih.errors import ParameterError
from girih.inference import Model, Statistics

FAMILIES = ("gaussian", "laplace", "uniform")

# Coordinate descent stops at this many passes; the outer EM iterations go on from there.
_SWEEPS = 100

# Directions with less than this share of the largest second moment are left as they are: dead and duplicated
# units make the least squares problems singular.
_RANK = 1e-13


@dataclass(frozen=True)
class WeightPrior:
    """You use it to keep weights small: every weight of a generator has this prior, independently of the others.

    Attributes:
        family: "gaussian" (standard deviation `scale`), "laplace" (mean absolute value `scale`), or "uniform"
            (weights limited to `[-scale, scale]`).
        scale: in the units of the weights.

    Raises:
        ParameterError: an unknown family or a scale that is not positive.

    Example:
        >>> from girih.em import WeightPrior
        >>> WeightPrior("gaussian", 2.0)
        WeightPrior(family='gaussian', scale=2.0)
    """

    family: str
    scale: float

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ParameterError(f"weight_prior must be one of {', '.join(FAMILIES)}; got {self.family!r}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ParameterError(f"the scale of weight_prior must be positive and finite, got {self.scale}")

    @classmethod
    def parse(cls, value: WeightPrior | tuple[str, float] | str | None) -> WeightPrior | None:
        """`None`, a `WeightPrior`, a pair `("gaussian", 1.0)`, or text "gaussian:1.0"."""
        if value is None or isinstance(value, WeightPrior):
            return value
        try:
            family, scale = value.split(":") if isinstance(value, str) else value
            scale = float(scale)
        except (TypeError, ValueError):
            raise ParameterError(
                f"weight_prior must be None, a pair like ('gaussian', 1.0) or text like 'gaussian:1.0'; got {value!r}"
            ) from None
        return cls(str(family), scale)

    def energy(self, weights: Iterable[Tensor]) -> float:
        """`-log p(weights)` up to the constant of the family, in nats; infinite outside a uniform prior's box."""
        return float(self.penalty(weights))

    def penalty(self, weights: Iterable[Tensor]) -> Tensor:
        """`energy` as a tensor `()`, differentiable in the weights."""
        nothing = torch.zeros((), dtype=torch.float64)
        if self.family == "gaussian":
            return sum((w.square().sum() for w in weights), nothing) / (2.0 * self.scale**2)
        if self.family == "laplace":
            return sum((w.abs().sum() for w in weights), nothing) / self.scale
        return nothing if all(float(w.abs().max()) <= self.scale for w in weights) else nothing + math.inf

    def admit(self, weights: list[Tensor]) -> None:
        """Move weights into the support of the prior, in place."""
        if self.family == "uniform":
            for weight in weights:
                weight.clamp_(-self.scale, self.scale)

    def balance(self, layers: list[nn.Linear]) -> None:
        """Rescale the hidden units of a chain so that its weights are as probable as they can be, in place.

        A unit with one kink at 0 may have its input weights and bias multiplied by a > 0 and its output weights
        divided by it: the generator stays the same. With p the norm of the family (2, 1 or the largest entry) the
        best a is `sqrt(|out|_p / |in|_p)`.
        """
        order = {"gaussian": 2.0, "laplace": 1.0, "uniform": math.inf}[self.family]
        for _ in range(_SWEEPS if len(layers) > 2 else 1):
            for below, above in itertools.pairwise(layers):
                into = torch.linalg.vector_norm(below.weight, order, dim=1)
                out = torch.linalg.vector_norm(above.weight, order, dim=0)
                factor = torch.where((into > 0) & (out > 0), (out / into).sqrt(), 1.0)
                below.weight.mul_(factor[:, None])
                if below.bias is not None:
                    below.bias.mul_(factor)
                above.weight.div_(factor)

    def proximal(self, value: Tensor, step: Tensor) -> Tensor:
        """The minimiser of `(w - value)^2 / 2 + step * energy(w)`, entry by entry."""
        if self.family == "gaussian":
            return value / (1.0 + step / self.scale**2)
        if self.family == "laplace":
            return value.sign() * (value.abs() - step / self.scale).clamp(min=0.0)
        return value.clamp(-self.scale, self.scale)


def coordinate_descent(
    gram: Tensor, pull: Tensor, start: Tensor, penalised: Tensor, prior: WeightPrior, scale: Tensor
) -> Tensor:
    """The change `d` `(M, n)` that lowers `tr(d gram d^T) / 2 - tr(pull d^T) + scale energy(start + d)`.

    Rows share the Gram matrix `(n, n)` and have their own pull `(M, n)` and penalty scale `(M,)`; `penalised`
    `(n,)` says which columns have a prior. The others (biases) are eliminated first, which also removes most of
    the correlation that makes coordinate descent slow. Every step is an exact minimisation: the value never rises.
    """
    p, f = penalised.nonzero()[:, 0], (~penalised).nonzero()[:, 0]
    inverse = pseudo_inverse(gram[f][:, f])
    across = inverse @ gram[f][:, p]
    own_gram, own_pull = gram[p][:, p] - gram[p][:, f] @ across, pull[:, p] - pull[:, f] @ across
    change = torch.zeros_like(start)
    change[:, p] = _descend(own_gram, own_pull, start[:, p], prior, scale)
    change[:, f] = pull[:, f] @ inverse - change[:, p] @ across.mT
    return change


def _descend(gram: Tensor, pull: Tensor, start: Tensor, prior: WeightPrior, scale: Tensor) -> Tensor:
    """Cyclic coordinate descent over columns, all rows at once."""
    change = torch.zeros_like(start)
    left = pull.clone()  # pull - change @ gram
    curvature = gram.diagonal()
    columns = (curvature > 1e-14 * curvature.max()).nonzero()[:, 0].tolist()
    for _ in range(_SWEEPS):
        largest = 0.0
        for j in columns:
            now = start[:, j] + change[:, j]
            target = prior.proximal(now + left[:, j] / curvature[j], scale / curvature[j])
            move = target - now
            change[:, j] += move
            left -= move[:, None] * gram[j]
            largest = max(largest, float(move.abs().max()))
        if largest <= 1e-9 * float((start + change).abs().max()):
            break
    return change


def pseudo_inverse(gram: Tensor) -> Tensor:
    """Inverse of a positive semi-definite matrix on its numerical range."""
    scale = gram.diagonal().clamp(min=0.0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    values, vectors = torch.linalg.eigh(gram / scale / scale[:, None])
    if not len(values):
        return gram
    inverse = torch.where(values > _RANK * values[-1], 1.0 / values, 0.0)
    result: Tensor = ((vectors * inverse) @ vectors.mT) / scale / scale[:, None]
    return result


def head_change(model: Model, s: Statistics, has_bias: bool, prior: WeightPrior | None) -> Tensor:
    """The change of `(W, v)` `(D, H + 1)` that maximises the expected log-likelihood (plus the weight prior).

    W and v are solved jointly: they are one regression on the features `(h, 1)`, no dearer than either alone.
    """
    n = s.features.shape[0] if has_bias else s.features.shape[0] - 1
    gram, pull = s.features[:n, :n], s.outer[:, :n]
    if prior is None:
        change = pull @ pseudo_inverse(gram)
    elif prior.family == "gaussian":
        change = _ridge(model, gram, pull, prior)
    else:
        change = _proximal(model, gram, pull, prior)
    return torch.nn.functional.pad(change, (0, s.features.shape[0] - n))


def head_parameters(model: Model, n: int) -> Tensor:
    """The first n columns of `(W, v)`, `(D, n)`."""
    return torch.cat((model.weight, model.bias[:, None]), 1)[:, :n]


def _penalised(model: Model, n: int) -> Tensor:
    return torch.arange(n, device=model.weight.device) < model.weight.shape[1]


def _ridge(model: Model, gram: Tensor, pull: Tensor, prior: WeightPrior) -> Tensor:
    """Row by row in the eigenbasis of the noise, where the rows decouple."""
    n = len(gram)
    current, penalty = head_parameters(model, n), _penalised(model, n).to(gram) / prior.scale**2
    variance, basis = model.noise.eigen()
    if basis is not None:
        current, pull = basis.mT @ current, basis.mT @ pull
    target = pull - variance[:, None] * penalty * current
    if model.noise.kind == "scalar":
        change = target @ pseudo_inverse(gram + variance[0] * torch.diag(penalty))
    else:
        change = torch.stack(
            [t @ pseudo_inverse(gram + v * torch.diag(penalty)) for t, v in zip(target, variance, strict=True)]
        )
    return change if basis is None else basis @ change


def _proximal(model: Model, gram: Tensor, pull: Tensor, prior: WeightPrior) -> Tensor:
    """Lasso and clipping. With a full noise the rows are coupled; a bound on its precision decouples them."""
    n = len(gram)
    variance, basis = model.noise.eigen()
    if basis is not None:
        variance = variance[0].expand(model.output_dim)
        pull = variance[0] * model.noise.solve(pull)
    return coordinate_descent(gram, pull, head_parameters(model, n), _penalised(model, n), prior, variance)


def about(noise: Covariance, s: Statistics, head: Tensor) -> Statistics:
    """The statistics about the residuals after the last map has changed by `head` `(D, H + 1)`."""
    moved = ((head @ s.features - 2.0 * s.outer).mT, head.mT)
    return replace(s, outer=s.outer - head @ s.features, scatter=s.scatter + noise.scatter(moved))


def noise_update(s: Statistics, head: Tensor, noise: Covariance, floor: Tensor) -> Covariance:
    """The noise that maximises the expected log-likelihood once the last map has changed by `head` `(D, H + 1)`.

    `floor` bounds the variances from below: see `Covariance.m_step`.
    """
    return noise.m_step(about(noise, s, head).scatter, s.weight, floor)


def prior_update(s: Statistics) -> Tensor:
    """The latent prior `(S, S)` that maximises the expected log-likelihood: the expected second moment of z."""
    return s.latent / s.weight
