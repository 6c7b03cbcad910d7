"""The family on R levels: against direct sums, autograd and draws."""

import math

import pytest
import torch
from numpy.polynomial import legendre
from scipy import stats
from torch.distributions import Independent, kl_divergence

from girih.errors import GirihError, NonFiniteError, ParameterError, ShapeError
from girih.vae import CoarseBPEF, bpef

BASES = ("monomial", "legendre")


def numbers(*shape, scale=1.0, seed=0):
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def direct(coefficients, R, basis):
    """Probabilities by Python sums over the levels of the paper's formula."""
    zeta = [(2 * r - (R + 1)) / (R - 1) for r in range(1, R + 1)]
    series = [0.0, *map(float, coefficients)]
    value = {
        "monomial": lambda z: sum(c * z**m for m, c in enumerate(series)),
        "legendre": lambda z: float(legendre.legval(z, series)),
    }[basis]
    exponents = [value(z) for z in zeta]
    top = max(exponents)
    total = math.fsum(math.exp(e - top) for e in exponents)
    return zeta, [math.exp(e - top) / total for e in exponents], top + math.log(total)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("order", "R", "scale"), [(1, 3, 1.0), (2, 5, 3.0), (5, 51, 10.0), (20, 101, 2.0)])
def test_everything_is_the_direct_sum(basis, order, R, scale):
    c = numbers(4, order, scale=scale)
    q = CoarseBPEF(c, R, basis)
    assert (q.batch_shape, q.event_shape) == ((4,), ())
    for k in range(4):
        zeta, probs, log_partition = direct(c[k], R, basis)
        assert q.levels.tolist() == zeta
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(q.probs[k], torch.tensor(probs, dtype=torch.float64), **close)
        assert q.log_partition[k].item() == pytest.approx(log_partition, rel=1e-12, abs=1e-12)
        mean = math.fsum(p * z for p, z in zip(probs, zeta, strict=True))
        assert q.mean[k].item() == pytest.approx(mean, abs=1e-12)
        spread = math.fsum(p * (z - mean) ** 2 for p, z in zip(probs, zeta, strict=True))
        assert q.variance[k].item() == pytest.approx(spread, rel=1e-9, abs=1e-15)
        entropy = -math.fsum(p * math.log(p) for p in probs if p > 0.0)
        assert q.entropy()[k].item() == pytest.approx(entropy, rel=1e-10, abs=1e-12)
        for z, p in zip(zeta, probs, strict=True):
            assert q.log_prob(torch.tensor(z, dtype=torch.float64))[k].exp().item() == pytest.approx(p, abs=1e-13)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("R", [5, 101])
def test_divergence_is_the_sum_of_equation_4(basis, R):
    b, a = numbers(6, 3, scale=4.0), numbers(6, 3, scale=4.0, seed=1)
    q, p = CoarseBPEF(b, R, basis), CoarseBPEF(a, R, basis)
    beta, alpha = b @ bpef.polynomials(bpef.levels(R), 3, basis).mT, a @ bpef.polynomials(bpef.levels(R), 3, basis).mT
    first = (beta.exp() / beta.exp().sum(-1, keepdim=True)) * (
        (beta.exp() / beta.exp().sum(-1, keepdim=True)) / (alpha.exp() / alpha.exp().sum(-1, keepdim=True))
    ).log()
    second = (beta.exp() * (beta - alpha)).sum(-1) / beta.exp().sum(-1)
    second = second + alpha.exp().sum(-1).log() - beta.exp().sum(-1).log()
    torch.testing.assert_close(kl_divergence(q, p), first.sum(-1), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(kl_divergence(q, p), second, rtol=1e-11, atol=1e-12)
    joint = kl_divergence(Independent(q, 1), Independent(p, 1))
    torch.testing.assert_close(joint, first.sum(), rtol=1e-11, atol=1e-12)


def test_divergence_is_positive_and_zero_between_equals_whatever_the_basis():
    c = numbers(50, 5, scale=20.0)
    q = CoarseBPEF(c, 51)
    same = CoarseBPEF(bpef.to_basis(c, "monomial", "legendre"), 51, "legendre")
    assert torch.equal(kl_divergence(q, q), torch.zeros(50, dtype=torch.float64))
    assert kl_divergence(q, same).abs().max() < 1e-11
    other = CoarseBPEF(c + 1e-3 * numbers(50, 5, seed=1), 51)
    assert (kl_divergence(q, other) > 0.0).all()
    with pytest.raises(ParameterError, match="same levels; got 51 and 11"):
        kl_divergence(q, CoarseBPEF(c, 11))


@pytest.mark.parametrize("basis", BASES)
def test_moments_and_fisher_information_are_derivatives_of_the_log_partition(basis):
    c = numbers(4, scale=3.0).requires_grad_()

    def log_partition(c):
        return CoarseBPEF(c, 21, basis).log_partition

    q = CoarseBPEF(c, 21, basis)
    (gradient,) = torch.autograd.grad(q.log_partition, c)
    torch.testing.assert_close(gradient, q.moments, rtol=1e-12, atol=1e-13)
    hessian = torch.autograd.functional.hessian(log_partition, c)
    centred = q.statistics - q.moments
    torch.testing.assert_close(hessian, centred.mT @ (q.probs[:, None] * centred), rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda c: CoarseBPEF(c, 21, basis).entropy(), c)
    assert torch.autograd.gradcheck(lambda c: CoarseBPEF(c, 21, basis).mean, c)


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_large_coefficients_overflow_nothing(scale):
    c = torch.cat((scale * torch.eye(20), -scale * torch.eye(20), numbers(10, 20, scale=scale))).requires_grad_()
    q = CoarseBPEF(c, 101, "legendre")
    p = CoarseBPEF(torch.zeros(20), 101)
    terms = (q.log_partition, q.entropy(), q.mean, q.variance, kl_divergence(q, p), kl_divergence(p, q))
    assert all(torch.isfinite(term).all() for term in terms)
    assert (q.entropy() >= 0.0).all()
    torch.testing.assert_close(kl_divergence(q, p), math.log(101) - q.entropy(), rtol=1e-10, atol=1e-10)
    sum(term.sum() for term in terms).backward()
    assert torch.isfinite(c.grad).all()


@pytest.mark.parametrize("seed", [None, 7])
def test_draws_are_levels_in_their_proportions(seed):
    q = CoarseBPEF(torch.tensor([[1.0, 2.0], [0.0, -6.0]]), levels=9)
    if seed is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            z = q.sample((40_000,))
    else:
        z = q.sample((40_000,), seed=seed)
        assert torch.equal(z, q.sample((40_000,), seed=seed))
        assert torch.equal(z[:1], q.sample((40_000,), seed=seed)[:1])
    assert z.shape == (40_000, 2)
    for k in range(2):
        counts = (z[:, k, None] == q.levels).sum(0)
        assert counts.sum() == 40_000
        assert stats.chisquare(counts, 40_000 * q.probs[k]).pvalue > 1e-3
    assert q.sample(seed=1).shape == (2,)
    assert q.sample((0,), seed=1).shape == (0, 2)
    assert Independent(q, 1).sample((3, 4)).shape == (3, 4, 2)


def test_log_prob_of_what_is_not_a_level():
    q = CoarseBPEF(torch.zeros(2), 5)
    assert q.log_prob(torch.tensor([-1.0, 0.5])).tolist() == pytest.approx([-math.log(5)] * 2)
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.tensor(0.3))
    free = CoarseBPEF(torch.zeros(2), 5, validate_args=False)
    assert free.log_prob(torch.tensor([0.3, 0.5, 1.5, -1.0])).isfinite().tolist() == [False, True, False, True]
    tenths = CoarseBPEF(torch.zeros(2), 101)  # levels that float32 rounds
    assert torch.isfinite(tenths.log_prob(tenths.levels.float())).all()


def test_it_follows_the_conventions_of_torch():
    c = numbers(3, 2)
    q = CoarseBPEF(c, 7)
    wide = q.expand((4, 3))
    assert (wide.batch_shape, wide.logits.shape, wide.entropy().shape) == ((4, 3), (4, 3, 7), (4, 3))
    torch.testing.assert_close(wide.log_prob(wide.levels[2].expand(4, 3))[1], q.logits[:, 2])
    assert wide.sample((2,), seed=0).shape == (2, 4, 3)
    support = q.enumerate_support()
    assert support.shape == (7, 3)
    torch.testing.assert_close(q.log_prob(support), q.logits.mT)
    assert q.enumerate_support(expand=False).shape == (7, 1)
    assert "CoarseBPEF" in repr(q)
    assert CoarseBPEF(c.float(), 7).logits.dtype == torch.float64


def test_levels_are_symmetric():
    for R in (3, 4, 51, 101):
        zeta = bpef.levels(R)
        assert torch.equal(zeta, -zeta.flip(0))
        assert (zeta[0].item(), zeta[-1].item()) == (-1.0, 1.0)


def test_polynomials_are_those_of_numpy():
    z = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    legendres = torch.as_tensor(legendre.legvander(z.numpy(), 20)[:, 1:])
    torch.testing.assert_close(bpef.polynomials(z, 20, "legendre"), legendres, rtol=1e-13, atol=1e-13)
    powers = z[:, None] ** torch.arange(1, 21)
    torch.testing.assert_close(bpef.polynomials(z, 20), powers, rtol=1e-13, atol=1e-15)
    for basis in BASES:
        c = numbers(41, 6)
        torch.testing.assert_close(bpef.evaluate(c, z, basis), (c * bpef.polynomials(z, 6, basis)).sum(-1))


@pytest.mark.parametrize("order", [1, 2, 5, 20])
def test_a_change_of_basis_is_the_same_density_and_goes_back(order):
    c = numbers(8, order)
    there = bpef.to_basis(c, "monomial", "legendre")
    torch.testing.assert_close(
        CoarseBPEF(c, 101).logits, CoarseBPEF(there, 101, "legendre").logits, rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(bpef.to_basis(there, "legendre", "monomial"), c, rtol=1e-8, atol=1e-8)
    assert bpef.to_basis(c, "legendre", "legendre") is c
    assert bpef.to_basis(c.float(), "monomial", "legendre").dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((torch.zeros(4), 5), ParameterError, "order M = 4 must be below R - 1 = 4"),
        ((torch.zeros(9), 5), ParameterError, "lower the order to 3 or less"),
        ((torch.zeros(3, 0), 5), ParameterError, "order M must be 1 or more"),
        ((torch.tensor(1.0), 5), ShapeError, "a single number"),
        ((torch.zeros(1), 2), ParameterError, "levels must be a whole number, 3 or more; got 2"),
        ((torch.zeros(1), 5.0), ParameterError, "levels must be a whole number"),
        ((torch.tensor([math.nan, 0.0]), 5), NonFiniteError, "coefficients holds NaN"),
        ((torch.tensor([math.inf]), 5), NonFiniteError, "coefficients holds infinite"),
        ((torch.zeros(2), 5, "chebyshev"), ParameterError, "'monomial', 'legendre'; got 'chebyshev'"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        CoarseBPEF(*arguments)
    with pytest.raises(GirihError):
        CoarseBPEF(*arguments)


def test_bad_orders_and_bases_are_refused():
    for order in (0, -1, 2.5):
        with pytest.raises(ParameterError, match="order must be a whole number"):
            bpef.polynomials(torch.zeros(3), order)
    with pytest.raises(ParameterError, match="basis must be one of"):
        bpef.to_basis(torch.zeros(3), "monomial", "power")
