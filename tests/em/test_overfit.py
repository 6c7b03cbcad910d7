"""A fit with more free parameters than the data can carry says so; ordinary fits are silent."""

import warnings

import numpy as np
import pytest
import torch

import girih
from girih.em import OverfitWarning
from girih.em.parameters import overfit_reason


def fit(X, weight=None, **options):
    est = girih.DGNEstimator(**{"n_init": 1, "max_iter": 2, "random_state": 0, **options})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        est.fit(X, sample_weight=weight)
    said = [w.category for w in caught]
    assert (OverfitWarning in said) == (est.overfit_ is not None)
    return est.overfit_


def random_rows(n, columns):
    return np.random.default_rng(0).normal(size=(n, columns))


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("rows, columns", [(1, 3), (10, 50), (5, 20), (8, 10), (3, 2)])
def test_too_few_rows(noise, rows, columns):
    assert "fewer hidden units" in fit(random_rows(rows, columns), noise=noise)


def test_a_full_noise_needs_more_rows_than_columns():
    X = random_rows(30, 30)
    assert fit(X, noise="full", hidden=(2,)) is not None
    assert fit(X, noise="diagonal", hidden=(2,)) is None


def test_repeated_rows_and_rows_without_weight_say_nothing_new():
    X = random_rows(5, 3)
    assert "in 5 different rows" in fit(np.repeat(X, 40, 0))
    assert "in 5 different rows" in fit(random_rows(200, 3), np.arange(200) < 5)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal", "full"])
def test_ordinary_fits_are_silent(noise):
    assert fit(girih.datasets.load("circle", n=64, seed=0).X, noise=noise, hidden=(4,)) is None
    assert fit(random_rows(150, 4), noise=noise) is None


def test_missing_entries_do_not_count():
    x = torch.full((40, 2), torch.nan).double()
    x[:, 0] = torch.arange(40.0)
    assert overfit_reason(20, x, torch.ones(40)) is None
    assert "40 observed numbers" in overfit_reason(21, x, torch.ones(40))
