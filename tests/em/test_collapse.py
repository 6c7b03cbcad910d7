"""A weight prior does not pull a fit to a worse optimum than the data allow."""

import itertools

import numpy as np
import pytest
import torch

import girih
from girih.em import WeightPrior, fit_em

from .conftest import build

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def constant_nll(X):
    return 0.5 * X.shape[1] * (np.log(2 * np.pi * X.var(0).mean()) + 1)


def test_the_circle_under_a_gaussian_prior():
    """A warm-started tightening of the prior reaches 1.02; a constant generator has 2.14."""
    X = girih.datasets.load("circle", n=128, seed=0).X
    est = girih.DGNEstimator(hidden=(8,), weight_prior=("gaussian", 0.5), n_init=5, max_iter=150, random_state=0).fit(X)
    assert est.nll_curve_[-1] < 1.02


@pytest.mark.parametrize("prior", [("gaussian", 0.02), ("gaussian", 0.5), ("laplace", 0.4), ("uniform", 0.8)])
def test_never_worse_than_a_constant(circle, prior):
    result = fit_em(dgn := build((1, 3, 2)), circle, weight_prior=prior, n_init=2, init_iter=6, max_iter=8, tol=1e-3)
    assert result.curve[-1] <= constant_nll(circle) + 1e-9
    assert all(later <= earlier for earlier, later in itertools.pairwise(result.curve))
    energy = WeightPrior(*prior).energy([m.weight.detach() for m in dgn.net if isinstance(m, torch.nn.Linear)])
    assert result.curve[-1] == pytest.approx(energy / len(circle) - result.log_likelihood, abs=1e-9)


@pytest.mark.parametrize("family", ["gaussian", "laplace", "uniform"])
def test_balanced_weights_are_more_probable_and_make_the_same_generator(family):
    dgn = build((2, 4, 3, 2), seed=3)
    layers = [m for m in dgn.net if isinstance(m, torch.nn.Linear)]
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        layers[0].weight.mul_(30.0)
        layers[1].weight[:, 0] = 0.0  # a unit that nothing listens to
        before, largest = dgn.trace(z), max(float(m.weight.abs().max()) for m in layers)
        prior = WeightPrior(family, 1.0)
        energy = prior.energy([m.weight for m in layers])
        prior.balance(layers)
        assert torch.allclose(dgn.trace(z), before, rtol=1e-10)
        if family == "uniform":
            assert max(float(m.weight.abs().max()) for m in layers) < largest
            return
        balanced = prior.energy([m.weight for m in layers])
        assert balanced < energy
        for below, above in itertools.pairwise(layers):  # no unit can do better
            for unit in above.weight.norm(dim=0).nonzero()[:, 0].tolist():
                for a in (0.9, 1.1):
                    into, out = below.weight[unit].clone(), above.weight[:, unit].clone()
                    below.weight[unit] = into * a
                    above.weight[:, unit] = out / a
                    assert prior.energy([m.weight for m in layers]) >= balanced - 1e-9
                    below.weight[unit], above.weight[:, unit] = into, out
