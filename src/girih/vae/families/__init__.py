"""Families of q(z | x): what the encoder's numbers mean, how z is drawn, the prior, and the member that is nearest."""

from girih.errors import ParameterError
from girih.vae.families.base import Draws, Family
from girih.vae.families.category import Category
from girih.vae.families.gaussian import Gaussian
from girih.vae.families.mixture import Mixture
from girih.vae.families.polynomial import Polynomial
from girih.vae.nearest.search import Nearest, Search, Searcher

__all__ = [
    "Category",
    "Draws",
    "Family",
    "Gaussian",
    "Mixture",
    "Nearest",
    "Polynomial",
    "Search",
    "Searcher",
    "family_class",
    "family_named",
    "register_family",
]

_FAMILIES: dict[str, type[Family]] = {kind.name: kind for kind in (Gaussian, Mixture, Category, Polynomial)}


def register_family(family: type[Family]) -> type[Family]:
    """Make a family known by its `name`, for `girih.vae.VAE` and `girih.load`; usable as a decorator.

    Raises:
        ParameterError: it is no family, or another one has the name.
    """
    if not (isinstance(family, type) and issubclass(family, Family)) or not isinstance(
        getattr(family, "name", None), str
    ):
        raise ParameterError(f"a family is a subclass of girih.vae.Family with a name; got {family!r}")
    if _FAMILIES.setdefault(family.name, family) is not family:
        raise ParameterError(f"a family {family.name!r} is registered already; give the new one another name")
    return family


def family_class(name: object) -> type[Family]:
    """The class of a registered name.

    Raises:
        ParameterError: there is none.
    """
    if not isinstance(name, str) or name not in _FAMILIES:
        raise ParameterError(
            f"family must be {', '.join(map(repr, _FAMILIES))}, or an instance of girih.vae.Family; got {name!r}"
        )
    return _FAMILIES[name]


def family_named(family: str | Family) -> Family:
    """The family itself, or the one of a name with its default options."""
    return family if isinstance(family, Family) else family_class(family)()
