"""A `DGN` as something to be minimised: its exact NLL, in coordinates that any gradient step may move along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from girih.em import WeightPrior
from girih.errors import NonFiniteError, ParameterError
from girih.inference import DGN
from girih.training.covariance import Covariance
from girih.training.recorder import Recorder


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
        self.noise = Covariance(dgn.noise, noise_floor) if learn_noise else None
        nothing = torch.zeros((), dtype=torch.float64, device=dgn.noise.device)
        self.prior = Covariance(dgn.prior, nothing) if learn_prior else None
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


class LikelihoodRecorder(Recorder):
    """Records the exact mean NLL of the training rows and of held-out rows.

    Args:
        x: the training rows.
        held_out: rows of the same columns, or `None`.
        every: gradient steps between records.
    """

    def __init__(self, x: Tensor, held_out: Tensor | None, penalised: bool, every: int) -> None:
        super().__init__(every=every)
        self.x, self.held_out, self.penalised = x, held_out, penalised
        self.monitor = "held_out" if held_out is not None else "penalised" if penalised else "nll"

    def measure(self, model: Any) -> dict[str, float]:
        """Means over the rows, nats per row."""
        device = next(model.parameters()).device
        numbers = {"nll": float(model.nll(self.x.to(device)).mean())}
        if self.penalised:
            numbers["penalised"] = numbers["nll"] + float(model.penalty())
        if self.held_out is not None:
            numbers["held_out"] = float(model.nll(self.held_out.to(device)).mean())
        return numbers
