"""Covariances of noise and priors: scalar, diagonal, low-rank plus diagonal, and full, behind one type."""

from girih.covariance.base import Covariance, Observed
from girih.covariance.full import Full
from girih.covariance.independent import Diagonal, Scalar
from girih.covariance.low_rank import LowRank
from girih.covariance.unconstrained import Unconstrained

__all__ = ["Covariance", "Diagonal", "Full", "LowRank", "Observed", "Scalar", "Unconstrained"]
