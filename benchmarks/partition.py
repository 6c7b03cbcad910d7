"""The partition of latent spaces in two and three dimensions: time, cells per second, peak memory, and a peer.

    python benchmarks/partition.py [--large] [--repeats 3]
    python benchmarks/partition.py --slice

Each size runs in a process of its own, so that its peak memory is its own. "complete" is cells with adjacency and
the affine map of every cell (D = 2). `--slice` cuts a plane through a convolutional decoder with 5,760 units and
S = 16 instead: some 23,000 cells, processor time and peak memory, patterns included. The peer is the PyPI package
relucent (AGPL, with a commercial solver whose free licence is limited in size): not a dependency; install it
to see it timed on the same weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

import girih

SIZES = [
    (2, 8, 8, 2),
    (2, 24, 24, 2),
    (2, 32, 32, 2),
    (2, 64, 64, 2),
    (2, 128, 128, 2),
    (2, 256, 256, 2),
    (3, 64, 64, 2),
]
LARGE = [(2, 512, 512, 2), (2, 256, 256, 256, 256, 256, 2), (3, 96, 96, 2)]


def ours(sizes: list[int], repeats: int) -> dict[str, float]:
    net = girih.mlp(sizes, "relu", seed=0)
    times: dict[str, list[float]] = {"cells": [], "adjacency": [], "maps": []}
    for _ in range(repeats):
        start = time.perf_counter()
        part = girih.Partition(net, max_cells=10_000_000, progress=False)
        times["cells"].append(time.perf_counter() - start)
        start = time.perf_counter()
        assert len(part.neighbors)
        times["adjacency"].append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.no_grad():
            assert len(part.affine[0]) == len(part)
        times["maps"].append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"R": len(part), "GB": peak} | {name: statistics.median(values) for name, values in times.items()}


def plane() -> dict[str, float]:
    """A slice of a convolutional decoder; seconds are of processor time."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(16, 1152), nn.ReLU(), nn.Unflatten(1, (128, 3, 3))),
        *(nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 16, 4, 2, 1), nn.ReLU()),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
    ).double()
    directions = torch.randn(16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, v = torch.linalg.qr(directions)[0].T
    start = time.process_time()
    part = girih.Partition.slice(net, torch.zeros(16), u, v, domain=(-0.0745, 0.0745), progress=False)
    seconds = time.process_time() - start
    assert part.patterns.shape == (len(part), 5760)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"R": len(part), "GB": peak, "cells": seconds}


def theirs(sizes: list[int]) -> dict[str, float]:
    import relucent

    net = girih.mlp(sizes, "relu", seed=0).float()
    start = time.perf_counter()
    complex_ = relucent.Complex(net)
    complex_.bfs()
    return {"R": len(complex_), "cells": time.perf_counter() - start}


def apart(which: str, sizes: tuple[int, ...], repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", which, json.dumps(sizes), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="up to a million cells and more")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slice", action="store_true", help="a plane through a convolutional decoder")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        which, sizes = options.one[0], json.loads(options.one[1])
        found = plane() if which == "slice" else ours(sizes, options.repeats) if which == "ours" else theirs(sizes)
        print(json.dumps(found))
        return
    if options.slice:
        r = apart("slice", (), 1)
        print(f"slice: {r['R']:,} cells in {r['cells']:.1f} s of processor time, peak {r['GB']:.2f} GB")
        return
    print(f"{torch.get_num_threads()} threads, median of {options.repeats}")
    print(f"{'network':>30} {'cells':>9} {'cells s':>8} {'adj. s':>7} {'maps s':>7} {'complete/s':>11} {'peak GB':>8}")
    for sizes in SIZES + (LARGE if options.large else []):
        r = apart("ours", sizes, options.repeats if sizes in SIZES else 1)
        rate = r["R"] / (r["cells"] + r["adjacency"] + r["maps"])
        print(
            f"{'-'.join(map(str, sizes)):>30} {r['R']:>9,} {r['cells']:>8.3f} {r['adjacency']:>7.3f} {r['maps']:>7.3f} "
            f"{rate:>11,.0f} {r['GB']:>8.2f}",
            flush=True,
        )
    if importlib.util.find_spec("relucent") is None:
        print("relucent is not installed: no peer timed")
        return
    for sizes in ((2, 8, 8, 2), (2, 16, 16, 2), (2, 32, 32, 2)):
        peer, own = apart("theirs", sizes, 1), apart("ours", sizes, options.repeats)
        ratio = peer["cells"] / (own["cells"] + own["adjacency"] + own["maps"])
        print(
            f"{'-'.join(map(str, sizes)):>30}: relucent {peer['R']:,.0f} cells in {peer['cells']:.2f} s; girih "
            f"{own['R']:,} complete, {ratio:.0f} times faster"
        )


if __name__ == "__main__":
    main()
