"""The compiled E-step against its torch form, and its integrals against those of `interval`."""

import numpy as np
import pytest
import torch

from girih.gaussian import interval_moments, prepared
from girih.tables import mixture
from girih.tables.basis import Basis
from girih.tables.mixture import Observed, Rows, cells_of, log_prob, statistics
from table_twins import ensemble
from twins import f64

pytestmark = pytest.mark.skipif(prepared.kernels() is None, reason="needs Numba, the extra `fast`")


@pytest.fixture
def torch_form(monkeypatch):
    """A function called in the torch form."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(mixture, "_fast", lambda: None)
            return function(*arguments)

    return call


def test_moments_between_are_those_of_the_torch_form():
    from girih.gaussian.interval_kernels import moments_between

    anchors = np.array([0.0, 1e-9, 0.1, 1.0, 2.9, 3.9999, 4.0001, 8.0, 38.0, 100.0, 1e5])
    widths = np.array([1e-10, 1e-6, 1e-3, 0.1, 0.4999, 0.5001, 2.0, 10.0, np.inf])
    low, width = (part.ravel() for part in np.meshgrid(anchors, widths))
    lower = np.r_[low, -(low + width), -widths, -np.inf]
    upper = np.r_[low + width, -low, widths[::-1], np.inf]
    kept = lower < upper
    lower, upper = lower[kept], upper[kept]
    found = interval_moments(f64(lower), f64(upper))
    ours = f64([moments_between(a, b) for a, b in zip(lower, upper, strict=True)])
    assert torch.allclose(ours[:, 0], found.log_mass, rtol=1e-13, atol=1e-12)
    assert torch.allclose(ours[:, 1], found.anchor + found.mean, rtol=1e-12, atol=1e-14)
    assert torch.allclose(ours[:, 2], found.variance, rtol=1e-9, atol=0.0)


def rows(D, holes, far):
    """Rows at all distances from the curves; the last of them cannot be held by a double."""
    rng = np.random.default_rng(D)
    x = rng.normal(size=(80, D)) * np.geomspace(0.1, far, 80)[:, None]
    x[rng.random(x.shape) < holes] = np.nan
    return Rows.of(torch.tensor(x), torch.tensor(rng.integers(-1, 3, size=(80, 1))), torch.tensor(rng.uniform(size=80)))


CASES = [(1, 0.0, 1e3), (3, 0.0, 1e3), (3, 0.3, 1e3), (12, 0.2, 30.0), (3, 0.3, 1e170)]


@pytest.mark.parametrize(("D", "holes", "far"), CASES)
@pytest.mark.parametrize("everything", [False, True])
def test_cells_are_those_of_the_torch_form(D, holes, far, everything, torch_form):
    one = ensemble(D, D, [Basis.line(5)], levels=(3,), K=3, noise=0.05).members[0].mixture
    some = rows(D, holes, far)
    observed = Observed.of(one.noise, some.masks)
    ours = cells_of(one, some, observed, everything)
    theirs = torch_form(cells_of, one, some, observed, everything)
    assert torch.equal(ours.log_p.isfinite(), theirs.log_p.isfinite())
    kept = ours.log_p.isfinite()
    assert bool(kept.any())
    fields = ours._fields if far < 1e100 else ("log_p",)  # a latent 1e150 deviations out has lost its digits in both
    for name in fields:
        assert torch.allclose(getattr(ours, name)[kept], getattr(theirs, name)[kept], rtol=1e-11, atol=1e-12), name


@pytest.mark.parametrize(("D", "holes", "far"), CASES[:-1])
@pytest.mark.parametrize("basis", [Basis.line(5), Basis.plain()], ids=["bent", "plain"])
def test_statistics_are_those_of_the_torch_form(D, holes, far, basis, torch_form):
    one = ensemble(D, D, [basis], levels=(3,), K=3).members[0].mixture
    some = rows(D, holes, far)
    for few in (some, replicated(some)):  # as many patterns of holes as rows, and far fewer
        ours, theirs = statistics(one, few), torch_form(statistics, one, few)
        for name, a, b in zip(ours._fields[:-1], ours, theirs, strict=False):
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-11 * float(b.abs().max())), name
        assert torch.allclose(log_prob(one, few), torch_form(log_prob, one, few), rtol=1e-13)


def replicated(some):
    """Six rows for each pattern of holes."""
    x = torch.where(some.masks[some.pattern] > 0, some.x, torch.nan)
    return Rows.of(x.repeat(6, 1), some.codes.repeat(6, 1), some.weight.repeat(6))
