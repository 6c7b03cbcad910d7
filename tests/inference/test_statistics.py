"""The E-step's sums against posterior moments by quadrature."""

import pytest
import torch

import girih
from girih.inference.statistics import accumulate
from twins import LogJoint, f64, noise_of_kind, quadrature


@pytest.fixture(params=["scalar", "diagonal", "full"])
def dgn(request) -> girih.DGN:
    return girih.DGN(girih.mlp([1, 5, 4, 3], seed=1), noise=noise_of_kind(request.param, 0.2, 3, 0), prior=1.4)


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
    cells = len(dgn.partition)

    moments = torch.zeros(cells, 2, 2, dtype=torch.float64)
    pull = torch.zeros(cells, 4, 2, dtype=torch.float64)
    outer = torch.zeros(3, 5, dtype=torch.float64)
    second = torch.zeros(5, 5, dtype=torch.float64)
    scatter = torch.zeros(3, 3, dtype=torch.float64)
    latent = f64(0.0)
    for row, g, log_prob in zip(x, weight, log_p, strict=True):
        q = quadrature(LogJoint(dgn.net, noise, 1.4, row), dgn.partition.breakpoints)
        assert log_prob.item() == pytest.approx(q.log_prob.item(), rel=1e-11)
        seen, hidden = ~row.isnan(), row.isnan()
        with torch.no_grad():
            h = torch.nn.functional.pad(features(q.z[:, None]), (0, 1), value=1.0)
            e = row - dgn.net(q.z[:, None])
        inverse = torch.linalg.inv(covariance[seen][:, seen])
        e[:, hidden] = e[:, seen] @ (covariance[hidden][:, seen] @ inverse).T
        spare = torch.zeros(3, 3, dtype=torch.float64)
        left = covariance[hidden][:, hidden] - covariance[hidden][:, seen] @ inverse @ covariance[seen][:, hidden]
        spare[hidden.nonzero(), hidden.nonzero()[:, 0]] = left
        p = g * q.weights
        cell = dgn.partition.locate(q.z)
        t = torch.stack((q.z - dgn.partition.origins[cell, 0], torch.ones_like(q.z)), 1)
        force = e @ torch.linalg.inv(covariance) @ dgn.net[-1].weight.detach()
        moments.index_add_(0, cell, p[:, None, None] * t[:, :, None] * t[:, None, :])
        pull.index_add_(0, cell, p[:, None, None] * force[:, :, None] * t[:, None, :])
        outer += (p[:, None] * e).T @ h
        second += (p[:, None] * h).T @ h
        scatter += (p[:, None] * e).T @ e + g * spare
        latent += p @ q.z.square()

    close = {"rtol": 1e-9, "atol": 1e-9}
    assert sums.weight.item() == pytest.approx(weight.sum().item())
    assert sums.log_likelihood.item() == pytest.approx((weight @ log_p).item())
    assert torch.allclose(sums.moments, moments, **close)
    assert torch.allclose(sums.pull, pull, **close)
    assert torch.allclose(sums.outer, outer, **close)
    assert torch.allclose(sums.features, second, **close)
    assert torch.allclose(sums.latent, latent.reshape(1, 1), **close)
    shaped = {0: scatter.trace(), 1: scatter.diagonal(), 2: scatter}[noise.ndim]
    assert torch.allclose(sums.scatter, shaped, **close)


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
