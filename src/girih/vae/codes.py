"""The former place of what goes through all codes of discrete latents: `girih.vae.evidence` has it."""

import warnings

from girih.vae.evidence import CodeBound, CodePosterior, enumerate_bound, enumerate_exact, enumerate_posterior

__all__ = ["CodeBound", "CodePosterior", "enumerate_bound", "enumerate_exact", "enumerate_posterior"]

warnings.warn("girih.vae.codes is now a part of girih.vae.evidence", DeprecationWarning, stacklevel=2)
