"""The density of the Concrete distribution on the simplex of three categories (CG-BPEF, Figs. 2 and 6-8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from scipy.stats import chi2
from torch.distributions import RelaxedOneHotCategorical

from girih.errors import ParameterError
from girih.plots import CYCLE, new_figure, styled
from girih_papers.arrays import Array
from girih_papers.concrete_law import ratio_cdf, triangle_masses
from girih_papers.figures import save

# Probabilities of Figs. 6, 7 and 8; Fig. 2 is four panels of Fig. 6.
ALPHAS = {
    "fig6": (1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0),
    "fig7": (1.0 / 2.0, 1.0 / 3.0, 1.0 / 6.0),
    "fig8": (2.0 / 3.0, 1.0 / 6.0, 1.0 / 6.0),
}
_HEIGHT = np.sqrt(3.0) / 2.0
_RANGE = (0.05, 20.0)  # of the drawn densities; the rest is cropped, as in the paper
_CELLS = 8  # along each log-ratio, for the comparison of counts and masses


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        figures: which of the probabilities: fig6, fig7, fig8.
        temperatures: T.
        draws: for each, beside the exact density.
        width: eps, how near a face or a corner counts as near.
        small: temperatures at which the masses are given besides.
        pixels: of a panel with the exact density, along a side of the triangle.
        cells: of a panel with draws.
    """

    figures: tuple[str, ...] = tuple(ALPHAS)
    temperatures: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(1, 17))
    draws: int = 1_000_000
    width: float = 0.05
    small: tuple[float, ...] = (0.01, 0.02, 0.05)
    pixels: int = 300
    cells: int = 50


SETTINGS = Settings()
QUICK = Settings(figures=("fig7",), temperatures=(0.2, 0.5, 1.0), draws=5_000, small=(0.05,), pixels=60, cells=15)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    body: dict[str, Any] = {}
    figures = []
    for name in settings.figures:
        if name not in ALPHAS:
            raise ParameterError(f"there is no figure {name!r}; known are {', '.join(ALPHAS)}")
        alpha = np.array(ALPHAS[name])
        panels, agreement = {}, []
        for i, temperature in enumerate(settings.temperatures):
            rng = np.random.default_rng([seed, list(ALPHAS).index(name), i])
            log_y = draw_log(alpha, temperature, settings.draws, rng)
            agreement.append(agree(log_y, alpha, temperature))
            panels[temperature] = (
                density_image(alpha, temperature, settings.pixels),
                counts_image(np.exp(log_y), settings.cells),
            )
        shown = (*settings.small, *settings.temperatures)
        body[name] = {
            "alpha": alpha.tolist(),
            "draws_against_masses": {
                "temperatures": list(settings.temperatures),
                "chi_square_p": [one[0] for one in agreement],
                "largest_difference": [one[1] for one in agreement],
            },
            "masses": {f"{t:g}": triangle_masses(alpha, t, settings.width) for t in shown},
            "power_of_the_distance_to_a_face": {f"{t:g}": 2.0 * t - 1.0 for t in shown},
        }
        figures.append(save(_draw(panels, alpha, settings.draws), out / f"{name}.png"))
    figures.append(save(_draw_masses(body, settings.width), out / "masses.png"))
    least = min(min(one["draws_against_masses"]["chi_square_p"]) for one in body.values())
    return {
        "densities": body,
        "comparisons": len(settings.figures) * len(settings.temperatures),
        "least_chi_square_p": least,
        "settings": asdict(settings),
        "figures": figures,
    }


def log_density(alpha: Array, temperature: float, y: Array) -> Array:
    r"""`log p(y)` of `Con(alpha, T)` with respect to `dy_1 ... dy_{K-1}`, `(...)`; the uniform density is `(K - 1)!`.

        (K - 1)! T^(K-1) prod_k (alpha_k y_k^(-T-1)) / (sum_k alpha_k y_k^-T)^K

    Near a face, where one y goes to 0 and the others do not, it goes as `y^((K-1) T - 1)`: without bound below
    `T = 1 / (K - 1)`, to 0 above.

    Source:
        Maddison et al., The Concrete distribution (2016), eq. 10, as torch has it.

    Example:
        >>> import numpy as np
        >>> from girih_papers.concrete_density import log_density
        >>> round(float(np.exp(log_density(np.full(3, 1 / 3), 1.0, np.full(3, 1 / 3)))), 6)
        2.0
    """
    concrete = RelaxedOneHotCategorical(
        torch.tensor(temperature, dtype=torch.float64), probs=torch.as_tensor(alpha), validate_args=False
    )
    return np.asarray(concrete.log_prob(torch.as_tensor(y)))


def draw_log(alpha: Array, temperature: float, count: int, rng: np.random.Generator) -> Array:
    """Logarithms of draws of y, `(count, K)`, by the Gumbel trick."""
    scores = (rng.gumbel(size=(count, len(alpha))) + np.log(alpha)) / temperature
    return np.asarray(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))


def agree(log_y: Array, alpha: Array, temperature: float) -> tuple[float, float]:
    """Draws against exact masses of 8 x 8 cells between lines of constant ratios `y_1 / y_3` and `y_2 / y_3`.

    Returns:
        The probability of a chi-square as large or larger if the draws are right, and the largest difference between
        a share of the draws and its mass.
    """
    # at these the ratio of two of equal probability is at its quantiles
    quantiles = np.arange(1, _CELLS) / _CELLS
    edges = np.log(quantiles / (1.0 - quantiles)) / temperature
    infinite = np.concatenate([[-np.inf], edges, [np.inf]])
    counts, _, _ = np.histogram2d(log_y[:, 0] - log_y[:, 2], log_y[:, 1] - log_y[:, 2], (infinite, infinite))
    with np.errstate(divide="ignore"):
        a = np.exp(infinite)
        cdf = ratio_cdf(alpha, temperature, a[:, None], a[None])
    masses = np.diff(np.diff(cdf, axis=0), axis=1)
    expected = masses * len(log_y)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return float(chi2.sf(statistic, masses.size - 1)), float(np.abs(counts / len(log_y) - masses).max())


def density_image(alpha: Array, temperature: float, pixels: int) -> Array:
    """The exact density over the uniform one at the centres of the pixels of a triangle; NaN outside of it."""
    y = _barycentric(pixels)
    inside = (y > 0.0).all(-1)
    image = np.full(inside.shape, np.nan)
    image[inside] = np.exp(log_density(alpha, temperature, y[inside])) / 2.0
    return image


def counts_image(y: Array, cells: int) -> Array:
    """The same from draws: in parallelograms between lines of constant y_1 and y_2, shown at their places; NaN outside.

    A cell that the third side cuts has half the area.
    """
    edges = np.linspace(0.0, 1.0, cells + 1)
    counts, _, _ = np.histogram2d(y[:, 0], y[:, 1], (edges, edges))
    i, j = np.indices(counts.shape)
    share = np.where(i + j < cells - 1, 1.0, 0.5)
    density = counts / len(y) * cells**2 / share / 2.0
    return np.asarray(np.where(i + j < cells, density, np.nan))


def _barycentric(pixels: int) -> Array:
    """`(rows, pixels, 3)`: y_2 is 1 at the left corner, y_1 at the right one, y_3 at the top; row 0 is the lowest."""
    rows = round(pixels * _HEIGHT)
    across = (np.arange(pixels) + 0.5) / pixels
    up = (np.arange(rows) + 0.5) / rows
    top = np.broadcast_to(up[:, None], (rows, pixels))
    right = across[None] - 0.5 * top
    return np.stack([right, 1.0 - right - top, top], -1)


@styled
def _draw(panels: Mapping[float, tuple[Array, Array]], alpha: Array, draws: int) -> Figure:
    """Exact densities on the left, draws on the right, on one scale of colours."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(7.2, 1.0 + 0.92 * rows)
    widths = [1.0] * columns + [0.25] + [1.0] * columns
    axes = figure.subplots(rows, len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
    for ax in axes.ravel():
        ax.set_axis_off()
    norm, colours = LogNorm(*_RANGE), matplotlib.colormaps["viridis"]
    for place, (temperature, (exact, counted)) in enumerate(panels.items()):
        left, right = axes[place // columns, place % columns], axes[place // columns, place % columns + columns + 1]
        drawn = left.imshow(
            exact.clip(*_RANGE), colours, norm, origin="lower", extent=(0.0, 1.0, 0.0, _HEIGHT), aspect="equal"
        )
        _draw_cells(right, counted.clip(*_RANGE), colours, norm)
        for ax in (left, right):
            ax.set_title(f"T = {temperature:g}", pad=1.0, fontsize=7.0)
            ax.set(xlim=(0.0, 1.0), ylim=(0.0, _HEIGHT), aspect="equal")
    bar = figure.colorbar(drawn, ax=list(axes.ravel()), location="bottom", aspect=60, shrink=0.6, extend="both")
    parts = ", ".join(str(Fraction(value).limit_denominator(100)) for value in alpha)
    bar.set_label(f"density over the uniform one, α = ({parts}): exact on the left, of {draws:,} draws on the right")
    bar.ax.xaxis.set_major_formatter("{x:g}")
    bar.outline.set_visible(False)
    return figure


def _draw_cells(ax: Axes, image: Array, colours: Colormap, norm: LogNorm) -> None:
    """The cells of `counts_image` as parallelograms, cut off at the side of the triangle."""
    first, second = np.meshgrid(*[np.linspace(0.0, 1.0, len(image) + 1)] * 2, indexing="ij")
    top = 1.0 - first - second
    mesh = ax.pcolormesh(first + 0.5 * top, _HEIGHT * top, image, cmap=colours, norm=norm, rasterized=True)
    triangle = Polygon([(0.0, 0.0), (1.0, 0.0), (0.5, _HEIGHT)], transform=ax.transData)
    mesh.set_clip_path(triangle)


@styled
def _draw_masses(body: Mapping[str, Mapping[str, Any]], width: float) -> Figure:
    """Where the mass is, against the temperature; a panel for each alpha."""
    figure = new_figure(max(3.5, 2.4 * len(body)), 2.5)
    panels = np.atleast_1d(figure.subplots(1, len(body), sharey=True))
    labels = {
        "corner": f"at a corner: max y > {1.0 - width:g}",
        "face": f"at a face only: min y < {width:g}",
        "inside": "elsewhere",
    }
    for ax, one in zip(panels, body.values(), strict=True):
        temperatures = sorted(float(t) for t in one["masses"])
        for (name, label), style in zip(labels.items(), CYCLE, strict=False):
            ax.plot(temperatures, [one["masses"][f"{t:g}"][name] for t in temperatures], ms=2.5, label=label, **style)
        rest = [one["masses"][f"{t:g}"] for t in temperatures]
        share = [mass["face"] / (mass["face"] + mass["inside"]) for mass in rest]
        ax.plot(temperatures, share, ms=2.5, label="share of the faces in what is not at a corner", **CYCLE[3])
        parts = ", ".join(str(Fraction(value).limit_denominator(100)) for value in one["alpha"])
        ax.set(xlabel="temperature T", title=f"α = ({parts})", ylim=(0.0, 1.02))
    panels[0].set_ylabel("probability")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


__all__ = ["QUICK", "SETTINGS", "Settings", "run"]
