"""Plane toys with known entropy: noisy curves and Gaussian mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

from girih._options import whole
from girih.datasets.dataset import Dataset, check_count, make_rng
from girih.errors import ParameterError

# Grid points of the largest quadrature: about a second of work.
_MAX_POINTS = 4_000_000
_DEFAULT_COUNT = 256
# Centre, radius, and the angles at which an arc begins and ends.
Arc = tuple[NDArray[np.float64], float, float, float]
_MOONS: list[Arc] = [(np.array([0.0, 0.0]), 1.0, 0.0, np.pi), (np.array([1.0, 0.5]), 1.0, np.pi, 2.0 * np.pi)]


def circle_entropy(deviation: float, radius: float = 1.0) -> float | None:
    r"""Entropy of a point uniform on a circle plus Gaussian noise, exact to about 1e-12; `None` without noise.

        p(x) = exp(-(r^2 + radius^2) / 2 deviation^2) I_0(r radius / deviation^2) / (2 pi deviation^2)

    with `r = |x|`, so one integral over r is left: `-integral 2 pi r p log p dr`.

    Example:
        >>> from girih.datasets.toys import circle_entropy
        >>> round(circle_entropy(0.05), 4)
        0.2605
    """
    if deviation <= 0:
        return None
    low, high = max(0.0, radius - 12.0 * deviation), radius + 12.0 * deviation
    nodes, weights = np.polynomial.legendre.leggauss(400)
    r = 0.5 * (high - low) * (nodes + 1.0) + low
    # I_0(a) = ive(0, a) exp(a), and the exponents join to the square of a difference
    argument = r * radius / deviation**2
    log_bessel = np.where(
        argument > 1e8, -0.5 * np.log(2.0 * np.pi * argument), np.log(ive(0, np.minimum(argument, 1e8)))
    )
    log_p = -0.5 * ((r - radius) / deviation) ** 2 + log_bessel
    log_p -= math.log(2.0 * math.pi * deviation**2)
    return float(-0.5 * (high - low) * (weights * 2.0 * np.pi * r * np.exp(log_p) * log_p).sum())


def line_entropy(deviation: float) -> float | None:
    """Entropy of `N(0, 1)` along a line in the plane plus Gaussian noise: closed form."""
    if deviation <= 0:
        return None
    variance = deviation**2
    return math.log(2.0 * math.pi * math.e) + 0.5 * math.log((1.0 + variance) * variance)


def curve_entropy(points: NDArray[np.float64], weights: NDArray[np.float64], deviation: float) -> float | None:
    """Entropy of a noisy plane curve, given by points and their probabilities, or of a mixture of round Gaussians.

    The density is a sum of products over the points, so the grid over the plane is one matrix product. Grid and
    points must be finer than the noise; `None` where that takes too many of them, or without noise.

    Args:
        points: quadrature points of the curve, `(T, 2)`, spaced by less than a deviation; or centres of the mixture.
        weights: their probabilities, `(T,)`.
        deviation: standard deviation of the noise.
    """
    if deviation <= 0:
        return None
    step = 0.4 * deviation
    low, high = points.min(0) - 9.0 * deviation, points.max(0) + 9.0 * deviation
    counts = np.ceil((high - low) / step).astype(int) + 1
    if counts.prod() > _MAX_POINTS or counts.max() * len(points) > 4 * _MAX_POINTS:
        return None
    kernels = []
    for axis in range(2):
        grid = low[axis] + step * np.arange(counts[axis])
        gap = (grid[:, None] - points[None, :, axis]) / deviation
        kernels.append(np.exp(-0.5 * gap**2))
    density = (kernels[0] * weights) @ kernels[1].T / (2.0 * np.pi * deviation**2)
    log_density = np.log(np.where(density > 0, density, 1.0))
    return float(-(density * log_density).sum() * step**2)


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
    """Two interleaved half circles of radius 1, labelled, plus Gaussian noise (RAD, section 3.1).

    The half circles of scikit-learn's `make_moons`, here with angles and halves drawn at random for each row.
    """
    return _arcs(n, seed, noise, "moons", _MOONS, "two half circles")


def many_moons(n: int | None, seed: int, *, noise: float = 0.05) -> Dataset:
    """Four pairs of moons of radius 1/2, two by two, labelled, plus Gaussian noise (RAD, section 3.1)."""
    shifts = [np.array([column * 3.5, row * 2.5]) for row in (-0.5, 0.5) for column in (-0.5, 0.5)]
    # the middle of a pair is at (1/2, 1/4)
    arcs = [(0.5 * (c - (0.5, 0.25) + shift), 0.5 * r, *ends) for shift in shifts for c, r, *ends in _MOONS]
    return _arcs(n, seed, noise, "many-moons", arcs, "eight half circles")


def circles(n: int | None, seed: int, *, noise: float = 0.05, inner: float = 0.5) -> Dataset:
    """Two circles around one centre, labelled, plus Gaussian noise (RAD, section 3.1).

    Their radii are 1 and `inner`, and each has half of the mass.
    """
    inner = _check_positive(inner, "inner")
    arcs = [(np.zeros(2), radius, 0.0, 2.0 * np.pi) for radius in (1.0, inner)]
    return _arcs(n, seed, noise, "circles", arcs, f"circles of radius 1 and {inner:g}")


def grid_mixture(n: int | None, seed: int, *, noise: float = 0.085, side: int = 5) -> Dataset:
    """Gaussians on a square grid, `side` by `side` at distance 1, labelled (RAD, section 3.1)."""
    axis = np.arange(whole(side, "side")) - 0.5 * (side - 1)
    centres = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    return _mixture(n, seed, noise, "grid-mixture", centres, f"{side} x {side} Gaussians on a grid")


def ring_mixture(n: int | None, seed: int, *, noise: float = 0.014, modes: int = 8) -> Dataset:
    """Gaussians evenly spaced on a circle of radius 1, labelled (RAD, section 3.1)."""
    angle = 2.0 * np.pi * np.arange(whole(modes, "modes")) / modes
    centres = np.stack((np.cos(angle), np.sin(angle)), 1)
    return _mixture(n, seed, noise, "ring-mixture", centres, f"{modes} Gaussians on a circle")


def _arcs(n: int | None, seed: int, noise: float, name: str, arcs: Sequence[Any], text: str) -> Dataset:
    """Arcs of equal mass, each uniform along itself."""
    noise, rng, n = _check_noise(noise), make_rng(seed), _count(n)
    labels = rng.integers(len(arcs), size=n)
    centre, radius, begin, end = (np.array(column) for column in zip(*arcs, strict=True))

    def at(which: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.float64]:
        angle = begin[which] + share * (end - begin)[which]
        result: NDArray[np.float64] = centre[which] + radius[which, None] * np.stack((np.cos(angle), np.sin(angle)), 1)
        return result

    count = _grid_size(float((radius * (end - begin)).max()), noise)
    nodes, weights = np.polynomial.legendre.leggauss(8)  # on panels: an arc has ends, where a grid would be coarse
    panels = max(count // 8, 1)
    share = ((np.arange(panels)[:, None] + 0.5 * (nodes + 1.0)) / panels).ravel()
    mass = np.tile(np.tile(0.5 * weights / panels, panels), len(arcs)) / len(arcs)
    points = at(np.repeat(np.arange(len(arcs)), len(share)), np.tile(share, len(arcs)))
    entropy = curve_entropy(points, mass, noise)
    text += f" with noise of standard deviation {noise:g}"
    return _toy(name, at(labels, rng.uniform(0.0, 1.0, n)), noise, rng, text, entropy, labels)


def _mixture(n: int | None, seed: int, noise: float, name: str, centres: NDArray[np.float64], text: str) -> Dataset:
    """Equal shares of Gaussians with one standard deviation."""
    noise, rng, n = _check_noise(noise), make_rng(seed), _count(n)
    labels = rng.integers(len(centres), size=n)
    entropy = curve_entropy(centres, np.full(len(centres), 1.0 / len(centres)), noise)
    return _toy(name, centres[labels], noise, rng, f"{text}, of standard deviation {noise:g}", entropy, labels)


def _toy(
    name: str,
    points: NDArray[np.float64],
    noise: float,
    rng: np.random.Generator,
    text: str,
    entropy: float | None,
    labels: NDArray[np.int64] | None = None,
) -> Dataset:
    X = points + noise * rng.standard_normal(points.shape)
    return Dataset(X, ["x0", "x1"], name, text, labels=labels, entropy=entropy)


def _count(n: int | None) -> int:
    return _DEFAULT_COUNT if n is None else check_count(n)


def _grid_size(length: float, noise: float) -> int:
    """Enough points for a spacing of 0.4 deviations along a curve of at most this length."""
    return 100 if noise <= 0 else min(math.ceil(length / (0.4 * noise)) + 1, 1_000_000)


def _check_noise(noise: SupportsFloat) -> float:
    value = _number(noise, "noise")
    if not (math.isfinite(value) and value >= 0):
        raise ParameterError(f"noise must be a standard deviation, 0 or more; got {noise!r}")
    return value


def _check_positive(value: SupportsFloat, name: str) -> float:
    number = _number(value, name)
    if not (math.isfinite(number) and number > 0):
        raise ParameterError(f"{name} must be a positive number; got {value!r}")
    return number


def _number(value: SupportsFloat, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} must be a number; got {value!r}") from None
