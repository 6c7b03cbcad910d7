"""Decoders as they are written in practice are traced, and checked against the module; others are refused by name."""

import re

import pytest
import torch
from torch import nn

import girih
from girih.errors import ParameterError, UnsupportedLayerError
from networks import decoders
from networks.decoders import Levels, Of, Several, outputs, two, weight


def made(maker) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = maker().double().eval()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2.0)
        return net


def agrees(trace, net, pick=None, shape=None, head=lambda h: h) -> None:
    z = 2 * torch.randn(7, trace.latent_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own = net(z.reshape(7, *(shape or (trace.latent_dim,))))
    own = own if pick is None else pick(own)
    assert trace.output_shape == tuple(own.shape[1:])
    torch.testing.assert_close(head(trace(z).reshape(own.shape)), own, rtol=1e-12, atol=1e-12)
    slope, offset = trace.affine(z)
    mapped = torch.einsum("nds,ns->nd", slope, z) + offset
    torch.testing.assert_close(mapped, trace(z), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", decoders.TRACED)
def test_traced(name):
    maker, options, *rest = decoders.TRACED[name]
    net = made(maker)
    agrees(girih.trace(net, **options), net, *rest)


@pytest.mark.parametrize("name", decoders.STOPPED)
def test_stopped_before_a_smooth_head(name):
    maker, until, head = decoders.STOPPED[name]
    net = made(maker)
    with pytest.raises(UnsupportedLayerError, match=rf"girih\.trace\(net, until='{re.escape(until)}"):
        girih.trace(net)
    agrees(girih.trace(net, until=until), net, shape=(10, 1, 1) if name == "DCGAN" else None, head=head)


def test_stopped_inside_of_a_dictionary():
    net = made(Several)
    trace = girih.trace(net, until="exp", output="std")
    z = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(trace(z).exp(), net(z)["std"])
    net = made(lambda: Levels(nn.Sigmoid()))
    z = torch.randn(4, 3, dtype=torch.float64)
    own = net(z)["reconstruction"]
    torch.testing.assert_close(torch.sigmoid(girih.trace(net, until="layers.1.1")(z)).reshape(own.shape), own)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_modules_are_read_as_they_were_written():
    def whole():
        return nn.Sequential(two(), nn.Linear(4, 2))

    net = made(whole)
    inside = made(whole)
    inside[0] = torch.compile(inside[0])
    in_place = made(whole)
    in_place.compile()
    below = made(whole)
    below[0].compile()
    z = torch.randn(6, 2, dtype=torch.float64)
    for compiled in (torch.compile(net), inside, in_place, below):
        torch.testing.assert_close(girih.trace(compiled)(z), net(z), rtol=1e-12, atol=1e-12)


def test_constants_of_a_condition_are_read_live():
    net = made(lambda: Of(decoders.with_label, a=nn.Linear(5, 8), c=torch.randn(1, 3)))
    trace = girih.trace(net)
    net.c.add_(1.0)
    agrees(trace, net)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_modules_of_torch_jit_are_refused():
    script = torch.jit.script(two())
    with pytest.raises(UnsupportedLayerError, match=r"was compiled by torch\.jit; pass the module"):
        girih.trace(script)
    with pytest.raises(UnsupportedLayerError, match=r"layer '0' is RecursiveScriptModule, which torch\.jit compiled"):
        girih.trace(nn.Sequential(script, nn.Linear(4, 3)), latent_dim=2)


a = nn.Linear(2, 3)
REFUSED = {
    "two tensors": (
        lambda: outputs(lambda *p: p),
        {},
        r"returns 2 tensors \('0', '1'\).*girih.trace\(net, output=NAME\)",
    ),
    "names": (Several, {}, r"returns 3 tensors \('mean', 'std', 'inner.h'\)"),
    "no tensor": (lambda: Of(lambda m, z: None, a=a), {"latent_dim": 2}, "returns nothing that depends on z"),
    "a constant": (
        lambda: Of(lambda m, z: m.k, a=a, k=torch.ones(2)),
        {"latent_dim": 2},
        "output of the network does not depend on z",
    ),
    "rows": (
        lambda: Of(lambda m, z: (m.w @ z.t()).t(), w=weight(5, 4)),
        {"latent_dim": 4},
        "the call 't'.*mixes the rows of a batch",
    ),
    "rows of a constant": (
        lambda: Of(lambda m, z: m.a(torch.cat([z, torch.arange(z.shape[0])[:, None]], 1)), a=nn.Linear(3, 3)),
        {"latent_dim": 2},
        "differs from row to row",
    ),
    "rows of einsum": (
        lambda: Of(lambda m, z: torch.einsum("ni,mn->mi", z, m.w), w=weight(2, 2)),
        {"latent_dim": 2},
        "the call 'einsum'.*mixes the rows of a batch",
    ),
    "random numbers": (lambda: Of(lambda m, z: m.a(z) + torch.randn(3), a=a), {}, "random numbers"),
    "control flow": (
        lambda: Of(lambda m, z: m.a(z) if z.sum() > 0 else -m.a(z), a=a),
        {},
        "depends on the values of z",
    ),
    "a condition on z": (lambda: Of(lambda m, z: torch.where(m.a(z) > 0, m.a(z), 0.0), a=a), {}, "the call 'gt'"),
    "lazy layers": (lambda: nn.Sequential(nn.LazyLinear(3)), {}, "lazy layers .* call it once"),
    "LSTM": (lambda: Of(lambda m, z: m.a(z)[0], a=nn.LSTM(2, 3)), {"latent_dim": 2}, "layer 'a' is LSTM"),
    "layer norm": (lambda: nn.Sequential(a, nn.LayerNorm(3)), {}, "layer '1' is LayerNorm.*until='1'"),
    "pixel norm": (lambda: Of(lambda m, z: m.a(z * (z**2).mean(1, True).rsqrt()), a=a), {}, "the call 'pow'"),
    "a second input": (lambda: nn.Bilinear(2, 3, 4), {}, "more than one input: input1 and input2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    maker, options, message = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=f"(?s){message}"):
        girih.trace(maker(), **options)


def test_names_that_are_not_there():
    net = nn.Sequential(two(), nn.Linear(4, 3), nn.Softmax(1))
    with pytest.raises(ParameterError, match=r"no module or call 'softmax' that z reaches; the last are .*'2'"):
        girih.trace(net, until="softmax")
    with pytest.raises(ParameterError, match=r"no module or call '0.11' that z reaches; did you mean '0.1'"):
        girih.trace(net, until="0.11")
    with pytest.raises(ParameterError, match=r"no output 'x'; it has 'mean', 'std', 'inner.h'"):
        girih.trace(Several(), output="x")
    with pytest.raises(ParameterError, match="no output 3; it has"):
        girih.trace(Several(), output=3)
    with pytest.raises(ParameterError, match="leave output out"):
        girih.trace(two(), output="x")
    for wrong in (0, -1, 1.5, True, (), (2, 0), "2"):
        with pytest.raises(ParameterError, match="latent_dim"):
            girih.trace(two(), latent_dim=wrong)


def test_the_second_argument_was_once_the_latent_dimension():
    with pytest.warns(DeprecationWarning, match=r"latent_dim=S"):
        assert girih.trace(nn.Sequential(nn.Flatten(), nn.ReLU()), 4).latent_dim == 4
