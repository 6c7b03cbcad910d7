"""Every kind of covariance against its dense matrix, and its M-step against a general-purpose optimiser."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import girih
from girih import Covariance
from girih.covariance import Unconstrained

D = 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


FACTOR = randn(D, 2, seed=1)
VARIANCES = torch.linspace(0.2, 0.9, D, dtype=torch.float64)
KINDS = {
    "scalar": Covariance.scalar(0.3, D),
    "diagonal": Covariance.diagonal(VARIANCES),
    "low_rank": Covariance.low_rank(FACTOR, VARIANCES),
    "full": Covariance.full(FACTOR @ FACTOR.mT + torch.diag(VARIANCES) + 0.1),
}


@pytest.fixture(params=KINDS)
def covariance(request):
    return KINDS[request.param]


def reduced(covariance, matrix):
    """What the kind sees of a scatter."""
    return {"scalar": matrix.trace(), "diagonal": matrix.diagonal()}.get(covariance.kind, matrix)


def value(covariance, matrix, weight):
    """The expected log-likelihood, dense."""
    dense = covariance.matrix
    return float(-0.5 * (weight * torch.logdet(dense) + torch.trace(torch.linalg.solve(dense, matrix))))


def floor_of(covariance, size):
    return torch.full(() if covariance.kind == "scalar" else (D,), size, dtype=torch.float64)


def test_products_are_those_of_the_matrix(covariance):
    C, M = covariance.matrix, randn(D, 3)
    assert torch.allclose(covariance.times(M), C @ M)
    assert torch.allclose(covariance.solve(M), torch.linalg.solve(C, M))
    assert torch.allclose(covariance.whiten_transposed(covariance.whiten(M)), torch.linalg.solve(C, M))
    assert covariance.log_det.item() == pytest.approx(torch.logdet(C).item(), abs=1e-12)
    assert torch.allclose(covariance.variances, C.diagonal()) and covariance.condition >= 1.0
    assert covariance.mean_variance.item() == pytest.approx(C.diagonal().mean().item())
    values, vectors = covariance.eigen()
    vectors = torch.eye(D, dtype=torch.float64) if vectors is None else vectors
    assert torch.allclose((vectors * values) @ vectors.mT, C)
    assert torch.allclose(covariance.marginal([0, 2, 3]).matrix, C[[0, 2, 3]][:, [0, 2, 3]])
    assert torch.allclose(covariance.marginal([4]).matrix, C[4:, 4:])


def test_draws_have_the_covariance(covariance):
    draws = covariance.sample(400_000, generator())
    assert torch.allclose(draws.mT @ draws / len(draws), covariance.matrix, atol=0.03)


def test_observed_entries_are_those_of_the_matrix(covariance):
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]) > 0
    seen, C, M = covariance.restrict(mask), covariance.matrix, randn(4, D, 2)
    weight = torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=torch.float64)
    total = torch.zeros_like(C)
    for n, o in enumerate(mask):
        own, of = C[o][:, o], M[n, o]
        solved = torch.linalg.solve(own, of)
        whole = torch.zeros(D, 2, dtype=torch.float64)
        whole[o] = solved
        assert torch.allclose(seen.solve(M)[n], whole)
        white = seen.whiten(M)[n]
        assert torch.allclose(white.mT @ white, of.mT @ solved) and not white[~o].any()
        assert torch.allclose(seen.complete(M)[n], C[:, o] @ solved)
        log_det = torch.logdet(own) if o.any() else torch.zeros(())
        assert seen.log_det[n].item() == pytest.approx(log_det.item(), abs=1e-12)
        total += weight[n] * (C - C[:, o] @ torch.linalg.solve(own, C[o]))
    assert torch.allclose(seen.conditional_covariance(weight), reduced(covariance, total))
    part = seen.take(torch.tensor([2, 0]))
    assert torch.allclose(part.whiten(M[[2, 0]]), seen.whiten(M)[[2, 0]]) and len(part.constant) == 2


def test_scatter_and_gradient(covariance):
    a, S = randn(7, D), randn(D, 9)
    assert torch.allclose(covariance.scatter((a, a), (2 * a, a)), reduced(covariance, 3 * a.mT @ a))
    S = S @ S.mT
    leaves = tuple(part.clone().requires_grad_() for part in covariance.tensors)
    dense = covariance.with_tensors(leaves).matrix
    objective = -0.5 * (9.0 * torch.logdet(dense) + torch.trace(torch.linalg.solve(dense, S)))
    for found, expected in zip(
        covariance.gradient(reduced(covariance, S), torch.tensor(9.0)),
        torch.autograd.grad(objective, leaves),
        strict=True,
    ):
        assert torch.allclose(found, expected)


@pytest.mark.parametrize("seed", range(2))
def test_m_step_against_an_optimiser(covariance, seed):
    """Repeated steps never lower the expected log-likelihood, and end where a general-purpose optimiser does."""
    truth = Covariance.low_rank(2.0 * randn(D, 2, seed=10 + seed), VARIANCES)
    draws, weight = truth.sample(300, generator(seed)), torch.tensor(300.0).double()
    S = draws.mT @ draws
    now, floor, values = covariance, floor_of(covariance, 1e-3), [value(covariance, S, weight)]
    for _ in range(60 if covariance.kind == "low_rank" else 1):
        now = now.m_step(reduced(covariance, S), weight, floor)
        values.append(value(now, S, weight))
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))

    def loss(vector):
        leaf = torch.as_tensor(vector).requires_grad_()
        dense = covariance.from_coordinates(leaf).matrix + 1e-3 * torch.eye(D, dtype=torch.float64)
        f = 0.5 * (weight * torch.logdet(dense) + torch.trace(torch.linalg.solve(dense, S)))
        return f.item(), torch.autograd.grad(f, leaf)[0].numpy()

    starts = [
        covariance.coordinates.numpy() + 0.3 * randn(len(covariance.coordinates), seed=k).numpy() for k in range(2)
    ]
    best = min(minimize(loss, s, jac=True, options={"maxiter": 2000, "gtol": 1e-9}).fun for s in starts)
    assert -values[-1] <= best + 1e-5 * abs(best)


def test_m_step_finds_the_way_from_a_factor_of_0():
    start = KINDS["diagonal"].to("low_rank", 2)
    S = KINDS["low_rank"].matrix
    found = start.m_step(S, torch.tensor(1.0).double(), torch.full((D,), 1e-6).double())
    for _ in range(200):
        found = found.m_step(S, torch.tensor(1.0).double(), torch.full((D,), 1e-6).double())
    assert torch.allclose(found.matrix, S, atol=1e-4)
    assert torch.allclose(KINDS["full"].to("low_rank", D).matrix, KINDS["full"].matrix, atol=1e-3)


def test_floor(covariance):
    floor = floor_of(covariance, 0.5)
    bounded = covariance.at_least(floor)
    assert torch.linalg.eigvalsh(bounded.matrix)[0] >= 0.5 - 1e-12
    assert torch.allclose(bounded.at_least(floor).matrix, bounded.matrix)


def test_coordinates_units_and_kinds(covariance):
    back = covariance.from_coordinates(covariance.coordinates)
    assert torch.allclose(back.matrix, covariance.matrix)
    assert len(covariance.information(torch.tensor(2.0).double())) == len(covariance.coordinates)
    scale = torch.full((D,), 3.0).double() if covariance.kind == "scalar" else VARIANCES
    assert torch.allclose(covariance.rescaled(scale).matrix, covariance.matrix * scale * scale[:, None])
    assert covariance.to(covariance.kind) is covariance
    assert torch.allclose(covariance.to("diagonal").variances, covariance.variances)
    assert covariance.to("scalar").mean_variance.item() == pytest.approx(covariance.mean_variance.item())
    assert torch.allclose(covariance.to("full").matrix, covariance.matrix)
    trained = Unconstrained(covariance, torch.tensor(1e-3))
    assert torch.allclose(trained().matrix, covariance.matrix, atol=1e-12)
    trained().matrix.sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


def test_free_parameters():
    counts = {name: covariance.parameter_count for name, covariance in KINDS.items()}
    assert counts == {"scalar": 1, "diagonal": 5, "low_rank": 5 + 10 - 1, "full": 15}
    dense = torch.autograd.functional.jacobian(
        lambda vector: KINDS["low_rank"].from_coordinates(vector).matrix.flatten(), KINDS["low_rank"].coordinates
    )
    assert int(torch.linalg.matrix_rank(dense)) == counts["low_rank"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Covariance.low_rank(torch.ones(3), torch.ones(3)), r"factor \(D, r\)"),
        (lambda: Covariance.low_rank(torch.ones(3, 4), torch.ones(3)), "r from 1 to D"),
        (lambda: Covariance.low_rank(torch.ones(3, 1), [1.0, 0.0, 1.0]), "positive variance"),
        (lambda: Covariance.low_rank(torch.full((3, 1), torch.inf), torch.ones(3)), "infinite"),
        (lambda: Covariance.full(torch.ones(2, 3)), r"\(D, D\)"),
        (lambda: Covariance.full(-torch.eye(2)), "smallest eigenvalue"),
        (lambda: KINDS["full"].to("wishart"), "kind must be one of diagonal, full, low_rank, scalar"),
        (lambda: girih.DGN(girih.mlp([1, 3, 2], seed=0), noise=KINDS["full"]), "of 5 coordinates, but D = 2"),
    ],
)
def test_what_is_no_covariance_is_refused(make, message):
    with pytest.raises(girih.errors.GirihError, match=message):
        make()


def test_of_takes_what_users_pass():
    assert [Covariance.of(v, 2).kind for v in (0.1, np.ones(2), np.eye(2), np.ones(1))] == [
        *("scalar", "diagonal", "full", "scalar")
    ]
    assert repr(KINDS["low_rank"]) == "Covariance(low_rank, D=5)"
