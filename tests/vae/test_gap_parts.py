"""What `girih.vae.gap` is made of: descents, expectations, label entropies, simplices."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import girih
from girih.vae import nearest


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rosenbrock(x, which):
    a, b = x.unbind(1)
    value = (1 - a).square() + 100 * (b - a.square()).square()
    by_b = 200 * (b - a.square())
    return value, torch.stack((-2 * (1 - a) - 2 * a * by_b, by_b), 1)


def test_descents_find_the_end_of_a_curved_valley():
    found = nearest.minimise(rosenbrock, 2 * draw(20, 2), tolerance=1e-9)
    torch.testing.assert_close(found.point, torch.ones(20, 2, dtype=torch.float64), rtol=0, atol=1e-7)
    assert found.slope.max() < 1e-6


def test_a_descent_that_is_cut_short_is_no_worse_than_its_start():
    start = 2 * draw(20, 2, seed=1)
    before = rosenbrock(start, None)[0]
    for evaluations in range(6):
        found = nearest.minimise(rosenbrock, start, evaluations=evaluations)
        torch.testing.assert_close(found.value, rosenbrock(found.point, None)[0])
        assert (found.value <= before).all()
        before = found.value


def test_descents_stay_where_the_objective_is_finite():
    def barrier(x, which):
        return (x - x.log()).sum(1), 1 - 1 / x

    start = torch.tensor([[0.01, 3.0], [1e-6, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(
        nearest.minimise(barrier, start, reach=10.0).point, torch.ones_like(start), rtol=0, atol=1e-6
    )
    outside = nearest.minimise(barrier, torch.tensor([[-1.0, 1.0]], dtype=torch.float64))
    assert math.isinf(outside.value.item())


@pytest.mark.parametrize("S", [1, 2, 3])
def test_expectations_and_their_gradients(S):
    dgn = girih.DGN(girih.mlp([S, 6 if S < 3 else 3, 4], seed=S), noise=0.1)
    x, row = dgn().sample((3,), seed=1).detach(), torch.tensor([2, 0, 0, 1])
    mean = draw(4, S)
    factor = torch.tril(0.3 * draw(4, S, S, seed=1), -1) + torch.diag_embed(0.2 + draw(4, S, seed=2).abs())
    joint = nearest.Joint(dgn, x)
    q = MultivariateNormal(mean, scale_tril=factor)
    found = joint.expect(row, mean, factor)
    torch.testing.assert_close(found.value, (dgn.elbo(x[row], q) - q.entropy()).detach(), rtol=0, atol=1e-9)
    for i, j in itertools.product(range(S), range(-1, S)):
        if j > i:
            continue
        step = torch.zeros(S, S, dtype=torch.float64)
        step[i, max(j, 0)] = 1e-5
        shift = step[:, 0] if j < 0 else 0.0
        stretch = step if j >= 0 else 0.0
        ends = [joint.expect(row, mean + s * shift, factor + s * stretch).value for s in (1, -1)]
        slope = found.by_mean[:, i] if j < 0 else found.by_factor[:, i, j]
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, slope, rtol=1e-5, atol=1e-5)


def mixture_of(K, S, seed):
    log_weight = torch.log_softmax(draw(3, K, seed=seed), 1)
    return log_weight, 1.5 * draw(3, K, S, seed=seed + 1), (0.7 * draw(3, K, S, seed=seed + 2)).exp()


def dense_entropy(log_weight, mean, deviation, axis):
    """The definition of I on a grid over z."""
    S = mean.shape[2]
    z = torch.cartesian_prod(*[axis] * S).reshape(-1, S)
    v = (z[:, None, None] - mean) / deviation
    log_parts = log_weight - deviation.log().sum(2) - 0.5 * (v.square() + math.log(2 * math.pi)).sum(3)
    log_r = torch.log_softmax(log_parts, 2)
    return -(log_parts.exp() * log_r).sum((0, 2)) * (axis[1] - axis[0]) ** S


@pytest.mark.parametrize(("S", "points"), [(1, 100_001), (2, 701)])
def test_label_entropies_are_what_a_dense_grid_says(S, points):
    parts = mixture_of(3, S, seed=5)
    twin = dense_entropy(*parts, torch.linspace(-25.0, 25.0, points, dtype=torch.float64))
    values = [nearest.label_entropy(*parts, one) for one in nearest.FINE[S]]
    torch.testing.assert_close(values[1], twin, rtol=0, atol=1e-7)
    assert ((values[1] - twin).abs() <= (values[1] - values[0]).abs() + 1e-8).all()
    assert twin.min() > 0.05


def test_a_narrow_component_inside_of_a_wide_one_is_not_missed():
    log_weight = torch.tensor([[0.3, 0.7]], dtype=torch.float64).log()
    mean, deviation = torch.tensor([[[0.4], [0.0]]]).double(), torch.tensor([[[1e-3], [1.0]]]).double()
    narrow = torch.linspace(0.3, 0.5, 400_001, dtype=torch.float64)
    twin = dense_entropy(log_weight, mean, deviation, narrow)  # elsewhere only one component has mass
    torch.testing.assert_close(
        nearest.label_entropy(log_weight, mean, deviation, nearest.FINE[1][1]), twin, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("S", [1, 2, 3])
def test_label_entropies_by_law(S):
    weights = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    same = torch.zeros(1, 3, S, dtype=torch.float64)
    one = torch.ones_like(same)
    entropy = -(weights * weights.log()).sum(1)
    apart = same + torch.tensor([-40.0, 0.0, 40.0], dtype=torch.float64)[:, None]
    rough, fine = (nearest.label_entropy(weights.log(), same, one, rules) for rules in nearest.FINE[S])
    # panels of two deviations, with four nodes for S = 3 and six or more otherwise; the error stated is enough
    torch.testing.assert_close(fine, entropy, rtol=0, atol=1e-3 if S == 3 else 1e-6)
    assert (fine - entropy).abs() <= (fine - rough).abs() + 1e-9
    assert nearest.label_entropy(weights.log(), apart, one, nearest.MEDIUM[S]).item() < 1e-12
    # a few nodes to a panel of several deviations, for descents
    torch.testing.assert_close(
        nearest.label_entropy(weights.log(), same, one, nearest.COARSE[S]), entropy, rtol=0, atol=0.1
    )


def test_label_entropies_have_gradients():
    parts = [part.requires_grad_() for part in mixture_of(2, 1, seed=3)]
    rules = nearest.Rule(20, 8)
    gradient = torch.autograd.grad(nearest.label_entropy(*parts, rules).sum(), parts)
    for number, g in enumerate(gradient):
        step = torch.zeros_like(g)
        step[0, 0] = 1e-5
        ends = [
            nearest.label_entropy(
                *(p.detach() + (s * step if i == number else 0) for i, p in enumerate(parts)), rules
            ).sum()
            for s in (1, -1)
        ]
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, g[0, 0].sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("S", [1, 2, 3])
def test_rules_integrate_polynomials(S):
    nodes, weight = nearest.rule(S)
    powers = (2, 1, 2)[:S]
    value = (weight * torch.stack([nodes[:, s + 1] ** p for s, p in enumerate(powers)]).prod(0)).sum().item()
    exact = math.prod(map(math.factorial, powers)) * math.factorial(S) / math.factorial(S + sum(powers))
    assert value == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("S", [1, 2, 3])
def test_simplices_cover_the_box_once(S):
    part = girih.Partition(girih.mlp([S, 6, 2], seed=0), domain=(-1.0, 1.0))
    corners, cell = nearest.simplices_of(part)
    assert nearest.volumes(corners).sum().item() == pytest.approx(2.0**S, abs=1e-9)
    centres = corners.mean(1)
    assert (part.locate(centres) == cell).all()
    halves = nearest.bisected(corners)
    torch.testing.assert_close(nearest.volumes(halves.flatten(0, 1)).reshape(2, -1).sum(0), nearest.volumes(corners))
    assert (halves[0].mean(1) != halves[1].mean(1)).any(1).all()


@pytest.mark.parametrize("S", [1, 2, 3])
def test_bounds_on_a_grid_are_sums_over_all_codes(S):
    C, N = 4, 3
    joint, base = draw(N, *[C] * S), 0.3 * draw(C, seed=1)
    grid = nearest.Grid(joint, base, torch.eye(C, dtype=torch.float64))
    logits = draw(5, S, C, seed=2).requires_grad_()
    log_mass = torch.log_softmax(logits, 2)
    row = torch.tensor([0, 2, 1, 1, 0])
    value, slope = nearest.negative_elbo(grid, log_mass, row)
    twin = torch.zeros(5, dtype=torch.float64)
    for code in itertools.product(range(C), repeat=S):
        log_q = sum(log_mass[:, s, c] for s, c in enumerate(code))
        own = log_q - sum(base[c] for c in code)
        twin = twin + log_q.exp() * (own - joint[(slice(None), *code)][row])
    torch.testing.assert_close(value, twin)
    torch.testing.assert_close(slope, torch.autograd.grad(twin.sum(), logits)[0])
    total = sum(
        (joint[(slice(None), *code)] + sum(base[c] for c in code)).exp()
        for code in itertools.product(range(C), repeat=S)
    )
    torch.testing.assert_close(grid.log_evidence(), total.log())
    torch.testing.assert_close(grid.marginals().sum(2), torch.ones(N, S, dtype=torch.float64))


def test_fits_of_logarithms_are_exact_where_they_can_be():
    z = torch.linspace(-1.0, 1.0, 21, dtype=torch.float64)
    powers = torch.stack([z**m for m in range(1, 6)], 1)
    used, change = nearest.conditioned(powers, torch.zeros_like(z))
    torch.testing.assert_close(used.mT @ used / len(z), torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-9)
    wanted = draw(2, 5)
    found = nearest.fitted(wanted @ powers.mT + 3.0, torch.ones(2, 21, dtype=torch.float64), used) @ change.mT
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_gap_has_a_short_repr():
    vae = girih.vae.GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
    found = girih.vae.gap(vae, vae().sample((200,), seed=0))
    assert repr(found).startswith("Gap(200 rows; means: nll ") and len(repr(found)) < 140
