"""The bounded polynomial exponential family on [-1, 1]: on R levels, relaxed, and continuous."""

from girih.vae.bpef.concrete import RelaxedBPEF, log_concrete, log_concrete_with, log_density
from girih.vae.bpef.distributions import BPEF, CoarseBPEF
from girih.vae.bpef.exponential_polynomials import evaluate, levels, polynomials, to_basis

__all__ = [
    "BPEF",
    "CoarseBPEF",
    "RelaxedBPEF",
    "evaluate",
    "levels",
    "log_concrete",
    "log_concrete_with",
    "log_density",
    "polynomials",
    "to_basis",
]
