"""A short search for settings: most laws hold for any setting, and the long one takes seconds a fit."""

import pytest

from effort import try_few_settings


@pytest.fixture(scope="module")
def short_search():
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch)
        yield


@pytest.fixture(scope="module")
def shortest_search():
    """For what fits often, and for laws that hold for a single Gaussian: scikit-learn's checks, the imputer."""
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch, _SIZES=(1,), _CURVE=1, _TRIED=1, _KEPT=1)
        yield
