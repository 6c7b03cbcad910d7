"""The look that all pictures share: sizes for one column of print, colours for every eye, lines for greyscale."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

P = ParamSpec("P")
T = TypeVar("T")

# Okabe and Ito (2008): distinct under every common colour blindness.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY, LIGHT, PALE = "#8A8A8A", "#DDDDDD", "#CFE3F1"

# Colour, line and marker change together, so lines differ in greyscale too. Yellow is too pale for a line.
CYCLE: list[dict[str, Any]] = [
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILLION, "linestyle": (0, (5, 1.5)), "marker": "s"},
    {"color": GREEN, "linestyle": (0, (1, 1.2)), "marker": "^"},
    {"color": BLACK, "linestyle": (0, (6, 1.5, 1, 1.5)), "marker": "D"},
    {"color": ORANGE, "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": PURPLE, "linestyle": (0, (8, 3)), "marker": "P"},
    {"color": SKY, "linestyle": "-", "marker": "X"},
]

# Width of one column of print, in inches, and the resolution of what is rasterised.
COLUMN = 3.5
DPI = 220

STYLE: dict[str, Any] = {
    "font.size": 8.0,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.unicode_minus": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 1.8,
    "ytick.minor.size": 1.8,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.4,
    "image.interpolation": "nearest",
}


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function that draws under the shared style, and leave matplotlib's settings as they were.

    Example:
        >>> import matplotlib
        >>> from girih.plots import styled
        >>> styled(lambda: matplotlib.rcParams["font.size"])(), matplotlib.rcParams["font.size"]
        (8.0, 10.0)
    """

    @functools.wraps(function)
    def inside(*args: P.args, **options: P.kwargs) -> T:
        with matplotlib.rc_context(dict(STYLE)):  # type: ignore[arg-type]
            return function(*args, **options)

    return inside


def new_figure(width: float = COLUMN, height: float = 2.7) -> Figure:
    """A figure that pyplot knows nothing of, in inches; in a notebook one of pyplot's, which shows below the cell."""
    if in_notebook():
        pyplot = importlib.import_module("matplotlib.pyplot")
        made: Figure = pyplot.figure(figsize=(width, height), layout="constrained", dpi=DPI)
        return made
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def in_notebook() -> bool:
    """Tell whether a kernel of Jupyter runs this: it shows what pyplot has open at the end of a cell, and closes it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def new_axes(ax: Axes | None, width: float = COLUMN, height: float = 2.7) -> Axes:
    """The axes that were given, or those of a figure of their own."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def legend_below(ax: Axes, own: bool) -> None:
    """A legend where no data can hide: under the figure if it is our own, else under the label of the x-axis."""
    handles, labels = ax.get_legend_handles_labels()
    figure = ax.get_figure(root=True)
    if figure is None:
        return
    columns = next((n for n in range(min(len(labels), 4), 1, -1) if _legend_width(labels, n) < 72.0 * COLUMN), 1)
    lines = -(-len(labels) // columns)
    if own:  # room for each line of the legend
        figure.set_figheight(figure.get_figheight() + 0.16 * (lines - 1))
    if own and lines:
        constrained = figure.get_layout_engine() is not None
        figure.legend(handles, labels, loc="outside lower center" if constrained else "lower center", ncols=columns)
    elif lines:
        label, tick = ax.xaxis.label.get_fontsize(), ax.xaxis.get_ticklabels()[:1]
        gap = 12.0 + 1.3 * float(label) + 1.2 * float(tick[0].get_fontsize() if tick else 0.0)
        below = ax.transAxes + ScaledTranslation(0.0, -gap / 72.0, figure.dpi_scale_trans)
        place: dict[str, Any] = {"bbox_to_anchor": (0.5, 0.0), "bbox_transform": below, "borderaxespad": 0.0}
        ax.legend(handles, labels, loc="upper center", ncols=columns, **place)


def _legend_width(labels: list[str], columns: int) -> float:
    """The width of a legend in points: texts, and 4.6 times the size of the font for each handle and its gaps."""
    size = float(STYLE["legend.fontsize"])
    widths = [TextPath((0.0, 0.0), label, size=size).get_extents().width for label in labels]
    result: float = sum(max(column) + 4.6 * size for column in map(list, np.array_split(widths, columns)))
    return result


def colour_bar(
    ax: Axes, drawn: ScalarMappable, label: str, extend: Literal["neither", "both", "min", "max"] = "neither"
) -> None:
    """A colour bar as high as the axes, whatever their aspect.

    Args:
        ax: the axes that it stands beside.
        drawn: what has the colours.
        label: of the quantity, with its unit.
        extend: the ends beyond which there are values, drawn as points of the bar.
    """
    figure = ax.get_figure(root=True)
    if figure is None:
        return
    bar = figure.colorbar(drawn, cax=ax.inset_axes((1.04, 0.0, 0.035, 1.0)), extend=extend)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def log_scale(ax: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with few, plain numbers where it spans less than two decades."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high < 100.0 * low:
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if high > 3.0 * low else (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0))
        )
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def latent_colours() -> Colormap:
    """Colours along z: viridis without the yellow end, which is too pale on paper."""
    base = matplotlib.colormaps["viridis"]
    return LinearSegmentedColormap.from_list("girih_latent", base([i / 255 * 0.88 for i in range(256)]))
