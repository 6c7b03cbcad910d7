"""Bounds against the exact engine, quadrature, and a linear generator; and what the search promises."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.bounds.boxes import Target, log_outside
from girih.bounds.branches import Branches
from girih.bounds.cube import Cube
from girih.covariance import Covariance
from girih.errors import NoiseError, ParameterError, ShapeError
from girih.sampling.modes import find_modes
from girih.sampling.row import Model
from twins import f64, noise_of_kind


def decoder(S, seed=0):
    return girih.mlp([S, 7, 5, 4], activation=("relu", "leaky_relu", "abs")[seed % 3], seed=seed)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_bounded_as_quadrature_has_it(seed):
    """Boxes of S = 2, small, large, thin, and far out, by a dense grid of Gauss-Legendre nodes."""
    rng = np.random.default_rng(seed)
    trace = girih.trace(decoder(2, seed))
    frame = torch.as_tensor(np.linalg.qr(rng.normal(size=(2, 2)))[0])
    head, y = torch.as_tensor(3.0 * rng.normal(size=(4, 5))), torch.as_tensor(rng.normal(size=4))
    middle, half = rng.normal(size=(30, 2)) * 2.0, 10.0 ** rng.uniform(-3, 0.3, (30, 2))
    low, high = torch.as_tensor(middle - half), torch.as_tensor(middle + half)
    boxes = Target(trace, frame, head, y).bound(low, high)
    t, w = np.polynomial.legendre.leggauss(200)
    for i in range(30):
        v = np.stack(np.meshgrid(*(m + h * t for m, h in zip(middle[i], half[i], strict=True)), indexing="ij"), -1)
        v = torch.as_tensor(v.reshape(-1, 2))
        image = trace.hidden_values(v @ frame.mT) @ head.mT
        height = -0.5 * ((y - image).square().sum(1) + v.square().sum(1)) - math.log(2.0 * math.pi)
        weight = torch.as_tensor(np.log(np.outer(w * half[i, 0], w * half[i, 1]).reshape(-1)))
        exact = torch.logsumexp(height + weight, 0)
        room = 1e-3  # of the grid, where kinks cross it
        assert boxes.lower[i] <= exact + room
        assert boxes.upper[i] >= exact - room
        if half[i].max() < 5e-3:
            assert boxes.upper[i] - boxes.lower[i] < 0.5


@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_exact_values_are_between_the_bounds(S, kind):
    net, noise = decoder(S, S), noise_of_kind(kind, 0.05, 4, 1)
    prior = f64(np.eye(S) * 0.7 + 0.3)
    dgn = girih.DGN(net, noise=noise, prior=prior)
    x = torch.cat((dgn().sample((3,), seed=0), f64([[4.0, -3.0, 2.0, 5.0]])))
    x[1, 2] = torch.nan
    exact = girih.bracket(dgn, x)
    assert (exact.lower <= exact.estimate).all()
    assert (exact.upper >= exact.estimate).all()
    assert (exact.gap < 1e-6).all()
    close = (0.02, 0.02, 0.5)[S - 1]  # ends the search; the time is never needed
    found = girih.bracket(dgn, x, budget=200.0, method="boxes", tol=close)
    assert (found.lower <= exact.upper).all()
    assert (found.upper >= exact.lower).all()
    assert (found.gap <= close).all()
    assert (found.estimate >= found.lower).all()
    assert (found.estimate <= found.upper).all()


@pytest.mark.parametrize("method", ["all", "envelopes"])
def test_exact_values_are_between_the_bounds_of_envelopes(method):
    """Rows near and far, with an entry missing; the bounds with a confidence are wrong once in a million."""
    for S in (1, 2, 3):
        dgn = girih.DGN(decoder(S, S), noise=noise_of_kind("full", 0.2, 4, 1), prior=f64(np.eye(S) * 0.7 + 0.3))
        x = torch.cat((dgn().sample((2,), seed=0), f64([[4.0, -3.0, 2.0, 5.0]])))
        x[1, 2] = torch.nan
        exact = girih.bracket(dgn, x)
        found = girih.bracket(dgn, x, budget=3.0, method=method, tol=0.0, confidence=1.0 - 1e-6)
        for lower, upper in ((found.lower, found.upper), (found.confidence_lower, found.confidence_upper)):
            assert (lower <= exact.upper).all()
            assert (upper >= exact.lower).all()
        assert (found.confidence_gap <= found.gap).all()
        assert (found.envelopes > 0).all()
        assert torch.isinf(found.lower).all() == (method == "envelopes")


def test_noise_from_small_to_large():
    net = decoder(2)
    for level in (1e-4, 1e-2, 1.0, 100.0):
        dgn = girih.DGN(net, noise=level)
        x = dgn().sample((2,), seed=3)
        exact, found = girih.bracket(dgn, x), girih.bracket(net, x, noise=level, budget=2.0, method="boxes")
        assert (found.lower <= exact.upper).all()
        assert (found.upper >= exact.lower).all()


def test_a_linear_generator_of_six_latents():
    torch.manual_seed(0)
    net = nn.Linear(6, 9).double()
    noise = noise_of_kind("full", 0.2, 9, 0)
    x = torch.randn(2, 9, dtype=torch.float64)
    x[1, 4] = torch.nan
    whole = noise + net.weight @ net.weight.mT
    exact = [
        torch.distributions.MultivariateNormal(net.bias[s], whole[s][:, s]).log_prob(row[s]).item()
        for row, s in zip(x, (torch.arange(9), torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])), strict=True)
    ]
    found = girih.bracket(nn.Sequential(net), x, noise=noise, budget=200.0, tol=5e-3)
    assert (found.lower <= f64(exact) + 1e-9).all()
    assert (found.upper >= f64(exact) - 1e-9).all()
    assert (found.gap <= 5e-3).all()
    assert ((found.estimate - f64(exact)).abs() < 0.01 + 5.0 * found.standard_error).all()


def test_bounds_close_as_boxes_are_halved():
    noise = Covariance.of(0.1, 4)
    net = girih.trace(decoder(4, 1)).frozen()
    with torch.no_grad():
        x = net(f64([[0.5, -0.3, 0.2, 1.0]]))[0] + 0.1
        row = Model.of(net, noise, None, "").reduced(x[None])[0]
        search = Cube(row.take(0), find_modes(row, torch.Generator().manual_seed(0))[0])
        before, first = (search.lower, search.upper), search.gap
        for _ in range(40):
            search.halve()
            assert search.lower >= before[0]
            assert search.upper <= before[1]
            before = search.lower, search.upper
        volume = (search.boxes.high - search.boxes.low).prod(1).sum()
    assert search.gap < 0.5 * first
    radius = search.boxes.high.max()
    assert volume.item() == pytest.approx((2.0 * radius.item()) ** 4, rel=1e-9)  # the boxes are the cube


def test_more_time_is_never_worse(monkeypatch):
    net = decoder(4, 2)
    x = f64([[0.3, 0.1, -0.4, 0.2]])
    gaps = []
    for turns in (2, 10, 40):
        left = iter(range(turns))
        monkeypatch.setattr(Cube, "can_go_on", property(lambda self, left=left: next(left, None) is not None))
        gaps.append(girih.bracket(net, x, noise=0.2, budget=1e3).gap.item())
    assert gaps[0] >= gaps[1] >= gaps[2]


def test_eight_latents_have_bounds_and_an_estimate():
    net = girih.mlp([8, 16, 12], seed=0)
    x = girih.trace(net)(torch.zeros(1, 8)).detach() + 0.2
    found = girih.bracket(net, x, noise=0.1, budget=1.5)
    assert torch.isfinite(found.lower).all()
    assert (found.upper <= Covariance.of(0.1, 12).constant).all()
    assert (found.confidence_gap < 5.0).all()  # a second and a half
    assert (found.lower <= found.confidence_lower).all()
    assert (found.confidence_lower <= found.estimate).all()
    assert (found.estimate <= found.confidence_upper).all()
    assert (found.lower <= found.estimate).all()
    assert found.standard_error[0] < 0.2
    assert "rows=1" in repr(found)


def test_what_lies_outside_a_cube_is_bounded():
    for radius in (1.5, 3.0, 8.0):
        outside = 1.0 - math.erf(radius / math.sqrt(2.0)) ** 3
        assert log_outside(radius, 3) >= math.log(max(outside, 1e-300)) - 1e-6


def test_rows_of_nothing_have_the_density_of_nothing():
    found = girih.bracket(decoder(4), torch.full((1, 4), torch.nan), noise=0.1, budget=1.0)
    assert found.lower[0] <= 0.0 <= found.upper[0]
    assert found.gap[0] < 1e-6


def test_the_same_seed_gives_the_same_numbers(monkeypatch):
    net, x = decoder(4), f64([[0.1, 0.2, 0.3, 0.4]])
    found = []
    for _ in range(2):
        left = iter(range(5))
        monkeypatch.setattr(Cube, "can_go_on", property(lambda self, left=left: next(left, None) is not None))
        found.append(girih.bracket(net, x, noise=0.2, budget=1e3, seed=4))
    for name in ("lower", "upper", "estimate", "standard_error"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name))


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ParameterError, {"budget": 0.0}),
        (ParameterError, {"budget": "long"}),
        (ParameterError, {"tol": -1.0}),
        (ParameterError, {"method": "guess"}),
        (ParameterError, {"seed": 0.5}),
        (ParameterError, {"confidence": 1.0}),
        (ParameterError, {"confidence": 0.1}),
        (NoiseError, {"noise": -1.0}),
        (ShapeError, {"x": np.zeros((2, 3))}),
        (ShapeError, {"prior": np.eye(3)}),
    ],
)
def test_errors_are_typed(error, options):
    x = options.pop("x", np.zeros((1, 4)))
    with pytest.raises(error):
        girih.bracket(decoder(4), x, **options)


def test_an_estimate_that_few_draws_carry_has_no_error():
    net = girih.mlp([8, 16, 12], seed=0)
    found = girih.bracket(net, torch.full((1, 12), 30.0), noise=1e-5, budget=0.2)
    assert found.standard_error.isinf().all()


@pytest.mark.parametrize("S", [2, 4])
def test_a_trace_is_a_generator_too(S):
    net = decoder(S)
    method = "auto" if S <= 3 else "boxes"  # how many draws there are depends on the time that they take
    found = [
        girih.bracket(one, np.zeros((1, 4)), noise=1.0, budget=0.5, method=method) for one in (net, girih.trace(net))
    ]
    assert torch.equal(found[0].estimate, found[1].estimate)


def test_networks_with_many_units_have_boxes_alone():
    net, x = girih.mlp([4, 600, 600, 5], seed=0), torch.zeros(1, 5)
    with pytest.raises(ParameterError, match="1,200"):
        girih.bracket(net, x, noise=0.1, method="envelopes")
    found = girih.bracket(net, x, noise=0.1, budget=0.5)
    assert found.envelopes == 0
    assert found.boxes > 0
    assert found.confidence_upper == found.upper


def test_envelopes_and_samplers_agree():
    """Six latents: the mean of the posterior by draws that are kept, and by Hamiltonian motion."""
    net = girih.mlp([6, 10, 8], seed=1)
    x = girih.trace(net)(torch.full((1, 6), 0.5)).detach() + 0.1
    row = Model.of(net, 0.05, None, "").reduced(x)[0].take(0)
    tree, generator = Branches(row, math.inf), torch.Generator().manual_seed(0)
    for _ in range(10):
        tree.split(math.inf)
    parts = [tree.sample(tree.leaves(), 8192, generator) for _ in range(10)]
    u = torch.cat([draws[kept] for draws, kept in parts])
    chains = girih.sample_posterior(net, x, noise=0.05, seed=0)
    variance = chains.covariance[0].diagonal()
    error = (u.var(0) / len(u) + variance / chains.effective_samples[0]).sqrt()
    assert len(u) > 1000
    assert ((u.mean(0) - chains.mean[0]).abs() < 5.0 * error).all()
    assert torch.allclose(u.var(0), variance, rtol=0.2)


def test_other_outputs_and_priors_are_refused():
    for dgn in (
        girih.DGN(decoder(2), likelihood="bernoulli"),
        girih.DGN(decoder(2), noise=0.1, prior=girih.Uniform(-1, 1)),
    ):
        with pytest.raises(ParameterError, match="Gaussian noise and a Gaussian prior"):
            girih.bracket(dgn, np.zeros((1, 4)))


def test_a_dgn_brings_its_own_noise():
    with pytest.raises(ParameterError, match="has its own noise"):
        girih.bracket(girih.DGN(decoder(2), noise=0.1), np.zeros((1, 4)), noise=0.2)
