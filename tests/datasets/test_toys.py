"""Toys: the same seed gives the same rows, and the stated entropy is the entropy of those rows."""

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.special import ive, logsumexp
from sklearn.datasets import make_moons

from girih.datasets import Dataset, circle_entropy, curve_entropy, line_entropy, load, names
from girih.errors import ParameterError

TOYS = ["circle", "wave", "line", "spiral", "moons", "many-moons", "circles", "grid-mixture", "ring-mixture"]


@pytest.mark.parametrize("name", TOYS)
def test_same_seed_same_rows(name: str) -> None:
    first, again, other = load(name, n=50, seed=3), load(name, n=50, seed=3), load(name, n=50, seed=4)
    assert first.X.shape == (50, 2) and first.X.dtype == np.float64
    assert np.array_equal(first.X, again.X) and not np.array_equal(first.X, other.X)
    assert len(load(name)) == 256


def test_the_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for name in TOYS:
        load(name, n=5)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_circle_is_a_circle() -> None:
    X = load("circle", n=20_000, noise=0.1, radius=2.0).X
    radius = np.hypot(X[:, 0], X[:, 1])
    # E|x|^2 = radius^2 + 2 noise^2
    assert np.mean(radius**2) == pytest.approx(4.02, abs=0.02)
    assert np.std(radius) == pytest.approx(0.1, abs=0.005)
    assert np.abs(load("circle", noise=0.0).X[:, 0]).max() <= 1.0


def test_wave_is_a_cosine_under_a_normal_window() -> None:
    X = load("wave", n=20_000, noise=0.0).X
    assert np.allclose(X[:, 1], np.cos(1.4 * X[:, 0]), atol=1e-12)
    assert np.std(X[:, 0]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("name", "classes"), [("moons", 2), ("many-moons", 8), ("circles", 2), ("grid-mixture", 25), ("ring-mixture", 8)]
)
def test_clusters_are_labelled_and_equal(name: str, classes: int) -> None:
    counts = np.bincount(load(name, n=20_000).labels)
    assert len(counts) == classes
    assert np.abs(counts - 20_000 / classes).max() < 5 * math.sqrt(20_000 / classes)


def test_moons_are_those_of_scikit_learn() -> None:
    ours, (theirs, labels) = load("moons", n=4000, noise=0.0), make_moons(4000, noise=None)
    for label in (0, 1):
        distance = cKDTree(theirs[labels == label]).query(ours.X[ours.labels == label])[0]
        assert distance.max() < 1e-3  # half the gap between theirs


def arcs(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, radii and begin of the arcs of a toy, written out; all arcs run over half a turn, or a whole one."""
    moons = np.array([[0.0, 0.0], [1.0, 0.5]])
    if name == "moons":
        return moons, np.ones(2), np.array([0.0, np.pi])
    if name == "circles":
        return np.zeros((2, 2)), np.array([1.0, 0.5]), np.zeros(2)
    pairs = [0.5 * (moons - [0.5, 0.25] + [3.5 * x, 2.5 * y]) for y in (-0.5, 0.5) for x in (-0.5, 0.5)]
    return np.concatenate(pairs), np.full(8, 0.5), np.tile([0.0, np.pi], 4)


@pytest.mark.parametrize(("name", "noise"), [("moons", 0.1), ("circles", 0.05), ("many-moons", 0.05), ("circles", 0.4)])
def test_entropy_of_arcs_against_monte_carlo(name: str, noise: float) -> None:
    dataset = load(name, n=4000, seed=2, noise=noise)
    centres, radii, begin = arcs(name)
    turn = 2 * np.pi if name == "circles" else np.pi
    angle = begin[:, None] + turn * (np.arange(300) + 0.5) / 300
    curve = centres[:, None] + radii[:, None, None] * np.stack((np.cos(angle), np.sin(angle)), -1)
    curve = curve.reshape(-1, 2)
    distance = cdist(dataset.X, curve, "sqeuclidean")
    log_p = logsumexp(-0.5 * distance / noise**2, 1) - math.log(len(curve) * 2 * math.pi * noise**2)
    assert dataset.entropy == pytest.approx(-log_p.mean(), abs=5 * log_p.std() / math.sqrt(4000))


@pytest.mark.parametrize(("name", "noise"), [("grid-mixture", 0.085), ("grid-mixture", 0.5), ("ring-mixture", 0.014)])
def test_entropy_of_mixtures_against_monte_carlo(name: str, noise: float) -> None:
    dataset = load(name, n=20_000, seed=2, noise=noise)
    if name == "grid-mixture":
        centres = np.array([[x, y] for x in range(-2, 3) for y in range(-2, 3)], dtype=float)
    else:
        centres = np.array([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])
    distance = cdist(dataset.X, centres, "sqeuclidean")
    log_p = logsumexp(-0.5 * distance / noise**2, 1) - math.log(len(centres) * 2 * math.pi * noise**2)
    assert dataset.entropy == pytest.approx(-log_p.mean(), abs=5 * log_p.std() / math.sqrt(20_000))


def test_far_gaussians_have_the_entropy_of_one_plus_the_label() -> None:
    one = math.log(2 * math.pi * math.e * 0.014**2)
    assert load("ring-mixture").entropy == pytest.approx(one + math.log(8), abs=1e-9)
    assert load("grid-mixture", side=1, noise=0.3).entropy == pytest.approx(
        math.log(2 * math.pi * math.e * 0.09), abs=1e-9
    )


def test_circles_that_coincide_are_a_circle() -> None:
    assert load("circles", inner=1.0).entropy == pytest.approx(circle_entropy(0.05), abs=1e-9)


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.3, 2.0])
def test_circle_entropy_against_monte_carlo(noise: float) -> None:
    X = load("circle", n=200_000, seed=1, noise=noise).X
    r = np.hypot(X[:, 0], X[:, 1])
    log_p = -0.5 * ((r - 1) / noise) ** 2 + np.log(ive(0, r / noise**2)) - math.log(2 * math.pi * noise**2)
    error = log_p.std() / math.sqrt(len(log_p))
    assert load("circle", noise=noise).entropy == pytest.approx(-log_p.mean(), abs=5 * error)


def test_circle_entropy_has_its_limits() -> None:
    # wide noise: a Gaussian; narrow noise: a strip of length 2 pi
    assert circle_entropy(1e3) == pytest.approx(math.log(2 * math.pi * math.e * 1e6), abs=1e-6)
    for noise in (1e-3, 1e-6):
        strip = math.log(2 * math.pi) + 0.5 * math.log(2 * math.pi * math.e * noise**2)
        assert circle_entropy(noise) == pytest.approx(strip, abs=2 * noise)
    assert circle_entropy(0.0) is None


def test_curve_entropy_agrees_with_the_other_two() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = np.stack((np.cos(angle), np.sin(angle)), 1)
    assert curve_entropy(ring, np.full(400, 1 / 400), 0.05) == pytest.approx(circle_entropy(0.05), abs=1e-9)
    t = np.linspace(-8, 8, 2000)
    mass = np.exp(-0.5 * t**2)
    points = np.stack((2 * t, t), 1) / math.sqrt(5)
    assert curve_entropy(points, mass / mass.sum(), 0.05) == pytest.approx(line_entropy(0.05), abs=1e-9)


def test_wave_and_spiral_entropy_against_monte_carlo() -> None:
    t = np.linspace(-6, 6, 1500)
    curve, log_mass = np.stack((t, np.cos(1.4 * t)), 1), -0.5 * t**2 - logsumexp(-0.5 * t**2)
    r = (np.arange(1500) + 0.5) / 1500
    spiral = np.stack((r * np.cos(3 * np.pi * r), r * np.sin(3 * np.pi * r)), 1)
    for name, noise, points, log_w in [("wave", 0.1, curve, log_mass), ("spiral", 0.05, spiral, np.log(r / r.sum()))]:
        dataset = load(name, n=4000, seed=2)
        distance = ((dataset.X[:, None] - points) ** 2).sum(-1)
        log_p = logsumexp(log_w - 0.5 * distance / noise**2, 1) - math.log(2 * math.pi * noise**2)
        assert dataset.entropy == pytest.approx(-log_p.mean(), abs=5 * log_p.std() / math.sqrt(4000))


def test_entropy_is_left_open_where_it_is_not_known() -> None:
    assert load("moons", noise=0.0).entropy is None
    assert load("wave", noise=0.0).entropy is None
    assert load("wave", noise=1e-4).entropy is None  # too fine a grid


def test_a_dataset_behaves_like_its_array() -> None:
    circle = load("circle", n=7)
    assert isinstance(circle, Dataset) and len(circle) == 7 and circle.shape == (7, 2)
    assert np.array_equal(np.asarray(circle), circle.X)
    assert np.asarray(circle, dtype=np.float32).dtype == np.float32
    assert np.array(circle) is not circle.X
    assert "circle" in repr(circle) and "shape=(7, 2)" in repr(circle)
    with pytest.raises(AttributeError):
        circle.name = "other"  # type: ignore[misc]


def test_names_lists_every_toy_with_a_sentence() -> None:
    listed = names()
    assert set(TOYS) <= set(listed)
    assert all(text and "\n" not in text for text in listed.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be a whole number of rows, 1 or more; got 0"),
        ({"n": 2.5}, "got 2.5"),
        ({"n": True}, "got True"),
        ({"seed": -1}, "seed must be a whole number, 0 or more; got -1"),
        ({"noise": -0.1}, "noise must be a standard deviation, 0 or more"),
        ({"noise": "much"}, "noise must be a number; got 'much'"),
        ({"noise": math.nan}, "noise must be a standard deviation"),
        ({"radius": 0}, "radius must be a positive number"),
        ({"turns": 2}, "circle takes the options noise, radius; got 'turns'"),
    ],
)
def test_a_bad_option_is_named(options: dict, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        load("circle", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grid-mixture", {"side": 0}, "side must be a whole number, 1 or more; got 0"),
        ("ring-mixture", {"modes": 2.5}, "modes must be a whole number, 1 or more; got 2.5"),
        ("circles", {"inner": -1}, "inner must be a positive number"),
        ("many-moons", {"noise": "much"}, "noise must be a number; got 'much'"),
    ],
)
def test_a_bad_option_of_a_cluster_is_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        load(name, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
