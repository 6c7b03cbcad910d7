"""Gaussian masses of many sets in one call, beside SciPy's `multivariate_normal.cdf` in the same run.

    python benchmarks/masses.py [--boxes 100000] [--polytopes 10000] [--threads 1]

Boxes are correlated, in the bulk or with their nearest corner some deviations out. Errors are of the logarithm, against
girih's form by slices, in which nothing cancels and which shares no formula with the one that is timed; SciPy's count
where it says more than 0. "zeros" are boxes of which SciPy says that they have no mass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import multivariate_normal

from girih.gaussian import box_log_mass, from_halfspaces, polytope_log_mass, polytope_moments

_CHECKED = 200


def timed(function: Callable[[], object]) -> float:
    """The least processor time of three runs, after one that warms up."""
    function()
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def by_slices(lower: np.ndarray, upper: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Log-masses of boxes, slowly."""
    S = lower.shape[1]
    L = np.linalg.cholesky(covariance)
    H = np.concatenate((np.eye(S), -np.eye(S))) @ L
    shapes, _ = from_halfspaces([(H, np.concatenate((b, -a))) for a, b in zip(lower, upper, strict=True)])
    return shapes.log_mass("slices").numpy()


def boxes(S: int, count: int, away: float) -> None:
    """Time boxes of S dimensions, `away` deviations out."""
    rng = np.random.default_rng(S)
    lower = rng.normal(size=(count, S)) + away
    upper = lower + rng.exponential(size=(count, S))
    covariance = 0.7 * np.eye(S) + 0.3
    ours = timed(lambda: box_log_mass(lower, upper, covariance=covariance))
    few = max(1, count // 50)
    law = multivariate_normal(np.zeros(S), covariance)
    theirs = timed(lambda: law.cdf(upper[:few], lower_limit=lower[:few])) * count / few
    at = slice(0, _CHECKED)
    exact = by_slices(lower[at], upper[at], covariance)
    error = np.abs(box_log_mass(lower[at], upper[at], covariance=covariance).numpy() - exact).max()
    cdf = law.cdf(upper[at], lower_limit=lower[at])
    some = cdf > 0.0
    worst = np.abs(np.log(cdf[some]) - exact[some]).max() if some.any() else float("nan")
    print(
        f"{count:7,} boxes, S = {S}, {away:g} out: girih {ours:.2f} s, error {error:.0e}; "
        f"SciPy {theirs:.2f} s, error {worst:.0e}, zeros {np.mean(~some):.0%}",
        flush=True,
    )


def polytopes(S: int, sides: int, count: int) -> None:
    """Time polytopes in general position, and what their gradients and moments cost."""
    rng = np.random.default_rng(sides)
    H = torch.as_tensor(rng.normal(size=(count, sides, S))).requires_grad_()
    h = torch.as_tensor(np.abs(rng.normal(size=(count, sides))) + 0.3).requires_grad_()
    with torch.no_grad():
        mass = timed(lambda: polytope_log_mass(H, h))
    gradient = timed(lambda: torch.autograd.grad(polytope_log_mass(H, h).sum(), (H, h)))
    moments = timed(lambda: polytope_moments(H, h))
    print(
        f"{count:7,} polytopes of {sides} half-spaces, S = {S}: log-mass {mass:.2f} s, with gradients "
        f"{gradient:.2f} s, moments {moments:.2f} s",
        flush=True,
    )


def main() -> None:
    """Time all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=100_000)
    parser.add_argument("--polytopes", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for S, away in ((2, 0.0), (2, 4.0), (3, 0.0), (3, 4.0)):
        boxes(S, options.boxes if S == 2 else options.polytopes, away)
    for S, sides in ((2, 6), (3, 6), (3, 10)):
        polytopes(S, sides, options.polytopes)


if __name__ == "__main__":
    main()
