"""Monte Carlo EM against closed forms and the exact EM."""

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.em import fit_monte_carlo
from girih.errors import NonFiniteError, ParameterError


def test_a_linear_generator_comes_to_probabilistic_principal_components():
    """Tipping & Bishop (1999): the maximum likelihood is known in closed form."""
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(150, 4)) @ rng.normal(size=(4, 7)) + 0.5 * rng.normal(size=(150, 7)))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 7)).double()
    fit = fit_monte_carlo(net, x, 1.0, validation=x[:50], max_iter=25, seed=0, progress=False)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)
    rest = eigenvalues[4:].mean()
    best = 0.5 * (eigenvalues[:4].log().sum() + 3 * rest.log() + 7 * (1.0 + np.log(2.0 * np.pi)))
    weight = net[0].weight.detach()
    whole = weight @ weight.mT + fit.noise.matrix
    each = -torch.distributions.MultivariateNormal(net[0].bias.detach(), whole).log_prob(x)
    assert best - 1e-6 < each.mean() < best + 0.15
    assert abs(float(fit.curve[fit.best_step]) - float(each[:50].mean())) < 5.0 * float(fit.error[fit.best_step]) + 0.01
    assert "held-out NLL" in repr(fit)


def test_rows_of_a_bent_generator_become_likelier():
    truth = girih.mlp([4, 12, 8], activation="relu", seed=1)
    z = torch.randn(240, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = 2.0 * truth(z) + 0.2 * torch.randn(240, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net = girih.mlp([4, 12, 8], activation="relu", seed=5)
    fit = fit_monte_carlo(net, x[:200], np.full(8, 0.5), validation=x[200:], max_iter=8, seed=0, progress=False)
    best = float(fit.curve[fit.best_step])
    assert best < float(fit.curve[0]) - 1.0
    with torch.no_grad():
        found = girih.sampling.annealed(net, x[200:203], fit.noise, temperatures=50)
        again = girih.bracket(net, x[200:203], fit.noise, budget=0.5)
    assert (again.estimate - found.log_prob).abs().max() < 5.0 * (again.standard_error + found.standard_error).max()
    assert fit.noise.kind == "diagonal"


def test_what_is_refused():
    net, x = girih.mlp([4, 6, 3], seed=0), torch.zeros(10, 3)
    with pytest.raises(ParameterError, match="validation=None"):
        fit_monte_carlo(net, x, validation=None)
    with pytest.raises(ParameterError, match="float64"):
        fit_monte_carlo(girih.mlp([4, 6, 3], seed=0).float(), x)
    with pytest.raises(NonFiniteError):
        fit_monte_carlo(net, torch.full((4, 3), torch.nan))
