"""Exact EM on rows in memory, and what goes on around every fit: units, bounds on the noise, what tells runs apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from girih._jobs import alone
from girih._options import real
from girih.em.iteration import Problem
from girih.em.loop import Loop
from girih.em.options import EMOptions
from girih.em.outputs import OutputProblem
from girih.em.runs import HeldOut
from girih.em.scaling import Scaling
from girih.em.scaling import noise_floor as floor_of
from girih.errors import ParameterError
from girih.inference import DGN
from girih.training import Checkpoint, FitResult, digest

# Entries up to which one thread fits S = 1, and S = 2 or 3, where pairs are shared among threads: with other work on
# the machine two threads wait for each other ten times as long as one computes.
_ALONE = {1: 1 << 19, 2: 1 << 14}

Callback: TypeAlias = Callable[[int, float], None]
HeldOutRows: TypeAlias = tuple[Tensor, Tensor]  # `(M, D)` and their weights `(M,)`


@dataclass(frozen=True)
class Around:
    """It holds what goes on around a fit and does not change its numbers; see `girih.em.fit_em`.

    Attributes:
        progress: show a bar.
        checkpoint: a file.
        seconds: between writes of it.
        callback: called after each iteration of the kept run.
        n_jobs: starts that are tried at once.
    """

    progress: bool = False
    checkpoint: str | os.PathLike[str] | None = None
    seconds: float = 2.0
    callback: Callback | None = None
    n_jobs: int | None = 1


@dataclass(frozen=True)
class NoiseBounds:
    """They are what keeps the noise up, in the units of EM.

    Attributes:
        floor: the least variances.
        own: the variances of the data times rho, where there is a prior of the noise.
    """

    floor: Tensor
    own: Tensor | None

    def hold(self, problem: Problem, options: EMOptions) -> None:
        """Give a problem its penalties, and the kind of its steps."""
        problem.kink_ridge = options.kink_ridge
        problem.layerwise, problem.safeguard = options.m_step == "layerwise", options.safeguard
        if problem.layerwise and not problem.trained.is_chain:
            raise ParameterError(
                "m_step='layerwise' needs a chain of Linear layers and activations, and this network has other layers "
                "or branches; leave m_step out"
            )
        if self.own is not None:
            problem.noise_prior = self.own.expand(problem.dgn.output_dim)


def noise_bounds(dgn: DGN, x: Tensor, weight: Tensor, options: EMOptions, scaling: Scaling) -> NoiseBounds:
    """The bounds for rows `(N, D)` in the units of the data."""
    floor = scaling.variance(floor_of(dgn, x, weight, options.noise_floor))
    own = scaling.variance(floor_of(dgn, x, weight, options.noise_prior)) if options.noise_prior else None
    return NoiseBounds(floor, own)


def saved_by(problem: Problem, data: str, options: EMOptions, held_out: HeldOut | None) -> dict[str, Any]:
    """Everything that the numbers of a fit depend on, by name; `data` tells the rows apart."""
    return {
        **options.plain(),
        "the shapes of the parameters": [list(p.shape) for p in problem.dgn.parameters()],
        "the bounds on the noise": problem.noise_floor.tolist(),
        "likelihood": repr(problem.dgn.output),
        "data": data,
        "sample_weight": digest(problem.weight),
        "validation": None if held_out is None else digest(held_out.x, held_out.weight),
    }


def watching(dgn: DGN, scaling: Scaling, shift: float, callback: Callback | None) -> Callback:
    """The callback as the loop calls it, in the units of EM."""

    def watch(iteration: int, nll: float) -> None:
        if callback is not None:
            with scaling.outside(dgn):
                callback(iteration, nll + shift)

    return watch


def fit_rows(
    dgn: DGN, x: Tensor, weight: Tensor, held_out: HeldOutRows | None, options: EMOptions, around: Around
) -> FitResult:
    """Fit to rows `(N, D)` with weights `(N,)`; see `girih.em.fit_em`."""
    scaling = Scaling.for_fit(dgn, x, weight, rescale=options.prior is None)
    bounds = noise_bounds(dgn, x, weight, options, scaling)
    shift = float(weight @ scaling.log_jacobian(x) / weight.sum())
    with scaling.inside(dgn):
        kind = Problem if dgn.output is None else OutputProblem
        problem = kind(dgn, scaling.apply(x), weight, options.prior, bounds.floor)
        bounds.hold(problem, options)
        watched = None if held_out is None else HeldOut.of(*held_out, scaling)
        saved = None
        if around.checkpoint is not None:
            seconds = real(around.seconds, "checkpoint_seconds", positive=False)
            saved = Checkpoint(around.checkpoint, saved_by(problem, digest(x), options, watched), seconds)
        watch = watching(dgn, scaling, shift, around.callback)
        with alone(x.numel(), _ALONE[min(dgn.latent_dim, 2)]):
            return Loop(problem, options, watch, saved, watched, around.n_jobs).run(around.progress, shift)
