"""Monte Carlo EM against closed forms and the exact EM."""

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.em import fit_monte_carlo
from girih.errors import EmptyDataError, NonFiniteError, ParameterError


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


def missing(x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(holes, torch.nan, x)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "low_rank", "full"])
def test_with_missing_entries_a_linear_generator_comes_to_its_maximum(kind):
    """p(x_o) of a linear generator is Gaussian, so gradients of the exact likelihood find the maximum too."""
    rng = np.random.default_rng(0)
    complete = torch.as_tensor(rng.normal(size=(160, 4)) @ rng.normal(size=(4, 6)) + 0.5 * rng.normal(size=(160, 6)))
    x = missing(complete, 0.25, 0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6)).double()
    start = girih.Covariance.scalar(1.0, 6).to(kind)
    fit = fit_monte_carlo(net, x, start, validation=x[:60], max_iter=25, patience=25, seed=0, progress=False)
    assert fit.noise.kind == kind
    weight, bias = (part.detach().clone().requires_grad_() for part in net[0].parameters())
    vector = fit.noise.coordinates.detach().clone().requires_grad_()
    seen = ~torch.isnan(x)

    def nll() -> torch.Tensor:
        spread = weight @ weight.mT + fit.noise.from_coordinates(vector).matrix
        each = [
            -torch.distributions.MultivariateNormal(bias[s], spread[s][:, s]).log_prob(row[s])
            for row, s in zip(x, seen, strict=True)
            if s.any()
        ]
        return torch.stack(each).sum() / len(x)

    found = nll().item()
    optimiser = torch.optim.LBFGS([weight, bias, vector], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = nll()
        value.backward()
        return value

    optimiser.step(closure)
    assert nll().item() - 1e-6 < found < nll().item() + 0.15


def test_missing_entries_of_a_bent_generator():
    """Rows with holes say more than the complete ones among them; complete rows judge both."""
    truth = girih.mlp([4, 12, 8], activation="relu", seed=1)
    z = torch.randn(290, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = 2.0 * truth(z) + 0.2 * torch.randn(290, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    holes, test, fits = missing(x[:240], 0.2, 2), x[240:], {}
    for name, rows in (("complete", x[:240]), ("holes", holes), ("without", holes[~torch.isnan(holes).any(1)])):
        net = girih.mlp([4, 12, 8], activation="relu", seed=5)
        fit = fit_monte_carlo(net, rows, np.full(8, 0.5), validation=test, max_iter=8, seed=0, progress=False)
        fits[name] = float(fit.curve[fit.best_step])
        if name == "holes":  # the estimate of a row with holes is that of the sampler, too
            own = fit_monte_carlo(net, rows, fit.noise, validation=holes[:8], max_iter=1, seed=0, progress=False)
            with torch.no_grad():
                found = girih.sampling.annealed(net, holes[:8], own.noise, temperatures=50)
            at = own.curve[own.best_step] + found.log_prob.mean()
            assert abs(float(at)) < 5.0 * (found.standard_error.square().sum().sqrt() / 8 + own.error[own.best_step])
    assert fits["holes"] < fits["without"] - 0.5
    assert fits["holes"] < fits["complete"] + 1.0


def test_what_is_refused():
    net, x = girih.mlp([4, 6, 3], seed=0), torch.zeros(10, 3)
    with pytest.raises(ParameterError, match="validation=None"):
        fit_monte_carlo(net, x, validation=None)
    with pytest.raises(ParameterError, match="float64"):
        fit_monte_carlo(girih.mlp([4, 6, 3], seed=0).float(), x)
    with pytest.raises(EmptyDataError, match="no observed entries"):
        fit_monte_carlo(net, torch.full((4, 3), torch.nan))
    with pytest.raises(NonFiniteError):
        fit_monte_carlo(net, torch.full((4, 3), torch.inf))
