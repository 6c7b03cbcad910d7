"""log p(x) by importance sampling and by going through all codes: against each other, the exact density and sums."""

import importlib
import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import girih
from girih.errors import EmptyDataError, LatentDimensionError, NonFiniteError, ParameterError, ShapeError
from girih.vae import CGBPEFVAE, CatVAE, CoarseBPEF, GaussVAE, MixtureVAE, bpef, evidence


def rows(n, d=2, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


MODELS = {
    "gauss": lambda: GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.8, seed=0),
    "mixture": lambda: MixtureVAE(girih.mlp([1, 8, 2], seed=0), noise=0.8, seed=0, components=3),
    "categories": lambda: CatVAE([2, 8, 2], noise=0.8, seed=0, categories=4),
    "polynomials": lambda: CGBPEFVAE([2, 8, 2], noise=0.8, seed=0, order=3, levels=21),
}


def spread_prior(vae):
    """A prior that is not uniform, where it has parameters."""
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "prior" in name:
                parameter.copy_(torch.linspace(-1.0, 1.5, parameter.numel()).reshape(parameter.shape))
    return vae


def exact(vae, x):
    with torch.no_grad():
        if isinstance(vae, CatVAE | CGBPEFVAE):
            return evidence.enumerate_exact(vae, x)
        return girih.DGN(vae.decoder, noise=vae.noise)().log_prob(x)


@pytest.mark.parametrize("name", MODELS)
def test_importance_sampling_finds_the_exact_likelihood(name):
    vae, x = spread_prior(MODELS[name]()), rows(20)
    found = evidence.estimate(vae, x, 20_000, generator())
    truth = exact(vae, x)
    assert (found.effective_samples > 100).all()
    assert ((found.log_prob - truth).abs() < 5 * found.standard_error).all()
    assert found.standard_error.max() < 0.1
    log_p, error = evidence.importance(vae, x, 20_000, generator())
    assert torch.equal(log_p, found.log_prob)
    assert torch.equal(error, found.standard_error)


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_weight_is_unbiased_and_its_logarithm_too_low(name):
    vae = spread_prior(MODELS[name]())
    x, repeats = rows(1), 40_000
    log_p, _ = evidence.importance(vae, x.repeat(repeats, 1), 3, generator(1))
    ratio = (log_p - exact(vae, x)).exp()
    assert abs(ratio.mean() - 1.0) < 5 * ratio.std() / math.sqrt(repeats)
    assert ratio.log().mean() < -5 * ratio.log().std() / math.sqrt(repeats)


@pytest.mark.parametrize("name", MODELS)
def test_the_standard_error_is_the_deviation_of_the_estimate(name):
    vae = spread_prior(MODELS[name]())
    log_p, error = evidence.importance(vae, rows(1).repeat(3000, 1), 400, generator(2))
    assert error.mean().item() == pytest.approx(log_p.std().item(), rel=0.1)


def test_the_weights_are_the_ones_of_the_definition():
    """One row, drawn by hand with the same random numbers."""
    vae = MODELS["gauss"]()
    x = rows(1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        z = vae.encode(x).sample((50,))
        log_w = vae.log_likelihood(x, z) + Normal(0.0, 1.0).log_prob(z).sum(-1) - vae.encode(x).log_prob(z)
        torch.manual_seed(3)
        found = evidence.estimate(vae, x, 50)
    w = log_w[:, 0].exp()
    assert found.log_prob.item() == pytest.approx(w.mean().log().item(), rel=1e-12)
    assert found.standard_error.item() == pytest.approx((w.std() / (w.mean() * math.sqrt(50))).item(), rel=1e-9)
    assert found.effective_samples.item() == pytest.approx((w.sum() ** 2 / w.square().sum()).item(), rel=1e-9)


def test_a_posterior_that_is_the_true_one_has_no_error():
    class Exact(nn.Module):
        """x = z + e, z and e standard normal: q(z | x) = N(x / 2, 1 / 2) is the posterior."""

        output_dim = 1

        def encode(self, x):
            return Independent(Normal(x / 2, math.sqrt(0.5)), 1)

        def prior(self):
            return Independent(Normal(torch.zeros(1, dtype=torch.float64), 1.0), 1)

        def log_likelihood(self, x, z):
            return Normal(z[..., 0], 1.0).log_prob(x[:, 0])

    x = rows(7, 1)
    found = evidence.estimate(Exact(), x, 10, generator())
    torch.testing.assert_close(found.log_prob, Normal(0.0, math.sqrt(2.0)).log_prob(x[:, 0]))
    assert found.standard_error.max() < 1e-7
    torch.testing.assert_close(found.effective_samples, torch.full((7,), 10.0, dtype=torch.float64))


def test_a_miss_shows_in_the_effective_number_of_draws():
    vae = MODELS["gauss"]()
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
        vae.encoder[-1].bias.copy_(torch.tensor([8.0, -2.0]))  # far from every posterior
    found = evidence.estimate(vae, rows(10), 2000, generator())
    missed = exact(vae, rows(10)) - found.log_prob > 5 * found.standard_error
    assert missed.all()  # the standard error does not tell
    assert (found.effective_samples < 0.05 * 2000).all()


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_the_same_estimate(name, monkeypatch):
    vae, x = spread_prior(MODELS[name]()), rows(5)
    whole = evidence.estimate(vae, x, 4000, generator())
    codes = exact(vae, x)
    monkeypatch.setattr("girih.vae.evidence.BLOCK", 20_000)
    monkeypatch.setattr("girih.vae.latent_model.BLOCK", 64)
    parts = evidence.estimate(vae, x, 4000, generator())
    spread = (whole.standard_error**2 + parts.standard_error**2).sqrt()
    assert ((whole.log_prob - parts.log_prob).abs() < 5 * spread).all()
    torch.testing.assert_close(exact(vae, x), codes, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr("girih.vae.evidence.BLOCK", 6)  # rows in parts as well
    assert evidence.estimate(vae, x, 10, generator()).log_prob.shape == (5,)


def test_draws_follow_the_generator_and_leave_the_global_one_alone():
    for name in MODELS:
        vae, x = MODELS[name](), rows(3)
        before = torch.get_rng_state()
        first = evidence.importance(vae, x, 10, generator(5))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(first, evidence.importance(vae, x, 10, generator(5)), strict=True))
        assert not torch.equal(first[0], evidence.importance(vae, x, 10, generator(6))[0])


def by_hand(vae, x):
    """log p(x, y) of every code, by loops: `{code: (log prior, log q (N,), log p(x | y) (N,))}`."""
    p, q = vae.prior().base_dist, vae.encode(x).base_dist
    values = torch.eye(4, dtype=torch.float64) if isinstance(vae, CatVAE) else p.levels
    found = {}
    for code in itertools.product(range(len(values)), repeat=2):
        z = torch.stack([values[k] for k in code])
        log_prior = sum(p.logits[s, k] for s, k in enumerate(code))
        log_q = sum(q.logits[:, s, k] for s, k in enumerate(code))
        mean = vae.decode(z[None]).double()
        found[code] = (log_prior, log_q, Normal(mean, vae.noise.sqrt()).log_prob(x).sum(-1), z)
    return found


@pytest.mark.parametrize("name", ["categories", "polynomials"])
def test_going_through_codes_is_the_sum_by_hand(name):
    vae, x = spread_prior(MODELS[name]()), rows(4)
    with torch.no_grad():
        terms = by_hand(vae, x)
    joint = torch.stack([log_prior + log_x for log_prior, _, log_x, _ in terms.values()])
    log_q = torch.stack([q for _, q, _, _ in terms.values()])
    truth = torch.logsumexp(joint, 0)
    torch.testing.assert_close(evidence.enumerate_exact(vae, x), truth, rtol=1e-11, atol=1e-11)
    found = evidence.enumerate_bound(vae, x)
    torch.testing.assert_close(found.log_prob, truth, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        term_1 = kl_divergence(vae.encode(x), vae.prior())
    term_2 = -(log_q.exp() * torch.stack([log_x for _, _, log_x, _ in terms.values()])).sum(0)
    torch.testing.assert_close(found.bound, term_1 + term_2, rtol=1e-10, atol=1e-10)
    assert (found.bound + found.log_prob > 0.0).all()
    posterior = evidence.enumerate_posterior(vae, x)
    assert posterior.log_prob.shape == (4, len(terms))
    torch.testing.assert_close(posterior.log_prob.exp().sum(1), torch.ones(4, dtype=torch.float64))
    order = {tuple(code.flatten().tolist()): k for k, code in enumerate(posterior.codes)}
    columns = [order[tuple(z.flatten().tolist())] for *_, z in terms.values()]
    assert sorted(columns) == list(range(len(terms)))
    torch.testing.assert_close(posterior.log_prob[:, columns], (joint - truth).mT, rtol=1e-10, atol=1e-10)
    gap = (log_q.exp() * (log_q - posterior.log_prob[:, columns].mT)).sum(0)
    torch.testing.assert_close(found.bound + found.log_prob, gap, rtol=1e-9, atol=1e-10)


class Three(nn.Module):
    """One latent of three values, x = z + e, as the library's models with discrete latents see theirs."""

    output_dim, noise = 1, 0.3

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def encode(self, x):
        return Independent(CoarseBPEF(torch.stack((2.0 * x[:, :1], -0.3 + 0.0 * x[:, :1]), -1)[..., :1], 3), 1)

    def prior(self):
        return Independent(CoarseBPEF(torch.tensor([[0.4]]), 3), 1)

    def log_likelihood(self, x, z):
        return Normal(z[..., 0], self.noise).log_prob(x[:, 0])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_relaxed_likelihood_is_the_integral_over_the_simplex(temperature):
    vae, x = Three(temperature), torch.tensor([[-0.9], [-0.2], [0.5]], dtype=torch.float64)
    u = torch.linspace(-60.0, 60.0, 1201, dtype=torch.float64)
    grid = torch.stack((*torch.meshgrid(u, u, indexing="ij"), torch.zeros(1201, 1201, dtype=torch.float64)), -1)
    log_y = torch.log_softmax(grid, -1)
    logits = vae.prior().base_dist.logits[0]
    log_mass = bpef.log_density(log_y, logits, temperature) + log_y.sum(-1) + 2.0 * math.log(0.1)
    z = log_y.exp() @ torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    log_x = Normal(z, vae.noise).log_prob(x[:, :, None])
    truth = torch.logsumexp((log_x + log_mass).flatten(1), 1)
    found = evidence.estimate(vae, x, 200_000, generator(), relaxed=True)
    assert ((found.log_prob - truth).abs() < 5 * found.standard_error).all()
    assert found.standard_error.max() < 0.01
    hard = torch.logsumexp(vae.log_likelihood(x, torch.tensor([[[-1.0]], [[0.0]], [[1.0]]])) + logits[:, None], 0)
    torch.testing.assert_close(evidence.enumerate_exact(vae, x), hard)
    assert ((hard - truth).abs() > 0.05).any()  # another model


@pytest.mark.parametrize("name", ["categories", "polynomials"])
def test_relaxed_estimates_agree_with_draws_from_the_prior(name):
    """Without a proposal at all: the mean of p(x | z) over Concrete draws from the prior."""
    vae, x = spread_prior(MODELS[name]()), rows(5)
    found = evidence.estimate(vae, x, 40_000, generator(), relaxed=True)
    p = vae.prior().base_dist
    with torch.no_grad():
        y = torch.distributions.RelaxedOneHotCategorical(torch.tensor(vae.temperature), logits=p.logits)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            y = y.sample((40_000,))
        z = y if name == "categories" else y @ p.levels
        w = vae.log_likelihood(x, z[:, None]).exp()
    truth, error = w.mean(0).log(), w.std(0) / (w.mean(0) * 200.0)
    assert ((found.log_prob - truth).abs() < 5 * (error**2 + found.standard_error**2).sqrt()).all()


def test_the_free_energy_of_training_is_no_bound_on_hard_codes():
    """Relaxed draws reach a row between two levels, and codes do not; the divergence is that of the codes."""
    decoder, encoder = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()
    vae = CGBPEFVAE(decoder, encoder, noise=0.01, order=1, levels=3, basis="monomial", temperature=5.0)
    with torch.no_grad():
        for layer, weight, bias in ((decoder, 1.0, 0.0), (encoder, 0.0, 2.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
        x = vae.encode([[0.0]]).base_dist.relaxed(5.0).sample((10_000,), seed=0).mean()[None, None]
        free_energy = vae.free_energy(x.expand(2000, 1), samples=10, seed=0).total
        nll = -evidence.enumerate_exact(vae, x)
    assert free_energy.mean() + 5 * free_energy.std() / math.sqrt(2000) < nll.item() - 1.0
    assert evidence.enumerate_bound(vae, x).bound > nll
    log_p, error = evidence.importance(vae, x, 20_000, generator(), relaxed=True)
    assert (-log_p + 5 * error).item() < nll.item()  # of the relaxed model x is no surprise


def test_networks_are_in_evaluation_mode_and_go_back():
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)).double()
    vae = CGBPEFVAE(decoder, order=2, levels=5, seed=0).train()
    x = rows(3)
    assert torch.equal(evidence.enumerate_exact(vae, x), evidence.enumerate_exact(vae, x))
    assert torch.equal(evidence.importance(vae, x, 5, generator())[0], evidence.importance(vae, x, 5, generator())[0])
    assert vae.training and decoder.training
    assert not evidence.enumerate_exact(vae, x).requires_grad


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(3, 5), ShapeError),
        (torch.zeros(0, 2), EmptyDataError),
        (torch.tensor([[0.0, math.nan]]), NonFiniteError),
    ],
)
def test_bad_rows_are_refused(x, error):
    vae = MODELS["categories"]()
    for function in (
        evidence.estimate,
        evidence.importance,
        evidence.enumerate_exact,
        evidence.enumerate_bound,
        evidence.enumerate_posterior,
    ):
        with pytest.raises(error):
            function(vae, x)


def test_what_cannot_be_done_is_refused():
    x = rows(2)
    for samples in (0, 1, 2.5):
        with pytest.raises(ParameterError, match="samples must be a whole number, 2 or more"):
            evidence.importance(MODELS["gauss"](), x, samples)
    for name in ("gauss", "mixture"):
        with pytest.raises(ParameterError, match="continuous; leave it out"):
            evidence.importance(MODELS[name](), x, relaxed=True)
        with pytest.raises(ParameterError, match="continuous: there are no codes"):
            evidence.enumerate_exact(MODELS[name](), x)
    with pytest.raises(LatentDimensionError, match=r"3 latents of 101 values each have 1.03e\+06 codes"):
        evidence.enumerate_exact(CGBPEFVAE([3, 8, 2], seed=0), x)
    with pytest.raises(LatentDimensionError, match=r"20 latents of 10 values each have 1e\+20 codes"):
        evidence.enumerate_posterior(CatVAE([20, 8, 2], seed=0), x)
    assert Categorical(logits=evidence.enumerate_posterior(MODELS["categories"](), x).log_prob).batch_shape == (2,)


def test_the_former_module_of_codes_forwards():
    former = importlib.import_module("girih.vae.codes")
    with pytest.warns(DeprecationWarning, match=r"use girih\.vae\.evidence\.enumerate_exact"):
        assert former.enumerate_exact is evidence.enumerate_exact
    assert not hasattr(former, "nothing_of_the_kind")
