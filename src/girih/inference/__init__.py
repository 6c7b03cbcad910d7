"""Exact inference: the joint model `DGN`, its marginal distribution and its posteriors."""

from girih.inference.dgn import DGN, DGNDistribution
from girih.inference.posterior import Posterior

__all__ = ["DGN", "DGNDistribution", "Posterior"]
