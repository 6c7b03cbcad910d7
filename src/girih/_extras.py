"""What is not installed with girih itself: packages of its extras, and the reproductions of the papers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from girih.errors import MissingExtraError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import within this block what an extra installs.

    Args:
        extra: its name, as in `pip install "girih[plots]"`.

    Raises:
        MissingExtraError: a package of it is not installed.

    Example:
        >>> from girih._extras import needs
        >>> with needs("plots"):
        ...     import matplotlib
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "girih":
            raise
        raise MissingExtraError(
            f"this part of girih needs the package {error.name.partition('.')[0]}, which is not installed; "
            f'pip install "girih[{extra}]"',
            name=error.name,
        ) from None


def require(module: str, extra: str) -> ModuleType:
    """A module that an extra installs, imported where it is used.

    Args:
        module: its full name.
        extra: see `needs`.

    Raises:
        MissingExtraError: it is not installed.

    Example:
        >>> from girih._extras import require
        >>> require("pandas", "tables").DataFrame({"x": [1.0]}).shape
        (1, 1)
    """
    with needs(extra):
        return importlib.import_module(module)


_NAME = "girih_papers"


def papers() -> ModuleType:
    """The package `girih_papers`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
        raise ImportError(
            "the reproductions are a package of their own, girih-papers, which is not installed; in a copy of girih's "
            "repository run `make papers`, or `pip install ./papers`",
            name=_NAME,
        ) from None
