"""What is compared, generators of a grid and two models of scikit-learn as baselines; and on which rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from girih._options import real, whole
from girih.em import NOISES
from girih.errors import EmptyDataError, ParameterError
from girih.inference import check_latent_dim

DGN_MODEL = "DGN"
BASELINES = ("GaussianMixture", "FactorAnalysis")

# Fewest rows to fit a model to.
_LEAST = 2


@dataclass(frozen=True)
class Candidate:
    """A candidate is one model of the comparison.

    Attributes:
        model: "DGN", "GaussianMixture" or "FactorAnalysis".
        latent_dim: S of a DGN, else 0.
        hidden: widths of a DGN's hidden layers.
        noise: shape of a DGN's noise.

    Example:
        >>> from girih.selection import Candidate
        >>> Candidate("DGN", 1, (8, 16), "diagonal").label
        'DGN S=1 8,16 diagonal'
    """

    model: str
    latent_dim: int = 0
    hidden: tuple[int, ...] = ()
    noise: str = ""

    @property
    def is_dgn(self) -> bool:
        """It is a generator, not a baseline."""
        return self.model == DGN_MODEL

    @property
    def widths(self) -> str:
        """The widths as text."""
        return ",".join(str(width) for width in self.hidden) or "none"

    @property
    def label(self) -> str:
        """One line that names it."""
        return f"DGN S={self.latent_dim} {self.widths} {self.noise}" if self.is_dgn else self.model


def grid(
    latent_dims: Sequence[int] | int,
    hidden: Sequence[Sequence[int]],
    noise: str | Sequence[str],
    baselines: bool | str | Sequence[str],
) -> list[Candidate]:
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


def _baselines(value: bool | str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, bool):
        return BASELINES if value else ()
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if name not in BASELINES:
            raise ParameterError(f"baselines must be True, False or some of {', '.join(BASELINES)}; got {name!r}")
    return tuple(dict.fromkeys(names))


def _several(value: object, name: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)
    values = tuple(value)
    if not values:
        raise ParameterError(f"{name} needs at least one value")
    return values


def _layers(hidden: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """`(8, 16)` alone would be one network or two: networks are tuples themselves."""
    values = list(_several(hidden, "hidden"))
    if not all(isinstance(value, Iterable) and not isinstance(value, str) for value in values):
        raise ParameterError(
            f"hidden is a list of networks, each a tuple of widths, e.g. ((8,), (16, 16)); got {hidden!r}"
        )
    return values


def _widths(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(whole(width, "a width of a hidden layer") for width in value)


class Split(NamedTuple):
    """A split says which rows are fitted and which are held out, in order; `test` may be empty."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]


def make_splits(count: int, validation: float | None, folds: int | None, seed: int) -> list[Split]:
    """One split by a fraction, or one for each fold, every row held out once.

    Raises:
        ParameterError: an option is out of its domain.
        EmptyDataError: too few rows for it.

    Example:
        >>> from girih.selection import make_splits
        >>> [len(split.test) for split in make_splits(10, None, 3, seed=0)]
        [4, 3, 3]
    """
    order = np.random.default_rng(seed).permutation(count)
    if folds is not None:
        number = whole(folds, "folds", 2)
        if count < number * _LEAST:
            raise EmptyDataError(f"{count} rows are too few for {number} folds; use fewer folds")
        return [_split(order, part) for part in np.array_split(order, number)]
    if validation is None:
        if count < _LEAST:
            raise EmptyDataError(f"X needs at least {_LEAST} rows")
        return [Split(np.arange(count), np.arange(0))]
    held_out = round(_fraction(validation) * count)
    if held_out < 1 or count - held_out < _LEAST:
        raise EmptyDataError(
            f"validation={validation:g} of {count} rows leaves {count - held_out} to fit and {held_out} to hold "
            "out; pass more rows, or validation=None"
        )
    return [_split(order, order[:held_out])]


def _split(order: NDArray[np.intp], test: NDArray[np.intp]) -> Split:
    return Split(np.setdiff1d(order, test), np.sort(test))


def _fraction(value: float) -> float:
    number = real(value, "validation")
    if number >= 1.0:
        raise ParameterError(f"validation must be below 1; got {number:g}")
    return number
