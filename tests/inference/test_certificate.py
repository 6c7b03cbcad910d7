"""The certificate: every bound of the search bounds what it says, and `left_out` what was left out of p(x).

The twin is `tol=0`, which visits every piece; `test_planes_and_spaces` compares that one with quadrature.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn import datasets
from torch import Tensor

import girih
from effort import LONG, cases
from girih.inference import chunks
from girih.inference.bounded import gap_from
from girih.inference.certificate import affine_bound, select_pairs, unbounded_bounds
from girih.inference.polytope_posterior import find_peaks
from twins import noise_of_kind

ROUNDING = 1e-12  # of a logarithm, to its size


def random_model(S: int, seed: int, tol: float = 1e-10) -> girih.DGN:
    """A small network of one or two layers, noise of any kind from 1e-6 to 1e3, and in half of the cases a prior."""
    rng = np.random.default_rng((S, seed))
    size = int(rng.choice([1, 2, 3, 6]))
    widths = [int(rng.integers(2, 9))] if rng.random() < 0.6 else [int(rng.integers(2, 6)), int(rng.integers(2, 5))]
    if S == 3:
        widths = [min(width, 3 if len(widths) == 1 else 2) for width in widths]
    net = girih.mlp([S, *widths, size], activation=("relu", "leaky_relu", "abs")[seed % 3], seed=seed)
    kind = ("scalar", "diagonal", "full")[rng.integers(3)]
    root = np.eye(S) * np.exp(0.3 * rng.normal()) + 0.3 * np.tril(rng.normal(size=(S, S)))
    prior = root @ root.T if rng.random() < 0.5 else None
    return girih.DGN(net, noise=noise_of_kind(kind, 10.0 ** rng.uniform(-6, 3), size, seed), prior=prior, tol=tol)


def far_rows(dgn: girih.DGN, count: int, seed: int) -> Tensor:
    """Rows that latents 1 to 50, and 1,000, prior deviations out explain, and 1 to 100 noise deviations from there."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, dgn.latent_dim))
    radius = np.where(np.arange(count) % 8 == 7, 1e3, 10.0 ** rng.uniform(0.0, 1.7, count))
    z = torch.as_tensor(z / np.linalg.norm(z, axis=1, keepdims=True) * radius[:, None])
    noise = dgn.noise.detach()
    deviation = (noise.diagonal() if noise.ndim == 2 else noise).mean().sqrt()
    away = rng.normal(size=(count, dgn.output_dim)) * 10.0 ** rng.integers(0, 3, size=(count, 1))
    with torch.no_grad():
        x = dgn.net(z) + deviation * torch.as_tensor(away)
    if dgn.output_dim > 1 and seed % 3 == 0:
        x[torch.as_tensor(rng.random(x.shape) < 0.3)] = torch.nan
    return x


def assert_certified(dgn: girih.DGN, x: Tensor) -> None:
    """`|log_prob - log_prob(tol=0)| <= left_out`, up to the rounding of log p."""
    every = girih.DGN(dgn.net, noise=dgn.noise.detach(), prior=dgn.prior.detach(), tol=0.0)
    with torch.no_grad():
        found, right = dgn().evidence(x), every().log_prob(x)
    assert (found.left_out <= dgn.tol).all()
    error = (found.log_prob - right).abs()
    slack = 1e-8 + ROUNDING * right.abs()
    assert (error <= found.left_out + slack).all(), (error - found.left_out - slack).max()


def test_a_posterior_far_out_on_an_unbounded_cell():
    """The row that was 21 nats off: the prior was counted twice."""
    net, noise = girih.mlp([2, 8, 6], activation="leaky_relu", seed=951744), 0.059358644948892585
    x = [1.6800603489959156, 2.864726003093513, 6.478106575812865, -1.419455579715033, 17.545654172526817]
    x = torch.tensor([[*x, 3.576335820568047]], dtype=torch.float64)
    dgn = girih.DGN(net, noise=noise)
    with torch.no_grad():
        found = dgn().evidence(x)
    assert abs(found.log_prob.item() + 490.336302113) < 1e-8  # by `simplices.quadrature`, too
    assert found.left_out.item() <= 1e-10
    assert_certified(dgn, x)


@pytest.mark.fuzz
@pytest.mark.parametrize(("S", "models", "count"), [(2, cases(10, 900), 24), (3, cases(2, 250), 8)])
def test_left_out_bounds_the_error_far_out(S, models, count):
    for seed in range(models):
        dgn = random_model(S, seed, tol=(1e-10, 1e-4, 1e-1)[seed % 3 if seed % 2 else 0])
        assert_certified(dgn, far_rows(dgn, count, seed))


@pytest.mark.fuzz
def test_many_rows_far_out_on_a_line_are_the_same_as_one_at_a_time():
    """On a line negligible cells are only left out of large batches."""
    for seed in range(cases(2, 40)):
        dgn = random_model(1, seed)
        x = far_rows(dgn, 1024, seed)
        with torch.no_grad():
            together = dgn().evidence(x)
            apart = torch.cat([dgn().log_prob(part) for part in x.split(8)])
        assert ((together.log_prob - apart).abs() <= together.left_out + 1e-8 + ROUNDING * apart.abs()).all()


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore:EM did not converge")
def test_rows_of_tables_scaled_up():
    """Fitted models, and rows of their tables 1 to 100 times as large."""
    tables = (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer)
    rng = np.random.default_rng(0)
    for load in tables[: cases(1, 3)]:
        X = load().data
        X = (X - X.mean(0)) / X.std(0)
        est = girih.DGNEstimator(latent_dim=2, hidden=(8,), max_iter=cases(5, 100), n_init=1, random_state=0).fit(X)
        rows = X[rng.integers(len(X), size=cases(40, 2000))]
        assert_certified(est.dgn_, torch.as_tensor(rows * 10.0 ** rng.uniform(0.0, 2.0, size=(len(rows), 1))))


# Each bound against the number that it bounds


def geometry(model):
    """The pieces with the maps of the model on them."""
    return model.cells.region.geometry(model)


def bounds(model, rows) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, `log p(x, z in ...)` of every row and piece or node, and its upper bound."""
    g, count = geometry(model), len(rows.x)
    pairs = select_pairs(g, rows)
    shape, root = g.shape(pairs.gaussian)
    log_mass = shape.log_masses(pairs.piece, root, pairs.gaussian.centre)
    exact = (pairs.log_scale + log_mass).view(count, g.pieces.count)
    yield "unbounded", exact[:, g.unbounded], unbounded_bounds(g, rows)
    anchor = g.nearest(pairs.piece, pairs.gaussian)
    # a lower bound: the other way round
    yield "least", g.least_log_mass(pairs.piece, pairs.gaussian, anchor), log_mass
    affine = affine_bound(g, pairs.gaussian, pairs.piece)
    yield "affine", exact, affine.view_as(exact)
    yield "nearest", exact, (affine - 0.5 * anchor.square().sum(1)).view_as(exact)
    constant = (rows.constant - 0.5 * rows.far2).expand(count)
    gap, inside = gap_from(g, rows), exact[:, g.tree.piece]
    for level in g.tree.levels if len(g.tree.piece) else ():
        nodes = len(level.log_mass)
        if level is not g.tree.levels[0]:
            ends = zip(level.start.tolist(), level.length.tolist(), strict=True)
            inside = torch.stack([inside[:, k : k + size].logsumexp(1) for k, size in ends], 1)
        row, node = torch.arange(count).repeat_interleave(nodes), torch.arange(nodes).repeat(count)
        value = constant[row] + level.log_mass[node] - 0.5 * gap(row, level, node)[0]
        yield "slabs", inside, value.view(count, nodes)


@pytest.mark.fuzz
@pytest.mark.parametrize(("S", "models", "count"), [(2, cases(15, 3000), 8), (3, cases(3, 300), 2)])
def test_bounds_of_pairs(S, models, count):
    pairs = 0
    for seed in range(models):
        dgn = random_model(S, 10_000 + seed, tol=0.0)
        model = dgn.model()
        for _, rows in chunks(model, far_rows(dgn, count, seed)):
            for name, exact, bound in bounds(model, rows):
                pairs += exact.numel()
                excess = exact - bound - ROUNDING * (1.0 + bound.abs() if name == "least" else 1.0 + exact.abs())
                assert not (excess > 0).any(), (name, seed, excess.max())
    assert pairs > models * count


@pytest.mark.fuzz
@pytest.mark.parametrize(("S", "models"), [(2, cases(10, 2000)), (3, cases(2, 200))])
def test_bounds_on_prior_masses_and_errors_of_raw_ones(S, models):
    for seed in range(models):
        dgn = random_model(S, 20_000 + seed, tol=0.0)
        with torch.no_grad():  # most cells far out in the prior
            dgn.net[0].bias.mul_(10.0 ** (seed % 3))
        model = dgn.model()
        pieces = geometry(model).pieces
        every = torch.arange(pieces.count), None, -pieces.origin
        exact = pieces.log_masses(*every)
        assert (exact <= pieces.log_mass + ROUNDING * (1.0 + exact.abs())).all()
        for _, rows in chunks(model, far_rows(dgn, 4, seed)):
            g = geometry(model)
            pairs = select_pairs(g, rows)
            shape, root = g.shape(pairs.gaussian)
            none = g.nearest(pairs.piece, pairs.gaussian).norm(dim=1) > 9.0  # a mass below 1e-18
            raw = shape.raw_masses(pairs.piece, root, pairs.gaussian.centre)
            assert (raw[none] <= pairs.raw_error[none]).all()


@pytest.mark.fuzz
@pytest.mark.parametrize(("S", "models"), [(2, cases(10, 500)), (3, cases(3, 100))])
def test_peaks_are_the_highest_of_all_pieces(S, models):
    for seed in range(models):
        dgn = random_model(S, 30_000 + seed, tol=0.0)
        model = dgn.model()
        for _, rows in chunks(model, far_rows(dgn, 8, seed)):
            g = geometry(model)
            pairs = select_pairs(g, rows)
            height = pairs.gaussian.base - 0.5 * g.nearest(pairs.piece, pairs.gaussian).square().sum(1)
            best = height.view(len(rows.x), -1).amax(1)
            factor = torch.linalg.cholesky(model.prior)
            z = find_peaks(geometry(model), rows) @ factor.mT
            with torch.no_grad():
                h = dgn.net[:-1](z)
            off = (
                rows.y - (rows.reduced @ h[:, :, None])[:, :, 0]
                if rows.observed is not None
                else rows.y - h @ rows.reduced.mT
            )
            u = torch.linalg.solve_triangular(factor, z.mT, upper=False).mT
            there = rows.constant - 0.5 * (rows.far2 + off.square().sum(1) + u.square().sum(1))
            assert ((there - best).abs() <= 1e-8 * (1.0 + best.abs())).all()


@pytest.mark.fuzz
@pytest.mark.parametrize("S", [2, 3] if LONG else [2])
@pytest.mark.parametrize("size", [1e6, 1e9, 1e12, 1e100, 1e160, 1e300])
def test_rows_of_any_size_give_a_number_or_a_typed_error(S, size):
    dgn = random_model(S, 5)
    x = far_rows(dgn, 4, 1) * size
    try:
        with torch.no_grad():
            found = dgn().evidence(x)
    except girih.errors.NonFiniteError:
        assert size >= 1e100
        return
    assert torch.isfinite(found.log_prob).all()
    assert (found.left_out <= dgn.tol).all()
    assert_certified(dgn, x)


def test_cells_without_area_do_not_spoil_the_bounds():
    """Three kinks through one point, up to rounding, and kinks that meet 1e9 away."""
    net = girih.mlp([2, 5, 3], seed=3)
    with torch.no_grad():
        point = torch.tensor([0.3, -0.7], dtype=torch.float64)
        net[0].bias[:3] = -(net[0].weight[:3] @ point) + torch.tensor([0.0, 1e-16, -1e-15])
        net[0].weight[4] = net[0].weight[3] * (1.0 + torch.tensor([1e-9, -1e-9]))
    dgn = girih.DGN(net, noise=0.01)
    pieces = geometry(dgn.model()).pieces
    assert torch.isfinite(pieces.log_mass).all()
    assert_certified(dgn, far_rows(dgn, 40, 2))
