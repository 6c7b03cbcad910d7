"""Motion through cells: what mechanics conserves, on every kind of network, and compiled code beside its twin."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.errors import GirihError
from girih.sampling import motion
from girih.sampling.motion import Flow, Places, State, exits
from girih.sampling.row import Model
from networks import zoo
from twins import f64

POINTS = 24


def flow_of(net, noise=0.2, b=0.8, seed=0, points=POINTS):
    """Motion for one row of a network, points drawn from the prior, and their velocities."""
    model = Model.of(net, noise, None, "")
    generator = torch.Generator().manual_seed(seed)
    S = model.trace.latent_dim
    z = torch.randn(points, S, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        x = model.trace(z) + math.sqrt(noise) * torch.randn(points, 1, dtype=torch.float64, generator=generator)
    row, _, _ = model.reduced(x)
    u = torch.randn(points, S, dtype=torch.float64, generator=generator)
    flow = Flow(row, torch.full((points,), b, dtype=torch.float64))
    v = torch.randn(points, S, dtype=torch.float64, generator=generator)
    return flow, State(u, model.trace.pattern(u), v)


@pytest.mark.parametrize("name", zoo.NETS)
def test_energy_is_conserved_and_motion_can_be_turned_round(name):
    """On all networks that can be traced, maxima and several thresholds included."""
    torch.manual_seed(0)
    flow, start = flow_of(zoo.build(name).double())
    index = torch.arange(POINTS)
    end = flow.run(start, index)
    before = flow.energy(start)
    assert ((flow.energy(end) - before).abs() <= 1e-10 * (1.0 + before.abs())).all()
    back = flow.run(end._replace(v=-end.v), index)
    assert torch.allclose(back.u, start.u, atol=1e-9)
    assert torch.allclose(-back.v, start.v, atol=1e-9)
    assert torch.equal(back.pattern, start.pattern)


def test_points_end_in_the_cells_that_they_are_said_to_be_in():
    flow, start = flow_of(girih.mlp([4, 16, 16, 6], seed=1), noise=0.05, points=200)
    end = flow.run(start, torch.arange(200))
    assert flow.met > 400
    assert torch.equal(flow._row.trace.pattern(end.u), end.pattern)


def test_the_motion_is_that_of_newton_inside_cells_and_of_snell_at_facets():
    """Small steps of leapfrog on a smoothed mass, whose log-determinant rises from one cell to the next.

    One unit in the plane: `g(u) = W relu(u_0)`, b = 1. Where the slope s of the unit goes from 0 to 1 over a layer
    that gets thin, P = 1 + c s^2 e_0 e_0^T, and H is smooth.
    """
    c, y, width = 3.0, 0.7, 1e-4
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    net[0].weight.data, net[2].weight.data = f64([[1.0, 0.0]]), f64([[math.sqrt(c)]])
    model = Model.of(net, 1.0, None, "")
    row, _, _ = model.reduced(f64([[y]]))
    for speed in (2.0, 0.8):  # the one goes through, the other does not: w = speed^2 against log 4
        start = State(f64([[-0.3, 0.4]]), model.trace.pattern(f64([[-0.3, 0.4]])), f64([[speed, -0.5]]))
        end = Flow(row, f64([1.0])).run(start, torch.arange(1), 0.6)
        q, p, t, h = -0.3, speed, 0.0, 2e-6

        def force(q, p):
            """-dH/dq and dH/dp of `(q^2 + (y - g)^2) / 2 + log(m) / 2 + p^2 / 2 m`, of the first coordinate."""
            s = min(max(q / width, 0.0), 1.0)
            m, rate = 1.0 + c * s * s, 2.0 * c * s / width if 0.0 < s < 1.0 else 0.0
            g = math.sqrt(c) * max(q, 0.0)
            slope = math.sqrt(c) if q > 0.0 else 0.0
            return -(q - (y - g) * slope) - 0.5 * rate / m + 0.5 * p * p * rate / (m * m), p / m

        while t < 0.6:  # the midpoint rule
            a, v = force(q, p)
            a, v = force(q + 0.5 * h * v, p + 0.5 * h * a)
            q, p, t = q + h * v, p + h * a, t + h
        assert end.u[0, 0].item() == pytest.approx(q, abs=2e-3)
        assert (end.u[0, 0] > 0.0) == (speed == 2.0)
        assert end.u[0, 1].item() == pytest.approx(0.4 * math.cos(0.6) - 0.5 * math.sin(0.6), abs=1e-12)


def test_the_first_exit_is_that_of_a_fine_grid():
    rng = np.random.default_rng(0)
    inside, along, speed = f64(rng.random((200, 5))), f64(rng.normal(size=(200, 5))), f64(rng.normal(size=(200, 5)))
    inside[:50, 0], speed[:50, 0] = 0.0, speed[:50, 0].abs()
    at = torch.full((200,), -1)
    at[:50] = 0
    found, which = exits(inside, along, speed, at)
    t = torch.linspace(1e-6, 2.0 * math.pi, 20_001, dtype=torch.float64)[:, None, None]
    value = inside + along * (t.cos() - 1.0) + speed * t.sin()
    out = value < 0.0
    first = torch.where(out.any(2).any(0), out.any(2).to(torch.int8).argmax(0), -1)
    never = (first < 0) | (found > 2.0 * math.pi - 1e-3)
    times = t[first.clamp(min=0), 0, 0]
    assert ((found - times).abs()[~never] < 4e-4).all()
    assert torch.isinf(found[(first < 0) & (found < 6.28)]).all()
    assert (value[first.clamp(min=0), torch.arange(200), which][~never] < 1e-3).all()


CHAINS = {
    "relu": lambda: girih.mlp([3, 9, 9, 5], seed=0),
    "leaky, three layers": lambda: girih.mlp([4, 7, 6, 5, 6], activation="leaky_relu", negative_slope=0.2, seed=1),
    "abs": lambda: girih.mlp([5, 8, 4], activation="abs", seed=2),
    "no head": lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU()).double(),
    "linear": lambda: nn.Sequential(nn.Linear(3, 4)).double(),
    "two in a row": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 7)
    ).double(),
    "starts with a kink": lambda: nn.Sequential(
        nn.LeakyReLU(0.3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6)
    ).double(),
}


@pytest.mark.parametrize("name", CHAINS)
def test_compiled_motion_is_that_of_its_twin(name, monkeypatch):
    torch.manual_seed(0)
    net = CHAINS[name]()
    for part in net.modules():
        if isinstance(part, nn.PReLU):
            part.weight.data = torch.linspace(-0.5, 0.5, 4).double()
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(motion, "compiled_form", lambda name: None)
        flow, start = flow_of(net if name != "starts with a kink" else girih.trace(net, latent_dim=3), points=60)
        if compiled and flow._compiled is None:
            pytest.skip("needs Numba")
        places, generator = Places(start.u, start.pattern), torch.Generator().manual_seed(1)
        places, _, trail = flow.moves(places, 2, generator)
        assert torch.equal(trail[:, -1], places.u)
        places, distance = flow.move(places, generator)
        found.append((torch.cat((trail[:, 0], places.u), 1), distance, flow.met))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-8)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-7)
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize(
    "noise", [0.2, [0.1, 0.2, 0.3, 0.1, 0.2, 0.4], girih.Covariance.full(0.2 * torch.eye(6) + 0.1)]
)
@pytest.mark.parametrize("compiled", [True, False])
def test_rows_with_holes_of_their_own_beside_one_after_the_other(noise, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(motion, "compiled_form", lambda name: None)
    model = Model.of(girih.mlp([4, 8, 6], seed=0), noise, None, "")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    x[torch.rand(6, 6, generator=generator) < 0.4] = torch.nan
    x[0], x[1], x[2, 1:] = 1.0, torch.nan, torch.nan  # all of it, nothing, one entry
    u = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    pattern, b = model.trace.pattern(u), torch.ones(6, dtype=torch.float64)
    rows, common = model.each(x)
    ends, _ = Flow(rows, b).move(Places(u, pattern), torch.Generator().manual_seed(1))
    v = torch.randn(6, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for n in range(6):
        row, own, _ = model.reduced(x[n : n + 1])
        torch.testing.assert_close(common[n] - rows.energy(u)[n], (own - row.energy(u[n : n + 1]))[0])
        torch.testing.assert_close(rows.energy(u[:, None])[n, 0], rows.energy(u)[n])
        residual, slope = row.linear(u[n : n + 1])
        ours = [part[n] for part in rows.linear(u)]
        torch.testing.assert_close(ours[1].mT @ ours[0], slope[0].mT @ residual[0])
        monkeypatch.setattr(torch, "randn", lambda *_, v=v[n : n + 1], **__: v)
        end, _ = Flow(row, b[:1]).move(Places(u[n : n + 1], pattern[n : n + 1]), generator)
        monkeypatch.undo()
        if not compiled:
            monkeypatch.setattr(motion, "compiled_form", lambda name: None)
        torch.testing.assert_close(ends.u[n], end.u[0], atol=1e-8, rtol=1e-8)


def test_units_that_are_equal_opposite_or_dead_change_nothing():
    """A posterior must not depend on how a network says it: units doubled, negated, and without weights."""
    torch.manual_seed(0)
    plain = girih.mlp([3, 6, 4], seed=0)
    doubled = girih.mlp([3, 19, 4], seed=0)
    with torch.no_grad():
        a, b = plain[0], plain[2]
        doubled[0].weight.data = torch.cat((a.weight, a.weight, -a.weight, torch.zeros(1, 3).double()))
        doubled[0].bias.data = torch.cat((a.bias, a.bias, -a.bias, f64([0.0])))
        doubled[2].weight.data = torch.cat((0.5 * b.weight, 0.5 * b.weight, 0.0 * b.weight, b.weight[:, :1]), 1)
        doubled[2].bias.data = b.bias
    for compiled in (True, False):
        ends = []
        for net in (plain, doubled):
            flow, start = flow_of(net, points=100)
            if compiled and flow._compiled is not None:
                places, _ = flow.move(Places(start.u, start.pattern), torch.Generator().manual_seed(2))
                ends.append(places.u)
            else:
                ends.append(flow.run(start, torch.arange(100)).u)
        same = (ends[0] - ends[1]).abs().amax(1) < 1e-7
        assert same.float().mean() > 0.8  # a jump of log det P in two parts may be refused where one is not
    draws = girih.sample_posterior(doubled, torch.zeros(1, 4), noise=0.2, samples=400, seed=0)
    exact = girih.DGN(plain, noise=0.2).posterior(torch.zeros(1, 4))
    assert ((draws.mean - exact.mean).abs() < 5.0 * draws.standard_error).all()


def test_a_trajectory_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(motion, "_MOST", 3)
    x = torch.zeros(1, 4)
    with pytest.raises(GirihError, match="more than 3 facets"):
        girih.sample_posterior(girih.mlp([3, 40, 4], seed=0), x, noise=10.0)
    with pytest.raises(GirihError, match="more than 3 facets"):
        girih.sample_posterior(girih.trace(zoo.build("residual").double()), torch.zeros(1, 32), noise=10.0)
