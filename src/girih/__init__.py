"""girih: exact probability for piecewise-affine generative networks."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from girih._extras import papers
from girih._version import __version__

if TYPE_CHECKING:
    from girih import (
        bounds,
        datasets,
        em,
        errors,
        explorer,
        flows,
        gan,
        gaussian,
        geometry,
        hub,
        inference,
        likelihood,
        networks,
        partition,
        plots,
        report,
        sampling,
        selection,
        streams,
        tables,
        training,
        vae,
    )
    from girih.bounds import Bracket, bracket
    from girih.covariance import Covariance
    from girih.em import DGNEstimator
    from girih.explorer import explore
    from girih.inference import DGN, ConditionalDGN, GaussianMixturePrior, Posterior, Uniform
    from girih.io import load, save
    from girih.likelihood import train
    from girih.networks import mlp, trace
    from girih.partition import Partition
    from girih.sampling import PosteriorDraws, sample_posterior
    from girih.selection import select_model
    from girih.streams import Blocks
    from girih.tables import DGNImputer, DGNOutlierDetector, TableModel
    from girih.training import FitOptions, FitResult

__all__ = [
    "DGN",
    "Blocks",
    "Bracket",
    "ConditionalDGN",
    "Covariance",
    "DGNEstimator",
    "DGNImputer",
    "DGNOutlierDetector",
    "FitOptions",
    "FitResult",
    "GaussianMixturePrior",
    "Partition",
    "Posterior",
    "PosteriorDraws",
    "TableModel",
    "Uniform",
    "__version__",
    "bounds",
    "bracket",
    "datasets",
    "em",
    "errors",
    "explore",
    "explorer",
    "flows",
    "gan",
    "gaussian",
    "geometry",
    "hub",
    "inference",
    "likelihood",
    "load",
    "mlp",
    "networks",
    "partition",
    "plots",
    "report",
    "sample_posterior",
    "sampling",
    "save",
    "select_model",
    "selection",
    "streams",
    "tables",
    "trace",
    "train",
    "training",
    "vae",
]

# Loaded at first use: torch, pandas and matplotlib take seconds to import, and `girih --help` needs none.
_HOMES = {
    "Blocks": "streams",
    "Bracket": "bounds",
    "bracket": "bounds",
    "ConditionalDGN": "inference",
    "Covariance": "covariance",
    "DGN": "inference",
    "DGNEstimator": "em",
    "DGNImputer": "tables",
    "DGNOutlierDetector": "tables",
    "FitOptions": "training",
    "FitResult": "training",
    "GaussianMixturePrior": "inference",
    "Partition": "partition",
    "Posterior": "inference",
    "PosteriorDraws": "sampling",
    "explore": "explorer",
    "load": "io",
    "mlp": "networks",
    "sample_posterior": "sampling",
    "save": "io",
    "select_model": "selection",
    "trace": "networks",
    "TableModel": "tables",
    "train": "likelihood",
    "Uniform": "inference",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"girih.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f"girih.{name}")
    if name == "experiments":
        package = papers()
        message = "girih.experiments is a package of its own now: import girih_papers instead"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return package
    raise AttributeError(f"module 'girih' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
