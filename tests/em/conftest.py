"""Data and models that the EM tests share."""

import numpy as np
import pytest
import torch

import girih


@pytest.fixture
def circle():
    """64 rows of a noisy circle."""
    rng = np.random.default_rng(3)
    angle = rng.uniform(0, 2 * np.pi, 64)
    return np.stack((np.cos(angle), np.sin(angle)), 1) + 0.05 * rng.normal(size=(64, 2))


@pytest.fixture
def holes(circle):
    """The same rows with a quarter of the entries missing; one row has none left."""
    X = circle.copy()
    X[np.random.default_rng(4).random(X.shape) < 0.25] = np.nan
    X[5] = np.nan
    return X


NOISES = {"isotropic": 0.3, "diagonal": np.array([0.2, 0.5]), "full": np.array([[0.4, 0.1], [0.1, 0.3]])}


@pytest.fixture(params=sorted(NOISES))
def noise(request):
    """Each kind of noise, not at its optimum."""
    return NOISES[request.param]


def build(sizes=(1, 6, 2), noise=0.3, seed=0, activation="leaky_relu", prior=None):
    """A random model."""
    return girih.DGN(girih.mlp(list(sizes), activation=activation, seed=seed), noise=noise, prior=prior)


def ones(n):
    """Unit row weights."""
    return torch.ones(n, dtype=torch.float64)


class KilledError(Exception):
    """Ends a fit in a test."""


def end_em(monkeypatch, number, error):
    """Have EM raise an error in the place of that step, counted through all starts."""
    step, calls = girih.em.iteration.em_step, []

    def ending(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise error
        return step(*arguments)

    monkeypatch.setattr("girih.em.iteration.em_step", ending)
