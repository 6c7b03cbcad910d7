"""CIFAR-10, SVHN and MNIST from files like their authors': right pixels, and nothing that a pickle asks for runs."""

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from girih.datasets import load
from girih.errors import DataSourceError, GirihError, ParameterError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 1, 7, 0])
PARTS = {"data_batch_1": slice(0, 2), "data_batch_2": slice(2, 5), "test_batch": slice(5, 7)}


def refused(kind: type[GirihError], *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def planes(images: np.ndarray) -> np.ndarray:
    """Rows of CIFAR-10: the red plane, the green, the blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def old_pickle(images: np.ndarray, labels: list[int]) -> bytes:
    """As Python 2 wrote it: texts and data are byte strings, the array is rebuilt by numpy.core.multiarray."""
    data = planes(images).tobytes()
    out = b"\x80\x02}q\x01("
    out += b"U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
    out += b"(K\x01" + b"J" + struct.pack("<i", len(images)) + b"J" + struct.pack("<i", 3072) + b"\x86"
    out += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    out += b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    out += b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return out + b"U\x0bbatch_labelU\x04testu."


def write_cifar(folder: Path, kind: str) -> None:
    for name, rows in PARTS.items():
        images, labels = IMAGES[rows], LABELS[rows].tolist()
        if kind == "binary":
            both = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], planes(images)], 1)
            (folder / f"{name}.bin").write_bytes(both.tobytes())
        elif kind == "python 2":
            (folder / name).write_bytes(old_pickle(images, labels))
        else:
            (folder / name).write_bytes(pickle.dumps({b"data": planes(images), b"labels": labels}, protocol=2))


@pytest.mark.parametrize("kind", ["binary", "python 2", "python 3"])
def test_cifar10_has_the_pixels_and_labels_that_were_written(tmp_path: Path, kind: str) -> None:
    write_cifar(tmp_path, kind)
    train = load("cifar10", path=tmp_path)
    assert train.image_shape == (32, 32, 3) and train.name == "cifar10" and len(train.feature_names) == 3072
    assert np.array_equal(train.X.reshape(-1, 32, 32, 3) * 255.0, IMAGES[:5])
    assert train.labels is not None and train.labels.tolist() == LABELS[:5].tolist()
    assert np.array_equal(load("cifar10", path=tmp_path, part="test").X * 255.0, IMAGES[5:].reshape(2, -1))
    assert np.array_equal(load("cifar10", path=tmp_path, part="all").labels, LABELS)
    grey = load(str(tmp_path), grey=True)  # a path is recognised by its files
    assert grey.image_shape == (32, 32)
    luminance = 0.299 * IMAGES[0, 4, 6, 0] + 0.587 * IMAGES[0, 4, 6, 1] + 0.114 * IMAGES[0, 4, 6, 2]
    assert grey.X[0, 4 * 32 + 6] == pytest.approx(luminance / 255.0, abs=1e-14)
    one = load(tmp_path / ("data_batch_2.bin" if kind == "binary" else "data_batch_2"), n=2, seed=1)
    assert one.shape == (2, 3072)


class Evil:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return (os.mkdir, (self.folder,))


def test_a_pickle_that_asks_for_code_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil(str(made)), b"labels": [1]}, protocol=2))
    assert "which is not called" in refused(DataSourceError, "cifar10", path=tmp_path)
    assert not made.exists()


@pytest.mark.parametrize(
    "held",
    [
        {b"data": planes(IMAGES).astype(np.float32), b"labels": LABELS.tolist()},
        {b"data": planes(IMAGES)[:, :-1].copy(), b"labels": LABELS.tolist()},
        {b"data": planes(IMAGES), b"labels": LABELS[:3].tolist()},
        {b"data": planes(IMAGES), b"labels": ["cat"] * 7},
        {b"data": planes(IMAGES)},
        [1, 2],
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, held: Any) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(held, protocol=2))
    assert "data_batch_1" in refused(DataSourceError, "cifar10", path=tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x01(U\x04da", old_pickle(IMAGES[:2], [1, 2])[:-3000], b"x" * 99])
def test_a_damaged_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    assert "data_batch_1" in refused(DataSourceError, "cifar10", path=tmp_path)


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes([10]) + bytes(3072)])
def test_a_binary_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    assert "3,072 pixels" in refused(DataSourceError, "cifar10", path=tmp_path)


def test_svhn_has_the_pixels_that_were_written_and_ten_means_zero(tmp_path: Path) -> None:
    for name, rows in (("train", slice(0, 4)), ("test", slice(4, 7))):
        labels = np.where(LABELS[rows] == 0, 10, LABELS[rows])[:, None].astype(np.uint8)
        savemat(tmp_path / f"{name}_32x32.mat", {"X": IMAGES[rows].transpose(1, 2, 3, 0), "y": labels})
    for train in (load("svhn", path=tmp_path), load(tmp_path / "train_32x32.mat")):
        assert train.image_shape == (32, 32, 3) and np.array_equal(train.X * 255.0, IMAGES[:4].reshape(4, -1))
        assert train.labels is not None and train.labels.tolist() == LABELS[:4].tolist()
    both = load("svhn", path=tmp_path, part="all", grey=True)
    assert both.image_shape == (32, 32) and np.array_equal(both.labels, LABELS)


@pytest.mark.parametrize("content", [b"", b"no mat file", b"MATLAB 5.0 MAT-file" + bytes(200)])
def test_a_damaged_mat_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train_32x32.mat").write_bytes(content)
    assert "not a cropped SVHN" in refused(DataSourceError, "svhn", path=tmp_path)


def test_a_mat_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "train_32x32.mat", {"X": IMAGES, "y": LABELS})
    assert "(32, 32, 3, N)" in refused(DataSourceError, "svhn", path=tmp_path)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_mnist(folder: Path, packed: bool) -> np.ndarray:
    digits = RNG.integers(0, 256, (7, 28, 28), dtype=np.uint8)
    for name, rows in (("train", slice(0, 4)), ("t10k", slice(4, 7))):
        for kind, array in (("images-idx3", digits[rows]), ("labels-idx1", LABELS[rows])):
            data = idx(array)
            file = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(data) if packed else data)
    return digits


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_has_the_pixels_and_labels_that_were_written(tmp_path: Path, packed: bool) -> None:
    digits = write_mnist(tmp_path, packed)
    for full in (load("mnist-full", path=tmp_path), load(tmp_path)):
        assert full.image_shape == (28, 28) and np.array_equal(full.X * 255.0, digits.reshape(7, -1))
        assert np.array_equal(full.labels, LABELS)
    assert len(load("mnist-full", path=tmp_path, part="train")) == 4
    test = load(tmp_path / f"t10k-images-idx3-ubyte{'.gz' if packed else ''}")
    assert np.array_equal(test.labels, LABELS[4:]) and np.array_equal(test.X * 255.0, digits[4:].reshape(3, -1))


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, False)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    for content, words in (
        (whole[:-1], "cut off"),
        (whole[:10], "not an idx file"),
        (b"\x1f\x8bxx", "could not be read"),
    ):
        images.write_bytes(content)
        assert words in refused(DataSourceError, "mnist-full", path=tmp_path)
    images.write_bytes(whole)
    labels.write_bytes(idx(LABELS[:3]))
    assert "4 images and 3 labels" in refused(DataSourceError, "mnist-full", path=tmp_path)
    labels.unlink()
    assert "no train-labels-idx1-ubyte" in refused(DataSourceError, "mnist-full", path=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_without_files_the_offline_digits_are_named(tmp_path: Path, name: str) -> None:
    assert "'mnist'" in refused(DataSourceError, name)
    assert "'mnist'" in refused(DataSourceError, name, path=tmp_path)
    assert "'mnist'" in refused(DataSourceError, name, path=tmp_path / "nowhere")
    assert "part must be one of" in refused(ParameterError, name, path=tmp_path, part="valid")
    assert "'mnist'" in refused(DataSourceError, "mnist-full", path=tmp_path)
    assert "takes the options" in refused(ParameterError, name, path=tmp_path, radius=3)
