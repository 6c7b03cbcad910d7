"""The conditional of an ensemble, against dense grids of latents, draws and its own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from girih.errors import NonFiniteError, ParameterError, ShapeError
from girih.tables.basis import Basis
from girih.tables.conditional import Conditional
from girih.tables.encoded import Atom
from girih.tables.lines import Latent, Lines
from girih.tables.member import Ensemble, Member
from girih.tables.reasons import reasons
from girih.tables.scales import Scales
from table_twins import Brute, ensemble

NAN = float("nan")
LINE, PLAIN = Basis.line(3), Basis.plain()


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def model():
    return ensemble(0, 3, [LINE, PLAIN, LINE], (3, 2))


def holes(e, n=6, seed=3):
    """Rows of the model with holes of all kinds, complete and empty ones among them."""
    D, C = len(e.members[0].scales.bent), len(e.members[0].mixture.tables)
    g = torch.Generator().manual_seed(seed)
    empty = Conditional(e, rows([NAN] * D), torch.full((1, C), -1))
    x, codes = (part[:, 0] for part in empty.sample(n, g))
    gone, gone_codes = torch.rand(n, D, generator=g) < 0.5, torch.rand(n, C, generator=g) < 0.5
    gone[0], gone_codes[0] = True, True
    gone[1], gone_codes[1] = False, False
    return x.masked_fill(gone, NAN), codes.masked_fill(gone_codes, -1)


@pytest.mark.parametrize("bend", [False, True])
def test_means_and_covariances_are_those_of_a_dense_grid(bend):
    e = ensemble(1, 3, [LINE, PLAIN], (3, 2), bend)
    x, codes = holes(e)
    c = Conditional(e, x, codes)
    covariance = c.covariance
    for n in range(len(x)):
        brute = Brute(e, x[n], codes[n])
        for i in range(3):
            if not x[n, i].isnan():
                assert c.mean[n, i] == x[n, i] and c.std[n, i] == 0.0 and not covariance[n, i].any()
                continue
            mean = brute.expectation(i, lambda v: v)
            assert float(c.mean[n, i]) == pytest.approx(mean, rel=1e-9, abs=1e-9)
            square = brute.expectation(i, lambda v, mean=mean: (v - mean) ** 2)
            assert float(c.variance[n, i]) == pytest.approx(square, rel=1e-8)
            for j in range(i):
                if x[n, j].isnan():
                    product = brute.cross(i, j) - mean * float(c.mean[n, j])
                    assert float(covariance[n, i, j]) == pytest.approx(product, rel=1e-8, abs=1e-8)
                    assert covariance[n, i, j] == covariance[n, j, i]
        for k in range(2):
            if codes[n, k] < 0:
                np.testing.assert_allclose(c.probabilities(k)[n], brute.probabilities(k), atol=1e-11)
            else:
                assert c.probabilities(k)[n].tolist() == np.eye(c.probabilities(k).shape[1])[codes[n, k]].tolist()


def test_cdf_and_quantiles_are_those_of_a_dense_grid():
    e = model()
    x, codes = holes(e)
    c = Conditional(e, x, codes)
    levels = torch.tensor([0.001, 0.3, 0.5, 0.97], dtype=torch.float64)
    q = c.quantile(levels)
    assert q.shape == (4, 6, 3)
    assert torch.equal(c.quantile(0.5), q[2])
    for n in range(len(x)):
        brute = Brute(e, x[n], codes[n])
        for j in range(3):
            if x[n, j].isnan():
                found = [brute.cdf(j, float(v)) for v in q[:, n, j]]
                np.testing.assert_allclose(found, levels, atol=1e-9)
                at = float(q[1, n, j]) + 0.1
                assert float(c.cdf(torch.full((6, 3), at, dtype=torch.float64))[n, j]) == pytest.approx(
                    brute.cdf(j, at), abs=1e-10
                )
            else:
                assert (q[:, n, j] == x[n, j]).all()
                assert c.cdf(x)[n, j] == 1.0 and c.cdf(x - 1e-9)[n, j] == 0.0


def test_atoms_are_values_with_a_probability():
    e = ensemble(2, 3, [LINE, PLAIN], (3, 2, 3))
    atoms = (Atom(0, 0, (-0.5, 0.25)), Atom(2, 1, (1.0,)))
    x = rows([NAN, 0.3, NAN], [NAN, NAN, NAN], [NAN, 0.3, NAN], [0.4, NAN, 0.1], [NAN, 0.2, NAN])
    codes = torch.tensor([[-1, -1, 0], [-1, -1, -1], [1, -1, 2], [2, -1, -1], [2, 0, -1]])
    c = Conditional(e, x, codes, atoms)
    assert c.mean[2, 0] == 0.25 and c.std[2, 0] == 0.0 and (c.quantile(0.3)[2, 0] == 0.25)
    assert c.mean[4, 2] == 1.0
    levels = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)
    q = c.quantile(levels)
    hits = 0
    implied = torch.where((torch.arange(3) == 1) & ~x[:, 2:].isnan(), 1, codes)
    for n in range(5):
        brute = Brute(e, x[n], implied[n], atoms)
        for j in range(3):
            if not c.known[n, j].isnan():
                continue
            mean = brute.expectation(j, lambda v: v)
            assert float(c.mean[n, j]) == pytest.approx(mean, rel=1e-9, abs=1e-9)
            assert float(c.variance[n, j]) == pytest.approx(
                brute.expectation(j, lambda v, mean=mean: (v - mean) ** 2), rel=1e-8
            )
            for level, v in zip(levels.tolist(), q[:, n, j].tolist(), strict=True):
                assert brute.cdf(j, v) >= level - 1e-9 and brute.cdf(j, v - 1e-6) < level + 1e-9
                hits += any(v in atom.values for atom in atoms)
        assert torch.allclose(c.probabilities(0).sum(1), torch.ones(5, dtype=torch.float64))
    assert hits > 10
    draws, drawn = c.sample(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(draws[:, :, 0].isnan(), drawn[:, :, 0] < 2)
    value = torch.where(drawn[:, :, 0] < 2, torch.tensor([-0.5, 0.25, 0.0]).double()[drawn[:, :, 0]], draws[:, :, 0])
    assert ((value.mean(0) - c.mean[:, 0]).abs() <= 5.0 * c.std[:, 0] / 20_000**0.5 + 1e-12).all()
    both = torch.stack((value, draws[:, :, 1]), 2) - c.mean[:, :2]
    found = torch.einsum("mni,mnj->nij", both, both) / 20_000
    error = 5.0 * torch.einsum("mni,mnj->mnij", both, both).std(0) / 20_000**0.5
    assert ((found - c.covariance[:, :2, :2]).abs() <= error + 1e-12).all()


def test_draws_have_the_means_and_probabilities():
    e = model()
    x, codes = holes(e)
    c = Conditional(e, x, codes)
    m = 20_000
    draws, drawn = c.sample(m, torch.Generator().manual_seed(5))
    again = c.sample(m, torch.Generator().manual_seed(5))
    assert torch.equal(draws, again[0]) and torch.equal(drawn, again[1])
    seen = ~x.isnan()
    assert (draws[:, seen] == x[seen]).all() and (drawn[:, codes >= 0] == codes[codes >= 0]).all()
    assert ((draws.mean(0) - c.mean).abs() <= 5.0 * c.std / m**0.5 + 1e-12).all()
    for k in range(2):
        p = c.probabilities(k)
        often = torch.nn.functional.one_hot(drawn[:, :, k], p.shape[1]).double().mean(0)
        assert ((often - p).abs() <= 5.0 * (p * (1 - p) / m).sqrt() + 1e-12).all()
    u = torch.stack([c.cdf(one) for one in draws[:100]])[:, ~seen]  # uniform
    assert ((u.mean(0) - 0.5).abs() <= 5.0 / (12 * 100) ** 0.5).all()


def test_means_agree_with_importance_sampling():
    e = model()
    x, codes = rows([NAN, 0.5, NAN]), torch.tensor([[1, -1]])
    c = Conditional(e, x, codes)
    free = Conditional(e, torch.full_like(x, NAN), torch.full_like(codes, -1))
    draws, drawn = (part[:, 0] for part in free.sample(40_000, torch.Generator().manual_seed(2)))
    draws[:, 1] = 0.5
    drawn[:, 0] = 1
    apart = draws.clone(), drawn.clone()
    apart[0][:, 1], apart[1][:, 0] = NAN, -1
    weight = (e.log_prob(draws, drawn) - e.log_prob(*apart)).exp()
    weight = weight / weight.sum()
    for j in (0, 2):
        mean = (weight * draws[:, j]).sum()
        error = (weight * (draws[:, j] - mean)).square().sum().sqrt()
        assert (c.mean[0, j] - mean).abs() <= 5.0 * error


def test_log_prob_is_the_density_of_what_is_given():
    e = model()
    x, codes = rows([NAN, 0.5, NAN], [0.1, NAN, NAN]), torch.tensor([[-1, 1], [2, -1]])
    c = Conditional(e, x, codes)
    grid = torch.linspace(-60.0, 60.0, 12_001, dtype=torch.float64)
    line = torch.full((len(grid), 2, 3), NAN, dtype=torch.float64)
    line[:, 0, 0], line[:, 1, 1] = grid, grid
    none = torch.full_like(codes, -1)
    many = Conditional(e, x[:1].expand(len(grid), 3), codes[:1].expand(len(grid), 2))
    assert float(
        torch.trapezoid(many.log_prob(line[:, 0], none[:1].expand(len(grid), 2)).exp(), grid)
    ) == pytest.approx(1.0, abs=1e-3)
    for code in range(3):
        given = none.clone()
        given[0, 0] = code
        given[1, 1] = 0
        blank = torch.full_like(x, NAN)
        assert float(c.log_prob(blank, given)[0].exp()) == pytest.approx(float(c.probabilities(0)[0, code]), rel=1e-10)
    with pytest.raises(ParameterError, match="nothing to judge"):
        c.log_prob(x, codes)
    with pytest.raises(ParameterError, match="another value"):
        c.log_prob(x + 1.0, codes)
    with pytest.raises(ParameterError, match="another value"):
        c.log_prob(x.nan_to_num(0.0), torch.tensor([[0, 0], [0, 0]]))


def test_density_is_the_slope_of_the_cdf():
    e = model()
    x, codes = rows([NAN, 0.5, NAN]), torch.tensor([[-1, 1]])
    c = Conditional(e, x, codes)
    at, step = rows([0.3, NAN, NAN]), 1e-4
    slope = (c.cdf(at + step) - c.cdf(at - step))[0, 0] / (2 * step)
    assert float(c.log_prob(at, torch.full_like(codes, -1)).exp()) == pytest.approx(float(slope), rel=1e-6)


def test_a_marginal_is_the_same_distribution_restricted():
    e = model()
    x, codes = holes(e)
    c = Conditional(e, x, codes)
    some = c.marginal([2, 0], [1])
    assert torch.equal(some.mean, c.mean[:, [2, 0]]) and torch.equal(some.std, c.std[:, [2, 0]])
    assert torch.equal(some.covariance, c.covariance[:, [2, 0]][:, :, [2, 0]])
    assert torch.equal(some.quantile(0.2), c.quantile(0.2)[:, [2, 0]])
    assert torch.equal(some.probabilities(0), c.probabilities(1))
    draws, drawn = some.sample(7, torch.Generator().manual_seed(0))
    assert draws.shape == (7, 6, 2) and drawn.shape == (7, 6, 1)
    alone = some.marginal([1])
    assert torch.equal(alone.mean, c.mean[:, :1])
    hole = x[:, 0].isnan()
    one = Conditional(e, x[hole], codes[hole])
    given = torch.full((int(hole.sum()), 3), NAN, dtype=torch.float64)
    given[:, 0] = 0.4
    none = torch.full((len(given), 2), -1)
    value = one.marginal([0]).log_prob(given[:, :1], none[:, :0])
    assert torch.equal(value, one.log_prob(given, none))


def test_columns_in_another_order_change_nothing_else():
    e = model()
    x, codes = holes(e)
    order = [2, 0, 1]
    members = []
    for member in e.members:
        mix, s = member.mixture, member.scales
        turned = type(mix)(mix.basis, mix.weights, mix.maps[:, order], mix.noise[:, order][:, :, order], mix.tables)
        members.append(
            Member(turned, Scales(*(getattr(s, k)[order] for k in ("bent", "origin", "unit", "centre", "spread"))))
        )
    c, other = Conditional(e, x, codes), Conditional(Ensemble(tuple(members), e.weights), x[:, order], codes)
    assert torch.allclose(c.mean[:, order], other.mean, rtol=1e-11, atol=1e-12)
    assert torch.allclose(c.covariance[:, order][:, :, order], other.covariance, rtol=1e-9, atol=1e-11)
    assert torch.allclose(c.quantile(0.9)[:, order], other.quantile(0.9), rtol=1e-9, atol=1e-10)


def test_other_units_change_only_the_units():
    e = model()
    x, codes = holes(e)
    shift, factor = rows(100.0, -3.0, 0.0), rows(1e-3, 50.0, 7.0)
    members = []
    for member in e.members:
        s = member.scales
        bent = Scales(
            s.bent,
            shift + factor * s.origin,
            factor * s.unit,
            torch.where(s.bent, s.centre, shift + factor * s.centre),
            torch.where(s.bent, s.spread, factor * s.spread),
        )
        members.append(Member(member.mixture, bent))
    c, other = Conditional(e, x, codes), Conditional(Ensemble(tuple(members), e.weights), shift + factor * x, codes)
    assert torch.allclose(shift + factor * c.mean, other.mean, rtol=1e-10, atol=1e-10)
    assert torch.allclose(factor * c.std, other.std, rtol=1e-9)
    assert torch.allclose(shift + factor * c.quantile(0.1), other.quantile(0.1), rtol=1e-9, atol=1e-9)


def test_a_row_far_from_everything():
    e = ensemble(4, 3, [LINE, PLAIN], (), bend=False)
    x, codes = rows([300.0, NAN, NAN], [-1e3, NAN, 40.0], [1e6, NAN, NAN]), torch.zeros(3, 0, dtype=torch.long)
    c = Conditional(e, x, codes)
    for n in range(2):
        brute = Brute(e, x[n], codes[n], reach=1500.0)
        assert brute.log_p == pytest.approx(float(e.log_prob(x, codes)[n]), rel=1e-9)
        for j in range(3):
            if x[n, j].isnan():
                mean = brute.expectation(j, lambda v: v)
                assert float(c.mean[n, j]) == pytest.approx(mean, rel=1e-7)
                assert brute.cdf(j, float(c.quantile(0.7)[n, j])) == pytest.approx(0.7, abs=1e-6)
    assert c.mean.isfinite().all() and (c.std[2, 1:] > 0).all()
    assert torch.allclose(c.cdf(c.quantile(0.3))[:, 1], torch.full((3,), 0.3, dtype=torch.float64), atol=1e-7)


def test_nothing_missing_and_no_rows():
    e = model()
    x, codes = rows([0.1, 0.2, 0.3]), torch.tensor([[0, 1]])
    c = Conditional(e, x, codes)
    assert torch.equal(c.mean, x) and not c.covariance.any() and torch.equal(c.quantile(0.3), x)
    draws, drawn = c.sample(3)
    assert torch.equal(draws, x.repeat(3, 1, 1)) and torch.equal(drawn, codes.repeat(3, 1, 1))
    none = Conditional(e, x[:0], codes[:0])
    assert none.mean.shape == (0, 3) and none.quantile(torch.tensor([0.1, 0.2])).shape == (2, 0, 3)
    assert none.sample(2)[0].shape == (2, 0, 3)


def test_categories_alone():
    e = ensemble(0, 0, [PLAIN, PLAIN], (3, 2))
    c = Conditional(e, torch.empty(1, 0, dtype=torch.float64), torch.tensor([[-1, 1]]))
    joint = [float(e.log_prob(c.x, torch.tensor([[k, 1]])).exp()) for k in range(3)]
    assert c.probabilities(0)[0].tolist() == pytest.approx([p / sum(joint) for p in joint], rel=1e-12)
    assert c.mean.shape == (1, 0) and c.quantile(0.5).shape == (1, 0) and c.sample(4)[1].shape == (4, 1, 2)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 3e-6, 1e-8])
def test_variances_of_bent_columns_that_hardly_vary(size):
    """sinh is straight over so little: to first order the variances are those of T times cosh^2."""
    e = ensemble(6, 2, [LINE], (), bend=False)
    member = e.members[0]
    s = member.scales
    narrow = Scales(torch.ones(2).bool(), s.origin, s.unit, torch.tensor([2.0, -1.0]).double(), size * s.spread)
    straight = Scales(torch.zeros(2).bool(), 0 * s.origin, torch.ones(2).double(), narrow.centre, narrow.spread)
    x, codes = rows([NAN, NAN]), torch.zeros(1, 0).long()
    c, flat = (Conditional(Ensemble((Member(member.mixture, k),), rows(1.0)), x, codes) for k in (narrow, straight))
    slope = s.unit * flat.mean.cosh()
    expected = flat.covariance * slope[:, :, None] * slope[:, None, :]
    assert torch.allclose(c.covariance, expected, rtol=30.0 * size + 2e-5, atol=0.0)


def test_overflow_is_said():
    e = ensemble(5, 2, [PLAIN], ())
    member = e.members[0]
    s = member.scales
    wide = Scales(torch.tensor([False, True]), s.origin, s.unit, s.centre, torch.tensor([1.0, 800.0]).double())
    c = Conditional(Ensemble((Member(member.mixture, wide),), rows(1.0)), rows([NAN, NAN]), torch.zeros(1, 0).long())
    with pytest.warns(RuntimeWarning, match="use quantiles"):
        assert c.std[0, 1].isinf()
    assert c.quantile(0.5).isfinite().all()


def test_reasons_are_differences_of_densities():
    e = model()
    x, codes = holes(e)
    groups = (((0,), ()), ((1, 2), (0,)), ((), (1,)), ((2,), (0,)))
    x[2] = torch.tensor([300.0, -50.0, 1.0])  # far from everything
    found = reasons(e, x, codes, groups)
    for column, (numbers, categories) in enumerate(groups):
        less, less_codes = x.clone(), codes.clone()
        less[:, list(numbers)], less_codes[:, list(categories)] = NAN, -1
        expected = e.log_prob(x, codes) - e.log_prob(less, less_codes)
        assert torch.allclose(found[:, column], expected, rtol=1e-10, atol=1e-9)
    assert not found[0].any()


def test_what_cannot_be_is_refused():
    e = model()
    x, codes = rows([0.1, NAN, 0.3]), torch.tensor([[0, 1]])
    with pytest.raises(ShapeError, match=r"\(N, 3\)"):
        Conditional(e, x[:, :2], codes)
    with pytest.raises(NonFiniteError, match="infinite"):
        Conditional(e, x / 0.0, codes)
    with pytest.raises(ParameterError, match="codes 0 to 2"):
        Conditional(e, x, codes + 3)
    with pytest.raises(ParameterError, match="an atom and a number"):
        Conditional(e, x, codes, (Atom(0, 0, (1.0, 2.0)),))
    with pytest.raises(ParameterError, match="between 0 and 1"):
        Conditional(e, x, codes).quantile(1.2)
    with pytest.raises(NonFiniteError, match="double precision"):
        Conditional(e, rows([1e200, NAN, NAN]), codes).mean  # noqa: B018
    atoms = (Atom(0, 0, (1.0, 2.0)),)
    with pytest.raises(ParameterError, match="both or neither"):
        Conditional(e, rows([NAN, 0.1, 0.2]), codes, atoms).marginal([0])


def test_a_line_that_does_not_move_is_a_normal():
    """Closed where the slope is 0, and as one of so small a slope that the quadrature is taken; among others too."""
    k = torch.tensor([-9.0, -3.0, -0.5, 0.0, 1.2, 6.9, 7.1, 40.0], dtype=torch.float64)
    zero, one = torch.zeros_like(k), torch.ones_like(k)
    far = torch.full_like(k, torch.inf)
    latent = Latent(zero, -far, far, torch.full_like(k, 0.5 * math.log(2 * math.pi)))
    for slope in (zero, 1e-14 * one, torch.where(k < 0.0, 1e-14, 0.0).double()):
        value, density = Lines(latent, 2.0 * one, slope, 3.0 * one).cdf(2.0 + 3.0 * k)
        assert torch.allclose(value, torch.special.ndtr(k), rtol=0.0, atol=2e-12)
        assert torch.allclose(density, (-0.5 * k.square()).exp() / (3.0 * math.sqrt(2 * math.pi)), atol=1e-11)
