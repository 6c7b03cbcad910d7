import math

import pytest
import torch
from scipy.stats import kstest

from girih.gaussian import interval_log_mass, sample_truncated
from twins import f64

INTERVALS = [
    (-math.inf, math.inf),
    (-1.0, 0.5),
    (-0.1, 4.0),
    (3.0, math.inf),
    (-math.inf, -6.0),
    (5.0, 5.001),
    (30.0, 31.0),
    (-1e4, -200.0),
    (1e6, math.inf),
]


@pytest.mark.parametrize(("lower", "upper"), INTERVALS)
def test_draws_follow_the_exact_distribution(lower, upper):
    u = sample_truncated(f64(lower).expand(20_000), f64(upper), torch.Generator().manual_seed(0))
    assert ((u >= lower) & (u <= upper)).all()

    def cdf(t):
        return (interval_log_mass(f64(lower), f64(t)) - interval_log_mass(f64(lower), f64(upper))).exp().numpy()

    assert kstest(u.numpy(), cdf).pvalue > 1e-3


def test_same_seed_same_draws():
    lower, upper = f64([-1.0, 40.0]), f64([2.0, 41.0])
    first, second = (sample_truncated(lower, upper, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
