"""Families of q(z | x): what the encoder's numbers mean, how z is drawn, and what the divergence from the prior is."""

from girih.vae.posteriors.base import Draws, Layout, PosteriorFamily
from girih.vae.posteriors.bpef import BPEFPosterior
from girih.vae.posteriors.category import CategoryPosterior
from girih.vae.posteriors.gaussian import GaussianPosterior
from girih.vae.posteriors.mixture import MixturePosterior

__all__ = [
    "BPEFPosterior",
    "CategoryPosterior",
    "Draws",
    "GaussianPosterior",
    "Layout",
    "MixturePosterior",
    "PosteriorFamily",
]
