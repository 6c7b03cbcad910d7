"""The numerics contract: log p(x) and posterior moments against quadrature."""

import math
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import girih
from twins import LogJoint, f64, linear, noise_of_kind, quadrature, rows_near_and_far

ACTIVATIONS = ("relu", "leaky_relu", "abs")
DISTANCES = (3.0, 30.0, 100.0)


def make(depth: int, size: int, kind: str, variance: float, seed: int) -> girih.DGN:
    rng = np.random.default_rng(seed)
    widths = rng.integers(2, 9, size=depth).tolist()
    net = girih.mlp([1, *widths, size], activation=ACTIVATIONS[seed % 3], seed=seed)
    return girih.DGN(net, noise=noise_of_kind(kind, variance, size, seed), prior=math.exp(rng.normal()))


def assert_exact(dgn: girih.DGN, x: torch.Tensor) -> None:
    """`log p(x)` to 1e-11, and moments as well as the rounding of x and of positions lets them be known."""
    knots = dgn.partition.breakpoints
    exact = [quadrature(LogJoint(dgn.net, dgn.noise.detach(), dgn.prior.item(), row), knots) for row in x]
    log_prob, mean, variance, entropy = torch.stack(
        [torch.stack((q.log_prob, q.mean, q.variance, q.entropy)) for q in exact]
    ).T
    with torch.no_grad():
        assert ((dgn().log_prob(x) - log_prob).abs() <= 1e-11 * log_prob.abs().clamp(min=1.0)).all()
    post = dgn.posterior(x)
    blur = 1e-10 + 3e-14 * (log_prob.abs() + mean.abs() / variance.sqrt())
    assert ((post.mean[:, 0] - mean).abs() <= blur * variance.sqrt()).all()
    assert ((post.covariance[:, 0, 0] - variance).abs() <= blur * variance).all()
    assert ((post.entropy() - entropy).abs() <= blur).all()


CASES = [
    (depth, size, kind, variance)
    for (depth, size, kind), variance in zip(
        product((1, 2, 3, 4), (1, 2, 10, 100), ("scalar", "diagonal", "full")),
        np.random.default_rng(0).permutation(np.logspace(-6, 3, 48)),
        strict=True,
    )
]


@pytest.mark.parametrize(("number", "case"), list(enumerate(CASES)))
def test_random_models(number, case):
    for seed in (number, number + 100):
        dgn = make(*case, seed)
        assert_exact(dgn, rows_near_and_far(dgn, DISTANCES, seed))


@pytest.mark.parametrize("variance", [1e-6, 1e3])
@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_extreme_noise(kind, variance):
    for seed in range(3):
        dgn = make(2, 3, kind, variance, seed)
        assert_exact(dgn, rows_near_and_far(dgn, DISTANCES, seed))


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("size", [2, 10])
def test_missing_entries(kind, size):
    for seed in range(4):
        dgn = make(1 + seed % 3, size, kind, 10.0 ** (2 - 2 * seed), seed)
        x = rows_near_and_far(dgn, DISTANCES, seed)
        x[0, 0] = x[2, -1] = x[3, :-1] = x[4, 1:] = torch.nan
        assert_exact(dgn, x)


def test_rows_with_every_entry_missing_have_density_one_and_the_prior_as_posterior():
    dgn = girih.DGN(girih.mlp([1, 8, 3], seed=0), noise=0.1, prior=2.0)
    x = torch.full((2, 3), torch.nan, dtype=torch.float64)
    x[1] = 0.3
    post = dgn.posterior(x)
    assert abs(dgn().log_prob(x)[0].item()) < 1e-13
    assert abs(post.mean[0].item()) < 1e-13
    assert post.covariance[0].item() == pytest.approx(2.0, rel=1e-12)
    assert post.entropy()[0].item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 2.0), rel=1e-12)


def test_a_posterior_far_outside_the_prior():
    """A flat end of the manifold: posteriors lie 15 to 400 prior deviations out."""
    net = nn.Sequential(
        linear([[1.0], [-1.0]], [0.0, 0.0]), nn.LeakyReLU(0.1), linear([[0.02, 0.0], [0.0, 1.0]], [0, 0])
    )
    dgn = girih.DGN(net, noise=1e-5)
    x = f64([[3.0, -1.0], [8.0, -40.0], [-0.2, 100.0]])
    assert dgn.posterior(x).mean.abs().min() > 15
    assert_exact(dgn, x)


@pytest.mark.parametrize("variance", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("distance", [3.0, 30.0, 100.0])
def test_rows_in_the_normal_cone_of_a_kink(variance, distance):
    """`g(z) = (z, |z - 0.5|)` seen from below: every cell's Gaussian has its mean outside the cell."""
    net = nn.Sequential(linear([[1.0], [-1.0]], [-0.5, 0.5]), nn.ReLU(), linear([[1.0, -1.0], [1.0, 1.0]], [0.5, 0.0]))
    dgn = girih.DGN(net, noise=variance)
    x = f64([[0.5, 0.0]]) + distance * f64([[0.0, -1.0], [0.3, -1.0], [-0.8, -1.0]])
    assert torch.allclose(dgn.posterior(x).mode, f64(0.5), rtol=1e-12)
    assert_exact(dgn, x)


@pytest.mark.parametrize("x", [(0.3, -2.0), (0.0, -40.0), (50.0, 1.0)])
def test_the_quadrature_itself_against_mpmath(x):
    """`g(z) = (z, |z|)` with unit prior, in 60 digits."""
    variance = 1e-3
    net = nn.Sequential(linear([[1.0], [1.0], [-1.0]], [0, 0, 0]), nn.ReLU(), linear([[1, 0, -1], [0, 1, 1]], [0, 0]))
    ours = quadrature(LogJoint(net, f64(variance), 1.0, f64(x)), f64([0.0])).log_prob.item()
    with mpmath.workdps(60):
        total = mpmath.mpf(0)
        a, b = map(mpmath.mpf, x)
        v = mpmath.mpf(variance)
        for sign in (-1, 1):  # on z = sign * t, t > 0: x - g = (a - sign t, b - t)
            precision = 2 / v + 1
            centre = (sign * a + b) / v / precision
            peak = -(a * a + b * b) / (2 * v) + precision * centre**2 / 2
            mass = mpmath.sqrt(mpmath.pi / (2 * precision)) * mpmath.erfc(-centre * mpmath.sqrt(precision / 2))
            total += mpmath.exp(peak) * mass
        exact = float(mpmath.log(total / ((2 * mpmath.pi) ** mpmath.mpf(1.5) * v)))
    assert ours == pytest.approx(exact, rel=1e-13)
    assert girih.DGN(net, noise=variance)().log_prob([x]).item() == pytest.approx(exact, rel=1e-13)


def test_narrow_cells_far_from_the_row():
    """Twin kinks 1e-14 apart: the cell between them is narrower than the rounding of the row's position."""
    net = nn.Sequential(
        linear([[1.0], [1.0]], [-0.5, -0.5 - 1e-14]), nn.LeakyReLU(0.1), linear([[1, 0.2], [0.3, -1]], [0, 0])
    )
    dgn = girih.DGN(net, noise=1e-4)
    assert len(dgn.partition) == 3
    x = f64([[3.0, 0.0], [300.0, 20.0], [-1e4, 50.0]])
    assert_exact(dgn, x)
    post = dgn.posterior(x)
    assert torch.isfinite(post.log_prob(f64([0.5 + 5e-15] * 3))).all()
    assert (post.mode - post.mean).abs().max() < 1e-2


def test_float32_modules_give_float64_results():
    net = girih.mlp([1, 6, 4, 3], seed=1).float()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    double = girih.mlp([1, 6, 4, 3], seed=1)
    double.load_state_dict(net.state_dict())
    ours = girih.DGN(net, noise=0.01)().log_prob(x)
    assert ours.dtype == torch.float64
    theirs = girih.DGN(double, noise=0.01)().log_prob(x.double())
    assert torch.allclose(ours, theirs, rtol=1e-14, atol=0.0)  # products may be summed in another order


def test_many_rows_are_the_same_as_one_at_a_time():
    dgn = girih.DGN(girih.mlp([1, 32, 16, 30], seed=0), noise=0.05)
    x = dgn().sample((1500,), seed=1)
    x[::7, 3] = torch.nan
    every = dgn().log_prob(x)
    some = torch.arange(0, 1500, 97)
    single = torch.stack([dgn().log_prob(x[i : i + 1])[0] for i in some])
    assert torch.allclose(every[some], single, rtol=1e-12, atol=1e-12)
    assert torch.allclose(dgn.posterior(x).mean[some], dgn.posterior(x[some]).mean, rtol=1e-10, atol=1e-12)
