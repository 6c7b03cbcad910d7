"""Searches for the member of a family that is nearest to an exact posterior: descents, expectations and quadratures."""

from girih.vae.nearest.cubature import bisected, rule, simplices_of, volumes
from girih.vae.nearest.gaussian_averages import COARSE, FINE, MEDIUM, Joint, Rule, label_entropy
from girih.vae.nearest.product_families import Grid, conditioned, fitted, negative_elbo
from girih.vae.nearest.search import Minimum, Nearest, Search, Searcher, minimise

__all__ = [
    "COARSE",
    "FINE",
    "MEDIUM",
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
