"""A `DGN` as something to be minimised: its exact NLL, in coordinates that any gradient step may move along."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from girih.covariance import Covariance, Unconstrained
from girih.em import WeightPrior
from girih.errors import NonFiniteError, ParameterError
from girih.inference import DGN


class _LogProb(nn.Module):
    """`log p(x)` as the forward pass of a module, so that `functional_call` can put in noise and prior."""

    def __init__(self, dgn: DGN) -> None:
        super().__init__()
        self.dgn = dgn

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dgn().log_prob(x)
        return result


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
        self.noise = Unconstrained(dgn.noise_covariance, noise_floor) if learn_noise else None
        nothing = torch.zeros((), dtype=torch.float64, device=dgn.noise.device)
        self.prior = Unconstrained(_prior(dgn), nothing) if learn_prior else None
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
        swapped: dict[str, Tensor] = {}
        for name, part, fixed in (
            ("noise", self.noise, self.dgn.noise_covariance),
            ("prior", self.prior, _prior(self.dgn)),
        ):
            value = part() if part is not None else fixed.detached()
            tensors = [tensor.to(x.device) for tensor in value.tensors]
            if not (all(torch.isfinite(tensor).all() for tensor in tensors) and value.variances.min() > 0):
                raise NonFiniteError(f"parameter '{name}' left the range of numbers; train with a smaller lr")
            swapped |= dict(zip((f"dgn.{name}", f"dgn.{name}_factor"), tensors, strict=False))
        result: Tensor = -functional_call(self._log_prob[0], swapped, (x,))
        return result

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
            if self.noise is not None:
                self.dgn.noise_covariance = self.noise()
            if self.prior is not None:
                self.dgn.prior.copy_(self.prior().tensors[0])


def _prior(dgn: DGN) -> Covariance:
    return Covariance.from_tensors((dgn.prior,), dgn.latent_dim)
