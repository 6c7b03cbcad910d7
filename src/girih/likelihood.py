"""Maximum likelihood for a `girih.DGN` by gradients: the exact NLL, its gradient by Fisher's identity, the training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from girih._arrays import Rows, as_rows, check_observed
from girih._options import real
from girih.covariance import Covariance, Unconstrained
from girih.em import WeightPrior
from girih.em import noise_floor as floor_of
from girih.errors import NonFiniteError, ParameterError, ShapeError
from girih.inference import DGN, ConditionalDGN
from girih.training import (
    Accelerator,
    Batches,
    Beside,
    FitOptions,
    FitResult,
    LogFormat,
    Measure,
    OptimizerName,
    Recorder,
    minimise,
    split,
    watching,
)

__all__ = ["Likelihood", "train"]

_LEARNING_RATES = {"adam": 1e-2, "lbfgs": 1.0}

# Full-batch steps of Adam between records: a record costs as much as half a step.
_EVERY = 10


class _LogProb(nn.Module):
    """`log p(x)` as the forward pass of a module, so that `functional_call` can put in noise and prior."""

    def __init__(self, model: DGN | ConditionalDGN) -> None:
        super().__init__()
        self.dgn = model if isinstance(model, DGN) else model.dgn
        self.model = [model]  # in a list: no submodule

    def forward(self, x: Tensor) -> Tensor:
        (model,) = self.model
        result: Tensor
        if isinstance(model, DGN):
            result = model().log_prob(x)
            return result
        result = model(x[:, model.output_dim :]).log_prob(x[:, : model.output_dim])
        return result


class Likelihood(nn.Module):
    """The network of a `DGN` with its noise and prior in unconstrained coordinates.

    Args:
        model: a `DGN` or a `ConditionalDGN`, whose rows have their contexts after x; its network is shared.
        noise_floor: lower bounds on the noise variance, `()` or `(D,)`.
        learn_noise: whether the noise is trained.
        learn_prior: whether the prior is trained.
        weight_prior: on the weights of the affine layers.
        rows: N, the rows that the weight prior is spread over.
    """

    def __init__(
        self,
        model: DGN | ConditionalDGN,
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
        dgn = model if isinstance(model, DGN) else model.dgn
        learn_noise, has_noise = learn_noise and bool(dgn.noise_tensors), bool(dgn.noise_tensors)
        for name in (*["noise"] * has_noise, *["prior"] * (learn_prior or dgn.latent_prior is None)):
            if not isinstance(getattr(dgn, name), nn.Parameter):
                raise ParameterError(f"the {name} of this DGN is computed elsewhere; build it from numbers to train it")
        self.net = dgn.net
        self.noise = Unconstrained(_noise(dgn), noise_floor) if learn_noise else None
        nothing = torch.zeros((), dtype=torch.float64, device=dgn.trace.device)
        self.prior = Unconstrained(_prior(dgn), nothing) if learn_prior else None
        self.weight_prior, self.rows = weight_prior, rows
        self._log_prob = [_LogProb(model)]  # in a list: not a submodule, its noise and prior are not trained

    @property
    def model(self) -> DGN | ConditionalDGN:
        """The model that is trained."""
        return self._log_prob[0].model[0]

    @property
    def dgn(self) -> DGN:
        """The same, or the one of a context, with all of its parameters."""
        return self._log_prob[0].dgn

    def nll(self, x: Tensor) -> Tensor:
        """Exact `-log p(x)`, `(B,)`.

        Raises:
            NonFiniteError: noise or prior overflow, or `log p(x)` does.
        """
        swapped: dict[str, Tensor] = {}
        for name, part, of, there in (
            ("noise", self.noise, _noise, self.dgn.noise_tensors),
            ("prior", self.prior, _prior, self.dgn.prior_tensors),
        ):
            if not there:
                continue
            value = part() if part is not None else of(self.dgn).detached()
            tensors = [tensor.to(x.device) for tensor in value.tensors]
            if not (all(torch.isfinite(tensor).all() for tensor in tensors) and value.variances.min() > 0):
                raise NonFiniteError(f"parameter '{name}' left the range of numbers; train with a smaller lr")
            swapped |= dict(zip((f"dgn.{name}", f"dgn.{name}_factor"), tensors, strict=False))
        result: Tensor = -functional_call(self._log_prob[0], swapped, (x,))
        return result

    def penalty(self) -> Tensor | float:
        """`-log p(weights)` per row of the data, up to a constant, as `fit_em` adds it."""
        return 0.0 if self.weight_prior is None else self.weight_prior.penalty(self.dgn.trace.weights) / self.rows

    def write_back(self) -> None:
        """Give the `DGN` the noise and prior of this moment."""
        with torch.no_grad():
            if self.noise is not None:
                for part, new in zip(self.dgn.noise_tensors, self.noise().tensors, strict=True):
                    part.copy_(new)
            if self.prior is not None:
                self.dgn.prior.copy_(self.prior().tensors[0])


def _noise(dgn: DGN) -> Covariance:
    """The noise; the scales of outputs that are not Gaussian are as positive as variances are."""
    return Covariance.from_tensors(dgn.noise_tensors, dgn.output_dim)


def _prior(dgn: DGN) -> Covariance:
    return Covariance.from_tensors((dgn.prior,), dgn.latent_dim)


def train(
    dgn: DGN | ConditionalDGN,
    X: Rows,
    *,
    context: Rows | None = None,
    optimizer: OptimizerName = "adam",
    learn_noise: bool = True,
    learn_prior: bool = False,
    noise_floor: float = 1e-6,
    weight_prior: WeightPrior | tuple[str, float] | str | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | Literal["auto"] | None = "auto",
    lr: float | None = None,
    validation: Rows | float | Literal["auto"] | None = "auto",
    patience: int | Literal["auto"] | None = "auto",
    min_improvement: float | None = None,
    monitor: str | None = None,
    keep_best: bool | None = None,
    seed: int | None = 0,
    record: Recorder | Measure | None = None,
    record_every: int | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 2.0,
    settings: Mapping[str, Any] | None = None,
    log: str | os.PathLike[str] | None = None,
    log_format: LogFormat = "csv",
    accelerator: Accelerator = "auto",
) -> FitResult:
    r"""Train a `DGN` in place by gradients of its exact NLL.

    The gradient is that of Fisher's identity, `grad log p(x) = E[grad log p(x, z) | x]`, so no integral is
    differentiated and nothing is sampled. Exact EM, `girih.em.fit_em`, finds its own starting point; this goes on from
    the parameters that the model has. The noise is trained in log space, a full one through its Cholesky factor.

    The model is left at the recorded step where the watched number was lowest: the NLL of the held-out rows, or
    without any that of the training rows, so it is never worse than at the start.

    Args:
        dgn: the model, with any outputs and any prior; the trainable parameters of its network, its noise and (if
            asked) its Gaussian prior change in place.
        X: `(N, D)`; NaN entries are missing.
        context: of a `ConditionalDGN`, the context of each row, `(N, K)`: few values, since each has a partition of
            its own in every step. Held-out rows are then a fraction, or rows with their contexts after x, `(M, D + K)`.
        optimizer: "adam", or "lbfgs" with all rows at once, where a step is up to ten iterations.
        learn_noise: train the noise.
        learn_prior: train the latent prior.
        noise_floor: lower bound on the noise variance as in `fit_em`, a share of the variance of the data. A
            variance that starts at or below it is moved to just above.
        weight_prior: `None`, `("gaussian", s)` or `("laplace", s)`; added to the loss as in `fit_em`.
        max_epochs: as all that follow, a field of `girih.FitOptions`, which says what it means; here by default 1000.
        max_steps: gradient steps at most, instead.
        batch_size: by default all rows, which makes an epoch one step.
        lr: by default 0.01 for Adam, 1 for L-BFGS.
        validation: held-out rows or a fraction; by default none.
        patience: by default 20.
        min_improvement: by default 1e-5: the exact NLL has no noise.
        monitor: by default `held_out`, or without held-out rows the NLL, with the weight prior where there is one.
        keep_best: by default true.
        seed: of rows and draws.
        record: what is measured besides, of the `DGN`.
        record_every: by default an epoch, ten for Adam with all rows.
        progress: show a bar with the NLL.
        checkpoint: a file to go on from.
        checkpoint_seconds: time between writes of it.
        settings: what else the numbers depend on.
        log: a folder.
        log_format: "csv" or "tensorboard".
        accelerator: "cpu", "gpu" or "auto".

    Returns:
        The `FitResult`. Its history has the exact mean `nll` of the training rows, `penalised` with a weight prior,
        and `held_out` with held-out rows, in nats per row.

    Raises:
        ShapeError, EmptyDataError: X or the held-out rows do not fit the model, or have no rows.
        NonFiniteError: a parameter, the noise or the likelihood left the range of numbers; the message names it, and
            the model keeps the best recorded parameters.
        ParameterError: an option is out of its domain, or the checkpoint is of another run.
        ModelFileError: the checkpoint is damaged.

    Source:
        EM-DGN, eq. 4; Fisher's identity, see `girih.inference`.

    Example:
        >>> import girih
        >>> X = girih.datasets.load("circle", n=64, seed=0).X
        >>> dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.5)
        >>> result = girih.train(dgn, X, optimizer="lbfgs", max_epochs=5)
        >>> result.steps, bool(result.curve[-1] < result.curve[0])
        (5, True)
    """
    if not isinstance(dgn, DGN | ConditionalDGN):
        raise ParameterError(
            f"train takes a girih.DGN or ConditionalDGN, got {type(dgn).__name__}; of an estimator, pass est.dgn_"
        )
    if isinstance(dgn, DGN) != (context is None):
        raise ParameterError("context= is for a girih.ConditionalDGN, which needs it: one context for each row")
    model, dgn = dgn, dgn if isinstance(dgn, DGN) else dgn.dgn
    if optimizer not in _LEARNING_RATES:
        raise ParameterError(f"optimizer must be 'adam' or 'lbfgs'; got {optimizer!r}")
    share = real(noise_floor, "noise_floor")
    own = FitOptions(lr=_LEARNING_RATES[optimizer], patience=20, min_improvement=1e-5, keep_best=True)
    options = FitOptions.among(locals()).filled(own)
    rows, held_out = split(_rows(model, X, context), options.validation, options.seed, partial(_rows, model))
    observed = rows[:, : dgn.output_dim]
    check_observed(observed, "X")
    floor = floor_of(dgn, observed, torch.ones_like(observed[:, 0]), share)
    prior = WeightPrior.parse(weight_prior)
    likelihood = Likelihood(model, floor, learn_noise, learn_prior, prior, len(rows))
    steps = Batches(len(rows), options.batch_size, options.seed).per_pass
    every = record_every or (_EVERY if optimizer == "adam" and steps == 1 else steps)

    def measure(likelihood: Likelihood) -> dict[str, float]:
        nll = float(likelihood.nll(rows.to(next(likelihood.parameters()).device)).mean())
        return {"nll": nll} if prior is None else {"nll": nll, "penalised": nll + float(likelihood.penalty())}

    options = options.told_apart_by(
        {
            "noise_floor": share,
            "learned": [name for name, on in (("noise", learn_noise), ("prior", learn_prior)) if on],
            "weight_prior": str(prior),
        }
    )
    options = replace(options, record=Beside(record, measure, every, _current))
    if held_out is not None:
        options = watching(options, held_out, _mean_nll)
    elif options.monitor is None:
        options = replace(options, monitor="nll" if prior is None else "penalised")
    home = dgn.trace.device
    try:
        result = minimise(likelihood, rows, _loss, options, optimizer=optimizer)
    finally:
        if isinstance(options.record, Recorder) and options.record.entries:  # what was kept is in place
            likelihood.write_back()
        model.to(home)
    kept = int(np.searchsorted(result.history["step"], result.best_step))
    return replace(result, log_likelihood=-float(result.history["nll"][kept]))


def _loss(likelihood: Likelihood, batch: Tensor) -> Tensor:
    return likelihood.nll(batch).mean() + likelihood.penalty()


def _mean_nll(likelihood: Likelihood, rows: Tensor) -> float:
    return float(likelihood.nll(rows).mean())


def _current(likelihood: Likelihood) -> nn.Module:
    """The model with the noise and prior of this moment."""
    model = likelihood.model.to(next(likelihood.parameters()).device)
    likelihood.write_back()
    return model


def _rows(model: DGN | ConditionalDGN, X: Rows, context: Rows | None = None) -> Tensor:
    """Checked rows, with their contexts after them; without any, those of a `ConditionalDGN` are in X already."""
    if isinstance(model, DGN):
        return model.rows(X).detach()
    D = model.output_dim
    if context is None:
        both = as_rows(X, "validation", D + model.context_dim, "that of x and its context", allow_missing=True)
        X, context = both[:, :D], both[:, D:]
    x, c = model.rows(X).detach(), model.contexts(context)
    if len(c) != len(x):
        raise ShapeError(f"context has {len(c)} rows for {len(x)} rows of X; pass one context a row")
    return torch.cat((x, c), 1)
