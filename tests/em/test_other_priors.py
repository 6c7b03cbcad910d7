"""EM with uniform priors and mixtures of Gaussians: never up, beside gradients, and in one's own units."""

import pytest
import torch

import girih
from girih.em import fit_em
from girih.errors import ParameterError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

F64 = torch.float64
MIXED = girih.GaussianMixturePrior([1.0, 2.0], [[-2.0], [1.0]], 0.3)
MIXED_PLANE = girih.GaussianMixturePrior([1.0, 2.0], [[-2.0, 0.0], [1.0, 1.0]], 0.3)


def rows(n: int, S: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    t = 2.0 * torch.rand(n, S, dtype=F64, generator=generator) - 1.0
    x = torch.cat((torch.sin(2.0 * t), torch.cos(3.0 * t), t), 1)
    x = 100.0 + 5.0 * (x + 0.05 * torch.randn(x.shape, dtype=F64, generator=generator))
    x[::17, 0] = torch.nan
    return x


@pytest.mark.parametrize(
    ("S", "prior"),
    [
        (1, girih.Uniform(-1.0, 1.0)),
        (1, girih.Uniform(3.0, 5.0)),
        (2, girih.Uniform(0.0, [1.0, 2.0])),
        (1, MIXED),
        (2, MIXED_PLANE),
    ],
)
@pytest.mark.parametrize("m_step", ["joint", "layerwise"])
def test_the_exact_nll_never_rises(S, prior, m_step):
    x = rows(150, S)
    dgn = girih.DGN(girih.mlp([S, 6, x.shape[1]], seed=0), noise=torch.ones(x.shape[1]), prior=prior)
    result = fit_em(dgn, x, n_init=2, init_iter=4, max_iter=15, m_step=m_step, progress=False)
    assert (result.curve[1:] <= result.curve[:-1]).all()
    assert result.curve[-1] < result.curve[0] - 0.05
    assert -dgn().log_prob(x).mean().item() == pytest.approx(result.curve[-1], abs=1e-7)


@pytest.mark.parametrize("prior", [girih.Uniform(-1.0, 1.0), MIXED])
def test_em_and_gradients_agree_where_they_end(prior):
    x = rows(120, 1)
    dgn = girih.DGN(girih.mlp([1, 3, 3], seed=1), noise=torch.ones(3), prior=prior)
    result = fit_em(dgn, x, n_init=2, max_iter=400, tol=1e-9, progress=False)
    after = girih.train(dgn, x, optimizer="lbfgs", max_epochs=10, progress=False)
    assert -after.log_likelihood == pytest.approx(result.curve[-1], abs=2e-5)


def test_a_curve_starts_at_equally_likely_latents_of_the_box():
    x = rows(200, 1)
    curves = []
    for low in (-1.0, 7.0):
        dgn = girih.DGN(girih.mlp([1, 6, 3], seed=0), noise=torch.ones(3), prior=girih.Uniform(low, low + 2.0))
        curves.append(fit_em(dgn, x, n_init=1, max_iter=3, progress=False).curve)
        kinks = dgn.partition.breakpoints
        assert ((kinks > low) & (kinks < low + 2.0)).any()
    assert abs(curves[0][-1] - curves[1][-1]) < 0.5  # wherever the box is


def test_a_prior_that_is_not_gaussian_is_not_learned():
    dgn = girih.DGN(girih.mlp([1, 3, 3], seed=1), prior=girih.Uniform(-1.0, 1.0))
    with pytest.raises(ParameterError, match="not Gaussian"):
        fit_em(dgn, rows(20, 1), learn_prior=True)
