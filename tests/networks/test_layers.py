"""Laws of the trace of every kind of layer."""

import importlib.util
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import girih
from girih.errors import ShapeError, UnsupportedLayerError
from girih.networks import AffineStep, KinkStep, MaxStep

_spec = importlib.util.spec_from_file_location("zoo", Path(__file__).with_name("zoo.py"))
zoo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(zoo)


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=zoo.NETS)
def net(request):
    return zoo.build(request.param)


Z = normal(40, 3)
DECOMPOSED = ("conv1d", "conv2d", "convtranspose2d", "batchnorm2d", "residual", "decoder", "maxpool2d", "cat", "clamp")


def test_the_map_is_that_of_the_module(net):
    assert torch.allclose(girih.trace(net)(Z), net(Z).flatten(1), rtol=1e-12, atol=1e-12)


def test_affine_maps_are_values_and_jacobians(net):
    slope, offset = girih.trace(net).affine(Z)
    assert torch.allclose((slope @ Z[:, :, None])[:, :, 0] + offset, net(Z).flatten(1), rtol=1e-11, atol=1e-11)
    jacobian = torch.autograd.functional.jacobian(lambda rows: net(rows).flatten(1).sum(0), Z)
    # torch takes the derivative 1/6 of its hard sigmoid in float32
    tolerance = 1e-6 if any(1 / 6 in getattr(step, "pieces", ()) for step in girih.trace(net).steps) else 1e-11
    assert torch.allclose(slope, jacobian.transpose(0, 1), rtol=tolerance, atol=tolerance)


def test_step_jets_are_the_values_of_the_steps_about_any_point(net):
    trace = girih.trace(net)
    origin = Z + 0.5 * normal(*Z.shape, seed=2)
    for value, jet in zip(trace.values(Z), trace.jets(trace.pattern(Z), origin), strict=True):
        about = jet.value + (jet.slope @ (Z - origin)[:, :, None])[:, :, 0]
        assert torch.allclose(about, value, rtol=1e-11, atol=1e-11)


def test_steps_are_consistent(net):
    trace = girih.trace(net)
    values = trace.values(Z)
    patterns = trace.pattern(Z)
    assert patterns.shape == (len(Z), trace.hidden_units) and patterns.dtype == torch.int8
    for index, step in enumerate(trace.steps[1:], start=1):
        taken = [values[i] for i in step.inputs]
        assert all(i < index for i in step.inputs)
        assert values[index].shape == (len(Z), step.size)
        if isinstance(step, AffineStep):
            assert step.bias.shape == (step.size,)
            assert torch.allclose(step.linear(*(-2 * h for h in taken)), -2 * step.linear(*taken))
            magnitude = step.magnitude(*(h.abs() for h in taken))
            assert (magnitude >= step.linear(*taken).abs() * (1 - 1e-12)).all()
            continue
        codes = patterns[:, trace.units(index)]
        assert torch.equal(codes, step.code(taken[0]))
        if isinstance(step, KinkStep):
            assert torch.allclose(step.slopes(codes) * taken[0] + step.offsets(codes), values[index])
            t = torch.linspace(0.1, 3, len(Z), dtype=torch.float64)[:, None]
            assert torch.allclose(step.apply(taken[0] * t, t), t * values[index], rtol=1e-12, atol=1e-12)
            far = step.apply(taken[0] * 1e9) / 1e9
            assert torch.allclose(step.apply(taken[0], 0.0), far, rtol=1e-6, atol=1e-6)
        else:
            assert isinstance(step, MaxStep) and step.windows.shape[0] == step.size
            assert torch.equal(taken[0].gather(1, step.chosen(codes)), values[index])


def test_restriction_to_a_plane_and_no_rows(net):
    trace = girih.trace(net)
    origin, basis, y = normal(3, seed=3), normal(3, 2, seed=4), normal(7, 2, seed=5)
    plane = trace.restrict(origin, basis)
    assert plane.latent_dim == 2 and plane.hidden_units == trace.hidden_units
    assert torch.allclose(plane(y), trace(origin + y @ basis.mT), rtol=1e-12, atol=1e-12)
    assert torch.equal(plane.pattern(y), trace.pattern(origin + y @ basis.mT))
    assert (plane.chain is None) == (trace.chain is None)
    slope, _ = plane.affine(y)
    assert torch.allclose(slope, trace.affine(origin + y @ basis.mT)[0] @ basis, rtol=1e-11, atol=1e-11)
    assert trace(Z[:0]).shape == (0, trace.output_dim)


def test_a_trace_follows_training_and_is_differentiable(net):
    trace = girih.trace(net)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.3)
    assert torch.allclose(trace(Z), net(Z).flatten(1), rtol=1e-12, atol=1e-12)
    slope, offset = trace.affine(Z)
    ((slope @ Z[:, :, None])[:, :, 0] + offset).square().sum().backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    net(Z).square().sum().backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in zoo.NETS if isinstance(zoo.build(name), nn.Sequential)])
def test_a_trace_is_picklable(name):
    trace = girih.trace(zoo.build(name))
    assert torch.equal(pickle.loads(pickle.dumps(trace))(Z), trace(Z))


@pytest.mark.filterwarnings("ignore::FutureWarning:torch")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("way", ["fixed batch", "any batch", "decomposed"])
def test_an_exported_program(net, way, request):
    # core aten operators leave nothing of some activations and paddings but comparisons and indexing
    if way == "decomposed" and request.node.callspec.params["net"] not in DECOMPOSED:
        pytest.skip("traced from a program that is not decomposed")
    shapes = None if way == "fixed batch" else ({0: torch.export.Dim("rows", min=2, max=1000)},)
    program = torch.export.export(net, (normal(4, 3),), dynamic_shapes=shapes)
    if way == "decomposed":
        program = program.run_decompositions()
    trace = girih.trace(program)
    assert trace.latent_dim == 3
    assert torch.allclose(trace(Z), net(Z).flatten(1), rtol=1e-12, atol=1e-12)


def test_a_pt2_file(tmp_path):
    net = zoo.build("decoder")
    torch.export.save(torch.export.export(net, (normal(4, 3),)), tmp_path / "net.pt2")
    for path in (tmp_path / "net.pt2", str(tmp_path / "net.pt2")):
        assert torch.allclose(girih.trace(path)(Z), net(Z).flatten(1), rtol=1e-12, atol=1e-12)


def test_codes_and_thresholds():
    h = torch.tensor([[-4.0, -1.0, 0.0, 1.0, 9.0]], dtype=torch.float64)

    def step(layer):
        return girih.trace(nn.Sequential(nn.Linear(1, 5), layer)).steps[-1]

    assert step(nn.ReLU()).thresholds == (0.0,)
    assert step(nn.ReLU()).code(h).tolist() == [[-1, -1, -1, 1, 1]]
    assert step(nn.Hardtanh()).thresholds == (-1.0, 1.0)
    assert step(nn.Hardtanh()).code(h).tolist() == [[-1, -1, 0, 0, 1]]
    assert step(nn.ReLU6()).thresholds == (0.0, 6.0)
    assert step(nn.Hardsigmoid()).slopes(step(nn.Hardsigmoid()).code(h))[0].tolist() == [0, 1 / 6, 1 / 6, 1 / 6, 0]
    pool = girih.trace(nn.Sequential(nn.Linear(1, 5), nn.Unflatten(1, (1, 5)), nn.MaxPool1d(2, 2, 1))).steps[-1]
    assert pool.windows.tolist() == [[0, 0], [1, 2], [3, 4]]
    assert pool.code(torch.tensor([[0.0, 1.0, 1.0, 2.0, 3.0]])).tolist() == [[0, 0, 1]]


def test_float32_networks_and_latent_dim():
    net = zoo.build("decoder").float()
    assert torch.allclose(girih.trace(net)(Z).float(), net(Z.float()).flatten(1), rtol=1e-4, atol=1e-4)
    conv = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.ConvTranspose1d(3, 2, 4)).double()
    assert girih.trace(conv).latent_dim == 3
    sums = zoo.Of(lambda m, h: h).double()
    sums.start = nn.Identity()
    with pytest.raises(UnsupportedLayerError, match="pass latent_dim="):
        girih.trace(sums)
    assert girih.trace(sums, latent_dim=4).output_dim == 4


def test_chains_and_others():
    chain = girih.trace(girih.mlp([2, 5, 3], seed=0))
    assert chain.chain == tuple(chain.steps[1:]) and chain.head.path == "2"
    other = girih.trace(zoo.build("hardtanh"))
    assert other.chain is None and other.head is None  # 6 features to 4
    wide = girih.trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU6(), nn.Linear(3, 5)).double())
    z = normal(6, 2)
    weight, bias = wide.head_parameters()
    assert torch.allclose(wide.hidden_jet(wide.pattern(z), z).value @ weight.mT + bias, wide(z))


def test_restrict_refuses_wrong_shapes():
    with pytest.raises(ShapeError, match=r"origin must have shape \(5,\) and basis \(5, k\)"):
        girih.trace(girih.mlp([5, 3], seed=0)).restrict(torch.zeros(4), torch.zeros(5, 2))


def test_old_names_still_work_and_name_their_successors():
    trace = girih.trace(girih.mlp([2, 5, 3], seed=0))
    with pytest.warns(DeprecationWarning, match=r"use Trace\.chain"):
        assert trace.is_chain
    with pytest.warns(DeprecationWarning, match=r"use Trace\.chain"):
        stages = trace.stages
    with pytest.warns(DeprecationWarning, match="LinearStep"):
        assert isinstance(stages[0], girih.networks.Affine)
    with pytest.warns(DeprecationWarning, match="KinkStep"):
        assert isinstance(stages[1], girih.networks.PiecewiseLinear)
    with pytest.warns(DeprecationWarning), pytest.raises(UnsupportedLayerError, match=r"use Trace\.steps"):
        girih.trace(zoo.build("hardtanh")).stages  # noqa: B018
