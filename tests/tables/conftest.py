"""A short search for settings: most laws hold for any setting, and the long one takes seconds a fit."""

import pytest

from girih.tables import choice


@pytest.fixture(scope="module")
def short_search():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_SIZES": (1, 2), "_CURVE": 3, "_KINKS": 2, "_TRIED": 3, "_KEPT": 2}.items():
            patch.setattr(choice, name, value)
        yield


@pytest.fixture(scope="module")
def shortest_search():
    """For scikit-learn's checks, which fit a hundred times."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_SIZES": (1,), "_CURVE": 1, "_TRIED": 1, "_KEPT": 1}.items():
            patch.setattr(choice, name, value)
        yield
