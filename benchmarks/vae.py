"""What a training step of girih's VAEs costs, beside the same networks in a hand-written PyTorch loop.

    python benchmarks/vae.py [--quick] [--out DIR]

A step is the free energy of a batch of 100 rows of 784 pixels, its gradient, and Adam; networks of the CG-BPEF paper,
784-400-400-20-400-400-784, in float32 and on one thread. Girih's step is the one that `fit` takes, with checks and
annealed temperature; the plain one has the same weights and as few lines as it needs. Both take turns, so that
whatever else the machine does slows both; medians, and the median of the ratios of neighbours in time. `fit` as a whole
is compared as well, with a plain loop that shuffles its rows: blocks of steps take turns.

Gumbel numbers cost a good part of a step with discrete latents, so the plain loop runs in two ways: by torch's own
`gumbel_softmax`, and with uniform numbers as girih draws them. Before the clock starts, the latter and girih are given
the same random numbers: their losses must agree.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from girih.training import LossStepper, make_optimizer
from girih.vae import CGBPEFVAE, VAE, Annealing, CatVAE, GaussVAE

BATCH, LATENTS, CATEGORIES, ORDER, LEVELS = 100, 20, 10, 5, 101
LIMIT = 1.2

Relax = Callable[[Tensor, float], Tensor]
Loss = Callable[[nn.Module, nn.Module, Tensor, int, float, Relax], Tensor]


def uniform_softmax(logits: Tensor, temperature: float) -> Tensor:
    """What `F.gumbel_softmax` does, from uniform numbers."""
    return torch.softmax((logits - torch.rand_like(logits).log_().neg_().log_()) / temperature, -1)


def gauss_loss(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, samples: int, temperature: float, relax: Relax
) -> Tensor:
    """Gaussian posterior, standard normal prior."""
    mean, log_deviation = encoder(x).chunk(2, 1)
    z = mean + log_deviation.exp() * torch.randn(samples, *mean.shape)
    divergence = 0.5 * (mean**2 + (2 * log_deviation).exp() - 1 - 2 * log_deviation).sum(1)
    return (divergence + bernoulli(decoder, z, x)).mean()


def cat_loss(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, samples: int, temperature: float, relax: Relax
) -> Tensor:
    """Categories with a uniform prior."""
    logits = encoder(x).view(-1, LATENTS, CATEGORIES)
    log_q = F.log_softmax(logits, -1)
    divergence = (log_q.exp() * (log_q + math.log(CATEGORIES))).sum((1, 2))
    y = relax(log_q.expand(samples, *log_q.shape), temperature)
    return (divergence + bernoulli(decoder, y.flatten(2), x)).mean()


def bpef_loss(prior: Tensor, table: Tensor, zeta: Tensor) -> Loss:
    """The exponential family with the same prior, polynomials and levels."""

    def loss(
        encoder: nn.Module, decoder: nn.Module, x: Tensor, samples: int, temperature: float, relax: Relax
    ) -> Tensor:
        log_q = F.log_softmax(encoder(x).view(-1, LATENTS, ORDER) @ table, -1)
        log_p = F.log_softmax(prior @ table, -1)
        divergence = (log_q.exp() * (log_q - log_p)).sum((1, 2))
        y = relax(log_q.expand(samples, *log_q.shape), temperature)
        return (divergence + bernoulli(decoder, y @ zeta, x)).mean()

    return loss


def bernoulli(decoder: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    """`-log p(x | z)` of each row, the mean over draws."""
    logits = decoder(z)
    return F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1).mean(0)


def plain(vae: VAE) -> tuple[Loss, list[Tensor], nn.Module, nn.Module]:
    """The loss of the plain loop, its parameters, and copies of the networks."""
    encoder, decoder = copy.deepcopy(vae.encoder), copy.deepcopy(vae.decoder)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    if isinstance(vae, CatVAE):
        return cat_loss, parameters, encoder, decoder
    if isinstance(vae, CGBPEFVAE):
        prior = vae.prior_coefficients.detach().clone().requires_grad_()
        return bpef_loss(prior, vae.bpef.table, vae.bpef.zeta), [*parameters, prior], encoder, decoder
    return gauss_loss, parameters, encoder, decoder


def compare(vae: VAE, samples: int, runs: int) -> dict[str, object]:
    """Milliseconds of a step of both, their ratio, and the losses for the same random numbers."""
    x = torch.rand(BATCH, 784, generator=torch.Generator().manual_seed(0))
    loss, parameters, encoder, decoder = plain(vae)
    final = vae.temperature or 1.0
    annealing = Annealing(10_000, 1.0, final)
    temperature = final if vae.temperature else None
    with torch.no_grad():
        torch.manual_seed(1)
        ours = float(vae.terms(x, samples, temperature=temperature).total.mean())
        torch.manual_seed(1)
        theirs = float(loss(encoder, decoder, x, samples, final, uniform_softmax))

    def girih_loss(model: VAE, batch: Tensor) -> Tensor:
        return model.terms(batch, samples, temperature=annealing.now if vae.temperature else None).total.mean()

    stepper = LossStepper(vae, girih_loss, make_optimizer("adam", list(vae.parameters()), 1e-3, False), annealing)
    adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)  # as girih has it: the default one is slower

    def plain_step(number: int, rows: Tensor = x, relax: Relax = F.gumbel_softmax) -> None:
        adam.zero_grad()
        value = loss(encoder, decoder, rows, samples, final ** min(1.0, 2.0 * number / 10_000), relax)
        value.backward()
        adam.step()
        value.item()  # a loop looks at its loss

    steps = {
        "plain": plain_step,
        "girih": lambda number: stepper.take(x, number),
        "plain_uniform": lambda number: plain_step(number, x, uniform_softmax),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(runs + 10):
        for name in list(steps) if run % 2 else list(reversed(steps)):
            start = time.perf_counter()
            steps[name](run)
            if run >= 10:  # the first steps warm up
                times[name].append(time.perf_counter() - start)

    def ratio(rival: str) -> float:
        return statistics.median(a / b for a, b in zip(times["girih"], times[rival], strict=True))

    return {
        "model": type(vae).__name__,
        "samples": samples,
        "girih_ms": 1e3 * statistics.median(times["girih"]),
        "plain_ms": 1e3 * statistics.median(times["plain"]),
        "plain_uniform_ms": 1e3 * statistics.median(times["plain_uniform"]),
        "ratio": ratio("plain"),
        "ratio_uniform": ratio("plain_uniform"),
        "fit_ratio": fit_ratio(vae, plain_step, samples, max(3, runs // 30)),
        "girih_loss": ours,
        "plain_loss": theirs,
    }


def fit_ratio(vae: VAE, plain_step: Callable[[int, Tensor], None], samples: int, blocks: int) -> float:
    """The time of `fit`, without setting up, over that of a plain loop; blocks of 20 steps on 1,000 rows."""
    rows = torch.rand(1000, 784, generator=torch.Generator().manual_seed(0))

    def plain_block() -> float:
        start = time.perf_counter()
        for epoch in range(2):
            for number, batch in enumerate(torch.randperm(len(rows)).split(BATCH)):
                plain_step(10 * epoch + number, rows[batch])
        return time.perf_counter() - start

    def girih_block() -> float:
        return vae.fit(rows, samples=samples, max_steps=20, batch_size=BATCH, progress=False).seconds

    girih_block()
    return statistics.median(girih_block() / plain_block() for _ in range(blocks))


def models() -> list[VAE]:
    sizes, options = [LATENTS, 400, 400, 784], {"likelihood": "bernoulli", "dtype": torch.float32, "seed": 0}
    return [
        GaussVAE(sizes, **options),
        CatVAE(sizes, categories=CATEGORIES, **options),
        CGBPEFVAE(sizes, order=ORDER, levels=LEVELS, **options),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, L = 1 only")
    parser.add_argument("--out", type=Path, help="a folder for vae.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for samples in (1,) if arguments.quick else (1, 10):
        for vae in models():
            result = compare(vae, samples, (30 if arguments.quick else 300) // (1 if samples == 1 else 3))
            results.append(result)
            print(
                f"L = {samples}, {result['model']}: {result['girih_ms']:.2f} ms, plain PyTorch "
                f"{result['plain_ms']:.2f} ms, {result['ratio']:.2f} times (limit {LIMIT}), with the same "
                f"uniform numbers {result['ratio_uniform']:.2f} times, "
                f"fit {result['fit_ratio']:.2f} times; losses "
                f"{result['girih_loss']:.4f} and {result['plain_loss']:.4f}"
            )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "vae.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
