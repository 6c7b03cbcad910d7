"""Nothing that was computed, drawn, fitted or saved changes when the code does: see `make.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import girih
from girih.gaussian import prepared
from golden.cases import CASES, flat, of_model

HERE = Path(__file__).parent
SAVED = sorted(path.stem for path in (HERE / "models").glob("*.npz"))

# Training multiplies the differences between machines (the order of sums in a matrix product) at each step.
TRAINED = {"estimators", "expectation_maximisation", "exact_training", "selections", "push_forwards", "vaes"}
TRAINED |= {"adversarial"}
# The numbers are those of compiled code; the torch form is right to 1e-15 of a mass that may be 1e-3.
EXACT = 1e-12 if prepared.kernels() is not None else 2e-11

# Draws in three dimensions reject from an envelope that is refined where its excess is largest; the last bits, which
# differ between processors, decide among excesses that are nearly equal, and with the envelope the draw changes.
DRAWN = {"3 draws": 1e-4}

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::girih.em.OverfitWarning"),
]


def compare(found: dict, file: Path, tolerance: float) -> None:
    with np.load(file) as golden:
        assert sorted(found) == sorted(golden.files)
        for key, value in found.items():
            most = DRAWN.get(key, tolerance)
            np.testing.assert_allclose(flat(value), golden[key], rtol=most, atol=most, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_numbers_stay(name):
    compare(CASES[name](), HERE / f"{name}.npz", 1e-8 if name in TRAINED else EXACT)


@pytest.mark.parametrize("name", SAVED)
def test_saved_models_load_and_say_the_same(name):
    compare(of_model(girih.load(HERE / "models" / name)), HERE / "models" / f"{name}.npz", EXACT)


def test_there_are_models_of_every_kind():
    assert len(SAVED) >= 13
