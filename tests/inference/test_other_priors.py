"""Uniform priors and mixtures of Gaussians, beside quadrature and the exact engine for Gaussian priors."""

import copy
import math
import pickle
from itertools import pairwise

import mpmath
import pytest
import torch
from scipy.integrate import quad
from torch import nn

import girih
from girih.em import fit_em
from girih.errors import NoClosedFormError, ParameterError, ShapeError
from twins import entry_difference

NAN = float("nan")


def moved(net: nn.Module, mean: torch.Tensor, factor: torch.Tensor) -> nn.Sequential:
    """The generator of standard normal latents u, `z = mean + factor u`."""
    first = nn.Linear(len(mean), len(mean)).double()
    with torch.no_grad():
        first.weight.copy_(factor)
        first.bias.copy_(mean)
    return nn.Sequential(first, *net)


def mixture(S: int) -> girih.GaussianMixturePrior:
    root = torch.eye(S, dtype=torch.float64) + 0.3 * torch.ones(S, S, dtype=torch.float64).tril(-1)
    return girih.GaussianMixturePrior(
        [1.0, 3.0], [[-1.0] * S, [0.7] * S], torch.stack((0.3 * root @ root.T, 0.6 * root @ root.T))
    )


def parts_of(net: nn.Module, prior: girih.GaussianMixturePrior, S: int, **options: object) -> list[girih.DGN]:
    latent = prior.of(S)
    return [girih.DGN(moved(net, m, L), **options) for m, L in zip(latent.means, latent.factor, strict=True)]


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize(("S", "noise"), [(1, 1e-3), (1, 0.3), (2, 1e-2), (2, 1e-5), (3, 0.3)])
def test_a_mixture_is_the_sum_of_exact_parts(S, noise, near, monkeypatch):
    monkeypatch.setattr("girih.inference.priors.MixturePrior.near", near)
    net = girih.mlp([S, 6, 6, 3] if S < 3 else [S, 4, 3], activation="relu", seed=S)  # with cells of rank below S
    prior = mixture(S)
    dgn = girih.DGN(net, noise=noise, prior=prior)
    x = dgn().sample((3,), seed=0).detach()
    x[1] += 2.0
    x = torch.cat((x, x[:1]))
    x[3, 1] = NAN
    parts = parts_of(net, prior, S, noise=noise)
    log_w = prior.of(S).weights.log()
    each = torch.stack([log_w[k] + part().log_prob(x) for k, part in enumerate(parts)])
    expected = each.logsumexp(0).detach()
    post = dgn.posterior(x)
    torch.testing.assert_close(post.log_evidence, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(dgn().log_prob(x).detach(), expected, rtol=1e-8, atol=1e-8)
    assert (post.left_out <= 1e-10).all()
    share, latent = each.softmax(0).detach(), prior.of(S)
    moments = [part.posterior(x) for part in parts]
    means = torch.stack([m + p.mean @ L.T for m, L, p in zip(latent.means, latent.factor, moments, strict=True)])
    mean = (share[..., None] * means).sum(0)
    torch.testing.assert_close(post.mean, mean, rtol=1e-7, atol=1e-7)
    spread = torch.stack([L @ p.covariance @ L.T for L, p in zip(latent.factor, moments, strict=True)])
    off = means - mean
    spread = spread + off[..., None] * off[..., None, :]
    torch.testing.assert_close(post.covariance, (share[..., None, None] * spread).sum(0), rtol=1e-6, atol=1e-7)
    filled = (share[..., None] * torch.stack([part.impute(x) for part in parts])).sum(0)
    torch.testing.assert_close(dgn.impute(x), filled, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("S", [1, 2])
@pytest.mark.parametrize("noise", [1e-6, 1e-2, 1e3])
def test_rows_far_off_beside_the_exact_engine(S, noise, near, monkeypatch):
    monkeypatch.setattr("girih.inference.priors.MixturePrior.near", near)
    net = girih.mlp([S, 6, 6, 3], activation="relu", seed=S)
    one = girih.GaussianMixturePrior([1.0], torch.zeros(1, S), 1.0)
    exact, x = girih.DGN(net, noise=noise), girih.DGN(net, noise=noise)().sample((2,), seed=0).detach()
    x = torch.cat((x, x[:1] + 1.0, x[:1] + 30.0, x[:1] - 1e3))
    expected, post = exact.posterior(x), girih.DGN(net, noise=noise, prior=one).posterior(x)
    size = expected.log_evidence.abs().clamp(min=1.0)
    assert ((post.log_evidence - expected.log_evidence).abs() <= 1e-8 * size).all()
    off = (post.mean - expected.mean).abs().amax(1) / expected.variance.amax(1).sqrt()
    assert (off <= 1e-6 + post.rounding).all()
    assert (post.left_out <= 1e-10).all()
    box = girih.DGN(net, noise=noise, prior=girih.Uniform(-2.0, 2.0)).posterior(x)
    assert (box.mean.abs() <= 2.0).all()


@pytest.mark.parametrize("noise", [1e-4, 0.05, 3.0])
@pytest.mark.parametrize(("prior", "low", "high"), [(girih.Uniform(-1.0, 1.5), -1.0, 1.5), (mixture(1), -8.0, 8.0)])
def test_on_a_line_beside_quadrature(noise, prior, low, high):
    net = girih.mlp([1, 8, 8, 2], activation="relu", seed=3)
    dgn = girih.DGN(net, noise=noise, prior=prior)
    x = torch.cat((dgn().sample((3,), seed=0).detach(), torch.tensor([[0.7, NAN], [3.0, -2.0]], dtype=torch.float64)))
    post, knots = dgn.posterior(x), dgn.partition.breakpoints

    def log_prior(z):
        if isinstance(prior, girih.Uniform):
            return -math.log(2.5)
        away = [((z + 1.0) ** 2 / 0.3, 0.25 / math.sqrt(0.3)), ((z - 0.7) ** 2 / 0.6, 0.75 / math.sqrt(0.6))]
        return math.log(sum(w * math.exp(-0.5 * square) for square, w in away) / math.sqrt(2.0 * math.pi))

    for n, row in enumerate(x):
        seen, peak = ~torch.isnan(row), post.mode[n, 0].item()
        top = post.log_prob(post.mode)[n].item() + post.log_evidence[n].item()

        def density(z, power, row=row, seen=seen, top=top):
            g = net(torch.tensor([z], dtype=torch.float64)).detach()[seen]
            square = (row[seen] - g).square().sum().item() / noise
            log_p = -0.5 * square - 0.5 * int(seen.sum()) * math.log(2 * math.pi * noise)
            return math.exp(log_p + log_prior(z) - top) * z**power

        inside = [e for e in (*knots.tolist(), peak - 0.02, peak + 0.02) if low < e < high]
        ends = sorted({low, high, peak, *inside})
        pieces = list(pairwise(ends))
        m0, m1, m2 = (
            sum(quad(density, a, b, args=(k,), epsabs=0.0, epsrel=1e-11)[0] for a, b in pieces) for k in range(3)
        )
        assert post.log_evidence[n].item() == pytest.approx(math.log(m0) + top, abs=1e-8, rel=1e-9)
        assert post.mean[n, 0].item() == pytest.approx(m1 / m0, abs=1e-8)
        assert post.covariance[n, 0, 0].item() == pytest.approx(m2 / m0 - (m1 / m0) ** 2, rel=1e-5)


@pytest.mark.parametrize("S", [2, 3])
def test_uniform_over_coordinates_that_do_not_meet(S):
    # x_k = |z_k|, and one coordinate that says nothing: the integral is a product
    net = nn.Sequential(nn.Linear(S, S), girih.networks.Abs()).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 0.0][:S])))
        net[0].bias.zero_()
    low, high, sd = [-1.0] * S, [2.0, 0.5, 1.0][:S], 0.1
    dgn = girih.DGN(net, noise=sd**2, prior=girih.Uniform(low, high))
    x = torch.tensor([[0.5, 0.3, 0.1], [2.4, -0.2, 0.0]], dtype=torch.float64)[:, :S]
    normal, expected = (
        torch.distributions.Normal(*torch.tensor([0.0, sd], dtype=torch.float64)),
        torch.zeros(2, dtype=torch.float64),
    )
    for k, a in enumerate([1.0, 2.0, 0.0][:S]):
        volume = high[k] - low[k]
        if a == 0.0:
            expected += normal.log_prob(x[:, k])
            continue
        sides = [(0.0, high[k]), (0.0, -low[k])]
        mass = sum(normal.cdf(a * e - x[:, k]) - normal.cdf(a * s - x[:, k]) for s, e in sides) / a
        expected += (mass / volume).log()
    torch.testing.assert_close(dgn().log_prob(x).detach(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize("noise", [1e-6, 0.1, 1e3])
@pytest.mark.parametrize("low", [-1.0, 4.0])
def test_uniform_in_closed_form_and_by_cubature(S, noise, low, monkeypatch):
    net = girih.mlp([S, 5, 4], activation="leaky_relu", seed=1)
    box = girih.DGN(net, noise=noise, prior=girih.Uniform(low, low + 2.0))
    x = torch.cat((box().sample((4,), seed=0).detach(), torch.full((1, 4), 7.0, dtype=torch.float64)))
    x[1, 0] = NAN
    ours = box.posterior(x)
    outside = torch.full((5, S), low + 1.0, dtype=torch.float64)
    outside[:, 0] = low - 1e-6
    monkeypatch.setattr("girih.inference.priors.UniformPrior.near", False)
    theirs = girih.DGN(net, noise=noise, prior=girih.Uniform(low, low + 2.0)).posterior(x)
    size = 1.0 + theirs.log_evidence.abs()
    assert ((ours.log_evidence - theirs.log_evidence).abs() < 1e-8 * size + theirs.rounding).all()
    spread = theirs.variance.sqrt()
    assert ((ours.mean - theirs.mean).abs() < (1e-6 + theirs.rounding[:, None]) * spread).all()
    assert ((ours.variance.sqrt() - spread).abs() < (1e-5 + theirs.rounding[:, None]) * spread).all()
    assert ((ours.entropy() - theirs.entropy()).abs() < 1e-5 + theirs.rounding).all()
    z = ours.sample((200,), seed=0)
    assert ((z >= low) & (z <= low + 2.0)).all()
    assert ((ours.log_prob(z) - theirs.log_prob(z)).abs() < 1e-6 + theirs.rounding).all()
    assert torch.isneginf(ours.log_prob(outside)).all()
    q = torch.distributions.Normal(ours.mean, spread)
    assert torch.isposinf(ours.kl(q)).all()
    assert torch.isneginf(box.elbo(x, q)).all()


@pytest.mark.parametrize(("S", "noise"), [(1, 1e-6), (1, 0.1), (1, 1e3), (2, 1e-6), (2, 0.1), (2, 1e3), (3, 0.1)])
def test_a_mixture_in_closed_form_and_by_cubature(S, noise, monkeypatch):
    net, prior = girih.mlp([S, 4, 4], activation="leaky_relu", seed=1), mixture(S)
    dgn = girih.DGN(net, noise=noise, prior=prior)
    x = torch.cat((dgn().sample((2,), seed=0).detach(), torch.full((1, 4), 7.0, dtype=torch.float64)))
    x[1, 0] = NAN
    ours, filled, variance = dgn.posterior(x), dgn.impute(x, return_std=True), dgn().variance
    monkeypatch.setattr("girih.inference.priors.MixturePrior.near", False)
    other = girih.DGN(net, noise=noise, prior=prior)
    for mine, its in zip((*filled, variance), (*other.impute(x, return_std=True), other().variance), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    theirs = other.posterior(x)
    assert type(ours) is not type(theirs)
    size = 1.0 + theirs.log_evidence.abs()
    assert ((ours.log_evidence - theirs.log_evidence).abs() < 1e-7 * size + theirs.rounding).all()
    spread = theirs.variance.sqrt()
    assert ((ours.mean - theirs.mean).abs() < (1e-6 + theirs.rounding[:, None]) * spread).all()
    assert ((ours.variance.sqrt() - spread).abs() < (1e-5 + theirs.rounding[:, None]) * spread).all()
    assert (ours.cell_probs().to_dense() - theirs.cell_probs().to_dense()).abs().max() < 1e-6 + theirs.rounding.max()
    assert torch.equal(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode, theirs.mode)
    z = ours.sample((50,), seed=0)
    assert ((ours.log_prob(z) - theirs.log_prob(z)).abs() < 1e-6 + theirs.rounding + ours.rounding).all()
    q = torch.distributions.Normal(ours.mean, spread)
    assert torch.equal(ours.kl(q), theirs.kl(q))


@pytest.mark.parametrize("S", [1, 2])
@pytest.mark.parametrize("off", [0.0, 3.0, 1e3, 1e6])
def test_shares_of_parts_beside_fifty_digits(S, off):
    """A linear generator makes a mixture of Gaussians of x."""
    net = nn.Linear(S, 3).double()
    torch.manual_seed(S)
    with torch.no_grad():
        net.weight.copy_(torch.randn(3, S, dtype=torch.float64))
    means = [[-2.0] * S, [2.0] * S]
    dgn = girih.DGN(net, noise=0.25, prior=girih.GaussianMixturePrior([1.0, 2.0], means, 0.5))
    with torch.no_grad():
        away = torch.linalg.svd(net.weight).U[:, -1]  # no part explains more of it than another
        x = (net(torch.full((1, S), 0.02, dtype=torch.float64)) + off * away).detach()
        with mpmath.workdps(50):
            W, b = mpmath.matrix(net.weight.tolist()), mpmath.matrix(net.bias.tolist())
            spread = 0.25 * mpmath.eye(3) + 0.5 * W * W.T
            joint, centres = [], []
            for weight, mean in zip((1, 2), means, strict=True):
                m = mpmath.matrix(mean)
                rest = mpmath.matrix(x[0].tolist()) - b - W * m
                solved = mpmath.lu_solve(spread, rest)
                joint.append(mpmath.log(mpmath.mpf(weight) / 3) - (rest.T * solved)[0] / 2)
                centres.append(m[0] + (0.5 * W.T * solved)[0])
            top = max(joint)
            share = [mpmath.exp(one - top) for one in joint]
            expected = sum(s * c for s, c in zip(share, centres, strict=True)) / sum(share)
            log_p = top + mpmath.log(sum(share)) - mpmath.log(mpmath.det(2 * mpmath.pi * spread)) / 2
    post = dgn.posterior(x)
    deviation = post.variance[0, 0].sqrt()
    assert abs(post.mean[0, 0].item() - float(expected)) < (1e-9 + post.rounding[0]) * deviation
    assert post.log_evidence[0].item() == pytest.approx(float(log_p), rel=1e-12, abs=1e-9)
    assert post.rounding[0] < 1e-10 * max(1.0, off**2)


def test_a_mixture_far_from_0_is_left_to_the_cubature():
    net = nn.Linear(1, 2).double()
    dgn = girih.DGN(net, noise=0.1, prior=girih.GaussianMixturePrior([1.0], [[1e6]], 1.0))
    z = torch.distributions.Normal(net.weight[:, 0] * 1e6 + net.bias, 1.0)  # any place near
    assert hasattr(dgn.posterior(z.mean.detach()[None]), "error")


def test_uniform_far_from_0():
    # the cells of a box a million sides away have too few digits beside a prior that is wider still
    net = nn.Linear(1, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [0.5]]))
        net.bias.copy_(torch.tensor([-1e6, -5e5]))
    far = girih.DGN(net, noise=0.01, prior=girih.Uniform(1e6, 1e6 + 1.0))
    near = nn.Linear(1, 2).double()
    with torch.no_grad():
        near.weight.copy_(net.weight)
        near.bias.zero_()
    x = torch.tensor([[0.3, 0.2], [1.5, 0.4]], dtype=torch.float64)
    expected = girih.DGN(near, noise=0.01, prior=girih.Uniform(0.0, 1.0))().log_prob(x)
    torch.testing.assert_close(far().log_prob(x), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prior", [girih.Uniform(-1.0, 1.5), mixture(2)])
def test_derivatives_are_right(prior):
    net = girih.mlp([2, 5, 3], activation="leaky_relu", seed=1)
    dgn = girih.DGN(net, noise=[0.1, 0.2, 0.3], prior=prior)
    x = dgn().sample((3,), seed=1).detach()
    x[2, 0] = NAN
    log_p = dgn().log_prob(x).sum()
    log_p.backward()
    step = 1e-5
    for parameter in dgn.parameters():
        exact = entry_difference(lambda: dgn().log_prob(x).sum(), parameter, step)
        assert parameter.grad.flatten()[0].item() == pytest.approx(exact, rel=1e-5, abs=1e-6)
    score = dgn().score(x)
    moved_x = x.clone()
    moved_x[:, 1] += step
    difference = (dgn().log_prob(moved_x) - dgn().log_prob(x)).detach() / step
    torch.testing.assert_close(score[:, 1].detach(), difference, rtol=1e-3, atol=1e-3)
    x.requires_grad_()
    (curvature,) = torch.autograd.grad(dgn().score(x)[:, 2].sum(), x)
    with torch.no_grad():
        moved_x[:, 1] -= 2.0 * step
        difference = (score - dgn().score(moved_x))[:, 2] / step
    torch.testing.assert_close(curvature[:, 1], difference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prior", [girih.Uniform([-1.0, 0.0], [1.5, 1.0]), mixture(2)])
def test_draws_densities_modes_and_cells_agree(prior):
    dgn = girih.DGN(girih.mlp([2, 6, 3], activation="relu", seed=2), noise=0.1, prior=prior)
    post = dgn.posterior(torch.cat((dgn().sample((2,), seed=0).detach(), torch.full((1, 3), NAN))))
    z = post.sample((4000,), seed=0)
    error = (post.variance / 4000).sqrt()
    assert ((z.mean(0) - post.mean).abs() < 5.0 * error).all()
    log_q = post.log_prob(z)
    assert ((-log_q.mean(0) - post.entropy()).abs() < 5.0 * log_q.std(0) / math.sqrt(4000) + 1e-9).all()
    assert (post.log_prob(post.mode) >= log_q.amax(0)).all()
    probs, cells = post.cell_probs().to_dense(), dgn.partition
    torch.testing.assert_close(probs.sum(1), torch.ones(3, dtype=torch.float64))
    counts = torch.stack([torch.bincount(cells.locate(z[:, n]), minlength=len(cells)) for n in range(3)]) / 4000
    assert ((counts - probs).abs() < 5.0 * (probs / 4000).sqrt() + 1e-3).all()


def test_what_a_uniform_prior_does_not_have_is_refused_by_name():
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1, prior=girih.Uniform(-1.0, 1.0))
    x = dgn().sample((4,), seed=0).detach()
    assert dgn.partition.domain == (-1.0, 1.0)
    assert dgn.posterior(x).log_prob(torch.full((4, 1), 1.5)).tolist() == [-math.inf] * 4
    with pytest.raises(ParameterError, match="latent_prior"):
        _ = dgn.prior
    with pytest.raises(ParameterError, match="not Gaussian"):
        _ = dgn.partition.prior_mass
    with pytest.raises(ParameterError, match="not Gaussian"):
        fit_em(dgn, x, learn_prior=True)
    with pytest.raises(ParameterError, match="not Gaussian"):
        girih.train(dgn, x, learn_prior=True, max_steps=1)
    with pytest.raises(NoClosedFormError):
        dgn().entropy()
    for wrong, error in (((1.0, -1.0), ParameterError), (([0.0, 0.0], 1.0), ShapeError)):
        with pytest.raises(error):
            girih.DGN(girih.mlp([1, 4, 2], seed=0), prior=girih.Uniform(*wrong))
    with pytest.raises(ShapeError):
        girih.DGN(girih.mlp([2, 4, 2], seed=0), prior=girih.GaussianMixturePrior([1.0], [[0.0]], 1.0))


@pytest.mark.parametrize("prior", [girih.Uniform(-1.0, [1.5, 2.0]), mixture(2)])
def test_saving_and_loading(prior, tmp_path):
    dgn = girih.DGN(girih.mlp([2, 5, 3], seed=0), noise=0.1, prior=prior)
    x = dgn().sample((3,), seed=0).detach()
    girih.save(dgn, tmp_path / "model")
    assert torch.equal(girih.load(tmp_path / "model")().log_prob(x), dgn().log_prob(x))


def test_divergence_from_a_gaussian_beside_draws():
    dgn = girih.DGN(girih.mlp([2, 6, 3], seed=2), noise=0.1, prior=mixture(2))
    post = dgn.posterior(dgn().sample((2,), seed=0).detach())
    q = torch.distributions.MultivariateNormal(post.mean, post.covariance)
    torch.manual_seed(0)
    z = q.sample((20_000,))
    draws = q.log_prob(z) - post.log_prob(z)
    assert ((draws.mean(0) - post.kl(q)).abs() < 5.0 * draws.std(0) / math.sqrt(20_000)).all()


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(make):
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1, prior=girih.Uniform(-1.0, 1.0))
    x = dgn().sample((3,), seed=0).detach()
    assert torch.equal(make(dgn)().log_prob(x), dgn().log_prob(x))
    pixels = girih.DGN(dgn.net, likelihood="bernoulli")
    assert torch.equal(make(pixels)().log_prob(x > 0.0), pixels().log_prob(x > 0.0))
    assert torch.equal(make(dgn.partition).volume, dgn.partition.volume)


def test_nothing_is_left_out_at_a_tolerance_of_0():
    net, prior = girih.mlp([2, 4, 2], seed=0), girih.Uniform(-1.0, 1.0)
    dgn = girih.DGN(net, noise=0.1, prior=prior, tol=0.0)
    x = dgn().sample((3,), seed=0).detach()
    found = dgn().evidence(x)
    assert (found.left_out < 1e-250).all()
    torch.testing.assert_close(
        found.log_prob, girih.DGN(net, noise=0.1, prior=prior)().log_prob(x), rtol=0.0, atol=1e-8
    )
