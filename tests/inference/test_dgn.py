"""The model as torch and the user see it: shapes, kinds of input, sampling, imputation, bad input."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import girih
from girih.errors import (
    EmptyDataError,
    LatentDimensionError,
    NoiseError,
    NonFiniteError,
    ParameterError,
    ShapeError,
    UnsupportedLayerError,
)
from twins import LogJoint, f64, linear, noise_of_kind, quadrature


@pytest.fixture
def dgn() -> girih.DGN:
    return girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.05)


def test_numpy_pandas_and_lists_are_the_same_as_tensors(dgn):
    x = dgn().sample((4,), seed=0)
    x[1, 0] = math.nan
    expected = dgn().log_prob(x)
    frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
    nullable = frame.convert_dtypes()
    fortran = np.asfortranarray(x.numpy())[::-1]
    fortran.flags.writeable = False
    for same in (x.numpy(), x.tolist(), frame, nullable):
        assert torch.equal(dgn().log_prob(same), expected)
    assert torch.allclose(dgn().log_prob(fortran), expected.flip(0), rtol=1e-13)
    assert torch.allclose(dgn().log_prob(x.float()), expected, rtol=1e-5)
    assert dgn().log_prob(x.float()).dtype == torch.float64


def test_integer_tables_are_numbers_too(dgn):
    assert torch.equal(dgn().log_prob(np.array([[1, 2]])), dgn().log_prob([[1.0, 2.0]]))


def test_shapes_of_log_prob(dgn):
    x = dgn().sample((3, 4), seed=0)
    assert dgn().log_prob(x).shape == (3, 4)
    assert torch.equal(dgn().log_prob(x)[1], dgn().log_prob(x[1]))
    assert dgn().log_prob(x[0, 0]).shape == ()
    assert dgn().log_prob(x[0, 0]) == dgn().log_prob(x[:1, 0])[0]
    one = girih.DGN(girih.mlp([1, 4, 1], seed=0))
    assert one().log_prob([0.1, 0.2, 0.3]).shape == (3,)


def test_the_density_integrates_to_one():
    dgn = girih.DGN(girih.mlp([1, 6, 5, 1], seed=1), noise=0.04)
    x = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
    assert abs(dgn().log_prob(x).exp().sum().item() * (x[1] - x[0]).item() - 1) < 1e-10


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_a_marginal_is_the_integral_of_the_joint(kind):
    """`p(x1)` by marginalising NaN is `p(x1, x2)` summed over x2."""
    dgn = girih.DGN(girih.mlp([1, 6, 2], seed=2), noise=noise_of_kind(kind, 0.3, 2, 1))
    second = torch.linspace(-60, 60, 20_001, dtype=torch.float64)
    for first in (-1.0, 0.5):
        joint = torch.stack((torch.full_like(second, first), second), 1)
        total = dgn().log_prob(joint).exp().sum() * (second[1] - second[0])
        assert dgn().log_prob([[first, math.nan]]).exp().item() == pytest.approx(total.item(), rel=1e-10)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_samples_have_the_exact_mean_and_density(kind):
    """Means within five standard errors, and E[1 / p(x)] over a box is its area."""
    dgn = girih.DGN(girih.mlp([1, 6, 2], seed=2), noise=noise_of_kind(kind, 0.3, 2, 1), prior=1.5)
    x = dgn().sample((40_000,), seed=0)
    error = x.std(0) / len(x) ** 0.5
    assert ((x.mean(0) - dgn().mean).abs() < 5 * error).all()
    centre, half = x.median(0).values, 0.5
    inside = ((x - centre).abs() < half).all(1)
    with torch.no_grad():
        area = torch.where(inside, (-dgn().log_prob(x)).exp(), 0.0)
    assert abs(area.mean() - 1.0) < 5 * area.std() / len(x) ** 0.5


def test_sampling_shapes_and_seeds(dgn):
    p = dgn()
    assert p.sample().shape == (2,)
    assert p.sample((3,)).shape == (3, 2)
    assert p.sample((3, 4), seed=0).shape == (3, 4, 2)
    assert torch.equal(p.sample((5,), seed=7), p.sample((5,), seed=7))
    assert not p.sample((5,)).requires_grad
    assert p.event_shape == (2,) and p.batch_shape == ()


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_impute_is_the_conditional_mean(kind):
    """E[x_missing | x_observed] by quadrature over z of the linear-Gaussian conditional at each z."""
    size = 4
    net, noise = girih.mlp([1, 6, 5, size], seed=1), noise_of_kind(kind, 0.2, size, 3)
    dgn = girih.DGN(net, noise=noise, prior=1.4)
    covariance = noise if noise.ndim == 2 else torch.diag(noise.expand(size))
    x = dgn().sample((4,), seed=0)
    x[0, 1] = x[1, :3] = x[2] = math.nan
    filled = dgn.impute(x)
    for row, full in zip(x, filled, strict=True):
        q = quadrature(LogJoint(net, noise, 1.4, row), dgn.partition.breakpoints)
        seen, hidden = ~row.isnan(), row.isnan()
        g = net(q.z[:, None]).detach()
        gain = covariance[hidden][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
        given = g[:, hidden] + (row[seen] - g[:, seen]) @ gain.T
        assert torch.equal(full[seen], row[seen])
        assert torch.allclose(full[hidden], q.weights @ given, rtol=1e-9, atol=1e-10)


def test_mean_is_the_imputation_of_nothing(dgn):
    assert torch.equal(dgn().mean, dgn.impute([[math.nan, math.nan]])[0])


def test_noise_and_prior_of_equal_meaning_give_equal_densities():
    net, x = girih.mlp([1, 5, 3], seed=0), torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = girih.DGN(net, noise=0.3)().log_prob(x)
    for noise in ([0.3] * 3, 0.3 * torch.eye(3), [0.3], np.float32(0.3) * 0 + 0.3):
        assert torch.allclose(girih.DGN(net, noise=noise)().log_prob(x), expected, rtol=1e-6)
    for prior in (1.0, [1.0], [[1.0]], torch.eye(1)):
        assert torch.equal(girih.DGN(net, noise=0.3, prior=prior)().log_prob(x), expected)


def test_rescaling_the_latent_changes_nothing():
    """`z -> 3 z` with nine times the prior variance is the same model of x."""
    net = girih.mlp([1, 6, 4, 2], seed=0)
    x = girih.DGN(net, noise=0.1)().sample((20,), seed=0)
    expected = girih.DGN(net, noise=0.1)().log_prob(x).detach()
    net[0].weight.data /= 3
    assert torch.allclose(girih.DGN(net, noise=0.1, prior=9.0)().log_prob(x), expected, rtol=1e-11)


def test_order_of_columns_and_shifts_change_nothing():
    net = girih.mlp([1, 6, 4], seed=0)
    dgn = girih.DGN(net, noise=[0.1, 0.2, 0.3, 0.4])
    x = dgn().sample((10,), seed=0)
    order = torch.tensor([2, 0, 3, 1])
    permuted = girih.mlp([1, 6, 4], seed=0)
    permuted[2].weight.data = net[2].weight.data[order]
    permuted[2].bias.data = net[2].bias.data[order] + 5.0
    other = girih.DGN(permuted, noise=f64([0.1, 0.2, 0.3, 0.4])[order])
    assert torch.allclose(dgn().log_prob(x), other().log_prob(x[:, order] + 5.0), rtol=1e-11)


def test_a_linear_generator_is_a_gaussian():
    net = linear([[2.0], [-1.0]], [0.5, 0.0])
    dgn = girih.DGN(net, noise=0.3, prior=1.7)
    covariance = 0.3 * torch.eye(2, dtype=torch.float64) + 1.7 * net.weight @ net.weight.T
    gaussian = torch.distributions.MultivariateNormal(net.bias, covariance)
    x = gaussian.sample((10,)) * 3
    assert torch.allclose(dgn().log_prob(x), gaussian.log_prob(x), rtol=1e-11)


def test_a_distribution_keeps_the_partition_it_was_made_with_and_a_new_call_sees_new_weights(dgn):
    x = f64([[0.3, 0.1]])
    before = dgn().log_prob(x).item()
    dgn.net[0].bias.data += 1.0
    assert dgn().log_prob(x).item() != before
    fresh = girih.DGN(dgn.net, noise=0.05)
    assert dgn().log_prob(x).item() == fresh().log_prob(x).item()


def test_parameters_and_state(dgn):
    assert {name for name, _ in dgn.named_parameters()} == {
        "noise", "prior", "net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias",
    }  # fmt: skip
    other = girih.DGN(girih.mlp([1, 8, 2], seed=9), noise=1.0)
    other.load_state_dict(dgn.state_dict())
    assert torch.equal(other().log_prob([[0.1, 0.2]]), dgn().log_prob([[0.1, 0.2]]))
    assert "S=1, D=2, noise=scalar" in repr(dgn)


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        (-0.1, NoiseError, r"noise must be a positive variance, got -0\.1; variances, not deviations"),
        (0.0, NoiseError, "noise must be a positive variance, got 0"),
        ([0.1, -2.0], NoiseError, "noise must be a positive variance, got -2"),
        ([[1.0, 2.0], [2.0, 1.0]], NoiseError, "noise must be positive definite; its smallest eigenvalue is -1"),
        ([[1.0, 0.5], [0.0, 1.0]], NoiseError, r"noise must be a symmetric matrix; pass \(C \+ C\.T\) / 2"),
        ([0.1, 0.1, 0.1], ShapeError, r"noise must be a scalar variance, \(2,\) variances or a \(2, 2\) covariance"),
        (math.nan, NonFiniteError, "noise holds NaN"),
        (math.inf, NonFiniteError, "noise holds infinite values"),
        ("a", ShapeError, "noise must be an array of numbers"),
    ],
)
def test_bad_noise_is_refused(noise, error, message):
    with pytest.raises(error, match=message):
        girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=noise)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (-1.0, NoiseError, "prior must be positive definite"),
        ([1.0, 2.0], ShapeError, r"prior must be an \(1, 1\) covariance for S = 1; got shape \(2,\)"),
        (math.nan, NonFiniteError, "prior holds NaN"),
    ],
)
def test_bad_prior_is_refused(prior, error, message):
    with pytest.raises(error, match=message):
        girih.DGN(girih.mlp([1, 4, 2], seed=0), prior=prior)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            [[0.0, 1.0, 2.0]],
            ShapeError,
            r"x has 3 columns, but the data dimension D is 2; pass an array of shape \(N, 2\)",
        ),
        (np.zeros((2, 2, 3)), ShapeError, r"x must be a table of shape \(N, 2\); got 3 dimension\(s\).*reshape images"),
        (3.0, ShapeError, r"x must be a table of shape \(N, 2\); got 0 dimension\(s\)"),
        ([[0.0, 1.0], [0.0, math.inf]], NonFiniteError, r"x holds infinite values \(first in row 1\)"),
        (np.empty((0, 2)), EmptyDataError, "x has no rows; pass at least one"),
        ([["a", "b"]], ShapeError, "x must be an array of numbers; could not convert it"),
        (pd.DataFrame({"a": [1.0], "b": ["red"]}), ShapeError, "x holds columns that are not numbers .*'red'"),
    ],
)
@pytest.mark.parametrize("method", ["log_prob", "posterior", "impute"])
def test_bad_data_is_refused(dgn, method, x, error, message):
    call = dgn().log_prob if method == "log_prob" else getattr(dgn, method)
    with pytest.raises(error, match=message):
        call(x)


def test_generators_out_of_reach_are_refused():
    with pytest.raises(
        LatentDimensionError,
        match=r"this generator has S = 4, where the number of cells .* use a generator with S <= 3",
    ):
        girih.DGN(girih.mlp([4, 4, 2]))
    with pytest.raises(UnsupportedLayerError, match="layer '1' is Tanh"):
        girih.DGN(nn.Sequential(nn.Linear(1, 2), nn.Tanh()))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("noise", -1.0, NonFiniteError), ("noise", math.nan, NonFiniteError), ("prior", -1.0, ParameterError)],
)
def test_parameters_that_training_spoiled_give_an_error_and_not_nan(dgn, name, value, error):
    getattr(dgn, name).data.fill_(value)
    with pytest.raises(error):
        dgn().log_prob([[0.0, 0.0]])


def test_rows_and_networks_out_of_range_give_an_error_and_not_nan(dgn):
    with pytest.raises(
        NonFiniteError, match=r"log p\(x\) of row 1 is -inf: the row or the network's output is out of range"
    ):
        dgn().log_prob([[0.0, 0.0], [1e200, 0.0]])
    dgn.net[2].weight.data *= 1e200
    with pytest.raises(NonFiniteError, match=r"log p\(x\) of row 0 is -inf"):
        dgn().log_prob([[0.0, 0.0]])


def test_every_error_is_a_girih_error_and_a_value_error():
    for name, error in vars(girih.errors).items():
        if isinstance(error, type):
            assert issubclass(error, girih.errors.GirihError) and issubclass(error, ValueError), name


NOISES = {
    "scalar": 0.2,
    "diagonal": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
    "low rank": girih.Covariance.low_rank(
        torch.tensor([[0.5], [-0.4], [0.3]]).double(), torch.full((3,), 0.1).double()
    ),
    "full": torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.2, -0.05], [0.0, -0.05, 0.1]], dtype=torch.float64),
}


@pytest.mark.parametrize("S", [1, 2])
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_variance_and_spread_of_missing_entries_are_those_of_quadrature(S, noise):
    dgn = girih.DGN(girih.mlp([S, 5, 3], seed=S), noise=noise, prior=1.3)
    p, x = dgn(), torch.tensor([[0.4, torch.nan, 0.1], [torch.nan, torch.nan, -0.6], [1.0, 2.0, 3.0]]).double()
    side = torch.linspace(-9.0, 9.0, 4001 if S == 1 else 301, dtype=torch.float64)
    z = torch.cartesian_prod(*[side] * S).reshape(-1, S)
    g, C = dgn.trace(z).detach(), dgn.noise_covariance.matrix.detach()
    weight = torch.softmax(-0.5 * z.square().sum(1) / 1.3, 0)
    mean = weight @ g
    torch.testing.assert_close(p.variance.detach(), weight @ (g - mean).square() + C.diag(), rtol=1e-4, atol=1e-5)
    filled, std = dgn.impute(x, return_std=True)
    draws = dgn.impute(x, draws=2_000, seed=0)
    assert (filled == dgn.impute(x)).all() and (std[2] == 0).all() and (draws[:, 2] == x[2]).all()
    for n in (0, 1):
        m = x[n].isnan()
        rest, inverse = x[n, ~m] - g[:, ~m], torch.linalg.inv(C[~m][:, ~m])
        share = torch.softmax(weight.log() - 0.5 * torch.einsum("ni,ij,nj->n", rest, inverse, rest), 0)
        each = g[:, m] + rest @ (C[m][:, ~m] @ inverse).T
        known = share @ each
        variance = share @ (each - known).square() + (C[m][:, m] - C[m][:, ~m] @ inverse @ C[~m][:, m]).diag()
        torch.testing.assert_close(filled[n, m].detach(), known, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(std[n, m].detach(), variance.sqrt(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(draws[:, n, m].std(0), variance.sqrt(), rtol=0.1, atol=0.0)
        assert ((draws[:, n, m].mean(0) - known).abs() < 5 * variance.sqrt() / 2_000**0.5).all()


def test_conventions_of_torch_distributions():
    p = girih.DGN(girih.mlp([1, 5, 3], seed=0), noise=0.1)()
    many = p.expand((4, 2))
    x = many.sample((5,), seed=0)
    assert x.shape == (5, 4, 2, 3) and many.batch_shape == (4, 2) and p.batch_shape == ()
    torch.testing.assert_close(many.log_prob(x), p.log_prob(x))
    torch.testing.assert_close(many.log_prob(x[0, 0, 0]), p.log_prob(x[0, 0, 0]).expand(4, 2))
    assert many.mean.shape == many.variance.shape == (4, 2, 3)
    assert (p.expand((2,)).expand((4, 2)).sample().shape) == (4, 2, 3)
    with pytest.raises(girih.errors.ShapeError, match="2 axes or more"):
        many.expand((4,))
    with pytest.raises(NotImplementedError, match="no closed form"):
        p.entropy()
    with pytest.raises(girih.errors.ParameterError, match="ask for one of them"):
        p._dgn.impute(x[0, 0], return_std=True, draws=2)
