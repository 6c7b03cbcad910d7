"""Compiled pairs of rows and cells (S = 1) against their torch form."""

import pytest
import torch

import girih
from girih.gaussian import prepared
from girih.inference import chunks, line_pairs

pytestmark = pytest.mark.skipif(prepared.kernels() is None, reason="needs Numba, the extra `fast`")

NAN = float("nan")


def pairs_of(dgn, x):
    """Those of all rows, chunk by chunk."""
    model = dgn.model()
    return [line_pairs.pair_up(model, rows, model.cells.region._knots) for _, rows in chunks(model, x)]


@pytest.mark.parametrize("noise", [1e-6, 0.1, 30.0])
@pytest.mark.parametrize("hidden", [[], [9], [5, 5]], ids=str)
def test_pairs_are_those_of_the_torch_form(noise, hidden, monkeypatch):
    dgn = girih.DGN(girih.mlp([1, *hidden, 4], activation="relu", seed=1), noise=noise, prior=2.0)
    near = dgn().sample((40,), seed=0)
    x = torch.cat((near, 3.0 * near, 1e3 * near[:5], 1e160 * near[:2]))
    holes = near.clone()
    holes[::2, 1], holes[::3, 0] = NAN, NAN
    x = torch.cat((x, holes))
    ours = pairs_of(dgn, x)
    monkeypatch.setattr(line_pairs, "_fast", lambda *tensors: None)
    for one, other in zip(ours, pairs_of(dgn, x), strict=True):
        reached = other.log_joint > -40.0  # the torch form does not leave out all that are negligible
        assert bool(reached.any())
        far = other.log_highest.abs()[:, None].clamp(min=1.0)
        for name in ("log_peak", "log_joint"):
            a, b = getattr(one, name), getattr(other, name)
            assert bool(((a - b).abs() <= 1e-12 + 1e-14 * far)[reached].all()), name
        assert torch.allclose(one.log_highest, other.log_highest, rtol=1e-14)
        scale = other.deviation
        for name in ("mean", "local_mean"):
            unit = scale if name == "mean" else torch.ones_like(scale)
            size = getattr(other, name).abs() * 1e-11 + 1e-9 * unit
            assert bool(((getattr(one, name) - getattr(other, name)).abs() <= size)[reached].all()), name
        assert torch.allclose(one.local_variance[reached], other.local_variance[reached], rtol=1e-8)
        assert bool((one.log_joint[~reached] < -39.0).all())


def test_pairs_that_overflow_have_no_mass():
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=1e-3)
    (found,) = pairs_of(dgn, torch.full((1, 2), 1e200, dtype=torch.float64))
    assert not bool(found.log_joint.isnan().any())
