"""Exact expectation-maximisation: E-step statistics, M-steps, the loop and the scikit-learn estimator."""

from girih.em.estimator import DGNEstimator
from girih.em.fit import EMResult, fit_em
from girih.em.overfit import OverfitWarning
from girih.em.penalty import WeightPrior
from girih.em.trained import count_parameters

__all__ = ["DGNEstimator", "EMResult", "OverfitWarning", "WeightPrior", "count_parameters", "fit_em"]
