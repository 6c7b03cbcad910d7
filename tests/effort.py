"""How many random cases a law is tried on: few in `make test`, many in `make fuzz`."""

from __future__ import annotations

import os

import pytest

LONG = os.environ.get("GIRIH_FUZZ") == "long"


def cases(short: int, long: int) -> int:
    """`short` in `make test`, `long` in `make fuzz`."""
    return long if LONG else short


# For `try_few_settings`: plain mixtures of one component and a single curve, on three folds.
FEWEST = {"_SIZES": (1,), "CURVE": 1, "_KINKS": 1000, "_TRIED": 1, "_KEPT": 1, "_COSTLY": 0.0}


def try_few_settings(patch: pytest.MonkeyPatch, **changes: object) -> None:
    """Let `TableModel` search among a few settings: most laws hold for any, and the long search takes seconds a fit."""
    from girih.tables import choice, fitter

    for name, value in {"_SIZES": (1, 2), "CURVE": 3, "_KINKS": 2, "_TRIED": 3, "_KEPT": 2, **changes}.items():
        patch.setattr(choice, name, value)
        if hasattr(fitter, name):
            patch.setattr(fitter, name, value)
