"""The former name of `girih_papers`, which it forwards to: `from girih.experiments import registry` still works."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from girih._papers import papers


def __getattr__(name: str) -> ModuleType:
    if name.startswith("__"):
        raise AttributeError(f"module 'girih.experiments' has no attribute {name!r}")
    package = papers()
    message = f"girih.experiments is a package of its own now: import girih_papers.{name} instead"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return importlib.import_module(f"{package.__name__}.{name}")
