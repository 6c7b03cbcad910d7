"""The E-step's sums against posterior moments by quadrature."""

import pytest
import torch

import girih
from girih.inference import accumulate
from twins import LogJoint, f64, noise_of_kind, prior_of_dim, quadrature

HIDDEN = {1: [5, 4], 2: [4, 3], 3: [4]}
DRAWS = 8_000


@pytest.fixture(params=[f"{kind} {S}" for S in HIDDEN for kind in ("scalar", "diagonal", "full")])
def dgn(request) -> girih.DGN:
    kind, S = request.param.split()
    net, noise = girih.mlp([int(S), *HIDDEN[int(S)], 3], seed=1), noise_of_kind(kind, 0.2, 3, 0)
    return girih.DGN(net, noise=noise, prior=1.4 if S == "1" else prior_of_dim(int(S), 0))


def nodes(dgn: girih.DGN, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents `(M, S)` and their posterior weights: of a quadrature, or exact draws for S > 1."""
    if dgn.latent_dim == 1:
        q = quadrature(LogJoint(dgn.net, dgn.noise.detach(), dgn.prior.item(), row), dgn.partition.breakpoints)
        return q.z[:, None], q.weights
    z = dgn.posterior(row[None]).sample((DRAWS,), seed=0)[:, 0]
    return z, torch.full((DRAWS,), 1.0 / DRAWS, dtype=torch.float64)


def data(dgn: girih.DGN, missing: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = dgn().sample((6,), seed=0)
    x[1] += 2.0
    if missing:
        x[0, 0] = x[2, 1:] = x[3] = torch.nan
    return x, f64([1.0, 0.3, 2.0, 1.5, 0.0, 0.7])


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_sums_are_posterior_expectations(dgn, missing):
    x, weight = data(dgn, missing)
    model = dgn.model()
    (log_p, _), sums = accumulate(model, x, weight)
    noise = dgn.noise.detach()
    covariance = noise if noise.ndim == 2 else torch.diag(noise.expand(3))
    features = dgn.net[:-1]
    pieces, S = dgn.partition.piece_origins, dgn.latent_dim
    assert len(pieces) == len(dgn.partition)  # a piece is a cell here

    moments = torch.zeros(len(pieces), S + 1, S + 1, dtype=torch.float64)
    width = dgn.net[-1].in_features
    pull = torch.zeros(len(pieces), width, S + 1, dtype=torch.float64)
    pull_variance = torch.zeros_like(pull)
    outer = torch.zeros(3, width + 1, dtype=torch.float64)
    second = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    scatter = torch.zeros(3, 3, dtype=torch.float64)
    latent = torch.zeros(S, S, dtype=torch.float64)
    for row, g in zip(x, weight, strict=True):
        z, share = nodes(dgn, row)
        seen, hidden = ~row.isnan(), row.isnan()
        with torch.no_grad():
            h = torch.nn.functional.pad(features(z), (0, 1), value=1.0)
            e = row - dgn.net(z)
        inverse = torch.linalg.inv(covariance[seen][:, seen])
        e[:, hidden] = e[:, seen] @ (covariance[hidden][:, seen] @ inverse).T
        spare = torch.zeros(3, 3, dtype=torch.float64)
        left = covariance[hidden][:, hidden] - covariance[hidden][:, seen] @ inverse @ covariance[seen][:, hidden]
        spare[hidden.nonzero(), hidden.nonzero()[:, 0]] = left
        p = g * share
        cell = dgn.partition.locate(z)
        t = torch.cat((z - pieces[cell], torch.ones_like(z[:, :1])), 1)
        force = e @ torch.linalg.inv(covariance) @ dgn.net[-1].weight.detach()
        moments.index_add_(0, cell, p[:, None, None] * t[:, :, None] * t[:, None, :])
        pull.index_add_(0, cell, p[:, None, None] * force[:, :, None] * t[:, None, :])
        pull_variance.index_add_(0, cell, p[:, None, None] * g / DRAWS * (force[:, :, None] * t[:, None, :]).square())
        outer += (p[:, None] * e).T @ h
        second += (p[:, None] * h).T @ h
        scatter += (p[:, None] * e).T @ e + g * spare
        latent += (p[:, None] * z).T @ z

    def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        drawn = 0.05 * max(1.0, float(theirs.abs().max()))
        return torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9 if S == 1 else drawn)

    assert sums.weight.item() == pytest.approx(weight.sum().item())
    assert sums.log_likelihood.item() == pytest.approx((weight @ log_p).item())
    assert same(sums.moments, moments)
    if S == 1:
        assert same(sums.pull, pull)
    rare = 0.0 if S == 1 else 0.02  # cells in which no draw may fall
    assert ((sums.pull - pull).abs() <= 5.0 * pull_variance.sqrt() + 1e-9 + rare).all()
    assert same(sums.outer, outer)
    assert same(sums.features, second)
    assert same(sums.latent, latent)
    shaped = {0: scatter.trace(), 1: scatter.diagonal(), 2: scatter}[noise.ndim]
    assert same(sums.scatter, shaped)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_sums_of_parts_add_up(dgn, missing):
    x, weight = data(dgn, missing)
    model = dgn.model()
    (log_p, _), whole = accumulate(model, x, weight)
    ((first_log_p, _), first), ((second_log_p, _), second) = (
        accumulate(model, x[i], weight[i]) for i in (slice(2), slice(2, 6))
    )
    assert torch.allclose(torch.cat((first_log_p, second_log_p)), log_p, rtol=1e-13)
    joined = first + second
    for name, value in vars(whole).items():
        assert torch.allclose(getattr(joined, name), value, rtol=1e-11, atol=1e-12), name
