"""Bounds on `log p(x)` for latents of any dimension: certified, by relaxations of the network, or with a confidence."""

from girih.bounds.bracket import Bracket, bracket

__all__ = ["Bracket", "bracket"]
