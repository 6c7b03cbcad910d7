"""Laws of the posterior, and its divergence from Gaussians against quadrature."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence

import girih
from girih.errors import NonFiniteError, ParameterError, ShapeError
from twins import LogJoint, f64, kl, linear, noise_of_kind, quadrature, rows_near_and_far

MODELS = {
    "shallow": lambda: girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.05),
    "deep": lambda: girih.DGN(girih.mlp([1, 6, 5, 4, 3], seed=1), noise=noise_of_kind("full", 0.1, 3, 0), prior=2.0),
    "folded": lambda: girih.DGN(girih.mlp([1, 7, 5, 1], activation="abs", seed=2), noise=1e-3, prior=0.5),
    "flat cells": lambda: girih.DGN(girih.mlp([1, 5, 10], activation="relu", seed=3), noise=1.0),
    "small noise": lambda: girih.DGN(girih.mlp([1, 8, 4], seed=4), noise=1e-6),
    "linear": lambda: girih.DGN(nn.Linear(1, 3).double(), noise=[0.1, 0.2, 0.3]),
}


@pytest.fixture(params=MODELS)
def dgn(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]()


@pytest.fixture
def x(dgn):
    x = rows_near_and_far(dgn, (1.0, 10.0), seed=0)
    if dgn.output_dim > 1:
        x[1, 0] = torch.nan
    return x


@pytest.fixture
def exact(dgn, x):
    return [quadrature(_log_joint(dgn, row), dgn.partition.breakpoints) for row in x]


def _log_joint(dgn: girih.DGN, row: torch.Tensor) -> LogJoint:
    return LogJoint(dgn.net, dgn.noise.detach(), dgn.prior.item(), row)


def test_log_prob_is_the_joint_over_the_evidence(dgn, x, exact):
    post = dgn.posterior(x)
    z = post.sample((50,), seed=0)
    ours = post.log_prob(z)
    assert ours.shape == (50, len(x))
    for n, row in enumerate(x):
        joint = _log_joint(dgn, row)(z[:, n, 0]).detach()
        rounding = 1e-12 * exact[n].log_prob.abs().item()
        assert torch.allclose(ours[:, n], joint - exact[n].log_prob, rtol=1e-10, atol=1e-10 + rounding)


def test_the_density_integrates_to_one(dgn, x, exact):
    post = dgn.posterior(x)
    for n, q in enumerate(exact):
        z = q.z[:, None, None].expand(-1, len(x), 1)
        log_mass = q.log_mass - q.log_joint + post.log_prob(z)[:, n]
        assert abs(log_mass.logsumexp(0).item()) < 1e-10 + 1e-13 * q.log_prob.abs().item()


def test_the_mode_beats_every_other_point(dgn, x):
    post = dgn.posterior(x)
    highest = post.log_prob(post.mode)
    draws = post.sample((2000,), seed=0)
    near = post.mode + post.variance.sqrt() * torch.linspace(-1, 1, 201, dtype=torch.float64)[:, None, None]
    wide = torch.linspace(-50, 50, 2001, dtype=torch.float64)[:, None, None].expand(-1, len(x), 1)
    for z in (draws, near, wide):
        assert (
            post.log_prob(z) <= highest + 1e-12 * highest.abs().clamp(min=1.0) + 1e-14 * post.log_evidence.abs()
        ).all()


def test_cell_probabilities(dgn, x, exact):
    probs = dgn.posterior(x).cell_probs()
    part = dgn.partition
    assert probs.is_sparse and probs.shape == (len(x), len(part))
    dense = probs.to_dense()
    assert torch.allclose(dense.sum(1), f64(1.0), rtol=1e-13)
    for n, q in enumerate(exact):
        counted = torch.zeros(len(part), dtype=torch.float64).index_add(0, part.locate(q.z), q.weights)
        assert torch.allclose(dense[n], counted, rtol=0, atol=1e-10 + 1e-13 * q.log_prob.abs().item())


def test_draws_follow_the_exact_distribution(dgn, x, exact):
    """Kolmogorov-Smirnov at the nodes of the quadrature: 2 / sqrt(count) is exceeded with probability 7e-4."""
    count = 5000
    draws = dgn.posterior(x).sample((count,), seed=1)[:, :, 0]
    for n, q in enumerate(exact):
        order = q.z.argsort()
        below = q.weights[order].cumsum(0) - 0.5 * q.weights[order]
        empirical = torch.searchsorted(draws[:, n].sort().values, q.z[order]) / count
        assert (empirical - below).abs().max() < 2 / math.sqrt(count) + q.weights.max()


def test_draws_have_the_shape_asked_and_are_reproducible(dgn, x):
    post = dgn.posterior(x)
    assert post.sample().shape == (len(x), 1)
    assert post.sample((2, 3)).shape == (2, 3, len(x), 1)
    assert post.sample((0,)).shape == (0, len(x), 1)
    assert torch.equal(post.sample((4,), seed=5), post.sample((4,), seed=5))
    torch.manual_seed(1)
    first = post.sample((4,))
    torch.manual_seed(1)
    assert torch.equal(post.sample((4,)), first)


def gaussians(dgn: girih.DGN, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Means and deviations of q that fit, that are narrow, wide, and far off."""
    post, size = dgn.posterior(x), len(x)
    mean, deviation = post.mean[:, 0], post.variance[:, 0].sqrt()
    at = dgn.partition.breakpoints[0] if len(dgn.partition) > 1 else f64(0.0)
    return {
        "posterior moments": (mean, deviation),
        "narrow, at a kink": (at.expand(size), f64(1e-6).expand(size)),
        "wide": (f64(0.3).expand(size), f64(5.0).expand(size)),
        "far off": (f64(-40.0).expand(size), f64(0.01).expand(size)),
    }


def test_kl_against_quadrature_and_evidence_as_its_sum_with_the_elbo(dgn, x, exact):
    post, log_prob = dgn.posterior(x), dgn().log_prob(x).detach()
    for mean, deviation in gaussians(dgn, x).values():
        q = Normal(mean, deviation)
        divergence, bound = post.kl(q), dgn.elbo(x, q)
        assert torch.allclose(bound + divergence, log_prob, rtol=1e-8, atol=1e-8)
        assert (divergence > -1e-10).all()
        for n, row in enumerate(x):

            def log_density(z, n=n, row=row):
                return _log_joint(dgn, row)(z).detach() - exact[n].log_prob

            slow = kl(mean[n], deviation[n], dgn.partition.breakpoints, log_density)
            rounding = 1e-13 * exact[n].log_prob.abs().item()
            assert divergence[n].item() == pytest.approx(slow.item(), rel=1e-10, abs=1e-10 + rounding)


def test_every_form_of_q_gives_the_same_kl():
    dgn = MODELS["deep"]()
    post = dgn.posterior(dgn().sample((4,), seed=0))
    mean, deviation = torch.linspace(-1, 1, 4, dtype=torch.float64), f64([0.1, 0.3, 1.0, 2.0])
    column = Normal(mean[:, None], deviation[:, None])
    expected = post.kl(Normal(mean, deviation))
    for q in (
        column,
        Independent(column, 1),
        MultivariateNormal(mean[:, None], scale_tril=deviation[:, None, None]),
        MultivariateNormal(mean[:, None], covariance_matrix=deviation[:, None, None] ** 2),
    ):
        assert torch.allclose(post.kl(q), expected, rtol=1e-12)
        assert torch.allclose(dgn.elbo(dgn().sample((4,), seed=0), q) + expected, post.log_evidence, rtol=1e-12)
    assert torch.allclose(
        post.kl(Normal(f64(0.5), f64(0.2))), post.kl(Normal(f64([0.5] * 4), f64([0.2] * 4))), rtol=1e-14
    )


def test_kl_is_zero_where_the_posterior_is_gaussian():
    dgn = girih.DGN(linear([[2.0], [-1.0]], [0.5, 0.0]), noise=0.3, prior=1.7)
    post = dgn.posterior([[1.0, 2.0], [-30.0, 4.0]])
    assert post.kl(Normal(post.mean, post.variance.sqrt())).abs().max() < 1e-11
    variance = 1 / (5 / 0.3 + 1 / 1.7)
    mean = variance * ((f64([[1.0, 2.0], [-30.0, 4.0]]) - f64([0.5, 0.0])) @ f64([2.0, -1.0])) / 0.3
    assert torch.allclose(post.variance[:, 0], f64(variance), rtol=1e-11)
    assert torch.allclose(post.mean[:, 0], mean, rtol=1e-12)
    assert torch.allclose(post.mode, post.mean, rtol=1e-12)


def test_draws_of_a_wide_posterior_batch_match_its_moments():
    dgn = girih.DGN(girih.mlp([1, 32, 2], seed=0), noise=2.0)
    post = dgn.posterior(dgn().sample((200,), seed=0))
    z = post.sample((4000,), seed=1)
    error = (z.mean(0) - post.mean) / (post.variance / 4000).sqrt()
    assert error.abs().max() < 4.5
    assert abs(error.square().mean().item() - 1) < 0.5


def test_bad_input_is_refused():
    post = MODELS["shallow"]().posterior([[0.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    with pytest.raises(
        ShapeError, match=r"z must have shape \(..., 3, 1\): one latent for each of the 3 rows; got \(2,\)"
    ):
        post.log_prob([0.0, 1.0])
    with pytest.raises(NonFiniteError, match="z holds NaN"):
        post.log_prob([0.0, 1.0, math.nan])
    with pytest.raises(ParameterError, match="q must be a torch Normal or MultivariateNormal, got Laplace"):
        post.kl(Laplace(0.0, 1.0))
    with pytest.raises(ShapeError, match=r"q must hold one Gaussian for each of the 3 rows; its batch shape is \(2,\)"):
        post.kl(Normal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ShapeError, match=r"q has shape \(3, 2\).* the latent dimension S"):
        post.kl(MultivariateNormal(torch.zeros(3, 2), torch.eye(2)))
    with pytest.raises(NonFiniteError, match="the mean of q holds NaN"):
        post.kl(Normal(f64(math.nan), f64(1.0), validate_args=False))
    with pytest.raises(ParameterError, match="the scale of q must be positive, got -1"):
        post.kl(Normal(f64(0.0), f64(-1.0), validate_args=False))
    with pytest.raises(NonFiniteError, match="row 1 has no posterior"):
        MODELS["small noise"]().posterior([[0.0] * 4, [1e200] * 4])


def test_torch_finds_the_divergence_from_gaussians():
    dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.05)
    posterior = dgn.posterior(dgn().sample((3,), seed=0))
    normal = Normal(f64([[0.1], [0.2], [0.3]]), f64([[0.5]] * 3))
    full = MultivariateNormal(normal.loc, scale_tril=torch.diag_embed(normal.scale))
    for q in (normal, Independent(normal, 1), full):
        assert torch.equal(kl_divergence(q, posterior), posterior.kl(q))
    with pytest.raises(NotImplementedError):
        kl_divergence(Laplace(normal.loc, normal.scale), posterior)


def test_a_posterior_has_a_short_repr():
    dgn = girih.DGN(girih.mlp([2, 8, 2], seed=0), noise=0.05)
    x = dgn().sample((3,), seed=0)
    assert (
        repr(dgn.posterior(x)) == f"PolytopePosterior(3 rows, S=2, log p(x) {dgn().log_prob(x).mean():.4g} nats a row)"
    )
    assert repr(dgn.posterior(x[:1])).startswith("PolytopePosterior(1 row, S=2, ")
