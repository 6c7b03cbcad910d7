"""Laws of a trace: it computes what the module computes, and its maps are the module's local maps."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import girih
from girih.errors import NonFiniteError, ShapeError
from girih.networks import Abs
from twins import f64, signs


class Chain(nn.Module):
    """Two Linear layers with a function between them."""

    def __init__(self, function, inputs: int = 1) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 5), nn.Linear(5, 3)
        self.function = function

    def forward(self, z):
        return self.last(self.function(self.first(z)))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Chain(torch.relu)
        self.outer = nn.Sequential(nn.PReLU(3), nn.Identity(), nn.Linear(3, 2))

    def forward(self, z):
        return self.outer(self.inner(z))


def shared() -> nn.Sequential:
    kink, layer = nn.ReLU(), nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(1, 4), kink, layer, kink, layer)


def prelu() -> nn.Sequential:
    kink = nn.PReLU(4)
    kink.weight.data = torch.tensor([0.3, -0.7, 0.0, 1.4])
    return nn.Sequential(nn.Linear(1, 4), kink, nn.Linear(4, 2))


NETS = {
    "relu mlp": lambda: girih.mlp([1, 6, 4, 2], activation="relu", seed=0),
    "leaky mlp": lambda: girih.mlp([1, 6, 4, 2], seed=0),
    "abs mlp": lambda: girih.mlp([1, 6, 4, 2], activation="abs", seed=0),
    "two latents": lambda: girih.mlp([2, 6, 4, 3], seed=0),
    "five latents": lambda: girih.mlp([5, 6, 4, 3], activation="abs", seed=0),
    "one Linear": lambda: nn.Linear(1, 3),
    "no bias": lambda: nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)),
    "two Linear": lambda: nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 2)),
    "kink last": lambda: nn.Sequential(nn.Linear(1, 3), nn.ReLU()),
    "kinks first": lambda: nn.Sequential(Abs(), nn.LeakyReLU(0.2), nn.Linear(2, 3)),
    "kinks in a row": lambda: nn.Sequential(nn.Linear(1, 4), nn.LeakyReLU(-0.5), nn.ReLU(), nn.Linear(4, 2)),
    "PReLU for each unit": prelu,
    "PReLU": lambda: nn.Sequential(nn.Linear(1, 4), nn.PReLU(init=-0.4), nn.Linear(4, 2)),
    "shared layers": shared,
    "nested": Nested,
    "dropout in eval mode": lambda: nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2)).eval(),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(1, 3)), nn.ReLU()),
    "F.relu": lambda: Chain(F.relu),
    "F.relu by keyword": lambda: Chain(lambda h: F.relu(input=h)),
    "in-place relu": lambda: Chain(lambda h: F.relu(h, inplace=True)),
    "relu method": lambda: Chain(lambda h: h.relu()),
    "torch.relu": lambda: Chain(torch.relu),
    "F.leaky_relu": lambda: Chain(F.leaky_relu),
    "F.leaky_relu, positional": lambda: Chain(lambda h: F.leaky_relu(h, 0.3)),
    "F.leaky_relu, keyword": lambda: Chain(lambda h: F.leaky_relu(h, negative_slope=-0.2)),
    "torch.abs": lambda: Chain(torch.abs),
    "abs method": lambda: Chain(lambda h: h.abs()),
    "built-in abs": lambda: Chain(operator.abs),
    "float32 module": lambda: girih.mlp([1, 6, 2], seed=1).float(),
}


@pytest.fixture(params=NETS)
def net(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETS[request.param]()


@pytest.fixture
def z(net):
    size = girih.trace(net).latent_dim
    return 3 * torch.randn(200, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_trace_computes_what_the_module_computes(net, z):
    trace = girih.trace(net)
    dtype = next(net.parameters()).dtype
    exact = net(z.to(dtype)).double()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.allclose(trace(z), exact, rtol=tolerance, atol=tolerance)


def test_affine_maps_are_values_and_jacobians_of_the_module(net, z):
    trace, net = girih.trace(net.double()), net.double()
    slope, offset = trace.affine(z)
    assert torch.allclose(torch.einsum("nds,ns->nd", slope, z) + offset, net(z), rtol=1e-11, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda rows: net(rows).sum(0), z)
    assert torch.allclose(slope, jacobian.transpose(0, 1), rtol=1e-11, atol=1e-12)


def test_tracing_a_trace_gives_it_back(net):
    trace = girih.trace(net)
    assert girih.trace(trace) is trace


@pytest.mark.parametrize("name", ["relu mlp", "abs mlp", "PReLU for each unit", "kinks in a row", "no bias"])
def test_patterns_are_the_signs_of_the_hidden_units(name):
    net = NETS[name]().double()
    z = f64([[-2.0], [-0.3], [0.1], [5.0]])
    trace = girih.trace(net)
    assert torch.equal(trace.pattern(z) > 0, signs(net, z[:, 0]))
    assert trace.pattern(z).shape == (4, trace.hidden_units)
    assert set(trace.pattern(z).flatten().tolist()) <= {-1, 1}


def test_a_trace_follows_the_module_when_it_is_trained():
    net = prelu()
    trace = girih.trace(net)
    z = f64([[-1.0], [0.7]])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-1.7)
    assert torch.allclose(trace(z), net.double()(z), rtol=1e-6)


def test_maps_are_differentiable_in_every_parameter_that_matters():
    net = prelu()
    trace = girih.trace(net)
    slope, offset = trace.affine(f64([[-4.0], [0.0], [4.0]]))
    (slope.square().sum() + offset.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_bad_latents_are_refused():
    trace = girih.trace(girih.mlp([2, 4, 3], seed=0))
    with pytest.raises(ShapeError, match="z has 3 columns, but the latent dimension S is 2"):
        trace(torch.zeros(4, 3))
    with pytest.raises(NonFiniteError, match=r"z holds NaN or masked entries \(first in row 1\), column 1"):
        trace.affine([[0.0, 1.0], [0.0, float("nan")]])
    with pytest.raises(NonFiniteError, match="z holds infinite values"):
        trace.pattern([[0.0, float("inf")]])
