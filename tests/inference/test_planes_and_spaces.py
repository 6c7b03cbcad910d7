"""S = 2, 3: the numerics contract, against the twin."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import girih
from inference.simplices import constant, quadrature, residual, triangulate
from twins import noise_of_kind, rows_near_and_far


def make(S: int, widths: list[int], size: int, kind: str, variance: float, seed: int) -> girih.DGN:
    rng = np.random.default_rng(seed)
    net = girih.mlp([S, *widths, size], activation=("relu", "leaky_relu", "abs")[seed % 3], seed=seed)
    root = np.eye(S) * math.exp(0.3 * rng.normal()) + 0.3 * np.tril(rng.normal(size=(S, S)))
    return girih.DGN(net, noise=noise_of_kind(kind, variance, size, seed), prior=root @ root.T)


def assert_exact(dgn: girih.DGN, x: torch.Tensor) -> None:
    post, simplices = dgn.posterior(x), triangulate(dgn)
    for n, row in enumerate(x):
        twin = quadrature(dgn, row, simplices)
        scale = max(1.0, abs(float(twin.log_prob)))
        assert abs(float(post.log_evidence[n] - twin.log_prob)) <= 1e-8 * scale
        deviation = twin.covariance.diagonal().sqrt()
        assert ((post.mean[n] - twin.mean).abs() <= 1e-6 * deviation).all()
        unit = deviation[:, None] * deviation
        assert ((post.covariance[n] - twin.covariance).abs() <= 1e-6 * unit).all()
        assert abs(float(post.entropy()[n] - twin.entropy)) <= 1e-6


PLANES = [
    (kind, size, variance, seed)
    for seed, (kind, size, variance) in enumerate(
        [
            ("scalar", 2, 1e-4),
            ("diagonal", 3, 1e-2),
            ("full", 4, 1e-3),
            ("scalar", 10, 1.0),
            ("diagonal", 2, 1e3),
            ("scalar", 1, 1e-4),
            ("full", 2, 1e-6),
            ("scalar", 3, 1e-5),
        ]
    )
]


@pytest.mark.parametrize(("kind", "size", "variance", "seed"), PLANES)
def test_planes(kind, size, variance, seed):
    dgn = make(2, [5] if seed % 2 else [4, 3], size, kind, variance, seed)
    assert_exact(dgn, rows_near_and_far(dgn, (3.0, 30.0), seed)[[0, -2, -1]])


SPACES = [("diagonal", 4, 1.0, 1), ("full", 3, 1e-2, 2), ("scalar", 2, 1e3, 3)]
# the first takes a minute and a half, all in the twin
SPACES += [pytest.param(*case, marks=pytest.mark.slow) for case in (("full", 3, 1e-4, 2), ("scalar", 3, 1e-2, 0))]


@pytest.mark.parametrize(("kind", "size", "variance", "seed"), SPACES)
def test_spaces(kind, size, variance, seed):
    dgn = make(3, [4] if seed % 2 else [3, 2], size, kind, variance, seed)
    assert_exact(dgn, rows_near_and_far(dgn, (3.0,), seed)[[0, -2]])


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_missing_entries(S, kind):
    dgn = make(S, [4], 5, kind, 0.05, seed=S)
    x = rows_near_and_far(dgn, (3.0,), S)[:3]
    x[0, 0] = x[1, 1:] = x[2, 2:4] = torch.nan
    one = ("scalar", "diagonal", "full").index(kind)  # in space the twin takes seconds a row
    assert_exact(dgn, x if S == 2 else x[one : one + 1])
    complete = dgn().sample((2,), seed=1)
    mixed = torch.cat((x[:1], complete[:1], x[1:2], complete[1:]))
    with torch.no_grad():
        together = dgn().log_prob(mixed)
        apart = torch.cat([dgn().log_prob(row[None]) for row in mixed])
    assert torch.allclose(together, apart, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("S", [2, 3])
def test_tolerance_bounds_the_error(S):
    net = girih.mlp([S, 12, 8, 3], seed=S)
    x = rows_near_and_far(girih.DGN(net, noise=0.05), (3.0, 30.0), S)
    with torch.no_grad():
        dense = girih.DGN(net, noise=0.05, tol=0.0)().evidence(x)
        assert (dense.left_out == 0.0).all()
        for tol in (1e-1, 1e-4, 1e-10):
            found = girih.DGN(net, noise=0.05, tol=tol)().evidence(x)
            error = -torch.expm1(found.log_prob - dense.log_prob)
            assert (found.left_out <= tol).all()
            assert (error <= found.left_out + 1e-9).all()
        assert (girih.DGN(net, noise=0.05, tol=1e-1)().evidence(x).left_out > 0.0).any()
    for tol in (-1.0, 1.0, float("nan"), "no"):
        with pytest.raises(girih.errors.ParameterError, match="tol"):
            girih.DGN(net, tol=tol)


@pytest.mark.parametrize("S", [2, 3])
def test_latents(S):
    """Density, mode and cell probabilities of posteriors, from the module itself."""
    dgn = make(S, [6], 3, "diagonal", 0.02, seed=4 + S)
    x = rows_near_and_far(dgn, (3.0,), 5)
    x[1, 0] = torch.nan
    post = dgn.posterior(x)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, len(x), S, dtype=torch.float64, generator=generator) * 2.0
    for n, row in enumerate(x):
        phi = residual(dgn, row, z[:, n])
        direct = constant(dgn, row) - 0.5 * phi.square().sum(1) - post.log_evidence[n]
        assert torch.allclose(post.log_prob(z)[:, n], direct, rtol=1e-12, atol=1e-9)
    peak = post.log_prob(post.mode)
    assert (post.log_prob(z).amax(0) <= peak).all()
    near = post.mode + 1e-4 * torch.randn(2000, len(x), S, dtype=torch.float64, generator=generator)
    assert (post.log_prob(near).amax(0) <= peak).all()
    probs = post.cell_probs()
    assert probs.is_sparse
    assert probs.shape == (len(x), len(dgn.partition))
    assert torch.allclose(probs.to_dense().sum(1), torch.ones(len(x), dtype=torch.float64))
    draws = post.sample((4000,), seed=0)
    cell = dgn.partition.locate(draws.reshape(-1, S)).reshape(4000, -1)
    counts = torch.stack([torch.bincount(c, minlength=probs.shape[1]) for c in cell.T]) / 4000
    assert (counts - probs.to_dense()).abs().max() < 0.035
    error = post.variance.sqrt() / math.sqrt(4000)
    assert ((draws.mean(0) - post.mean).abs() < 5 * error).all()
    assert torch.equal(draws, post.sample((4000,), seed=0))


@pytest.mark.parametrize("S", [2, 3])
def test_divergence_of_a_gaussian(S):
    dgn = make(S, [6], 3, "scalar", 0.05, seed=S)
    x = rows_near_and_far(dgn, (3.0,), 5)
    post, n = dgn.posterior(x), len(x)
    rng = np.random.default_rng(0)
    root = torch.as_tensor(0.3 * np.tril(rng.normal(size=(n, S, S)), -1)) + 0.4 * torch.eye(S, dtype=torch.float64)
    q = torch.distributions.MultivariateNormal(post.mean + 0.1, scale_tril=root)
    kl = post.kl(q)
    draws = 100_000
    torch.manual_seed(0)
    z = q.sample((draws,))
    terms = q.log_prob(z) - post.log_prob(z)
    assert ((terms.mean(0) - kl).abs() < 5 * terms.std(0) / math.sqrt(draws) + 1e-9).all()
    assert torch.allclose(dgn.elbo(x, q) + kl, post.log_evidence, rtol=1e-8, atol=1e-8)
    diagonal = torch.distributions.Normal(post.mean, torch.full_like(post.mean, 0.2))
    same = torch.distributions.MultivariateNormal(post.mean, 0.04 * torch.eye(S, dtype=torch.float64))
    assert torch.allclose(post.kl(diagonal), post.kl(same), rtol=1e-12)
    # the prior as q: no information in a row of which nothing is seen
    nothing = dgn.posterior(torch.full((1, 3), torch.nan))
    prior = torch.distributions.MultivariateNormal(torch.zeros(S, dtype=torch.float64), dgn.prior.detach())
    assert abs(float(nothing.kl(prior))) < 1e-12


@pytest.mark.parametrize("S", [2, 3])
def test_imputation(S):
    dgn = make(S, [5], 4, "full", 0.1, seed=S)
    x = dgn().sample((3,), seed=0)
    x[0, 1] = x[1, 2:] = torch.nan
    filled = dgn.impute(x)
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
    for n in (0, 1):
        # the gradient in a missing entry's place: E[x_m | x_o] maximises nothing, so check by sampling from the model
        post = dgn.posterior(x[n : n + 1])
        torch.manual_seed(0)
        z = post.sample((50_000,), seed=1)[:, 0]
        seen = ~x[n].isnan()
        noise = dgn.noise.detach()
        with torch.no_grad():
            g = dgn.net(z)
        gain = noise[~seen][:, seen] @ torch.linalg.inv(noise[seen][:, seen])
        expected = g[:, ~seen] + (x[n, seen] - g[:, seen]) @ gain.T
        error = 5 * expected.std(0) / math.sqrt(len(z))
        assert ((expected.mean(0) - filled[n, ~seen]).abs() < error).all()


def upper(low: np.ndarray, C: np.ndarray) -> float:
    """P(y >= low) of y ~ N(0, C)."""
    return float(multivariate_normal(cov=C).cdf(-low)) if len(low) else 1.0


def cone_moments(R: np.ndarray, low: np.ndarray, Sigma: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Integral, first and second moments of N(0, Sigma) on `R z >= low`: a term of EM-DGN's (14), (15) and (16)."""
    C = R @ Sigma @ R.T
    k = len(low)
    F, G = np.zeros(k), np.zeros((k, k))
    for i in range(k):
        for j in range(i, k):  # given y_u = low_u, u = i or (i, j)
            u = [i] if i == j else [i, j]
            rest = [m for m in range(k) if m not in u]
            gain = C[np.ix_(rest, u)] @ np.linalg.inv(C[np.ix_(u, u)])
            left = upper(low[rest] - gain @ low[u], C[np.ix_(rest, rest)] - gain @ C[np.ix_(u, rest)])
            value = multivariate_normal(cov=C[np.ix_(u, u)]).pdf(low[u]) * left
            if i == j:
                F[i] = value
            else:
                G[i, j] = G[j, i] = value
    H = G + np.diag((low * F - (C * G).sum(1)) / C.diagonal())
    mass = upper(low, C)
    return mass, Sigma @ R.T @ F, Sigma @ R.T @ H @ R @ Sigma + mass * Sigma


def simplex_moments(corners: np.ndarray, Sigma: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The same on a simplex, by inclusion and exclusion of its half-spaces (EM-DGN, Lemma 4)."""
    S = len(Sigma)
    rows = np.linalg.inv(np.concatenate((corners, np.ones((S + 1, 1))), 1)).T  # barycentric coordinates, >= 0 inside
    R, low = rows[:, :S], -rows[:, S]
    total = (0.0, np.zeros(S), np.zeros((S, S)))
    for J in (list(J) for k in range(S + 1) for J in itertools.combinations(range(S + 1), k)):
        sign = (-1.0) ** (len(J) + S)
        total = tuple(a + sign * b for a, b in zip(total, cone_moments(R[J], low[J], Sigma), strict=True))
    return total


@pytest.mark.parametrize("noise", ["scalar", "full"])
def test_the_posterior_is_that_of_the_papers_formulas(noise):
    """Theorem 1, Theorem 2 and Corollary 3 as the paper has them, with the errata: cones of triangles, with signs."""
    dgn = make(2, [3], 3, noise, 0.5, seed=1)
    x = rows_near_and_far(dgn, (1.0,), seed=2)[:3]
    cells = triangulate(dgn, box=12.0)
    found = dgn.posterior(x)
    Sx, Sz = dgn.noise.detach(), dgn.prior.detach().numpy()
    Sx = (Sx if Sx.ndim == 2 else torch.diag(Sx.expand(3))).numpy()
    A, b = (part.detach().numpy() for part in dgn.trace.affine(cells.mean(1)))
    inverse = np.linalg.inv(Sx)
    for n, row in enumerate(x.numpy()):
        total = (0.0, np.zeros(2), np.zeros((2, 2)))
        for corners, slope, offset in zip(cells.numpy(), A, b, strict=True):
            Sigma = np.linalg.inv(np.linalg.inv(Sz) + slope.T @ inverse @ slope)
            mu = Sigma @ slope.T @ inverse @ (row - offset)
            alpha = multivariate_normal(offset, Sx + slope @ Sz @ slope.T).pdf(row)
            phi, m1, m2 = simplex_moments(corners - mu, Sigma)
            second = m2 + np.outer(mu, m1) + np.outer(m1, mu) + phi * np.outer(mu, mu)
            part = (alpha * phi, alpha * (m1 + phi * mu), alpha * second)
            total = tuple(a + c for a, c in zip(total, part, strict=True))
        p, first, second = total
        assert found.log_evidence[n].item() == pytest.approx(math.log(p), abs=1e-8)
        np.testing.assert_allclose(found.mean[n], first / p, atol=1e-8)
        np.testing.assert_allclose(found.covariance[n], second / p - np.outer(first, first) / p**2, atol=1e-8)
