"""The images of the CG-BPEF paper, split as it splits them."""

from __future__ import annotations

import numpy as np

from girih.datasets import load
from girih.errors import ParameterError
from girih_papers.arrays import Array
from girih_papers.rivals import Rows

# The shares of training, validation and test rows (section 4).
SHARES = {"mnist": (11.0, 1.0, 2.0), "svhn": (10.0, 1.0, 3.5)}
SIDES = {"mnist": 28, "svhn": 32}


def images(data: str, path: str) -> Array:
    """All images in [0, 1], one a row.

    Args:
        data: "mnist", the 5,000 digits that come along or, with a path, all 70,000; or "svhn", in grey.
        path: of the local files of their authors; SVHN has no others.

    Raises:
        ParameterError: there are no such data.
        DataSourceError: the files are missing or damaged.
    """
    if data not in SHARES:
        raise ParameterError(f"data must be one of {', '.join(SHARES)}; got {data!r}")
    if data == "mnist":
        return load("mnist-full", path=path).X if path else load("mnist").X
    colours = load("svhn", path=path or None, part="all").X
    return np.asarray(colours.reshape(len(colours), -1, 3).mean(-1))  # the mean of the channels, as the paper has it


def split(X: Array, data: str, seed: int) -> Rows:
    """Training rows, validation rows and test rows ("held out"), by a random order of all.

    Example:
        >>> import numpy as np
        >>> from girih_papers.cgbpef_data import split
        >>> rows = split(np.zeros((140, 2)), "mnist", 0)
        >>> len(rows.train), len(rows.validation), len(rows.held_out)
        (110, 10, 20)
    """
    order = np.random.default_rng(seed).permutation(len(X))
    ends = np.round(np.cumsum(SHARES[data])[:2] / sum(SHARES[data]) * len(X)).astype(int)
    train, validation, test = (X[part] for part in np.split(order, ends))
    return Rows(train, validation, test)
