"""Per-cell maps and singular values of a generator too large to enumerate, against Jacobians point by point.

    python benchmarks/geometry.py [--cells 10000] [--points 20] [--threads 2]

The generator is the fully connected one of MAS, appendix E: S = 10, widths 256-512-1024-784, here with random weights.
"Point by point" is `torch.func.jacrev` (and, for fairness, `jacfwd`, which suits S < D) of the same float64 module with
the SVD of each Jacobian, timed on a few points and extrapolated to all cells.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

import girih
from girih import geometry

SIZES = [10, 256, 512, 1024, 784]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=20, help="Jacobians to time point by point")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = girih.mlp(SIZES, "relu", seed=0)
    geometry.singular_values(geometry.sample_cells(net, 2, seed=1))  # warm up

    start = time.perf_counter()
    cells = geometry.sample_cells(net, options.cells)
    drawn = time.perf_counter() - start
    values = cells.singular_values
    total = time.perf_counter() - start

    out: dict[str, float] = {"cells": len(cells), "threads": options.threads, "draw_s": drawn, "all_s": total}
    for name, jacobian in (("jacrev", torch.func.jacrev), ("jacfwd", torch.func.jacfwd)):
        points = cells.points[: options.points]
        jacobian(net)(points[0])
        start = time.perf_counter()
        slow = torch.stack([torch.linalg.svdvals(jacobian(net)(z).detach()) for z in points])
        seconds = (time.perf_counter() - start) / len(points) * len(cells)
        error = ((slow - values[: len(points)]).abs() / slow[:, :1]).max().item()
        out |= {f"{name}_s": seconds, f"{name}_times": seconds / total, f"{name}_error": error}
    print(f"{len(cells):,} cells of {'-'.join(map(str, SIZES))}, {options.threads} thread(s)")
    print(f"  maps and singular values   {total:8.1f} s  (of which draws and patterns {drawn:.1f} s)")
    for name in ("jacrev", "jacfwd"):
        print(f"  {name} point by point     {out[f'{name}_s']:8.1f} s  {out[f'{name}_times']:6.1f} times as long")
        print(f"    largest difference of a singular value, relative to the largest: {out[f'{name}_error']:.1e}")
    print(json.dumps(out))


if __name__ == "__main__":
    main()
