"""EM of mixtures of bent Gaussians: where it starts, that it rises, and what must change nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from girih.em.orderings import orderings
from girih.tables.basis import Basis
from girih.tables.fitter import Fitter
from girih.tables.fitting import Prior, _shared, fit, m_step
from girih.tables.member import Ensemble
from girih.tables.mixture import Mixture, Observed, Rows, cells_of, distinct_masks, gaussians_of, log_prob, statistics
from girih.tables.scales import Scales
from girih.tables.setting import Setting, Table
from girih.tables.starts import bent, beside, clustered, completed, curve, gaussian
from table_twins import Brute, ensemble

NAN = float("nan")
LINE = Basis.line(4)
ALIKE = Setting(3, kinks=11, tied=True, shared=True)
KINDS = ("full", "diagonal", "spherical", "low_rank")


def table(N=60, D=4, holes=0.25, seed=0, levels=(3, 2)):
    """Rows along a bent curve, with categories that go with it."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=N)
    x = np.column_stack([t, t**2, np.abs(t), np.sin(2 * t)])[:, :D] + 0.2 * rng.normal(size=(N, D))
    codes = np.empty((N, len(levels)), dtype=np.int64)
    for c, size in enumerate(levels):
        codes[:, c] = np.digitize(t, np.linspace(-0.5, 0.5, size - 1))
    x[rng.random((N, D)) < holes] = np.nan
    codes[rng.random(codes.shape) < holes] = -1
    weight = rng.integers(1, 4, size=N).astype(float)
    return Table(
        torch.tensor(x), torch.tensor(codes), torch.tensor(weight), torch.zeros(D, dtype=torch.float64), levels
    )


def rows_of(one: Table) -> Rows:
    return Rows.of(one.x, one.codes, one.weight)


def prior(kind="full", tied=False, D=4, **more):
    return Prior(torch.full((D,), 1e-8, dtype=torch.float64), kind, tied, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_a_bent_start_has_exactly_the_density_of_the_plain_mixture(kind, holes):
    one = table(holes=holes)
    rows = rows_of(one)
    p = prior(kind)
    plain = fit(clustered(_whole(rows, one), rows, 3, p, one.levels, 0), rows, p, 5)[0]
    far = Rows.of(torch.cat((one.x, 30.0 * one.x)), one.codes.repeat(2, 1))
    before, after = log_prob(plain, far), log_prob(bent(plain, LINE), far)
    assert torch.allclose(before, after, rtol=1e-12, atol=1e-12)


def _whole(rows, one):
    return completed(rows, gaussian(rows, prior(D=one.x.shape[1]), one.levels))


@pytest.mark.parametrize(
    ("kind", "tied", "holes", "basis"),
    list(itertools.product(KINDS, (False, True), (0.0, 0.3), (Basis.plain(), LINE))),
    ids=lambda v: f"{v.size} functions" if isinstance(v, Basis) else str(v),
)
def test_the_penalised_likelihood_never_falls(kind, tied, holes, basis):
    one = table(holes=holes)
    rows, p = rows_of(one), prior(kind, tied, rank=2)
    mixture = clustered(_whole(rows, one), rows, 2, p, one.levels, 0)
    mixture = mixture if basis.size == 1 else bent(mixture, basis)
    values = []
    for _ in range(25):
        found = statistics(mixture, rows)
        values.append(float(found.log_likelihood - p.penalty(mixture)))
        mixture = m_step(mixture, found, p)
    steps = np.diff(values)
    assert steps.min() > -1e-9 * abs(values[-1])
    assert values[-1] > values[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_curves_with_the_same_bends_keep_them_and_never_get_less_likely(kind, holes):
    one = table(holes=holes)
    rows, p = rows_of(one), prior(kind, True, rank=2, shared=True)
    mixture = beside(fit(bent(gaussian(rows, prior(), one.levels), LINE), rows, prior(kind, rank=2), 5)[0], 3)
    values = []
    for _ in range(25):
        found = statistics(mixture, rows)
        values.append(float(found.log_likelihood - p.penalty(mixture)))
        mixture = m_step(mixture, found, p)
        assert torch.equal(mixture.maps[:1, :, 2:].expand(3, -1, -1), mixture.maps[:, :, 2:])
    assert np.diff(values).min() > -1e-9 * abs(values[-1]) and values[-1] > values[0] + 1.0
    assert float(mixture.maps[:, :, :2].diff(dim=0).abs().min()) > 0.0


def test_shared_bends_are_those_of_one_regression():
    g = torch.Generator().manual_seed(0)
    G, H = torch.randn(3, 6, 6, generator=g).double(), torch.randn(3, 2, 6, generator=g).double()
    G = G @ G.mT
    W = _shared(G, H).requires_grad_()
    own, bends = W[:, :, :2].detach().requires_grad_(), W[0, :, 2:].detach().requires_grad_()
    maps = torch.cat((own, bends.expand(3, -1, -1)), 2)
    (0.5 * (maps @ G @ maps.mT).diagonal(dim1=1, dim2=2).sum() - (H * maps).sum()).backward()
    assert float(own.grad.abs().max()) < 1e-10 and float(bends.grad.abs().max()) < 1e-10


def test_the_curve_of_a_fit_falls_and_ends_where_the_model_is():
    one = table()
    rows, p = rows_of(one), prior()
    end, values = fit(bent(gaussian(rows, p, one.levels), LINE), rows, p, 40, 1e-4)
    assert len(values) > 5 and (np.diff(values) <= 0.0).all()
    total = float(rows.weight.sum())
    assert values[-1] == pytest.approx(float(p.penalty(end) - statistics(end, rows).log_likelihood) / total, abs=1e-12)


def test_the_m_step_is_stationary_where_em_has_converged():
    """The gradient of the penalised likelihood in the maps vanishes at a fixed point of EM."""
    one = table(N=40, D=2, holes=0.2, levels=())
    rows, p = rows_of(one), prior(D=2)
    mixture = bent(gaussian(rows, p, ()), Basis.line(2))
    for _ in range(600):
        mixture = m_step(mixture, statistics(mixture, rows), p)
    found = statistics(mixture, rows)
    inverse = torch.linalg.inv(mixture.noise)
    slope = found.U - p.ridge * inverse @ (mixture.maps * mixture.basis.kinky)  # Fisher's identity
    assert float(slope.abs().max()) < 1e-3
    for d, f in itertools.product(range(2), range(4)):  # and by differences
        values = []
        for h in (-1e-4, 1e-4):
            maps = mixture.maps.clone()
            maps[0, d, f] += h
            moved = replace(mixture, maps=maps)
            values.append(float(statistics(moved, rows).log_likelihood - p.penalty(moved)))
        assert (values[1] - values[0]) / 2e-4 == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize("distance", [1.0, 40.0])
def test_log_prob_is_that_of_a_dense_grid(distance):
    e = ensemble(3, 3, [Basis.line(3), Basis.plain()], (3,))
    g = torch.Generator().manual_seed(1)
    x = distance * torch.randn(6, 3, generator=g, dtype=torch.float64)
    codes = torch.tensor([[0], [1], [2], [-1], [0], [-1]])
    x[1, 0], x[2, 1:], x[5] = NAN, NAN, NAN
    got = e.log_prob(x, codes)
    for n in range(len(x)):
        reach = 12.0 if distance == 1.0 else 400.0
        assert float(got[n]) == pytest.approx(Brute(e, x[n], codes[n], reach=reach).log_p, rel=1e-8, abs=1e-8)


def test_a_row_of_which_nothing_is_known_has_probability_1():
    e = ensemble(5, 3, [LINE, Basis.plain()], (2,))
    nothing = torch.full((2, 3), NAN, dtype=torch.float64)
    assert torch.allclose(e.log_prob(nothing, torch.full((2, 1), -1)), torch.zeros(2).double(), atol=1e-14)


def start(one: Table, p: Prior, kinks: bool) -> Mixture:
    """The same for equal tables, however their rows are ordered: two components, apart along the first column."""
    rows = rows_of(replace(one, x=one.x.nan_to_num(0.0)))
    plain = gaussian(rows, p, one.levels)
    maps = plain.maps.repeat(2, 1, 1)
    maps[0, 0] += 1.0
    maps[1, 0] -= 1.0
    tables = tuple(t.repeat(2, 1) for t in plain.tables)
    two = Mixture(plain.basis, torch.tensor([0.4, 0.6]).double(), maps, plain.noise.repeat(2, 1, 1), tables)
    return bent(two, LINE) if kinks else two


@pytest.mark.parametrize("kinks", [False, True])
def test_a_weight_counts_as_so_many_rows(kinks):
    one = table()
    times = one.weight.long()
    twice = Table(
        one.x.repeat_interleave(times, 0),
        one.codes.repeat_interleave(times, 0),
        torch.ones(int(times.sum()), dtype=torch.float64),
        one.width,
        one.levels,
    )
    scales = [Scales.learn(t.x, t.weight, t.width, False) for t in (one, twice)]
    assert torch.allclose(scales[0].centre, scales[1].centre) and torch.allclose(scales[0].spread, scales[1].spread)
    p = prior()
    ends = [fit(start(one, p, kinks), rows_of(t), p, 20, -1.0) for t in (one, twice)]
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-9)
    test = rows_of(one)
    assert torch.allclose(log_prob(ends[0][0], test), log_prob(ends[1][0], test), atol=1e-6)


@pytest.mark.parametrize("kinks", [False, True])
def test_the_order_of_rows_and_columns_changes_nothing(kinks):
    one = table()
    order, columns = torch.randperm(60, generator=torch.Generator().manual_seed(2)), torch.tensor([2, 0, 3, 1])
    p = prior()
    first = start(one, p, kinks)
    second = replace(first, maps=first.maps[:, columns], noise=first.noise[:, columns][:, :, columns])
    other = one.take(order)
    other = replace(other, x=other.x[:, columns])
    a, _ = fit(first, rows_of(one), p, 20, -1.0)
    b, _ = fit(second, rows_of(other), p, 20, -1.0)
    assert torch.allclose(log_prob(a, rows_of(one))[order], log_prob(b, rows_of(other)), atol=1e-7)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(2, "diagonal"),
        Setting(2, kinks=3),
        Setting(kinks=5, bend=True),
        Setting(2, kinks=11, tied=True, shared=True),
    ],
)
def test_units_of_measurement_change_the_density_by_their_jacobian_alone(setting):
    one = table(levels=())
    units = torch.tensor([8.0, 2.0**-40, 2.0**200, 2.0**-300], dtype=torch.float64)
    other = replace(one, x=one.x * units)
    a, b = Fitter(one, 0).fit(setting), Fitter(other, 0).fit(setting)
    jacobian = (units.log() * ~one.x.isnan()).sum(1)
    assert torch.allclose(a.log_prob(one.x, one.codes), b.log_prob(other.x, one.codes) + jacobian, atol=1e-6)


def test_scales_are_one_to_one_with_the_right_slope():
    g = torch.Generator().manual_seed(0)
    v = torch.randn(200, 3, generator=g, dtype=torch.float64)
    x = torch.stack((v[:, 0].exp(), v[:, 1] ** 3, v[:, 2]), 1)
    scales = Scales.learn(x, torch.ones(200).double(), torch.zeros(3).double(), True)
    assert scales.bent.tolist() == [True, True, False]
    assert torch.allclose(scales.inverse(scales.forward(x)), x, rtol=1e-10, atol=1e-12)
    at = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(scales.forward(at).sum(), at)
    assert torch.allclose(slope.log(), scales.log_slope(x), atol=1e-10)


@pytest.mark.parametrize("size", [1e-310, 1e-170, 1e-100, 1.0, 1e100, 1e149])
def test_scales_of_columns_of_any_size(size):
    x = size * torch.tensor([[1.0], [2.0], [4.0], [8.0]], dtype=torch.float64)
    scales = Scales.learn(x, torch.ones(4).double(), torch.zeros(1).double(), False)
    y = scales.forward(x)
    assert float(y.mean()) == pytest.approx(0.0, abs=1e-10) and float(y.square().mean()) == pytest.approx(1.0)
    assert bool(scales.log_slope(x).isfinite().all())


def test_categories_of_one_component_have_their_smoothed_frequencies():
    codes = torch.tensor([[0]] * 6 + [[1]] * 3 + [[-1]] * 5)
    x = torch.randn(14, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = gaussian(Rows.of(x, codes), prior(D=1), (3,))
    assert one.tables[0].tolist()[0] == pytest.approx([6.5 / 10.5, 3.5 / 10.5, 0.5 / 10.5])


def test_curves_find_the_order_of_rows_on_a_circle():
    angle = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 * math.pi
    x = torch.stack((angle.cos(), angle.sin()), 1)
    *_, around = orderings(x)
    placed = angle[around.argsort()]
    steps = (placed.diff() + math.pi).remainder(2 * math.pi) - math.pi
    assert float(steps.sum().abs()) > 5.5 and float(steps.abs().max()) < 0.5  # once around
    rows, p = Rows.of(x), prior(D=2, floor=1e-3)
    one = curve(x, around, Basis.line(11), rows, p, ())
    end, _ = fit(one, rows, p, 30)
    plain = gaussian(rows, p, ())
    assert float(log_prob(end, rows).mean() - log_prob(plain, rows).mean()) > 0.5


@pytest.mark.parametrize("N", [2, 3, 12])
@pytest.mark.parametrize(
    "setting",
    [
        Setting(4),
        Setting(2, "low_rank", rank=1),
        Setting(kinks=5),
        Setting(3, kinks=2),
        Setting(3, kinks=11, tied=True, shared=True),
    ],
)
def test_more_components_and_kinks_than_rows_are_no_hindrance(N, setting):
    one = table(N, 3, levels=(2,))
    one = replace(one, x=one.x.nan_to_num(0.5))
    repeated = Table(one.x[:1].repeat(6, 1), one.codes[:1].repeat(6, 1), one.weight[:1].repeat(6), one.width[:3], (2,))
    for each in (replace(one, width=one.width[:3]), repeated):
        member = Fitter(each, 0).fit(setting)
        assert bool(Ensemble((member,), torch.ones(1).double()).log_prob(each.x, each.codes).isfinite().all())


@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_without_a_latent_a_mixture_is_one_of_lines_that_do_not_move(holes):
    one = table(holes=holes)
    rows = rows_of(one)
    plain = clustered(_whole(rows, one), rows, 3, prior(), one.levels, 0)
    still = replace(plain, basis=Basis.line(0), maps=torch.cat((plain.maps, torch.zeros(3, 4, 1).double()), 2))
    observed = Observed.of(plain.noise, rows.masks)
    for part, twin in zip(gaussians_of(plain, rows, observed), gaussians_of(still, rows, observed), strict=True):
        assert torch.equal(part, twin)
    for part, twin in zip(cells_of(plain, rows, observed), cells_of(still, rows, observed), strict=True):
        assert torch.equal(part, twin)
    found, twin = statistics(plain, rows), statistics(still, rows)
    assert torch.allclose(found.U, twin.U[..., :1], atol=1e-12) and torch.allclose(found.V, twin.V, atol=1e-12)
    assert torch.equal(found.G, twin.G[:, :1, :1]) and torch.equal(found.counts, twin.counts)


@pytest.mark.parametrize("D", [0, 1, 5, 62, 63, 70])
def test_masks_are_the_different_rows_in_their_order(D):
    seen = torch.as_tensor(np.random.default_rng(D).random((40, D)) < 0.9)
    seen[20:] = seen[:20]
    seen[0, : D // 2], seen[1, D // 2 :] = False, False
    masks, which = distinct_masks(seen)
    assert torch.equal(masks[which], seen)
    assert masks.tolist() == sorted(map(list, {tuple(row) for row in seen.tolist()}))
