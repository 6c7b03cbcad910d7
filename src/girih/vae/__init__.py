"""Variational autoencoders whose bound can be compared with the exact likelihood of their decoder."""

from girih.vae.gauss import ExactBound, FreeEnergy, GaussVAE

__all__ = ["ExactBound", "FreeEnergy", "GaussVAE"]
