"""Other density models, fitted with care: Gaussian mixtures, a VAE of the same generator, coupling flows."""

from __future__ import annotations

import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import girih.flows  # noqa: F401, before zuko, which would switch off the checks of all of torch.distributions
from girih.inference import DGN
from girih.networks import mlp
from girih.training import fit_gradient
from girih.vae import GaussVAE
from girih_papers.arrays import Array

# isort: split
import zuko

Covariance = Literal["spherical", "diag", "full"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows to train on, to stop and choose by, and to compare on."""

    train: Array
    validation: Array
    held_out: Array


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted density.

    Attributes:
        label: its name in tables.
        parameters: how many free numbers it has.
        log_prob: exact `log p(x)` of rows in nats.
        sample: draws, without noise where the model tells the two apart.
        seconds: of training, all that was tried included.
        choice: what was chosen, and by what.
        dgn: the generator, where there is one.
    """

    label: str
    parameters: int
    log_prob: Callable[[Array], Array] = field(repr=False)
    sample: Callable[[int], Array] = field(repr=False)
    seconds: float
    choice: dict[str, Any]
    dgn: DGN | None = None

    def nll(self, rows: Array) -> float:
        """Exact NLL in nats per row."""
        return -float(self.log_prob(rows).mean())


class Best:
    """Measures a validation loss on the way, for early stopping, and keeps the best parameters."""

    def __init__(self, loss: Callable[[Any], float]) -> None:
        self.loss, self.value = loss, math.inf
        self.state: dict[str, Any] = {}

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """The measure that `girih.training.fit_gradient` takes."""
        with torch.no_grad():
            value = self.loss(model)
        if value < self.value:
            self.value, self.state = value, copy.deepcopy(model.state_dict())
        return {"validation": value}


def mixture(rows: Rows, kind: Covariance, components: Sequence[int], floors: Sequence[float], seed: int) -> Fitted:
    """scikit-learn's Gaussian mixture; components and the variance added to each are chosen by validation NLL.

    Args:
        rows: the rows.
        kind: the shape of the covariances.
        components: the numbers to try.
        floors: the `reg_covar` to try.
        seed: of the k-means starts.
    """
    start, tried = time.perf_counter(), []
    for count in components:
        for floor in floors:
            model = GaussianMixture(count, covariance_type=kind, reg_covar=floor, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(rows.train)
            tried.append((-float(model.score(rows.validation)), count, floor, model))
    loss, count, floor, model = min(tried, key=lambda entry: entry[0])
    return Fitted(
        f"Gaussian mixture, {kind}",
        int(model._n_parameters()),
        lambda x: np.asarray(model.score_samples(x)),
        lambda n: np.asarray(model.sample(n)[0])[np.random.default_rng(seed).permutation(n)],
        time.perf_counter() - start,
        {"components": count, "reg_covar": floor, "validation_nll": loss, "tried": len(tried)},
    )


def vae(
    rows: Rows, sizes: tuple[int, ...], rates: Sequence[float], steps: int, seed: int, noises: Sequence[float]
) -> Fitted:
    """A VAE with a generator of these widths; rate, initial noise and end of training by the validation ELBO.

    Args:
        rows: the rows.
        sizes: widths of the generator, from S to D; leaky ReLU of slope 0.1.
        rates: Adam's step sizes to try.
        steps: gradient steps at most, for each rate.
        seed: of the weights and the draws.
        noises: the initial noise variances to try.
    """
    start = time.perf_counter()
    validation = torch.as_tensor(rows.validation)
    best: tuple[float, float, float, GaussVAE] | None = None
    for rate, noise in itertools.product(rates, noises):
        model = GaussVAE(mlp(sizes, negative_slope=0.1, seed=seed), hidden=(128, 64), noise=noise, seed=seed)
        keeper = Best(lambda m: float(m.free_energy(validation, samples=4, seed=0).total.mean()))
        _train(model, rows.train, keeper, rate, steps, seed, None)
        if best is None or keeper.value < best[0]:
            best = keeper.value, rate, noise, model
    assert best is not None
    loss, rate, noise, model = best
    dgn = model.dgn()
    choice = {"rate": rate, "initial_noise": noise, "validation_negative_elbo": loss}
    choice["tried"] = len(rates) * len(noises)
    return fitted_dgn("VAE, same generator", dgn, time.perf_counter() - start, choice, seed)


def flow(
    rows: Rows,
    label: str,
    transforms: int,
    hidden: int,
    rates: Sequence[float],
    steps: int,
    seed: int,
    scales: Sequence[float] = (0.3,),
) -> Fitted:
    """A RealNVP flow (zuko) on scaled columns; rate, scaling and end of training by validation NLL.

    Args:
        rows: the rows.
        label: its name.
        transforms: the number of couplings.
        hidden: the width of the one hidden layer of each.
        rates: Adam's step sizes to try.
        steps: gradient steps at most, for each rate.
        seed: of the weights and the order of the rows.
        scales: the least deviations to divide columns by, as shares of their mean: a column that is constant in
            training and divided by its own deviation would end up far out as soon as it varies.
    """
    start = time.perf_counter()
    centre, deviation = rows.train.mean(0), rows.train.std(0)
    best: tuple[float, float, float, Array, Any] | None = None
    for rate, least in itertools.product(rates, scales):
        scale = np.maximum(deviation, least * float(deviation.mean()))
        train, validation = (torch.as_tensor((x - centre) / scale) for x in (rows.train, rows.validation))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = zuko.flows.RealNVP(rows.train.shape[1], transforms=transforms, hidden_features=(hidden,)).double()
        keeper = Best(lambda m, fresh=validation: -float(m().log_prob(fresh).mean()))  # type: ignore[misc]
        _train(model, train.numpy(), keeper, rate, steps, seed, lambda m, x: -m().log_prob(x))
        loss = keeper.value + float(np.log(scale).sum())
        if best is None or loss < best[0]:
            best = loss, rate, least, scale, model
    assert best is not None
    loss, rate, least, scale, model = best
    shift = float(np.log(scale).sum())

    def standard(x: Array) -> torch.Tensor:
        return torch.as_tensor((x - centre) / scale)

    def log_prob(x: Array) -> Array:
        with torch.no_grad():
            return np.asarray(model().log_prob(standard(x))) - shift

    def sample(n: int) -> Array:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            result: Array = np.asarray(model().sample((n,))) * scale + centre
            return result

    count = sum(parameter.numel() for parameter in model.parameters()) + 2 * len(centre)
    choice = {"rate": rate, "least_scale": least, "validation_nll": loss, "tried": len(rates) * len(scales)}
    choice |= {"transforms": transforms, "hidden": hidden}
    return Fitted(label, count, log_prob, sample, time.perf_counter() - start, choice)


def flow_width(columns: int, transforms: int, parameters: int) -> int:
    """The hidden width at which a flow of `flow` has about this many parameters, at least 1."""
    half = columns // 2
    fixed = transforms * 2 * (columns - half) + 2 * columns
    return max(1, round((parameters - fixed) / (transforms * (half + 1 + 2 * (columns - half)))))


def fitted_dgn(label: str, dgn: DGN, seconds: float, choice: dict[str, Any], seed: int) -> Fitted:
    """A generator as a `Fitted`; what it draws is g(z)."""

    def log_prob(x: Array) -> Array:
        with torch.no_grad():
            return np.asarray(dgn().log_prob(x))

    def sample(n: int) -> Array:
        z = torch.randn(n, dgn.latent_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return np.asarray(dgn.trace(z))

    count = sum(p.numel() for p in dgn.net.parameters()) + dgn.noise.numel()
    return Fitted(label, count, log_prob, sample, seconds, choice, dgn)


def _train(model: Any, X: Array, keeper: Best, rate: float, steps: int, seed: int, loss: Any) -> None:
    """Adam until the validation loss has not fallen for 25 records; the model is left at its best."""
    size = min(128, len(X))
    options: dict[str, Any] = {} if loss is None else {"loss": loss}
    fit_gradient(
        model,
        X,
        lr=rate,
        batch_size=size,
        max_epochs=max(1, steps * size // len(X)),
        patience=25,
        monitor="validation",
        record=keeper,
        record_every=max(1, min(100, steps // 4)),
        seed=seed,
        progress=False,
        accelerator="cpu",
        **options,
    )
    model.load_state_dict(keeper.state)
