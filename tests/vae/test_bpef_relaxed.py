"""The Concrete relaxation: its law against torch's density, quadrature and frequencies, and Theorem 1."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, RelaxedOneHotCategorical, kl_divergence

from girih.errors import NonFiniteError, ParameterError
from girih.vae import CoarseBPEF, RelaxedBPEF, bpef


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


TEMPERATURES = [0.1, 0.5, 0.8, 1.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_density_on_the_simplex_is_that_of_torch_and_of_any_logits(temperature):
    logits = f64([[0.3, -1.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    q = RelaxedBPEF(logits, temperature)
    y = RelaxedOneHotCategorical(torch.tensor(1.0), logits=torch.zeros(4)).sample((50, 1)).double().clamp(1e-6)
    y = y / y.sum(-1, keepdim=True)
    reference = RelaxedOneHotCategorical(f64(temperature), logits=logits, validate_args=False).log_prob(y)
    torch.testing.assert_close(q.log_prob_simplex(y), reference, rtol=1e-9, atol=1e-9)
    shifted = RelaxedBPEF(logits + 17.0, temperature)
    torch.testing.assert_close(shifted.log_prob_simplex(y), q.log_prob_simplex(y), rtol=1e-9, atol=1e-9)


def ratios(reach=60.0, count=801):
    """A grid on the simplex of three categories in u = log(y_1 / y_3), v = log(y_2 / y_3), where densities are smooth
    and fall exponentially, so that the trapezium rule converges geometrically; and the log of dy_1 dy_2 / (du dv)."""
    u = torch.linspace(-reach, reach, count, dtype=torch.float64)
    log_y = torch.log_softmax(torch.stack((*torch.meshgrid(u, u, indexing="ij"), torch.zeros(count, count))), 0)
    log_y = log_y.movedim(0, -1)
    return log_y, log_y.sum(-1) + 2.0 * math.log((u[1] - u[0]).item())


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.0])
def test_the_density_is_with_respect_to_all_but_one_coordinate(temperature):
    log_y, log_area = ratios()
    mass = (bpef.log_density(log_y, f64([0.5, -0.3, 1.0]), temperature) + log_area).exp().sum()
    assert mass.item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_largest_entry_has_the_probabilities_of_the_categories(temperature):
    q = CoarseBPEF(f64([1.5, 1.0]), levels=7)
    y = q.relaxed(temperature).rsample_simplex((40_000,), seed=2)
    torch.testing.assert_close(y.sum(-1), torch.ones(40_000, dtype=torch.float64))
    counts = torch.bincount(y.argmax(-1), minlength=7)
    assert stats.chisquare(counts, 40_000 * q.probs).pvalue > 1e-3


def test_cold_draws_are_those_of_the_levels():
    q = CoarseBPEF(f64([1.5, 1.0, -3.0]), levels=9)
    z = q.relaxed(0.01).rsample((40_000,), seed=3)
    nearest = (z[:, None] - q.levels).abs()
    assert (nearest.amin(-1) < 0.02).double().mean() > 0.93
    counts = torch.bincount(nearest.argmin(-1), minlength=9)
    assert stats.chisquare(counts, 40_000 * q.probs).pvalue > 1e-3


def law_of_z(logits, temperature, z, nodes=60):
    """The density of z = y_3 - y_1 for three categories: an integral over y_2 with dy_1 dy_2 = dz dy_2 / 2.

    The ends, where a y vanishes, are approached as s^4.
    """
    x, w = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(nodes))
    s, far = 0.5 * (1.0 + x), 0.5 * (1.0 - x)
    whole = s**4 + far**4
    dt = 4.0 * (s * far) ** 3 / whole**2 * 0.5 * w
    width, z = (1.0 - z.abs())[:, None], z[:, None]
    second, rest = width * s**4 / whole, 0.5 * width * far**4 / whole
    y = torch.stack((rest + (-z).clamp(min=0.0), second, rest + z.clamp(min=0.0)), -1)
    return 0.5 * (width * dt * bpef.log_density(y.log(), logits, temperature).exp()).sum(-1)


def test_the_law_of_z_is_that_of_its_integral():
    """Would notice another law than Gumbel's, another temperature, and other levels."""
    logits, T = f64([0.7, -0.4, 0.1]), 0.8
    edges = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    x, w = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(12))
    z = (edges[:-1, None] + 0.025 * (1.0 + x)).flatten()
    mass = (0.025 * w * law_of_z(logits, T, z).reshape(40, -1)).sum(-1)
    assert mass.sum().item() == pytest.approx(1.0, abs=2e-3)  # the density has a cusp at each level
    draws = RelaxedBPEF(logits, T).sample((40_000,), seed=4)
    counts = torch.histc(draws, 40, -1.0, 1.0)
    assert stats.chisquare(counts, 40_000 * mass / mass.sum()).pvalue > 1e-3
    for wrong in (RelaxedBPEF(logits, 0.7), RelaxedBPEF(logits.flip(0), T), RelaxedBPEF(0.7 * logits, T)):
        counts = torch.histc(wrong.sample((40_000,), seed=4), 40, -1.0, 1.0)
        assert stats.chisquare(counts, 40_000 * mass / mass.sum()).pvalue < 1e-6


@pytest.mark.parametrize("temperature", [0.3, 0.8])
def test_the_law_given_the_largest_entry_is_a_part_of_the_law(temperature):
    """Draws of all entries, sorted by their largest, against draws given it: two samples of each of three parts."""
    logits, generator = f64([0.7, -0.4, 0.1]), torch.Generator().manual_seed(0)
    free = bpef.log_concrete(logits, temperature, (30_000,), generator).exp()
    for k in range(3):
        largest = torch.full((10_000,), k)
        given = bpef.log_concrete_with(largest, logits + 5.0, temperature, generator).exp()
        assert (given.argmax(-1) == k).all()
        part = free[free.argmax(-1) == k]
        for entry in range(3):
            assert stats.ks_2samp(given[:, entry].numpy(), part[:, entry].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.0])
def test_theorem_1_for_three_categories_by_quadrature(temperature):
    """KL of categories <= KL on the simplex, and KL of the laws of z <= KL on the simplex."""
    beta, alpha = f64([1.2, -0.5, 0.0]), f64([-0.3, 0.4, 0.1])
    log_y, log_area = ratios()
    log_q, log_p = bpef.log_density(log_y, beta, temperature), bpef.log_density(log_y, alpha, temperature)
    simplex = ((log_q + log_area).exp() * (log_q - log_p)).sum()
    categories = kl_divergence(Categorical(logits=beta), Categorical(logits=alpha))
    x, w = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(400))
    q, p = law_of_z(beta, temperature, x), law_of_z(alpha, temperature, x)
    line = (w * q * (q / p).log()).sum()
    assert 0.0 < categories < simplex
    assert 0.0 < line < simplex


def test_the_divergence_on_the_simplex_is_that_of_every_temperature():
    """Temperature scales log-ratios of y, one to one, so it cannot change a divergence; it does change that of z."""
    beta, alpha = f64([1.2, -0.5, 0.0]), f64([-0.3, 0.4, 0.1])
    log_y, log_area = ratios()
    values = []
    for temperature in (0.5, 0.8, 1.0):
        log_q, log_p = bpef.log_density(log_y, beta, temperature), bpef.log_density(log_y, alpha, temperature)
        values.append(((log_q + log_area).exp() * (log_q - log_p)).sum().item())
    assert values == pytest.approx([values[0]] * 3, abs=1e-9)


@pytest.mark.parametrize("levels", [4, 5])
def test_theorem_1_by_draws(levels):
    q, p = CoarseBPEF(f64([2.0, -1.0]), levels), CoarseBPEF(f64([-0.5, 0.5]), levels)
    for temperature in (0.3, 0.8):
        log_y = bpef.log_concrete(q.logits, temperature, (100_000,), torch.Generator().manual_seed(0))
        ratio = bpef.log_density(log_y, q.logits, temperature) - bpef.log_density(log_y, p.logits, temperature)
        simplex, error = ratio.mean(), ratio.std() / math.sqrt(len(ratio))
        assert kl_divergence(q, p) < simplex - 5 * error
        # the KL of histograms is at most that of the laws; its bias upwards is some (bins - 1) / n nats
        q_z, p_z = (d.relaxed(temperature).sample((100_000,), seed=1).numpy() for d in (q, p))
        counts = [np.histogram(z, 30, (-1.0, 1.0))[0] + 0.5 for z in (q_z, p_z)]
        shares = [count / count.sum() for count in counts]
        assert (shares[0] * np.log(shares[0] / shares[1])).sum() < simplex - 5 * error - 1e-3


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_gradients_are_finite(temperature, scale):
    c = (scale * torch.randn(20, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    z = CoarseBPEF(c, 101).relaxed(temperature).rsample((50,), seed=0)
    assert ((z >= -1.0) & (z <= 1.0)).all()
    z.square().sum().backward()
    assert torch.isfinite(c.grad).all()
    assert scale > 1.0 or (c.grad != 0.0).any()


def test_the_gradient_is_that_of_the_draw():
    logits = f64([0.2, -0.5, 0.9, 0.0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: RelaxedBPEF(logits, 0.7).rsample((5,), seed=1), logits)


def test_it_follows_the_conventions_of_torch():
    q = CoarseBPEF(torch.zeros(3, 2), 7).relaxed(0.5)
    assert (q.batch_shape, q.event_shape) == ((3,), ())
    assert q.rsample((4,)).shape == (4, 3)
    assert q.rsample_simplex((4,)).shape == (4, 3, 7)
    assert q.expand((2, 3)).sample((4,), seed=0).shape == (4, 2, 3)
    assert torch.equal(q.rsample((4,), seed=0), q.rsample((4,), seed=0))
    assert not q.sample((4,), seed=0).requires_grad
    assert q.log_prob_simplex(q.rsample_simplex((4,), seed=0)).shape == (4, 3)
    with pytest.raises(NotImplementedError, match="log_prob_simplex"):
        q.log_prob(torch.tensor(0.0))
    with pytest.raises(ParameterError, match="simplex"):
        q.log_prob_simplex(torch.full((7,), 0.2))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, "warm", torch.tensor([1.0, 2.0])])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ParameterError, match="temperature must be a positive number"):
        CoarseBPEF(torch.zeros(2), 7).relaxed(temperature)
    assert CoarseBPEF(torch.zeros(2), 7).relaxed(torch.tensor(0.5)).temperature == 0.5


def test_bad_logits_are_refused():
    with pytest.raises(ParameterError, match="R of 3 or more"):
        RelaxedBPEF(torch.zeros(5, 2), 0.5)
    with pytest.raises(NonFiniteError, match="logits holds NaN"):
        RelaxedBPEF(f64([0.0, math.nan, 0.0]), 0.5)
