"""Exponential families in both coordinates: against autograd, sums and torch's own distributions."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from girih.errors import NonFiniteError, ParameterError, ShapeError
from girih.vae import BPEF, CoarseBPEF, information


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _normal(shape, seed):
    g = _generator(seed)
    mean = torch.randn(shape, generator=g, dtype=torch.float64)
    deviation = torch.rand(shape, generator=g, dtype=torch.float64) + 0.3
    return information.NormalFamily().natural_of(mean, deviation)


def _full(n, seed):
    g = _generator(seed)
    mean = torch.randn(n, 3, generator=g, dtype=torch.float64)
    root = torch.randn(n, 3, 3, generator=g, dtype=torch.float64)
    return information.GaussianFamily(3).natural_of(mean, root @ root.mT + 0.2 * torch.eye(3, dtype=torch.float64))


def _coefficients(*shape, scale=2.0):
    return lambda seed: scale * torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


# name: (family, seed -> natural parameters of six members)
FAMILIES = {
    "normal": (information.NormalFamily(), lambda seed: _normal((6,), seed)),
    "diagonal normal": (information.Product(information.NormalFamily(), 3), lambda seed: _normal((6, 3), seed)),
    "full normal": (information.GaussianFamily(3), lambda seed: _full(6, seed)),
    "categories": (information.CategoricalFamily(4), _coefficients(6, 4)),
    "latents of categories": (information.Product(information.CategoricalFamily(3), 2), _coefficients(6, 2, 3)),
    "coarse": (information.CoarseFamily(4, 21), _coefficients(6, 4)),
    "coarse, legendre": (information.CoarseFamily(12, 51, "legendre"), _coefficients(6, 12)),
    "latents of coarse": (
        information.Product(information.CoarseFamily(3, 11, "legendre"), 2),
        _coefficients(6, 2, 3, scale=4.0),
    ),
    "continuous": (information.BPEFFamily(4), _coefficients(6, 4)),
    "continuous, legendre": (information.BPEFFamily(6, "legendre"), _coefficients(6, 6, scale=5.0)),
}
CASES = pytest.mark.parametrize(("family", "make"), FAMILIES.values(), ids=FAMILIES)


@CASES
def test_moments_are_the_gradient_of_the_log_partition(family, make):
    c = make(0).requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_partition(c).sum(), c)
    torch.testing.assert_close(family.moments(c), gradient, rtol=1e-10, atol=1e-12)


@CASES
def test_the_two_coordinates_are_inverse_to_each_other(family, make):
    c = make(1)
    eta = family.moments(c)
    again = family.natural(eta)
    torch.testing.assert_close(family.moments(again), eta, rtol=0.0, atol=1e-10)
    # logits are fixed up to a constant; all others are unique
    gap = family.divergence(c, again)
    torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0.0, atol=1e-10)


@CASES
def test_natural_parameters_are_the_gradient_of_the_information(family, make):
    c = make(2)
    eta = family.moments(c).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(family.information(eta).sum(), eta)
    if isinstance(family, information.GaussianFamily):  # E[z z^T] is symmetric: only symmetric changes mean anything
        gradient = torch.cat((gradient[..., :1], 0.5 * (gradient[..., 1:] + gradient[..., 1:].mT)), -1)
    gap = gradient - c
    if "Categor" in repr(type(family)) + repr(type(getattr(family, "family", None))):
        gap = gap - gap.mean(-1, keepdim=True)  # moments sum to 1, so a constant in the gradient is no direction
    torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0.0, atol=1e-6)


@CASES
def test_information_is_the_negative_entropy(family, make):
    c = make(3)
    entropy = family.distribution(c).entropy()
    torch.testing.assert_close(family.information_of(c), -entropy, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(family.information(family.moments(c)), -entropy, rtol=1e-9, atol=1e-9)


@CASES
def test_divergence_is_that_of_the_distributions(family, make):
    c, other = make(4), make(5)
    expected = kl_divergence(family.distribution(c), family.distribution(other))
    torch.testing.assert_close(family.divergence(c, other), expected, rtol=1e-8, atol=1e-9)
    zero = family.divergence(c, c)
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0.0, atol=1e-12)


@CASES
def test_densities_are_those_of_the_distributions(family, make):
    c = make(6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = family.distribution(c).sample()
    expected = family.distribution(c[None]).log_prob(z[:, None])
    torch.testing.assert_close(family.log_densities(c, z), expected, rtol=1e-8, atol=1e-9)
    by_definition = family.pairing(c, family.sufficient(z)) - family.log_partition(c)
    torch.testing.assert_close(family.log_densities(c, z).diagonal(), by_definition, rtol=1e-8, atol=1e-9)


@CASES
def test_information_is_convex_in_the_moments(family, make):
    a, b = family.moments(make(7)), family.moments(make(8))
    middle = family.information(0.5 * (a + b))
    assert bool((middle < 0.5 * (family.information(a) + family.information(b))).all())


@pytest.mark.parametrize("name", ["normal", "coarse", "coarse, legendre", "continuous", "continuous, legendre"])
def test_supports_sum_to_one(name):
    family, make = FAMILIES[name]
    c = make(0)
    points, weights = family.support(c)
    mass = (family.log_densities(c, points) + weights[:, None]).logsumexp(0)
    torch.testing.assert_close(mass, torch.zeros_like(mass), rtol=0.0, atol=1e-12)
    moments = ((family.log_densities(c, points) + weights[:, None]).exp().mT @ family.sufficient(points)).detach()
    torch.testing.assert_close(moments, family.moments(c), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "family", [information.CoarseFamily(3, 11), information.CoarseFamily(3, 11, "legendre"), information.BPEFFamily(3)]
)
def test_the_inversion_can_be_differentiated_twice(family):
    eta = family.moments(_coefficients(2, 3)(0)).detach().requires_grad_()
    assert torch.autograd.gradcheck(family.natural, (eta,), eps=1e-7, atol=1e-4, rtol=1e-4)
    assert torch.autograd.gradcheck(family.information, (eta,), eps=1e-7, atol=1e-6)
    assert torch.autograd.gradgradcheck(family.information, (eta,), eps=1e-7, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "family", [information.CoarseFamily(4, 15), information.CoarseFamily(4, 15, "legendre"), information.BPEFFamily(4)]
)
def test_metric_is_the_second_derivative_of_the_log_partition(family):
    c = _coefficients(4)(0)
    hessian = torch.autograd.functional.hessian(family.log_partition, c)
    torch.testing.assert_close(family.metric(c), hessian, rtol=1e-9, atol=1e-12)


def test_two_moments_on_the_line_are_the_truncated_gaussian():
    """M = 2: the maximum-entropy density with the moments of a Gaussian far from both ends is that Gaussian."""
    mean, variance = 0.2, 0.01
    eta = torch.tensor([mean, mean**2 + variance], dtype=torch.float64)
    torch.testing.assert_close(
        information.BPEFFamily(2).natural(eta), information.NormalFamily().natural(eta), rtol=1e-9, atol=0.0
    )


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("order", [5, 20])
def test_high_orders_and_narrow_peaks_are_inverted(order, scale):
    family = information.CoarseFamily(order, 101, "legendre")
    eta = family.moments(_coefficients(10, order, scale=scale)(0))
    torch.testing.assert_close(family.moments(family.natural(eta)), eta, rtol=0.0, atol=1e-10)


def test_a_good_start_leads_to_the_same_end():
    family = information.CoarseFamily(5, 101)
    c = _coefficients(3, 5)(0)
    eta = family.moments(c)
    torch.testing.assert_close(family.natural(eta, start=c + 0.1), family.natural(eta), rtol=0.0, atol=1e-7)
    torch.testing.assert_close(family.natural(eta, start=c[0]), family.natural(eta), rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("family", [information.CoarseFamily(2, 21), information.BPEFFamily(2)])
def test_moments_of_no_distribution_are_refused(family):
    with pytest.raises(ParameterError, match="no distribution"):
        family.natural(torch.tensor([0.9, 0.5], dtype=torch.float64))  # E[z^2] < E[z]^2
    with pytest.raises(ParameterError, match="no distribution"):
        family.information(torch.tensor([[0.0, 0.3], [0.0, 1.5]], dtype=torch.float64))
    with pytest.raises(ParameterError, match=r"distribution 1 .*no distribution"):
        family.natural(torch.tensor([[0.0, 0.3], [1.1, 1.21]], dtype=torch.float64))  # beyond the interval


def test_moments_of_other_families_are_checked():
    with pytest.raises(ParameterError, match="positive variance"):
        information.NormalFamily().natural(torch.tensor([1.0, 0.5]))
    with pytest.raises(ParameterError, match="positive definite"):
        information.GaussianFamily(2).information(torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0]]))
    with pytest.raises(ParameterError, match="sum to 1"):
        information.CategoricalFamily(2).natural(torch.tensor([0.7, 0.7]))


def test_natural_parameters_are_checked():
    with pytest.raises(ShapeError, match=r"\(n, 2\)"):
        information.NormalFamily().check(torch.zeros(2), batch=True)
    with pytest.raises(NonFiniteError):
        information.CategoricalFamily(2).check([[float("nan"), 0.0]])
    with pytest.raises(ParameterError, match="-1 / "):
        information.Product(information.NormalFamily(), 1).check(torch.zeros(3, 1, 2))
    with pytest.raises(ParameterError, match="not positive definite"):
        information.GaussianFamily(1).check(torch.zeros(1, 2))
    with pytest.raises(ParameterError, match="product of products"):
        information.Product(information.Product(information.NormalFamily(), 2), 2)
    with pytest.raises(ParameterError, match="M = 9"):
        information.CoarseFamily(9, 10)


@CASES
def test_a_distribution_is_read_as_its_family(family, make):
    c = make(9)
    found, natural = information.family_of(family.distribution(c))
    assert type(found) is type(family) and found.parameter_shape == family.parameter_shape
    gap = found.divergence(c, natural)
    torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0.0, atol=1e-9)


def test_reading_keeps_levels_and_basis_and_refuses_mixtures():
    q = CoarseBPEF(torch.zeros(2, 3), levels=9, basis="legendre")
    family, _ = information.family_of(Independent(q, 1))
    assert (family.family.levels, family.family.basis, family.count) == (9, "legendre", 2)
    assert information.family_of(BPEF(torch.zeros(3), "legendre"))[0].basis == "legendre"
    mixture = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ParameterError, match="MixtureSameFamily"):
        information.family_of(mixture)


def test_moments_of_a_mixture_are_those_of_its_draws():
    g = _generator(0)
    means = torch.randn(2, 3, 2, generator=g, dtype=torch.float64)
    parts = Independent(Normal(means, torch.full_like(means, 0.4)), 1)
    q = MixtureSameFamily(Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]]).double()), parts)
    mean, covariance = information.mean_and_covariance(q)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = q.sample((200_000,))
    torch.testing.assert_close(mean, z.mean(0), rtol=0.0, atol=0.02)
    torch.testing.assert_close(covariance, torch.stack([z[:, n].T.cov() for n in range(2)]), rtol=0.0, atol=0.03)
    full = MultivariateNormal(mean, covariance)
    assert information.mean_and_covariance(full)[1] is full.covariance_matrix
    with pytest.raises(ParameterError, match="event shape"):
        information.mean_and_covariance(Normal(0.0, 1.0))


def test_a_standard_gaussian_has_its_entropy():
    c = information.GaussianFamily(2).natural_of(torch.zeros(2).double(), torch.eye(2).double())
    assert information.GaussianFamily(2).information_of(c).item() == pytest.approx(
        -math.log(2 * math.pi * math.e), abs=1e-12
    )
