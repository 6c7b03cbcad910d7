"""Real data sets: what is offline is complete, and what needs a network says so."""

from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets

from girih.datasets import load, names
from girih.errors import DataSourceError, ParameterError


def test_mnist_is_five_thousand_scaled_digits() -> None:
    mnist = load("mnist")
    assert mnist.X.shape == (5000, 784) and mnist.image_shape == (28, 28)
    assert mnist.X.min() == 0.0 and mnist.X.max() == 1.0
    assert np.bincount(mnist.labels).tolist() == [500] * 10


def test_one_digit_is_the_rows_of_that_digit() -> None:
    mnist, fours = load("mnist"), load("mnist-4")
    assert fours.X.shape == (500, 784) and fours.image_shape == (28, 28) and set(fours.labels) == {4}
    assert np.array_equal(fours.X, mnist.X[mnist.labels == 4])
    threes = load("digits-3")
    assert threes.X.shape == (183, 64) and threes.image_shape == (8, 8) and threes.X.max() == 1.0


def test_what_a_caller_changes_does_not_come_back() -> None:
    load("mnist-4").X[:] = -1.0
    load("mnist").labels[:] = 0
    assert load("mnist-4").X.min() == 0.0 and len(load("mnist-4")) == 500


@pytest.mark.parametrize(
    ("name", "shape", "feature", "label"),
    [
        ("iris", (150, 4), "sepal length (cm)", "setosa"),
        ("wine", (178, 13), "alcohol", "class_0"),
        ("breast_cancer", (569, 30), "mean radius", "malignant"),
        ("diabetes", (442, 10), "age", None),
    ],
)
def test_tables_have_names_and_labels(name: str, shape: tuple, feature: str, label: str | None) -> None:
    dataset = load(name)
    assert dataset.shape == shape and dataset.feature_names[0] == feature and len(dataset.feature_names) == shape[1]
    assert dataset.image_shape is None and dataset.entropy is None
    assert dataset.labels is None if label is None else label in dataset.labels
    assert dataset.X.dtype == np.float64 and np.isfinite(dataset.X).all()


def test_a_subset_is_drawn_by_seed_without_replacement() -> None:
    part, again, other = (load("iris", n=40, seed=s) for s in (0, 0, 1))
    assert part.shape == (40, 4) and len(part.labels) == 40
    assert np.array_equal(part.X, again.X) and not np.array_equal(part.X, other.X)
    everything = load("iris")
    assert np.array_equal(load("iris", n=150).X, everything.X)
    with pytest.raises(ParameterError, match="n = 151 rows were asked of 'iris', which has 150"):
        load("iris", n=151)


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ParameterError, match="iris takes no options besides n and seed; got 'noise'"):
        load("iris", noise=0.1)


@pytest.mark.parametrize(
    "error", [URLError("no route"), TimeoutError("timed out"), ConnectionError("reset\nby peer"), ValueError("404")]
)
def test_full_mnist_without_a_network_names_the_offline_digits(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", refuse)
    with pytest.raises(DataSourceError) as caught:
        load("mnist-full")
    message = str(caught.value)
    assert "'mnist-full' could not be fetched" in message and "'mnist'" in message and "\n" not in message


def test_full_mnist_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(data=np.full((3, 784), 255), target=np.array(["1", "0", "4"]))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *args, **options: fake)
    full = load("mnist-full")
    assert full.X.max() == 1.0 and full.labels.tolist() == [1, 0, 4] and full.image_shape == (28, 28)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("circel", "did you mean 'circle'?"), ("MNIST", "did you mean 'mnist'?"), ("breast cancer", "'breast_cancer'?")],
)
def test_an_unknown_name_suggests_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(DataSourceError) as caught:
        load(name)
    message = str(caught.value)
    assert hint in message and all(known in message for known in names()) and "\n" not in message


def test_a_name_like_nothing_lists_all() -> None:
    with pytest.raises(DataSourceError, match="there is no data set 'qqq'; built in are circle, wave"):
        load("qqq")
    with pytest.raises(DataSourceError, match="there is no data set 'mnist-12'"):
        load("mnist-12")


def test_an_array_is_no_name() -> None:
    with pytest.raises(DataSourceError, match="by a string or a path, not by ndarray"):
        load(np.zeros((3, 2)))  # type: ignore[arg-type]
