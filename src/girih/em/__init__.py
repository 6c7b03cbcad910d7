"""Exact expectation-maximisation: E-step statistics, M-steps, the loop and the scikit-learn estimator."""

from girih._deprecated import moved
from girih.em.estimator import NOISES, DGNEstimator, fold_estimator
from girih.em.fit import fit_em
from girih.em.monte_carlo import MonteCarloFit, fit_monte_carlo
from girih.em.mstep import WeightPrior
from girih.em.options import EMOptions
from girih.em.parameters import OverfitWarning, count_parameters
from girih.em.scaling import Scaling, noise_floor

__all__ = [
    "NOISES",
    "DGNEstimator",
    "EMOptions",
    "MonteCarloFit",
    "OverfitWarning",
    "Scaling",
    "WeightPrior",
    "count_parameters",
    "fit_em",
    "fit_monte_carlo",
    "fold_estimator",
    "noise_floor",
]

__getattr__ = moved(__name__, {"EMResult": ("girih", "FitResult")})
