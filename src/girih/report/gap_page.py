"""The gap of a VAE as numbers, words, a table and a picture: what `girih gap` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.plots.numbers import to_array
from girih.plots.style import BLUE, VERMILLION, legend_below, new_axes, styled
from girih.report.page import Number, Picture
from girih.report.pictures import Sheet
from girih.vae import Gap

_BOUNDS = (
    ("certified_nll", "Certified NLL", "The mean NLL is between these, whatever sampling says: see girih.bracket."),
    (
        "confidence_nll",
        "NLL with 99 % confidence",
        "Means of bounds that hold for a row with this confidence, whatever its posterior is: see girih.bracket.",
    ),
)
_PARTS = ("nll", "bound", "gap", "approximation", "amortisation", "error")


def facts_of_gap(found: Gap) -> dict[str, Any]:
    """Means over rows, the largest error, how each was had, and the bounds where they were asked for."""
    bounds: dict[str, Any] = {"certified_nll": None, "confidence_nll": None}
    for key, low, high in (
        ("certified_nll", found.lower, found.upper),
        ("confidence_nll", found.confidence_lower, found.confidence_upper),
    ):
        if low is not None and high is not None:
            bounds[key] = {"lower": float(low.mean()), "upper": float(high.mean())}
    unknown = int((~found.error.isfinite()).sum())
    numbers = {"rows": len(found.nll), **found.mean(), "unknown_errors": unknown, "method": dict(found.method)}
    if unknown:
        numbers["error"] = None  # JSON has no infinity
    return {**numbers, **bounds}


def gap_table(found: Gap) -> dict[str, NDArray[Any]]:
    """A table by its columns, a line for each row."""
    table: dict[str, NDArray[Any]] = {"row": np.arange(len(found.nll))}
    table |= {name: to_array(getattr(found, name)) for name in _PARTS}
    for name in ("lower", "upper", "confidence_lower", "confidence_upper"):
        bound = getattr(found, name)
        if bound is not None:
            table[f"nll_{name}"] = to_array(bound)
    return table


def gap_number(part: dict[str, Any]) -> Number:
    """What the gap says for a decision."""
    worse = part["amortisation"] > part["approximation"]
    how = "exact" if part["method"]["bound"] == "exact" else f"estimated, NLL by {part['method']['nll']}"
    return Number(
        "Gap of the VAE",
        f"{part['gap']:.3g} nats ({how})",
        f"What the ELBO of its encoder, {-part['bound']:.4g}, loses of log p(x), over {part['rows']:,} rows: "
        "bounds of two models that differ by less rank nothing. "
        f"{part['approximation']:.3g} of it the family of posteriors costs, {part['amortisation']:.3g} the "
        f"encoder: {'train or widen the encoder' if worse else 'take a richer family'} first.",
    )


def explain_gap(numbers: dict[str, Any]) -> list[Number]:
    """What `facts_of_gap` gives as rows of a table."""
    exact, error = numbers["method"]["bound"] == "exact", numbers["error"]
    sure = (
        "The largest of a row, of any of these numbers; nothing is sampled."
        if exact
        else "The largest standard error of a row, of any of these numbers. It knows nothing of a mode of the "
        "posterior that no search has met."
    )
    if numbers["unknown_errors"]:
        sure += f" Of {numbers['unknown_errors']:,} rows too few draws carry the estimate to know an error."
    rows = [
        gap_number(numbers),
        Number("NLL", f"{numbers['nll']:.4f} nats per row", f"Minus the mean of log p(x): {numbers['method']['nll']}."),
        Number("Negative ELBO", f"{numbers['bound']:.4f} nats per row", "The bound of the encoder: what it trains on."),
        Number("Error", "not known" if error is None else f"{error:.2g} nats", sure),
    ]
    for key, name, words in _BOUNDS:
        if numbers[key] is not None:
            low, high = numbers[key]["lower"], numbers[key]["upper"]
            rows.append(Number(name, f"{low:.4f} to {high:.4f} nats", words))
    return rows


def draw_gap(out: Path, found: Gap) -> list[Picture]:
    """Draw the parts of the gap of every row."""
    sheet = Sheet(out)
    sheet.draw(
        "gap",
        "What the bound loses, row by row",
        "Rows from the largest gap to the smallest. Blue is what no posterior of the family can have, red what the "
        "encoder leaves lying.",
        lambda: _bars(found),
        wide=True,
    )
    return sheet.pictures


@styled
def _bars(found: Gap) -> Any:
    ax = new_axes(None, 7.0, 2.6)
    order = np.argsort(-to_array(found.gap))
    family, encoder = (to_array(part)[order] for part in (found.approximation, found.amortisation))
    place = np.arange(len(order)) + 0.5
    ax.bar(place, family, 1.0, color=BLUE, label="family (approximation)")
    ax.bar(place, encoder, 1.0, bottom=family, color=VERMILLION, label="encoder (amortisation)")
    ax.set(xlabel="rows, by their gap", ylabel="nats", xlim=(0.0, len(order)))
    ax.locator_params(axis="x", integer=True)
    legend_below(ax, True)
    return ax
