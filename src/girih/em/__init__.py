"""Exact expectation-maximisation: E-step statistics, M-steps, the loop and the scikit-learn estimator."""

from girih._deprecated import moved
from girih.em.estimator import DGNEstimator
from girih.em.fit import fit_em
from girih.em.options import EMOptions
from girih.em.overfit import OverfitWarning
from girih.em.penalty import WeightPrior
from girih.em.trained import count_parameters

__all__ = ["DGNEstimator", "EMOptions", "OverfitWarning", "WeightPrior", "count_parameters", "fit_em"]

__getattr__ = moved(__name__, {"EMResult": ("girih", "FitResult")})
