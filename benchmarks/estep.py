"""E-step speed: ours against a Python loop that does what the published implementation does.

    python benchmarks/estep.py [--quick]

Both get the same weights and rows in one process; medians over several runs, with the largest difference of the
results beside the time. The floor is two `log_ndtr` for each pair of a row and a cell. A second table shows how our
time grows with N, R and D.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from scipy.stats import multivariate_normal, norm

import girih
from girih.inference import Model, accumulate, chunks
from girih.inference.line import DenseMoments
from timing import seconds

CASES = {"toy": (256, 9, 2, [8]), "image": (200, 22, 784, [8, 16])}


def network_with_cells(cells: int, hidden: list[int], output_dim: int) -> torch.nn.Module:
    """A random leaky ReLU network whose latent partition has exactly this many cells."""
    for seed in range(10_000):
        net = girih.mlp([1, *hidden, output_dim], seed=seed)
        if len(girih.Partition(net)) == cells:
            return net
    raise RuntimeError(f"no network of widths {hidden} with {cells} cells found")


def published_style(part: girih.Partition, x: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """E-step with moments, one (row, cell) pair at a time through scipy.stats; prior variance 1."""
    A, b = (t.detach().numpy() for t in part.affine)
    lower, upper = (t.numpy() for t in part.bounds)
    n, cells, dim = len(x), len(b), x.shape[1]
    e0, e1, e2 = (np.zeros((n, cells)) for _ in range(3))
    for r in range(cells):
        a = A[r, :, 0]
        variance = 1.0 / (1.0 + a @ a / noise)
        density = multivariate_normal.logpdf(x, b[r], noise * np.eye(dim) + np.outer(a, a), allow_singular=True)
        for i in range(n):
            mean = variance * (a @ (x[i] - b[r])) / noise
            scale = np.sqrt(variance)
            low, high = (lower[r] - mean) / scale, (upper[r] - mean) / scale
            mass = norm.sf(low) - norm.sf(high)
            first = norm.pdf(low) - norm.pdf(high)
            second = mass
            if np.isfinite(low):
                second += low * norm.pdf(low)
            if np.isfinite(high):
                second -= high * norm.pdf(high)
            joint = np.exp(density[i])
            e0[i, r] = joint * mass
            e1[i, r] = joint * (scale * first + mean * mass)
            e2[i, r] = joint * (variance * second + 2 * mean * scale * first + mean**2 * mass)
    p = e0.sum(1) + 1e-42
    return np.log(p), np.stack((e0, e1, e2)) / p[:, None]


def ours(model: Model, x: torch.Tensor) -> list[tuple[torch.Tensor, DenseMoments]]:
    """log p(x), and mass, mean and variance of every (row, cell) pair."""
    found = [model.cells.region.expect(model, rows) for _, rows in chunks(model, x)]
    return [(log_p, moments) for log_p, _, moments in found]


def raw_moments(model: Model, parts: list[tuple[torch.Tensor, DenseMoments]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as log p(x) and E[1], E[z], E[z^2] on the cells, as the loop gives them."""
    moments = []
    for _, e in parts:
        z = model.cells.origin[:, 0] + e.mean
        moments.append(torch.stack((e.e0, e.e0 * z, e.e0 * (z.square() + e.variance))))
    return torch.cat([log_p for log_p, _ in parts]), torch.cat(moments, 1)


def model_of(net: torch.nn.Module, noise: float) -> Model:
    return girih.DGN(net, noise=noise).model()


def compare(quick: bool) -> dict[str, dict[str, float]]:
    results = {}
    for name, (n, cells, dim, hidden) in CASES.items():
        net = network_with_cells(cells, hidden, dim)
        noise = 0.05  # at D = 784 and a larger noise the loop's densities fall below its 1e-42
        dgn = girih.DGN(net, noise=noise)
        x = dgn().sample((n,), seed=0)
        part, model, weight = dgn.partition, dgn.model(), torch.ones(n, dtype=torch.float64)
        loop = seconds(lambda: published_style(part, x.numpy(), noise), 1 if quick else 3)  # noqa: B023
        moments = seconds(lambda: ours(model, x), 20 if quick else 200)  # noqa: B023
        full = seconds(lambda: accumulate(model, x, weight), 20 if quick else 200)  # noqa: B023
        ends = torch.randn(2, n, cells, dtype=torch.float64)
        floor = seconds(lambda: torch.special.log_ndtr(ends), 20 if quick else 200)  # noqa: B023
        their_log_p, theirs = published_style(part, x.numpy(), noise)
        our_log_p, mine = raw_moments(model, ours(model, x))
        results[name] = {
            "N": n,
            "R": cells,
            "D": dim,
            "loop_seconds": loop,
            "estep_seconds": moments,
            "estep_with_statistics_seconds": full,
            "floor_seconds": floor,
            "times_the_floor": moments / floor,
            "ratio": loop / moments,
            "ratio_with_statistics": loop / full,
            "largest_difference_log_p": float((our_log_p - torch.as_tensor(their_log_p)).abs().max()),
            "largest_difference_moments": float((mine - torch.as_tensor(theirs)).abs().max()),
        }
    return results


def scaling(quick: bool) -> list[dict[str, float]]:
    """Time of the E-step with statistics as one size grows and the others stay."""
    rows = []
    base = {"N": 2000, "R": 17, "D": 50}
    grid = {"N": (1000, 2000, 4000, 8000), "R": (9, 17, 33, 65), "D": (50, 100, 200, 400, 800)}
    for key, values in grid.items():
        for value in values[:2] if quick else values:
            size = base | {key: value}
            net = network_with_cells(size["R"], [size["R"] - 1], size["D"])
            if key == "R":  # the width sets R for one hidden layer; keep the reduced dimension out of the picture
                net = network_with_cells(size["R"], [64], size["D"]) if size["R"] == 65 else net
            dgn = girih.DGN(net, noise=0.1)
            x, model = dgn().sample((size["N"],), seed=0), dgn.model()
            weight = torch.ones(len(x), dtype=torch.float64)
            rows.append({**size, "seconds": seconds(lambda: accumulate(model, x, weight), 5 if quick else 15)})  # noqa: B023
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    print(
        json.dumps({"compare": compare(quick), "scaling": scaling(quick), "threads": torch.get_num_threads()}, indent=2)
    )


if __name__ == "__main__":
    main()
