"""Gaussian log-mass and moments over intervals (polygons and polyhedra will join them)."""

from girih.gaussian.interval import IntervalMoments, interval_log_mass, interval_moments
from girih.gaussian.truncated import sample_truncated

__all__ = ["IntervalMoments", "interval_log_mass", "interval_moments", "sample_truncated"]
