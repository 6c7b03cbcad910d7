"""S = 2, 3: every kind of generator against a dense grid of the module itself, and the hard cases."""

import math

import pytest
import torch
from torch import nn

import girih
import networks_to_partition
from inference.simplices import quadrature, triangulate
from twins import f64, linear, prior_of_dim

NETWORKS = [n for n in networks_to_partition.NETWORKS if n != "float32"]


def on_a_grid(dgn: girih.DGN, x: torch.Tensor, reach: float, steps: int) -> torch.Tensor:
    """`log p(x)` by the trapezoidal rule over latents; the network is only called."""
    S, D = dgn.latent_dim, dgn.output_dim
    axis = torch.linspace(-reach, reach, steps, dtype=torch.float64)
    noise = dgn.noise.detach().expand(D)
    precision = torch.linalg.inv(dgn.prior.detach())
    parts = []
    for z in torch.cartesian_prod(*[axis] * S).split(400_000):
        with torch.no_grad():
            g = dgn.net(z).reshape(len(z), -1)
        energy = ((x[:, None] - g) ** 2 / noise).sum(-1) + ((z @ precision) * z).sum(1)
        parts.append((-0.5 * energy).logsumexp(1))
    constant = noise.log().sum() + torch.logdet(dgn.prior.detach()) + (D + S) * math.log(2 * math.pi)
    return torch.stack(parts).logsumexp(0) + S * math.log(axis[1] - axis[0]) - 0.5 * constant


def near(dgn: girih.DGN) -> torch.Tensor:
    """Draws, and a row off the manifold."""
    x = dgn().sample((3,), seed=0)
    x[2] += 0.7
    return x


@pytest.mark.parametrize("name", NETWORKS)
def test_planes_on_a_grid(name):
    dgn = girih.DGN(networks_to_partition.make(name, 2), noise=0.5, prior=prior_of_dim(2, 0))
    x = near(dgn)
    with torch.no_grad():
        assert torch.allclose(dgn().log_prob(x), on_a_grid(dgn, x, 12.0, 700), rtol=0.0, atol=2e-4)


@pytest.mark.parametrize("name", ["relu", "degenerate", "parallel", "one unit", "max-pooled", "saturating"])
def test_spaces_on_a_grid(name):
    """With noise that is large enough for a coarse grid."""
    dgn = girih.DGN(networks_to_partition.make(name, 3), noise=2.0)
    x = near(dgn)[1:]
    with torch.no_grad():
        assert torch.allclose(dgn().log_prob(x), on_a_grid(dgn, x, 7.0, 71), rtol=0.0, atol=1e-3)


def ignores_one(S: int) -> nn.Sequential:
    net = girih.mlp([S, 5, 3], seed=3)
    net[0].weight.data[:, -1] = 0.0
    return net


def all_dead(S: int) -> nn.Sequential:
    net = girih.mlp([S, 4, 3], "relu", seed=0)
    net[0].weight.data *= 1e-6
    net[0].bias.data.fill_(-1.0)
    return net


@pytest.mark.parametrize("S", [2, 3])
def test_a_latent_that_is_ignored_changes_nothing(S):
    """The density is that of the network without it, in every row, and the posterior of that latent is the prior."""
    net = ignores_one(S)
    smaller = girih.mlp([S - 1, 5, 3], seed=3)
    smaller[0].weight.data, smaller[0].bias.data = net[0].weight.data[:, :-1].clone(), net[0].bias.data
    smaller[2].weight.data, smaller[2].bias.data = net[2].weight.data, net[2].bias.data
    dgn, other = girih.DGN(net, noise=0.02), girih.DGN(smaller, noise=0.02)
    x = torch.cat((near(dgn), f64([[30.0, -20.0, 5.0]])))
    post = dgn.posterior(x)
    expected = other.posterior(x)
    assert torch.allclose(post.log_evidence, expected.log_evidence, rtol=1e-9, atol=1e-9)
    assert torch.allclose(post.mean[:, :-1], expected.mean, rtol=1e-7, atol=1e-7)
    assert torch.allclose(post.mean[:, -1], f64(0.0), atol=1e-7)
    assert torch.allclose(post.variance[:, -1], f64(1.0), atol=1e-6)


@pytest.mark.parametrize("S", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_network_of_dead_units_is_its_bias(S):
    """No mass where a unit is alive: a Gaussian about the last bias, and the posterior is the prior."""
    net = all_dead(S)
    dgn = girih.DGN(net, noise=0.3, prior=prior_of_dim(S, 1))
    x = near(dgn)
    gaussian = torch.distributions.MultivariateNormal(net[2].bias.detach(), 0.3 * torch.eye(3, dtype=torch.float64))
    post = dgn.posterior(x)
    assert torch.allclose(post.log_evidence, gaussian.log_prob(x), rtol=1e-10)
    assert torch.allclose(post.covariance, dgn.prior.detach().expand(3, -1, -1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("S", [2, 3])
def test_units_twice_are_one_unit(S):
    net = girih.mlp([S, 5, 2], seed=1)
    twice = girih.mlp([S, 10, 2], seed=0)
    twice[0].weight.data, twice[0].bias.data = net[0].weight.data.repeat(2, 1), net[0].bias.data.repeat(2)
    twice[2].weight.data, twice[2].bias.data = torch.cat([0.5 * net[2].weight.data] * 2, 1), net[2].bias.data
    x = near(girih.DGN(net, noise=0.05))
    with torch.no_grad():
        assert torch.allclose(
            girih.DGN(net, noise=0.05)().log_prob(x), girih.DGN(twice, noise=0.05)().log_prob(x), rtol=1e-10
        )


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("variance", [1e-6, 0.3, 1e3])
def test_a_linear_generator_is_a_gaussian(S, variance):
    generator = torch.Generator().manual_seed(S)
    net = linear(torch.randn(4, S, generator=generator), torch.randn(4, generator=generator))
    prior = prior_of_dim(S, 2)
    covariance = variance * torch.eye(4, dtype=torch.float64) + net.weight.detach() @ prior @ net.weight.detach().T
    gaussian = torch.distributions.MultivariateNormal(net.bias.detach(), covariance)
    torch.manual_seed(0)
    x = torch.cat((gaussian.sample((5,)), 3.0 * gaussian.sample((5,))))
    post = girih.DGN(net, noise=variance, prior=prior).posterior(x)
    assert torch.allclose(post.log_evidence, gaussian.log_prob(x), rtol=1e-8, atol=1e-7)
    gain = prior @ net.weight.detach().T @ torch.linalg.inv(covariance)
    assert torch.allclose(post.mean, (x - net.bias.detach()) @ gain.T, rtol=1e-6, atol=1e-6)
    assert post.cell_probs().to_dense().shape == (10, 1)


@pytest.mark.parametrize("S", [2, 3])
def test_rescaling_and_turning_the_latent_changes_nothing(S):
    """`z -> B z` with prior `B B^T` is the same model of x."""
    net = girih.mlp([S, 5, 3], seed=0)
    x = near(girih.DGN(net, noise=0.1))
    with torch.no_grad():
        expected = girih.DGN(net, noise=0.1)().log_prob(x)
        prior = prior_of_dim(S, 3)
        net[0].weight.copy_(net[0].weight @ torch.linalg.inv(torch.linalg.cholesky(prior)))
        assert torch.allclose(girih.DGN(net, noise=0.1, prior=prior)().log_prob(x), expected, rtol=1e-9)


def test_the_density_integrates_to_one_and_has_its_mean():
    dgn = girih.DGN(girih.mlp([2, 5, 2], seed=1), noise=[0.2, 0.4])
    low, high = torch.tensor([-9.0, -9.0]), torch.tensor([9.0, 9.0])
    axes = [torch.linspace(a, b, 101, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    x = torch.cartesian_prod(*axes)
    cell = float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))
    with torch.no_grad():
        p = dgn().log_prob(x).exp() * cell
        assert float(p.sum()) == pytest.approx(1.0, abs=1e-6)
        assert torch.allclose(p @ x, dgn().mean, atol=1e-5)


@pytest.mark.parametrize("S", [2, 3])
def test_draws_have_the_exact_mean_and_density(S):
    """Means within five standard errors, and E[1 / p(x)] over a box is its area."""
    dgn = girih.DGN(girih.mlp([S, 6, 2], seed=2), noise=0.3, prior=prior_of_dim(S, 0))
    x = dgn().sample((40_000,), seed=0)
    with torch.no_grad():
        assert ((x.mean(0) - dgn().mean).abs() < 5 * x.std(0) / len(x) ** 0.5).all()
        x = x[: 20_000 if S == 2 else 3_000]
        inside = ((x - x.median(0).values).abs() < 0.5).all(1)
        area = torch.zeros(len(x), dtype=torch.float64)
        area[inside] = (-dgn().log_prob(x[inside])).exp()
    assert abs(area.mean() - 1.0) < 5 * area.std() / len(x) ** 0.5


@pytest.mark.parametrize("S", [2, 3])
def test_a_marginal_is_the_integral_of_the_joint(S):
    dgn = girih.DGN(girih.mlp([S, 4, 2], seed=2), noise=0.3)
    second = torch.linspace(-12, 12, 241, dtype=torch.float64)
    joint = torch.stack((torch.full_like(second, 0.5), second), 1)
    with torch.no_grad():
        total = dgn().log_prob(joint).exp().sum() * (second[1] - second[0])
        assert dgn().log_prob([[0.5, math.nan]]).exp().item() == pytest.approx(total.item(), rel=1e-8)


@pytest.mark.parametrize("S", [2, 3])
def test_shapes(S):
    dgn = girih.DGN(girih.mlp([S, 4, 2], seed=0), noise=0.1)
    x = dgn().sample((3, 2), seed=0)
    with torch.no_grad():
        every = dgn().log_prob(x)
        assert every.shape == (3, 2)
        assert torch.allclose(every[1], dgn().log_prob(x[1]), rtol=1e-13)
        assert dgn().log_prob(x[0, 0]).shape == ()
        assert float(dgn().log_prob(x[0, 0])) == pytest.approx(float(every[0, 0]), rel=1e-13)
        evidence = dgn().evidence(x)
        assert evidence.left_out.shape == evidence.log_prob.shape == (3, 2)
        assert (evidence.left_out <= 1e-10).all()
        one = girih.DGN(girih.mlp([S, 4, 1], seed=0), noise=0.1)
        assert one().log_prob([0.1, 0.2, 0.3]).shape == (3,)
        assert torch.allclose(one().log_prob([0.1, 0.2]), on_a_grid(one, f64([[0.1], [0.2]]), 7.0, 81), atol=1e-3)
    post = dgn.posterior(x[0, :1])
    assert post.mean.shape == (1, S)
    assert post.covariance.shape == (1, S, S)
    assert post.sample((4,)).shape == (4, 1, S)


@pytest.mark.parametrize(("S", "noise"), [(2, 1e-6), (2, 1.0), (2, 1e3), (3, 1.0), (3, 1e3)])
def test_rows_a_million_away(S, noise):
    """Finite, certified, and the same with nothing left out."""
    net = girih.mlp([S, 6 if S == 2 else 4, 3], seed=4)
    x = f64([[1e6, -1e6, 2e5], [0.0, 3e6, 0.0], [1e6, 1e6, 1e6]])
    dgn = girih.DGN(net, noise=noise)
    post, dense = dgn.posterior(x), girih.DGN(net, noise=noise, tol=0.0).posterior(x)
    assert (post.left_out <= 1e-10).all() and (dense.left_out == 0.0).all()
    assert torch.allclose(post.log_evidence, dense.log_evidence, rtol=1e-8)
    for value in (post.mean, post.covariance, post.entropy(), post.mode):
        assert torch.isfinite(value).all()
    assert (torch.linalg.eigvalsh(post.covariance) > 0.0).all()


@pytest.mark.parametrize(("variance", "S"), [(1e-6, 2), (1e3, 2), pytest.param(1e3, 3, marks=pytest.mark.slow)])
def test_extreme_noise(variance, S):
    dgn = girih.DGN(girih.mlp([S, 4, 3], seed=5), noise=variance, prior=prior_of_dim(S, 5))
    x, simplices = near(dgn), triangulate(dgn)
    with torch.no_grad():
        found = dgn().log_prob(x)
    for row, value in zip(x, found, strict=True):
        exact = quadrature(dgn, row, simplices).log_prob
        assert abs(float(value - exact)) <= 1e-8 * max(1.0, abs(float(exact)))


@pytest.mark.parametrize("S", [2, 3])
def test_float32_modules_give_float64_results(S):
    net = girih.mlp([S, 6, 3], seed=1).float()
    double = girih.mlp([S, 6, 3], seed=1)
    double.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = girih.DGN(net, noise=0.01), girih.DGN(double, noise=0.01)
    assert ours().log_prob(x).dtype == torch.float64
    assert torch.allclose(ours().log_prob(x), theirs().log_prob(x.double()), rtol=1e-12, atol=0.0)
    ours().log_prob(x).sum().backward()
    assert net[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("widths", [[2, 64, 64, 10], [3, 16, 12, 10]])
def test_few_rows_of_many_cells(widths):
    """Thousands of cells: what the certificate lets out is not missed."""
    net = girih.mlp(widths, seed=0)
    dgn = girih.DGN(net, noise=0.01)
    x = torch.cat((dgn().sample((2,), seed=0), f64([[2.0] * 10])))
    with torch.no_grad():
        found, dense = dgn().evidence(x), girih.DGN(net, noise=0.01, tol=0.0)().evidence(x)
    assert (found.left_out <= 1e-10).all()
    assert torch.allclose(found.log_prob, dense.log_prob, rtol=0.0, atol=1e-8)
