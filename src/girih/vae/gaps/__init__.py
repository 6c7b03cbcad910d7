"""How far a VAE is from the exact posterior of its decoder: what `girih.vae.gap` is made of."""

from girih.vae.gaps.measure import gap
from girih.vae.gaps.result import Gap

__all__ = ["Gap", "gap"]
