"""girih: exact probability for piecewise-affine generative networks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from girih import em, errors, gaussian, networks
from girih.em import DGNEstimator
from girih.inference import DGN, Posterior
from girih.io import load, save
from girih.networks import mlp, trace
from girih.partition import Partition

if TYPE_CHECKING:
    from girih import datasets, plots, training, vae

__all__ = [
    "DGN",
    "DGNEstimator",
    "Partition",
    "Posterior",
    "datasets",
    "em",
    "errors",
    "gaussian",
    "load",
    "mlp",
    "networks",
    "plots",
    "save",
    "trace",
    "training",
    "vae",
]
__version__ = "0.1.0"

# These pull in pandas, matplotlib or Lightning, which take seconds to import: loaded at first use.
_LAZY = ("datasets", "plots", "training", "vae")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"girih.{name}")
    raise AttributeError(f"module 'girih' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
