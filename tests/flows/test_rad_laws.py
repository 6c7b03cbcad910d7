"""What every flow must satisfy, whatever its layers and weights."""

import math

import numpy as np
import pytest
import torch

from girih.flows import log_gate, tied_logits

from .rad_cases import FLOWS, FOLDED, f64, make

SEEDS = (0, 1)
PLANE = ["rad-2", "rad-2-five-pieces", "rad-2-context", "all-folded", "mixed", "nvp-2"]
LINE = ["rad-1", "rad-1-five-pieces", "rad-1-context", "nvp-1"]

laws = pytest.mark.parametrize("seed", SEEDS)


def rows(distribution, n=200, seed=0, spread=1.0):
    """Rows from all over: draws, and points away from them."""
    x = distribution.sample((n,), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return torch.cat((x, spread * 3.0 * torch.randn(n, x.shape[-1], dtype=f64, generator=generator)))


def plane_grid(distribution, count=801):
    """A grid that is fine in the middle and reaches far out, its cells' edges, and the mass of each."""
    x = distribution.sample((20_000,), seed=3)
    middle, spread = x.median(0).values, (x.quantile(0.75, 0) - x.quantile(0.25, 0))
    reach = torch.asinh(1.5 * ((x - middle) / spread).abs().max(0).values + 5.0)
    nodes, edges, steps = [], [], []
    for i in range(2):
        t = torch.linspace(-reach[i], reach[i], count, dtype=f64)
        nodes.append(middle[i] + spread[i] * t.sinh())
        steps.append(spread[i] * t.cosh() * (t[1] - t[0]))
        between = torch.cat((t[:1] - 1.0, 0.5 * (t[1:] + t[:-1]), t[-1:] + 1.0))
        edges.append((middle[i] + spread[i] * between.sinh()).numpy())
    with torch.no_grad():
        log_p = torch.cat([distribution.log_prob(part) for part in torch.cartesian_prod(*nodes).split(100_000)])
    return edges, (log_p.exp().reshape(count, count) * steps[0][:, None] * steps[1]).numpy()


@laws
@pytest.mark.parametrize("name", LINE)
def test_density_on_the_line_integrates_to_one_and_draws_follow_it(name, seed):
    _, p, _ = make(name, seed)
    draws = np.sort(p.sample((20_000,), seed=1).flatten().numpy())
    x = torch.linspace(draws[0] - 30.0, draws[-1] + 30.0, 400_001, dtype=f64)
    with torch.no_grad():
        density = p.log_prob(x[:, None]).exp().numpy()
    step = (x[1] - x[0]).item()
    cdf = np.concatenate(([0.0], np.cumsum(0.5 * step * (density[1:] + density[:-1]))))
    assert cdf[-1] == pytest.approx(1.0, abs=1e-4)
    assert kolmogorov(draws, x.numpy(), cdf) < 1.95  # beyond that in one of 1,000 samples


def kolmogorov(draws, x, cdf):
    """Kolmogorov's distance between sorted draws and a distribution function, times the root of their number."""
    n, at = len(draws), np.interp(draws, x, cdf)
    return max((np.arange(1, n + 1) / n - at).max(), (at - np.arange(n) / n).max()) * math.sqrt(n)


@laws
@pytest.mark.parametrize("name", PLANE)
def test_density_in_the_plane_integrates_to_one_and_draws_follow_it(name, seed):
    _, p, _ = make(name, seed)
    edges, mass = plane_grid(p)
    assert mass.sum() == pytest.approx(1.0, abs=1e-4)
    assert chi_square(p.sample((20_000,), seed=5), edges, mass) < 4.0


def chi_square(draws, edges, mass, size=20):
    """How many deviations the counts of draws in blocks of the plane are from what the masses say."""
    starts = np.arange(0, len(mass), size)
    expected = np.add.reduceat(np.add.reduceat(mass, starts, 0), starts, 1) * len(draws)
    counts, *_ = np.histogram2d(*draws.T.numpy(), bins=[edge[np.append(starts, len(mass))] for edge in edges])
    enough = expected > 10
    statistic = ((counts - expected)[enough] ** 2 / expected[enough]).sum()
    return (statistic - enough.sum()) / math.sqrt(2 * enough.sum())


@pytest.mark.parametrize("broken", ["swapped ends", "no free logits", "fair coin"])
def test_draws_of_a_wrong_gate_do_not_follow_the_density(broken, monkeypatch):
    _, p, _ = make("rad-1", 0)
    x = torch.linspace(-60.0, 60.0, 400_001, dtype=f64)
    with torch.no_grad():
        density = p.log_prob(x[:, None]).exp().numpy()
    step = (x[1] - x[0]).item()
    cdf = np.concatenate(([0.0], np.cumsum(0.5 * step * (density[1:] + density[:-1]))))
    right, tied = log_gate, tied_logits
    if broken == "swapped ends":
        monkeypatch.setattr(
            "girih.flows.coupling.tied_logits", lambda u, ends, free, width: tied(u, ends.flip(-1), free, width)
        )
    elif broken == "no free logits":
        monkeypatch.setattr(
            "girih.flows.coupling.tied_logits", lambda u, ends, free, width: tied(u, ends, 0 * free, width)
        )
    else:
        monkeypatch.setattr("girih.flows.coupling.log_gate", lambda t, a: right(0 * t, 0 * a))
    draws = np.sort(p.sample((20_000,), seed=1).flatten().numpy())
    assert kolmogorov(draws, x.numpy(), cdf) > 1.95


@laws
@pytest.mark.parametrize("name", FLOWS)
def test_decoding_gives_x_back(name, seed):
    _, p, _ = make(name, seed)
    x = rows(p, seed=seed)
    z, k = p.encode(x)
    assert k.shape == (len(x), sum(p.index_sizes)) and not k.is_floating_point()
    assert ((p.decode(z, k) - x).abs() <= 1e-9 * x.abs().clamp(min=1.0)).all()


@laws
@pytest.mark.parametrize("name", FLOWS)
def test_log_prob_is_base_plus_determinant_plus_gate(name, seed):
    _, p, features = make(name, seed)
    x = rows(p, n=10, seed=seed)
    z, k = p.encode(x)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda row: p.encode(row[None]).z[0], row) for row in x])
    assert jacobian.shape == (20, features, features)
    log_normal = -0.5 * z.square().sum(1) - 0.5 * features * math.log(2 * math.pi)
    expected = log_normal + torch.linalg.slogdet(jacobian).logabsdet + p.log_prob_index(z, k)
    torch.testing.assert_close(p.log_prob(x), expected, atol=1e-8, rtol=1e-9)


@laws
@pytest.mark.parametrize("name", [name for name in FOLDED if name != "rad-5-random-masks"])
def test_preimages_are_all_there_and_push_the_density_forward(name, seed):
    _, p, _ = make(name, seed)
    z = p.encode(rows(p, n=8, seed=seed)).z
    found = p.preimages(z)
    torch.testing.assert_close(found.log_prob.exp().sum(-1), torch.ones(len(z), dtype=f64))
    possible = found.log_prob > -1e3
    again = p.encode(found.x[possible])
    torch.testing.assert_close(again.z, z[:, None].expand(*possible.shape, -1)[possible], atol=1e-8, rtol=1e-8)
    assert torch.equal(again.k, found.k.expand(*possible.shape, -1)[possible])
    # sum_x p(x) / |det dz/dx| = p(z) over all x with this z
    log_p = p.log_prob(found.x)
    log_det = log_p - p.base.log_prob(z)[:, None] - found.log_prob
    pushed = torch.where(possible, log_p - log_det, -math.inf).logsumexp(-1)
    torch.testing.assert_close(pushed, p.base.log_prob(z))


@laws
@pytest.mark.parametrize("name", FOLDED)
def test_log_prob_is_continuous_wherever_k_changes(name, seed):
    _, p, _ = make(name, seed)
    x = p.sample((120,), seed=seed)
    low, high = bisect(lambda at: p.encode(at).k, x[:60], x[60:])
    changed = (p.encode(low).k != p.encode(high).k).any(-1)
    assert changed.sum() > 20 or name.startswith("rad-1")
    assert changed.any()
    assert (p.log_prob(low) - p.log_prob(high)).abs()[changed].max() < 1e-10


def bisect(label, low, high):
    """Two points next to each other, for each pair, at which the label differs if it differs at the ends."""
    low, high = low.clone(), high.clone()
    start = label(low)
    for _ in range(70):
        middle = 0.5 * (low + high)
        same = (label(middle) == start).all(-1, keepdim=True)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return low, high


@laws
@pytest.mark.parametrize("name", ["rad-1", "rad-2-five-pieces", "mixed"])
def test_log_prob_is_continuous_in_the_parameters(name, seed):
    flow, p, _ = make(name, seed)
    x = p.sample((20,), seed=seed)
    ends = [[q.detach() for q in make(name, s)[0].parameters()] for s in (seed, seed + 10)]

    def at(share):
        with torch.no_grad():
            for parameter, first, second in zip(flow.parameters(), *ends, strict=True):
                parameter.copy_(first + share * (second - first))
            return p.encode(x).k, p.log_prob(x)

    start, last = at(0.0)[0], at(1.0)[0]
    rows_that_cross = (start != last).any(-1).nonzero().flatten()[:3].tolist()
    assert rows_that_cross
    for row in rows_that_cross:
        low, high = 0.0, 1.0
        while 0.5 * (low + high) not in (low, high):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if torch.equal(at(middle)[0][row], start[row]) else (low, middle)
        assert abs(at(low)[1][row] - at(high)[1][row]) < 1e-10


@pytest.mark.parametrize("name", FLOWS)
def test_gradients_reach_every_parameter(name):
    flow, p, _ = make(name, 0)
    p.log_prob(rows(p, n=300)).mean().backward()
    for label, parameter in flow.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize("name", FLOWS)
def test_gradients_are_those_of_finite_differences(name):
    flow, p, _ = make(name, 1)
    x = rows(p, n=4)
    loss = p.log_prob(x).mean()
    gradients = torch.autograd.grad(loss, list(flow.parameters()))
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(q.shape, dtype=f64, generator=generator) for q in flow.parameters()]
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    values = []
    for step in (1e-7, -1e-7):
        with torch.no_grad():
            for parameter, direction in zip(flow.parameters(), directions, strict=True):
                parameter.add_(step * direction)
            c = None if flow.context == 0 else torch.linspace(-0.5, 1.0, flow.context, dtype=f64)
            values.append(flow(c).log_prob(x).mean().item())
            for parameter, direction in zip(flow.parameters(), directions, strict=True):
                parameter.sub_(step * direction)
    assert (values[0] - values[1]) / 2e-7 == pytest.approx(expected, rel=1e-5, abs=1e-6)
