"""Finding the reproductions of the papers, which are a package of their own."""

from __future__ import annotations

import importlib
from types import ModuleType

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
