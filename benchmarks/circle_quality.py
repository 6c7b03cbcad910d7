"""Training NLL of the default fit on the noisy circle, width 8 and 32, ten seeds of data and of starts.

python benchmarks/circle_quality.py [--seeds 10]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import girih


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    warnings.simplefilter("ignore")
    report: dict[str, object] = {}
    for width in (8, 32):
        rows = []
        for seed in range(seeds):
            data = girih.datasets.load("circle", n=256, seed=seed)
            start = time.perf_counter()
            est = girih.DGNEstimator(hidden=(width,), random_state=seed).fit(data.X)
            test = girih.datasets.load("circle", n=4096, seed=1000 + seed).X
            rows.append(
                {
                    "seed": seed,
                    "train_nll": -est.score(data.X),
                    "test_nll": -est.score(test),
                    "iterations": est.n_iter_,
                    "seconds": round(time.perf_counter() - start, 2),
                    "nll_rises": int((est.nll_curve_[1:] > est.nll_curve_[:-1]).sum()),
                }
            )
        report[f"width {width}"] = {"worst_train_nll": max(r["train_nll"] for r in rows), "runs": rows}
    report["entropy_of_the_truth"] = girih.datasets.load("circle").entropy
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
