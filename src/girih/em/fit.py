"""`fit_em`: a `DGN` fitted by exact EM."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from girih._arrays import Rows, as_tensor, check_finite, check_largest, check_observed
from girih.em.in_memory import Around, fit_rows
from girih.em.mstep import WeightPrior
from girih.em.options import EMOptions
from girih.em.outputs import check_output
from girih.em.parameters import OverfitWarning, Trained, count_parameters, overfit_reason
from girih.em.stepwise import fit_once
from girih.em.streamed import fit_stream
from girih.errors import ParameterError, ShapeError
from girih.inference import DGN
from girih.streams import Blocks, Stream, is_stream
from girih.training import FitResult, seed_of_run, split


def fit_em(
    dgn: DGN,
    X: Rows | Stream,
    *,
    sample_weight: Tensor | np.ndarray | Sequence[float] | None = None,
    weight_prior: WeightPrior | tuple[str, float] | str | None = None,
    learn_prior: bool = False,
    noise_floor: float = 1e-6,
    noise_prior: float = 0.0,
    kink_ridge: float = 0.0,
    max_iter: int = 200,
    tol: float = 1e-6,
    n_init: int = 5,
    init_iter: int = 25,
    acceleration: str = "quasi-newton",
    batch_size: int | None = None,
    init: str = "auto",
    validation: Rows | float | None = None,
    patience: int | None = 10,
    m_step: str = "joint",
    safeguard: bool = True,
    seed: int | None = 0,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 2.0,
    callback: Callable[[int, float], None] | None = None,
    n_jobs: int | None = 1,
) -> FitResult:
    r"""Fit a `DGN` by exact EM, in place.

    Each iteration does the E-step exactly, then the exact M-step of the last affine map (W and v jointly) and the
    noise, then a damped least-squares update of all hidden layers, which is kept only if the exact NLL does not
    rise. Blocks of quasi-Newton iterations take turns with EM where they gain more. The penalised exact NLL never
    increases, unless it is asked not to be looked at (`safeguard`).

    With outputs that are not Gaussian the M-step has no closed form: it is L-BFGS on points that stand for the
    posteriors, and is shortened until the exact NLL does not rise (see `girih.em.outputs`); the scales of the outputs
    are learned, other numbers that these have stay. What needs Gaussian noise is refused.

    Any generator that `girih.trace` reads can be fitted. The weights and biases of its Linear and convolution layers
    are trained; batch normalisation (in eval mode), PReLU slopes and bare parameters keep their values.

    Args:
        dgn: the model; its network's float64 layers, noise and (if asked) prior are changed in place.
        X: `(N, D)`; NaN entries are missing. Or a stream of rows that need not fit into memory: whatever `girih.Blocks`
            takes but for a table. A uniform sample of 10,000 rows, drawn in a first pass, then chooses the start, and
            the fit goes on from there over all blocks; several processes of `torch.distributed` share them. An iterator
            is passed once, by stepwise EM (see `girih.em.stepwise`).
        sample_weight: `(N,)` non-negative row weights; only their ratios matter, as they are scaled to the mean 1
            over the rows that have any.
        weight_prior: as all down to `seed`, a field of `girih.em.EMOptions`, which says what it means.
        learn_prior: also update the latent prior.
        noise_floor: least noise variance, as a share of the variance of the data.
        noise_prior: rho, that of an inverse Wishart prior on the noise.
        kink_ridge: lambda, rows by which a prior holds the generator to an affine map.
        max_iter: iterations of the run that is kept.
        tol: when it has converged, in nats per row.
        n_init: random starts, beside curves; 0 is a warm start. Of more than 2,048 rows with weight (of one latent
            16,384), so many, drawn with `seed` and with their weights, serve to choose the start and to go on from it
            for some iterations.
        init_iter: trial iterations of each start.
        acceleration: "quasi-newton" or "none"; with other outputs it is EM alone.
        batch_size: rows in a batch.
        init: "auto", or "random" for no curves.
        validation: held-out rows `(M, D)`, or the fraction of the rows, drawn with `seed`, that is held out; `None`
            holds out none. The model keeps the parameters that are best on them. Of a stream it is that fraction of
            the sample.
        patience: end when this many iterations in a row gain less than `tol` on the held-out rows; `None` never does.
        m_step: "joint", or "layerwise" for the closed-form M-steps of EM-DGN.
        safeguard: of "layerwise", whether steps that raise the exact NLL are shortened.
        seed: of the starts and the batches; `None` lets `torch.manual_seed` decide, or the checkpoint.
        progress: show a bar with the NLL on a terminal or in a notebook.
        checkpoint: a file to continue from if it exists, and to save progress to; a killed fit that is started
            again ends with the same numbers.
        checkpoint_seconds: time between writes of that file.
        callback: called as `callback(iteration, nll)` after each iteration of the kept run.
        n_jobs: starts that are tried at once, through joblib, to the same numbers; -1 for one on each processor.

    Returns:
        The `FitResult`; its curve is the penalised exact NLL (nats per row) before the first iteration and after each;
        of a stream, from where all rows are passed on, and of one that is passed once, the NLL of each batch before it
        was learned.

    Raises:
        ShapeError, NonFiniteError, EmptyDataError, ParameterError, ModelFileError, UnsupportedLayerError.
        StreamError: a block of a stream cannot be read, or the blocks change between passes.
        ProcessError: another process of the run has ended or does not answer.

    Source:
        EM-DGN, section 4 and appendices G, H.

    Example:
        >>> import girih
        >>> dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1)
        >>> X = girih.datasets.load("circle", n=64, seed=0).X
        >>> result = girih.em.fit_em(dgn, X, n_init=1, max_iter=100, tol=0.01)
        >>> bool(result.curve[-1] < result.curve[0]), result.converged
        (True, True)
    """
    seed = seed_of_run(seed, checkpoint)
    if learn_prior and dgn.latent_prior is not None:
        raise ParameterError(f"learn_prior=True: the prior is not Gaussian but {dgn.latent_prior.kind}; leave it out")
    options = EMOptions.among(locals())
    check_output(dgn, options, is_stream(X))
    around = Around(progress, checkpoint, checkpoint_seconds, callback, n_jobs)
    if is_stream(X):
        if sample_weight is not None:
            raise ParameterError("rows that come in blocks have no sample_weight; leave it out, or give rows in memory")
        blocks = Blocks.of(X)
        if blocks.once and options.m_step != "joint":
            raise ParameterError(f"an iterator is passed once, in batches, without m_step={m_step!r}; leave it out")
        return (fit_once if blocks.once else fit_stream)(dgn, blocks, validation, options, around)
    x, weight = _check_data(dgn, cast("Rows", X), sample_weight)
    x, weight, held_out = _held_out(dgn, x, weight, validation, options.seed)
    Trained.of(dgn.net, dgn.trace)  # refuses what EM cannot train before anything is changed
    result = fit_rows(dgn, x, weight, held_out, options, around)
    reason = overfit_reason(count_parameters(dgn, learn_prior), x, weight)
    if reason is not None:
        warnings.warn(reason, OverfitWarning, stacklevel=2)
    return replace(result, overfit=reason)


def _held_out(
    dgn: DGN, x: Tensor, weight: Tensor, validation: Rows | float | None, seed: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Training rows and their weights, and those that are held out."""

    def check(rows: Rows) -> Tensor:
        given = dgn.rows(rows).detach()
        check_largest(given, "validation")
        return torch.nn.functional.pad(given, (0, 1), value=1.0)

    kept, others = split(torch.cat((x, weight[:, None]), 1), validation, seed, check)
    if others is None:
        return x, weight, None
    x, weight = kept[:, :-1], kept[:, -1]
    for share, name in ((weight, "training"), (others[:, -1], "held-out")):
        if not (share > 0).any():
            raise ParameterError(f"all {name} rows have sample_weight 0; pass other rows as validation, or no weights")
    check_observed(x[weight > 0], "X")
    return x, weight, (others[:, :-1], others[:, -1])


def _check_data(
    dgn: DGN, X: Rows, sample_weight: Tensor | np.ndarray | Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    x = dgn.rows(X).detach()
    check_largest(x, "X")
    if sample_weight is None:
        weight = torch.ones(len(x), dtype=torch.float64, device=x.device)
    else:
        weight = as_tensor(sample_weight, "sample_weight", x.device).detach().reshape(-1)
        if len(weight) != len(x):
            raise ShapeError(f"sample_weight has {len(weight)} entries for {len(x)} rows; pass one weight a row")
        check_finite(weight, "sample_weight")
        if (weight < 0).any() or not (weight > 0).any():
            raise ParameterError("sample_weight must be non-negative, and positive for one row at least")
        weight = weight / weight.max()  # their size means nothing, and their sum must not overflow
        weight = weight * ((weight > 0).sum() / weight.sum())
    check_observed(x[weight > 0], "X")
    return x, weight
