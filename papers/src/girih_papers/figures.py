"""Pictures of a comparison, put together from `girih.plots`."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont

from girih.plots import BLUE, CYCLE, GREY, VERMILLION, new_figure, plot_training_curves, styled
from girih_papers.arrays import Array, curve_latents, generate
from girih_papers.comparison import EMS, PAPER_VAES, RESTARTS, SAME_START, TUNED, WEIGHT_PRIOR, by_label
from girih_papers.files import whole_file
from girih_papers.methods import Outcome

# The order fixes the colours: as in the paper, blue, red and green for the VAEs and black for EM.
ORDER = (*PAPER_VAES, SAME_START, TUNED, RESTARTS, WEIGHT_PRIOR)
_WIDE = 7.2
_PRINT_DPI = 130
_GRID = 300
_QUICK: ContextVar[bool] = ContextVar("quick", default=False)
SMOKE_RUN = "smoke run (--quick): tiny sizes, unequal budgets, nothing here compares"
_MARK_SIZE, _MARK_COLOUR = 18, "#A80000"
_LEAST_KL = 1e-9  # rounding may leave a KL of 0 just below it

# Pixels this far outside [0, 1] are drawn in colour.
BEYOND = 0.5
_OVER, _UNDER = "#7A0000", "#CFE3F1"


@contextmanager
def smoke_run(quick: bool) -> Iterator[None]:
    """For the duration, pictures say that they are of a quick run."""
    token = _QUICK.set(quick)
    try:
        yield
    finally:
        _QUICK.reset(token)


def save(figure: Figure, path: Path) -> str:
    """Write a PNG with a palette of 256 colours, which is a third of the size, atomically; returns its name."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_PRINT_DPI, format="png")
    with Image.open(buffer) as image, whole_file(path) as temporary:
        shown = _marked(image.convert("RGB")) if _QUICK.get() else image.convert("RGB")
        shown.quantize(256, dither=Image.Dither.NONE).save(temporary, format="png", optimize=True)
    return path.name


def _marked(image: Image.Image) -> Image.Image:
    """The picture below a line which says that it is of a quick run."""
    font, lines = ImageFont.load_default(_MARK_SIZE), [SMOKE_RUN]
    if font.getlength(SMOKE_RUN) > image.width - 2 * _MARK_SIZE:
        lines = SMOKE_RUN.split(": ")
    height = round(1.5 * _MARK_SIZE * len(lines))
    whole = Image.new("RGB", (image.width, image.height + height), "white")
    whole.paste(image, (0, height))
    ImageDraw.Draw(whole).multiline_text((_MARK_SIZE, _MARK_SIZE // 4), "\n".join(lines), fill=_MARK_COLOUR, font=font)
    return whole


@styled
def nll_figure(outcomes: Sequence[Outcome], references: dict[str, float]) -> Figure:
    """Exact NLL against steps and against seconds of training, median and range of the runs of each method.

    All of every curve is within the axes, whose scale is logarithmic: of the NLL where no value is below 0, and else of
    how far it is above a floor just below the lowest.
    """
    figure = new_figure(_WIDE, 3.4)
    left, right = figure.subplots(1, 2, sharey=True)
    clocks = {"step": "EM iterations or gradient steps (log scale)", "seconds": "seconds of training (log scale)"}
    shown = [np.asarray(list(references.values()))]
    for ax, (clock, label) in zip((left, right), clocks.items(), strict=True):
        curves = _aligned(outcomes, clock, "nll")
        shown += [y.ravel() for _, y in curves.values()]
        plot_training_curves(curves, label, ax=ax, logx=True, references=references)
    values = np.concatenate(shown)
    _log_scale_over(left, float(np.nanmin(values)), float(np.nanmax(values)))
    right.set_ylabel("")
    _shared_legend(figure, (left, right))
    return figure


def _log_scale_over(ax: Axes, low: float, high: float) -> None:
    """A logarithmic y-axis that holds all from `low` to `high`, above a floor where they are not all positive."""
    margin = max(0.02 * (high - low), 1e-3)
    floor, label = (0.0, "exact NLL (nats per row, log scale)") if low > 0.0 else (low - margin, "")
    if not label:
        label = f"exact NLL (nats per row,\nlog scale above {floor:.3g})".replace("-", "\N{MINUS SIGN}")
    ax.set_yscale("function", functions=(lambda y: _log(y - floor), lambda u: floor + np.exp(u)))
    ax.set_ylim(floor + 0.85 * (low - floor), floor + 1.15 * (high - floor))
    steps = np.geomspace(low - floor, high - floor, 7)
    ax.yaxis.set_major_locator(FixedLocator(sorted({_rounded(floor + t, t) for t in steps})))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "\N{MINUS SIGN}")))
    ax.set_ylabel(label)


def _log(values: Array) -> Array:
    return np.log(np.maximum(values, np.finfo(float).tiny))


def _rounded(value: float, step: float) -> float:
    """To as many digits as the first of `step` has."""
    digits = -math.floor(math.log10(step))
    return float(round(value, digits))


@styled
def kl_figure(outcomes: Sequence[Outcome]) -> Figure:
    """KL(q || posterior) of the VAEs against steps: median and range of the runs of each."""
    figure = new_figure(4.6, 3.2)
    ax = figure.add_subplot()
    vaes = [run for run in outcomes if "kl" in run.history]
    curves = {label: (x, np.maximum(y, _LEAST_KL)) for label, (x, y) in _aligned(vaes, "step", "kl").items()}
    told = ("gradient steps (log scale)", "KL(q || p(z | x)) (nats per row, log scale)")
    plot_training_curves(curves, *told, ax=ax, logx=True, logy=True)
    _recolour(ax, TUNED)
    _shared_legend(figure, (ax,))
    return figure


@styled
def manifold_figure(outcomes: Sequence[Outcome], rows: Array, columns: int) -> Figure:
    """g(z) over the rows: a line of panels for each method, a column for each of the first runs."""
    groups = by_label(outcomes)
    labels = [label for label in (*EMS, *PAPER_VAES, TUNED) if label in groups]
    columns = min(columns, min(len(groups[label]) for label in labels))
    low, high = rows.min(0), rows.max(0)
    margin = 0.12 * (high - low).max()
    size = (high - low) + 2.0 * margin
    width = min(1.7 if size[0] > 1.5 * size[1] else 1.2, (_WIDE - 0.4) / columns)
    figure = new_figure(0.45 + width * columns, (width * size[1] / size[0] + 0.2) * len(labels) + 0.35)
    axes = figure.subplots(len(labels), columns, squeeze=False)
    for line, label in zip(axes, labels, strict=True):
        for ax, run in zip(line, groups[label], strict=False):
            draw_manifold(ax, run, rows)
            ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
            ax.set_title(f"NLL {run.nll:.3f}", fontsize=7.0, pad=2.0)
            ax.tick_params(labelsize=6.5, length=2.0, labelleft=ax is line[0], labelbottom=label == labels[-1])
        line[0].set_ylabel(f"{label.replace(', ', ',' + chr(10))}\n$x_1$", fontsize=7.5)
    for ax in axes[-1]:
        ax.set_xlabel("$x_0$", fontsize=7.5)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def draw_manifold(ax: Axes, run: Outcome, rows: Array) -> None:
    """One panel: rows, the curve between the outer 0.1% of the prior, and its kinks."""
    dgn = run.dgn
    z, limits = curve_latents(dgn, 400)
    curve, kinks = generate(dgn, z), generate(dgn, limits) if len(limits) else np.empty((0, 2))
    ax.scatter(rows[:, 0], rows[:, 1], s=2.0, color=GREY, lw=0, alpha=0.6, label="rows")
    ax.plot(curve[:, 0], curve[:, 1], color=BLUE if run.kind == "em" else VERMILLION, lw=1.2, label="g(z)")
    ax.scatter(kinks[:, 0], kinks[:, 1], s=5.0, color="black", lw=0, zorder=3, label="cell limits")
    ax.set_aspect("equal")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(3))


def _aligned(outcomes: Sequence[Outcome], clock: str, value: str) -> dict[str, tuple[Array, Array]]:
    """Each method's curves on one logarithmic grid; a run that has ended keeps its last value.

    Before a run's first value there is none: EM with restarts has its first after the trials.
    """
    groups = by_label(outcomes)
    out = {}
    for label in (label for label in ORDER if label in groups):
        curves = [(run.history[clock], run.history[value]) for run in groups[label]]
        first = min(next((t for t in x if t > 0), 1.0) for x, _ in curves)
        last = max(max(float(x[-1]) for x, _ in curves), first * 1.001)
        grid = np.geomspace(first, last, _GRID)
        out[label] = (grid, np.stack([np.interp(grid, x, y, left=np.nan) for x, y in curves]))
    return out


def _recolour(ax: Axes, label: str) -> None:
    """Give a line and its band the style that they have where the methods of `ORDER` are all drawn."""
    style = CYCLE[ORDER.index(label)]
    for i, line in enumerate(ax.lines):
        if line.get_label() == label:
            line.set(**style)
            bands = ax.collections
            if i < len(bands) - 1:  # the last band is the legend's
                bands[i].set_facecolor(style["color"])


def _shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below the figure instead of one in each panel."""
    for ax in axes:
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    first = [label for label in EMS if label in handles]
    labels = first + [label for label in handles if label not in first]
    columns = 4 if figure.get_figwidth() > 5 else 2
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=columns)


def draw_images(ax: Axes, images: Array, shape: tuple[int, ...]) -> None:
    """Images side by side; white is 0 and black is 1 everywhere, so that what leaves the range of the data shows."""
    gap = 2
    sheet = np.full((shape[0], len(images) * (shape[1] + gap) - gap), np.nan)
    for i, image in enumerate(images):
        left = i * (shape[1] + gap)
        sheet[:, left : left + shape[1]] = image.reshape(shape)
    colours = matplotlib.colormaps["gray_r"].with_extremes(bad="#FFFFFF", over=_OVER, under=_UNDER)
    slightly = (sheet > -BEYOND) & (sheet < 1.0 + BEYOND)
    ax.imshow(np.where(slightly, sheet.clip(0.0, 1.0), sheet), cmap=colours, vmin=0.0, vmax=1.0)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def pixel_key(figure: Figure) -> None:
    """Below the sheets of `draw_images`: what the colours of pixels far outside [0, 1] mean, if there are such."""
    arrays = [image.get_array() for ax in figure.axes for image in ax.images]
    shown = [np.nan_to_num(np.ma.filled(array, np.nan), nan=0.5) for array in arrays if array is not None]
    told = {_OVER: (f"above {1.0 + BEYOND:g}", any((sheet > 1.0).any() for sheet in shown))}
    told[_UNDER] = (f"below {-BEYOND:g}".replace("-", "\N{MINUS SIGN}"), any((sheet < 0.0).any() for sheet in shown))
    keys = [Patch(facecolor=colour, label=f"pixels {text}") for colour, (text, there) in told.items() if there]
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=2, fontsize=7.0)
