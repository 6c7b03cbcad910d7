"""Variational autoencoders whose bound can be compared with the exact likelihood of their decoder."""

from girih.vae.gauss import GaussVAE
from girih.vae.terms import ExactBound, FreeEnergy

__all__ = ["ExactBound", "FreeEnergy", "GaussVAE"]
