"""Rivals that are networks: zuko's spline flow and Real NVP by `Flow.fit`, and SPFlow's continuous mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import zuko
from torch import Tensor

from girih._extras import require
from girih.flows import Flow, RealNVP, Whiten

Fit = Callable[[np.ndarray, np.ndarray | None, object], tuple[Callable[[np.ndarray], np.ndarray], object]]


def _log_prob(flow: Flow) -> Callable[[np.ndarray], np.ndarray]:
    def log_prob(X: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return flow().log_prob(torch.as_tensor(X)).numpy()

    return log_prob


def _stopped_early(build: Callable[[], Flow], smoothing: float | None, quick: bool) -> Fit:
    """With validation rows, stop by them; without, take as many steps as were best then."""

    def fit(X: np.ndarray, validation: np.ndarray | None, hint: object) -> tuple[Callable, object]:
        torch.manual_seed(0)
        flow = build()
        steps = hint if isinstance(hint, int) else 40 if quick else None
        result = flow.fit(X, validation=validation, max_steps=steps, smoothing=smoothing, progress=False)
        return _log_prob(flow), max(result.best_step or 0, 1) if validation is not None else None

    return fit


def spline_flows(columns: int, quick: bool) -> Iterator[tuple[str, Fit]]:
    def build(transforms: int, width: int, passes: int | None) -> Flow:
        flow = zuko.flows.NSF(columns, transforms=transforms, hidden_features=(width, width), passes=passes)
        return Flow([Whiten(columns), *flow.transform.transforms], columns).double()

    sizes = [(3, 64, None), (2, 32, None), (4, 64, 2)][: 1 if quick else 3]
    for transforms, width, passes in sizes:
        for smoothing in (None,) if quick else (None, 0.0):
            kind = "coupling" if passes else "autoregressive"
            label = f"{transforms} {kind} transforms, width {width}, smoothing {'auto' if smoothing is None else 0}"
            yield label, _stopped_early(lambda size=(transforms, width, passes): build(*size), smoothing, quick)


def real_nvps(columns: int, quick: bool) -> Iterator[tuple[str, Fit]]:
    for transforms, widths in [(6, (64,)), (4, (32,)), (8, (64, 64))][: 1 if quick else 3]:
        for smoothing in (None,) if quick else (None, 0.0):
            label = f"{transforms} couplings, widths {widths}, smoothing {'auto' if smoothing is None else 0}"

            def build(transforms: int = transforms, widths: tuple[int, ...] = widths) -> Flow:
                return RealNVP(columns, transforms=transforms, hidden_features=widths, seed=0)

            yield label, _stopped_early(build, smoothing, quick)


def continuous_mixtures(columns: int, quick: bool) -> Iterator[tuple[str, Fit]]:
    """Correia et al. (2023)."""
    mixtures = require("spflow.zoo.cms", "benchmarks")

    def fit(X: np.ndarray, validation: np.ndarray | None, hint: object, size: int, least: float) -> tuple:
        def tensor(rows: np.ndarray) -> Tensor:
            return torch.as_tensor(rows, dtype=torch.float32)

        points = 64 if quick else 512
        optimise = mixtures.LatentOptimizationConfig(num_points=points, num_epochs=3 if quick else 150)
        # The number of steps cannot be asked for: the fit to all rows stops by the same rows as the first one.
        stop = hint if validation is None else validation
        model = mixtures.learn_continuous_mixture_factorized(
            tensor(X),
            leaf="normal",
            latent_dim=size,
            num_points_train=32 if quick else 256,
            num_points_eval=points,
            num_epochs=3 if quick else 500,
            normal_eps=least,
            val_data=tensor(stop),  # type: ignore[arg-type]
            patience=30,
            lo=optimise,
        )

        def log_prob(rows: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return model.log_likelihood(tensor(rows)).reshape(len(rows)).double().numpy()

        return log_prob, stop

    for size in (2,) if quick else (2, 4, 8):
        for least in (1e-2,) if quick else (1e-2, 1e-1, 0.3):
            label = f"{size} latent dimensions, deviations from {least:g}"
            yield label, lambda X, validation, hint, size=size, least=least: fit(X, validation, hint, size, least)
