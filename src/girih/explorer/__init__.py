"""A page to look around in a model: `explore`, and the `Explorer` that it returns."""

from girih.explorer.latent import Wanted
from girih.explorer.result import Explorer, explore, explorer_of

__all__ = ["Explorer", "Wanted", "explore", "explorer_of"]
