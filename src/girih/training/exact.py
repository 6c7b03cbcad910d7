"""`girih.train`: a `DGN` trained by gradients of its exact likelihood."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from girih._options import real, whole
from girih.em import WeightPrior
from girih.em.step import noise_floor as floor_of
from girih.errors import EmptyDataError, ParameterError
from girih.inference import DGN
from girih.training.batches import Batches
from girih.training.checkpoint import digest
from girih.training.fit import fit_gradient
from girih.training.held_out import split
from girih.training.likelihood import Likelihood, LikelihoodRecorder
from girih.training.logs import LogFormat
from girih.training.optimizers import OptimizerName
from girih.training.run import TrainingRun

_LEARNING_RATES = {"adam": 1e-2, "lbfgs": 1.0}

# Full-batch steps of Adam between records: a record costs as much as half a step.
_EVERY = 10


@dataclass(frozen=True)
class LikelihoodRun(TrainingRun):
    """What `girih.train` did; see `TrainingRun` for `history`, `steps`, `seconds`, `ended` and `converged`.

    Attributes:
        nll_curve: exact mean NLL of the training rows at the steps `history["step"]`, nats per row.
        nll: that of the parameters that were kept.
        best_step: the step whose parameters were kept.
        held_out: their exact mean NLL on the held-out rows, the lowest that was recorded, or `None`.
    """

    nll_curve: np.ndarray
    nll: float
    best_step: int
    held_out: float | None


def train(
    dgn: DGN,
    X: Any,
    *,
    optimizer: OptimizerName = "adam",
    lr: float | None = None,
    batch_size: int | None = None,
    max_epochs: int = 1000,
    validation: Any = None,
    patience: int | None = 20,
    min_improvement: float = 1e-5,
    learn_noise: bool = True,
    learn_prior: bool = False,
    noise_floor: float = 1e-6,
    weight_prior: Any = None,
    seed: int = 0,
    record_every: int | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    log: str | os.PathLike[str] | None = None,
    log_format: LogFormat = "csv",
    accelerator: Literal["auto", "cpu", "gpu"] = "cpu",
) -> LikelihoodRun:
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
        lr: step size; 0.01 for Adam, 1 for L-BFGS by default.
        batch_size: rows of a gradient step; all of them by default, which makes an epoch one step.
        max_epochs: passes over the data at most.
        validation: held-out rows `(M, D)`, or a fraction of X, drawn with `seed`, that is held out of training.
        patience: end when this many records in a row bring no improvement; `None` never does.
        min_improvement: the fall that counts as one, relative to `max(1, |best|)`.
        learn_noise: train the noise.
        learn_prior: train the latent prior.
        noise_floor: lower bound on the noise variance as in `fit_em`, a share of the variance of the data. A
            variance that starts at or below it is moved to just above.
        weight_prior: `None`, `("gaussian", s)` or `("laplace", s)`; added to the loss as in `fit_em`.
        seed: of the order of the rows and of the held-out fraction.
        record_every: gradient steps between records of the exact NLL; by default an epoch, ten for Adam with all rows.
        progress: show a bar with the NLL.
        checkpoint: a file. A run that was killed goes on from it when called again with the same arguments and
            the same initial parameters, to the same numbers.
        checkpoint_seconds: time between writes of that file.
        log: a folder that each record is written to, as `fit_gradient` does.
        log_format: "csv" or "tensorboard".
        accelerator: "cpu", "gpu" (CUDA) or "auto".

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
        >>> run = girih.train(dgn, X, optimizer="lbfgs", max_epochs=5)
        >>> run.steps, bool(run.nll < run.nll_curve[0])
        (5, True)
    """
    if not isinstance(dgn, DGN):
        raise ParameterError(f"train takes a girih.DGN, got {type(dgn).__name__}; of an estimator, pass est.dgn_")
    if optimizer not in _LEARNING_RATES:
        raise ParameterError(f"optimizer must be 'adam' or 'lbfgs'; got {optimizer!r}")
    if lr is None:
        lr = _LEARNING_RATES[optimizer]
    share, seed = real(noise_floor, "noise_floor"), whole(seed, "seed", None)
    rows, held_out = split(dgn.rows(X).detach(), validation, seed, lambda held_out: dgn.rows(held_out).detach())
    unseen = torch.isnan(rows).all(0).nonzero()[:, 0].tolist()
    if unseen:
        raise EmptyDataError(f"columns {unseen[:10]} of X have no observed entries; drop them")
    floor = floor_of(dgn, rows, torch.ones(len(rows), dtype=torch.float64, device=rows.device), share)
    prior = WeightPrior.parse(weight_prior)
    model = Likelihood(dgn, floor, learn_noise, learn_prior, prior, len(rows))
    if record_every is None:
        steps = Batches(len(rows), None if batch_size is None else whole(batch_size, "batch_size"), seed).per_pass
        record_every = _EVERY if optimizer == "adam" and steps == 1 else steps
    recorder = LikelihoodRecorder(rows, held_out, prior is not None, record_every)
    settings = {
        "noise_floor": share,
        "learned": [name for name, on in (("noise", learn_noise), ("prior", learn_prior)) if on],
        "weight_prior": str(prior),
        "held-out rows": None if held_out is None else digest(held_out),
    }

    def loss(likelihood: Likelihood, batch: Tensor) -> Tensor:
        return likelihood.nll(batch).mean() + likelihood.penalty()

    try:
        run = fit_gradient(
            model,
            rows,
            loss=loss,
            optimizer=optimizer,
            lr=lr,
            batch_size=batch_size,
            max_epochs=max_epochs,
            patience=patience,
            min_improvement=min_improvement,
            monitor=recorder.monitor,
            keep_best=True,
            seed=seed,
            record=recorder,
            progress=progress,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            checkpoint_seconds=checkpoint_seconds,
            settings=settings,
            log=log,
            log_format=log_format,
            accelerator=accelerator,
            allow_missing=True,
        )
    finally:
        if recorder.best:  # `fit_gradient` has put the best parameters in place
            model.write_back()
    return _result(run, recorder)


def _result(run: TrainingRun, recorder: LikelihoodRecorder) -> LikelihoodRun:
    best = recorder.best["step"]
    entry = next(entry for entry in recorder.entries if entry["step"] == best)
    return LikelihoodRun(
        history=run.history,
        steps=run.steps,
        seconds=run.seconds,
        ended=run.ended,
        nll_curve=run.history["nll"],
        nll=entry["nll"],
        best_step=best,
        held_out=entry.get("held_out"),
    )
