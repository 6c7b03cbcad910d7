"""The information in z, term 2 to second order, Corollary 3: against differences, exact inference, minimisation."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import girih
from girih.errors import ParameterError, ShapeError, SingularInformationError
from girih.vae import CGBPEFVAE, CatVAE, GaussVAE, information


def _chain(*layers, seed=0):
    net = nn.Sequential(*layers).double()
    g = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return net


def _smooth(S=2, D=4):
    return _chain(nn.Linear(S, 8), nn.Tanh(), nn.Linear(8, D))


MODELS = {
    "gaussian": lambda: GaussVAE(girih.mlp([2, 8, 4], seed=1), noise=0.1, seed=0),
    "gaussian, one latent": lambda: GaussVAE(girih.mlp([1, 8, 4], seed=1), noise=0.1, seed=0),
    "bernoulli": lambda: GaussVAE(girih.mlp([2, 8, 4], seed=1), likelihood="bernoulli", seed=0),
    "bpef, bernoulli": lambda: CGBPEFVAE(girih.mlp([2, 8, 4], seed=1), likelihood="bernoulli", seed=0),
    "smooth": lambda: GaussVAE(_smooth(), noise=0.1, latent_dim=2, seed=0),
    "smooth, bernoulli": lambda: GaussVAE(_smooth(), likelihood="bernoulli", latent_dim=2, seed=0),
}
CASES = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def _data(vae, n=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, vae.output_dim, generator=g, dtype=torch.float64).round(decimals=1)
    return x, 0.8 * torch.randn(n, vae.latent_dim, generator=g, dtype=torch.float64)


def _differences(vae, x, z, h=1e-4):
    """-d^2 log p(x | z) / dz^2 by central differences, which a cell limit within h of z would spoil."""
    S = z.shape[1]
    steps = h * torch.eye(S, dtype=torch.float64)
    out = torch.zeros(len(z), S, S, dtype=torch.float64)
    for s in range(S):
        for t in range(S):
            four = [
                (a * b) * vae.log_likelihood(x, z + a * steps[s] + b * steps[t])
                for a in (1.0, -1.0)
                for b in (1.0, -1.0)
            ]
            out[:, s, t] = -sum(four) / (4.0 * h * h)
    return out


@CASES
def test_the_information_is_minus_the_second_difference(make):
    vae = make()
    x, z = _data(vae)
    with torch.no_grad():
        found, expected = information.fisher_information(vae, x, z), _differences(vae, x, z)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, found.mT, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_map_of_a_cell_and_the_hessian_agree(likelihood):
    """A network that cannot be traced is differentiated twice, and the same network as cells."""
    net = girih.mlp([2, 8, 4], seed=1)

    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, z):
            return self.net(z) + 0.0 * torch.sin(z).sum(1, keepdim=True)

    plain = GaussVAE(net, noise=0.1, likelihood=likelihood, seed=0)
    opaque = GaussVAE(Opaque(), noise=0.1, likelihood=likelihood, latent_dim=2, seed=0)
    x, z = _data(plain)
    torch.testing.assert_close(
        information.fisher_information(opaque, x, z), information.fisher_information(plain, x, z), rtol=1e-9, atol=1e-9
    )


def test_float32_networks_have_information_in_float64():
    net = girih.mlp([2, 8, 4], seed=1)
    vae = GaussVAE(net, noise=0.1, seed=0)
    x, z = _data(vae)
    expected = information.fisher_information(vae, x, z)
    single = GaussVAE(net.float(), noise=0.1, seed=0)
    found = information.fisher_information(single, x, z)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@CASES
def test_gradients_reach_the_decoder(make):
    vae = make()
    x, _ = _data(vae)
    information.second_order_reconstruction(vae, x).mean().backward()
    for name, parameter in vae.named_parameters():
        if "prior" not in name:
            assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
    assert sum(float(parameter.grad.abs().sum()) for parameter in vae.decoder.parameters()) > 0.0


def test_many_rows_are_taken_in_parts(monkeypatch):
    vae = MODELS["bernoulli"]()
    x, z = _data(vae, 30)
    whole = information.fisher_information(vae, x, z)
    monkeypatch.setattr("girih.vae.information.fisher._CHUNK", 50)
    torch.testing.assert_close(information.fisher_information(vae, x, z), whole)


def test_precision_is_the_inverse_and_no_larger_than_the_posterior_allows():
    """For an affine decoder the posterior covariance is (G + I)^-1: below the bound, which knows no prior."""
    net = _chain(nn.Linear(2, 4))
    vae = GaussVAE(net, noise=0.3, seed=0)
    x, z = _data(vae)
    bound = information.cramer_rao(vae, x, z)
    observed = information.fisher_information(vae, x, z)
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(bound.covariance @ observed, eye.expand(12, 2, 2), rtol=0.0, atol=1e-10)
    torch.testing.assert_close(bound.deviation.square(), bound.covariance.diagonal(dim1=1, dim2=2))
    posterior = girih.DGN(net, noise=0.3).posterior(x).covariance
    torch.testing.assert_close(posterior, torch.linalg.inv(observed + eye), rtol=1e-8, atol=1e-10)
    assert bool((torch.linalg.eigvalsh(bound.covariance - posterior) > 0).all())


def test_a_direction_without_information_is_refused():
    net = girih.mlp([2, 4, 3], activation="relu", seed=0)
    with torch.no_grad():
        net[0].weight[:, 1] = 0.0  # the second latent does nothing
    vae = GaussVAE(net, seed=0)
    x, z = _data(vae)
    with pytest.raises(SingularInformationError, match=r"12 of 12 rows \(first in row 0\)"):
        information.cramer_rao(vae, x, z)
    with pytest.raises(SingularInformationError, match="no row depends on z"):
        information.optimal_free_energy(vae, x, start=z)
    with pytest.raises(SingularInformationError, match="best prior is a point"):
        information.optimal_free_energy(MODELS["gaussian"](), x=torch.zeros(5, 4), start=torch.zeros(5, 2))


def test_bad_input_is_refused():
    vae = MODELS["gaussian"]()
    with pytest.raises(ShapeError, match="one z for each row"):
        information.fisher_information(vae, torch.zeros(3, 4), torch.zeros(2, 2))
    with pytest.raises(ShapeError, match="the latent dimension S"):
        information.fisher_information(vae, torch.zeros(3, 4), torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="covariances"):
        information.second_order_free_energy(vae, torch.zeros(3, 4), torch.zeros(3, 2), torch.ones(3, 2))
    categories = CatVAE(girih.mlp([6, 8, 4], seed=0), categories=3, seed=0)
    with pytest.raises(ParameterError, match="categories"):
        information.fisher_information(categories, torch.zeros(3, 4), torch.zeros(3, 6))
    with pytest.raises(ParameterError, match="categories"):
        information.second_order_reconstruction(categories, torch.zeros(3, 4))


def _exact_term_2(vae, x, q):
    """E_q[-log p(x | z)], from the exact bound of the same q: no draws."""
    divergence = torch.distributions.kl_divergence(q, vae.prior())
    return -vae.dgn().elbo(x, q) - divergence


def test_second_order_is_exact_for_an_affine_decoder():
    vae = GaussVAE(_chain(nn.Linear(2, 4)), noise=0.3, seed=0)
    x, z = _data(vae)
    q = Independent(Normal(z, torch.rand_like(z) + 0.1), 1)
    torch.testing.assert_close(
        information.second_order_reconstruction(vae, x, q), _exact_term_2(vae, x, q), rtol=1e-9, atol=1e-9
    )


def test_second_order_is_exact_inside_a_cell_and_misses_kinks():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), girih.networks.Abs()).double()
    net[0].weight.data.fill_(1.0)  # g(z) = |z|, with its kink at 0
    vae = GaussVAE(net, noise=0.5, seed=0)
    x = torch.tensor([[1.3], [1.3]], dtype=torch.float64)
    q = Independent(Normal(torch.tensor([[2.0], [1e-9]]).double(), torch.tensor([[0.1], [0.7]]).double()), 1)
    found, exact = information.second_order_reconstruction(vae, x, q).detach(), _exact_term_2(vae, x, q)
    assert found[0].item() == pytest.approx(exact[0].item(), abs=1e-9)  # 20 deviations away
    # at the kink E|z| = v sqrt(2 / pi) where the expansion has E z = 0: the error is 2 x v sqrt(2 / pi) / (2 noise)
    missed = 1.3 * 0.7 * math.sqrt(2 / math.pi) / 0.5
    assert (found - exact)[1].item() == pytest.approx(missed, rel=1e-6)


def test_second_order_error_falls_with_the_variance_of_a_smooth_decoder():
    vae = MODELS["smooth"]()
    x, z = _data(vae, 3)
    nodes, weights = (torch.tensor(part) for part in _hermite(60))
    errors = []
    for deviation in (0.2, 0.1, 0.05):
        grid = torch.cartesian_prod(nodes, nodes) * deviation
        mass = torch.cartesian_prod(weights, weights).prod(1)
        with torch.no_grad():
            exact = -(mass[:, None] * vae.log_likelihood(x, z + grid[:, None])).sum(0)
            q = Independent(Normal(z, torch.full_like(z, deviation)), 1)
            errors.append((information.second_order_reconstruction(vae, x, q) - exact).abs().max().item())
    # the next term is of fourth order
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10


def _hermite(count):
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


def test_the_objective_of_the_corollary_is_term_1_at_the_centroid_and_term_2():
    vae = MODELS["gaussian"]()
    x, z = _data(vae)
    root = torch.randn(12, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    q = MultivariateNormal(z, root @ root.mT + 0.1 * torch.eye(2).double())
    family, natural = information.family_of(q)
    term_1 = information.mean_divergence(family, natural, information.bregman_centroid(family, natural))
    expected = term_1 + information.second_order_reconstruction(vae, x, q).mean()
    found = information.second_order_free_energy(vae, x, z, q.covariance_matrix)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_optimum_of_an_affine_decoder_is_its_exact_likelihood():
    """Term 2 is then exact, posteriors are Gaussian, and the best prior is that of maximum likelihood."""
    net = _chain(nn.Linear(2, 5))
    vae = GaussVAE(net, noise=0.3, seed=0)
    x = 2.0 * torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    best = information.optimal_free_energy(vae, x)
    A, b = net[0].weight.detach(), net[0].bias.detach()

    def marginal(mean, covariance):
        noisy = 0.3 * torch.eye(5, dtype=torch.float64) + A @ covariance @ A.T
        return -MultivariateNormal(A @ mean + b, noisy).log_prob(x).mean()

    assert best.converged
    assert best.value.item() == pytest.approx(marginal(best.prior_mean, best.prior_covariance).item(), abs=1e-8)
    mean, root = torch.zeros(2).double().requires_grad_(), torch.eye(2).double().requires_grad_()
    search = torch.optim.LBFGS([mean, root], max_iter=500, tolerance_grad=1e-11, line_search_fn="strong_wolfe")

    def closure():
        search.zero_grad()
        loss = marginal(mean, root @ root.T)
        loss.backward()
        return loss

    search.step(closure)
    assert best.value.item() == pytest.approx(closure().item(), abs=1e-7)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_optimum_of_a_smooth_decoder_is_where_direct_minimisation_ends(likelihood):
    """Over all means and Cholesky factors at once, by L-BFGS on the objective itself."""
    decoder = _chain(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 200), seed=2)
    vae = GaussVAE(decoder, noise=0.05, likelihood=likelihood, latent_dim=1, seed=0)
    z = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)[:, None]
    x = vae.decode(z).detach().clamp(0.0, 1.0) if likelihood == "bernoulli" else vae.decode(z).detach()
    best = information.optimal_free_energy(vae, x, start=z)
    assert best.converged
    mu, log_v = z.clone().requires_grad_(), torch.full_like(z, -3.0).requires_grad_()
    search = torch.optim.LBFGS([mu, log_v], max_iter=400, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        search.zero_grad()
        loss = information.second_order_free_energy(vae, x, mu, log_v.exp()[..., None])
        loss.backward()
        return loss

    search.step(closure)
    assert best.value.item() == pytest.approx(closure().item(), abs=1e-6)
    torch.testing.assert_close(best.means, mu.detach(), rtol=0.0, atol=1e-3)


def test_the_optimum_is_stationary_in_the_covariances_and_the_mean_of_laplace_approximations():
    vae = MODELS["gaussian, one latent"]()
    g = torch.Generator().manual_seed(0)
    z = torch.randn(30, 1, generator=g, dtype=torch.float64)
    x = vae.decode(z).detach() + 0.3 * torch.randn(30, 4, generator=g, dtype=torch.float64)
    best = information.optimal_free_energy(vae, x)
    observed = information.fisher_information(vae, x, best.means).detach()
    P = best.prior_covariance
    torch.testing.assert_close(best.covariances, torch.linalg.inv(observed + torch.linalg.inv(P)))
    prior = MultivariateNormal(best.prior_mean, P)
    laplace = (
        -vae.log_likelihood(x, best.means)
        - prior.log_prob(best.means)
        - 0.5 * math.log(2 * math.pi)
        + 0.5 * torch.logdet(observed + torch.linalg.inv(P))
    )
    assert best.value.item() == pytest.approx(laplace.mean().item(), abs=1e-9)
    for scale in (0.9, 1.1):
        assert information.second_order_free_energy(vae, x, best.means, scale * best.covariances) > best.value


def test_the_optimum_is_below_what_the_encoder_reaches():
    vae = MODELS["gaussian"]()
    x = vae.sample(20, seed=0)
    q = vae.encode(x)
    reached = information.second_order_free_energy(vae, x, q.mean, torch.diag_embed(q.variance))
    best = information.optimal_free_energy(vae, x)
    assert best.value < reached - 0.1
    with torch.no_grad():
        again = information.optimal_free_energy(vae, x, start=best.means)
    assert again.value.item() == pytest.approx(best.value.item(), abs=1e-8)
