"""Variational autoencoders whose bound can be compared with the exact likelihood of their decoder."""

from girih.vae.bpef import BPEF, CoarseBPEF, RelaxedBPEF
from girih.vae.cat import CatVAE
from girih.vae.cgbpef import CGBPEFVAE
from girih.vae.gaps import Gap, gap
from girih.vae.gauss import GaussVAE
from girih.vae.mixture import MixtureVAE
from girih.vae.model import VAE
from girih.vae.terms import ExactBound, FreeEnergy

__all__ = [
    "BPEF",
    "CGBPEFVAE",
    "VAE",
    "CatVAE",
    "CoarseBPEF",
    "ExactBound",
    "FreeEnergy",
    "Gap",
    "GaussVAE",
    "MixtureVAE",
    "RelaxedBPEF",
    "gap",
]
