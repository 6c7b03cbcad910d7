"""Variational autoencoders whose bound can be compared with the exact likelihood of their decoder."""

from girih._deprecated import former_module
from girih.vae import bpef, evidence, information, nearest
from girih.vae.bpef import BPEF, CoarseBPEF, RelaxedBPEF
from girih.vae.families import (
    Category,
    Draws,
    Family,
    Gaussian,
    Mixture,
    Nearest,
    Polynomial,
    Search,
    register_family,
)
from girih.vae.fitting import Annealing, annealed
from girih.vae.free_energy import ExactBound, FreeEnergy, FreeEnergyModel
from girih.vae.inference_gap import Gap, gap
from girih.vae.model import VAE
from girih.vae.pair import Pair
from girih.vae.variants import CGBPEFVAE, CatVAE, GaussVAE, MixtureVAE

__all__ = [
    "BPEF",
    "CGBPEFVAE",
    "VAE",
    "Annealing",
    "CatVAE",
    "Category",
    "CoarseBPEF",
    "Draws",
    "ExactBound",
    "Family",
    "FreeEnergy",
    "FreeEnergyModel",
    "Gap",
    "GaussVAE",
    "Gaussian",
    "Mixture",
    "MixtureVAE",
    "Nearest",
    "Pair",
    "Polynomial",
    "RelaxedBPEF",
    "Search",
    "annealed",
    "bpef",
    "evidence",
    "gap",
    "information",
    "nearest",
    "register_family",
]

_CODES = ("CodeBound", "CodePosterior", "enumerate_bound", "enumerate_exact", "enumerate_posterior")
former_module("girih.vae.codes", {name: ("girih.vae.evidence", name) for name in _CODES})
