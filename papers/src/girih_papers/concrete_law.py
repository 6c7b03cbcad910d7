"""The Concrete distribution without sampling: masses on the simplex of three categories, and the law of z = y^T zeta.

All of it rests on one fact: with independent `W_r ~ Exp(1)` the Concrete vector is `y_r = X_r / sum X`, where
`X_r = (alpha_r / W_r)^(1 / T)`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from girih.errors import ParameterError
from girih_papers.arrays import Array

Complex = NDArray[np.complex128]

# The characteristic function of W^(-1/T) is tabled against v = T log(frequency), with this step and these limits.
_STEP, _LOW, _HIGH = 5e-4, -40.0, 18.0
# The inversion integral runs over v as well: its integrand falls exponentially on the left, as exp(v / max(1, T)), and
# faster on the right, so the trapezoidal rule converges faster than any power of the step.
_NODE, _FIRST, _LAST = 0.2, -23.0, 11.0


def ratio_cdf(alpha: Array, temperature: float, a: Array, b: Array) -> Array:
    r"""`P(y_1 / y_3 <= a, y_2 / y_3 <= b)` for `y ~ Con(alpha, T)` on three categories.

        alpha_3 / (alpha_1 a^-T + alpha_2 b^-T + alpha_3)

    The event is `W_1 >= (alpha_1 / alpha_3) a^-T W_3` and the same for 2, of three independent exponentials.

    Example:
        >>> import numpy as np
        >>> from girih_papers.concrete_law import ratio_cdf
        >>> round(float(ratio_cdf(np.full(3, 1 / 3), 0.7, np.array(1.0), np.array(1.0))), 6)  # y_3 is the largest
        0.333333
    """
    powers = alpha[0] * a**-temperature + alpha[1] * b**-temperature
    return np.asarray(alpha[2] / (powers + alpha[2]))


def triangle_masses(alpha: Array, temperature: float, width: float) -> dict[str, float]:
    r"""How much of `Con(alpha, T)` on three categories lies near the corners and near the faces of the simplex.

    With `y_1 : y_2 = x : 1 - x` and `q = alpha_1 x^-T / S`, `S = alpha_1 x^-T + alpha_2 (1 - x)^-T`, the mass of
    `y_3 > 1 / (1 + k)` has, in the logit of x, the density

        T q (1 - q) (1 - (1 - p)^2),   p = alpha_3 / (alpha_3 + S k^-T)

    The masses are integrals of it, by the trapezoidal rule (error below 1e-6).

    Args:
        alpha: `(3,)`, sums to 1.
        temperature: T.
        width: eps, below a third.

    Returns:
        The masses of `corner`, `max y > 1 - eps`; of `face`, `min y < eps` without the corners; and of `inside`, the
        rest.

    Example:
        >>> import numpy as np
        >>> from girih_papers.concrete_law import triangle_masses
        >>> masses = triangle_masses(np.full(3, 1 / 3), 0.5, 0.05)
        >>> {name: round(mass, 4) for name, mass in masses.items()}
        {'corner': 0.2735, 'face': 0.4114, 'inside': 0.3151}
    """

    def above(k: int, bound: Array | float, logit: Array) -> Array:
        first = alpha[(k + 1) % 3] * np.exp(temperature * np.logaddexp(0.0, -logit))
        second = alpha[(k + 2) % 3] * np.exp(temperature * np.logaddexp(0.0, logit))
        p = alpha[k] / (alpha[k] + (first + second) * bound**-temperature)
        q = first / (first + second)
        return np.asarray(temperature * q * (1.0 - q) * (1.0 - (1.0 - p) ** 2))

    far = np.linspace(-45.0, 45.0, 20_001) / temperature
    corner = sum(float(np.trapezoid(above(k, width / (1.0 - width), far), far)) for k in range(3))
    end = math.log((1.0 - 2.0 * width) / width)  # beyond it, y_1 or y_2 is below eps wherever y_3 is not
    near = np.linspace(-end, end, 4001)
    least = 1.0 / (1.0 + np.exp(np.abs(near)))
    between = above(2, (1.0 - width) / width, near) - above(2, width / (least - width), near)
    inside = float(np.trapezoid(between, near))
    return {"corner": corner, "face": 1.0 - corner - inside, "inside": inside}


def z_law(alpha: Array, temperature: float, bins: int) -> Array:
    r"""The masses of equal intervals of (-1, 1) under the law of `z = y^T zeta`, `y ~ Con(alpha, T)`.

        P(z <= t) = P(sum_r (zeta_r - t) X_r <= 0) = 1/2 - (1 / pi) int_0^inf Im prod_r phi(...) dw / w

    by the inversion of Gil-Pelaez: the sum has independent terms, and each `X_r` is `alpha_r^(1/T)` times the same
    variable `W^(-1/T)`.

    Args:
        alpha: `(R,)`, not negative, sums to 1.
        temperature: T, from 0.05 to 2.
        bins: how many intervals.

    Returns:
        `(bins,)`, sums to 1; absolute error about 1e-8, which may leave a mass of 0 below it (2e-7 at T = 2).

    Raises:
        ParameterError: the temperature is beyond what the tables of the integral are made for.

    Source:
        CG-BPEF, appendix C has this law by sampling; Gil-Pelaez, Note on the inversion theorem (1951).

    Example:
        >>> import numpy as np
        >>> from girih_papers.concrete_law import z_law
        >>> z_law(np.array([0.5, 0.0, 0.5]), 0.7, 2).round(6)
        array([0.5, 0.5])
    """
    if not 0.05 <= temperature <= 2.0:
        raise ParameterError(f"the law of z is worked out for temperatures from 0.05 to 2; got {temperature:g}")
    alpha = np.asarray(alpha, dtype=np.float64)
    alpha, levels = alpha[alpha > 0.0], np.linspace(-1.0, 1.0, len(alpha))[alpha > 0.0]
    log_table = _log_table(temperature)
    v = np.arange(_FIRST * max(1.0, temperature), _LAST, _NODE)
    inner = np.linspace(-1.0, 1.0, bins + 1)[1:-1]
    cdf = np.empty(len(inner))
    for i, t in enumerate(inner):
        distance = levels - t
        scale = np.log(alpha) + temperature * np.log(np.maximum(np.abs(distance), 1e-300))
        right = distance > 0.0
        log_phi = _looked_up(log_table, v, scale[right]) + _looked_up(log_table, v, scale[~right]).conj()
        cdf[i] = 0.5 - float(np.exp(log_phi).imag.sum()) * _NODE / (math.pi * temperature)
    return np.diff(np.concatenate([[0.0], cdf, [1.0]]))


def characteristic(temperature: float, log_frequency: Array) -> Complex:
    r"""`E exp(i w X)` of `X = W^(-1/T)`, `W ~ Exp(1)`, at `w = exp(log_frequency)`.

        int exp(-u + i w u^(-1/T)) du   over the ray u = r exp(-i theta),  theta = min(pi T / 2, pi / 4)

    where the integrand decays at both ends and does not oscillate much; trapezoidal in log r.

    Example:
        >>> import numpy as np
        >>> from girih_papers.concrete_law import characteristic
        >>> characteristic(1.0, np.array([0.0])).round(6)  # 2 sqrt(-i) K_1(2 sqrt(-i))
        array([0.213202+0.439616j])
    """
    angle = min(math.pi * temperature / 2.0, math.pi / 4.0)
    log_r = np.arange(-60.0, 6.0, min(0.025, 0.25 * temperature))
    ray = np.exp(log_r - 1j * angle)
    turn = np.exp(1j * (angle / temperature + 0.5 * math.pi))
    out = np.empty(len(log_frequency), dtype=np.complex128)
    for i, level in enumerate(log_frequency):
        # beyond 30 the integrand is 0, and larger powers would overflow
        power = turn * np.exp(np.minimum(level - log_r / temperature, 30.0))
        out[i] = np.sum(ray * np.exp(power - ray)) * (log_r[1] - log_r[0])
    return out


@lru_cache(maxsize=32)
def _log_table(temperature: float) -> Complex:
    """`log E exp(i w X)` on the grid of v, with a continuous phase."""
    coarse = np.arange(_LOW, _HIGH + 0.005, 0.01)
    values = characteristic(temperature, coarse / temperature)
    # a factor below 1e-17 makes the product count for nothing, so the phase of what is left of it is free
    log_values = np.log(np.maximum(np.abs(values), 1e-17)) + 1j * np.unwrap(np.angle(values))
    fine = np.arange(_LOW, _HIGH, _STEP)
    return np.asarray(CubicSpline(coarse, log_values)(fine))


def _looked_up(log_table: Complex, v: Array, scale: Array) -> Complex:
    """The sum over terms of `log E exp(i w X)` at `T log w = v + scale`, for every v; linear between grid points."""
    place = np.clip((v[:, None] + scale - _LOW) / _STEP, 0.0, len(log_table) - 2.0)
    index = place.astype(np.int64)
    share = place - index
    return np.asarray((log_table[index] * (1.0 - share) + log_table[index + 1] * share).sum(1))
