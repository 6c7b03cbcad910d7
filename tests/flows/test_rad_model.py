"""RAD and Real NVP as models: shapes, contexts, seeds, latents, mixing with zuko, refusals."""

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import zuko

import girih
from girih.errors import EmptyDataError, NonFiniteError, ParameterError, ShapeError
from girih.flows import RAD, DGNFlow, Flow, RADCoupling, RealNVP, Standardise, masks

from .rad_cases import f64, livened, make, rad


@pytest.mark.parametrize("model", [RAD, RealNVP])
def test_the_two_are_called_alike(model):
    flow = model(3, context=2, transforms=4, hidden_features=(8, 4), randmask=True, seed=1)
    c = torch.zeros(5, 2)
    p = flow(c)
    assert p.batch_shape == (5,) and p.event_shape == (3,)
    assert p.sample((7,)).shape == (7, 5, 3) and p.sample((7,)).dtype == f64
    assert p.log_prob(torch.zeros(5, 3)).shape == (5,)
    assert p.log_prob(torch.zeros(7, 1, 3)).shape == (7, 5)
    assert p.log_prob(np.zeros((7, 5, 3), dtype=np.float32)).shape == (7, 5)
    encoded = p.encode(torch.zeros(5, 3))
    assert encoded.z.shape == (5, 3) and encoded.k.shape == (5, sum(p.index_sizes))


@pytest.mark.parametrize("model", [RAD, RealNVP])
def test_each_row_of_a_context_has_its_own_density(model):
    flow = livened(model(2, context=1, transforms=2, hidden_features=(6,), seed=0), 0)
    c = torch.tensor([[-1.0], [0.0], [2.0]], dtype=f64)
    x = torch.randn(4, 3, 2, dtype=f64, generator=torch.Generator().manual_seed(0))
    together = flow(c).log_prob(x)
    for i in range(3):
        torch.testing.assert_close(together[:, i], flow(c[i]).log_prob(x[:, i]))
    assert (together[0, 0] - flow(c[1]).log_prob(x[0, 0])).abs() > 1e-3
    z, k = flow(c).encode(x)
    torch.testing.assert_close(flow(c).decode(z, k), x)
    assert flow(c).log_prob_index(z, k).shape == (4, 3)


@pytest.mark.parametrize("model", [RAD, RealNVP])
def test_same_seed_same_flow_and_same_draws(model):
    state = torch.get_rng_state()
    first, again, other = (model(2, hidden_features=(8,), randmask=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first().sample((9,), seed=3), again().sample((9,), seed=3))
    assert not torch.equal(first().sample((9,), seed=3), first().sample((9,), seed=4))
    assert not torch.equal(first().sample((9,), seed=3), other().sample((9,), seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    global_first = first().sample((9,))
    torch.manual_seed(5)
    assert torch.equal(first().sample((9,)), global_first)
    torch.set_rng_state(state)


def test_one_row_is_a_batch_of_one():
    p = rad(2, 0)()
    x = torch.tensor([[0.3, -0.2]], dtype=f64)
    torch.testing.assert_close(p.log_prob(x)[0], p.log_prob(x[0]))
    assert p.log_prob(x[0]).shape == ()
    frame = pd.DataFrame({"a": [0.3], "b": [-0.2]})
    assert torch.equal(p.log_prob(frame), p.log_prob(x))


def test_float_flows_compute_in_float():
    flow = RAD(2, hidden_features=(8,), seed=0)
    exact = flow().log_prob([[0.1, 0.2]])
    value = flow.float()().log_prob([[0.1, 0.2]])
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), abs=1e-4)


def test_reparametrised_draws_exist_without_folds_only():
    nvp = RealNVP(2, hidden_features=(4,), seed=0)
    nvp().rsample((50,), seed=0).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in nvp.parameters())
    assert nvp().has_rsample and not rad(2, 0)().has_rsample
    with pytest.raises(NotImplementedError, match="no derivative"):
        rad(2, 0)().rsample((2,))
    assert not rad(2, 0)().sample((2,)).requires_grad


def test_a_coupling_goes_into_a_flow_of_zuko():
    ours = rad(2, 3)
    layers = list(ours.transforms)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(2).double(), torch.ones(2).double(), buffer=True
    )
    theirs = zuko.flows.Flow(layers, base)
    x = ours().sample((500,), seed=0)
    torch.testing.assert_close(theirs().log_prob(x), ours().log_prob(x))
    torch.manual_seed(0)
    drawn = theirs().sample((4000,))
    expected = ours().sample((4000,), seed=1)
    # the same distribution: ranks of one sample in the other are uniform
    for i in range(2):
        rank = np.searchsorted(np.sort(expected[:, i].numpy()), drawn[:, i].numpy()) / 4000
        assert abs(np.sort(rank) - np.arange(4000) / 4000).max() * math.sqrt(2000) < 1.95


def test_the_path_shows_every_layer():
    _, p, _ = make("mixed", 0)
    x = p.sample((6,), seed=0)
    path = p.path(x)
    assert len(path) == len(p.transforms) and torch.equal(path[0].x, x)
    assert all(torch.equal(before.z, after.x) for before, after in pairwise(path))
    z, k = p.encode(x)
    assert torch.equal(path[-1].z, z)
    assert torch.equal(torch.cat([step.k for step in path if step.k is not None], 1), k)


def test_components_group_rows_by_k():
    _, p, _ = make("rad-2", 0)
    x = p.sample((2000,), seed=0)
    found = p.components(x)
    k = p.encode(x).k
    assert torch.equal(found.k[found.labels], k)
    assert len(torch.unique(found.k, dim=0)) == len(found.k) > 3
    assert found.mass.sum().item() == pytest.approx(1.0) and (found.mass.diff() <= 0).all()
    assert torch.equal(torch.bincount(found.labels) / 2000, found.mass.float())
    # the components have disjoint supports, and their densities add up to p(x)
    joint = torch.stack([p.log_prob_component(x[:50], index) for index in found.k])
    assert ((joint > -math.inf).sum(0) == 1).all()
    torch.testing.assert_close(joint.logsumexp(0), p.log_prob(x[:50]))


def test_mass_of_a_component_is_that_of_its_draws():
    """On a line, p(k) by integrating p(x, k) is the share of the draws that have this k."""
    _, p, _ = make("rad-1", 1)
    found = p.components(p.sample((20_000,), seed=0))
    x = torch.linspace(-60, 60, 40_001, dtype=f64)[:, None]
    for k, share in zip(found.k[:3], found.mass[:3].tolist(), strict=True):
        with torch.no_grad():
            mass = torch.trapezoid(p.log_prob_component(x, k).exp(), x[:, 0]).item()
        assert mass == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000) + 1e-3)


def test_a_pair_without_an_x_has_probability_zero():
    _, p, _ = make("rad-1-five-pieces", 0)
    far = torch.tensor([[1e3]], dtype=f64)
    k = p.encode(p.decode(far, torch.tensor([[4, 4]]))).k
    assert torch.equal(k, torch.tensor([[4, 4]]))
    assert p.log_prob_index(far, k).item() == 0.0
    for impossible in ([4, 2], [4, 0], [0, 1]):
        assert p.log_prob_index(far, torch.tensor([impossible])).item() == -math.inf


def test_too_many_preimages_are_refused():
    p = RAD(6, transforms=6, hidden_features=(4,), seed=0)()
    with pytest.raises(ParameterError, match="more than 100000"):
        p.preimages(torch.zeros(1, 6))


def test_masks_alternate_and_random_ones_are_complements():
    plain = masks(5, 4, randmask=False)
    assert torch.equal(plain[0], ~plain[1]) and torch.equal(plain[0], plain[2])
    torch.manual_seed(0)
    random = masks(6, 4, randmask=True)
    assert torch.equal(random[0], ~random[1]) and torch.equal(random[2], ~random[3])
    assert not torch.equal(random[0], random[2]) and all(mask.sum() == 3 for mask in random)


def test_standardise_leaves_the_density_of_x():
    flow = Flow([Standardise(2), RADCoupling(2, hidden_features=(4,))], 2).double()
    plain = Flow(list(flow.transforms)[1:], 2)
    x = torch.randn(50, 2, dtype=f64, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1e-3]) + 7.0
    flow.transforms[0].set_from(x)
    scaled = (x - x.mean(0)) / x.std(0, correction=0)
    expected = plain().log_prob(scaled) - x.std(0, correction=0).log().sum()
    torch.testing.assert_close(flow().log_prob(x), expected)


REFUSED = [
    (lambda p: p.log_prob(torch.zeros(4, 3)), ShapeError, "x has shape (4, 3), but the flow has 2 features"),
    (lambda p: p.log_prob(torch.zeros(0, 2)), EmptyDataError, "x has no rows"),
    (lambda p: p.log_prob(1.0), ShapeError, "x has shape ()"),
    (lambda p: p.log_prob([["a", "b"]]), ShapeError, "x must be an array of numbers"),
    (lambda p: p.log_prob([[0.0, math.nan]]), NonFiniteError, "x holds NaN or masked entries (first in row 0)"),
    (lambda p: p.encode([[0.0, math.inf]]), NonFiniteError, "x holds infinite values"),
    (lambda p: p.log_prob([[1e200, 1e200]]), NonFiniteError, "log p(x) of row 0 is -inf"),
    (lambda p: p.decode(torch.zeros(4, 1), torch.zeros(4, 2).long()), ShapeError, "z has shape (4, 1)"),
    (lambda p: p.decode(torch.zeros(4, 2), torch.zeros(4, 3).long()), ShapeError, "k must be whole numbers of shape"),
    (lambda p: p.decode(torch.zeros(4, 2), torch.zeros(4, 2)), ShapeError, "got torch.float32"),
    (lambda p: p.decode(torch.zeros(4, 2), torch.full((4, 2), 3)), ParameterError, "pieces from 0 to 2"),
    (lambda p: p.decode(torch.zeros(4, 2), torch.full((4, 2), -1)), ParameterError, "pieces from 0 to 2"),
    (lambda p: p.components(torch.zeros(2)), ShapeError, "x must be a table"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error) as caught:
        call(rad(2, 0)())
    assert message in str(caught.value) and "\n" not in str(caught.value)


BUILT = [
    (lambda: RAD(0), ParameterError, "features must be a whole number, 1 or more"),
    (lambda: RAD(2, pieces=4), ParameterError, "odd number, 3 or more"),
    (lambda: RAD(2, transforms=0), ParameterError, "transforms must be a whole number"),
    (lambda: RAD(2, hidden_features=(0,)), ParameterError, "each of hidden_features must be"),
    (lambda: RAD(2, hidden_features=None), ParameterError, "hidden_features must be widths"),
    (lambda: RAD(2, half_width=0.0), ParameterError, "half_width must be a positive number"),
    (lambda: RealNVP(2, context=-1), ParameterError, "context must be a whole number, 0 or more"),
    (lambda: RealNVP(2, activation="gelu"), ParameterError, 'activation must be "tanh" or "relu"'),
    (lambda: RADCoupling(3, mask=[True, False]), ShapeError, "mask must have an entry for each of the 3 features"),
    (lambda: RADCoupling(2, mask=[True, True]), ParameterError, "mask keeps every feature"),
    (lambda: Flow([], 2), ParameterError, "transforms is empty"),
    (lambda: Flow([torch.nn.Linear(2, 2)], 2), ParameterError, "got a Linear"),
    (lambda: RAD(2, seed=0)(torch.zeros(3)), ShapeError, "the context has 3 features, but the flow was built with"),
    (lambda: RAD(2, context=2, seed=0)(), ShapeError, "pass an array of shape (..., 2)"),
    (lambda: RAD(2, context=1, seed=0)([[math.nan]]), NonFiniteError, "the context holds NaN"),
]


@pytest.mark.parametrize(("build", "error", "message"), BUILT)
def test_a_bad_flow_is_refused(build, error, message):
    with pytest.raises(error) as caught:
        build()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_torch_keeps_its_checks():
    script = (
        "import torch, girih.flows; from girih_papers import rivals\n"
        "try: torch.distributions.Normal(0.0, -1.0)\n"
        "except ValueError: print('checked')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "checked\n"


def test_distributions_of_flows_have_short_reprs():
    assert repr(RAD(2)()) == "FlowDistribution(D=2, 7 transforms, 6 of them folds)"
    net = girih.mlp([2, 3, 2], seed=0)
    assert repr(DGNFlow(net)()) == "PushForward(Trace(S=2, D=2, U=3: 2 linear, 1 activation))"
