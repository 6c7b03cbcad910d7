"""What a training step of RAD costs, beside zuko's Real NVP with as many parameters or more.

    python benchmarks/flows.py [--quick] [--out DIR]

A step is the NLL of a batch of 500 rows, its gradient, and Adam. Both flows are in float64 and on one thread, and their
steps take turns, so that whatever else the machine does slows both; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import zuko
from torch import Tensor, nn

from girih.flows import RAD

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
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "flows.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
