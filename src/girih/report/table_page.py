"""The page of a `TableModel`: its columns, weights and rivals, pictures, imputed entries, and the strangest rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from girih._extras import needs

with needs("plots"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

import numpy as np
import torch
from numpy.typing import NDArray

from girih.plots import BLUE, GREY, LIGHT, ORANGE, VERMILLION, latent_colours, new_figure, styled
from girih.report.page import Number, Page, Picture, Section
from girih.report.pictures import save
from girih.report.table_numbers import TablePage, gaps, weighty

_PAIRS, _CURVES = 5, 6  # columns in the pictures
_DRAWN = 1500  # rows, and draws, in a picture
_GAPS, _STRANGE = 20, 10
_PIXELS = 80
_MASSES = (0.95, 0.8, 0.5, 0.2)  # of the model, within the contours of its density


def draw_table(out: Path, page: TablePage) -> list[Picture]:
    """Draw the pairs of columns and the curve into a folder, where there are columns of numbers."""
    drawn: list[Picture] = []

    def draw(name: str, title: str, caption: str, make: Callable[[], Axes | Figure]) -> None:
        save(out / f"{name}.png", make())
        drawn.append(Picture(out / f"{name}.png", title, caption, True))

    numbers = page.numbers()
    if len(numbers) == 2:
        caption = "Rows as dots; the lines hold 20, 50, 80 and 95 % of the probability, by the exact density."
        draw("pairs", "Rows and density", caption, lambda: _plane(page))
    elif numbers:
        first = f"The first {_PAIRS} columns of numbers. " if len(numbers) > _PAIRS else ""
        caption = (
            f"{first}Below the diagonal: rows. Above: rows that the model draws, which should look alike. On the "
            "diagonal: the shares of the rows, with the model's as a line."
        )
        draw("pairs", "Rows, and rows that the model draws", caption, lambda: _pairs(page))
    if page.model._curve is not None:
        caption = (
            "The best single curve through the table. Each row stands at the mean of its place z on it, with one "
            "standard deviation to either side; the line is the curve, column by column."
        )
        draw("curve", "Where the rows lie along one curve", caption, lambda: _curve(page))
    return drawn


def table_page(
    title: str, lead: str, page: TablePage, numbers: Sequence[Number], drawn: Sequence[Picture], code: str
) -> Page:
    """The page, with sections on columns, settings, imputed entries and the strangest rows."""
    model = page.model
    columns = [(name, one["kind"], one["note"]) for name, one in zip(page.names, model.columns_.summary(), strict=True)]
    weights = weighty(model)
    best = max(score for _, _, score in weights)
    sections = [
        Section(
            "Columns",
            "What was found in each column, and what was done with it.",
            ("column", "kind", "what was done"),
            columns,
        ),
        Section(
            "Settings that carry weight",
            "The density is an average of these mixtures. The last column: how much worse each is alone, on the first "
            "fold, than the best of them.",
            ("mixture", "weight", "nats a row"),
            [(text, f"{weight:.2f}", f"{score - best:+.2f}") for text, weight, score in weights],
        ),
    ]
    filled = gaps(page, _GAPS)
    if filled:
        count = int(page.missing.sum())
        which = f"The first {_GAPS} of {count:,} missing entries" if count > _GAPS else "All missing entries"
        sections.append(
            Section(
                "Imputed entries",
                f"{which}: the mean given the rest of the row, and the interval that holds the entry with probability "
                "0.9. Rows are counted from 0.",
                ("row", "column", "imputed", "90 % interval"),
                [(page.label(gap.row), gap.column, gap.value, gap.interval) for gap in filled],
            )
        )
    lines = []
    for one in page.strange[:_STRANGE]:
        for place, reason in enumerate(one.reasons):
            head = (page.label(one.row), f"{one.log_p:.2f}", f"{one.surprise:.1f}") if place == 0 else ("", "", "")
            lines.append((*head, reason.column, reason.value, reason.usual, f"{reason.below:.1f}"))
    sections.append(
        Section(
            "The strangest rows, and why",
            "Log p in nats; below usual: standard deviations below rows of which the same entries are known. For each, "
            "the columns that make it strange: what the entry is, the 90 % interval of it given the rest of the row, "
            "and how far its log density there is below what is usual in that column.",
            ("row", "log p", "below usual", "column", "entry", "given the rest", "nats below"),
            lines,
        )
    )
    settings = {
        "rows, columns": f"{len(page.entries):,}, {len(page.names):,}",
        "members of the average": f"{len(model.members_)}",
        "folds": str(model.n_folds),
        "seed": str(model.random_state),
    }
    return Page(title, lead, numbers, drawn, settings, code, sections=sections)


@styled
def _plane(page: TablePage) -> Axes:
    """Two columns: rows and contours of the exact density."""
    (a, i, u), (b, j, v) = page.numbers()
    figure = new_figure(5.0, 4.4)
    ax = figure.add_subplot()
    ax.scatter(*_some(u, v), s=6, lw=0, color=GREY)
    ax.set(xlabel=a, ylabel=b)
    x, y = (np.linspace(*_limits(values), _PIXELS) for values in (u, v))
    grid = torch.full((_PIXELS * _PIXELS, page.model._width()), torch.nan, dtype=torch.float64)
    grid[:, i] = torch.as_tensor(np.tile(x, _PIXELS))
    grid[:, j] = torch.as_tensor(np.repeat(y, _PIXELS))
    codes = torch.full((len(grid), len(page.model.columns_.levels)), -1)
    log_p = page.model._ensemble.log_prob(grid, codes).numpy().reshape(_PIXELS, _PIXELS)
    levels = _levels(log_p)
    if len(levels) > 1:
        ax.contour(x, y, log_p, levels=levels, colors=BLUE, linewidths=0.9, linestyles="solid")
    return ax


def _levels(log_p: NDArray[np.float64]) -> list[float]:
    """The log densities of the contours that hold shares of the probability, ascending and different."""
    order = np.sort(np.exp(log_p - log_p.max()).ravel())[::-1]
    share = order.cumsum() / order.sum()
    found = [float(np.log(order[min(int(np.searchsorted(share, mass)), len(order) - 1)])) for mass in _MASSES]
    return sorted({value + float(log_p.max()) for value in found if np.isfinite(value)})


@styled
def _pairs(page: TablePage) -> Figure:
    """Rows below the diagonal, draws above."""
    numbers = page.numbers()[:_PAIRS]
    D = len(numbers)
    draws = _draws(page)
    figure = new_figure(1.3 + 1.55 * D, 1.1 + 1.45 * D)
    figure.set_layout_engine("none")  # it would take half of the time, to find what is the same for every table
    room = {"left": 0.1, "right": 0.99, "bottom": 0.1, "top": 0.99, "wspace": 0.07, "hspace": 0.07}
    axes = figure.subplots(D, D, squeeze=False, gridspec_kw=room)
    for row, (below, _, v) in enumerate(numbers):
        for column, (beside, _, u) in enumerate(numbers):
            ax = axes[row, column]
            ax.set_xlim(*_limits(u))
            ax.tick_params(labelbottom=row == D - 1, labelleft=column == 0 and row > 0, labelsize=6)
            if row == D - 1:
                ax.set_xlabel(_short(beside))
            if column == 0:
                ax.set_ylabel(_short(below))
            if row == column:
                edges = np.linspace(*_limits(u), 25)
                ax.hist(u[~np.isnan(u)], bins=edges, density=True, color=LIGHT)
                ax.hist(draws[beside], bins=edges, density=True, histtype="step", color=VERMILLION)
                ax.set_yticks([])
                continue
            ax.set_ylim(*_limits(v))
            if row > column:
                ax.scatter(*_some(u, v), s=3, lw=0, color=BLUE)
            else:
                ax.scatter(*_some(draws[beside], draws[below]), s=3, lw=0, color=ORANGE, alpha=0.6)
    return figure


@styled
def _curve(page: TablePage) -> Figure:
    """Columns against the place along the curve."""
    numbers = page.numbers()[:_CURVES]
    member = page.model._curve
    assert member is not None
    z, deviation = (part[:, 0] for part in page.model.transform(page.rows, return_std=True))
    along = np.linspace(min(-2.5, z.min()), max(2.5, z.max()), 300)
    line = member.mixture.basis.values(torch.as_tensor(along)) @ member.mixture.maps[0].mT
    curve = member.scales.inverse(line).numpy()
    columns = min(3, len(numbers))
    lines = -(-len(numbers) // columns)
    figure = new_figure(2.75 * columns + 0.4, 2.2 * lines + 0.3)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    some = np.random.default_rng(0).permutation(len(z))[:_DRAWN]
    for ax, (name, at, values) in zip(axes, numbers, strict=False):
        ax.errorbar(z[some], values[some], xerr=deviation[some], fmt="none", ecolor=LIGHT, elinewidth=0.5)
        ax.scatter(z[some], values[some], s=5, lw=0, c=z[some], cmap=latent_colours(), zorder=2)
        ax.plot(along, curve[:, at], color=GREY, lw=1.2, zorder=3)
        ax.set_ylim(*_limits(values))
        ax.set(xlabel="z", ylabel=_short(name))
    for ax in axes[len(numbers) :]:
        ax.set_visible(False)
    return figure


def _draws(page: TablePage) -> dict[str, NDArray[np.float64]]:
    """Columns of numbers of rows that the model draws, atoms included, by name."""
    drawn, codes = (part[:, 0] for part in page.model._anything().sample(_DRAWN, torch.Generator().manual_seed(0)))
    out = {}
    for name, item in zip(page.names, page.model.columns_.items, strict=True):
        if item.x is not None:
            values = drawn[:, item.x].numpy().copy()
            if item.code is not None:
                for place, atom in enumerate(item.atoms):
                    values[codes[:, item.code].numpy() == place] = atom
            out[name] = values
    return out


def _some(u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    kept = np.flatnonzero(~np.isnan(u) & ~np.isnan(v))
    kept = np.random.default_rng(0).permutation(kept)[:_DRAWN]
    return u[kept], v[kept]


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:20] + "..."
