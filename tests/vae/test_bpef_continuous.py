"""The continuous family: against integrals in 30 digits, the truncated Gaussian, the levels, and draws."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from bpef_twins import Integral, polynomial
from girih.errors import NonFiniteError, ParameterError, ShapeError
from girih.vae import BPEF, CoarseBPEF, bpef


def numbers(*shape, scale=1.0, seed=0):
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(order, degree, size):
    return [size if m == degree else 0.0 for m in range(1, order + 1)]


def peaks_of(q):
    """Local maxima within 60 nats of the highest, so that the twin can put panels around them."""
    z = torch.linspace(-1.0, 1.0, 20_001, dtype=torch.float64)
    log_p = q.log_prob(z)
    inside = (log_p[1:-1] > log_p[:-2]) & (log_p[1:-1] >= log_p[2:]) & (log_p[1:-1] > log_p.max() - 60.0)
    return z[1:-1][inside].tolist()


HARD = {
    "uniform": ([0.0, 0.0], "monomial"),
    "an end": ([1e3], "monomial"),
    "the other end": ([-1e3, 0.0], "monomial"),
    "a narrow peak": ([0.0, -1e3], "monomial"),
    "a peak off the centre": ([4e3, -8e3], "monomial"),
    "both ends": ([0.0, 1e3], "monomial"),
    "two peaks": ([0.0, 800.0, 0.0, -1e3], "monomial"),
    "two unequal peaks": ([0.3, 80.0, 0.0, -1e2], "monomial"),
    "a peak of width 1e-4": ([1e5, -5e7], "monomial"),
    "an end of width 2e-6": (unit(5, 5, 1e5), "monomial"),
    "M = 20, a flat middle": (unit(20, 20, 1e3), "monomial"),
    "M = 20, an end of width 5e-6": ([1e3] * 20, "monomial"),
    "M = 20, twenty peaks": (unit(20, 20, 30.0), "legendre"),
    "M = 20, at random": (numbers(20, scale=300.0, seed=3).tolist(), "legendre"),
}

# Those whose peaks even panels resolve.
WIDE = ("uniform", "M = 20, twenty peaks")


@pytest.mark.parametrize("name", HARD)
def test_integrals_are_right_to_the_stated_accuracy(name):
    coefficients, basis = HARD[name]
    q = BPEF(torch.tensor(coefficients, dtype=torch.float64), basis)
    exact = Integral(coefficients, basis, () if name in WIDE else peaks_of(q))
    exponents = q.log_prob(torch.linspace(-1.0, 1.0, 1001, dtype=torch.float64))
    tolerance = 1e-13 * max(1.0, (exponents.max() - exponents.min()).item())
    assert q.log_partition.item() == pytest.approx(exact.log_partition, abs=tolerance)
    assert q.mean.item() == pytest.approx(exact.mean, abs=tolerance)
    assert q.variance.item() == pytest.approx(exact.variance, abs=tolerance, rel=tolerance)
    assert q.entropy().item() == pytest.approx(exact.entropy, abs=tolerance)
    last = polynomial([0.0] * (len(coefficients) - 1) + [1.0], basis)
    assert q.moments[-1].item() == pytest.approx(exact.mean_of(last), abs=tolerance)
    for z in q.icdf(torch.tensor([1e-6, 0.3, 0.9])).tolist():
        assert q.cdf(torch.tensor(z, dtype=torch.float64)).item() == pytest.approx(exact.cdf(z), abs=tolerance)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.5), (0.3, 0.05), (-1.4, 0.2), (0.9, 3.0), (5.0, 0.3)])
def test_order_two_with_a_negative_square_is_the_truncated_gaussian(mean, deviation):
    q = BPEF(torch.tensor([mean / deviation**2, -0.5 / deviation**2], dtype=torch.float64))
    truth = stats.truncnorm((-1.0 - mean) / deviation, (1.0 - mean) / deviation, mean, deviation)
    z = np.linspace(-0.999, 0.999, 41)
    log_p = q.log_prob(torch.as_tensor(z)).numpy()
    assert log_p == pytest.approx(truth.logpdf(z), rel=1e-9, abs=1e-9)
    assert q.cdf(torch.as_tensor(z)).numpy() == pytest.approx(truth.cdf(z), abs=1e-10)
    assert q.mean.item() == pytest.approx(truth.mean(), abs=1e-8)
    assert q.variance.item() == pytest.approx(truth.var(), rel=1e-6)
    assert q.entropy().item() == pytest.approx(float(truth.entropy()), abs=1e-7)


@pytest.mark.parametrize("basis", ["monomial", "legendre"])
def test_moments_and_fisher_information_are_derivatives_of_the_log_partition(basis):
    c = numbers(4, scale=5.0).requires_grad_()
    q = BPEF(c, basis)
    (gradient,) = torch.autograd.grad(q.log_partition, c, retain_graph=True)
    torch.testing.assert_close(gradient, q.moments, rtol=1e-12, atol=1e-13)
    hessian = torch.autograd.functional.hessian(lambda c: BPEF(c, basis).log_partition, c)

    def products(z):
        t = bpef.polynomials(z, 4, basis)
        return (t[:, :, None] * t[:, None]).flatten(1)

    second = q.expectation(products)
    covariance = second.reshape(4, 4) - q.moments[:, None] * q.moments
    torch.testing.assert_close(hessian, covariance, rtol=1e-9, atol=1e-12)
    for function in (
        lambda c: BPEF(c, basis).entropy(),
        lambda c: BPEF(c, basis).variance,
        lambda c: BPEF(c, basis).cdf(torch.tensor([-0.4, 0.31])),
        lambda c: kl_divergence(BPEF(c, basis), BPEF(torch.tensor([1.0, -2.0]), "legendre")),
    ):
        assert torch.autograd.gradcheck(function, c)


def test_the_density_is_the_derivative_of_the_cdf():
    q = BPEF(torch.tensor([1.0, 6.0, 0.0, -9.0]))
    z = torch.linspace(-0.95, 0.95, 37, dtype=torch.float64).requires_grad_()
    (density,) = torch.autograd.grad(q.cdf(z).sum(), z)
    torch.testing.assert_close(density, q.log_prob(z).exp(), rtol=1e-9, atol=1e-12)
    assert q.cdf(torch.tensor([-1.0, 1.0])).tolist() == pytest.approx([0.0, 1.0], abs=1e-14)


@pytest.mark.parametrize("basis", ["monomial", "legendre"])
def test_the_coarse_family_tends_to_it(basis):
    """With the step h = 2 / (R - 1) a sum over levels is a trapezium rule whose ends count twice as much as they
    should, so that h sum f = integral + h (f(-1) + f(1)) / 2 + O(h^2)."""
    c = numbers(5, 4, scale=2.0)
    q, p, ends = BPEF(c, basis), BPEF(torch.zeros(4), basis), torch.tensor([[-1.0], [1.0]])

    def errors(R):
        h, coarse, flat = 2.0 / (R - 1), CoarseBPEF(c, R, basis), CoarseBPEF(torch.zeros(4), R, basis)
        first = [coarse.mean - q.mean, coarse.variance - q.variance, kl_divergence(coarse, flat) - kl_divergence(q, p)]
        excess = coarse.log_partition + math.log(h) - q.log_partition
        return torch.stack(first).abs(), (excess - 0.5 * h * q.log_prob(ends).exp().sum(0)).abs()

    (few, few_second), (many, many_second), (most, most_second) = errors(201), errors(2001), errors(20_001)
    assert (many < 0.2 * few).all() and (most < 0.11 * many).all() and most.max() < 2e-3
    assert (many_second < 0.015 * few_second).all() and (most_second < 0.011 * many_second).all()


def test_divergence_against_quadrature_and_itself():
    b, a = numbers(6, 3, scale=6.0), numbers(6, 5, scale=2.0, seed=1)
    q, p = BPEF(b), BPEF(a, "legendre")
    x, w = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(300))
    log_q, log_p = q.log_prob(x[:, None]), p.log_prob(x[:, None])
    torch.testing.assert_close((w[:, None] * log_q.exp()).sum(0), torch.ones(6, dtype=torch.float64))
    expected = (w[:, None] * log_q.exp() * (log_q - log_p)).sum(0)
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-11, atol=1e-12)
    assert kl_divergence(q, BPEF(bpef.to_basis(b, "monomial", "legendre"), "legendre")).abs().max() < 1e-12
    assert torch.equal(kl_divergence(q, q), torch.zeros(6, dtype=torch.float64))
    assert kl_divergence(q.expand((2, 6)), p).shape == (2, 6)
    uniform = BPEF(torch.zeros(1))
    torch.testing.assert_close(kl_divergence(q, uniform), math.log(2.0) - q.entropy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["two unequal peaks", "an end", "a peak off the centre", "M = 20, twenty peaks"])
def test_draws_have_the_law(name):
    coefficients, basis = HARD[name]
    q = BPEF(torch.tensor(coefficients, dtype=torch.float64), basis)
    z = q.sample((5_000,), seed=1)
    assert stats.kstest(q.cdf(z).numpy(), "uniform").pvalue > 1e-3
    assert abs(z.mean() - q.mean) < 5 * (q.variance / 5_000).sqrt()
    assert torch.equal(z, q.sample((5_000,), seed=1))


def test_quantiles_invert_the_cdf():
    q = BPEF(torch.stack((torch.tensor([1.0, 6.0, 0.0, -9.0]), torch.tensor([900.0, 0.0, 0.0, 0.0]), torch.zeros(4))))
    u = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)[:, None]
    z = q.icdf(u)
    assert z.shape == (101, 3)
    assert (z.diff(dim=0) > 0.0).all()
    torch.testing.assert_close(q.cdf(z), u.expand(101, 3), rtol=0, atol=1e-12)
    torch.testing.assert_close(z[:, 2], 2.0 * u[:, 0] - 1.0, rtol=0, atol=1e-14)
    with pytest.raises(ParameterError, match="from 0 to 1"):
        q.icdf(torch.tensor(1.5))


def test_a_table_that_is_split_is_the_same(monkeypatch):
    c = numbers(7, 3, 4, scale=3.0)
    q = BPEF(c)
    whole = [q.log_partition, q.moments, q.variance, q.entropy(), kl_divergence(q, BPEF(torch.zeros(3, 2)))]
    monkeypatch.setattr("girih.vae.bpef.exponential_polynomials._BLOCK", 1000)
    q = BPEF(c)
    parts = [q.log_partition, q.moments, q.variance, q.entropy(), kl_divergence(q, BPEF(torch.zeros(3, 2)))]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


def test_it_follows_the_conventions_of_torch():
    q = BPEF(numbers(3, 2))
    wide = q.expand((4, 3))
    assert (wide.batch_shape, wide.mean.shape, wide.moments.shape) == ((4, 3), (4, 3), (4, 3, 2))
    assert wide.sample((2,), seed=0).shape == (2, 4, 3)
    torch.testing.assert_close(wide.cdf(torch.tensor(0.2))[1], q.cdf(torch.tensor(0.2)))
    several = BPEF(numbers(2, 1, 2))  # values broadcast against the batch
    z = torch.tensor([-0.5, 0.1, 0.7])
    torch.testing.assert_close(several.cdf(z)[1], several.expand((2, 3)).cdf(z)[1])
    torch.testing.assert_close(several.icdf(several.cdf(z)), z.double().expand(2, 3), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.tensor(1.2))
    free = BPEF(torch.zeros(2), validate_args=False)
    assert free.log_prob(torch.tensor([0.0, 1.2])).tolist() == [pytest.approx(-math.log(2.0)), -math.inf]
    assert free.cdf(torch.tensor([-3.0, 0.0, 3.0])).tolist() == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("coefficients", "error", "says"),
    [
        (torch.zeros(3, 0), ParameterError, "order M must be 1 or more"),
        (torch.tensor(1.0), ShapeError, "a single number"),
        (torch.tensor([math.nan]), NonFiniteError, "NaN"),
        (torch.tensor([0.0, -1e11]), ParameterError, "too narrow to be integrated; keep it below 2e"),
    ],
)
def test_bad_coefficients_are_refused(coefficients, error, says):
    with pytest.raises(error, match=says):
        BPEF(coefficients)
