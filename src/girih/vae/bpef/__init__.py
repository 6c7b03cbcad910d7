"""The bounded polynomial exponential family on [-1, 1]: on R levels, relaxed, and continuous."""

from girih.vae.bpef.coarse import CoarseBPEF
from girih.vae.bpef.continuous import BPEF
from girih.vae.bpef.polynomials import levels, polynomials, to_basis
from girih.vae.bpef.relaxed import RelaxedBPEF

__all__ = ["BPEF", "CoarseBPEF", "RelaxedBPEF", "levels", "polynomials", "to_basis"]
