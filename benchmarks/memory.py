"""Peak memory and time of a fit at N = 100,000, D = 784, R = 50: the data alone are 0.63 GB.

python benchmarks/memory.py [--rows 100000]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings

import numpy as np

import girih
from estep import network_with_cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    net = network_with_cells(50, [49], 784)
    dgn = girih.DGN(net, noise=0.1)
    X = np.empty((rows, 784))
    for start in range(0, rows, 10_000):
        X[start : start + 10_000] = dgn().sample((min(10_000, rows - start),), seed=start).numpy()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    warnings.simplefilter("ignore")
    start_time = time.perf_counter()
    result = girih.em.fit_em(dgn, X, n_init=0, max_iter=3)
    fit = time.perf_counter() - start_time
    start_time = time.perf_counter()
    dgn().log_prob(X)
    density = time.perf_counter() - start_time
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps(
            {
                "N": rows,
                "D": 784,
                "R": len(dgn.partition),
                "data_GB": X.nbytes / 2**30,
                "before_fit_GB": before,
                "peak_GB": peak,
                "seconds_per_EM_iteration": fit / result.steps,
                "seconds_log_prob": density,
                "nll": result.curve.tolist(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
