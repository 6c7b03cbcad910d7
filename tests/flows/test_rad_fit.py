"""Training flows: the likelihood rises, the best parameters stay, runs resume, bad data are refused."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning

import girih
from effort import LONG, cases
from girih.errors import EmptyDataError, NonFiniteError, ParameterError, ShapeError
from girih.flows import RAD, Flow, RealNVP, Whiten, fit_flow

from .rad_cases import f64

QUICK = {"max_steps": 30, "record_every": 10, "batch_size": 50, "progress": False}


def small(model=RAD, seed=0, **options):
    return model(2, transforms=2, hidden_features=(4,), seed=seed, **options)


def data(n=200):
    return girih.datasets.load("moons", n=n, seed=0).X


def test_rad_finds_two_modes_that_share_no_mass():
    """A line with two far Gaussians: hardly any draw lies between them, and log p is near its best."""
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.rand(2000, 1, generator=generator) < 0.3, -1.0, 1.0)
    x = (side + 0.05 * torch.randn(2000, 1, generator=generator)).double()
    flow = RAD(1, transforms=2, hidden_features=(8,), seed=0)
    run = flow.fit(x, max_steps=300, lr=0.02, batch_size=500, record_every=50, progress=False)
    entropy = -0.3 * math.log(0.3) - 0.7 * math.log(0.7) + 0.5 * math.log(2 * math.pi * math.e * 0.05**2)
    assert run.held_out - entropy < 0.12
    draws = flow().sample((4000,), seed=0)
    assert (draws.abs() < 0.6).double().mean() < 0.01
    assert (draws < 0).double().mean().item() == pytest.approx(0.3, abs=0.05)
    # one component for each mode, or more; none has rows of both
    found = flow().components(x)
    for index in range(len(found.k)):
        if found.mass[index] > 0.02:
            share = (x[found.labels == index] < 0).double().mean()
            assert min(share, 1 - share) < 0.02


@pytest.mark.parametrize("model", [RAD, RealNVP])
def test_training_lowers_the_held_out_nll_and_keeps_the_best(model):
    flow, x = small(model), data(400)
    run = flow.fit(x, validation=x[300:], lr=0.01, **QUICK)
    held_out = run.history["held_out"]
    assert run.held_out == held_out.min() < held_out[0]
    assert run.history["step"][held_out.argmin()] == run.best_step
    assert -flow().log_prob(x[300:]).mean().item() == pytest.approx(run.held_out, abs=1e-12)
    assert run.steps >= 30 and run.ended == "max_epochs"


def test_no_rows_held_out_leaves_the_last_parameters():
    run = small().fit(data(), validation=None, **QUICK)
    assert run.held_out is None and run.best_step == run.steps and "held_out" not in run.history


def test_patience_ends_a_run_that_no_longer_improves():
    run = small().fit(data(), lr=1e-12, smoothing=0.0, patience=2, **(QUICK | {"max_steps": 1000}))
    assert run.converged and run.steps < 100


def test_raw_units_do_not_matter():
    x = data()
    scale = np.array([1e4, 1e-3])
    first, second = small(), small()
    first.fit(x, **QUICK)
    second.fit(5.0 + scale * x, **QUICK)
    expected = first().log_prob(x) - math.log(scale.prod())
    torch.testing.assert_close(second().log_prob(5.0 + scale * x), expected, atol=1e-4, rtol=0)


def test_a_conditional_flow_learns_from_its_context():
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(500, 1, dtype=f64, generator=generator)
    x = 3.0 * c + 0.1 * torch.randn(500, 1, dtype=f64, generator=generator)
    flow = RAD(1, context=1, transforms=2, hidden_features=(8,), seed=0)
    flow.fit(x, c, lr=0.03, max_steps=150, batch_size=None, record_every=50, progress=False)
    draws = flow(torch.tensor([1.0], dtype=f64)).sample((500,), seed=0)
    assert draws.median().item() == pytest.approx(3.0, abs=0.5)


def test_the_same_arguments_give_the_same_numbers():
    first, second = (small().fit(data(), **QUICK).history["held_out"] for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, small().fit(data(), seed=1, **QUICK).history["held_out"])


TABLES = {"iris": load_iris, "wine": load_wine, "diabetes": load_diabetes, "breast cancer": load_breast_cancer}


def problem(name, seed):
    """Training rows and fresh ones; of real tables 70 % and 30 %."""
    if name not in TABLES:
        load = girih.datasets.load
        return tuple(torch.as_tensor(load(name, n=n, seed=s).X) for n, s in ((256, seed), (4000, 1000 + seed)))
    rng, X = np.random.default_rng(seed), TABLES[name]().data
    X = X[:, [len(np.unique(column)) > 2 for column in X.T]]
    X = torch.as_tensor(X[rng.permutation(len(X))])
    return X[: 7 * len(X) // 10], X[7 * len(X) // 10 :]


def spline_flow(features, seed):
    import zuko  # not before girih.flows, which keeps torch's checks of arguments

    torch.manual_seed(seed)
    couplings = zuko.flows.NSF(features, transforms=3, hidden_features=(64, 64)).transform.transforms
    return Flow([Whiten(features), *couplings], features).double()


class KilledError(RuntimeError):
    pass


class Mortal(RAD):
    """Dies in its 17th step."""

    steps = 0

    def nll(self, rows):
        self.steps += self.training and torch.is_grad_enabled()
        if self.steps == 17:
            raise KilledError
        return super().nll(rows)


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(tmp_path):
    options = QUICK | {"checkpoint_seconds": 0.0, "seed": 3}
    whole = small()
    expected = whole.fit(data(), **options)
    with pytest.raises(KilledError):
        small(Mortal).fit(data(), checkpoint=tmp_path / "run", **options)
    resumed = small()
    run = resumed.fit(data(), checkpoint=tmp_path / "run", **options)
    assert run.steps == expected.steps and run.held_out == expected.held_out
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_without_smoothing_can_be_made_longer(tmp_path):
    options = QUICK | {"checkpoint_seconds": 0.0, "smoothing": 0.0}
    expected = small().fit(data(), **options)
    small().fit(data(), checkpoint=tmp_path / "run", **(options | {"max_steps": 12}))
    assert small().fit(data(), checkpoint=tmp_path / "run", **options).held_out == expected.held_out


def test_noise_that_falls_over_the_run_ties_it_to_its_length(tmp_path):
    small().fit(data(), checkpoint=tmp_path / "run", **QUICK)
    with pytest.raises(ParameterError, match="smoothing"):
        small().fit(data(), checkpoint=tmp_path / "run", **(QUICK | {"max_steps": 60}))


@pytest.mark.parametrize("model", [RAD, RealNVP])
def test_a_flow_that_is_best_before_training_says_so(model):
    with pytest.warns(ConvergenceWarning, match="best before training"):
        run = small(model).fit(data(), lr=0.5, smoothing=0.0, average=0.0, **QUICK)
    assert run.best_step == 0 and run.held_out == run.history["held_out"][0]


def test_an_untrained_real_nvp_is_the_gaussian_of_all_rows():
    x, flow = torch.as_tensor(data()), RealNVP(2, seed=0)
    with pytest.warns(ConvergenceWarning):
        flow.fit(x, max_steps=1, lr=1e3, batch_size=None, progress=False)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.mT, correction=0))
    torch.testing.assert_close(flow().log_prob(x).mean(), gaussian.log_prob(x).mean(), atol=0.05, rtol=0)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["circle", "moons", "diabetes", "breast cancer"] if LONG else ["circle"])
@pytest.mark.parametrize("model", [RAD, RealNVP, spline_flow] if LONG else [RAD])
def test_defaults_beat_one_gaussian_on_fresh_rows(name, model):
    for seed in range(cases(1, 5)):
        train, fresh = problem(name, seed)
        flow = model(train.shape[1], seed=seed)
        run = flow.fit(train, seed=seed, progress=False)
        gaussian = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.mT, correction=0))
        assert run.best_step > 0
        assert flow().log_prob(fresh).mean() > gaussian.log_prob(fresh).mean() + 0.1


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["iris", "wine"])
def test_small_tables_are_never_much_worse_than_one_gaussian(name):
    for seed in range(cases(1, 5)):
        train, fresh = problem(name, seed)
        flow = RealNVP(train.shape[1], seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the Gaussian may be best
            flow.fit(train, seed=seed, progress=False)
        gaussian = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.mT, correction=0))
        assert flow().log_prob(fresh).mean() > gaussian.log_prob(fresh).mean() - 0.5


def test_affine_couplings_stay_bounded_far_from_the_data():
    """ReLU networks in s and t once cost 800 nats for one outlier of breast cancer; bounded ones let a row far out
    cost no more than a Gaussian of other scales would."""
    flow = RealNVP(4, transforms=2, hidden_features=(16,), seed=0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    far = torch.tensor([[1e3, 2e3, -1e3, 5e2]], dtype=torch.float64)
    # z is affine in the scale of a row once the units saturate: log p grows with its square, and no faster
    fall = [float(flow().log_prob(scale * far).detach()) for scale in (1.0, 2.0, 4.0)]
    assert fall[2] / fall[1] == pytest.approx(4.0, rel=0.01)


def test_nan_stops_with_the_name_of_the_parameter():
    flow = small()
    with torch.no_grad():
        flow.transforms[1].gate_network[0].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"transforms\.1\.gate_network\.0\.weight"):
        flow.fit(data(), **QUICK)


X = np.arange(12.0).reshape(6, 2)
REFUSED = [
    (lambda f: f.fit(X[:, :1], **QUICK), ShapeError, "X has 1 columns"),
    (
        lambda f: f.fit(X * [1.0, 0.0], **QUICK),
        ParameterError,
        "column 1 of X does not vary",
    ),
    (lambda f: f.fit(X[:1], **QUICK), ParameterError, "of 1 rows holds out 0; it must be a fraction"),
    (lambda f: f.fit(X[:1], validation=None, **QUICK), ParameterError, "there is only one row"),
    (
        lambda f: f.fit(np.where(X == 3, np.nan, X), **QUICK),
        NonFiniteError,
        "X holds NaN or masked entries (first in",
    ),
    (lambda f: f.fit(X[:0], **QUICK), EmptyDataError, "X has no rows"),
    (lambda f: f.fit(X, X[:, :1], **QUICK), ShapeError, "built without one"),
    (lambda f: f.fit(X, validation=1.0, **QUICK), ParameterError, "of 6 rows holds out 6"),
    (lambda f: f.fit(X, validation=X[:, :1], **QUICK), ShapeError, "validation has 1 columns"),
    (lambda f: fit_flow(f, X, max_steps=0), ParameterError, "steps must be a whole number"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_data_that_cannot_be_fitted_are_refused(call, error, message):
    with pytest.raises(error) as caught:
        call(small())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_context_must_fit():
    flow = small(context=2)
    with pytest.raises(ShapeError, match="pass context, one row for each row of X"):
        flow.fit(data(), **QUICK)
    with pytest.raises(ShapeError, match="context has 5 rows and X has 200"):
        flow.fit(data(), np.zeros((5, 2)), **QUICK)


def test_a_step_of_one_row_is_a_step():
    flow = small()
    run = flow.fit(data(5), batch_size=1, max_steps=10, validation=None, progress=False)
    assert run.steps == 10 and all(torch.isfinite(parameter).all() for parameter in flow.parameters())
