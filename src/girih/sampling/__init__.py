"""Draws of exact posteriors and estimates of log p(x) for any latent dimension, by motion through the cells."""

from girih.sampling.annealing import Annealed, annealed
from girih.sampling.posterior import PosteriorDraws, effective_samples, r_hat, sample_posterior

__all__ = ["Annealed", "PosteriorDraws", "annealed", "effective_samples", "r_hat", "sample_posterior"]
