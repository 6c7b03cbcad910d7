"""Effective samples a second of posteriors of decoders trained on digits, beside HMC and NUTS.

    python benchmarks/samplers.py [--latents 2 8 16] [--rows 3] [--seconds 10] [--noise 1]

Decoders are those of `bracket.py`: leaky ReLU networks S-32-32-64, trained as VAEs on scikit-learn's 8 x 8 digits;
rows are fresh. "hmc" is leapfrog with a unit mass and jittered steps whose size is tuned to accept 0.8, the better of 8
and 32 steps; "nuts" is that of blackjax after its window adaptation of step size and mass. Both are compiled by JAX.
All run in double precision on one thread, 64 chains, for about the same time, which counts from after compilation and
adaptation (for girih: annealing and the search for modes); the rivals start at draws of the posterior.
The number for a row is the fewest effective samples of a latent by the time they took; numbers are means over rows.
"bias" is the mean of z beside that of a long run of girih's, in standard errors of both, root mean square; "r_hat" is
the largest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import girih
from bracket import train
from girih.sampling import effective_samples, r_hat

_CHAINS = 64
_HELD_OUT = 200


def by_girih(decoder: nn.Module, x: Tensor, noise: float, seconds: float, start: Tensor) -> tuple[Tensor, float]:
    """Draws `(S, C, M)` and the time of those that are kept."""
    fixed = [timed(lambda: girih.sample_posterior(decoder, x[None], noise, samples=4, chains=_CHAINS))[1] for _ in "ab"]
    trial = timed(lambda: girih.sample_posterior(decoder, x[None], noise, samples=204, chains=_CHAINS))[1]
    each = (trial - fixed[1]) / 200
    draws, spent = timed(
        lambda: girih.sample_posterior(decoder, x[None], noise, samples=int(seconds / each) + 4, chains=_CHAINS, seed=1)
    )
    return draws.z[0].movedim(2, 0), spent - fixed[1]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    return function(), time.perf_counter() - begun


class InJax:
    """The posterior of a row for JAX."""

    def __init__(self, decoder: nn.Sequential, x: Tensor, noise: float) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax, jnp = jax, jax.numpy
        layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in decoder[::2]]
        row, slope = x.numpy(), decoder[1].negative_slope

        def log_density(z: Any) -> Any:
            h = z
            for k, (weight, bias) in enumerate(layers):
                h = weight @ h + bias
                h = jnp.where(h > 0.0, h, slope * h) if k < len(layers) - 1 else h
            return -0.5 * jnp.sum((row - h) ** 2) / noise - 0.5 * jnp.sum(z**2)

        self.log_density = log_density

    def nuts(self, seconds: float, start: Tensor) -> tuple[Tensor, float]:
        """NUTS of blackjax, adapted chain by chain."""
        import blackjax

        jax = self.jax
        keys = jax.random.split(jax.random.key(0), _CHAINS)
        adaptation = blackjax.window_adaptation(blackjax.nuts, self.log_density)
        (states, parameters), _ = jax.jit(jax.vmap(lambda key, z: adaptation.run(key, z, 500)))(keys, start.numpy())

        def step(key: Any, state: Any, p: Any) -> Any:
            return blackjax.nuts(self.log_density, **p).step(key, state)[0]

        return self._run(step, states, parameters, seconds)

    def hmc(self, seconds: float, start: Tensor) -> tuple[Tensor, float]:
        """Leapfrog, as it is taught: a unit mass, and a step that accepts 0.8."""
        best: tuple[Tensor, float] | None = None
        for length in (8, 32):
            found = self._hmc(length, 0.5 * seconds, start)
            if best is None or rate(*found) > rate(*best):
                best = found
        assert best is not None
        return best

    def _hmc(self, length: int, seconds: float, start: Tensor) -> tuple[Tensor, float]:
        import blackjax

        jax, jnp = self.jax, self.jax.numpy
        kernel = blackjax.hmc.build_kernel()
        states = jax.vmap(lambda z: blackjax.hmc.init(z, self.log_density))(start.numpy())
        one = jnp.ones(start.shape[1])

        def moved(key: Any, state: Any, size: Any) -> Any:
            jitter = jax.random.uniform(key, minval=0.7, maxval=1.3)
            return kernel(key, state, self.log_density, size * jitter, one, length)

        many = jax.jit(jax.vmap(moved, (0, 0, None)))
        key, size = jax.random.key(1), 0.1
        for k in range(300):
            key, own = jax.random.split(key)
            states, info = many(jax.random.split(own, _CHAINS), states, size)
            size *= float(np.exp((float(info.acceptance_rate.mean()) - 0.8) / (k + 1) ** 0.6))
        sizes = jnp.full(_CHAINS, size)
        return self._run(lambda k, state, s: moved(k, state, s)[0], states, sizes, seconds)

    def _run(self, step: Any, states: Any, parameters: Any, seconds: float) -> tuple[Tensor, float]:
        jax = self.jax

        def chain(key: Any, state: Any, p: Any, count: int) -> Any:
            def one(state: Any, key: Any) -> Any:
                state = step(key, state, p)
                return state, state.position

            return jax.lax.scan(one, state, jax.random.split(key, count))

        many = jax.jit(jax.vmap(chain, (0, 0, 0, None)), static_argnums=3)
        count = 200
        keys = jax.random.split(jax.random.key(2), _CHAINS)
        jax.block_until_ready(many(keys, states, parameters, count))
        _, spent = timed(lambda: jax.block_until_ready(many(keys, states, parameters, count)))
        count = min(max(200, int(200 * seconds / spent)), 100_000)
        ready = many.lower(keys, states, parameters, count).compile()
        (_, z), spent = timed(lambda: jax.block_until_ready(ready(keys, states, parameters)))
        return torch.as_tensor(np.array(z)).movedim(2, 0), spent


def rate(z: Tensor, seconds: float) -> float:
    """The fewest effective samples of a latent in a second."""
    return float(effective_samples(z).min()) / seconds


def deviation(z: Tensor, other: Tensor) -> float:
    """The difference of means in standard errors, root mean square over latents."""
    error2 = sum(one.flatten(1).var(1) / effective_samples(one) for one in (z, other))
    return float(((z.mean((1, 2)) - other.mean((1, 2))).square() / error2).mean().sqrt())


def main() -> None:
    """Train, draw and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--noise", type=float, default=1.0, help="times the noise that was learned")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        import blackjax  # noqa: F401
    except ModuleNotFoundError:
        print("blackjax is not installed: girih alone")
        rivals = []
    else:
        rivals = ["nuts", "hmc"]
    data = torch.as_tensor(load_digits().data / 16.0)
    print("| S | noise | sampler | effective samples a second | girih has so many times | r_hat | bias |")
    print("| --- " * 7 + "|")
    for S in options.latents:
        decoder, _, noise = train(S, data[_HELD_OUT:])
        noise *= options.noise
        numbers: dict[str, list[list[float]]] = {name: [] for name in ("girih", *rivals)}
        for x in data[: options.rows]:
            reference = girih.sample_posterior(decoder, x[None], noise, samples=1000, chains=_CHAINS, seed=9)
            start = reference.z[0, :_CHAINS, 0]
            for name in numbers:
                if name == "girih":
                    found = by_girih(decoder, x, noise, options.seconds, start)
                else:
                    found = getattr(InJax(decoder, x, noise), name)(options.seconds, start)
                off = deviation(found[0], reference.z[0].movedim(2, 0))
                numbers[name].append([rate(*found), float(r_hat(found[0]).max()), off])
        own = np.array(numbers["girih"])[:, 0]
        for name, found in numbers.items():
            table = np.array(found)
            times = float(np.exp(np.mean(np.log(own / table[:, 0]))))
            cells = [f"{S}", f"{noise:.4f}", name, f"{table[:, 0].mean():,.0f}", f"{times:.1f}"]
            cells += [f"{table[:, 1].max():.3f}", f"{np.sqrt(np.square(table[:, 2]).mean()):.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
