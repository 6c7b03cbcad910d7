"""Gradients by Fisher's identity against central differences of the exact density."""

import pytest
import torch
from torch import nn

import girih
from girih.networks import Maxout
from networks_to_partition import make
from twins import central_difference, directional_difference, f64, noise_of_kind, prior_of_dim

WEIGHTS = f64([0.7, -1.3, 2.1, 0.4, -0.6])


def prelu() -> nn.Sequential:
    net = girih.mlp([1, 5, 4, 3], seed=2)
    net[1] = nn.PReLU(5, init=0.2, dtype=torch.float64)
    return net


def shared() -> nn.Sequential:
    net = girih.mlp([1, 4, 4, 4, 3], seed=6)
    net[4] = net[2]
    return net


NETS = {
    "leaky": lambda: girih.mlp([1, 5, 4, 3], seed=3),
    "relu": lambda: girih.mlp([1, 6, 3], activation="relu", seed=1),
    "abs": lambda: girih.mlp([1, 4, 4, 3], activation="abs", seed=4),
    "prelu": prelu,
    "shared": shared,
    "activation last": lambda: girih.mlp([1, 4, 3], seed=5).append(nn.LeakyReLU(0.1)),
    "no bias": lambda: nn.Sequential(*list(girih.mlp([1, 4], seed=5)), nn.ReLU(), nn.Linear(4, 3, bias=False).double()),
    "linear": lambda: girih.mlp([1, 3], seed=0),
}


def rows(dgn: girih.DGN, missing: bool) -> torch.Tensor:
    x = dgn().sample((5,), seed=0)
    x[1] += 3.0
    if missing:
        x[0, 0] = x[2, 1:] = x[3] = torch.nan
    return x.requires_grad_()


def assert_gradients(dgn: girih.DGN, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    def weighted() -> torch.Tensor:
        return WEIGHTS @ dgn().log_prob(x)

    weighted().backward()
    for name, tensor in tensors.items():
        slow = central_difference(weighted, tensor)
        scale = slow.abs().max().clamp(min=1.0)
        assert tensor.grad is not None, name
        assert (tensor.grad - slow).abs().max() <= 1e-7 * scale, name


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", NETS)
def test_data_and_network(name, missing):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dgn = girih.DGN(NETS[name](), noise=0.3, prior=1.3)
    x, parameters = rows(dgn, missing), list(dgn.net.named_parameters())
    # entry by entry of all of them; with missing entries of the first and the last
    assert_gradients(dgn, x, {"x": x, **dict([parameters[0], parameters[-1]] if missing else parameters)})


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_noise_and_prior(kind, missing):
    dgn = girih.DGN(NETS["leaky"](), noise=noise_of_kind(kind, 0.3, 3, 0), prior=1.3)
    x = rows(dgn, missing)
    assert_gradients(dgn, x, {"x": x, "head": dgn.net[-1].weight, "noise": dgn.noise, "prior": dgn.prior})


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_full_noise(missing):
    """A symmetric matrix, moved by its factor."""
    factor = torch.linalg.cholesky(noise_of_kind("full", 0.3, 3, 0)).contiguous().requires_grad_()
    net = NETS["leaky"]()
    x = rows(girih.DGN(net, noise=(factor @ factor.T).detach()), missing)

    def log_prob() -> torch.Tensor:
        return WEIGHTS @ girih.DGN(net, noise=factor @ factor.T)().log_prob(x)

    log_prob().backward()
    for tensor in (factor, x, net[0].weight, net[-1].weight, net[-1].bias):
        slow = central_difference(log_prob, tensor)
        assert (tensor.grad - slow).abs().max() <= 1e-7 * slow.abs().max().clamp(min=1.0)


# Two and three dimensions: along random directions, as an evaluation takes longer there


def random_step(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    step = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
    if name == "noise":  # stays positive
        step = 0.1 * tensor.detach() * step if tensor.ndim < 2 else 0.02 * (step + step.mT)
    if name == "prior":
        step = 0.1 * (step + step.mT)
    return step


NETS_OF_DIM = {
    "leaky": lambda S: girih.mlp([S, 5, 3] if S == 2 else [S, 4, 3], seed=3),
    "relu": lambda S: girih.mlp([S, 4, 3, 3], activation="relu", seed=1),
    "abs": lambda S: girih.mlp([S, 3, 2, 3], activation="abs", seed=4),
    "prelu": lambda S: nn.Sequential(
        nn.Linear(S, 4, dtype=torch.float64), nn.PReLU(4, init=0.2, dtype=torch.float64), linear_of(4, 3)
    ),
    "no bias": lambda S: nn.Sequential(linear_of(S, 4), nn.ReLU(), nn.Linear(4, 3, bias=False).double()),
    "linear": lambda S: girih.mlp([S, 3], seed=0),
    "residual": lambda S: make("residual", S),
    "max-pooled": lambda S: make("max-pooled", S),
    "maxout": lambda S: nn.Sequential(linear_of(S, 6), Maxout(2), linear_of(3, 3)),
}


def linear_of(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, dtype=torch.float64)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("name", NETS_OF_DIM)
def test_planes_and_spaces(name, S, missing):
    """Network, x, noise and a full prior move together; the kind of noise goes with the network."""
    if S == 3 and name in ("residual", "max-pooled", "prelu", "abs"):
        pytest.skip("seconds for an evaluation, and nothing new")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETS_OF_DIM[name](S)
    number = list(NETS_OF_DIM).index(name)
    noise = noise_of_kind(("scalar", "diagonal", "full")[(number + S) % 3], 0.3, 3, number)
    dgn = girih.DGN(net, noise=noise, prior=prior_of_dim(S, number))
    dense = girih.DGN(net, noise=noise, prior=prior_of_dim(S, number), tol=0.0)  # nothing comes and goes as it moves
    x = rows(dgn, missing)
    (WEIGHTS @ dgn().log_prob(x)).backward()
    moved = {"x": x, **dict(dense.named_parameters())}
    gradients = {"x": x.grad.nan_to_num(), **{n: p.grad for n, p in dgn.named_parameters()}}
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        size = 0.1 if S == 2 else 0.3
        steps = {n: size * random_step(n, tensor, generator) for n, tensor in moved.items()}
        slow = directional_difference(lambda: WEIGHTS @ dense().log_prob(x), list(moved.values()), list(steps.values()))
        fast = sum(float((gradients[n] * step).sum()) for n, step in steps.items())
        # in space, masses in the tails are right to about 1e-8, and a difference of two of them is divided by 1e-3
        assert fast == pytest.approx(slow, rel=1e-6, abs=1e-7 if S == 2 else 1e-6)


def test_gradients_in_missing_entries_are_zero():
    dgn = girih.DGN(NETS["leaky"](), noise=0.3)
    x = rows(dgn, missing=True)
    dgn().log_prob(x).sum().backward()
    assert (x.grad[x.isnan()] == 0).all()
    assert (x.grad[~x.isnan()] != 0).all()


@pytest.mark.parametrize("S", [1, 2])
def test_the_score_has_mean_zero_under_the_model(S):
    """E[grad log p(x)] = 0, for every parameter, within five standard errors."""
    dgn = girih.DGN(girih.mlp([S, 4, 2], seed=0), noise=0.2)
    x = dgn().sample((20_000 if S == 1 else 5_000,), seed=0)
    batches = []
    for batch in x.split(len(x) // 50):
        dgn.zero_grad()
        dgn().log_prob(batch).mean().backward()
        batches.append(torch.cat([p.grad.flatten() for p in dgn.parameters()]))
    scores = torch.stack(batches)
    error = scores.std(0) / len(scores) ** 0.5
    assert (scores.mean(0).abs() <= 5 * error + 1e-12).all()


def test_gradient_ascent_raises_the_likelihood():
    dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.5)
    angle = torch.linspace(0, 6, 100, dtype=torch.float64)
    x = torch.stack((angle.cos(), angle.sin()), 1)
    optimiser = torch.optim.Adam(dgn.parameters(), lr=0.05)
    curve = []
    for _ in range(80):
        optimiser.zero_grad()
        loss = -dgn().log_prob(x).mean()
        loss.backward()
        optimiser.step()
        curve.append(loss.item())
    assert curve[-1] < curve[0] - 0.3


@pytest.mark.parametrize("S", [1, 2, 3])
def test_reparametrised_draws_carry_gradients(S):
    dgn = girih.DGN(girih.mlp([S, 4, 2], seed=0), noise=0.3, prior=prior_of_dim(S, 0))
    dgn().rsample((8,), seed=0).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in dgn.parameters())
