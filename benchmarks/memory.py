"""Peak memory and time of a fit: of rows in memory, or of a stream that is longer than it.

python benchmarks/memory.py [--rows 100000]: N = 100,000, D = 784, R = 50; the data alone are 0.63 GB.
python benchmarks/memory.py --stream table [--rows 1000000], or --stream dgn: 20 columns, made block by block. Few
settings are compared on the sample, which costs the same for any number of rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from collections.abc import Iterator

import numpy as np
import torch

import girih
from estep import network_with_cells
from girih.tables import choice

COLUMNS, BLOCK = 20, 65_536


class Made:
    """Rows of 20 related columns, a twentieth of them missing, made anew in each pass."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.passes = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.passes += 1
        loads = np.random.default_rng(0).normal(size=(4, COLUMNS))
        for start in range(0, self.rows, BLOCK):
            rng = np.random.default_rng([1, start])
            n = min(BLOCK, self.rows - start)
            t = rng.normal(size=(n, 2))
            x = np.concatenate((t, t**2), 1) @ loads + 0.5 * rng.normal(size=(n, COLUMNS))
            x[rng.random(n) < 0.05, int(rng.integers(COLUMNS))] = np.nan
            yield x


def peak() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def stream(kind: str, rows: int) -> dict[str, object]:
    """A fit to a stream."""
    made, before, start = Made(rows), peak(), time.process_time()
    if kind == "table":
        choice._SIZES, choice._COSTLY = (1, 4), 0.0
        table = girih.TableModel(random_state=0).fit(made)
        numbers = {"held_out": table.held_out_score_, "members": len(table.members_)}
    else:
        est = girih.DGNEstimator(noise="diagonal", n_init=1, max_iter=10, random_state=0).fit(made)
        numbers = {"nll": float(est.nll_curve_[-1]), "iterations": est.n_iter_}
    seconds, passes = time.process_time() - start, made.passes
    made_in = time.process_time()
    for _ in made:
        pass
    return {
        "N": rows,
        "D": COLUMNS,
        "data_GB": rows * COLUMNS * 8 / 2**30,
        "before_fit_GB": before,
        "peak_GB": peak(),
        "passes": passes,
        "processor_seconds": seconds,
        "of_them_making_rows": passes * (time.process_time() - made_in),
        **numbers,
    }


def in_memory(rows: int) -> dict[str, object]:
    """A fit of images."""
    net = network_with_cells(50, [49], 784)
    dgn = girih.DGN(net, noise=0.1)
    X = np.empty((rows, 784))
    for start in range(0, rows, 10_000):
        X[start : start + 10_000] = dgn().sample((min(10_000, rows - start),), seed=start).numpy()
    before = peak()
    start_time = time.perf_counter()
    result = girih.em.fit_em(dgn, X, n_init=0, max_iter=3)
    fit = time.perf_counter() - start_time
    start_time = time.perf_counter()
    dgn().log_prob(X)
    return {
        "N": rows,
        "D": 784,
        "R": len(dgn.partition),
        "data_GB": X.nbytes / 2**30,
        "before_fit_GB": before,
        "peak_GB": peak(),
        "seconds_per_EM_iteration": fit / result.steps,
        "seconds_log_prob": time.perf_counter() - start_time,
        "nll": result.curve.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--stream", choices=("table", "dgn"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = stream(options.stream, options.rows) if options.stream else in_memory(options.rows)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
