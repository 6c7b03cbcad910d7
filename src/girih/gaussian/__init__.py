"""Gaussian log-mass, moments and draws on intervals, polygons, polyhedra and polytopes given in any form."""

import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from torch import Tensor

from girih.gaussian.any_gaussian import Moments, log_mass, moments
from girih.gaussian.batched import box_log_mass, box_moments, polytope_log_mass, polytope_moments
from girih.gaussian.clipping import from_halfspaces
from girih.gaussian.hulls import hull_log_mass
from girih.gaussian.interval import IntervalMoments, interval_log_mass, interval_moments, sample_truncated
from girih.gaussian.polytopes import Polygons, Polyhedra

__all__ = [
    "IntervalMoments",
    "Moments",
    "Polygons",
    "Polyhedra",
    "box_log_mass",
    "box_moments",
    "from_halfspaces",
    "hull_log_mass",
    "interval_log_mass",
    "interval_moments",
    "log_mass",
    "moments",
    "polytope_log_mass",
    "polytope_moments",
    "sample_truncated",
]

_METHODS: dict[str, tuple[type[Polygons | Polyhedra], str]] = {
    "polygon_log_mass": (Polygons, "log_mass"),
    "polygon_moments": (Polygons, "moments"),
    "polygon_nearest": (Polygons, "nearest"),
    "polyhedron_log_mass": (Polyhedra, "log_mass"),
    "polyhedron_moments": (Polyhedra, "moments"),
    "polyhedron_nearest": (Polyhedra, "nearest"),
    "sample_polygons": (Polygons, "sample"),
    "sample_polyhedra": (Polyhedra, "sample"),
}


def __getattr__(name: str) -> Callable[..., Tensor | tuple[Tensor, Tensor, Tensor]]:
    if name not in _METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    kind, method = _METHODS[name]
    successor = f"girih.gaussian.{kind.__name__}(...).{method}"
    warnings.warn(f"girih.gaussian.{name} is now {successor}", DeprecationWarning, stacklevel=2)
    return partial(_call, kind, method)


def _call(
    kind: type[Polygons | Polyhedra], method: str, *values: Tensor, **named: Tensor
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """A method of a list that is made of the first arguments, as functions took them in girih 0.1."""
    names = [field.name for field in fields(kind)]
    own: dict[str, Any] = dict(zip(names, values, strict=False)) | {
        name: named.pop(name) for name in names if name in named
    }
    result: Tensor | tuple[Tensor, Tensor, Tensor] = getattr(kind(**own), method)(*values[len(names) :], **named)
    return result
