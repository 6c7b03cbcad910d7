"""`girih.train`: a `DGN` trained by gradients of its exact likelihood."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from girih._arrays import Rows
from girih._options import real
from girih.em import WeightPrior
from girih.em import noise_floor as floor_of
from girih.errors import EmptyDataError, ParameterError
from girih.inference import DGN
from girih.likelihood.model import Likelihood
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

_LEARNING_RATES = {"adam": 1e-2, "lbfgs": 1.0}

# Full-batch steps of Adam between records: a record costs as much as half a step.
_EVERY = 10


def train(
    dgn: DGN,
    X: Rows,
    *,
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
        dgn: the model; the trainable parameters of its network, its noise and (if asked) its prior change in place.
        X: `(N, D)`; NaN entries are missing.
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
    if not isinstance(dgn, DGN):
        raise ParameterError(f"train takes a girih.DGN, got {type(dgn).__name__}; of an estimator, pass est.dgn_")
    if optimizer not in _LEARNING_RATES:
        raise ParameterError(f"optimizer must be 'adam' or 'lbfgs'; got {optimizer!r}")
    share = real(noise_floor, "noise_floor")
    own = FitOptions(lr=_LEARNING_RATES[optimizer], patience=20, min_improvement=1e-5, keep_best=True)
    options = FitOptions.among(locals()).filled(own)
    rows, held_out = split(
        dgn.rows(X).detach(), options.validation, options.seed, lambda given: dgn.rows(given).detach()
    )
    unseen = torch.isnan(rows).all(0).nonzero()[:, 0].tolist()
    if unseen:
        raise EmptyDataError(f"columns {unseen[:10]} of X have no observed entries; drop them")
    floor = floor_of(dgn, rows, torch.ones(len(rows), dtype=torch.float64, device=rows.device), share)
    prior = WeightPrior.parse(weight_prior)
    model = Likelihood(dgn, floor, learn_noise, learn_prior, prior, len(rows))
    steps = Batches(len(rows), options.batch_size, options.seed).per_pass
    every = record_every or (_EVERY if optimizer == "adam" and steps == 1 else steps)

    def measure(likelihood: Likelihood) -> dict[str, float]:
        nll = float(likelihood.nll(rows.to(next(likelihood.parameters()).device)).mean())
        return {"nll": nll} if prior is None else {"nll": nll, "penalised": nll + float(likelihood.penalty())}

    recorder = Beside(record, measure, every, _current)
    options = options.told_apart_by(
        {
            "noise_floor": share,
            "learned": [name for name, on in (("noise", learn_noise), ("prior", learn_prior)) if on],
            "weight_prior": str(prior),
        }
    )
    options = replace(options, record=recorder)
    if held_out is not None:
        options = watching(options, held_out, _mean_nll)
    elif options.monitor is None:
        options = replace(options, monitor="nll" if prior is None else "penalised")
    home = dgn.noise.device
    try:
        result = minimise(model, rows, _loss, options, optimizer=optimizer)
    finally:
        if (
            isinstance(options.record, Recorder) and options.record.entries
        ):  # the parameters that were kept are in place
            model.write_back()
        dgn.to(home)
    kept = int(np.searchsorted(result.history["step"], result.best_step))
    return replace(result, log_likelihood=-float(result.history["nll"][kept]))


def _loss(likelihood: Likelihood, batch: Tensor) -> Tensor:
    return likelihood.nll(batch).mean() + likelihood.penalty()


def _mean_nll(likelihood: Likelihood, rows: Tensor) -> float:
    return float(likelihood.nll(rows).mean())


def _current(likelihood: Likelihood) -> nn.Module:
    """The `DGN` with the noise and prior of this moment."""
    dgn = likelihood.dgn.to(next(likelihood.parameters()).device)
    likelihood.write_back()
    return dgn
