"""Gaussian log-mass and moments over intervals, polygons, polyhedra and polytopes given in any form."""

from girih.gaussian.interval import IntervalMoments, interval_log_mass, interval_moments
from girih.gaussian.nearest import polygon_nearest, polyhedron_nearest
from girih.gaussian.polygon import polygon_log_mass, polygon_moments
from girih.gaussian.polygon_sample import sample_polygons
from girih.gaussian.polyhedron import polyhedron_log_mass, polyhedron_moments
from girih.gaussian.polyhedron_sample import sample_polyhedra
from girih.gaussian.polytope import Moments, log_mass, moments
from girih.gaussian.truncated import sample_truncated

__all__ = [
    "IntervalMoments",
    "Moments",
    "interval_log_mass",
    "interval_moments",
    "log_mass",
    "moments",
    "polygon_log_mass",
    "polygon_moments",
    "polygon_nearest",
    "polyhedron_log_mass",
    "polyhedron_moments",
    "polyhedron_nearest",
    "sample_polygons",
    "sample_polyhedra",
    "sample_truncated",
]
