"""Plane toys: noisy curves with known entropy, and two moons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.datasets.dataset import Dataset, check_count, make_rng
from girih.datasets.entropy import circle_entropy, curve_entropy, line_entropy
from girih.errors import ParameterError

_DEFAULT_COUNT = 256


def circle(n: int | None, seed: int, *, noise: float = 0.05, radius: float = 1.0) -> Dataset:
    """Points uniform on a circle plus Gaussian noise of standard deviation `noise` (EM-DGN, section 4)."""
    noise, radius = _check_noise(noise), _check_positive(radius, "radius")
    rng, n = make_rng(seed), _count(n)
    angle = rng.uniform(0.0, 2.0 * np.pi, n)
    points = radius * np.stack((np.cos(angle), np.sin(angle)), 1)
    description = f"a circle of radius {radius:g} with noise of standard deviation {noise:g}"
    return _toy("circle", points, noise, rng, description, circle_entropy(noise, radius))


def wave(n: int | None, seed: int, *, noise: float = 0.1, frequency: float = 1.4) -> Dataset:
    """A localised part of a cosine, `x = (t, cos(frequency t))` with `t ~ N(0, 1)`, plus Gaussian noise.

    EM-DGN shows this data set (appendix J) without its formula; the frequency 1.4, the standard normal window and
    the noise of standard deviation 0.1 are those of the script that its authors published, which draws 1,000 rows.
    """
    noise, frequency = _check_noise(noise), _check_positive(frequency, "frequency")
    rng, n = make_rng(seed), _count(n)
    t = rng.standard_normal(n)
    points = np.stack((t, np.cos(frequency * t)), 1)
    grid = np.linspace(-7.0, 7.0, _grid_size(14.0 * math.hypot(1.0, frequency), noise))
    mass = np.exp(-0.5 * grid**2)
    entropy = curve_entropy(np.stack((grid, np.cos(frequency * grid)), 1), mass / mass.sum(), noise)
    description = f"x = (t, cos({frequency:g} t)), t standard normal, with noise of standard deviation {noise:g}"
    return _toy("wave", points, noise, rng, description, entropy)


def line(n: int | None, seed: int, *, noise: float = 0.05) -> Dataset:
    """A Gaussian along the direction (2, 1) plus Gaussian noise: what a linear generator fits exactly."""
    noise = _check_noise(noise)
    rng, n = make_rng(seed), _count(n)
    points = rng.standard_normal(n)[:, None] * np.array([2.0, 1.0]) / math.sqrt(5.0)
    description = f"a standard normal along the direction (2, 1) with noise of standard deviation {noise:g}"
    return _toy("line", points, noise, rng, description, line_entropy(noise))


def spiral(n: int | None, seed: int, *, noise: float = 0.05, turns: float = 1.5) -> Dataset:
    """An Archimedean spiral out to radius 1, nearly uniform along its arc, plus Gaussian noise."""
    noise, turns = _check_noise(noise), _check_positive(turns, "turns")
    rng, n = make_rng(seed), _count(n)

    def at(u: NDArray[np.float64]) -> NDArray[np.float64]:
        radius = np.sqrt(u)
        angle = 2.0 * np.pi * turns * radius
        return np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1)

    points = at(rng.uniform(0.0, 1.0, n))
    count = _grid_size(2.0 * np.pi * turns + 1.0, noise)
    radius = (np.arange(count) + 0.5) / count  # u = radius^2 has density 2 radius
    entropy = curve_entropy(at(radius**2), radius / radius.sum(), noise)
    description = f"a spiral of {turns:g} turns with noise of standard deviation {noise:g}"
    return _toy("spiral", points, noise, rng, description, entropy)


def moons(n: int | None, seed: int, *, noise: float = 0.1) -> Dataset:
    """Two interleaved half circles of scikit-learn, labelled, plus Gaussian noise."""
    from sklearn.datasets import make_moons

    noise = _check_noise(noise)
    make_rng(seed)
    X, labels = make_moons(_count(n), noise=noise, random_state=seed)
    description = f"two half circles with noise of standard deviation {noise:g}"
    return Dataset(X.astype(np.float64), ["x0", "x1"], "moons", description, labels=labels)


def _toy(
    name: str, points: NDArray[np.float64], noise: float, rng: np.random.Generator, text: str, entropy: float | None
) -> Dataset:
    X = points + noise * rng.standard_normal(points.shape)
    return Dataset(X, ["x0", "x1"], name, text, entropy=entropy)


def _count(n: int | None) -> int:
    return _DEFAULT_COUNT if n is None else check_count(n)


def _grid_size(length: float, noise: float) -> int:
    """Enough points for a spacing of 0.4 deviations along a curve of at most this length."""
    return 100 if noise <= 0 else min(math.ceil(length / (0.4 * noise)) + 1, 1_000_000)


def _check_noise(noise: Any) -> float:
    value = _number(noise, "noise")
    if not (math.isfinite(value) and value >= 0):
        raise ParameterError(f"noise must be a standard deviation, 0 or more; got {noise!r}")
    return value


def _check_positive(value: Any, name: str) -> float:
    number = _number(value, name)
    if not (math.isfinite(number) and number > 0):
        raise ParameterError(f"{name} must be a positive number; got {value!r}")
    return number


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} must be a number; got {value!r}") from None
