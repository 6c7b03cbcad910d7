"""Numbers that a change of the code, and not of behaviour, leaves as they are: one function for each kind.

Only names that users have are used here, so that whatever lies behind them may move.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_iris
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

import girih
from girih import flows, gan, geometry, vae
from girih.em import fit_em

Numbers = dict[str, Any]
NAN = float("nan")


def net(
    S: int, D: int = 3, widths: tuple[int, ...] = (6, 5), activation: str = "leaky_relu", seed: int = 0
) -> nn.Module:
    return girih.mlp([S, *widths, D], activation=activation, seed=seed)


def covariance(size: int, seed: int = 0) -> Tensor:
    root = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)


def rows(D: int = 3, n: int = 6, seed: int = 1, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def holes(D: int = 3) -> Tensor:
    x = rows(D)
    x[0, 0] = x[2, 1] = x[3, 0] = x[3, 2] = x[5] = NAN
    return x


def noises(D: int = 3) -> dict[str, Any]:
    return {"scalar": 0.05, "diagonal": torch.linspace(0.02, 0.2, D, dtype=torch.float64), "full": 0.1 * covariance(D)}


class Residual(nn.Module):
    """A decoder that is no chain: a skip connection, a Hardtanh and a convolution with pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 9), nn.Linear(9, 9)
        self.conv = nn.Conv2d(1, 2, 2)
        self.pool = nn.MaxPool2d(2, stride=1)

    def forward(self, z: Tensor) -> Tensor:
        h = torch.relu(self.first(z))
        h = h + nn.functional.hardtanh(self.second(h))
        return self.pool(self.conv(h.reshape(-1, 1, 3, 3))).flatten(1)


def residual() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Residual().double().eval()


def networks() -> Numbers:
    out: Numbers = {}
    for activation in ("relu", "leaky_relu", "abs"):
        made = net(2, activation=activation)
        z = rows(2)
        A, b = girih.trace(made).affine(z)
        out[activation] = [made(z), A, b, girih.trace(made).pattern(z)]
    traced = girih.trace(residual())
    return out | {"residual": [*traced.affine(rows(2)), traced.pattern(rows(2))]}


def of_partition(part: girih.Partition) -> list[Any]:
    order = part.prior_mass.argsort()
    bounded = part.volume[part.volume.isfinite()]
    A, b = part.affine
    return [
        len(part),
        bounded.sort().values,
        part.prior_mass[order],
        len(part.neighbors),
        A.square().sum((1, 2)).sort().values,
        b.square().sum(1).sort().values,
        part.locate(rows(part.latent_dim)) >= 0,
    ]


def partitions() -> Numbers:
    out = {str(S): of_partition(girih.Partition(net(S))) for S in (1, 2, 3)}
    out["box"] = of_partition(girih.Partition(net(2), domain=(-1.0, 1.5)))
    out["prior"] = of_partition(girih.Partition(net(2), prior=covariance(2)))
    out["residual"] = of_partition(girih.Partition(residual()))
    eye = torch.eye(5, dtype=torch.float64)
    out["slice"] = of_partition(girih.Partition.slice(net(5), torch.zeros(5), eye[0], eye[1] + eye[2]))
    part = girih.Partition(net(2))
    i = int(part.locate([[0.1, 0.2]])[0])
    out["cell"] = [part.vertices(i), *part.halfspaces(i), len(part.neighbors_of(i))]
    return out


def densities() -> Numbers:
    out: Numbers = {}
    for S in (1, 2, 3):
        for kind, noise in noises().items():
            for prior in (None, covariance(S)):
                dgn = girih.DGN(net(S, widths=(6, 5) if S < 3 else (5,)), noise=noise, prior=prior)
                p = dgn()
                name = f"{S} {kind} {'standard' if prior is None else 'full'}"
                out[name] = [p.log_prob(rows()), p.log_prob(holes()), p.log_prob(rows(scale=20.0))]
        dgn = girih.DGN(net(S), noise=0.05, tol=0.0)
        out[f"{S} all cells"] = [dgn().log_prob(rows()), dgn().mean, dgn().score(rows()), dgn().denoise(holes())]
        out[f"{S} draws"] = dgn().sample((3,), seed=0)
    out["residual"] = girih.DGN(residual(), noise=0.1)().log_prob(rows(2, scale=0.5))
    return out


def gradients() -> Numbers:
    out: Numbers = {}
    for S in (1, 2, 3):
        for kind, noise in noises().items():
            widths = (6, 5) if S < 3 else (5,)
            dgn = girih.DGN(net(S, widths=widths), noise=noise, prior=covariance(S))
            x = rows().requires_grad_()
            parameters = [x, *dgn.parameters()]
            out[f"{S} {kind}"] = list(torch.autograd.grad(dgn().log_prob(x).sum(), parameters))
            out[f"{S} {kind}, holes"] = list(torch.autograd.grad(dgn().log_prob(holes()).sum(), parameters[1:]))
    return out


def posteriors() -> Numbers:
    out: Numbers = {}
    for S in (1, 2, 3):
        dgn = girih.DGN(net(S, widths=(6, 5) if S < 3 else (5,)), noise=0.05, prior=covariance(S))
        post = dgn.posterior(holes())
        mean, deviation = post.mean, torch.full_like(post.mean, 0.3)
        q = Independent(Normal(mean, deviation), 1) if S > 1 else Normal(mean, deviation)
        full = MultivariateNormal(mean, covariance(S))
        out[str(S)] = [post.mean, post.covariance, post.mode, post.entropy(), post.log_prob(mean), post.log_evidence]
        out[f"{S} approximate"] = [post.kl(q), post.kl(full), dgn.elbo(holes(), full)]
        out[f"{S} cells"] = post.cell_probs().to_dense().sort(1).values[:, -3:]
        out[f"{S} draws"] = [post.sample((2,), seed=0), dgn.impute(holes())]
    return out


def estimators() -> Numbers:
    X = load_iris().data[::3]
    gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    out: Numbers = {}
    settings: dict[str, dict[str, Any]] = {
        "default": {},
        "diagonal": {"noise": "diagonal", "latent_dim": 2},
        "full": {"noise": "full"},
        "space": {"latent_dim": 3, "hidden": (3,), "n_init": 1},
        "ridge": {"weight_prior": ("gaussian", 1.0)},
    }
    for name, options in settings.items():
        old = {"hidden": (4,), "max_iter": 6, "n_init": 2, "random_state": 0, "init": "random"}
        est = girih.DGNEstimator(**{**old, **options})
        for data, table in (("complete", X), ("holes", gaps)):
            est.fit(table)
            out[f"{name} {data}"] = [est.nll_curve_, est.score_samples(table), est.transform(table), est.impute(table)]
    est = girih.DGNEstimator(hidden=(4,), max_iter=4, n_init=1, random_state=0, init="random")
    est.fit(X, sample_weight=np.linspace(0.1, 1.0, len(X)))
    out["weighted"] = [est.nll_curve_, est.aic(X), est.bic(X)]
    return out


def expectation_maximisation() -> Numbers:
    out: Numbers = {}
    X = rows(2, 40)
    dgn = girih.DGN(residual(), noise=0.5)
    out["residual"] = fit_em(dgn, X, max_iter=3, n_init=1, seed=0, init="random").curve
    for name, options in {"batches": {"batch_size": 10}, "prior": {"learn_prior": True}}.items():
        dgn = girih.DGN(net(1, 2), noise=0.5)
        out[name] = [fit_em(dgn, X, max_iter=4, n_init=1, seed=0, init="random", **options).curve, dgn.noise, dgn.prior]
    return out


def exact_training() -> Numbers:
    out: Numbers = {}
    for optimizer in ("adam", "lbfgs"):
        dgn = girih.DGN(net(1, 2), noise=0.5)
        run = girih.train(dgn, rows(2, 40), optimizer=optimizer, max_epochs=5, record_every=1, validation=0.2, seed=0)
        out[optimizer] = [run.history["nll"], run.held_out, run.best_step, dgn.noise]
    return out


def selections() -> Numbers:
    found = girih.select_model(load_iris().data[::4], hidden=[(), (3,)], latent_dims=(1,), n_init=1, max_iter=3, seed=0)
    return {"rows": [[row.nll, row.held_out, row.bic] for row in found.rows]}


def geometries() -> Numbers:
    part = girih.Partition(net(2, activation="relu"))
    made = net(2)
    inverse = geometry.invert(girih.Partition(net(1)), net(1)(rows(1)).detach())
    entropy, found = geometry.entropy(part), geometry.angles(part)
    return {
        "dimension": [geometry.intrinsic_dimension(part).values, geometry.log_volume(part).values],
        "entropy": [entropy.value],
        "singular": geometry.singular_values(part),
        "angles": [found.angles, found.largest],
        "invert": [inverse.z, inverse.distance],
        "invertible": geometry.is_injective(girih.Partition(made)).injective,
        "smooth": geometry.smooth(made, 0.3)(rows(2)),
    }


def push_forwards() -> Numbers:
    out: Numbers = {}
    X = girih.datasets.load("moons", n=60, seed=0).X
    kinds: dict[str, Callable[[], Any]] = {
        "RAD": lambda: flows.RAD(2, seed=0),
        "RealNVP": lambda: flows.RealNVP(2, hidden_features=(8,), seed=0, activation="relu"),
    }
    for name, make in kinds.items():
        flow = make()
        x = torch.as_tensor(X[:5])
        before = flow().log_prob(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = flow.fit(
                X, validation=0.2, seed=0, progress=False, batch_size=20, lr=0.01, record_every=2, max_steps=6
            )
        out[name] = [before, run.history["held_out"], flow().log_prob(x), flow().sample((2,), seed=0)]
    return out


def vaes() -> Numbers:
    out: Numbers = {}
    X = rows(4, 30)
    kinds: dict[str, Callable[[], Any]] = {
        "Gauss": lambda: vae.GaussVAE(net(2, 4), hidden=(6,), noise=0.3, seed=0),
        "Mixture": lambda: vae.MixtureVAE(net(2, 4), hidden=(6,), noise=0.3, seed=0, components=2),
        "Cat": lambda: vae.CatVAE([2, 6, 4], hidden=(6,), noise=0.3, seed=0, categories=3),
        "CGBPEF": lambda: vae.CGBPEFVAE([2, 6, 4], hidden=(6,), noise=0.3, seed=0, order=3, levels=11),
    }
    for name, make in kinds.items():
        made = make()
        run = made.fit(X, max_steps=4, batch_size=10, seed=0, record_every=2, progress=False, validation=0.2)
        found = vae.gap(made, X[:3])
        numbers = [run.history["loss"][1:], run.history["held_out"], made.reconstruct(X[:3]), *made.embed(X[:3])]
        out[name] = [*numbers, made.sample(2, seed=0), found.nll, found.gap, found.approximation]
    exact = kinds["Gauss"]().exact(X[:4])
    return out | {"exact": list(exact)}


def exponential_families() -> Numbers:
    c = torch.tensor([[0.5, -2.0, 0.3], [3.0, 1.0, -8.0]], dtype=torch.float64)
    out: Numbers = {}
    for name, q in {"continuous": vae.BPEF(c), "coarse": vae.CoarseBPEF(c, 21)}.items():
        out[name] = [q.mean, q.variance, q.entropy(), q.sample((2,), seed=0)]
    return out


def adversarial() -> Numbers:
    made = gan.GAN(net(2, 3), seed=0)
    run = made.fit(rows(3, 30), batch_size=10, max_epochs=2, seed=0, record_every=2, progress=False)
    return {"curves": [run.history["loss"][1:], run.history["generator_loss"][1:]]}


def toys() -> Numbers:
    names = ("circle", "wave", "moons")
    return {name: np.asarray(girih.datasets.load(name, n=20, seed=0).X) for name in names}


CASES: dict[str, Callable[[], Numbers]] = {
    function.__name__: function
    for function in (
        networks,
        partitions,
        densities,
        gradients,
        posteriors,
        estimators,
        expectation_maximisation,
        exact_training,
        selections,
        geometries,
        push_forwards,
        vaes,
        exponential_families,
        adversarial,
        toys,
    )
}


def models() -> dict[str, Any]:
    """One of each kind that is saved, of today's making."""
    torch.manual_seed(0)
    est = girih.DGNEstimator(hidden=(4,), max_iter=3, n_init=1, random_state=0).fit(rows(3, 30))
    return {
        "line": girih.DGN(net(1), noise=noises()["diagonal"]),
        "plane": girih.DGN(net(2), noise=0.05, prior=covariance(2)),
        "space": girih.DGN(net(3, widths=(5,)), noise=noises()["full"]),
        "estimator": est,
        "partition of a line": girih.Partition(net(1), domain=(-2.0, 3.0)),
        "partition of a plane": girih.Partition(net(2)),
        "RAD": flows.RAD(2, seed=0),
        "RealNVP": flows.RealNVP(2, hidden_features=(8,), seed=0, activation="relu"),
        "DGNFlow": flows.DGNFlow(net(2, 2, (4,))),
        "GaussVAE": vae.GaussVAE(net(2, 4), hidden=(6,), noise=0.3, seed=0),
        "MixtureVAE": vae.MixtureVAE(net(2, 4), hidden=(6,), noise=0.3, seed=0, components=2),
        "CatVAE": vae.CatVAE([2, 6, 4], hidden=(6,), noise=0.3, seed=0, categories=3),
        "box": girih.DGN(net(2), noise=0.05, prior=girih.Uniform(-1.0, [1.0, 2.0])),
        "context": girih.ConditionalDGN(net(2), latent_dim=1, context_dim=1, noise=0.1),
        "CGBPEFVAE": vae.CGBPEFVAE([2, 6, 4], hidden=(6,), noise=0.3, seed=0, order=3, levels=11),
    }


def of_model(model: Any) -> Numbers:
    """What a model says of some rows."""
    if isinstance(model, girih.Partition):
        return {"cells": of_partition(model)}
    if isinstance(model, girih.DGNEstimator):
        X = rows(3, 5).numpy()
        return {"scores": [model.score_samples(X), model.transform(X), model.nll_curve_]}
    if isinstance(model, vae.VAE):
        x = rows(4, 5)
        return {"codes": [model.reconstruct(x), *model.embed(x), vae.gap(model, x).nll]}
    p = model(torch.tensor([[0.3]])) if isinstance(model, girih.ConditionalDGN) else model()
    return {"density": [p.log_prob(rows(int(p.event_shape[0]), 5)), p.sample((2,), seed=0)]}


def flat(value: Any) -> np.ndarray:
    """All numbers of a nest of lists, tensors and arrays, in one row."""
    if isinstance(value, (list, tuple)):
        return np.concatenate([flat(part) for part in value]) if len(value) else np.empty(0)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(np.nan if value is None else value, dtype=np.float64).ravel()
