"""`load` and `names`: every built-in data set by name, and files by path."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from girih.datasets import published, toys
from girih.datasets.dataset import Dataset, check_count
from girih.datasets.files import SUFFIXES, load_file
from girih.datasets.reading import FileFormat
from girih.errors import DataSourceError, ParameterError

# Drawn afresh: called with (n, seed, **options).
_TOYS: dict[str, Callable[..., Dataset]] = {
    "circle": toys.circle,
    "wave": toys.wave,
    "line": toys.line,
    "spiral": toys.spiral,
    "moons": toys.moons,
    "many-moons": toys.many_moons,
    "circles": toys.circles,
    "grid-mixture": toys.grid_mixture,
    "ring-mixture": toys.ring_mixture,
}

# Fixed tables: called with (**options), then subsampled.
_TABLES: dict[str, Callable[..., Dataset]] = {
    "mnist": published.mnist,
    "digits": published.digits,
    "iris": published.iris,
    "wine": published.wine,
    "breast_cancer": published.breast_cancer,
    "diabetes": published.diabetes,
    "mnist-full": published.mnist_full,
    "cifar10": published.cifar10,
    "svhn": published.svhn,
}

_ONE_DIGIT = re.compile(r"(mnist|digits)-(\d)")


def names() -> dict[str, str]:
    """The built-in data sets, each with one line on what it is.

    Example:
        >>> from girih.datasets import names
        >>> list(names())[:3], names()["iris"]
        (['circle', 'wave', 'line'], '150 flowers, 4 lengths in cm, labelled by species.')
    """
    listed: dict[str, str] = {}
    for name, function in (_TOYS | _TABLES).items():
        listed[name] = (function.__doc__ or "").strip().splitlines()[0]
        if name in ("mnist", "digits"):
            listed[f"{name}-<d>"] = f"The rows of '{name}' that show the digit d, e.g. '{name}-4'."
    return listed


def load(
    name_or_path: str | os.PathLike[str],
    n: int | None = None,
    seed: int = 0,
    *,
    noise: float | None = None,
    radius: float | None = None,
    frequency: float | None = None,
    turns: float | None = None,
    inner: float | None = None,
    side: int | None = None,
    modes: int | None = None,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    header: bool | None = None,
    reading: FileFormat | None = None,
    memory: float | None = None,
    path: str | os.PathLike[str] | None = None,
    part: str | None = None,
    grey: bool | None = None,
    data_home: str | None = None,
) -> Dataset:
    """A data set by its built-in name, the numeric columns of a csv, npy, npz or parquet file, or files of images.

    Args:
        name_or_path: a name that `names()` lists, or the path of a file, or of a file or folder of CIFAR-10 (binary or
            Python version), SVHN (cropped) or MNIST (idx), as their authors give them out.
        n: how many rows. Toys are drawn afresh (256 rows by default); of a table or a file, n rows are drawn
            without replacement (all rows by default).
        seed: makes the draw reproducible.
        noise: of toys, a standard deviation. As for all that follow, `None` is the default of the set.
        radius: of "circle".
        frequency: of "wave".
        turns: of "spiral".
        inner: of "circles", the radius of the smaller one.
        side: of "grid-mixture".
        modes: of "ring-mixture".
        columns: of files, the names of the columns to keep.
        drop: of files, the names of columns to leave out.
        header: of csv files, true or false when the detection of a first line of names is not wanted.
        reading: of csv and xlsx files, a `FileFormat`: how numbers and missing entries are written, if that is known.
        memory: of files, images too, GB of rows that a packed one may unpack to.
        path: of "mnist-full", "cifar10" and "svhn", their local files.
        part: of these, "train", "test" or "all".
        grey: of "cifar10" and "svhn", one channel.
        data_home: of "mnist-full", where what was fetched is kept.

    Raises:
        DataSourceError: the name is unknown, or the file is missing, damaged, of another format, or not numeric.
        EmptyDataError: the file holds no rows or no columns.
        NonFiniteError: the file holds infinite values.
        ParameterError: n, seed or an option is outside its domain, or of another set; the message says which it takes.

    Example:
        >>> import girih.datasets
        >>> girih.datasets.load("circle", n=4, seed=1).X.round(2)
        array([[-0.95, -0.05],
               [ 0.93, -0.28],
               [ 0.64,  0.8 ],
               [ 0.95, -0.29]])
        >>> girih.datasets.load("mnist-4").image_shape
        (28, 28)
    """
    given = {
        "noise": noise, "radius": radius, "frequency": frequency, "turns": turns, "inner": inner, "side": side,
        "modes": modes, "columns": columns, "drop": drop, "header": header, "reading": reading, "memory": memory,
        "path": path, "part": part, "grey": grey, "data_home": data_home,
    }  # fmt: skip
    options = {option: value for option, value in given.items() if value is not None}
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise DataSourceError(
            f"a data set is named by a string or a path, not by {type(name_or_path).__name__}; arrays need no loading"
        )
    if n is not None:
        n = check_count(n)
    if isinstance(name_or_path, str):
        if name_or_path in _TOYS:
            toy = _TOYS[name_or_path]
            _check_options(name_or_path, toy, options)
            return toy(n, seed, **options)
        dataset = _table(name_or_path, options)
        if dataset is None and not _looks_like_path(name_or_path):
            raise DataSourceError(_unknown(name_or_path))
    else:
        dataset = None
    if dataset is None:
        dataset = _from_path(os.path.expanduser(name_or_path), options)
    return dataset if n is None else dataset.subset(n, seed)


def _table(name: str, options: dict[str, Any]) -> Dataset | None:
    digit = _ONE_DIGIT.fullmatch(name)
    function = _TABLES.get(digit[1] if digit else name)
    if function is None:
        return None
    _check_options(name, function, options)
    dataset = function(**options)
    return published.one_digit(dataset, int(digit[2])) if digit else dataset


def _from_path(path: str | os.PathLike[str], options: dict[str, Any]) -> Dataset:
    reader = published.reader_for(path)
    if reader is None:
        _check_options(f"a file ({Path(path).name})", load_file, options)
        return load_file(path, **options)
    known = {"path": path, **options}
    _check_options(f"{Path(path).name} (images)", reader, known)
    return reader(**known)


def _check_options(name: str, function: Callable[..., Dataset], options: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            takes = f"the options {', '.join(known)}" if known else "no options besides n and seed"
            raise ParameterError(f"{name} takes {takes}; got {option!r}")


def _looks_like_path(name: str) -> bool:
    separators = [os.sep] + ([os.altsep] if os.altsep else [])
    return any(s in name for s in separators) or bool(Path(name).suffix) or os.path.exists(name)


def _unknown(name: str) -> str:
    listed = list(names())
    known = [x for x in listed if "<" not in x]
    nearest = difflib.get_close_matches(name.lower().replace(" ", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return (
        f"there is no data set {name!r}; {hint}built in are {', '.join(listed)}; "
        f"a file needs its suffix ({', '.join(SUFFIXES)})"
    )
