"""The former name of `girih_papers`, which it forwards to: `from girih.experiments import registry` still works."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from types import ModuleType

from girih._extras import papers


def __getattr__(name: str) -> ModuleType:
    successor = f"{papers().__name__}.{name}"
    if name.startswith("__") or importlib.util.find_spec(successor) is None:
        raise AttributeError(f"module 'girih.experiments' has no attribute {name!r}")
    message = f"girih.experiments is a package of its own now: import {successor} instead"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return importlib.import_module(successor)
