"""A short search for settings: most laws hold for any setting, and the long one takes seconds a fit."""

import pytest

from effort import FEWEST, try_few_settings


@pytest.fixture(scope="module")
def short_search():
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch)
        yield


@pytest.fixture(scope="module")
def shortest_search():
    """For scikit-learn's checks, which fit a hundred times."""
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch, _SIZES=(1,), CURVE=1, _KINKS=5, _TRIED=1, _KEPT=1)
        yield


@pytest.fixture(scope="module")
def fewest_settings():
    """For laws that hold for a single Gaussian."""
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch, **FEWEST)
        yield
