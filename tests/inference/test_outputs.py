"""Outputs other than Gaussian, beside quadrature, sums over all x, and differences."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn

import girih
from girih.errors import DerivativeError, NoClosedFormError, NoiseError, ParameterError, ShapeError
from girih.inference import Categorical, NegativeBinomial, StudentT
from girih.inference.cubature import _afforded
from girih.inference.cubature_rows import halved
from girih.inference.simplex_rules import both, interpolation, lattice, log_mean_bound, log_mean_exp, rule
from twins import entry_difference

NAN = float("nan")
F64 = torch.float64

OUTPUTS = {
    "bernoulli": ("bernoulli", None, lambda eta, _: td.Bernoulli(logits=eta)),
    "categorical": (Categorical([2, 3]), None, None),
    "poisson": ("poisson", None, lambda eta, _: td.Poisson(eta.clamp(max=600.0).exp())),
    "negative binomial": (
        NegativeBinomial(2.5),
        None,
        lambda eta, _: td.NegativeBinomial(2.5, logits=eta - math.log(2.5)),
    ),
    "laplace": ("laplace", 0.2, lambda eta, s: td.Laplace(eta, s)),
    "student": (StudentT(3.0), 0.1, lambda eta, s: td.StudentT(3.0, eta, s)),
    "mixed": ([("gaussian", 1), ("bernoulli", 1), (StudentT(3.0), 2), ("poisson", 1)], [0.2, 9.0, 0.1, 0.3, 9.0], None),
}


def model(name: str, net: nn.Module, **options: object) -> girih.DGN:
    likelihood, noise, _ = OUTPUTS[name]
    return girih.DGN(net, noise=noise, likelihood=likelihood, **options)


def log_likelihood(name: str, eta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`log p(x | z)` `(...,)` of one row by torch's distributions; NaN is left out."""
    seen = ~torch.isnan(x)
    if name == "categorical":
        parts = zip(eta.split((2, 3), -1), x, seen, strict=True)
        return sum(part.log_softmax(-1)[..., int(v)] for part, v, known in parts if known)
    if name == "mixed":
        columns = (
            td.Normal(eta[..., 0], 0.2),
            td.Bernoulli(logits=eta[..., 1]),
            td.StudentT(3.0, eta[..., 2], 0.1),
            td.StudentT(3.0, eta[..., 3], 0.3),
            td.Poisson(eta[..., 4].clamp(max=600.0).exp()),
        )
        return sum(column.log_prob(v) for column, v, known in zip(columns, x, seen, strict=True) if known)
    noise = None if OUTPUTS[name][1] is None else torch.tensor(OUTPUTS[name][1], dtype=F64)
    return OUTPUTS[name][2](eta[..., seen], noise).log_prob(x[seen]).sum(-1)


def by_quadrature(
    name: str, dgn: girih.DGN, x: torch.Tensor, reach: float = 14.0, panels: int = 1200
) -> tuple[float, float]:
    """`log p(x)` and `E[z | x]` for S = 1: Gauss-Legendre between kinks, and between where outputs are at x."""
    ends = [-reach, reach, *dgn.partition.breakpoints.tolist(), *np.linspace(-reach, reach, panels + 1)]
    if name == "laplace":  # its kinks
        grid = torch.linspace(-reach, reach, 200_001, dtype=F64)[:, None]
        value = (dgn.trace(grid).detach() - x).nan_to_num(1.0)
        rows, columns = ((value[1:] > 0) != (value[:-1] > 0)).nonzero(as_tuple=True)
        low, high = value[rows, columns], value[rows + 1, columns]
        ends += (grid[rows, 0] + (grid[1] - grid[0]) * low / (low - high)).tolist()
    ends = torch.tensor(sorted(e for e in set(ends) if abs(e) <= reach), dtype=F64)
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(24))
    half = 0.5 * ends.diff()
    z = (ends[:-1, None] + half[:, None] * (nodes + 1.0)).flatten()
    log_w = (half[:, None] * weights).log().flatten()
    value = log_w + log_likelihood(name, dgn.trace(z[:, None]).detach(), x) + td.Normal(0.0 * z, 1.0).log_prob(z)
    return value.logsumexp(0).item(), (value.softmax(0) @ z).item()


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_on_a_line_beside_quadrature(name, scale):
    net = girih.mlp([1, 8, 8, 5], activation="relu", seed=1)
    with torch.no_grad():
        net[-1].weight.mul_(scale if name not in ("poisson", "negative binomial", "mixed") else 0.5 * scale)
    dgn = model(name, net)
    x = dgn().sample((4,), seed=0)
    x[3, 1] = NAN
    post = dgn.posterior(x)
    for n, row in enumerate(x):
        log_p, mean = by_quadrature(name, dgn, row)
        assert post.log_evidence[n].item() == pytest.approx(log_p, abs=1e-8 * max(2.0, abs(log_p)))
        assert post.mean[n, 0].item() == pytest.approx(mean, abs=1e-7)
    assert (post.left_out <= 1e-10).all()
    assert (post.error < 1e-6).all()
    assert torch.equal(dgn().log_prob(x).detach(), post.log_evidence)


@pytest.mark.parametrize(("S", "pixels"), [(1, 784), (2, 784), (3, 30)])
def test_peaked_pixels_of_coordinates_that_do_not_meet(S, pixels):
    # each pixel depends on one latent alone, through a kink: p(x) is a product of integrals over lines
    generator = torch.Generator().manual_seed(0)
    lines = [girih.mlp([1, 3, pixels // S], activation="relu", seed=s) for s in range(S)]
    for line in lines:
        with torch.no_grad():
            line[-1].weight.mul_(4.0)
            line[0].bias.uniform_(-0.5, 0.5, generator=generator)
    hidden = nn.Linear(S, 3 * S).double()
    head = nn.Linear(3 * S, S * (pixels // S)).double()
    with torch.no_grad():
        hidden.weight.copy_(torch.block_diag(*(line[0].weight for line in lines)))
        hidden.bias.copy_(torch.cat([line[0].bias for line in lines]))
        head.weight.copy_(torch.block_diag(*(line[-1].weight for line in lines)))
        head.bias.copy_(torch.cat([line[-1].bias for line in lines]))
    dgn = girih.DGN(nn.Sequential(hidden, nn.ReLU(), head), likelihood="bernoulli")
    x = dgn().sample((2,), seed=1)
    expected = [
        sum(
            by_quadrature("bernoulli", girih.DGN(line, likelihood="bernoulli"), part)[0]
            for line, part in zip(lines, row.chunk(S), strict=True)
        )
        for row in x
    ]
    found = dgn().evidence(x)
    error = (found.log_prob.detach() - torch.tensor(expected, dtype=F64)).abs()
    assert (error < 1e-6).all()
    assert (error <= found.rounding + found.left_out).all()


def test_all_x_add_up_to_one():
    bits = torch.tensor(list(product([0.0, 1.0], repeat=3)), dtype=F64)
    net = girih.mlp([2, 6, 3], activation="relu", seed=0)
    for prior in (
        None,
        girih.Uniform(-1.0, 2.0),
        girih.GaussianMixturePrior([1.0, 2.0], [[-1.0, 0.0], [1.0, 1.0]], 0.3),
    ):
        p = girih.DGN(net, prior=prior, likelihood="bernoulli")()
        log_p = p.log_prob(bits).detach()
        assert log_p.logsumexp(0).item() == pytest.approx(0.0, abs=1e-7)
        some = p.log_prob(torch.tensor([[1.0, NAN, 0.0]], dtype=F64)).item()
        assert log_p[[4, 6]].logsumexp(0).item() == pytest.approx(some, abs=1e-7)
        assert p.log_prob(torch.full((1, 3), NAN, dtype=F64)).item() == pytest.approx(0.0, abs=1e-8)
        torch.testing.assert_close(p.mean, log_p.exp() @ bits, rtol=0.0, atol=1e-7)
    p = girih.DGN(girih.mlp([1, 6, 4], seed=0), likelihood="categorical")()
    assert p.log_prob(torch.arange(4)).logsumexp(0).item() == pytest.approx(0.0, abs=1e-8)
    for likelihood in ("poisson", NegativeBinomial(3.0)):
        net = girih.mlp([1, 6, 1], seed=1)
        p = girih.DGN(net, likelihood=likelihood, prior=girih.Uniform(-1.0, 1.0))()
        assert p.log_prob(torch.arange(120.0)[:, None]).logsumexp(0).item() == pytest.approx(0.0, abs=1e-7)
    for name, x in (("laplace", torch.linspace(-3.0, 3.0, 121)), ("student", torch.linspace(-60.0, 60.0, 4001))):
        density = model(name, girih.mlp([1, 6, 1], seed=1))().log_prob(x[:, None]).detach().exp()
        assert torch.trapezoid(density, x.double()).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("S", [1, 2])
def test_derivatives_are_right(name, S):
    dgn = model(name, girih.mlp([S, 5, 5], activation="leaky_relu", seed=1), prior=1.3)
    x = dgn().sample((3,), seed=1)
    x[2, 0] = NAN
    dgn().log_prob(x).sum().backward()
    step = 1e-5
    for parameter in dgn.parameters():
        exact = entry_difference(lambda: dgn().log_prob(x).sum(), parameter, step)
        assert parameter.grad.flatten()[0].item() == pytest.approx(exact, rel=2e-4, abs=1e-5)
    if not dgn.output.continuous:
        with pytest.raises(DerivativeError, match="discrete"):
            dgn().score(x)
        return
    score, there = dgn().score(x), x.clone()
    way = 1.0 - 2.0 * x[:, 1] if name == "bernoulli" else torch.ones(3, dtype=F64)
    there[:, 1] += step * way
    difference = (dgn().log_prob(there) - dgn().log_prob(x)).detach() / (step * way)
    torch.testing.assert_close(score[:, 1], difference, rtol=1e-3, atol=1e-3)
    assert score[2, 0] == 0.0


def test_second_derivatives_are_refused():
    dgn = model("student", girih.mlp([1, 4, 2], seed=0))
    x = torch.zeros(2, 2, dtype=F64, requires_grad=True)
    (score,) = torch.autograd.grad(dgn().log_prob(x).sum(), x, create_graph=True)
    with pytest.raises(DerivativeError):
        score.sum().backward()


@pytest.mark.parametrize("name", OUTPUTS)
def test_posteriors_draw_what_they_say(name):
    dgn = model(name, girih.mlp([2, 6, 5], activation="relu", seed=2))
    x = dgn().sample((2,), seed=3)
    x[1, 1] = NAN
    post = dgn.posterior(x)
    z = post.sample((3000,), seed=0)
    assert ((z.mean(0) - post.mean).abs() < 5.0 * (post.variance / 3000).sqrt()).all()
    log_q = post.log_prob(z)
    assert ((-log_q.mean(0) - post.entropy()).abs() < 5.0 * log_q.std(0) / math.sqrt(3000)).all()
    assert (post.log_prob(post.mode) >= log_q.amax(0)).all()
    torch.testing.assert_close(post.cell_probs().to_dense().sum(1), torch.ones(2, dtype=F64))
    direct = torch.stack([log_likelihood(name, dgn.trace(z[:, n]).detach(), x[n]) for n in range(2)], 1)
    prior = td.Normal(0.0, 1.0).log_prob(z).sum(2)
    torch.testing.assert_close(log_q, direct + prior - post.log_evidence, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["bernoulli", "laplace", "student"])
def test_bound_and_divergence_add_up(name):
    dgn = model(name, girih.mlp([1, 6, 4], seed=2))
    x = dgn().sample((3,), seed=0)
    post = dgn.posterior(x)
    q = td.Normal(post.mean + 0.1, 0.7 * post.variance.sqrt())
    torch.testing.assert_close(dgn.elbo(x, q) + post.kl(q), post.log_evidence, rtol=1e-9, atol=1e-9)
    torch.manual_seed(0)
    z = q.sample((50_000,))
    draws = (q.log_prob(z)[..., 0] - post.log_prob(z)).detach()
    assert ((draws.mean(0) - post.kl(q)).abs() < 5.0 * draws.std(0) / math.sqrt(50_000)).all()


def test_missing_entries_are_completed_beside_draws():
    dgn = model("poisson", girih.mlp([2, 6, 5], seed=2))
    x = dgn().sample((3,), seed=0)
    x[:, 2] = NAN
    filled, draws = dgn.impute(x), dgn.impute(x, draws=4000, seed=0)
    assert torch.equal(filled[:, :2], x[:, :2])
    spread = draws[..., 2].std(0) / math.sqrt(4000)
    assert ((draws[..., 2].mean(0) - filled[:, 2]).abs() < 5.0 * spread).all()
    with pytest.raises(NoClosedFormError):
        dgn.impute(x, return_std=True)


@pytest.mark.parametrize("name", ["bernoulli", "student"])
def test_what_is_left_out_is_bounded(name):
    net = girih.mlp([2, 8, 5], activation="relu", seed=4)
    x = model(name, net)().sample((6,), seed=0)
    full = model(name, net)().log_prob(x).detach()
    for tol in (1e-2, 1e-5):
        found = model(name, net, tol=tol)().evidence(x)
        part = -torch.expm1(found.log_prob.detach() - full)
        assert (part <= found.left_out + found.rounding).all()
        assert (part >= -1e-7).all()
        assert (found.left_out <= tol).all()


def test_columns_of_every_kind_beside_quadrature():
    kinds = [("laplace", 1), (Categorical([3, 2]), 2), (NegativeBinomial(2.0), 1), ("gaussian", 1)]
    dgn = girih.DGN(girih.mlp([1, 6, 8], activation="relu", seed=3), noise=[0.2, 1.0, 1.0, 1.0, 0.1], likelihood=kinds)
    x = dgn().sample((4,), seed=0)
    x[1, 0] = x[2, 1] = x[3, 4] = NAN
    ends = [*torch.linspace(-12.0, 12.0, 1201).tolist(), *dgn.partition.breakpoints.tolist()]
    grid = torch.linspace(-12.0, 12.0, 400_001, dtype=F64)[:, None]
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(16))
    for row in x:
        off = (dgn.trace(grid).detach()[:, 0] - row[0].nan_to_num(1e9)) > 0
        kinks = grid[1:, 0][off[1:] != off[:-1]]
        low = 0.5 * torch.tensor(sorted({*ends, *(kinks - 3e-5).tolist()}), dtype=F64)
        z = (low[1:, None] + low[:-1, None] + low.diff()[:, None] * nodes).flatten()
        eta = dgn.trace(z[:, None]).detach()
        of_columns = [
            td.Laplace(eta[:, 0], 0.2).log_prob(row[0].nan_to_num(0.0)),
            eta[:, 1:4].log_softmax(-1)[:, int(row[1].nan_to_num(0.0))],
            eta[:, 4:6].log_softmax(-1)[:, int(row[2].nan_to_num(0.0))],
            td.NegativeBinomial(2.0, logits=eta[:, 6] - math.log(2.0)).log_prob(row[3]),
            td.Normal(eta[:, 7], 0.1).log_prob(row[4].nan_to_num(0.0)),
        ]
        value = sum(part for part, v in zip(of_columns, row, strict=True) if not torch.isnan(v))
        log_w = (low.diff()[:, None] * weights).log().flatten()
        exact = (value + td.Normal(0.0 * z, 1.0).log_prob(z) + log_w).logsumexp(0)
        assert dgn().log_prob(row[None]).item() == pytest.approx(exact.item(), abs=1e-6)


def test_mixed_columns_agree_with_gaussian_noise_in_closed_form():
    net = girih.mlp([2, 8, 3], activation="relu", seed=0)
    closed = girih.DGN(net, noise=[0.04, 0.01, 0.09])
    x = closed().sample((5,), seed=0)
    x[1, 2] = NAN
    mixed = girih.DGN(net, noise=[0.2, 0.1, 0.3], likelihood=[("gaussian", 3)])
    torch.testing.assert_close(mixed().log_prob(x), closed().log_prob(x), rtol=0.0, atol=1e-7)
    torch.testing.assert_close(mixed.posterior(x).mean, closed.posterior(x).mean, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(mixed.impute(x), closed.impute(x), rtol=0.0, atol=1e-6)


def test_mixed_columns_that_cannot_be_are_refused_by_name():
    net = girih.mlp([1, 4, 3], seed=0)
    for parts, match in (
        ([], "need parts"),
        ([("bernoulli", 2, 1)], "pairs such as"),
        ([("categorical", 1)], "their numbers"),
        ([(Categorical([2, 2]), 1)], "has 2 columns"),
        ([([("gaussian", 1)], 1)], "one likelihood"),
        ([("gaussian", 0)], "number of columns"),
    ):
        with pytest.raises(ParameterError, match=match):
            girih.DGN(net, likelihood=parts)
    with pytest.raises(ShapeError, match="needs 2 outputs"):
        girih.DGN(net, likelihood=[("gaussian", 1), ("bernoulli", 1)])
    dgn = girih.DGN(net, likelihood=[("gaussian", 1), ("bernoulli", 2)])
    with pytest.raises(ParameterError, match='likelihood="bernoulli"; row 0, column 2 holds 3'):
        dgn().log_prob([[7.0, 1.0, 3.0]])


def test_rows_that_the_model_finds_absurd():
    # -12,000 nats: the posterior is where the prior has no mass to speak of
    net = nn.Linear(1, 40).double()
    with torch.no_grad():
        net.weight.fill_(0.05)
        net.bias.fill_(-300.0)
    dgn = girih.DGN(net, likelihood="bernoulli")
    found = dgn().evidence(torch.ones(1, 40, dtype=F64))
    # log sigmoid(eta) = eta here, so that p(x) is the moment generating function of z
    assert found.log_prob.item() == pytest.approx(-300.0 * 40 + 0.5 * (0.05 * 40) ** 2, abs=1e-6)
    assert found.left_out.item() <= 1e-9


@pytest.mark.parametrize("name", OUTPUTS)
def test_steep_networks(name):
    # logits, and logs of rates, up to 1500 inside of the box of the prior
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 5)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[0].bias.fill_(0.01)
        net[2].weight.copy_(100.0 * torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [0.5, -1.0], [0.0, 1.0]]))
        net[2].bias.zero_()
    dgn, z = model(name, net), torch.tensor([[0.02], [-0.03]], dtype=F64)
    scale = dgn.noise_tensors[0].detach() if dgn.noise_tensors else None
    x = dgn.output.sample(dgn.trace(z).detach(), scale, torch.Generator().manual_seed(0))
    found = dgn().evidence(x)
    for n, row in enumerate(x):
        assert found.log_prob[n].item() == pytest.approx(by_quadrature(name, dgn, row, panels=20_000)[0], abs=1e-7)
    assert (found.left_out <= 1e-9).all()
    assert (found.rounding < 1e-6).all()


@pytest.mark.parametrize("name", OUTPUTS)
def test_saving_and_loading(name, tmp_path):
    dgn = model(name, girih.mlp([1, 5, 5], seed=0), prior=girih.Uniform(-2.0, 1.0))
    x = dgn().sample((3,), seed=0)
    girih.save(dgn, tmp_path / "model")
    loaded = girih.load(tmp_path / "model")
    assert loaded.output == dgn.output
    assert torch.equal(loaded().log_prob(x), dgn().log_prob(x))


def test_what_cannot_be_is_refused_by_name():
    net = girih.mlp([1, 4, 3], seed=0)
    dgn = girih.DGN(net, likelihood="bernoulli")
    assert repr(dgn()) == f"OutputDistribution(S=1, D=3, cells={len(dgn().partition)}, likelihood=bernoulli)"
    for call in (lambda: dgn.model(), lambda: dgn.noise_covariance, lambda: dgn.noise):
        with pytest.raises(ParameterError, match="bernoulli"):
            call()
    with pytest.raises(ParameterError, match="row 0, column 1"):
        dgn().log_prob([[0.0, 2.0, 1.0]])
    with pytest.raises(ParameterError, match="no noise"):
        girih.DGN(net, noise=0.1, likelihood="bernoulli")
    with pytest.raises(NoiseError):
        girih.DGN(net, noise=-0.1, likelihood="laplace")
    with pytest.raises(ShapeError):
        girih.DGN(net, noise=[0.1, 0.2], likelihood="student_t")
    with pytest.raises(ShapeError, match="add up"):
        girih.DGN(net, likelihood=Categorical([2, 2]))
    with pytest.raises(ParameterError, match="total_count"):
        girih.DGN(net, likelihood="negative_binomial")
    with pytest.raises(ParameterError, match="likelihood must be"):
        girih.DGN(net, likelihood="cauchy")
    with pytest.raises(ParameterError, match="whole numbers"):
        girih.DGN(net, likelihood="categorical")().log_prob([1.5])
    with pytest.raises(NoClosedFormError):
        _ = dgn().variance


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_training_never_ends_above_its_start(name, optimizer):
    truth = model(name, girih.mlp([1, 4, 5], activation="relu", seed=3))
    x = truth().sample((8 if name == "laplace" else 30,), seed=0)
    x[0, 1] = NAN
    dgn = model(name, girih.mlp([1, 4, 5], seed=5), prior=girih.Uniform(-2.0, 2.0) if optimizer == "adam" else None)
    before = dgn().log_prob(x).mean().item()
    result = girih.train(dgn, x, optimizer=optimizer, max_epochs=20 if optimizer == "adam" else 3, progress=False)
    after = dgn().log_prob(x).mean().item()
    assert after > before
    assert result.log_likelihood == pytest.approx(after, abs=1e-6)
    if dgn.noise_tensors:
        assert (dgn.noise > 0.0).all()


@pytest.mark.parametrize("S", [1, 2, 3])
def test_bounds_on_integrals_of_exponentials_hold_and_are_near(S):
    generator = torch.Generator().manual_seed(S)
    points, weights = rule(S, 60 if S < 3 else 30)
    for size in (0.0, 1e-3, 1.0, 8.0, 25.0):
        heights = size * torch.randn(200, S + 1, dtype=F64, generator=generator)
        exact = ((heights @ points.mT).exp() @ weights).log()  # of planes: they bound what is below them
        bound = log_mean_bound(heights)
        assert (bound >= exact - 1e-9).all()
        assert (bound <= heights.amax(1) + 1e-12).all()
        assert float((bound - exact).max()) < 3.0
    halves = halved(heights, torch.zeros(200, dtype=torch.long), torch.ones(200, dtype=torch.long))
    whole = (heights @ points.mT).exp() @ weights
    parts = (halves @ points.mT).exp() @ weights
    assert torch.allclose(0.5 * (parts[:200] + parts[200:]), whole, rtol=1e-3)


@pytest.mark.parametrize("S", [2, 3])
def test_polynomials_through_a_lattice(S):
    points = both(S, 9)
    for powers in product(range(9), repeat=S):
        if sum(powers) <= 8:
            at, there = (
                math.prod(z[:, k + 1] ** e for k, e in enumerate(powers)) + 0.0 * z[:, 0] for z in (lattice(S), points)
            )
            assert torch.allclose(interpolation(S, 9) @ at, there, atol=1e-12)
    assert float(interpolation(S, 9).abs().sum(1).max()) < 60.0


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("name", ["bernoulli", "poisson", "student", "missing"])
def test_interpolated_integrands_give_the_same_numbers(S, name, monkeypatch):
    kind = {"student": StudentT(3.0), "missing": "bernoulli"}.get(name, name)
    net = girih.mlp([S, 4, 40], activation="relu", seed=1)
    dgn = girih.DGN(net, noise=0.5 if name == "student" else None, likelihood=kind)
    x = dgn().sample((2,), seed=0)
    if name == "missing":
        x[0, ::3] = NAN
    used = dgn().evidence(x)
    monkeypatch.setattr(girih.inference.cubature, "_MANY", math.inf)
    plain = dgn().evidence(x)
    assert torch.allclose(used.log_prob, plain.log_prob, atol=1e-7, rtol=0.0)
    assert (used.rounding < 1.1e-6).all()
    assert (used.left_out <= 1e-10).all()


def test_simplices_that_are_cut_too_often_are_an_error(monkeypatch):
    dgn = girih.DGN(girih.mlp([1, 4, 3], seed=0), likelihood="bernoulli")
    monkeypatch.setattr(girih.inference.cubature_mesh, "_ROUNDS", 1)
    with pytest.raises(NoClosedFormError, match="were cut 1 times"):
        dgn().log_prob(torch.tensor([[1.0, 0.0, 1.0]]))


def test_errors_are_let_stand_in_order_of_size():
    row = torch.tensor([0, 0, 0, 1, 1])
    error = torch.tensor([1e-3, 1e-12, 1e-5, 1e-7, 0.0], dtype=F64).log()
    budget, spent = torch.tensor([1e-3, 1e-7], dtype=F64).log(), torch.full((2,), -math.inf, dtype=F64)
    assert _afforded(row, error, budget, spent).tolist() == [False, True, True, False, True]
    assert _afforded(row, error, budget, budget).tolist() == [False, False, False, False, True]


def test_sums_of_many_logistic_terms():
    eta = torch.tensor([-800.0, -40.0, -1e-3, 0.0, 3.0, 40.0, 800.0], dtype=F64).repeat(400)
    x = torch.rand(len(eta), dtype=F64, generator=torch.Generator().manual_seed(0))
    output = girih.inference.Bernoulli()
    slow = (x * eta + torch.nn.functional.logsigmoid(-eta)).sum()
    assert output.log_density(output.observe(x[None], None), eta[None], None).item() == pytest.approx(
        slow.item(), rel=1e-14
    )
    hidden = x.where(torch.arange(len(x)) % 2 == 0, NAN)
    slow = (x * eta + torch.nn.functional.logsigmoid(-eta))[::2].sum()
    assert output.log_density(output.observe(hidden[None], None), eta[None], None).item() == pytest.approx(
        slow.item(), rel=1e-14
    )


@pytest.mark.parametrize("S", [1, 2, 3])
def test_means_of_exponentials_over_simplices(S):
    generator = torch.Generator().manual_seed(S)
    points, weights = rule(S, 24)
    for size in (0.0, 1e-9, 1e-3, 0.5, 1.0, 4.0):
        heights = size * torch.randn(300, S + 1, dtype=F64, generator=generator) - 700.0
        exact = (heights @ points.mT + 700.0).exp() @ weights
        assert torch.allclose(log_mean_exp(heights) + 700.0, exact.log(), atol=2e-13, rtol=0.0)
    far = torch.cat((torch.zeros(1, dtype=F64), torch.full((S,), -1e3, dtype=F64)))  # a corner alone counts
    assert log_mean_exp(far[None]).item() == pytest.approx(math.log(math.factorial(S) / 1e3**S), abs=1e-12)


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name not in {"student", "mixed"}])
@pytest.mark.parametrize("S", [1, 2])
def test_certified_bounds(name, S):
    prior = girih.Uniform(-2.0, 1.5) if name == "categorical" else None
    dgn = model(name, girih.mlp([S, 4, 5], activation="relu", seed=S), prior=prior)
    x = dgn().sample((3,), seed=0)
    x[1, 1], x[2] = NAN, NAN
    width = 1e-3 if S == 1 else 0.03
    lower, upper = dgn().bounds(x, width=width)
    exact = dgn().log_prob(x).detach()
    assert ((lower <= exact) & (exact <= upper)).all()
    assert (upper - lower <= width).all()
    wide = dgn().bounds(x, width=1.0, most=1)
    assert ((wide[0] <= lower) & (upper <= wide[1])).all()
    if S == 1 and prior is None:
        for n in (0, 1):
            assert lower[n].item() <= by_quadrature(name, dgn, x[n])[0] <= upper[n].item()


def test_certified_bounds_of_three_latents_of_mixtures_and_far_out():
    mixture = girih.GaussianMixturePrior([1.0, 2.0], [[-1.0] * 3, [1.0] * 3], 0.3)
    for prior in (None, mixture):
        p = girih.DGN(girih.mlp([3, 4, 6], seed=1), likelihood="poisson", prior=prior)()
        x = p.sample((2,), seed=0)
        lower, upper = p.bounds(x, width=0.5)
        assert ((lower <= p.log_prob(x)) & (p.log_prob(x) <= upper)).all()
        assert (upper - lower <= 0.5).all()
    net = nn.Linear(1, 40).double()
    with torch.no_grad():
        net.weight.fill_(0.05)
        net.bias.fill_(-300.0)
    lower, upper = girih.DGN(net, likelihood="bernoulli")().bounds(torch.ones(1, 40, dtype=F64), width=1e-3)
    assert lower.item() <= -300.0 * 40 + 0.5 * (0.05 * 40) ** 2 <= upper.item() <= lower.item() + 1e-3
    with pytest.raises(NoClosedFormError, match="concave"):
        girih.DGN(girih.mlp([1, 3, 2], seed=0), likelihood="student_t")().bounds([[0.0, 1.0]])
