"""EM with outputs that are not Gaussian: never up, beside Fisher's identity, the truth behind the rows, resuming."""

import copy

import pytest
import torch

import girih
from girih.em import fit_em
from girih.em.outputs import OutputProblem, Regression
from girih.errors import ParameterError
from girih.inference import Categorical, NegativeBinomial, StudentT

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

F64 = torch.float64
KINDS = {
    "bernoulli": ("bernoulli", None),
    "categorical": (Categorical([2, 3]), None),
    "poisson": ("poisson", None),
    "negative binomial": (NegativeBinomial(2.5), None),
    "laplace": ("laplace", 0.3),
    "student": (StudentT(3.0), [0.1, 0.2, 0.3, 0.1, 0.2]),
    "mixed": ([("gaussian", 2), ("bernoulli", 1), (Categorical([2]), 1)], [0.2, 0.1, 9.0, 9.0]),
}


def model(kind: str, seed: int, S: int = 1, width: int = 4, **options: object) -> girih.DGN:
    likelihood, noise = KINDS[kind]
    net = girih.mlp([S, width, 5], activation="relu", seed=seed)
    return girih.DGN(net, noise=noise, likelihood=likelihood, **options)


def rows(kind: str, n: int, S: int = 1) -> torch.Tensor:
    x = model(kind, 3, S)().sample((n,), seed=0)
    x[0, 1], x[3] = torch.nan, torch.nan
    x[3, 0] = x[4, 0]
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("S", [1, 2])
def test_the_surrogate_has_the_gradient_of_the_likelihood(kind, S):
    if kind == "laplace" and S == 2:
        pytest.skip("each row has cells of its own")
    x, dgn = rows(kind, 8, S), model(kind, 5, S)
    weight = torch.linspace(0.5, 1.5, 8, dtype=F64)
    problem = OutputProblem(dgn, x, weight)
    found = problem.evaluate().found["expected"]
    log_p = dgn().log_prob(x)
    assert torch.allclose(found.log_p, log_p.detach(), atol=1e-7)
    exact = torch.autograd.grad(weight @ log_p, problem.moved)
    for ours, other in zip(found.gradient, exact, strict=True):
        assert torch.allclose(ours, other, rtol=0.0, atol=1e-6 * float(other.abs().max()) + 1e-12)
    # the points alone are near it, and the linear term makes up for the rest
    regression = Regression(problem, found.points)
    own = torch.cat([part.flatten() for part in regression.value()[1]])
    target = torch.cat([part.flatten() for part in regression.exact(found.gradient)])
    assert float((own - target).norm()) < 0.1 * float(target.norm())


@pytest.mark.parametrize("S", [1, 2])
def test_points_have_the_moments_of_the_posteriors(S):
    x, dgn = rows("bernoulli", 6, S), model("bernoulli", 5, S)
    weight = torch.arange(1.0, 7.0, dtype=F64)
    found = OutputProblem(dgn, x, weight).evaluate().found["expected"]
    posterior, (row, z, share) = dgn.posterior(x), found.points
    mass = torch.zeros_like(weight).index_add_(0, row, share)
    assert ((mass <= weight * (1.0 + 1e-12)) & (mass >= weight * 0.999)).all()
    mean = torch.zeros(6, S, dtype=F64).index_add_(0, row, share[:, None] * z) / mass[:, None]
    assert torch.allclose(mean, posterior.mean, atol=3e-3)
    second = posterior.covariance + posterior.mean[:, :, None] * posterior.mean[:, None, :]
    assert torch.allclose(found.latent, (weight[:, None, None] * second).sum(0), rtol=1e-8)
    around = torch.einsum("j,ji,jk->ik", share, z, z)
    assert torch.allclose(around, found.latent, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_nll_never_rises(kind):
    x, dgn = rows(kind, 10 if kind == "laplace" else 60), model(kind, 5)
    result = fit_em(dgn, x, n_init=2, init_iter=2, max_iter=6, progress=False)
    assert (result.curve[1:] <= result.curve[:-1]).all()
    assert result.curve[-1] < result.curve[0]
    assert -dgn().log_prob(x).mean().item() == pytest.approx(result.curve[-1], abs=1e-7)
    if dgn.noise_tensors:
        assert (dgn.noise > 0.0).all()


@pytest.mark.parametrize(("S", "n"), [(1, 400), (2, 120)])
def test_a_bernoulli_generator_is_found_again(S, n):
    truth = girih.DGN(girih.mlp([S, 4, 12], activation="relu", seed=3), likelihood="bernoulli")
    with torch.no_grad():
        truth.net[-1].weight.mul_(2.0)
    x, new = truth().sample((n,), seed=0), truth().sample((200,), seed=1)
    dgn = girih.DGN(girih.mlp([S, 4, 12], activation="relu", seed=5), likelihood="bernoulli")
    start, best = (-m().log_prob(new).mean().item() for m in (dgn, truth))
    fit_em(dgn, x, n_init=2, init_iter=3, max_iter=20 if S == 1 else 12, progress=False)
    end = -dgn().log_prob(new).mean().item()
    assert end < best + 0.25 * (start - best)
    assert end < best + (0.2 if S == 1 else 0.8)


@pytest.mark.parametrize(
    "prior", [girih.Uniform(-2.0, 2.0), girih.GaussianMixturePrior([1.0, 1.0], [[-1.0], [1.0]], 0.3)]
)
def test_other_priors(prior):
    x, dgn = rows("poisson", 40), model("poisson", 5, prior=prior)
    result = fit_em(dgn, x, n_init=0, max_iter=4, progress=False)
    assert (result.curve[1:] <= result.curve[:-1]).all()
    assert result.curve[-1] < result.curve[0] - 0.1


def test_the_prior_is_learned_where_it_is_asked_for():
    x, dgn = rows("bernoulli", 60), model("bernoulli", 5)
    fixed = copy.deepcopy(dgn)
    both = [fit_em(m, x, n_init=0, max_iter=5, learn_prior=m is dgn, progress=False) for m in (dgn, fixed)]
    assert dgn.prior.item() != 1.0
    assert fixed.prior.item() == 1.0
    assert both[0].curve[-1] < both[1].curve[-1] + 0.05
    assert (both[0].curve[1:] <= both[0].curve[:-1]).all()


def test_weights_stand_for_repeated_rows_and_frozen_layers_stay():
    x, weight = rows("mixed", 30), torch.arange(30, dtype=F64) % 3
    ends = []
    for data, of_rows in ((x, weight), (x.repeat_interleave(weight.long(), 0), None)):
        dgn = model("mixed", 5)
        dgn.net[0].weight.requires_grad_(False)
        before = dgn.net[0].weight.clone()
        ends.append(fit_em(dgn, data, sample_weight=of_rows, n_init=0, max_iter=3, progress=False).curve[-1])
        assert torch.equal(dgn.net[0].weight, before)
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


class _StoppedError(Exception):
    """A run that is killed."""


def test_a_killed_run_ends_with_the_same_numbers(tmp_path):
    x, path = rows("student", 40), tmp_path / "run"
    options = {"n_init": 2, "init_iter": 2, "max_iter": 12, "validation": 0.25, "progress": False}
    whole = model("student", 5)
    result = fit_em(whole, x, **options)
    assert result.held_out is not None

    def stop(iteration: int, nll: float) -> None:
        if iteration == 10:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        fit_em(model("student", 5), x, checkpoint=path, checkpoint_seconds=0.0, callback=stop, **options)
    again = model("student", 5)
    assert fit_em(again, x, checkpoint=path, **options).curve.tolist() == result.curve.tolist()
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), whole.parameters(), strict=True))


def test_what_needs_gaussian_noise_is_refused_by_name():
    x, dgn = rows("bernoulli", 20), model("bernoulli", 5)
    for options, name in (
        ({"weight_prior": ("gaussian", 1.0)}, "weight_prior"),
        ({"noise_prior": 0.1}, "noise_prior"),
        ({"kink_ridge": 0.1}, "kink_ridge"),
        ({"batch_size": 5}, "batch_size"),
        ({"m_step": "layerwise"}, "layerwise"),
    ):
        with pytest.raises(ParameterError, match=f"bernoulli.*{name}"):
            fit_em(dgn, x, **options)
    with pytest.raises(ParameterError, match="rows that come in blocks"):
        fit_em(dgn, girih.Blocks.of([x]))
    with pytest.raises(ParameterError, match="row 2, column 1"):
        fit_em(dgn, x.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(7.0, dtype=F64)))
