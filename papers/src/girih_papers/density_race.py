"""Beyond the papers: exact EM at S = 2 and 3 against other density models, by exact NLL on rows held out.

All models see the same training rows; the same validation rows choose among settings and end gradient training.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from girih.datasets import load
from girih.em import DGNEstimator
from girih.inference import DGN
from girih.training import Progress
from girih_papers.figures import save
from girih_papers.ppca import mixture_of_ppca
from girih_papers.race_figures import density_maps, nll_dots, sample_sheet
from girih_papers.rivals import Covariance, Fitted, Rows, fitted_dgn, flow, flow_width, mixture, vae

_FLOW, _LARGE = "RealNVP, equal size", "RealNVP, larger"


@dataclass(frozen=True)
class Setup:
    """One comparison.

    Attributes:
        latent_dim: S.
        hidden: widths of the generator's hidden layers.
        train: rows to train on.
        max_iter: EM iterations.
        starts: random starts of EM.
        noises: the shapes of EM's noise, with the variances to choose from that are added to it after the fit.
        weight_priors: those of EM to choose from by validation NLL.
        components: of the mixtures, for each shape of covariance; those of PPCA take those of "diag".
        floors: `reg_covar` of the mixtures.
        larger: couplings and width of a larger flow, if there is one.
        steps: gradient steps of VAE and flow at most, for each rate.
        rates: Adam's step sizes of the flows; those of the VAE are 3.3 times as large.
        scales: the least deviations that the flow divides columns by, as shares of their mean.
        starting_noises: the initial noise variances of the VAE, as shares of the variance of the rows.
    """

    latent_dim: int
    hidden: tuple[int, ...]
    train: int
    max_iter: int
    starts: int
    noises: dict[str, tuple[float, ...]]
    weight_priors: tuple[Any, ...]
    components: dict[Covariance, tuple[int, ...]]
    floors: tuple[float, ...]
    larger: tuple[int, int] | None
    steps: int
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    scales: tuple[float, ...] = (0.3,)
    starting_noises: tuple[float, ...] = (1.0, 0.2)

    def quick(self) -> Setup:
        """The same in seconds."""
        few: dict[Covariance, tuple[int, ...]] = {kind: counts[:2] for kind, counts in self.components.items()}
        noises = {shape: floors[:1] for shape, floors in self.noises.items()}
        chosen = (self.weight_priors[-1:], few, self.floors[:1])
        larger = None if self.larger is None else (2, 8)
        return Setup(self.latent_dim, (4,), 60, 2, 1, noises, *chosen, larger, 8, self.rates[:1])


def circle(out: Path, quick: bool, seed: int, progress: bool, latent_dim: int) -> dict[str, Any]:
    """The noisy circle of `em-circle` from more latents than it needs."""
    setup = Setup(
        latent_dim,
        (8,),
        256,
        200,
        5,
        {"isotropic": (0.0,)},
        (None, ("gaussian", 1.0), ("gaussian", 3.0)),
        {"spherical": (4, 8, 12, 16, 24, 32), "diag": (4, 8, 12, 16, 24, 32), "full": (3, 5, 8, 10, 12, 16)},
        (1e-6, 1e-4, 1e-3),
        (6, 32),
        15_000,
        (1e-3, 3e-3),
    )
    setup = setup.quick() if quick else setup
    train, validation, held_out = (
        load("circle", n=n, seed=seed + i * 1_000_000) for i, n in enumerate((setup.train, 256, 200 if quick else 2000))
    )
    rows = Rows(train.X, validation.X, held_out.X)
    results = _run_all(rows, setup, f"em-circle, S = {latent_dim}", seed, progress)
    body = _body(results, rows, setup, train.description, seed)
    body["entropy_of_the_truth"] = train.entropy
    body["figures"] = [
        save(nll_dots(body["methods"], float(train.entropy or 0.0)), out / "nll.png"),
        save(density_maps(results, rows.train, 41 if quick else 121), out / "densities.png"),
    ]
    return body


def mnist(out: Path, quick: bool, seed: int, progress: bool, latent_dim: int) -> dict[str, Any]:
    """All ten digits, with uniform noise of one grey level so that densities mean something."""
    plane = latent_dim == 2
    setup = Setup(
        latent_dim,
        (16,) if plane else (10,),
        1000 if plane else 500,
        60 if plane else 40,
        1,
        {"isotropic": (0.0,), "diagonal": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)},
        (("gaussian", 1.0),),
        {"spherical": (1, 10, 20, 40, 80), "diag": (1, 5, 10, 20, 40), "full": (1, 2)},
        (1e-5, 1e-4, 1e-3, 1e-2),
        None,
        4000 if plane else 2500,
        (1e-3, 3e-3),
        (0.3, 1.0),
        (1.0,),
    )
    setup = setup.quick() if quick else setup
    data = load("mnist")
    X, _ = dequantised_mnist(seed)
    sizes = np.cumsum((setup.train, 40 if quick else 1000, 40 if quick else 1000))
    rows = Rows(X[: sizes[0]], X[sizes[0] : sizes[1]], X[sizes[1] : sizes[2]])
    results = _run_all(rows, setup, f"em-mnist, S = {latent_dim}", seed, progress)
    description = f"{data.description} Dequantised: (255 x + u) / 256 with u uniform on [0, 1]."
    body = _body(results, rows, setup, description, seed)
    shape = data.image_shape or (28, 28)
    body["figures"] = [
        save(nll_dots(body["methods"]), out / "nll.png"),
        save(sample_sheet(results, rows.train, shape), out / "samples.png"),
    ]
    return body


def dequantised_mnist(seed: int) -> tuple[Any, Any]:
    """The 5,000 digits in random order, `(5000, 784)`, with uniform noise of one grey level, and their labels."""
    data, rng = load("mnist"), np.random.default_rng(seed)
    order = rng.permutation(len(data))
    pixels = np.round(255.0 * data.X[order])
    return (pixels + rng.random(pixels.shape)) / 256.0, np.asarray(data.labels)[order]


def fit_em(rows: Rows, setup: Setup, noise: str, floors: Sequence[float], seed: int) -> Fitted:
    """Exact EM; weight prior and variance added to the noise after the fit are those of the lowest validation NLL."""
    start, tried = time.perf_counter(), []
    for weight_prior in setup.weight_priors:
        est = DGNEstimator(
            latent_dim=setup.latent_dim,
            hidden=setup.hidden,
            noise=noise,
            max_iter=setup.max_iter,
            tol=1e-4,
            n_init=setup.starts,
            init="random",
            weight_prior=weight_prior,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            est.fit(rows.train)
        found, prior = est.dgn_.noise.detach(), est.dgn_.prior.detach()
        for floor in floors:
            dgn = DGN(est.dgn_.net, noise=found + floor, prior=prior)
            with torch.no_grad():
                loss = -float(dgn().log_prob(rows.validation).mean())
            tried.append((loss, floor, weight_prior, est, dgn))
    loss, floor, weight_prior, est, dgn = min(tried, key=lambda entry: entry[0])
    choice = {
        "weight_prior": None if weight_prior is None else list(weight_prior),
        "added_to_noise": floor,
        "validation_nll": loss,
        "tried": len(tried),
        "iterations": est.n_iter_,
        "converged": est.converged_,
        "largest_rise": max(float(max(0.0, np.diff(entry[3].nll_curve_).max(initial=0.0))) for entry in tried),
        "cells": len(dgn.partition),
    }
    return fitted_dgn(f"EM, {noise} noise", dgn, time.perf_counter() - start, choice, seed)


def _run_all(rows: Rows, setup: Setup, title: str, seed: int, progress: bool) -> list[Fitted]:
    D = rows.train.shape[1]
    sizes = (setup.latent_dim, *setup.hidden, D)
    variance = float(rows.train.var(0).mean())
    jobs: list[Callable[[], Fitted]] = [
        lambda noise=noise, floors=floors: fit_em(rows, setup, noise, floors, seed)  # type: ignore[misc]
        for noise, floors in setup.noises.items()
    ]
    rates, starts = [rate / 0.3 for rate in setup.rates], [share * variance for share in setup.starting_noises]
    jobs.append(lambda: vae(rows, sizes, rates, setup.steps, seed, starts))
    jobs += [
        lambda kind=kind, counts=counts: mixture(rows, kind, counts, setup.floors, seed)  # type: ignore[misc]
        for kind, counts in setup.components.items()
    ]
    counts, inner = setup.components["diag"], min(setup.latent_dim, D - 1)
    jobs.append(lambda: mixture_of_ppca(rows, inner, counts, setup.floors, seed))
    count = sum(a * b + b for a, b in itertools.pairwise(sizes)) + 1
    flows = {_FLOW: (2, flow_width(D, 2, count))} | ({} if setup.larger is None else {_LARGE: setup.larger})
    jobs += [
        lambda label=label, size=size: _fit_flow(rows, setup, label, size, seed)  # type: ignore[misc]
        for label, size in flows.items()
    ]
    bar = Progress(title, len(jobs), 0, progress)
    results = []
    try:
        for job in jobs:
            results.append(job())
            bar.show(len(results), results[-1].label)
    finally:
        bar.close()
    return results


def _fit_flow(rows: Rows, setup: Setup, label: str, size: tuple[int, int], seed: int) -> Fitted:
    return flow(rows, label, size[0], size[1], setup.rates, setup.steps, seed, setup.scales)


def _body(results: Sequence[Fitted], rows: Rows, setup: Setup, description: str, seed: int) -> dict[str, Any]:
    D = rows.train.shape[1]
    table: dict[str, dict[str, Any]] = {
        one.label: {
            "parameters": one.parameters,
            "nll": one.nll(rows.train),
            "held_out_nll": one.nll(rows.held_out),
            "held_out_median_nll": -float(np.median(one.log_prob(rows.held_out))),
            "seconds": one.seconds,
            "choice": one.choice,
        }
        for one in results
    }
    best = min(table, key=lambda label: float(table[label]["held_out_nll"]))
    return {
        "lowest_held_out": best,
        "em_largest_rise": max(one.choice["largest_rise"] for one in results if "largest_rise" in one.choice),
        "methods": table,
        "settings": {
            "data": description,
            "rows": len(rows.train),
            "validation_rows": len(rows.validation),
            "held_out_rows": len(rows.held_out),
            "generator": [setup.latent_dim, *setup.hidden, D],
            "em_iterations": setup.max_iter,
            "em_starts": setup.starts,
            "weight_priors": [list(prior) if prior else None for prior in setup.weight_priors],
            "gradient_steps": setup.steps,
            "seeds": [seed],
        },
    }


__all__ = ["circle", "dequantised_mnist", "fit_em", "mnist"]
