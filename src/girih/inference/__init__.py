"""Exact inference: the joint model `DGN`, its marginal distribution and its posteriors."""

from girih.inference.conditional import ConditionalDGN, ConditionalDistribution
from girih.inference.dgn import DGN
from girih.inference.distribution import DGNDistribution
from girih.inference.likelihoods import Mixed
from girih.inference.model import MAX_LATENT_DIM, Evidence, Model, check_latent_dim, chunks
from girih.inference.outputs import Bernoulli, Categorical, NegativeBinomial, Output, Poisson
from girih.inference.posterior import Posterior
from girih.inference.priors import GaussianMixturePrior, Uniform
from girih.inference.real_outputs import Laplace, Normal, StudentT
from girih.inference.statistics import Statistics, accumulate, evidence, sufficient_statistics

__all__ = [
    "DGN",
    "MAX_LATENT_DIM",
    "Bernoulli",
    "Categorical",
    "ConditionalDGN",
    "ConditionalDistribution",
    "DGNDistribution",
    "Evidence",
    "GaussianMixturePrior",
    "Laplace",
    "Mixed",
    "Model",
    "NegativeBinomial",
    "Normal",
    "Output",
    "Poisson",
    "Posterior",
    "Statistics",
    "StudentT",
    "Uniform",
    "accumulate",
    "check_latent_dim",
    "chunks",
    "evidence",
    "sufficient_statistics",
]
