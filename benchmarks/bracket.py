"""Certified bounds on log p(x) of decoders trained on digits, beside estimates, and exact values for S <= 3.

    python benchmarks/bracket.py [--latents 2 3 4 8 16] [--rows 4] [--seconds 10]

Decoders are leaky ReLU networks S-32-32-64, trained as VAEs on scikit-learn's 8 x 8 digits; noise is learned, rows are
fresh. "iwae" is the importance-weighted bound of 5,000 draws from the encoder, "sobol" a mean over 16,384 Sobol points
of the prior. Numbers are nats, means over rows: the distance of each bound or estimate from the exact value, for S > 3
from girih's estimate.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from scipy.stats import norm, qmc
from sklearn.datasets import load_digits
from torch import Tensor, nn

import girih

_HELD_OUT = 200


def train(S: int, x: Tensor, steps: int = 4000, seed: int = 0) -> tuple[nn.Sequential, nn.Sequential, float]:
    """Decoder, encoder and noise variance of a VAE."""
    torch.manual_seed(seed)
    D = x.shape[1]
    decoder = girih.mlp([S, 32, 32, D], seed=seed)
    encoder = nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, 2 * S)).double()
    log_noise = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
    optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters(), log_noise], lr=2e-3)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (128,))]
        mean, log_std = encoder(batch).chunk(2, 1)
        z = mean + log_std.exp() * torch.randn_like(mean)
        error = (batch - decoder(z)).square().sum(1)
        divergence = 0.5 * (mean.square() + (2.0 * log_std).exp() - 1.0).sum(1) - log_std.sum(1)
        loss = (0.5 * error / log_noise.exp() + 0.5 * D * log_noise + divergence).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return decoder, encoder, float(log_noise.detach().exp())


def log_joint(decoder: nn.Module, x: Tensor, z: Tensor, noise: float) -> Tensor:
    """`log p(x | z)` of one row."""
    error = (x - decoder(z)).square().sum(1)
    return -0.5 * error / noise - 0.5 * len(x) * math.log(2.0 * math.pi * noise)


def from_encoder(decoder: nn.Module, encoder: nn.Module, x: Tensor, noise: float, draws: int) -> tuple[float, float]:
    """The ELBO, and the importance-weighted bound."""
    mean, log_std = encoder(x[None]).chunk(2, 1)
    e = torch.randn(draws, mean.shape[1], dtype=torch.float64)
    z = mean + log_std.exp() * e
    log_weight = log_joint(decoder, x, z, noise) - 0.5 * (z.square() - e.square()).sum(1) + log_std.sum()
    return float(log_weight.mean()), float(torch.logsumexp(log_weight, 0) - math.log(draws))


def by_sobol(decoder: nn.Module, x: Tensor, noise: float, S: int, points: int = 2**14) -> float:
    """A mean over Sobol points of the prior."""
    u = qmc.Sobol(S, seed=0).random(points)
    z = torch.as_tensor(norm.ppf(np.clip(u, 1e-12, 1.0 - 1e-12)))
    return float(torch.logsumexp(log_joint(decoder, x, z, noise), 0) - math.log(points))


def main() -> None:
    """Train, bound and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[2, 3, 4, 8, 16])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = torch.as_tensor(load_digits().data / 16.0)
    print(
        "| S | noise | reference | lower | upper | girih's estimate (its error) | iwae | sobol | elbo | seconds a row |"
    )
    print("| --- " * 10 + "|")
    for S in options.latents:
        decoder, encoder, noise = train(S, data[_HELD_OUT:])
        x = data[: options.rows]
        begun = time.perf_counter()
        found = girih.bracket(decoder, x, noise=noise, budget=options.seconds * len(x), method="boxes")
        seconds = (time.perf_counter() - begun) / len(x)
        reference = girih.bracket(decoder, x, noise=noise).estimate if S <= 3 else found.estimate
        with torch.no_grad():
            others = torch.tensor(
                [[*from_encoder(decoder, encoder, one, noise, 5000), by_sobol(decoder, one, noise, S)] for one in x]
            )
        elbo, iwae, sobol = (others - reference[:, None]).mean(0).tolist()
        off = [float((part - reference).mean()) for part in (found.lower, found.upper, found.estimate)]
        kind = "exact" if S <= 3 else "estimate"
        cells = [
            f"{S}",
            f"{noise:.3f}",
            f"{float(reference.mean()):.2f} ({kind})",
            *(f"{value:+.3f}" for value in off[:2]),
            f"{off[2]:+.3f} ({float(found.standard_error.mean()):.3f})",
            *(f"{value:+.3f}" for value in (iwae, sobol, elbo)),
            f"{seconds:.1f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
