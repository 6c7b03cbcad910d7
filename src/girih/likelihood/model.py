"""A `DGN` as something to be minimised: its exact NLL, in coordinates that any gradient step may move along."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from girih.em import WeightPrior
from girih.errors import NonFiniteError, ParameterError
from girih.inference import DGN

# How far above its floor a variance starts at least, as a share of the floor: at the floor itself theta is -inf.
_ABOVE = 1e-3


class FreeCovariance(nn.Module):
    r"""A covariance in unconstrained coordinates, above a floor; calling it returns the matrix or the variances.

        scalar, (D,):   floor + exp(theta)
        (D, D):         diag(floor) + L L^T,   L lower triangular with diagonal exp(theta)

    Gradient steps cannot make it indefinite.

    Args:
        value: where it starts: `()`, `(D,)` or `(D, D)`, positive definite.
        floor: lower bound, `()` or `(D,)`; a full covariance keeps `value - diag(floor)` positive definite.

    Example:
        >>> import torch
        >>> from girih.likelihood import FreeCovariance
        >>> noise = FreeCovariance(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), torch.tensor(0.01))
        >>> [[round(entry, 6) for entry in row] for row in noise().tolist()]
        [[2.0, 0.5], [0.5, 1.0]]
    """

    floor: Tensor

    def __init__(self, value: Tensor, floor: Tensor) -> None:
        super().__init__()
        value = value.detach().clone()
        self.register_buffer("floor", floor.to(value).expand(value.shape[:1]).clone())
        if value.ndim < 2:
            self.log = nn.Parameter(torch.maximum(value - self.floor, _ABOVE * self.floor).log())
            return
        lower = torch.linalg.cholesky(_above(value, self.floor))
        self.log = nn.Parameter(lower.diagonal().log())
        self.below = nn.Parameter(lower.tril(-1)[_below(lower)])

    def forward(self) -> Tensor:
        """The value, in the shape it was given."""
        if not hasattr(self, "below"):
            return self.floor + self.log.exp()
        lower = torch.diag_embed(self.log.exp())
        lower = lower.masked_scatter(_below(lower), self.below)
        return lower @ lower.mT + torch.diag_embed(self.floor)


def _below(matrix: Tensor) -> Tensor:
    """Which entries lie below the diagonal."""
    return torch.ones_like(matrix, dtype=torch.bool).tril(-1)


def _above(value: Tensor, floor: Tensor) -> Tensor:
    """`value - diag(floor)`, its eigenvalues in units of the floor raised to a little above 0."""
    if not floor.any():
        return value
    unit = floor.sqrt()
    values, vectors = torch.linalg.eigh(value / unit / unit[:, None])
    excess = (vectors * (values - 1.0).clamp(min=_ABOVE)) @ vectors.mT
    return excess * unit * unit[:, None]


class _LogProb(nn.Module):
    """`log p(x)` as the forward pass of a module, so that `functional_call` can put in noise and prior."""

    def __init__(self, dgn: DGN) -> None:
        super().__init__()
        self.dgn = dgn

    def forward(self, x: Tensor) -> Tensor:
        return self.dgn().log_prob(x)


class Likelihood(nn.Module):
    """The network of a `DGN` with its noise and prior in unconstrained coordinates.

    Args:
        dgn: the model; its network is shared.
        noise_floor: lower bounds on the noise variance, `()` or `(D,)`.
        learn_noise: whether the noise is trained.
        learn_prior: whether the prior is trained.
        weight_prior: on the weights of the affine layers.
        rows: N, the rows that the weight prior is spread over.
    """

    def __init__(
        self,
        dgn: DGN,
        noise_floor: Tensor,
        learn_noise: bool,
        learn_prior: bool,
        weight_prior: WeightPrior | None,
        rows: int,
    ) -> None:
        super().__init__()
        if weight_prior is not None and weight_prior.family == "uniform":
            raise ParameterError(
                "weight_prior 'uniform' has no gradient; use 'gaussian' or 'laplace', or girih.em.fit_em, which clips"
            )
        for name in ("noise", "prior"):
            if not isinstance(getattr(dgn, name), nn.Parameter):
                raise ParameterError(f"the {name} of this DGN is computed elsewhere; build it from numbers to train it")
        self.net = dgn.net
        self.noise = FreeCovariance(dgn.noise, noise_floor) if learn_noise else None
        nothing = torch.zeros((), dtype=torch.float64, device=dgn.noise.device)
        self.prior = FreeCovariance(dgn.prior, nothing) if learn_prior else None
        self.weight_prior, self.rows = weight_prior, rows
        self._log_prob = [_LogProb(dgn)]  # in a list: not a submodule, its noise and prior are not trained

    @property
    def dgn(self) -> DGN:
        """The model that is trained."""
        return self._log_prob[0].dgn

    def nll(self, x: Tensor) -> Tensor:
        """Exact `-log p(x)`, `(B,)`.

        Raises:
            NonFiniteError: noise or prior overflow, or `log p(x)` does.
        """
        swapped = {}
        for name, part in (("noise", self.noise), ("prior", self.prior)):
            value = part() if part is not None else getattr(self.dgn, name).detach().to(x.device)
            if not (torch.isfinite(value).all() and (value.diagonal() if value.ndim == 2 else value).min() > 0):
                raise NonFiniteError(f"parameter '{name}' left the range of numbers; train with a smaller lr")
            swapped[f"dgn.{name}"] = value
        return -functional_call(self._log_prob[0], swapped, (x,))

    def penalty(self) -> Tensor | float:
        """`-log p(weights)` per row of the data, up to a constant, as `fit_em` adds it."""
        prior = self.weight_prior
        if prior is None:
            return 0.0
        weights = self.dgn.trace.weights
        if prior.family == "gaussian":
            return torch.stack([w.square().sum() for w in weights]).sum() / (2.0 * prior.scale**2 * self.rows)
        return torch.stack([w.abs().sum() for w in weights]).sum() / (prior.scale * self.rows)

    def write_back(self) -> None:
        """Give the `DGN` the noise and prior of this moment."""
        with torch.no_grad():
            for name, part in (("noise", self.noise), ("prior", self.prior)):
                if part is not None:
                    getattr(self.dgn, name).copy_(part())
