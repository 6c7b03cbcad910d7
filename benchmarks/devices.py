"""The engine on a GPU: the largest difference from the CPU of everything that it says, then times.

    python benchmarks/devices.py [--device cuda] [--cells 10000] [--rows 100000]

Each check stands for itself: one that fails is named, and the next one runs. Times are the median of three runs after
one that warms up, with the device waited for. A partition is enumerated on the host, whatever the device.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import girih
from timing import seconds

Numbers = Callable[[girih.DGN, Tensor], Tensor]


def says() -> Iterator[tuple[str, Numbers]]:
    """What a model says about rows, by name."""
    yield "log_prob", lambda dgn, x: dgn().log_prob(x)
    yield "left_out", lambda dgn, x: dgn().evidence(x).left_out
    yield "score", lambda dgn, x: dgn().score(x)
    yield "gradient", gradient
    yield "posterior mean", lambda dgn, x: dgn.posterior(x).mean
    yield "covariance", lambda dgn, x: dgn.posterior(x).covariance
    yield "mode", lambda dgn, x: dgn.posterior(x).mode
    yield "entropy", lambda dgn, x: dgn.posterior(x).entropy()
    yield "cell_probs", lambda dgn, x: dgn.posterior(x).cell_probs().to_dense()
    yield "impute", lambda dgn, x: dgn.impute(x)


def gradient(dgn: girih.DGN, x: Tensor) -> Tensor:
    """Of the summed log-densities in all parameters."""
    parts = torch.autograd.grad(dgn().log_prob(x).sum(), list(dgn.parameters()))
    return torch.cat([part.flatten() for part in parts])


def compare(S: int, widths: tuple[int, ...], device: str) -> None:
    """The largest difference, as a share of the largest number."""
    dgn = girih.DGN(girih.mlp([S, *widths, 8], seed=0), noise=0.01)
    x = dgn().sample((200,), seed=0)
    x[150:] *= 20.0
    x[::5, 0] = math.nan
    moved, there = copy.deepcopy(dgn).to(device), x.to(device)
    for name, numbers in says():
        try:
            here, other = numbers(dgn, x).detach(), numbers(moved, there).detach().cpu()
            print(f"S = {S}  {name:>15}  {float((here - other).abs().max() / here.abs().max()):.1e}", flush=True)
        except Exception as error:
            print(f"S = {S}  {name:>15}  {type(error).__name__}: {error}", flush=True)


def time_rows(cells: int, rows: int, device: str) -> None:
    """Times of many rows and about as many cells as asked, S = 2."""
    net = girih.mlp([2, width_for(cells), 16], seed=0)
    dgn = girih.DGN(net, noise=0.01).to(device)
    p = dgn()
    x = p.sample((rows,), seed=0)

    def timed(name: str, function: Callable[[], object]) -> None:
        def run() -> None:
            function()
            if x.is_cuda:
                torch.cuda.synchronize()

        try:
            print(f"{rows:,} rows, {len(p.partition):,} cells  {name:>15}  {seconds(run, 3):.3f} s", flush=True)
        except Exception as error:
            print(f"{name:>15}  {type(error).__name__}: {error}", flush=True)

    with torch.no_grad():
        timed("log_prob", lambda: p.log_prob(x))
        timed("score", lambda: p.score(x))
        timed("posterior", lambda: dgn.posterior(x[: max(1, rows // 10)]))
    timed("partition", lambda: len(girih.Partition(net.to(device), progress=False)))


def width_for(cells: int) -> int:
    """Units of one layer with about so many cells: `1 + U + U (U - 1) / 2`."""
    return max(2, round(math.sqrt(2.0 * cells)))


def main() -> None:
    """Compare and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --device cpu shows what would run")
    for S, widths in ((1, (16,)), (2, (16, 12)), (3, (8, 6))):
        compare(S, widths, options.device)
    time_rows(options.cells, options.rows, options.device)


if __name__ == "__main__":
    main()
