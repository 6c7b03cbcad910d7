"""What a training step of RAD costs, beside zuko's Real NVP; and what flows trained by defaults are worth.

    python benchmarks/flows.py [--quick] [--out DIR]

A step is the NLL of a batch of 500 rows, its gradient, and Adam, with as many parameters in Real NVP or more. Both
flows are in float64 and on one thread, and their steps take turns, so that whatever else the machine does slows both;
medians.

Then RAD, Real NVP and zuko's spline flow are fitted by `fit` without any option, to 256 rows of two toys and to 70 % of
two real tables, over five seeds: held-out log-likelihood less that of a single Gaussian, and processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zuko
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn

from girih import datasets
from girih.flows import RAD, Flow, RealNVP, Whiten

BATCH = 500


def parameters(flow: nn.Module) -> int:
    return sum(parameter.numel() for parameter in flow.parameters())


def rival(features: int, least: int) -> nn.Module:
    """zuko's Real NVP with one hidden layer, the narrowest with at least so many parameters."""
    width = 1
    while parameters(flow := zuko.flows.RealNVP(features, transforms=6, hidden_features=(width,))) < least:
        width += 1
    return flow.double()


def stepper(flow: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = flow.nll(x).mean() if isinstance(flow, RAD) else -flow().log_prob(x).mean()
        loss.backward()
        optimizer.step()

    return step


def compare(features: int, hidden: int, pieces: int, runs: int) -> dict[str, float]:
    x = torch.randn(BATCH, features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rad = RAD(features, transforms=6, hidden_features=(hidden,), pieces=pieces, seed=0)
    torch.manual_seed(0)
    nvp = rival(features, parameters(rad))
    steps = {"rad": stepper(rad, x), "real_nvp": stepper(nvp, x)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(runs + 10):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if run >= 10:  # the first steps warm up
                times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "features": features,
        "pieces": pieces,
        "rad_parameters": parameters(rad),
        "real_nvp_parameters": parameters(nvp),
        "rad_ms": 1e3 * seconds["rad"],
        "real_nvp_ms": 1e3 * seconds["real_nvp"],
        "ratio": seconds["rad"] / seconds["real_nvp"],
    }


def spline_flow(features: int, seed: int) -> Flow:
    torch.manual_seed(seed)
    couplings = zuko.flows.NSF(features, transforms=3, hidden_features=(64, 64)).transform.transforms
    return Flow([Whiten(features), *couplings], features).double()


FLOWS: dict[str, Callable[..., Flow]] = {"RAD": RAD, "Real NVP": RealNVP, "spline flow": spline_flow}
TABLES = {"diabetes": load_diabetes, "breast cancer": load_breast_cancer}


def rows_of(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Training rows and fresh ones."""
    if name not in TABLES:
        pair = (datasets.load(name, n=n, seed=s).X for n, s in ((256, seed), (5000, 1000 + seed)))
        return tuple(torch.as_tensor(X) for X in pair)  # type: ignore[return-value]
    X = TABLES[name]().data
    X = X[:, [len(np.unique(column)) > 2 for column in X.T]]
    X = torch.as_tensor(X[np.random.default_rng(seed).permutation(len(X))])
    return X[: 7 * len(X) // 10], X[7 * len(X) // 10 :]


def by_defaults(name: str, kind: str, seeds: int) -> dict[str, object]:
    gains, seconds = [], []
    for seed in range(seeds):
        train, fresh = rows_of(name, seed)
        flow = FLOWS[kind](train.shape[1], seed=seed)
        start = time.process_time()
        flow.fit(train, seed=seed, progress=False)
        seconds.append(time.process_time() - start)
        gaussian = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.mT, correction=0))
        with torch.no_grad():
            gains.append(float(flow().log_prob(fresh).mean() - gaussian.log_prob(fresh).mean()))
    return {"data": name, "flow": kind, "gain": gains, "processor_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, the smallest flow only")
    parser.add_argument("--out", type=Path, help="a folder for flows.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(2, 8, 3)] if arguments.quick else [(2, 8, 3), (2, 64, 3), (2, 8, 5), (10, 32, 3), (30, 64, 3)]
    results = []
    for features, hidden, pieces in cases:
        result = compare(features, hidden, pieces, 30 if arguments.quick else 300)
        results.append(result)
        print(
            f"D = {features}, K = {pieces}: RAD {result['rad_ms']:.2f} ms with {result['rad_parameters']} parameters, "
            f"Real NVP {result['real_nvp_ms']:.2f} ms with {result['real_nvp_parameters']}: {result['ratio']:.2f} times"
        )
    for name in ("circle",) if arguments.quick else ("circle", "moons", *TABLES):
        for kind in FLOWS:
            result = by_defaults(name, kind, 1 if arguments.quick else 5)
            results.append(result)
            gains = ", ".join(f"{gain:.2f}" for gain in result["gain"])
            print(
                f"{name}, {kind}: above one Gaussian by {gains} nats a row on fresh rows, "
                f"in at most {max(result['processor_seconds']):.0f} s of processor time"
            )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "flows.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
