"""CG-BPEF, Fig. 4, measured: where the posteriors of a VAE, its prior and the maximum-likelihood points lie."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from girih.datasets import load
from girih.geometry import invert
from girih.inference import DGN
from girih.training import Recorder, fit_gradient
from girih.vae import CGBPEFVAE, VAE, CoarseBPEF, GaussVAE, information
from girih_papers.arrays import to_array
from girih_papers.figures import save
from girih_papers.jobs import completed, run_jobs, weights_of, with_weights
from girih_papers.settings import arguments
from girih_papers.vae_geometry_figures import Geometry, curves_figure, geometry_figure

FIXED, FREE, BPEF = "Gauss-VAE", "Gauss-VAE, best prior", "CG-BPEF-VAE"
MODELS = (FIXED, FREE, BPEF)
_RECORDS = 25


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        data: a set with D = 2 or any other, by name.
        rows: of it.
        hidden: units in each of the two hidden layers of the decoder; the encoder has as many, 32 at least.
        steps: of Adam.
        batch: rows of a step.
        lr: Adam's step size.
        noise: the variance of the noise at the start; it is learned.
        order: M of the CG-BPEF-VAE, on 101 levels.
        drawn: rows whose posteriors are drawn.
    """

    data: str = "wave"
    rows: int = 256
    hidden: int = 16
    steps: int = 4000
    batch: int = 100
    lr: float = 5e-3
    noise: float = 0.1
    order: int = 5
    drawn: int = 24


SETTINGS = Settings()
QUICK = Settings(rows=60, hidden=6, steps=20, drawn=8)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    x = torch.as_tensor(load(settings.data, n=settings.rows, seed=seed).X)
    jobs = [arguments(trained, settings, model=model, seed=seed) for model in MODELS]
    results = dict(zip(MODELS, run_jobs(trained, jobs, out, "vae-geometry", quick, progress), strict=True))
    table: dict[str, Any] = {}
    pictures = []
    for model, result in results.items():
        first = make_vae(model, x.shape[1], settings.hidden, settings.noise, settings.order, seed)
        last = with_weights(make_vae(model, x.shape[1], settings.hidden, settings.noise, settings.order, seed), result)
        table[model] = {"before": measured(model, first, x), "after": measured(model, last, x)}
        pictures.append((model, located(model, first, x, settings.drawn), located(model, last, x, settings.drawn)))
    curves = {
        model: {name: result[f"curve_{name}"] for name in ("step", *_CURVES)} for model, result in results.items()
    }
    figures = [
        save(geometry_figure(pictures), out / "geometry.png"),
        save(curves_figure(curves, len(x)), out / "bounds.png"),
    ]
    return {"models": table, "log_n": float(np.log(len(x))), "settings": asdict(settings) | {"seeds": [seed]}} | {
        "figures": figures
    }


def make_vae(model: str, columns: int, hidden: int, noise: float, order: int, seed: int) -> GaussVAE | CGBPEFVAE:
    """One latent and two hidden layers."""
    sizes = [1, hidden, hidden, columns]
    encoder = [max(32, hidden)] * 2
    if model == BPEF:
        return CGBPEFVAE(sizes, hidden=encoder, noise=noise, order=order, basis="legendre", seed=seed)
    return GaussVAE(sizes, hidden=encoder, noise=noise, seed=seed)


def trained(
    model: str,
    data: str,
    rows: int,
    hidden: int,
    steps: int,
    batch: int,
    lr: float,
    noise: float,
    order: int,
    seed: int,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: the weights of a VAE, and term 1 and its bounds on the way."""
    x = torch.as_tensor(load(data, n=rows, seed=seed).X)
    vae = make_vae(model, x.shape[1], hidden, noise, order, seed)
    recorder = Recorder(lambda trained: term_1(model, trained, x), every=max(1, steps // _RECORDS))
    options: dict[str, Any] = {"batch_size": batch, "lr": lr, "seed": seed, "progress": False}
    options |= {"record": recorder, "checkpoint": checkpoint}
    if model == FREE:
        run = fit_gradient(vae, x, loss=_free_loss, max_steps=steps, **options)
    else:
        run = vae.fit(x, max_steps=steps, **options)
    completed(run)
    return {**weights_of(vae), **{f"curve_{name}": run.history[name] for name in ("step", *_CURVES)}}


def _free_loss(vae: GaussVAE, batch: Tensor) -> Tensor:
    """The free energy under the best Gaussian prior for the batch: eq. 5 in place of term 1."""
    family, natural = information.family_of(vae.encode(batch))
    return information.compactness(family, natural) + vae.free_energy(batch).reconstruction.mean()


_CURVES = ("term_1", "bound_5", "bound_6")


def prior_of(model: str, vae: VAE, x: Tensor) -> Tensor:
    """The natural parameters of the prior of a trained model: the centroid where it is free."""
    if model == FREE:
        return information.bregman_centroid(*information.family_of(vae.encode(x)))
    return information.family_of(vae.prior())[1]


def term_1(model: str, vae: VAE, x: Tensor) -> dict[str, float]:
    """Term 1 and what it cannot fall below, for a prior of the family (eq. 5) and for any prior (eq. 6)."""
    family, natural = information.family_of(vae.encode(x))
    return {
        "term_1": float(information.mean_divergence(family, natural, prior_of(model, vae, x))),
        "bound_5": float(information.compactness(family, natural)),
        "bound_6": float(information.mixture_compactness(family, natural)),
    }


@torch.no_grad()
def measured(model: str, vae: VAE, x: Tensor) -> dict[str, Any]:
    """All terms of Fig. 4, nats per row: exact, but for what is called second order."""
    numbers: dict[str, Any] = term_1(model, vae, x)
    numbers["term_2"] = float(term_2(vae, x).mean())
    numbers["term_2_second_order"] = float(information.second_order_reconstruction(vae, x).mean())
    numbers["free_energy"] = numbers["term_1"] + numbers["term_2"]
    numbers["nll"] = float(exact_nll(model, vae, x).mean())
    z, least = maximum_likelihood(vae, x)
    numbers["term_2_at_maximum_likelihood"] = float(least.mean())
    numbers["noise"] = float(vae.noise)
    if isinstance(vae, GaussVAE):
        q = vae.encode(x)
        ends = [information.optimal_free_energy(vae, x, start=start) for start in (q.mean, z)]
        best = min(ends, key=lambda end: float(end.value))
        again = information.optimal_free_energy(vae, x, start=_best_of_grid(vae, x, best))
        best = min(best, again, key=lambda end: float(end.value))
        numbers["corollary_3"] = {
            "value": float(best.value),
            "prior_mean": float(best.prior_mean),
            "prior_deviation": float(best.prior_covariance.sqrt()),
            "converged": best.converged,
        }
    return numbers


def _best_of_grid(
    vae: GaussVAE, x: Tensor, near: information.Optimum, count: int = 16_001, rounds: int = 100
) -> Tensor:
    """Means `(n, 1)` from which the optimum of Corollary 3 is no local one of each row: the best of a grid, in turns.

    For a prior N(m, P) a mean is to minimise `-log p(x | z) + (z - m)^2 / 2 P + log(G(z) + 1 / P) / 2`, which has a
    minimum in many of the cells; with the means and variances found, m and P follow.
    """
    m, P = float(near.prior_mean), float(near.prior_covariance)
    z: Tensor = m + 6.0 * P**0.5 * torch.linspace(-1.0, 1.0, count, dtype=torch.float64)
    G = information.fisher_information(vae, x[:1].expand(count, -1), z[:, None])[:, 0, 0]  # the same for all rows
    energy = 0.5 * (x[:, None] - vae.decode(z[:, None])).square().sum(2) / vae.noise  # -log p(x | z), up to a constant
    for _ in range(rounds):
        k = (energy + 0.5 * (z - m) ** 2 / P + 0.5 * (G + 1.0 / P).log()).argmin(1)
        before, m = m, float(z[k].mean())
        P = float((1.0 / (G[k] + 1.0 / P)).mean() + z[k].var(correction=0))
        if m == before:
            break
    return z[k][:, None]


def term_2(vae: VAE, x: Tensor) -> Tensor:
    """`E_q[-log p(x | z)]` of each row: from the exact bound for a Gaussian q, a sum over levels for the others."""
    q: Any = vae.encode(x)
    if isinstance(vae, GaussVAE):
        return -vae.dgn().elbo(x, q) - torch.distributions.kl_divergence(q, vae.prior())
    return -(_coarse(q).probs[:, 0].mT * _on_levels(vae, x)).sum(0)


def exact_nll(model: str, vae: VAE, x: Tensor) -> Tensor:
    """`-log p(x)` of each row, under the prior that the model has."""
    if isinstance(vae, GaussVAE):
        mean, deviation = torch.zeros(1), torch.ones(1)
        if model == FREE:
            family, _ = information.family_of(vae.encode(x))
            mean, covariance = information.mean_and_covariance(family.distribution(prior_of(model, vae, x)))
            deviation = covariance[..., 0, 0].sqrt()
        shift = nn.Linear(1, 1, dtype=torch.float64)  # z = mean + deviation z', z' ~ N(0, 1)
        shift.weight.data.fill_(float(deviation))
        shift.bias.data.fill_(float(mean))
        result: Tensor = -DGN(nn.Sequential(shift, vae.decoder), noise=vae.noise)().log_prob(x)
        return result
    return -torch.logsumexp(_coarse(vae.prior()).logits[0][:, None] + _on_levels(vae, x), 0)


def maximum_likelihood(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """The z that makes each row most probable, `(n, 1)`, and `-log p(x | z)` there, `(n,)`.

    On all of the line for a Gaussian, by the exact inverse of the decoder; among the levels otherwise.
    """
    if isinstance(vae, GaussVAE):
        z = invert(vae.decoder, x).z
        return z, -vae.log_likelihood(x, z)
    best = _on_levels(vae, x).max(0)
    return _coarse(vae.prior()).levels[best.indices][:, None], -best.values


def _coarse(q: Any) -> CoarseBPEF:
    """The distributions of the latents of a CG-BPEF-VAE."""
    single: CoarseBPEF = q.base_dist
    return single


def _on_levels(vae: VAE, x: Tensor) -> Tensor:
    """`log p(x | zeta_r)` for every level and row, `(R, n)`."""
    zeta = _coarse(vae.prior()).levels
    return vae.log_likelihood(x, zeta[:, None, None])


@torch.no_grad()
def located(model: str, vae: VAE, x: Tensor, count: int) -> Geometry:
    """What one panel shows: `count` posteriors in the order of their means, and everything else."""
    family, natural = information.family_of(vae.encode(x))
    centroid = information.bregman_centroid(family, natural)
    means, deviations = _mean_deviation(family.distribution(natural))
    z, least = maximum_likelihood(vae, x)
    lengths, rise = family.divergence(natural, centroid), term_2(vae, x) - least
    shown = means.argsort()[torch.linspace(0, len(x) - 1, min(count, len(x))).round().long()]
    return Geometry(
        means=to_array(means[shown]),
        deviations=to_array(deviations[shown]),
        points=to_array(z[shown, 0]),
        lengths=to_array(lengths[shown]),
        centroid=tuple(float(part) for part in _mean_deviation(family.distribution(centroid))),
        prior=tuple(float(part) for part in _mean_deviation(family.distribution(prior_of(model, vae, x)))),
        to_centroid=float(lengths.mean()),
        to_points=float(rise.mean()),
    )


def _mean_deviation(q: Any) -> tuple[Tensor, Tensor]:
    return q.mean[..., 0], q.variance[..., 0].sqrt()
