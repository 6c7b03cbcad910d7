"""Rows 1e1 to 1e8 noise deviations off: posteriors against 100 digits, and what their rounding bounds promise."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

import girih
from effort import cases
from exact_lines import Exact, cells_of, posterior
from twins import f64, linear, noise_of_kind

# rows of an integer matrix that are orthogonal and of one length: latents of products of lines, turned exactly
TURNS = {2: f64([[1, 1], [1, -1]]), 3: f64([[1, 2, 2], [2, 1, -2], [2, -2, 1]])}


def far_rows(net: nn.Module, noise: torch.Tensor, kinks: torch.Tensor, distances: torch.Tensor, seed: int):
    """Rows at these distances from points of the manifold: kinks first, then others."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(distances), kinks.shape[1], generator=generator, dtype=torch.float64)
    z[: len(kinks)] = kinks[: len(distances)]
    with torch.no_grad():
        image = net(z)
    deviation = (noise.diagonal() if noise.ndim == 2 else noise.expand(image.shape[1])).sqrt()
    away = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    shuffled = distances[torch.randperm(len(distances), generator=generator)]
    return image + away * deviation * shuffled[:, None]


def few_bits(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 64).round() / 64


def product_of_lines(S: int, seed: int, slope: float) -> tuple[nn.Sequential, list[nn.Sequential]]:
    """A network whose posterior is a product of S lines' in turned latents, and the networks of these lines."""
    generator = torch.Generator().manual_seed(seed)
    parts = [[few_bits(generator, *shape) for shape in ((3, 1), (3,), (2, 3), (2,))] for _ in range(S)]

    def chain(w1, b1, w2, b2) -> nn.Sequential:
        return nn.Sequential(linear(w1, b1), nn.LeakyReLU(slope), linear(w2, b2))

    w1, b1, w2, b2 = zip(*parts, strict=True)
    whole = chain(torch.block_diag(*w1) @ TURNS[S], torch.cat(b1), torch.block_diag(*w2), torch.cat(b2))
    return whole, [chain(*part) for part in parts]


def expected_kl(deviation: list[float], expected: float) -> float:
    return -sum(0.5 * math.log(2 * math.pi * math.e) + math.log(d) for d in deviation) - expected


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(cases(12, 600)))
def test_lines(seed):
    D, kind = 1 + seed % 4, ("scalar", "diagonal", "full")[seed % 3]
    widths = [1, *[3 + seed % 4] * (1 + seed % 3), D]
    net = girih.mlp(widths, activation=("relu", "leaky_relu")[seed % 2], seed=seed)
    noise, prior = noise_of_kind(kind, 10.0 ** (1.5 * (seed % 5) - 6), D, seed), math.exp(math.sin(seed))
    dgn = girih.DGN(net, noise=noise, prior=prior)
    cells = cells_of(net)
    assert len(cells) == len(dgn.partition)
    x = far_rows(net, noise, dgn.partition.breakpoints[:3, None], 10.0 ** f64([2, 3, 5, 6, 7, 8]), seed)
    if D > 1:
        x[4, 0] = math.nan
    post, evidence = dgn.posterior(x), dgn().evidence(x)
    mean, deviation, z = post.mean[:, 0], post.variance[:, 0].sqrt(), post.sample(seed=seed)[:, 0]
    kl, density, entropy = post.kl(Normal(mean, deviation)), post.log_prob(z), post.entropy()
    bound = dgn.elbo(x, Normal(mean, deviation))
    assert (kl >= -post.rounding).all()
    assert ((bound + kl - post.log_evidence).abs() <= 1e-15 * post.log_evidence.abs() + 1e-9).all()
    probs = post.cell_probs().to_dense()
    for n, row in enumerate(x):
        right: Exact = posterior(cells, noise, prior, row)
        sd = float(right.variance) ** 0.5
        error = 1e-10 + post.rounding[n].item()
        digits = 1e-15 * abs(float(right.mean)) / sd  # those of z itself
        assert abs(evidence.log_prob[n].item() - float(right.log_prob)) <= 1e-10 + evidence.rounding[n].item()
        assert abs(mean[n].item() - float(right.mean)) <= (error + digits) * sd
        assert abs(post.mode[n].item() - float(right.mode)) <= (error + digits) * sd
        assert post.variance[n].item() == pytest.approx(float(right.variance), rel=error)
        assert abs(entropy[n].item() - float(right.entropy)) <= error
        assert all(abs(ours - float(p)) <= error for ours, p in zip(probs[n].tolist(), right.probs, strict=True))
        assert abs(density[n].item() - float(right.log_density(z[n].item()))) <= error + digits
        q = mean[n].item(), deviation[n].item()
        assert abs(kl[n].item() - expected_kl([q[1]], float(right.expected(*q)))) <= error + digits


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("S", "seed"), [*((2, n) for n in range(cases(4, 150))), *((3, n) for n in range(cases(1, 20)))]
)
def test_products_of_lines(S, seed):
    """S = 2, 3: a product of lines in latents turned by integers is known as exactly as a line is."""
    net, lines = product_of_lines(S, seed, 0.125 * (seed % 2))
    unit = f64(2.0 ** -(4 + 6 * (seed % 3)))
    noise = (
        unit,
        unit * f64([1.0, 2.0, 0.5, 1.0, 4.0, 2.0])[: 2 * S],
        torch.block_diag(*[unit * f64([[1.0, 0.5], [0.5, 1.0]])] * S),
    )[seed // 2 % 3]
    dgn, turn = girih.DGN(net, noise=noise), TURNS[S]
    prior, count = (turn @ turn.T)[0, 0].item(), 4 if S == 2 else 2
    cells = [cells_of(line) for line in lines]
    kink = torch.linalg.solve(turn, f64([float(c[1].lower) for c in cells]))
    x = far_rows(net, noise, kink[None], 10.0 ** torch.linspace(2, 8, count, dtype=torch.float64), seed)
    if seed % 2:
        x[-1, 0] = math.nan
    post, evidence, log_det = dgn.posterior(x), dgn().evidence(x), torch.linalg.det(turn).abs().log().item()
    z = post.sample(seed=seed)
    density, entropy, mode = post.log_prob(z), post.entropy(), post.mode
    for n, row in enumerate(x):
        noises = [noise if noise.ndim == 0 else noise[i] if noise.ndim == 1 else noise[i][:, i] for i in pairs(S)]
        right = [posterior(c, v, prior, row[i]) for c, v, i in zip(cells, noises, pairs(S), strict=True)]
        mean, peak = (
            torch.linalg.solve(turn, f64([float(part) for part in parts]))
            for parts in ([r.mean for r in right], [r.mode for r in right])
        )
        inverse = torch.linalg.inv(turn)
        covariance = inverse @ torch.diag(f64([float(r.variance) for r in right])) @ inverse.T
        sd = covariance.diagonal().sqrt()
        error = 1e-8 + post.rounding[n].item()
        digits = 1e-14 * max(abs(float(r.mean)) / float(r.variance) ** 0.5 for r in right)
        log_p = sum(float(r.log_prob) for r in right)
        assert abs(evidence.log_prob[n].item() - log_p) <= 1e-8 + evidence.rounding[n].item()
        assert ((post.mean[n] - mean).abs() <= (error + digits) * sd).all()
        assert ((mode[n] - peak).abs() <= (error + digits) * sd).all()
        assert ((post.covariance[n] - covariance).abs() <= error * sd[:, None] * sd).all()
        assert abs(entropy[n].item() - sum(float(r.entropy) for r in right) + log_det) <= error
        exact = sum(float(r.log_density(y)) for r, y in zip(right, (turn @ z[n]).tolist(), strict=True)) + log_det
        assert abs(density[n].item() - exact) <= error + digits


def pairs(S: int) -> list[slice]:
    """Which entries of x belong to each line."""
    return [slice(2 * s, 2 * s + 2) for s in range(S)]


@pytest.mark.parametrize("S", [1, 2, 3])
def test_a_decoder_without_weights_leaves_the_prior_wherever_x_is(S):
    net = girih.mlp([S, 4, 2], activation="relu", seed=0)
    net[2].weight.data.zero_()
    dgn = girih.DGN(net, noise=1e-4)
    x = f64([[1e6, 1e6], [-1e6, 3.0]])
    post = dgn.posterior(x)
    eye = torch.eye(S, dtype=torch.float64)
    assert post.mean.abs().max() < 1e-8
    assert torch.allclose(post.covariance, eye, atol=1e-8)
    assert torch.allclose(post.entropy(), f64(0.5 * S * math.log(2 * math.pi * math.e)), atol=1e-8)
    q = MultivariateNormal(torch.zeros(S, dtype=torch.float64), eye)
    assert post.kl(q).abs().max() < 1e-8
    assert torch.allclose(dgn().log_prob(x), post.log_evidence, rtol=1e-15)


@pytest.mark.parametrize("S", [1, 2])
def test_the_e_step_of_rows_far_off_has_the_moments_of_the_posterior(S):
    """Scores and imputations are functions of E[g(z) | x], which the posterior's draws estimate."""
    dgn = girih.DGN(girih.mlp([S, 6, 4], seed=3), noise=0.01)
    x = dgn.net(torch.zeros(3, S, dtype=torch.float64)).detach() + f64([[1e3], [1e5], [1e6]]) * f64([[1, -1, 2, -2]])
    x.requires_grad_()
    (score,) = torch.autograd.grad(dgn().log_prob(x).sum(), x)
    draws = dgn.net(dgn.posterior(x.detach()).sample((4000,), seed=0)).detach()
    expected, error = draws.mean(0), draws.std(0) / math.sqrt(4000)
    ours = x.detach() + 0.01 * score
    assert ((ours - expected).abs() <= 5 * error + 1e-12 * x.detach().abs()).all()


@pytest.mark.parametrize("S", [1, 2])
def test_a_signal_of_1e24_noise_deviations(S):
    """With as many outputs as latents no residual is left but the prior's; its rounding was, squared: -3e15 for -58."""
    net = girih.mlp([S, 4, 4, 4, S], seed=1)
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.mul_(1e6)
    dgn = girih.DGN(net, noise=1.0)
    x = dgn().sample((4,), seed=0).detach()
    evidence = dgn().evidence(x)
    if S == 1:
        right = [float(posterior(cells_of(net), f64(1.0), 1.0, row).log_prob) for row in x]
        assert evidence.log_prob.tolist() == pytest.approx(right, abs=1e-8)
    else:
        # the density of z over the area of the map, at all preimages
        A, b = dgn.partition.affine
        z = torch.linalg.solve(A, (x[:, None, :] - b)[..., None])[..., 0]
        cell = torch.arange(len(A))
        inside = torch.stack([dgn.partition.locate(row) == cell for row in z])
        density = -0.5 * z.square().sum(2) - math.log(2 * math.pi) - torch.linalg.slogdet(A)[1]
        right = torch.where(inside, density, -torch.inf).logsumexp(1)
        assert torch.allclose(evidence.log_prob, right, atol=1e-6)
    assert (evidence.rounding > 1.0).all()  # a last digit of x is a million deviations


def test_rounding_is_small_for_ordinary_rows_and_says_when_it_is_not():
    dgn = girih.DGN(girih.mlp([2, 8, 3], seed=0), noise=0.01)
    x = dgn().sample((20,), seed=0).detach()
    assert dgn.posterior(x).rounding.max() < 1e-9
    assert dgn().evidence(x).rounding.max() < 1e-9
    assert dgn.posterior(1e7 * x).rounding.min() > 1e-9
