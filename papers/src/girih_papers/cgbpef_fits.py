"""One VAE of the CG-BPEF paper: made, trained and measured on rows that it has not seen."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributions import Independent
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from girih.errors import ParameterError
from girih.networks import svhn_decoder, svhn_encoder
from girih.vae import CGBPEFVAE, VAE, CatVAE, GaussVAE, evidence
from girih_papers.arrays import Array
from girih_papers.cgbpef_data import SIDES, images, split
from girih_papers.concrete_kl import kl
from girih_papers.concrete_law import z_law
from girih_papers.jobs import completed, run_jobs, weights_of, with_weights
from girih_papers.rivals import Rows

GAUSS, CAT, CGBPEF = "Gauss-VAE", "Cat-VAE", "CG-BPEF-VAE"
MODELS = (GAUSS, CAT, CGBPEF)
SHOWN = 8  # images of each kind that are kept
_SEED = 0  # of what is drawn to measure, so that models differ by their parameters alone


def make_vae(
    model: str,
    data: str,
    seed: int,
    depth: int,
    width: int,
    latent_dim: int,
    order: int,
    levels: int,
    categories: int,
    temperature: float,
    basis: str,
) -> VAE:
    """One of the three models in float32 with Bernoulli pixels, dense for MNIST and convolutional for SVHN.

    Raises:
        ParameterError: there is no such model.
    """
    own: dict[str, dict[str, Any]] = {
        GAUSS: {},
        CAT: {"categories": categories, "temperature": temperature},
        CGBPEF: {"order": order, "levels": levels, "temperature": temperature, "basis": basis},
    }
    kinds: dict[str, Callable[..., VAE]] = {GAUSS: GaussVAE, CAT: CatVAE, CGBPEF: CGBPEFVAE}
    if model not in kinds:
        raise ParameterError(f"there is no model {model!r}; known are {', '.join(kinds)}")
    options = {"likelihood": "bernoulli", "seed": seed, **own[model]}
    if data == "mnist":
        sizes = [latent_dim, *[width] * depth, SIDES[data] ** 2]
        return kinds[model](sizes, dtype=torch.float32, **options)
    takes, gives = {GAUSS: (1, 2), CAT: (categories, categories), CGBPEF: (1, order)}[model]
    decoder = svhn_decoder(latent_dim * takes, dtype=torch.float32, seed=seed)
    encoder = svhn_encoder(latent_dim * gives, dtype=torch.float32, seed=seed + 1)
    return kinds[model](decoder, encoder, latent_dim=latent_dim, **options)


def fit_job(
    model: str,
    data: str,
    path: str,
    seed: int,
    depth: int,
    width: int,
    latent_dim: int,
    order: int,
    levels: int,
    categories: int,
    temperature: float,
    basis: str,
    rate: float,
    initial: float,
    samples: int,
    steps: int,
    rows: int,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: a model trained on one split, left where its validation rows like it best.

    Args:
        model: one of `MODELS`.
        data: "mnist" or "svhn".
        path: of its files.
        seed: of the split, the weights and the training.
        depth: hidden layers of each dense network.
        width: of these.
        latent_dim: S.
        order: M of CG-BPEF-VAE.
        levels: R of CG-BPEF-VAE.
        categories: C of Cat-VAE.
        temperature: T at the end, and to measure at.
        basis: of the polynomials of CG-BPEF-VAE.
        rate: Adam's step size.
        initial: T at the first step; 0 for the same as at the end.
        samples: L.
        steps: of Adam.
        rows: of all data that are used at most; 0 for all.
        checkpoint: of the training.
    """
    parts = rows_of(data, path, rows, seed)
    vae = make_vae(model, data, seed, depth, width, latent_dim, order, levels, categories, temperature, basis)
    annealing: dict[str, Any] = {} if model == GAUSS else {"initial_temperature": initial or temperature}
    fitted = vae.fit(
        parts.train,
        samples=samples,
        max_steps=steps,
        batch_size=100,
        lr=rate,
        validation=parts.validation,
        record_every=max(1, steps // 40),
        seed=seed,
        progress=False,
        checkpoint=checkpoint,
        **annealing,
    )
    run = completed(fitted)
    curve = run.history["held_out"]
    return {
        **weights_of(vae),
        "validation": curve.min(),
        "best_step": run.history["step"][curve.argmin()],
        "curve_step": run.history["step"],
        "curve": curve,
        "seconds": run.seconds,
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
    }


def measure_job(training: dict[str, Any], folder: str, more: int, draws: int, law_rows: int) -> dict[str, Any]:
    """One job: what is said of a trained model on its test rows.

    Args:
        training: the arguments of `fit_job`.
        folder: where `run_jobs` keeps its result.
        more: draws for a better estimate of term 2.
        draws: of importance sampling.
        law_rows: rows for which term 1 is worked out at the temperature of training.
    """
    (result,) = run_jobs(fit_job, [training], Path(folder), "", quick=True, progress=False)
    architecture = [training[name] for name in inspect.signature(make_vae).parameters]
    vae = with_weights(make_vae(*architecture), result)
    parts = rows_of(training["data"], training["path"], training["rows"], training["seed"])
    return measured(vae, parts.held_out, training["samples"], more, draws, law_rows)


def rows_of(data: str, path: str, count: int, seed: int) -> Rows:
    """The rows of one run: as many as wanted, 0 for all, split."""
    X = images(data, path)
    return split(X[np.random.default_rng(seed).permutation(len(X))[:count]] if count else X, data, seed)


def measured(vae: VAE, X: Array, samples: int, more: int, draws: int, law_rows: int) -> dict[str, Any]:
    """What is said of a trained model, as means over rows in nats.

    Returns:
        `term_1`, `term_2` and `free_energy` with L draws as the paper has them, with `free_energy_error` for the
        rows; `free_energy_more` with more draws; `nll` by importance sampling, `nll_error`, and the median over rows
        of the effective number of draws; and images. For discrete latents `nll` is that of hard codes, and there are
        `free_energy_hard`, with term 2 from hard codes too, as term 1 is: a bound on their NLL, which `free_energy`
        is not; `nll_relaxed`, of the model at the temperature of training; `term_1_relaxed`, term 1 of that model on
        some rows, `term_1_same_rows`, the KL of categories on the same, and `free_energy_relaxed`, the free energy
        with their difference added, which bounds the NLL of that model.
    """
    x = torch.as_tensor(X, dtype=vae.dtype)
    vae.eval()
    with torch.no_grad():
        once, often = (_terms(vae, x, count) for count in (samples, more))
        generator = torch.Generator().manual_seed(_SEED)
        found: dict[str, Any] = {
            "term_1": once[0].mean(),
            "term_2": once[1].mean(),
            "free_energy": once.sum(0).mean(),
            "free_energy_error": once.sum(0).std() / len(x) ** 0.5,
            "free_energy_more": often.sum(0).mean(),
        }
        if vae.temperature is not None:
            found["free_energy_hard"] = _hard(vae, x, more)
            if law_rows:
                found |= relaxed_terms(vae, x[:law_rows], more)
                missed = found["term_1_relaxed"] - found["term_1_same_rows"]
                found["free_energy_relaxed"] = found["free_energy_more"] + missed
        kinds = {"nll": False, "nll_relaxed": True} if vae.temperature is not None else {"nll": None}
        for name, relaxed in kinds.items():
            log_p, error, effective = evidence.estimate(vae, x, draws, generator, relaxed)
            found |= {
                name: -log_p.mean().item(),
                f"{name}_error": error.square().sum().sqrt().item() / len(x),
                f"{name}_effective_draws": effective.median().item(),
            }
        found["rows"], found["reconstructions"] = X[:SHOWN], vae.reconstruct(x[:SHOWN]).numpy()
        found["samples"] = vae.sample(SHOWN, seed=_SEED, mean=True).numpy()
    return found


def relaxed_terms(vae: VAE, x: torch.Tensor, draws: int, intervals: int = 200) -> dict[str, float]:
    """Term 1 as it is at the temperature of training, for which the KL of categories stands.

    For Cat-VAE the KL of y on the simplex, by draws. For CG-BPEF-VAE the sum over s of the KL of the law of z_s given x
    to its law under the prior, exact up to equal intervals of (-1, 1); fewer intervals make it smaller.

    Returns:
        Means over the rows of `term_1_relaxed` and of `term_1_same_rows`, the KL of categories.
    """
    assert vae.temperature is not None
    q, p = _log_probs(vae.encode(x)), _log_probs(vae.prior())
    categories = (q.exp() * (q - p)).sum((-2, -1)).mean().item()
    if isinstance(vae, CGBPEFVAE):
        priors = [z_law(one, vae.temperature, intervals) for one in p.exp().numpy()]
        term = np.mean([
            sum(kl(z_law(one, vae.temperature, intervals), prior) for one, prior in zip(row, priors, strict=True))
            for row in q.exp().numpy()
        ])  # fmt: skip
        return {"term_1_relaxed": float(term), "term_1_same_rows": categories}
    generator = torch.Generator().manual_seed(_SEED)
    gumbel = -torch.empty((draws, *q.shape), dtype=q.dtype).exponential_(generator=generator).log()
    log_y = torch.log_softmax((q + gumbel) / vae.temperature, -1)
    T = torch.tensor(vae.temperature, dtype=q.dtype)
    laws = [ExpRelaxedCategorical(T, logits=logits, validate_args=False) for logits in (q, p)]
    ratio = laws[0].log_prob(log_y) - laws[1].log_prob(log_y)  # of log y, as of y: the Jacobian is the same
    return {"term_1_relaxed": ratio.sum(-1).mean().item(), "term_1_same_rows": categories}


def _hard(vae: VAE, x: torch.Tensor, draws: int) -> float:
    """The free energy of the model with hard codes, `KL(q : p) - E_q[log p(x | z)]` of categories throughout."""
    q = vae.encode(x)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(_SEED)
        log_p = torch.stack([vae.log_likelihood(x, q.sample()) for _ in range(draws)])
    return float((vae.free_energy(x, seed=_SEED).divergence - log_p.mean(0)).mean())


def _log_probs(distribution: torch.distributions.Distribution) -> torch.Tensor:
    """Log-probabilities of the levels or categories, `(..., S, R)`."""
    assert isinstance(distribution, Independent)
    result: torch.Tensor = distribution.base_dist.logits.detach()
    return result


def _terms(vae: VAE, x: torch.Tensor, samples: int) -> Array:
    """Both terms of every row, `(2, N)`; rows in parts, so that many draws fit into memory."""
    parts = [
        torch.stack(tuple(vae.free_energy(part, samples, seed=_SEED + i))).double()
        for i, part in enumerate(x.split(max(1, 20_000 // samples)))
    ]
    return torch.cat(parts, 1).numpy()
