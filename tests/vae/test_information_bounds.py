"""Theorem 2: the centroid, and both lower bounds on term 1, against minimisation, enumeration and quadrature."""

import itertools
import math

import pytest
import torch

from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.vae import information


def _randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _normals(*shape, seed=0):
    return information.NormalFamily().natural_of(
        _randn(*shape, seed=seed), _randn(*shape, seed=seed + 1, scale=0.4).exp()
    )


def _full(n):
    root = _randn(n, 2, 2, seed=3)
    return information.GaussianFamily(2).natural_of(_randn(n, 2, seed=4), root @ root.mT + 0.3 * torch.eye(2).double())


# family, posteriors (5, ...), a prior of the family
FAMILIES = {
    "normal": (information.NormalFamily(), _normals(5), _normals(1, seed=7)[0]),
    "two normals": (information.Product(information.NormalFamily(), 2), _normals(5, 2), _normals(2, seed=7)),
    "full normal": (information.GaussianFamily(2), _full(5), _full(6)[5]),
    "categories": (information.CategoricalFamily(4), _randn(5, 4), _randn(4, seed=1)),
    "two latents of categories": (
        information.Product(information.CategoricalFamily(3), 2),
        _randn(5, 2, 3),
        _randn(2, 3, seed=1),
    ),
    "coarse": (information.CoarseFamily(5, 21), _randn(5, 5, scale=3.0), _randn(5, seed=1)),
    "two coarse latents": (
        information.Product(information.CoarseFamily(4, 21, "legendre"), 2),
        _randn(5, 2, 4, scale=3.0),
        _randn(2, 4, seed=1),
    ),
    "continuous": (information.BPEFFamily(4, "legendre"), _randn(5, 4, scale=3.0), _randn(4, seed=1)),
}
CASES = pytest.mark.parametrize(("family", "natural", "prior"), FAMILIES.values(), ids=FAMILIES)
SUMMED = {name: case for name, case in FAMILIES.items() if name not in ("full normal", "two normals")}


@CASES
def test_term_1_is_least_at_the_centroid(family, natural, prior):
    centroid = information.bregman_centroid(family, natural)
    least = information.mean_divergence(family, natural, centroid)
    assert information.compactness(family, natural).item() == pytest.approx(least.item(), abs=1e-10)
    assert information.mean_divergence(family, natural, prior) > least
    for share in (0.01, 0.1, 0.5):  # F is convex, so everything between is a member
        assert information.mean_divergence(family, natural, (1 - share) * centroid + share * prior) > least


@CASES
def test_the_bounds_are_in_order(family, natural, prior):
    term_1, parametric = information.mean_divergence(family, natural, prior), information.compactness(family, natural)
    sampled = information.mixture_compactness_sampled(family, natural, samples=1000)
    assert term_1 > parametric > 0
    assert parametric > sampled.value - 5 * sampled.standard_error
    assert sampled.value > 5 * sampled.standard_error


@pytest.mark.parametrize(("family", "natural", "prior"), SUMMED.values(), ids=SUMMED)
def test_the_mixture_bound_is_exact_and_between(family, natural, prior):
    free, parametric = information.mixture_compactness(family, natural), information.compactness(family, natural)
    if isinstance(family, information.CategoricalFamily):  # mixtures of categories are categories
        assert parametric.item() == pytest.approx(free.item(), abs=1e-12)
    else:
        assert parametric > free > 0
    assert free < math.log(len(natural))
    sampled = information.mixture_compactness_sampled(family, natural, samples=1000, seed=1)
    assert abs(free - sampled.value) < 5 * sampled.standard_error < 0.3 * free


def test_the_bounds_of_one_posterior_are_zero():
    for family, natural, _ in FAMILIES.values():
        same = natural[:1].expand(4, *natural.shape[1:])
        assert information.compactness(family, same).item() == pytest.approx(0.0, abs=1e-9)
        assert information.compactness(family, same[:1]).item() == pytest.approx(0.0, abs=1e-9)


def test_posteriors_that_do_not_overlap_tell_the_row():
    natural = information.NormalFamily().natural_of(
        torch.arange(7.0).double() * 50.0, torch.linspace(0.5, 1.5, 7).double()
    )
    assert information.mixture_compactness(information.NormalFamily(), natural).item() == pytest.approx(
        math.log(7), abs=1e-9
    )
    sampled = information.mixture_compactness_sampled(information.NormalFamily(), natural)
    assert sampled.value.item() == pytest.approx(math.log(7), abs=1e-12)


def test_the_mixture_bound_of_two_latents_is_that_of_all_pairs_of_levels():
    family, natural, _ = FAMILIES["two coarse latents"]
    q = family.distribution(natural)
    total = 0.0
    for pair in itertools.product(family.family.nodes().tolist(), repeat=2):
        log_q = q.log_prob(torch.tensor(pair, dtype=torch.float64))
        total += float((log_q.exp() * (log_q - log_q.logsumexp(0) + math.log(len(natural)))).mean())
    assert information.mixture_compactness(family, natural).item() == pytest.approx(total, abs=1e-12)


def test_the_mixture_bound_of_normals_is_that_of_a_dense_quadrature():
    natural = information.NormalFamily().natural_of(
        torch.tensor([0.0, 0.3, 4.0]).double(), torch.tensor([1.0, 0.05, 2.0]).double()
    )
    z = torch.linspace(-30.0, 40.0, 2_000_001, dtype=torch.float64)
    log_q = information.NormalFamily().log_densities(natural, z)
    integrand = (log_q.exp() * (log_q - log_q.logsumexp(1, keepdim=True) + math.log(3))).mean(1)
    expected = torch.trapezoid(integrand, z).item()
    assert information.mixture_compactness(information.NormalFamily(), natural).item() == pytest.approx(
        expected, abs=1e-9
    )


def test_three_latents_are_summed_in_parts(monkeypatch):
    family = information.Product(information.CoarseFamily(2, 9), 3)
    natural = _randn(4, 3, 2, scale=2.0)
    whole = information.mixture_compactness(family, natural)
    monkeypatch.setattr("girih.vae.information.best_prior._CHUNK", 50)
    assert information.mixture_compactness(family, natural).item() == pytest.approx(whole.item(), abs=1e-13)
    sampled = information.mixture_compactness_sampled(family, natural, samples=4000)
    assert abs(whole - sampled.value) < 5 * sampled.standard_error


def test_each_latent_alone_limits_the_mixture_bound():
    for count in (2, 3):
        for scale in (0.5, 5.0, 40.0):
            family = information.Product(information.CoarseFamily(3, 11), count)
            natural = _randn(6, count, 3, scale=scale)
            lower, upper = information.mixture_limits(family, natural)
            exact = information.mixture_compactness(family, natural)
            assert lower <= exact + 1e-12 and exact <= upper + 1e-12
    # latents that vary in turn are independent in the mixture, and the upper limit is met
    natural = torch.zeros(4, 2, 1).double()
    natural[:, 0, 0], natural[:, 1, 0] = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    family = information.Product(information.CoarseFamily(1, 5), 2)
    assert information.mixture_limits(family, natural).upper.item() == pytest.approx(
        information.mixture_compactness(family, natural).item()
    )


def test_many_latents_are_for_draws_and_limits():
    family = information.Product(information.CoarseFamily(4, 101), 20)
    natural = _randn(8, 20, 4, scale=0.5)
    with pytest.raises(LatentDimensionError, match="mixture_compactness_sampled"):
        information.mixture_compactness(family, natural)
    estimate, limits = (
        information.mixture_compactness_sampled(family, natural, samples=50),
        information.mixture_limits(family, natural),
    )
    assert limits.lower < estimate.value < limits.upper


@CASES
def test_the_gradient_of_the_bound_is_that_of_term_1_at_the_centroid(family, natural, prior):
    """So training with the bound is training with the best prior of each batch."""
    natural = natural.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(information.compactness(family, natural), natural)
    centroid = information.bregman_centroid(family, natural).detach()
    (expected,) = torch.autograd.grad(information.mean_divergence(family, natural, centroid), natural)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["normal", "coarse", "categories", "continuous"])
def test_the_gradient_of_the_bound_is_right(name):
    family, natural, _ = FAMILIES[name]
    natural = natural.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: information.compactness(family, c), (natural,), eps=1e-6, atol=1e-6)


def test_a_guess_of_the_centroid_changes_nothing():
    family, natural, _ = FAMILIES["two coarse latents"]
    centroid = information.bregman_centroid(family, natural)
    again = information.bregman_centroid(family, natural, start=centroid + 0.05)
    torch.testing.assert_close(again, centroid, rtol=0.0, atol=1e-8)
    value = information.compactness(family, natural, start=centroid)
    assert value.item() == pytest.approx(information.compactness(family, natural).item(), abs=1e-12)


def test_posteriors_of_training_size_have_a_bound_in_float32():
    family = information.Product(information.CoarseFamily(5, 101), 20)
    natural = _randn(100, 20, 5, scale=3.0)
    wide, narrow = information.compactness(family, natural), information.compactness(family, natural.float())
    assert narrow.dtype == torch.float32 and narrow.item() == pytest.approx(wide.item(), rel=1e-4)


def test_the_bound_of_nearly_certain_posteriors_stays_finite():
    """Mixtures of a few levels lie at the boundary of all moments of a high order."""
    family = information.CoarseFamily(20, 51, "legendre")
    natural = _randn(20, 20, scale=100.0)
    value = information.compactness(family, natural)
    assert information.mixture_compactness(family, natural) - 1e-6 < value < math.log(51)


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match=r"\(n, 2\)"):
        information.compactness(information.NormalFamily(), torch.zeros(2))
    with pytest.raises(ShapeError):
        information.bregman_centroid(information.NormalFamily(), torch.zeros(0, 2))
    with pytest.raises(ParameterError, match="mixture_compactness_sampled"):
        information.mixture_compactness(information.GaussianFamily(2), _full(3))
    with pytest.raises(ParameterError, match="samples"):
        information.mixture_compactness_sampled(information.NormalFamily(), _normals(2), samples=1)
    with pytest.raises(ParameterError, match="Product"):
        information.mixture_limits(information.NormalFamily(), _normals(2))
    far = information.NormalFamily().natural_of(torch.tensor([0.0, 1e4]).double(), torch.tensor([1e-3, 1.0]).double())
    with pytest.raises(LatentDimensionError, match="deviation"):
        information.mixture_compactness(information.NormalFamily(), far)
