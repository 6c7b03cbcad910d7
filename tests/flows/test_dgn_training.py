"""Maximum likelihood for generators with S = D: gradients that see kinks, and what training does with them."""

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.flows import DGNFlow, square_net


def draws(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradient_of_the_mean_sees_rows_cross_kinks():
    """The mean NLL of many rows, as a function of one bias; a gradient at each row misses what the kink does."""
    net = nn.Sequential(nn.Linear(1, 1), nn.LeakyReLU(0.3), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        net[0].bias.fill_(0.4)
    flow, x = DGNFlow(net), 0.8 * draws(200_000, 1, 2)

    def mean(bias: float) -> float:
        with torch.no_grad():
            net[0].bias.fill_(bias)
            net[2].bias.fill_(-bias)
            return flow.nll(x).mean().item()

    exact = (mean(0.5) - mean(0.3)) / 0.2
    mean(0.4)
    slopes = []
    for loss in (flow._loss(x), flow.nll(x)):
        a, b = torch.autograd.grad(loss.mean(), [net[0].bias, net[2].bias])
        slopes.append(float(a - b))
    assert slopes[0] == pytest.approx(exact, abs=0.02)
    assert abs(slopes[1] - exact) > 0.2
    torch.testing.assert_close(flow._loss(x), flow.nll(x))


def test_gradient_of_the_mean_sees_folds(monkeypatch):
    """A line that goes forward, back and forward: rows gain and lose two preimages where it turns."""
    net = nn.Sequential(nn.Linear(1, 2), nn.LeakyReLU(0.8), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.copy_(torch.tensor([0.5, -0.5]))
        net[2].weight.copy_(torch.tensor([[-6.5, 7.5]]))  # slopes 0.8, -0.5 and 1
        net[2].bias.fill_(7.0)
    flow, x = DGNFlow(net), 0.3 + 1.2 * draws(100_000, 1)
    assert 1.1 < len(flow().latents(x[:1000]).row) / 1000 < 2.0

    def gradient(loss):
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss.mean(), list(net.parameters()))])

    wide, blind = gradient(flow._loss(x)), gradient(flow.nll(x))
    monkeypatch.setattr("girih.flows.chains._WIDTH_BY_CELLS", 0.1)
    narrow = gradient(flow._loss(x))
    slow = []
    with torch.no_grad():
        for tensor in net.parameters():
            flat, step = tensor.view(-1), 0.004
            for k in range(len(flat)):
                values = []
                for shift in (step, -2.0 * step):
                    flat[k] += shift
                    values.append(flow.nll(x).mean().item())
                flat[k] += step
                slow.append((values[0] - values[1]) / (2.0 * step))
    exact = torch.tensor(slow, dtype=torch.float64)
    # the kernel is as wide as the kinks are apart, in part: its error falls with its width
    assert (wide - exact).norm() < 0.2 * (blind - exact).norm()
    assert (narrow - exact).norm() < 0.1 * (blind - exact).norm()
    torch.testing.assert_close(narrow, exact, rtol=0.03, atol=0.03)
    torch.testing.assert_close(flow._loss(x[:50]), flow.nll(x[:50]))


def test_kinks_by_layers_and_by_cells_agree(monkeypatch):
    """The same bijection of the plane: jumps from the layers' slopes, and from the determinants of cells."""
    flow = DGNFlow.square(2, depth=1, negative_slope=0.4, seed=3)
    with torch.no_grad():
        flow.net[2].weight.copy_(torch.tensor([[1.0, 0.6], [-0.3, 1.2]]))
    x = flow().sample((30_000,), seed=1) + 0.3
    monkeypatch.setattr("girih.flows.chains._WIDTH_BY_CELLS", 0.2)
    monkeypatch.setattr("girih.flows.chains._WIDTH", 0.2)

    def gradient(loss):
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss.mean(), list(flow.parameters()))])

    by_layers, blind = gradient(flow._loss(x)), gradient(flow.nll(x))
    monkeypatch.setattr("girih.flows.push_forward.is_bijective_chain", lambda traced: False)
    by_cells = gradient(flow._loss(x))
    assert (by_layers - by_cells).norm() < 0.1 * (by_layers - blind).norm()


def test_square_net_starts_as_the_gaussian_of_the_data():
    X = torch.as_tensor(girih.datasets.load("moons", n=400, seed=0).X)
    flow = DGNFlow.square(2, depth=6, seed=0, data=X)
    gaussian = torch.distributions.MultivariateNormal(X.mean(0), torch.cov(X.mT, correction=0))
    assert flow.nll(X).mean().item() == pytest.approx(-gaussian.log_prob(X).mean().item(), abs=0.1)
    again = DGNFlow.square(2, depth=6, seed=0, data=X)
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), again.parameters(), strict=True))
    assert len(square_net(3, depth=0)) == 1


@pytest.mark.parametrize("name", ["moons", "circle"])
def test_training_lowers_the_nll(name):
    X = girih.datasets.load(name, n=400, seed=0).X
    flow = DGNFlow.square(2, depth=3, seed=0, data=X)
    run = flow.fit(X, lr=0.02, max_epochs=80, validation=0.25, record_every=20, progress=False)
    held_out = run.history["held_out"]
    assert held_out.min() < held_out[0] - 0.1
    kept = run.history["step"][held_out.argmin()]
    again = DGNFlow.square(2, depth=3, seed=0, data=X)
    rerun = again.fit(X, lr=0.02, max_epochs=80, validation=0.25, record_every=20, progress=False)
    assert np.array_equal(rerun.history["held_out"], held_out) and kept > 0
    assert torch.isfinite(flow().log_prob(X)).all()


def test_training_by_all_preimages(tmp_path):
    X = torch.as_tensor(girih.datasets.load("moons", n=300, seed=0).X)
    net = girih.mlp([2, 8, 2], negative_slope=0.5, seed=2)
    W, b, factor = draws(4, 2), draws(4, 1)[:, 0], torch.linalg.cholesky(torch.cov(X.mT))
    inverse = torch.linalg.pinv(W)
    with torch.no_grad():  # the Gaussian of the data, as f(h) - f(-h), and a little noise
        net[0].weight.copy_(torch.cat((W, -W)) + 0.02 * draws(8, 2, 1))
        net[0].bias.copy_(torch.cat((b, -b)))
        net[2].weight.copy_(factor @ torch.cat((inverse, -inverse), 1) / 1.5)
        net[2].bias.copy_(X.mean(0) - factor @ inverse @ b)
    flow = DGNFlow(net)
    assert not flow.is_bijective
    before = flow.nll(X).mean().item()
    run = flow.fit(X, lr=0.01, max_epochs=25, progress=False, record_every=5, checkpoint=tmp_path / "flow.pt")
    assert run.steps == 25 and flow.nll(X).mean().item() < before - 0.05
