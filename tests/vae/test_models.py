"""What all VAEs share: the two terms against slow twins, the distributions, reconstructions, bad input."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

import girih
from girih.errors import EmptyDataError, NoiseError, NonFiniteError, ParameterError, ShapeError
from girih.vae import CGBPEFVAE, CatVAE, FreeEnergy, GaussVAE, MixtureVAE, evidence

KINDS = {
    "gauss": (GaussVAE, {}),
    "mixture": (MixtureVAE, {"components": 3}),
    "cat": (CatVAE, {"categories": 4, "temperature": 0.7}),
    "bpef": (CGBPEFVAE, {"order": 3, "levels": 21, "temperature": 0.7}),
}


def make(kind, sizes=(2, 16, 5), spread=3.0, **options):
    """A VAE whose posteriors differ from row to row and from the prior, which untrained encoders hardly do."""
    build, own = KINDS[kind]
    vae = build(list(sizes), **{"seed": 0, "noise": 0.3, **own, **options})
    with torch.no_grad():
        last = [layer for layer in vae.encoder if isinstance(layer, nn.Linear)][-1]
        last.weight.mul_(spread)
        generator = torch.Generator().manual_seed(1)
        last.bias.copy_(0.5 * torch.randn(last.bias.shape, generator=generator, dtype=torch.float64))
        if kind == "bpef":
            vae.prior_coefficients.copy_(torch.randn(vae.prior_coefficients.shape, generator=generator))
    return vae


def rows(n=4, d=5, seed=0):
    return torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["gauss", "cat", "bpef"])
def test_term_1_is_the_divergence_of_the_distributions(kind):
    vae, x = make(kind), rows()
    q, p = vae.encode(x), vae.prior()
    expected = kl_divergence(q.base_dist, p.base_dist).sum(1)
    assert expected.min() > 0.1
    torch.testing.assert_close(vae.free_energy(x).divergence, expected, rtol=1e-10, atol=1e-12)


def test_term_1_of_a_mixture_averages_to_its_divergence():
    """A mixture in one dimension, its divergence by quadrature."""
    vae, x = make("mixture", (1, 8, 5)), rows(3)
    z = torch.linspace(-12.0, 12.0, 48_001, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        q = vae.encode(x)
        log_q = q.log_prob(z)
        expected = torch.trapezoid(log_q.exp() * (log_q - vae.prior().log_prob(z)), z[:, :, 0], dim=0)
        estimates = torch.stack([vae.free_energy(x, 500, seed=seed).divergence for seed in range(40)])
    assert (q.mixture_distribution.probs.max(1).values < 0.9).all()
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - expected).abs() < 5 * error).all() and (error < 0.01).all()


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("kind", ["gauss", "mixture"])
def test_term_2_falls_to_its_expectation(kind, likelihood):
    """One latent: E_q[log p(x | z)] by quadrature; the error of L draws shrinks like 1 / sqrt(L)."""
    vae, x = make(kind, (1, 8, 5), likelihood=likelihood), rows(3)
    z = torch.linspace(-12.0, 12.0, 24_001, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        log_p = vae.log_likelihood(x, z)
        expected = -torch.trapezoid(vae.encode(x).log_prob(z).exp() * log_p, z[:, :, 0], dim=0)
        errors = {}
        for samples in (10, 1000):
            found = torch.stack([vae.free_energy(x, samples, seed=seed).reconstruction for seed in range(40)])
            spread = found.std(0) / math.sqrt(40)
            assert ((found.mean(0) - expected).abs() < 5 * spread).all()
            errors[samples] = found.std(0)
    assert ((errors[10] / errors[1000]) > 5).all()


@pytest.mark.parametrize("kind", ["cat", "bpef"])
def test_term_2_of_discrete_latents_tends_to_the_sum_over_codes_as_the_temperature_falls(kind):
    vae, x = make(kind, (1, 8, 5), temperature=0.01), rows(3)
    q = vae.encode(x)
    if kind == "cat":
        codes = torch.eye(4, dtype=torch.float64)[:, None, None]
    else:
        codes = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        weights = q.log_prob(codes.expand(-1, 3, *vae.prior().event_shape)).exp()
        torch.testing.assert_close(weights.sum(0), torch.ones(3, dtype=torch.float64))
        expected = -(weights * vae.log_likelihood(x, codes)).sum(0)
        found = torch.stack([vae.free_energy(x, 500, seed=seed).reconstruction for seed in range(40)])
    error = found.std(0) / math.sqrt(40)
    assert ((found.mean(0) - expected).abs() < 5 * error + 0.01).all()


@pytest.mark.parametrize("kind", ["cat", "bpef"])
def test_relaxed_draws_follow_the_law_of_torch(kind):
    """Means and spreads of the decoder's input against `RelaxedOneHotCategorical`."""
    vae, x = make(kind), rows(2)
    with torch.no_grad():
        q = vae.encode(x).base_dist
        drawn = vae.family.draw(vae.encoded(x), 40_000, torch.Generator().manual_seed(0)).latents
        with torch.random.fork_rng():
            torch.manual_seed(1)
            twin = torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.7), logits=q.logits).sample((40_000,))
        twin = twin.flatten(2) if kind == "cat" else twin @ q.levels
    error = (drawn.std(0) + twin.std(0)) / math.sqrt(40_000)
    assert ((drawn.mean(0) - twin.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(drawn.std(0), twin.std(0), rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihood_is_that_of_torch(kind):
    x = rows()
    for likelihood in ("gaussian", "bernoulli"):
        vae = make(kind, likelihood=likelihood)
        with torch.no_grad():
            z = vae.encode(x).sample((3,))
            mean = torch.stack([vae.decode(part) for part in z])
            if likelihood == "gaussian":
                expected = Independent(Normal(mean, math.sqrt(0.3)), 1).log_prob(x)
            else:
                hard = x.round()
                expected = Independent(Bernoulli(mean), 1).log_prob(hard)
            found = vae.log_likelihood(x if likelihood == "gaussian" else hard, z)
            shared = vae.log_likelihood(x.round(), z[:, :1])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(shared[:, 0], vae.log_likelihood(x[:1].round(), z[:, :1])[:, 0])
        assert shared.shape == (3, 4)


def test_grey_values_are_the_mean_over_bits():
    vae, x = make("gauss", likelihood="bernoulli"), rows(1)
    z = torch.zeros(1, 2, dtype=torch.float64)
    p = vae.decode(z)
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(1)
    torch.testing.assert_close(vae.log_likelihood(x, z), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["cat", "bpef"])
def test_gradients_are_finite_at_every_temperature(kind, temperature, dtype):
    vae = make(kind, temperature=temperature, dtype=dtype, spread=30.0)
    for seed in range(5):
        vae.zero_grad()
        vae.free_energy(rows(20), samples=4, seed=seed).total.mean().backward()
        assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in vae.parameters())


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind, likelihood):
    vae = make(kind, likelihood=likelihood)
    vae.free_energy(rows(20), samples=2, seed=0).total.mean().backward()
    names = {name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not names
    assert ("log_noise" in dict(vae.named_parameters())) == (likelihood == "gaussian")


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_mean_over_draws(kind):
    """With the draws fixed by a seed, finite differences of the free energy."""
    vae, x = make(kind), rows(3)
    parameter = vae.encoder[-1].bias

    def value():
        return vae.free_energy(x, 3, seed=5).total.mean()

    (gradient,) = torch.autograd.grad(value(), parameter)
    for index in range(len(parameter)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[index] += step
                values.append(value().item())
                parameter[index] -= step
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient[index].item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_meaning_of_what_a_user_asks_for(kind):
    vae, x = make(kind, likelihood="bernoulli"), rows(6)
    event = vae.prior().event_shape
    assert event == ((2, 4) if kind == "cat" else (2,)) == vae.encode(x).event_shape
    assert vae.encode(x).batch_shape == (6,) and vae.encode(x).sample().dtype == torch.float64
    terms = vae.free_energy(x, samples=3, seed=0)
    assert isinstance(terms, FreeEnergy) and torch.equal(terms.total, terms.divergence + terms.reconstruction)
    mean, deviation = vae.embed(x)
    assert mean.shape == deviation.shape == (6, *event) and not mean.requires_grad
    drawn = vae.encode(x).sample((20_000,)).double()
    assert ((drawn.mean(0) - mean).abs() < 5 * deviation / math.sqrt(20_000) + 1e-9).all()
    torch.testing.assert_close(drawn.std(0), deviation, rtol=0.05, atol=5e-3)
    again = vae.reconstruct(x)
    assert again.shape == (6, 5) and ((again >= 0) & (again <= 1)).all()
    bits = vae.sample(7, seed=3)
    assert bits.shape == (7, 5) and set(bits.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(bits, vae.sample(7, seed=3)) and not torch.equal(bits, vae.sample(7, seed=4))
    assert vae().sample((2, 3)).shape == (2, 3, 5)
    torch.testing.assert_close(
        vae.sample(20_000, seed=0).mean(0), vae.sample(20_000, seed=1, mean=True).mean(0), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_relaxed_draws_from_the_prior(kind):
    """A linear decoder shows z: hard codes lie on their grid, relaxed ones do not, the mean is the same."""
    vae = make(kind, (2, 5))
    if kind == "bpef":
        with torch.no_grad():
            vae.prior_coefficients.zero_()
    hard, soft = (vae.sample(40_000, seed=0, mean=True, relaxed=relaxed) for relaxed in (False, True))
    if kind in ("gauss", "mixture"):
        assert torch.equal(hard, soft)
        return
    error = hard.std(0) / math.sqrt(40_000)
    assert ((hard.mean(0) - soft.mean(0)).abs() < 5 * error).all()
    assert (soft.std(0) < 0.9 * hard.std(0)).all()
    codes = {"cat": 16, "bpef": 21**2}[kind]
    assert len(torch.unique(hard.round(decimals=9), dim=0)) == codes
    assert len(torch.unique(soft.round(decimals=9), dim=0)) > 30_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_traversal_moves_one_latent(kind):
    vae, x = make(kind), rows(3)
    z = vae.family.point(vae.encode(x)).detach()
    moved = vae.traverse(x, 1, count=4)
    assert moved.shape == (3, 4, 5)
    values = [3, 0] if kind == "cat" else [0.3, -0.2]
    found = vae.traverse(z, 1, values)
    torch.testing.assert_close(found, vae.traverse(x, 1, values))
    for k, value in enumerate(values):
        other = z.clone()
        other[:, 1] = torch.eye(4)[value] if kind == "cat" else value
        torch.testing.assert_close(found[:, k], vae.decode(other))
    torch.testing.assert_close(vae.traverse(z[0], 1, values)[0], found[0])
    for start, dimension, values, error in ((x[:, :3], 0, None, ShapeError), (x, 2, None, ParameterError)):
        with pytest.raises(error):
            vae.traverse(start, dimension, values)
    with pytest.raises(EmptyDataError):
        vae.traverse(x, 0, [])


def test_categories_that_do_not_exist_are_refused():
    for values in ([4], [0.5], [[0.5, 0.5]]):
        with pytest.raises(ParameterError, match="categories from 0 to 3"):
            make("cat").traverse(rows(), 0, values)


def test_points_of_multimodal_posteriors_are_not_between_the_modes():
    vae = make("mixture", (1, 8, 5))
    with torch.no_grad():
        q = vae.encode(rows(1))
        encoded = torch.tensor([[0.0, 1.0, -5.0, -2.0, 2.0, 0.0, -3.0, -3.0, 0.0]], dtype=torch.float64)
        q = vae.family.posterior(encoded)
    assert q.mean.abs() < 1.0 and vae.family.point(q).item() == 2.0
    q = make("cat").family.posterior(torch.tensor([[0.0, 1.0, 0.9, 0.0, 3.0, 0.0, 0.0, 0.0]]))
    assert make("cat").family.point(q)[0].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_widths_make_networks_with_glorot_weights(kind):
    build, own = KINDS[kind]
    vae = build([3, 40, 50, 60], dtype=torch.float32, seed=0, **own)
    width = 4 if kind == "cat" else 1
    shapes = [tuple(layer.weight.shape) for layer in vae.decoder if isinstance(layer, nn.Linear)]
    assert shapes == [(40, 3 * width), (50, 40), (60, 50)]
    encoder = [layer for layer in vae.encoder if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in encoder[:-1]] == [50, 40]
    assert vae.dtype == torch.float32 and vae.encode(rows(2, 60)).mean.dtype == torch.float64
    for layer in (*encoder, *(layer for layer in vae.decoder if isinstance(layer, nn.Linear))):
        bound = math.sqrt(6.0 / (layer.in_features + layer.out_features))
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
        assert not layer.bias.any()
    same, other = (build([3, 40, 50, 60], dtype=torch.float32, seed=seed, **own) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), same.parameters(), strict=True))
    assert not torch.equal(vae.decoder[0].weight, other.decoder[0].weight)
    narrow = build([3, 40, 60], hidden=(7,), **own)
    assert [layer.out_features for layer in narrow.encoder if isinstance(layer, nn.Linear)][:-1] == [7]


def test_own_modules_of_categories():
    vae = CatVAE(girih.mlp([6, 8, 3]), girih.mlp([3, 8, 6]), categories=3)
    assert (vae.latent_dim, vae.output_dim, vae.categories) == (2, 3, 3)
    with pytest.raises(ShapeError, match="takes 6 numbers, which is no multiple of 4"):
        CatVAE(girih.mlp([6, 8, 3]), categories=4)
    tanh = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    assert CatVAE(tanh, latent_dim=2, categories=3).latent_dim == 2
    with pytest.raises(ShapeError, match="latent dimension S = 9"):
        CatVAE(tanh, latent_dim=3, categories=3)
    flat = torch.eye(6, dtype=torch.float64)[:1]
    torch.testing.assert_close(vae.decode(flat), vae.decode(flat.reshape(1, 2, 3)))


@pytest.mark.parametrize(
    ("kind", "options", "error", "says"),
    [
        ("gauss", {"likelihood": "poisson"}, ParameterError, "'gaussian' or 'bernoulli'; got 'poisson'"),
        ("gauss", {"dtype": torch.float16}, ParameterError, "float32 or torch.float64"),
        ("gauss", {"latent_dim": 3}, ParameterError, "begin with S = 2"),
        ("gauss", {"noise": -1.0}, NoiseError, "positive"),
        ("mixture", {"components": 0}, ParameterError, "components"),
        ("cat", {"categories": 1}, ParameterError, "categories must be a whole number, 2 or more"),
        ("cat", {"temperature": 0.0}, ParameterError, "temperature must be a positive number"),
        ("bpef", {"temperature": -1.0}, ParameterError, "temperature must be a positive number"),
        ("bpef", {"temperature": math.nan}, ParameterError, "temperature must be a positive number"),
        ("bpef", {"order": 20, "levels": 21}, ParameterError, "M = 20 must be below R - 1 = 20"),
        ("bpef", {"order": 0}, ParameterError, "order"),
        ("bpef", {"basis": "fourier"}, ParameterError, "basis"),
        ("bpef", {"encoder": nn.Linear(5, 5, dtype=torch.float64)}, ShapeError, r"needs \(2, 6\): the M = 3 coeff"),
        ("cat", {"encoder": nn.Linear(5, 5, dtype=torch.float64)}, ShapeError, "the C = 4 logits of each of the S = 2"),
        ("mixture", {"encoder": nn.Linear(5, 5, dtype=torch.float64)}, ShapeError, r"needs \(2, 15\): K = 3 logits"),
    ],
)
def test_bad_construction_is_refused(kind, options, error, says):
    build, own = KINDS[kind]
    with pytest.raises(error, match=says):
        build([2, 16, 5], **{**own, **options})


@pytest.mark.parametrize("decoder", ["mlp", 5, [3], [2.5, 3], [0, 3]])
def test_decoders_that_are_none_are_refused(decoder):
    with pytest.raises(ParameterError):
        GaussVAE(decoder)


def test_the_type_of_modules_is_their_own():
    with pytest.raises(ParameterError, match=r"decoder\.float\(\)"):
        GaussVAE(girih.mlp([1, 4, 2]), dtype=torch.float32)


@pytest.mark.parametrize("method", ["encode", "free_energy", "fit", "reconstruct", "embed"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_outside_the_unit_interval_are_refused(kind, method):
    vae = make(kind, likelihood="bernoulli")
    with pytest.raises(ParameterError, match=r"x has 0 to 255; divide pixels of 0 to 255 by 255"):
        getattr(vae, method)([[0.0, 255.0, 3.0, 4.0, 5.0]])
    for x, error in (
        ([[0.0, math.nan, 0, 0, 0]], NonFiniteError),
        ([[0.0, 1.0]], ShapeError),
        (rows(0), EmptyDataError),
    ):
        with pytest.raises(error):
            getattr(vae, method)(x)


def test_a_bernoulli_vae_has_no_noise():
    vae = make("gauss", likelihood="bernoulli")
    with pytest.raises(NoiseError, match="no noise variance"):
        vae.noise  # noqa: B018
    x = rows(3).round()
    z = torch.randn(20_000, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = vae.log_likelihood(x, z).exp()
    error = 5.0 * p.std(0) / 20_000**0.5
    assert ((vae.dgn()().log_prob(x).exp() - p.mean(0)).abs() < error).all()
    assert not vae().exact and "noise" not in repr(vae).splitlines()[1]


def test_seeds_are_whole_numbers():
    for call in (lambda: make("gauss").free_energy(rows(), seed=0.5), lambda: make("gauss").sample(3, seed="a")):
        with pytest.raises(ParameterError, match="seed must be a whole number"):
            call()


def test_latents_that_do_not_fit_are_refused():
    vae = make("cat")
    with pytest.raises(ShapeError, match=r"z must have shape \(..., 4, 2, 4\) or \(..., 1, 2, 4\)"):
        vae.log_likelihood(rows(4), torch.zeros(3, 2, 4))
    with pytest.raises(ShapeError, match=r"S \* C = 2 \* 4 is 8"):
        vae.decode(torch.zeros(3, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_that_overflow_are_named(kind):
    vae = make(kind)
    with torch.no_grad():
        vae.encoder[-1].bias[-1] = math.inf
    with pytest.raises(NonFiniteError, match="the encoder's"):
        vae.encode(rows())


@pytest.mark.parametrize("kind", KINDS)
def test_called_it_is_an_exact_distribution_where_that_can_be_had(kind):
    """One latent: p(x) by quadrature, or by the sum over codes."""
    vae, x = make(kind, (1, 8, 5)), rows(3)
    p = vae()
    with torch.no_grad():
        if kind in ("cat", "bpef"):
            codes = torch.eye(4)[:, None, None] if kind == "cat" else torch.linspace(-1, 1, 21)[:, None, None]
            log_joint = vae.prior().log_prob(codes) + vae.log_likelihood(x, codes)
            expected = log_joint.logsumexp(0)
        else:
            z = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None, None]
            joint = (vae.prior().log_prob(z) + vae.log_likelihood(x, z)).exp()
            expected = torch.trapezoid(joint, z[:, :, 0], dim=0).log()
        torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-5, atol=1e-5)
        log_p, error = p.log_prob_with_error(x, samples=10, seed=0)
        assert p.exact and torch.equal(log_p, p.log_prob(x)) and not error.any()
        torch.testing.assert_close(p.log_prob(x[None, :, None])[0, :, 0], log_p)


@pytest.mark.parametrize("kind", KINDS)
def test_elsewhere_its_log_prob_is_estimated_with_an_error(kind):
    """Bits of three dimensions: the estimates of all eight sum to 1."""
    sizes = {"cat": (9, 16, 3), "bpef": (4, 16, 3)}.get(kind, (2, 16, 3))
    vae = make(kind, sizes, likelihood="bernoulli", spread=1.0)
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    p = vae()
    assert not p.exact
    log_p, error = p.log_prob_with_error(bits, samples=4000, seed=1)
    assert (error > 0).all()
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=5 * (log_p.exp() * error).square().sum().sqrt().item())
    assert torch.equal(log_p, p.log_prob_with_error(bits, samples=4000, seed=1)[0])
    assert not torch.equal(log_p, p.log_prob_with_error(bits, samples=4000, seed=2)[0])
    assert torch.equal(p.log_prob(bits), p.log_prob(bits)) and p.log_prob(bits[None]).shape == (1, 8)


def test_both_of_one_piecewise_affine_decoder_agree():
    """The exact likelihood of a Gaussian and of a mixture VAE is the same, and estimates of it are near."""
    decoder, x = girih.mlp([2, 8, 3], seed=0), rows(4, 3)
    gauss, mixture = GaussVAE(decoder, noise=0.3, seed=0), MixtureVAE(decoder, noise=0.3, seed=0)
    exact = gauss().log_prob(x)
    torch.testing.assert_close(mixture().log_prob(x), exact)
    for vae in (gauss, mixture):
        bound = vae.free_energy(x, 2000, seed=0).total
        assert (bound > -exact).all()
        log_p, error = evidence.importance(vae, x, 20_000, torch.Generator().manual_seed(0))
        assert ((log_p - exact).abs() < 5 * error).all()


def test_a_mixture_of_equal_components_is_a_gaussian():
    """Every component the same: the terms are those of one Gaussian, whatever the weights."""
    gauss, mixture = make("gauss"), make("mixture")
    mixture.decoder = gauss.decoder
    x = rows()
    with torch.no_grad():
        mean, log_deviation = gauss.encoded(x).chunk(2, 1)
        logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64).expand(4, 3)
        encoded = torch.cat([logits, *[mean] * 3, *[log_deviation] * 3], 1)
        found = mixture.terms(x, 4000, torch.Generator().manual_seed(0), encoded=encoded)
        expected = gauss.terms(x, 4000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.divergence, expected.divergence, rtol=0.05, atol=0.05)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0.02, atol=0.02)
    torch.testing.assert_close(mixture.family.posterior(encoded).log_prob(x[:, :2]), gauss.encode(x).log_prob(x[:, :2]))
