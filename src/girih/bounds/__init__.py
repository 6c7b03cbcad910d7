"""Bounds on `log p(x)` for latents of any dimension, certified: by linear relaxations of the network on boxes."""

from girih.bounds.search import Bracket, bracket

__all__ = ["Bracket", "bracket"]
