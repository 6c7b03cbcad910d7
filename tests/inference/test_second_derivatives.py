"""Second derivatives of `log p` in x, score and denoiser, and the derivatives that are refused."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.functional import hessian
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import girih
from effort import cases
from girih.errors import DerivativeError, NonFiniteError
from twins import LogJoint, breakpoints, f64, noise_of_kind, prior_of_dim, quadrature

# torch itself, at the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")

KINDS = ("scalar", "diagonal", "full")


def model(seed: int, S: int, D: int, kind: str, size: float = 0.3) -> girih.DGN:
    activation = ("relu", "leaky_relu", "abs")[seed % 3]
    net = girih.mlp([S, 4 if S == 3 else 6, D], activation=activation, seed=seed)
    return girih.DGN(net, noise=noise_of_kind(kind, size, D, seed), prior=prior_of_dim(S, seed))


def rows(dgn: girih.DGN, seed: int, missing: bool) -> torch.Tensor:
    x = dgn().sample((3,), seed=seed)
    x[1] += 2.0
    if missing:
        x[0, 0] = x[2, 1:] = torch.nan
    return x


def curvatures(dgn: girih.DGN, x: torch.Tensor) -> torch.Tensor:
    """By double backward, `(N, D, D)`."""
    p, x = dgn(), x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(p.log_prob(x).sum(), x, create_graph=True)
    columns = [torch.autograd.grad(slope[:, d].sum(), x, retain_graph=True)[0] for d in range(x.shape[1])]
    return torch.stack(columns, 1).detach()


def differences(dgn: girih.DGN, x: torch.Tensor, step: float = 1e-4) -> torch.Tensor:
    """Central differences of fourth order of the score, `(N, D, D)`."""
    p, columns = dgn(), []
    for unit in step * torch.eye(x.shape[1], dtype=torch.float64):
        near, far = (p.score(x + k * unit) - p.score(x - k * unit) for k in (1, 2))
        columns.append((8 * near - far) / (12 * step))
    return torch.stack(columns, 2).detach()


def worst_gap(dgn: girih.DGN, x: torch.Tensor) -> float:
    fast, slow = curvatures(dgn, x), differences(dgn, x)
    assert (fast - fast.mT).abs().max() <= 1e-9 * fast.abs().max()
    return float((fast - slow).abs().max() / slow.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("S", [1, 2, 3])
def test_hessians_are_differences(S, kind, missing):
    dgn = model(S, S, 3, kind)
    x = rows(dgn, S, missing)
    assert worst_gap(dgn, x) <= 1e-6
    hidden = x.isnan()
    found = curvatures(dgn, x)
    assert (found[hidden] == 0).all() and (found.mT[hidden] == 0).all()


@pytest.mark.fuzz
def test_hessians_of_random_models_are_differences():
    worst = 0.0
    for case in range(cases(6, 1500)):
        S, D, size = 1 + case % 3, 2 + case % 4, 10.0 ** (-(case % 5) / 2)
        dgn = model(case, S, D, KINDS[case // 3 % 3], size)
        x = rows(dgn, case, missing=case % 2 == 0)
        worst = max(worst, worst_gap(dgn, x))
        assert worst <= 1e-5, case
    print(f"worst relative gap {worst:.1e}")


def test_a_linear_generator_has_the_curvature_of_a_gaussian():
    torch.manual_seed(0)
    net = nn.Linear(2, 3).double()
    noise = noise_of_kind("full", 1e-4, 3, 0)
    dgn = girih.DGN(nn.Sequential(net), noise=noise, prior=prior_of_dim(2, 0))
    precision = torch.linalg.inv(noise + net.weight @ prior_of_dim(2, 0) @ net.weight.T).detach()
    x = f64([[0.1, 0.2, 0.3], [1.5, -1.0, 0.5]])
    found = curvatures(dgn, x)
    assert (found + precision).abs().max() <= 1e-9 * precision.abs().max()
    seen = precision[:2, :2] - precision[:2, 2:] @ precision[2:, :2] / precision[2, 2]  # of the first two alone
    x[:, 2] = torch.nan
    assert (curvatures(dgn, x)[:, :2, :2] + seen).abs().max() <= 1e-9 * precision.abs().max()


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_score_and_denoiser_are_integrals(missing):
    """Against quadrature over z."""
    dgn = model(3, 1, 3, "full")
    p, x, knots = dgn(), rows(dgn, 0, missing), breakpoints(dgn.net)
    score, mean = p.score(x).detach(), p.denoise(x).detach()
    for n, row in enumerate(x):
        nodes = quadrature(LogJoint(dgn.net, dgn.noise.detach(), float(dgn.prior.detach()), row), knots)
        expected = nodes.weights @ dgn.net(nodes.z[:, None]).detach()
        assert torch.allclose(mean[n], expected, rtol=1e-9, atol=1e-10)
        seen = ~row.isnan()
        slope = -torch.linalg.solve(dgn.noise.detach()[seen][:, seen], (row - expected)[seen])
        assert torch.allclose(score[n][seen], slope, rtol=1e-8, atol=1e-9)
        assert (score[n][~seen] == 0).all()


@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_tweedie(kind, S):
    """`E[g(z) | x] = x + noise score(x)`, and the score is the gradient of `log p`."""
    dgn = model(S, S, 2, kind)
    p, x = dgn(), rows(dgn, 1, False).requires_grad_()
    noise = dgn.noise.detach()
    score = p.score(x)
    moved = score @ noise if kind == "full" else score * noise
    assert torch.allclose(p.denoise(x), x + moved, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(p.log_prob(x).sum(), x)
    assert torch.equal(slope, score)


def test_shapes_of_score_and_denoiser():
    p = model(0, 1, 3, "scalar")()
    table = p.sample((4, 5), seed=0)
    for function in (p.score, p.denoise):
        whole = function(table)
        assert whole.shape == (4, 5, 3)
        assert torch.equal(whole[1], function(table[1]))
        assert function(table[0, 0]).shape == (3,)
        assert function(table[0].numpy()).shape == function(table[0].tolist()).shape == (5, 3)
        with torch.no_grad():
            assert not function(table).requires_grad
    line = girih.DGN(girih.mlp([1, 4, 1], seed=0))()
    assert line.score([0.1, 0.2]).shape == line.denoise([0.1, 0.2]).shape == (2, 1)


@pytest.mark.parametrize("S", [1, 2])
def test_torch_s_own_check(S):
    dgn = model(4, S, 2, "full")
    p, x = dgn(), rows(dgn, 0, False)[: 3 if S == 1 else 1].requires_grad_()
    assert torch.autograd.gradcheck(p.log_prob, (x,))
    assert torch.autograd.gradgradcheck(p.log_prob, (x,))
    assert torch.autograd.gradcheck(p.score, (x,))
    dgn.requires_grad_(False)
    assert torch.autograd.gradcheck(p.log_prob, (x,), check_forward_ad=True)
    noise = f64(0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda noise: girih.DGN(dgn.net, noise=noise)().log_prob(x.detach()), (noise,))


def test_ordinary_uses():
    """float32 rows, two backward passes, a graph that is used twice, and no graph at all."""
    dgn = model(1, 1, 2, "scalar")
    p, x = dgn(), rows(dgn, 0, False)
    short = x.float().requires_grad_()
    p.log_prob(short).sum().backward()
    assert short.grad.dtype == torch.float32
    assert torch.allclose(short.grad.double(), p.score(short.detach()).detach(), rtol=1e-5)
    long = x.clone().requires_grad_()
    value = p.log_prob(long)
    (first,) = torch.autograd.grad(value.sum(), long, retain_graph=True)
    (second,) = torch.autograd.grad((value + value).sum(), long)
    assert torch.equal(2 * first, second)
    with torch.no_grad():
        assert not p.log_prob(long).requires_grad
    squared = p.log_prob(long).square().sum()  # the chain rule with second derivatives
    (slope,) = torch.autograd.grad(squared, long, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), long)
    ones = torch.ones(2, dtype=torch.float64)
    curve, score, log_p = curvatures(dgn, x), p.score(x), p.log_prob(x)
    expected = 2 * (score * score.sum(1, keepdim=True) + log_p[:, None] * (curve @ ones))
    assert torch.allclose(bend, expected, rtol=1e-9)


def test_a_backward_pass_after_a_step_is_that_of_the_forward_pass():
    dgn = model(2, 1, 3, "scalar")
    x = rows(dgn, 0, False).requires_grad_()
    expected = dgn().score(x).detach()
    value = dgn().log_prob(x).sum()
    with torch.no_grad():
        dgn.noise.mul_(2.0)
        dgn.net[2].bias.add_(1.0)
    (found,) = torch.autograd.grad(value, x)
    assert torch.equal(found, expected)


# Derivatives that are not there


def test_other_second_derivatives_are_refused():
    """In parameters, and in x and parameters: never 0."""
    dgn = model(3, 1, 2, "scalar")
    x = rows(dgn, 0, False).requires_grad_()
    for parameter in dgn.parameters():
        (slope,) = torch.autograd.grad(dgn().log_prob(x).sum(), parameter, create_graph=True)
        for other in (parameter, x):
            with pytest.raises(DerivativeError, match=r"second derivatives .* involve the parameters"):
                torch.autograd.grad(slope.sum(), other, retain_graph=True)
        (slope,) = torch.autograd.grad(dgn().log_prob(x).sum(), x, create_graph=True)
        for what in (slope, dgn().score(x)):
            with pytest.raises(DerivativeError, match=r"second derivatives .* involve the parameters"):
                torch.autograd.grad(what.sum(), parameter, retain_graph=True)
    with pytest.raises(DerivativeError):
        slope.square().sum().backward()
    dgn.requires_grad_(False)
    x.grad = None
    (slope,) = torch.autograd.grad(dgn().log_prob(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert torch.allclose(x.grad, 2 * (curvatures(dgn, x.detach()) @ slope.detach()[:, :, None])[:, :, 0])


def test_third_derivatives_and_those_of_the_denoiser_are_refused():
    dgn = model(3, 1, 2, "scalar")
    p, x = dgn(), rows(dgn, 0, False)[0]
    with pytest.raises(DerivativeError, match="third derivatives"):
        jacrev(jacrev(jacrev(p.log_prob)))(x)
    with pytest.raises(DerivativeError, match="third derivatives"):
        jacfwd(jacrev(jacrev(p.log_prob)))(x)
    with pytest.raises(DerivativeError, match="denoise is not differentiable"):
        p.denoise(x.clone().requires_grad_()).sum().backward()
    with pytest.raises(DerivativeError, match="denoise is not differentiable"):
        jacfwd(p.denoise)(x)


@pytest.mark.parametrize("S", [1, 2])
def test_torch_func(S):
    dgn = model(S, S, 2, "full")
    p, x = dgn(), rows(dgn, 0, False)
    x[2, 1] = torch.nan
    one, score, curve = p.log_prob, p.score(x).detach(), curvatures(dgn, x)
    close = {"rtol": 1e-10, "atol": 1e-12}
    assert torch.allclose(vmap(one)(x), one(x), **close)
    assert torch.allclose(vmap(one, in_dims=1)(x.T), one(x), **close)
    assert torch.allclose(vmap(vmap(one))(torch.stack((x, x)))[1], one(x), **close)
    assert torch.allclose(vmap(one)(torch.stack((x, x)))[1], one(x), **close)
    for transform in (grad, jacrev, jacfwd):
        assert torch.allclose(vmap(transform(one))(x), score, **close)
    for name in (jacrev(jacrev(one)), jacfwd(jacrev(one)), jacrev(jacfwd(one)), torch.func.hessian(one)):
        assert torch.allclose(vmap(name)(x), curve, **close)
        assert torch.allclose(name(x[0]), curve[0], **close)
    assert torch.allclose(jacrev(p.score)(x)[0, :, 0], curve[0], **close)
    assert torch.allclose(jacfwd(p.score)(x)[0, :, 0], curve[0], **close)
    assert torch.allclose(vmap(p.denoise)(x), p.denoise(x), **close)
    direction = torch.ones_like(x)
    assert torch.allclose(jvp(one, (x,), (direction,))[1], score.sum(1), **close)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(one(forward_ad.make_dual(x, direction))).tangent
    assert torch.allclose(tangent, score.sum(1), **close)
    assert torch.allclose(hessian(lambda v: one(v[None]).sum(), x[0]), curve[0], **close)
    with pytest.raises(DerivativeError, match=r"forward mode over forward mode .* torch\.func\.hessian"):
        jacfwd(jacfwd(one))(x[0])
    with pytest.raises(DerivativeError, match=r"vectorize=True .* torch\.func\.jacrev"):
        hessian(lambda v: one(v[None]).sum(), x[0], vectorize=True)
    with pytest.raises(NonFiniteError, match="x holds infinite values"):
        vmap(one)(torch.full_like(x, torch.inf))


def test_forward_mode_in_parameters_is_refused():
    dgn = model(0, 1, 2, "scalar")
    x = rows(dgn, 0, False)

    class LogProb(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dgn = dgn

        def forward(self, x):
            return self.dgn().log_prob(x)

    values = {name: p.detach() for name, p in LogProb().named_parameters()}
    for name, value in values.items():
        with pytest.raises(DerivativeError, match=r"forward-mode derivatives .* use reverse mode"):
            jvp(lambda v, name=name: functional_call(LogProb(), values | {name: v}, (x,)), (value,), (value,))
    with pytest.raises(DerivativeError, match=r"second derivatives .* involve the parameters"):
        jacrev(grad(lambda v: functional_call(LogProb(), values | {"dgn.noise": v}, (x,)).sum()))(values["dgn.noise"])
    with forward_ad.dual_level(), pytest.raises(DerivativeError, match="forward-mode"):
        functional_call(LogProb(), {"dgn.noise": forward_ad.make_dual(values["dgn.noise"], f64(1.0))}, (x,))
