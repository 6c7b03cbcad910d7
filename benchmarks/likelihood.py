"""Exact likelihood for S = 2, 3 against importance sampling, its growth with the number of cells, and EM's time.

    python benchmarks/likelihood.py [--quick] [--compiled] [--out DIR]

Importance sampling gets the same weights and rows and, as its proposal, a Gaussian with the exact posterior mean and
covariance of each row (better than any encoder's; finding it is not timed). It runs twice: as VAE papers do it, through
the whole network, and in the reduced coordinates of girih, where D does not matter. Medians over runs, in one process.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import girih
from girih.em.iteration import Problem, exact_step, hidden_step
from girih.gaussian import prepared
from girih.inference import accumulate, chunks, evidence
from girih.inference.certificate import select_pairs
from timing import seconds

NOISE = 0.01


def generator(widths: list[int], seed: int = 0) -> torch.nn.Sequential:
    """A random network whose outputs have variance 1 in each coordinate, as standardised data have."""
    net = girih.mlp(widths, seed=seed)
    with torch.no_grad():
        z = torch.randn(4000, widths[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        scale = net(z).std(0)
        net[-1].weight.div_(scale[:, None])
        net[-1].bias.div_(scale)
    return net


def importance_sampling(
    image: Callable[[Tensor], Tensor], x: Tensor, constant: Tensor, mean: Tensor, factor: Tensor, draws: int
) -> Tensor:
    """`log p(x)` from `draws` samples a row of `N(mean, factor factor^T)`; `image` is g, whitened as x is."""
    S, out = mean.shape[1], torch.empty(len(x), dtype=torch.float64)
    log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
    generator = torch.Generator().manual_seed(0)
    for n in range(len(x)):  # a row at a time: 5,000 x 784 doubles stay in memory
        e = torch.randn(draws, S, dtype=torch.float64, generator=generator)
        z = mean[n] + e @ factor[n].T
        energy = (x[n] - image(z)).square().sum(1) + z.square().sum(1) - e.square().sum(1)
        out[n] = torch.logsumexp(-0.5 * energy, 0) - math.log(draws)
    return out + constant + log_det


def against_sampling(widths: list[int], rows: int, draws: int, runs: int) -> dict[str, float]:
    dgn = girih.DGN(generator(widths), noise=NOISE)
    x = dgn().sample((rows,), seed=0)
    post = dgn.posterior(x)
    mean, factor = post.mean, torch.linalg.cholesky(1.2 * post.covariance)
    with torch.no_grad():
        p = dgn()
        exact = p.log_prob(x)
        model = dgn.model()
        y, far2 = (torch.cat([getattr(rows, name) for _, rows in chunks(model, x)]) for name in ("y", "far2"))
        sd = NOISE**0.5
        head = model.head[1]
        bias = model.bias
        dim = dgn.output_dim
        full = -0.5 * dim * math.log(2 * math.pi * NOISE)

        def whole() -> Tensor:
            scaled = (x - bias) / sd
            return importance_sampling(
                lambda z: (dgn.net(z) - bias) / sd, scaled, torch.tensor(full), mean, factor, draws
            )

        def small() -> Tensor:
            hidden = dgn.trace.hidden_values
            return importance_sampling(lambda z: hidden(z) @ head.T, y, full - 0.5 * far2, mean, factor, draws)

        result = {
            "cells": len(p.partition),
            "left_out": float(p.evidence(x).left_out.max()),
            "exact_s": seconds(lambda: dgn().log_prob(x), runs),
            "exact_same_model_s": seconds(lambda: p.log_prob(x), runs),
        }
        for name, run in (("network", whole), ("reduced", small)):
            start = time.perf_counter()
            error = (run() - exact).abs()
            result[f"sampling_{name}_s"] = time.perf_counter() - start
            result[f"sampling_{name}_error_mean"] = float(error.mean())
            result[f"sampling_{name}_error_max"] = float(error.max())
    return result


def growth(sizes: list[list[int]], dim: int, rows: int, runs: int, scaled: bool) -> list[dict[str, float]]:
    """Time of `log_prob` against the number of cells."""
    table = []
    for widths in sizes:
        net = generator([*widths, dim]) if scaled else girih.mlp([*widths, dim], seed=0)
        dgn = girih.DGN(net, noise=NOISE)
        with torch.no_grad():
            start = time.perf_counter()
            part = dgn.partition
            model = dgn.model(part)
            partition_s = time.perf_counter() - start
            x = dgn().sample((rows,), seed=1)
            start = time.perf_counter()
            found = evidence(model, x)
            first_s = time.perf_counter() - start
            table.append(
                {
                    "cells": len(part),
                    "partition_s": partition_s,
                    "first_s": first_s,
                    "again_s": seconds(lambda: evidence(model, x), runs),  # noqa: B023
                    "left_out": float(found.left_out.max()),
                }
            )
            print("  ", table[-1], flush=True)
    return table


def exponent(table: list[dict[str, float]], key: str) -> float:
    """Slope of log time against log cells."""
    cells, times = (np.log([row[k] for row in table]) for k in ("cells", key))
    return float(np.polyfit(cells, times, 1)[0])


def em_split(widths: list[int], rows: int, iterations: int) -> dict[str, float]:
    """Where one EM iteration on real digits spends its time, after some iterations from a random start."""
    x = girih.datasets.load("mnist", n=rows, seed=0).X
    dgn = girih.DGN(girih.mlp([*widths, x.shape[1]], seed=0), noise=0.1)
    prior = girih.em.WeightPrior("gaussian", 0.3)
    girih.em.fit_em(dgn, x[:1000], n_init=1, max_iter=iterations, tol=0.0, weight_prior=prior, acceleration="none")
    problem = Problem(dgn, torch.as_tensor(x), torch.ones(len(x), dtype=torch.float64), prior)
    now = problem.evaluate()
    with torch.no_grad():

        def timed(function: Callable[[], object]) -> float:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start

        result = {"rows": rows, "cells": len(dgn.partition), "partition_s": timed(lambda: dgn.model())}
        model = dgn.model()
        result["e_step_s"] = timed(lambda: accumulate(model, problem.x, problem.weight))
        result["likelihood_only_s"] = timed(lambda: evidence(model, problem.x))
        result["head_and_noise_with_safeguard_s"] = timed(lambda: exact_step(problem, now, {"head", "noise"}))
        now = problem.evaluate()
        result["hidden_with_safeguard_s"] = timed(lambda: hidden_step(problem, now, 1e-2))
    return result


COMPILED = (
    # S, widths, D, noise variance, rows
    (2, [8, 8], 10, 0.05, 1000),
    (3, [5, 5], 10, 0.05, 200),
    *((2, [32, 32], 784, noise, 200) for noise in (1.0, 1e-2, 1e-4, 1e-6)),
    *((3, [12, 12], 784, noise, 60) for noise in (1.0, 1e-2, 1e-4, 1e-6)),
)


def processor(run: Callable[[], object]) -> float:
    """Seconds of processor time, after a warm-up."""
    run()
    start = time.process_time()
    run()
    return time.process_time() - start


def against_tables(S: int, hidden: list[int], dim: int, noise: float, rows: int, runs: int) -> dict[str, float]:
    """Processor time of compiled code, microseconds a row, with ratios to operations on tables and to its floor.

    The floor is the compiled masses, for an E-step the moments, of the pairs that matter, and nothing else.
    """
    dgn = girih.DGN(generator([S, *hidden, dim]), noise=noise)
    model, weight = dgn.model(), torch.ones(rows, dtype=torch.float64)
    with torch.no_grad():
        x = dgn().sample((rows,), seed=0)
        geometry = model.cells.region.geometry(model)
        pairs = [select_pairs(geometry, part.relative()) for _, part in chunks(model, x)]
        sets = [(p.piece, None, p.gaussian.centre) for p in pairs]
        found: dict[str, list[float]] = {}
        slow = []
        for _ in range(runs):  # in turns
            for name, run in (
                ("log_prob", lambda: evidence(model, x)),
                ("E-step", lambda: accumulate(model, x, weight)),
                ("masses", lambda: [geometry.stretched.raw_masses(*part) for part in sets]),
                ("moments", lambda: [geometry.stretched.raw_moments(*part) for part in sets]),
            ):
                found.setdefault(name, []).append(processor(run))
                if name in ("log_prob", "E-step"):
                    with patch.object(prepared, "kernels", lambda: None):
                        found.setdefault(f"{name} by tables", []).append(processor(run))
                        slow.append(evidence(model, x).log_prob)
        difference = float((evidence(model, x).log_prob - slow[0]).abs().max())
    us = {name: 1e6 / rows * float(np.median(times)) for name, times in found.items()}
    return {
        "cells": len(dgn.partition),
        "noise": noise,
        "pairs_a_row": sum(len(p.row) for p in pairs) / rows,
        "log_prob_us": us["log_prob"],
        "log_prob_ratio": us["log_prob by tables"] / us["log_prob"],
        "log_prob_over_floor": us["log_prob"] / us["masses"],
        "e_step_us": us["E-step"],
        "e_step_ratio": us["E-step by tables"] / us["E-step"],
        "e_step_over_floor": us["E-step"] / us["moments"],
        "largest_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="compiled code against tables, and nothing else")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    results: dict[str, object] = {}
    if prepared.kernels() is not None:
        print("compiled code against operations on tables")
        for S, hidden, dim, noise, rows in COMPILED[: 2 if quick else None]:
            found = against_tables(S, hidden, dim, noise, rows // 20 if quick else rows, 1 if quick else 3)
            results[f"compiled_S{S}_{hidden}_{dim}_{noise}"] = found
            print("  ", S, hidden, dim, json.dumps(found), flush=True)
    if options.compiled:
        return
    for S, widths, rows in ((2, [32, 32], 1000), (3, [12, 12], 200)):
        rows, draws = (rows // 20, 500) if quick else (rows, 5000)
        results[f"sampling_S{S}"] = found = against_sampling([S, *widths, 784], rows, draws, 1 if quick else 3)
        print(f"exact against importance sampling, S = {S}, hidden {widths}, D = 784, {rows} rows, {draws} draws a row")
        print("  ", json.dumps(found, indent=3))
    sizes = [[2, 6, 6], [2, 20, 20], [2, 64, 64], [2, 224, 224]][: 2 if quick else 4]
    for scaled in (True, False):
        name = "variance 1" if scaled else "the initial scale of the layers"
        print(f"growth with the number of cells, S = 2, D = 784, outputs of {name}")
        table = growth(sizes, 784, 20 if quick else 200, 1 if quick else 3, scaled)
        results[f"growth_{'scaled' if scaled else 'initial'}"] = table
        for key in ("again_s", "first_s", "partition_s"):
            print(f"   exponent of {key}: {exponent(table, key):.2f}")
    results["em"] = em_split([2, 8] if quick else [2, 32, 32], 100 if quick else 5000, 2 if quick else 15)
    print("EM on digits:", json.dumps(results["em"], indent=3))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "likelihood.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
