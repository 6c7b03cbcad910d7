"""The density models of `girih_papers.rad_tables`, each fitted to a table with a budget of parameters."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from girih.em import DGNEstimator
from girih.errors import NonFiniteError
from girih.flows import RAD, Flow, RealNVP, Standardise, couplings
from girih.inference import DGN
from girih_papers.arrays import Array
from girih_papers.jobs import completed
from girih_papers.rivals import Covariance, Fitted, Rows, fitted_dgn, mixture

# isort: split
import zuko  # after girih.flows, which keeps the checks of torch.distributions on

_BINS = 8
_BATCH = 128
_EVERY = 10  # gradient steps between looks at the validation rows: the best ones may be among the first hundred
_RECORDS = 30  # without a fall of the validation NLL end a training
_WIDE = 3.0  # half width of the middle piece in deviations: nearly all rows start on it, where a fold is affine
_NEAR = 0.1  # sizes that differ less, relatively, count as equal
# Free numbers of one covariance of D columns.
_SHAPES: dict[Covariance, Callable[[int], int]] = {
    "spherical": lambda D: 1,
    "diag": lambda D: D,
    "full": lambda D: D * (D + 1) // 2,
}


def _rad(features: int, transforms: int, hidden: int, seed: int) -> Flow:
    return RAD(features, transforms=transforms, hidden_features=(hidden,), randmask=True, seed=seed)


def _wide_rad(features: int, transforms: int, hidden: int, seed: int) -> Flow:
    return RAD(features, transforms=transforms, hidden_features=(hidden,), randmask=True, half_width=_WIDE, seed=seed)


def _real_nvp(features: int, transforms: int, hidden: int, seed: int) -> Flow:
    return RealNVP(
        features, transforms=transforms, hidden_features=(hidden,), randmask=True, seed=seed, activation="relu"
    )


def _spline(features: int, transforms: int, hidden: int, seed: int) -> Flow:
    """Rational-quadratic splines of zuko in couplings, with the masks of the others."""

    def build(mask: Tensor) -> Any:
        return zuko.flows.GeneralCouplingTransform(
            features,
            mask=mask,
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=((_BINS,), (_BINS,), (_BINS - 1,)),
            hidden_features=(hidden,),
        )

    result: Flow = Flow([Standardise(features), *couplings(build, features, transforms, True, seed)], features).double()
    return result


FLOWS: dict[str, Callable[[int, int, int, int], Flow]] = {
    "RAD": _rad,
    "RAD, wide start": _wide_rad,
    "Real NVP": _real_nvp,
    "neural spline flow": _spline,
}


def size_of(model: torch.nn.Module) -> int:
    """How many free numbers a flow has."""
    return sum(parameter.numel() for parameter in model.parameters())


def budget(features: int, transforms: int, hidden: int) -> int:
    """The parameters of a RAD flow with so many couplings and hidden units: what every model may have."""
    return size_of(_rad(features, transforms, hidden, 0))


def shape_of(kind: str, features: int, transforms: int, parameters: int) -> tuple[int, int]:
    """Couplings and hidden units of a flow with about this many parameters.

    With the couplings that were asked for, if a width brings it within a tenth; else with fewer or, where none does,
    with those that come closest.
    """
    best: tuple[float, int, int] | None = None
    for count in range(transforms, 0, -1):
        one, two = (size_of(FLOWS[kind](features, count, width, 0)) for width in (1, 2))
        width = max(1, 1 + round((parameters - one) / (two - one)))  # the size is affine in the width
        miss = abs(one + (width - 1) * (two - one) - parameters) / parameters
        if best is None or miss < best[0]:
            best = miss, count, width
        if miss <= _NEAR:
            return count, width
    assert best is not None
    return best[1:]


def fit_flow(
    kind: str, rows: Rows, transforms: Sequence[int], parameters: int, rates: Sequence[float], steps: int, seed: int
) -> Fitted:
    """A flow of a given size; couplings, rate and end of training are those of the lowest validation NLL.

    A rate at which training leaves the range of numbers is out of the choice.

    Raises:
        NonFiniteError: all of them do.
    """
    start, features = time.process_time(), rows.train.shape[1]
    shapes = dict.fromkeys(shape_of(kind, features, count, parameters) for count in transforms)
    tried: list[tuple[float, dict[str, Any], Flow]] = []
    for (layers, width), rate in itertools.product(shapes, rates):
        flow = FLOWS[kind](features, layers, width, seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # told by `best_step`
                run = flow.fit(
                    rows.train,
                    validation=rows.validation,
                    lr=rate,
                    batch_size=_BATCH,
                    max_steps=steps,
                    smoothing=0.0,
                    average=0.0,
                    patience=_RECORDS,
                    record_every=min(_EVERY, steps),
                    seed=seed,
                    progress=False,
                )
        except NonFiniteError:
            continue
        completed(run)
        assert run.held_out is not None
        found = {"transforms": layers, "hidden": width, "rate": rate, "best_step": run.best_step}
        tried.append((run.held_out, found | {"steps": run.steps}, flow))
    count = len(shapes) * len(rates)
    if not tried:
        raise NonFiniteError(f"{kind} diverged at all rates, {', '.join(map(str, rates))}; pass lower ones")
    loss, choice, flow = min(tried, key=lambda entry: entry[0])
    choice |= {"validation_nll": loss, "tried": count, "diverged": count - len(tried)}

    def log_prob(x: Array) -> Array:
        with torch.no_grad():
            return np.asarray(flow().log_prob(x))

    return Fitted(
        kind, size_of(flow), log_prob, lambda n: np.asarray(flow().sample((n,))), time.process_time() - start, choice
    )


def fit_mixture(rows: Rows, components: Sequence[int], floors: Sequence[float], most: int, seed: int) -> Fitted:
    """scikit-learn's mixture within the budget; shape, components and floor by validation NLL."""
    start, D = time.process_time(), rows.train.shape[1]
    found = []
    for kind, size in _SHAPES.items():
        counts = [K for K in components if K * (D + size(D)) + K - 1 <= most and len(rows.train) > K]
        found.append(mixture(rows, kind, counts or components[:1], floors, seed))
    best = min(found, key=lambda one: one.choice["validation_nll"])
    choice = best.choice | {"shape": best.label.split(", ")[1], "tried": sum(one.choice["tried"] for one in found)}
    return replace(best, label="Gaussian mixture", seconds=time.process_time() - start, choice=choice)


def fit_generator(
    rows: Rows,
    latent_dims: Sequence[int],
    widths: Sequence[int],
    noises: Sequence[str],
    floors: Sequence[float],
    iterations: int,
    starts: int,
    most: int,
    seed: int,
) -> Fitted:
    """Exact EM within the budget; S, width, shape of the noise and what is added to it by validation NLL.

    A width of 0 is a linear generator: factor analysis where the noise is diagonal.
    """
    start, D = time.process_time(), rows.train.shape[1]
    eye = torch.eye(D, dtype=torch.float64)
    best: tuple[float, dict[str, Any], DGN, int] | None = None
    tried = 0
    for S in latent_dims:
        for width in widths:
            for shape in noises:
                size = (S + 1) * width + (width + 1) * D if width else (S + 1) * D
                size += D * (D + 1) // 2 if shape == "full" else D
                if size > most:
                    continue
                est = DGNEstimator(
                    latent_dim=S,
                    hidden=(width,) if width else (),
                    noise=shape,
                    max_iter=iterations,
                    tol=1e-4,
                    n_init=starts,
                    init="random",
                    random_state=seed,
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    est.fit(rows.train)
                net, noise, prior = est.dgn_.net, est.dgn_.noise.detach(), est.dgn_.prior.detach()
                for floor in floors:
                    dgn = DGN(net, noise=noise + floor * (eye if shape == "full" else 1.0), prior=prior)
                    with torch.no_grad():
                        loss = -float(dgn().log_prob(rows.validation).mean())
                    tried += 1
                    choice = {"latent_dim": S, "width": width, "noise": shape, "added_to_noise": floor}
                    if math.isfinite(loss) and (best is None or loss < best[0]):
                        best = loss, choice, dgn, size
    assert best is not None
    loss, choice, dgn, size = best
    choice |= {"validation_nll": loss, "tried": tried}
    return replace(fitted_dgn("DGN, exact EM", dgn, time.process_time() - start, choice, seed), parameters=size)
