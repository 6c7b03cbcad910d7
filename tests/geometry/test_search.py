"""The search over images of cells, against every cell one after another."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import girih
from girih import geometry
from girih.geometry import Search, distance_to_span, nearest_in_cell
from networks_to_partition import make


def draws(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_invert(part: girih.Partition, x: torch.Tensor) -> torch.Tensor:
    """The least distance over all cells: a least-squares problem for every face of every cell."""
    A, b = (side.detach() for side in part.affine)
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for i in range(len(part)):
        H, h = part.halfspaces(i)
        z = torch.as_tensor(nearest_in_cell(A[i].numpy(), (x - b[i]).numpy(), H.numpy(), h.numpy()))
        best = torch.fmin(best, (z @ A[i].mT + b[i] - x).norm(dim=1))
    return best


CASES = {
    "leaky plane": lambda: girih.Partition(girih.mlp([2, 6, 6, 5], seed=1)),
    "leaky plane onto itself": lambda: girih.Partition(girih.mlp([2, 6, 6, 2], seed=2)),
    "folded plane": lambda: girih.Partition(girih.mlp([2, 6, 3], "abs", seed=0)),
    "dead units": lambda: girih.Partition(girih.mlp([2, 8, 5, 3], "relu", seed=4)),
    "plane to a line": lambda: girih.Partition(girih.mlp([2, 7, 1], seed=0)),
    "curve": lambda: girih.Partition(girih.mlp([1, 12, 12, 3], seed=0)),
    "flat curve": lambda: girih.Partition(girih.mlp([1, 6, 5, 2], "relu", seed=3)),
    "space": lambda: girih.Partition(girih.mlp([3, 5, 4], seed=0)),
    "dead space": lambda: girih.Partition(girih.mlp([3, 6, 4], "relu", seed=1)),
    "space to a plane": lambda: girih.Partition(girih.mlp([3, 5, 2], seed=0)),
    "space to a line": lambda: girih.Partition(girih.mlp([3, 4, 1], seed=0)),
    "many outputs": lambda: girih.Partition(girih.mlp([2, 7, 30, 40], seed=3)),
    "affine": lambda: girih.Partition(girih.mlp([2, 3], seed=0)),
    "one hyperplane": lambda: girih.Partition(girih.mlp([3, 1, 3], seed=0)),
    "box": lambda: girih.Partition(girih.mlp([2, 6, 4], seed=0), domain=(-0.7, 1.1)),
    "several pieces": lambda: girih.Partition(make("maxout", 2).double()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_nearest_of_all_cells(name):
    part = CASES[name]()
    on = part.trace(2.0 * draws(8, part.latent_dim)).detach()
    x = torch.cat((on, on + 0.5 * draws(8, on.shape[1], 1), 1e3 * draws(4, on.shape[1], 2)))
    found = geometry.invert(part, x)
    slow = slow_invert(part, x)
    torch.testing.assert_close(found.distance, slow, rtol=1e-9, atol=1e-9)
    assert all(int(c) in part.touching(z) for c, z in zip(found.cell, found.z, strict=True))


def test_a_large_partition_is_searched_in_parts():
    """2,126 cells: each row looks at a few of them, and the answer is that of all."""
    part = girih.Partition(girih.mlp([2, 32, 32, 5], seed=0))
    search, z = Search(part), draws(50, 2)
    x = part.trace(z).detach()
    rows = search.images.rows(x + 1e-3 * draws(50, 5, 1))
    row, _ = search.within(rows, torch.full((50,), 2e-3, dtype=torch.float64))
    assert torch.bincount(row, minlength=50).double().mean() < 0.01 * len(part)
    found = search.nearest(rows)
    assert (found.distance <= 2e-2).all()
    batches = [part.trace(z[some]) for some in search.batches(50)]
    torch.testing.assert_close(torch.cat(batches), x)
    A, b = (side.detach() for side in part.affine)
    affine = (A[found.piece] @ (search.images.origin[found.piece] + found.t)[:, :, None])[:, :, 0] + b[found.piece]
    torch.testing.assert_close((x + 1e-3 * draws(50, 5, 1) - affine).norm(dim=1), found.distance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("sizes", "activation"), [([2, 7, 3], "relu"), ([2, 6, 2], "leaky_relu"), ([3, 5, 5], "abs")])
def test_bounds_on_unbounded_cells(sizes, activation):
    part = girih.Partition(girih.mlp(sizes, activation, seed=1))
    search = Search(part)
    y = search.images.rows(torch.cat((draws(30, sizes[-1]), 20.0 * draws(30, sizes[-1], 1)))).y
    rows = search.images.rows(torch.zeros(1, sizes[-1]))._replace(y=y, far=torch.zeros(len(y)))
    bound = search.cones.gap(rows)
    rng = np.random.default_rng(0)
    tight = 0
    for k, piece in enumerate(search.cones.piece.tolist()):
        corners, rays = part.vertices(piece), part.rays(piece)
        share = torch.as_tensor(rng.dirichlet(np.ones(len(corners)), 200))
        reach = torch.as_tensor(rng.exponential(5.0, (200, len(rays))))
        z = share @ corners + reach @ rays
        t = z - search.images.origin[piece]
        image = search.images.value[piece] + t @ search.images.slope[piece].mT
        distance = torch.cdist(y, image).amin(1)
        assert (bound[:, k] <= distance + 1e-9).all()
        tight += int((bound[:, k] > 0.3 * distance).sum())
    assert tight > 0.1 * bound.numel()


def meets(part: girih.Partition, A: np.ndarray, b: np.ndarray, i: int, j: int) -> bool:
    (H, h), (H2, h2) = (tuple(side.numpy() for side in part.halfspaces(k)) for k in (i, j))
    S = A.shape[2]
    inner = np.zeros((len(h) + len(h2), 2 * S))
    inner[: len(h), :S], inner[len(h) :, S:] = H, H2
    answer = linprog(
        np.zeros(2 * S),
        A_ub=inner,
        b_ub=np.concatenate((h, h2)),
        A_eq=np.concatenate((A[i], -A[j]), 1),
        b_eq=b[j] - b[i],
        bounds=(None, None),
    )
    return answer.status == 0


@pytest.mark.parametrize(("sizes", "activation"), [([2, 5, 2], "leaky_relu"), ([2, 4, 3], "abs"), ([1, 9, 1], "abs")])
def test_no_pair_of_cells_that_meet_is_lost(sizes, activation):
    part = girih.Partition(girih.mlp(sizes, activation, seed=3))
    found = {tuple(pair) for pair in Search(part).meeting(1e-8).tolist()}
    A, b = (side.detach().numpy() for side in part.affine)
    pairs = [(i, j) for i in range(len(part)) for j in range(i + 1, len(part))]
    met = {pair for pair in pairs if meets(part, A, b, *pair)}
    assert met <= found and len(found) <= len(pairs)


def test_pairs_far_apart_are_left_out():
    part = girih.Partition(girih.mlp([2, 24, 24, 5], seed=0))
    pairs = Search(part).meeting(1e-8)
    assert {tuple(pair) for pair in part.neighbors.tolist()} <= {tuple(pair) for pair in pairs.tolist()}
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(pairs) < 0.1 * len(part) * (len(part) - 1) / 2


def test_distances_between_planes():
    M, gap = draws(40, 5 * 4).reshape(40, 5, 4), draws(40, 5, 1)
    M[::4, :, 3] = M[::4, :, 2]  # without full rank
    slow = (gap - (M @ torch.linalg.pinv(M) @ gap[:, :, None])[:, :, 0]).norm(dim=1)
    quick = distance_to_span(M, gap)
    assert (quick <= slow + 1e-12).all()
    torch.testing.assert_close(quick[1::4], slow[1::4])
    assert (distance_to_span(M[:, :4], gap[:, :4]) == 0.0).all()


def test_a_dead_cell_of_three_latents_counts_once():
    net = girih.mlp([3, 3, 4], "relu", seed=0)
    part = girih.Partition(net)
    x = net(part.interior).detach()
    found = geometry.preimages(part, x)
    torch.testing.assert_close(net(found.latent).detach(), x[found.row], rtol=1e-8, atol=1e-8)
    flat = geometry.intrinsic_dimension(net).values < 3
    assert flat.any() and (torch.bincount(found.row[~found.degenerate], minlength=len(x))[~flat] == 1).all()
    dead = found.degenerate & flat[found.row] & (found.cell == found.row)
    assert torch.equal(found.row[dead], flat.nonzero()[:, 0])
