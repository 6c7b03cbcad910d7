"""Per-cell maps and singular values of a generator too large to enumerate, against Jacobians point by point; and
the search for nearest points and preimages over all cells of small ones.

    python benchmarks/geometry.py [--cells 10000] [--points 20] [--threads 2]
    python benchmarks/geometry.py --search [--rows 2000] [--threads 2]

The generator is the fully connected one of MAS, appendix E: S = 10, widths 256-512-1024-784, here with random weights.
"Point by point" is `torch.func.jacrev` (and, for fairness, `jacfwd`, which suits S < D) of the same float64 module with
the SVD of each Jacobian, timed on a few points and extrapolated to all cells.

`--search` times `invert` (rows with noise of deviation 0.3 around the manifold), `preimages` and `is_injective` for a
growing number of cells, S = 2, D = 5; "build" is the tree, once for all rows. "Scan" is the nearest point of every
cell, one cell after another, for 16 rows.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

import girih
from girih import geometry
from girih.geometry import Search, nearest_in_cell
from timing import seconds

SIZES = [10, 256, 512, 1024, 784]
SEARCHED = [[2, 8, 8, 5], [2, 24, 24, 5], [2, 72, 72, 5], [2, 220, 220, 5]]
SCANNED = 16  # rows


def search(rows: int) -> None:
    print(f"{'cells':>8} {'build s':>8} {'invert':>8} {'preimages':>10} {'scan':>8} ms/row {'is_injective':>13} s")
    for sizes in SEARCHED:
        part = girih.Partition(girih.mlp(sizes, seed=0), progress=False)
        generator = torch.Generator().manual_seed(0)
        x = part.trace(torch.randn(rows, 2, generator=generator, dtype=torch.float64)).detach()
        noisy = x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        out: dict[str, float] = {"cells": len(part)}
        out["build_s"] = seconds(lambda part=part: Search(part), 3)
        for name, function, some in (("invert", geometry.invert, noisy), ("preimages", geometry.preimages, x)):
            total = seconds(lambda f=function, part=part, x=some: f(part, x), 1)
            out[f"{name}_ms"] = 1e3 * (total - out["build_s"]) / rows
        if len(part) < 20_000:
            out["scan_ms"] = 1e3 * seconds(lambda part=part, x=noisy[:SCANNED]: scan(part, x), 1) / SCANNED
            out["injective_s"] = seconds(lambda part=part: geometry.is_injective(part), 1)
        print(
            f"{out['cells']:8,} {out['build_s']:8.2f} {out['invert_ms']:8.3f} {out['preimages_ms']:10.3f} "
            f"{out.get('scan_ms', float('nan')):8.0f}        {out.get('injective_s', float('nan')):13.2f}"
        )
        print(json.dumps(out))


def scan(part: girih.Partition, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        A, b = part.affine
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for i in range(len(part)):
        H, h = part.halfspaces(i)
        z = torch.as_tensor(nearest_in_cell(A[i].numpy(), (x - b[i]).numpy(), H.numpy(), h.numpy()))
        best = torch.fmin(best, (z @ A[i].mT + b[i] - x).norm(dim=1))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=20, help="Jacobians to time point by point")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--search", action="store_true", help="time the search over cells instead")
    parser.add_argument("--rows", type=int, default=2000, help="rows to search for")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.search:
        search(options.rows)
        return
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
