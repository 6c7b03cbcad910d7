import numpy as np
import pytest
import torch

from girih.gaussian import interval_log_mass, interval_moments
from twins import f64, interval

ANCHORS = (0.0, 1e-9, 0.1, 1.0, 2.9, 5.0, 8.0, 13.0, 38.0, 100.0, 1e3, 1e5)
WIDTHS = (1e-10, 1e-6, 1e-3, 0.1, 0.99, 2.0, 10.0, np.inf)


def one_sided() -> list[tuple[float, float]]:
    return [(a, a + w) for a in ANCHORS for w in WIDTHS if a + w > a]


def straddling() -> list[tuple[float, float]]:
    rng = np.random.default_rng(0)
    sizes = 10 ** rng.uniform(-8, 2, size=(60, 2))
    return [(-a, b) for a, b in sizes.tolist()] + [(-np.inf, 3.0), (-3.0, np.inf), (-40.0, 1e-9), (-np.inf, np.inf)]


def assert_matches_twin(cases: list[tuple[float, float]]) -> None:
    lower, upper = f64(cases).T
    ours = interval_moments(lower, upper)
    assert torch.equal(interval_log_mass(lower, upper), ours.log_mass)
    for i, case in enumerate(cases):
        log_mass, mean, variance = interval(*case)
        assert abs(ours.log_mass[i].item() - log_mass) <= 1e-13 * max(1, abs(log_mass)), case
        assert abs(ours.mean[i].item() - mean) <= 1e-11 * max(abs(mean), variance**0.5), case
        assert abs(ours.variance[i].item() - variance) <= 1e-11 * variance, case


def test_intervals_in_the_upper_tail():
    assert_matches_twin(one_sided())


def test_intervals_in_the_lower_tail():
    assert_matches_twin([(-b, -a) for a, b in one_sided()])


def test_intervals_on_both_sides_of_zero():
    assert_matches_twin(straddling())


def test_masses_far_below_the_smallest_float():
    log_mass = interval_log_mass(f64(1e6), f64(torch.inf))
    assert log_mass.item() == pytest.approx(-0.5e12 - np.log(1e6) - 0.5 * np.log(2 * np.pi), rel=1e-15)


def test_masses_of_a_partition_add_up_to_one():
    knots = f64(np.sort(np.random.default_rng(0).standard_cauchy(50)))
    infinity = f64([torch.inf])
    log_mass = interval_log_mass(torch.cat((-infinity, knots)), torch.cat((knots, infinity)))
    assert abs(log_mass.exp().sum().item() - 1) < 1e-12


def test_the_whole_line_and_an_empty_interval():
    whole = interval_moments(f64(-torch.inf), f64(torch.inf))
    assert whole.log_mass.abs().item() < 1e-13
    assert whole.variance.item() == pytest.approx(1.0, rel=1e-11)
    empty = interval_moments(f64([2.0, 0.0]), f64([2.0, 0.0]))
    assert empty.log_mass.tolist() == [-torch.inf, -torch.inf]
    assert empty.anchor.tolist() == [2.0, 0.0]
    assert empty.mean.tolist() == [0.0, 0.0]
    assert empty.variance.tolist() == [0.0, 0.0]


def test_bounds_broadcast():
    log_mass = interval_log_mass(f64([[-1.0], [0.0]]), f64([1.0, 2.0, 3.0]))
    assert log_mass.shape == (2, 3)
    assert torch.allclose(log_mass[1], interval_log_mass(f64([0.0, 0.0, 0.0]), f64([1.0, 2.0, 3.0])), rtol=1e-15)
