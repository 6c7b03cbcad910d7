"""What is compared: generators of a grid, and two models of scikit-learn as baselines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

from girih._options import whole
from girih.em.estimator import NOISES
from girih.errors import ParameterError
from girih.inference import check_latent_dim

DGN_MODEL = "DGN"
BASELINES = ("GaussianMixture", "FactorAnalysis")


@dataclass(frozen=True)
class Candidate:
    """One model of the comparison.

    Attributes:
        model: "DGN", "GaussianMixture" or "FactorAnalysis".
        latent_dim: S of a DGN, else 0.
        hidden: widths of a DGN's hidden layers.
        noise: shape of a DGN's noise.

    Example:
        >>> from girih.selection.candidates import Candidate
        >>> Candidate("DGN", 1, (8, 16), "diagonal").label
        'DGN S=1 8,16 diagonal'
    """

    model: str
    latent_dim: int = 0
    hidden: tuple[int, ...] = ()
    noise: str = ""

    @property
    def is_dgn(self) -> bool:
        """Whether it is a generator, not a baseline."""
        return self.model == DGN_MODEL

    @property
    def widths(self) -> str:
        """The widths as text."""
        return ",".join(str(width) for width in self.hidden) or "none"

    @property
    def label(self) -> str:
        """One line that names it."""
        return f"DGN S={self.latent_dim} {self.widths} {self.noise}" if self.is_dgn else self.model


def grid(latent_dims: Any, hidden: Any, noise: Any, baselines: Any) -> list[Candidate]:
    """All candidates, the smallest first.

    Raises:
        LatentDimensionError: S is too large for exact inference.
        ParameterError: an option is out of its domain, or nothing is left to compare.
    """
    dims = sorted({whole(dim, "a latent dimension") for dim in _several(latent_dims, "latent_dims")})
    for dim in dims:
        check_latent_dim(dim)
    widths = [_widths(value) for value in _layers(hidden)]
    noises = [noise] if isinstance(noise, str) else list(_several(noise, "noise"))
    for name in noises:
        if name not in NOISES:
            raise ParameterError(f"noise must be one of {', '.join(NOISES)}; got {name!r}")
    if not dims or not widths or not noises:
        raise ParameterError("latent_dims, hidden and noise need at least one value each")
    found = [Candidate(DGN_MODEL, S, layers, name) for S, layers, name in product(dims, widths, noises)]
    return list(dict.fromkeys(found)) + [Candidate(name) for name in _baselines(baselines)]


def _baselines(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return BASELINES if value else ()
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if name not in BASELINES:
            raise ParameterError(f"baselines must be True, False or some of {', '.join(BASELINES)}; got {name!r}")
    return tuple(dict.fromkeys(names))


def _several(value: Any, name: str) -> Iterable[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)
    values = tuple(value)
    if not values:
        raise ParameterError(f"{name} needs at least one value")
    return values


def _layers(hidden: Any) -> list[Any]:
    """`(8, 16)` alone would be one network or two: networks are tuples themselves."""
    values = list(_several(hidden, "hidden"))
    if not all(isinstance(value, Iterable) and not isinstance(value, str) for value in values):
        raise ParameterError(
            f"hidden is a list of networks, each a tuple of widths, e.g. ((8,), (16, 16)); got {hidden!r}"
        )
    return values


def _widths(value: Iterable[Any]) -> tuple[int, ...]:
    return tuple(whole(width, "a width of a hidden layer") for width in value)
