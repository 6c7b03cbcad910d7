"""Information geometry of VAEs: exponential families in both coordinates, bounds on term 1, the information in z."""

from girih.vae.information.best_prior import (
    Estimate,
    Limits,
    bregman_centroid,
    compactness,
    family_of,
    mean_and_covariance,
    mean_divergence,
    mixture_compactness,
    mixture_compactness_sampled,
    mixture_limits,
)
from girih.vae.information.exponential_families import (
    CategoricalFamily,
    ExponentialFamily,
    GaussianFamily,
    NormalFamily,
    Product,
)
from girih.vae.information.fisher import Precision, cramer_rao, fisher_information
from girih.vae.information.polynomial_families import BPEFFamily, CoarseFamily
from girih.vae.information.second_order import (
    Optimum,
    optimal_free_energy,
    second_order_free_energy,
    second_order_reconstruction,
)

__all__ = [
    "BPEFFamily",
    "CategoricalFamily",
    "CoarseFamily",
    "Estimate",
    "ExponentialFamily",
    "GaussianFamily",
    "Limits",
    "NormalFamily",
    "Optimum",
    "Precision",
    "Product",
    "bregman_centroid",
    "compactness",
    "cramer_rao",
    "family_of",
    "fisher_information",
    "mean_and_covariance",
    "mean_divergence",
    "mixture_compactness",
    "mixture_compactness_sampled",
    "mixture_limits",
    "optimal_free_energy",
    "second_order_free_energy",
    "second_order_reconstruction",
]
