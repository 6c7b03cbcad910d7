"""Bounds on log p(x) of decoders trained on digits, beside estimates, and exact values for S <= 3.

    python benchmarks/bracket.py [--latents 2 3 4 8 16 32] [--rows 4] [--seconds 30] [--outputs gaussian bernoulli]

Decoders are networks S-32-32-64, trained as VAEs on scikit-learn's 8 x 8 digits, binarised for Bernoulli outputs; with
leaky ReLU for even places in the list of latents, and ReLU for odd ones. Gaussian noise is learned, rows are fresh.
"iwae" is the importance-weighted bound of 5,000 draws from the encoder, "sobol" a mean over 16,384 Sobol points of the
prior, "ais" annealed importance sampling by 64 chains of leapfrog HMC whose steps are tuned to accept 0.65, in the time
that the bracket takes. Numbers are nats, means over rows: the distance of each from the exact value, for S > 3 from
girih's estimate; in brackets the largest of a row. Bounds are for Gaussian outputs; for others the estimate is that of
`girih.vae.gap`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import norm, qmc
from sklearn.datasets import load_digits
from torch import Tensor, nn

import girih
from girih.vae import Pair

_HELD_OUT = 200
_LEAPFROG, _CHAINS, _ACCEPT = 10, 64, 0.65
LogLikelihood = Callable[[Tensor], Tensor]


class Trained(NamedTuple):
    """A VAE; a noise of 0 is that of Bernoulli outputs."""

    decoder: nn.Sequential
    encoder: nn.Sequential
    noise: float

    def log_likelihood(self, x: Tensor) -> LogLikelihood:
        """`log p(x | z)` of one row as a function of latents `(n, S)`."""
        if not self.noise:
            return lambda z: -nn.functional.softplus((1.0 - 2.0 * x) * self.decoder(z)).sum(1)
        constant = -0.5 * len(x) * math.log(2.0 * math.pi * self.noise)
        return lambda z: constant - 0.5 * (x - self.decoder(z)).square().sum(1) / self.noise


def train(S: int, x: Tensor, activation: str, outputs: str, steps: int = 4000, seed: int = 0) -> Trained:
    """Train a VAE by Adam."""
    torch.manual_seed(seed)
    D = x.shape[1]
    decoder = girih.mlp([S, 32, 32, D], activation=activation, seed=seed)
    encoder = nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, 2 * S)).double()
    log_noise = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
    optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters(), log_noise], lr=2e-3)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (128,))]
        mean, log_std = encoder(batch).chunk(2, 1)
        t = decoder(mean + log_std.exp() * torch.randn_like(mean))
        if outputs == "bernoulli":
            cost = nn.functional.softplus((1.0 - 2.0 * batch) * t).sum(1)
        else:
            cost = 0.5 * (batch - t).square().sum(1) / log_noise.exp() + 0.5 * D * log_noise
        divergence = 0.5 * (mean.square() + (2.0 * log_std).exp() - 1.0).sum(1) - log_std.sum(1)
        optimiser.zero_grad()
        (cost + divergence).mean().backward()
        optimiser.step()
    return Trained(decoder, encoder, 0.0 if outputs == "bernoulli" else float(log_noise.detach().exp()))


def from_encoder(encoder: nn.Module, x: Tensor, of_z: LogLikelihood, draws: int) -> tuple[float, float]:
    """The ELBO, and the importance-weighted bound."""
    mean, log_std = encoder(x[None]).chunk(2, 1)
    e = torch.randn(draws, mean.shape[1], dtype=torch.float64)
    z = mean + log_std.exp() * e
    log_weight = of_z(z) - 0.5 * (z.square() - e.square()).sum(1) + log_std.sum()
    return float(log_weight.mean()), float(torch.logsumexp(log_weight, 0) - math.log(draws))


def by_sobol(of_z: LogLikelihood, S: int, points: int = 2**14) -> float:
    """A mean over Sobol points of the prior."""
    u = qmc.Sobol(S, seed=0).random(points)
    z = torch.as_tensor(norm.ppf(np.clip(u, 1e-12, 1.0 - 1e-12)))
    return float(torch.logsumexp(of_z(z), 0) - math.log(points))


def by_annealing(of_z: LogLikelihood, S: int, seconds: float) -> float:
    """As many temperatures as fit into the time, `(t / T)^4` as is usual, with a step of HMC at each."""
    generator = torch.Generator().manual_seed(0)
    begun = time.perf_counter()
    _anneal(of_z, S, 20, generator)
    return _anneal(of_z, S, max(20, int(20 * seconds / (time.perf_counter() - begun))), generator)


def _anneal(of_z: LogLikelihood, S: int, count: int, generator: torch.Generator) -> float:
    schedule = torch.linspace(0.0, 1.0, count + 1, dtype=torch.float64) ** 4
    z = torch.randn(_CHAINS, S, dtype=torch.float64, generator=generator)
    log_w, size = torch.zeros(_CHAINS, dtype=torch.float64), 0.1

    def slope(z: Tensor, b: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = of_z(z)
            energy = 0.5 * z.square().sum(1) - b * value
            return value.detach(), torch.autograd.grad(energy.sum(), z)[0]

    value, pull = slope(z, 0.0)
    for before, b in zip(schedule.tolist()[:-1], schedule.tolist()[1:], strict=True):
        log_w += (b - before) * value
        _, pull = slope(z, b)
        momentum = torch.randn(z.shape, dtype=torch.float64, generator=generator)
        start = 0.5 * (z.square() + momentum.square()).sum(1) - b * value
        new, new_value, p = z, value, momentum
        for _ in range(_LEAPFROG):
            p = p - 0.5 * size * pull
            new = new + size * p
            new_value, pull = slope(new, b)
            p = p - 0.5 * size * pull
        end = 0.5 * (new.square() + p.square()).sum(1) - b * new_value
        taken = torch.rand(_CHAINS, dtype=torch.float64, generator=generator) < (start - end).exp()
        z, value = torch.where(taken[:, None], new, z), torch.where(taken, new_value, value)
        size *= math.exp(0.05 * (float(taken.double().mean()) - _ACCEPT))
    return float(torch.logsumexp(log_w, 0) - math.log(_CHAINS))


def bounds(vae: Trained, x: Tensor, S: int, seconds: float, outputs: str) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """The exact values or estimates of rows, and the bounds and estimates to be held against them."""
    if outputs == "bernoulli":
        if S <= 3:
            with torch.no_grad():
                return girih.DGN(vae.decoder, likelihood="bernoulli")().log_prob(x), []
        found = girih.vae.gap(
            Pair(vae.decoder, lambda rows: vae.encoder(rows).chunk(2, 1), "log_std", likelihood="bernoulli"), x
        )
        return -found.nll, []
    found = girih.bracket(vae.decoder, x, noise=vae.noise, budget=seconds * len(x), method="all")
    reference = girih.bracket(vae.decoder, x, noise=vae.noise).estimate if S <= 3 else found.estimate
    names = "lower", "upper", "confidence_lower", "confidence_upper", "estimate"
    return reference, [(name, getattr(found, name)) for name in names]


def main() -> None:
    """Train, bound and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[2, 3, 4, 8, 16, 32])
    parser.add_argument("--outputs", nargs="+", default=["gaussian", "bernoulli"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = torch.as_tensor(load_digits().data / 16.0)
    columns = "lower", "upper", "confidence_lower", "confidence_upper", "estimate", "ais", "iwae", "sobol", "elbo"
    print("| S | outputs | activation | reference | " + " | ".join(columns) + " | seconds a row |")
    print("| --- " * (len(columns) + 5) + "|")
    for outputs in options.outputs:
        for place, S in enumerate(options.latents):
            x = (data > 0.5).double() if outputs == "bernoulli" else data
            activation = "relu" if place % 2 else "leaky_relu"
            vae, x = train(S, x[_HELD_OUT:], activation, outputs), x[: options.rows]
            begun = time.perf_counter()
            reference, found = bounds(vae, x, S, options.seconds, outputs)
            seconds = (time.perf_counter() - begun) / len(x)
            with torch.no_grad():
                functions = [vae.log_likelihood(one) for one in x]
                pairs = [from_encoder(vae.encoder, one, of_z, 5000) for one, of_z in zip(x, functions, strict=True)]
                others = {
                    "ais": [by_annealing(of_z, S, options.seconds) for of_z in functions],
                    "iwae": [iwae for _, iwae in pairs],
                    "sobol": [by_sobol(of_z, S) for of_z in functions],
                    "elbo": [elbo for elbo, _ in pairs],
                }
            values = dict(found) | {name: torch.tensor(column, dtype=torch.float64) for name, column in others.items()}
            off = {name: value - reference for name, value in values.items()}
            cells = [
                f"{off[name].mean():+.3f} ({off[name][off[name].abs().argmax()]:+.3f})" if name in off else ""
                for name in columns
            ]
            kind = "exact" if S <= 3 else "estimate"
            first = f"{S}", outputs, activation, f"{reference.mean():.2f} ({kind})"
            print("| " + " | ".join([*first, *cells, f"{seconds:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
