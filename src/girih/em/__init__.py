"""Exact expectation-maximisation: E-step statistics, M-steps, the loop and the scikit-learn estimator."""

from girih.em.estimator import DGNEstimator, count_parameters
from girih.em.fit import EMResult, fit_em
from girih.em.penalty import WeightPrior

__all__ = ["DGNEstimator", "EMResult", "WeightPrior", "count_parameters", "fit_em"]
