"""Searches for the member of a family that is nearest to an exact posterior: descents, expectations and quadratures."""

from girih.inference.model import Expected
from girih.vae.nearest.cubature import bisected, rule, simplices_of, volumes
from girih.vae.nearest.gaussian_expectations import Joint
from girih.vae.nearest.label_entropy import COARSE, FINE, MEDIUM, Rule, label_entropy
from girih.vae.nearest.minimise import Minimum, minimise
from girih.vae.nearest.product_families import Grid, conditioned, fitted, negative_elbo
from girih.vae.nearest.search import Nearest, Search, Searcher

__all__ = [
    "COARSE",
    "FINE",
    "MEDIUM",
    "Expected",
    "Grid",
    "Joint",
    "Minimum",
    "Nearest",
    "Rule",
    "Search",
    "Searcher",
    "bisected",
    "conditioned",
    "fitted",
    "label_entropy",
    "minimise",
    "negative_elbo",
    "rule",
    "simplices_of",
    "volumes",
]
