"""The former place of what goes through all codes of discrete latents: `girih.vae.evidence` has it."""

from girih._deprecated import moved

_NAMES = ("CodeBound", "CodePosterior", "enumerate_bound", "enumerate_exact", "enumerate_posterior")

__getattr__ = moved(__name__, {name: ("girih.vae.evidence", name) for name in _NAMES})
