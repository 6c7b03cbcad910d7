"""Rows beside a decoder: against the exact model, all noises on a grid, and draws."""

import numpy as np
import pytest
import torch

import girih
from girih.errors import NoiseError, ParameterError
from girih.report import explain_rows, facts_of_rows, inspect_rows
from girih.report.inspection_facts import row_table
from girih.report.inspection_rows import gaussian_nll, likeliest_noise


def cells_of(S, D=4, prior=1.0, **options):
    return girih.geometry.enumerate_cells(girih.mlp([S, 6, 6, D], seed=S, **options), prior)


def rows_of(cells, noise=0.05, n=60):
    return girih.DGN(cells.trace, noise, prior=cells.prior.covariance)().sample((n,), seed=1)


@pytest.mark.parametrize(("S", "n"), [(1, 60), (2, 40), (3, 3)])
def test_numbers_are_those_of_the_exact_model(S, n):
    cells = cells_of(S, prior=1.7)
    x = rows_of(cells, n=n)
    x[0, 1] = torch.nan
    found, dgn = inspect_rows(cells, x, noise=0.05), girih.DGN(cells.trace, 0.05, prior=1.7)
    torch.testing.assert_close(found.log_p, dgn().log_prob(x).detach(), rtol=0, atol=1e-9)
    posterior = dgn.posterior(x)
    torch.testing.assert_close(found.latents, posterior.mean)
    dense = posterior.cell_probs().to_dense()
    torch.testing.assert_close(found.share, dense.amax(1))
    assert (dense[torch.arange(n), found.cell] == dense.amax(1)).all()
    torch.testing.assert_close(found.residual, (x - dgn().denoise(x)).square().nanmean(1).sqrt())
    draws = posterior.sample((20_000,), seed=0)
    assert found.spread == pytest.approx(float(draws.square().mean()) / 1.7, rel=0.03)


@pytest.mark.parametrize("S", [1, 2])
def test_the_noise_is_the_likeliest_of_a_grid(S):
    cells = cells_of(S)
    x = rows_of(cells, noise=0.03, n=80)
    chosen = likeliest_noise(cells, x)
    nll = lambda v: -float(girih.DGN(cells.trace, float(v))().log_prob(x).detach().mean())  # noqa: E731
    assert nll(chosen.mean_variance) <= min(nll(v) for v in np.geomspace(1e-4, 10.0, 40)) + 1e-4


def test_rows_on_the_manifold_have_no_likeliest_noise():
    cells = cells_of(2)
    x = cells.trace(torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(NoiseError, match="pass the variance that you mean"):
        inspect_rows(cells, x)
    x[:, 0] = torch.nan
    with pytest.raises(NoiseError, match="every row has missing entries"):
        inspect_rows(cells, x)


def test_one_gaussian_is_that_of_scipy():
    from scipy.stats import multivariate_normal

    x = (
        torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        @ torch.ones(3, 3).triu().double()
    )
    known = -multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x).mean()
    assert gaussian_nll(x) == pytest.approx(known)
    assert gaussian_nll(x[:6]) is None and gaussian_nll(torch.cat((x, x), 1)) is None
    assert gaussian_nll(x.where(x < 1.0, torch.nan)) is None


def test_a_gap_is_that_of_the_vae():
    vae = girih.vae.VAE(girih.mlp([1, 6, 3], seed=0), noise=0.1, seed=0)
    x = vae.sample(20, seed=0)
    cells = girih.geometry.enumerate_cells(vae.decoder)
    found = inspect_rows(cells, x, vae=vae)
    torch.testing.assert_close(found.gap.gap, girih.vae.gap(vae, x).gap)
    torch.testing.assert_close(found.gap.nll, -found.log_p)
    assert row_table(found)["gap"] == pytest.approx(found.gap.gap.numpy())
    texts = {number.name: number for number in explain_rows(facts_of_rows(found, cells))}
    assert "(exact)" in texts["Gap of the VAE"].value and "that of the VAE" in texts["Noise"].meaning


@pytest.mark.parametrize(
    ("decoder", "options"), [([5, 8, 4], {"noise": 0.1}), ([2, 8, 4], {"likelihood": "bernoulli"})]
)
def test_what_is_not_exact_comes_with_its_error_or_its_reason(decoder, options):
    vae = girih.vae.VAE(girih.mlp(decoder, seed=0), seed=0, **options)
    x = vae.sample(10, seed=0)
    cells = girih.geometry.sample_cells(vae.decoder, 50)
    found = inspect_rows(cells, x, vae=vae)
    log_p, error = vae().log_prob_with_error(x, seed=0)
    torch.testing.assert_close(found.log_p, log_p.detach())
    assert (found.log_p_error == error).all() and (error > 0).all()
    numbers = facts_of_rows(found, cells)
    assert not numbers["nll"]["exact"]
    texts = [number.value for number in explain_rows(numbers)]
    assert any("±" in text for text in texts)
    few = decoder[0] <= 3  # the gap is an integral over the cells then, for any likelihood; else it is sampled
    assert found.gap.sampled == (not few) and "gap" not in numbers["unknown"]
    assert any("exact)" in text if few else "estimated, NLL by" in text for text in texts)
    assert "not known" not in texts
    torch.testing.assert_close(found.latents, vae.embed(x)[0])
    with pytest.raises(ParameterError, match="missing entries need exact posteriors"):
        inspect_rows(cells, x.where(x < x.max(), torch.nan), vae=vae)


def test_a_decoder_of_many_latents_tells_cells_alone():
    net = girih.mlp([5, 8, 6], seed=0)
    cells = girih.geometry.sample_cells(net, 50)
    z = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = inspect_rows(cells, net(z))
    assert found.log_p is None and found.residual.max() < 1e-6
    numbers = facts_of_rows(found, cells)
    nll = next(number for number in explain_rows(numbers) if number.name == "NLL")
    assert nll.value == "not known" and "S up to 3" in nll.meaning
    uniform = inspect_rows(
        girih.geometry.enumerate_cells(girih.mlp([1, 4, 3], seed=0), girih.geometry.Uniform(-1, 1)), [[0.0] * 3]
    )
    assert "uniform" in uniform.missing["NLL"] and abs(float(uniform.latents)) <= 1.0


def test_codes_are_refused():
    vae = girih.vae.CatVAE(girih.mlp([4, 6, 3], seed=0), categories=2, noise=0.1, seed=0)
    with pytest.raises(ParameterError, match="no points of the space"):
        inspect_rows(girih.geometry.sample_cells(vae.decoder, 50), vae.sample(5, seed=0), vae=vae)
