"""What `girih select` leaves in its folder, and what it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import girih
from girih._files import atomic_path, write_json
from girih.cli.folder import OutputFolder
from girih.cli.inputs import DATA_FILE, MODEL, has_names, is_file, plural
from girih.cli.rows import write_csv
from girih.cli.terminal import Terminal

if TYPE_CHECKING:
    from girih.datasets import Dataset
    from girih.selection import Row, SelectionResult

TABLE, NUMBERS, PICTURE, FITS = "selection.csv", "selection.json", "selection.png", "fits"
FILES = (TABLE, NUMBERS, PICTURE, DATA_FILE)


def write(folder: OutputFolder, result: SelectionResult, dataset: Dataset, data: str) -> dict[str, Any]:
    """Write the table, the best model and the picture; returns what `--json` prints."""
    from girih.plots.curves import plot_selection

    est = result.estimator
    assert est is not None
    if is_file(data) and has_names(dataset):
        est.feature_names_in_ = np.array(dataset.feature_names, dtype=object)
    notes = {
        "source": data,
        "name": dataset.name,
        "columns": dataset.feature_names,
        "image_shape": dataset.image_shape,
    }
    value = {"out": str(folder.path), "model": str(folder / MODEL), **result.as_dict()}
    with folder.results() as results:
        girih.save(est, results / MODEL)
        write_json(results / DATA_FILE, notes)
        write_csv(results / TABLE, result.frame())
        write_json(results / NUMBERS, value)
        with atomic_path(results / PICTURE) as temporary:
            plot_selection(result).savefig(temporary)
    return value


def tell(terminal: Terminal, out: Path, result: SelectionResult) -> None:
    """The table, the best and the elbow in the terminal."""
    if result.resumed:
        terminal.note(f"{plural(result.resumed, 'fit')} taken from {out / FITS}")
    for name, reason in result.skipped.items():
        terminal.note(f"{name} is left out: it {reason}")
    header = ("model", "S", "hidden", "noise", "parameters", "NLL", "held-out NLL", "AIC", "BIC", "seconds")
    best = next(i for i, row in enumerate(result.rows) if row is result.best)
    terminal.columns(header, [_line(row) for row in result.rows], bold=best)
    late = sum(not row.converged for row in result.rows)
    if late:
        terminal.note(f"{plural(late, 'model')} (marked *) still gained when --max-iter was reached")
    c = result.best.candidate
    terminal.say()
    criterion = {"bic": "BIC", "aic": "AIC", "held_out": "held-out NLL"}[result.criterion]
    terminal.say(f"Best by {criterion}: S = {c.latent_dim}, hidden {c.widths}, {c.noise} noise; fitted to all rows")
    if len(result.elbow.points) > 1:
        parts = [f"S = {p.latent_dim}: +{p.gap:.3f} (explains {p.explained:.0%})" for p in result.elbow.points]
        terminal.say(f"Elbow: {', '.join(parts)} nats per row above the best S; suggested S = {result.elbow.suggested}")
    terminal.say(f"Table:   {out / TABLE}")
    terminal.say(f"Picture: {out / PICTURE}")
    terminal.say(f"Model:   {out / MODEL}   (girih score {out} DATA)")


def _line(row: Row) -> tuple[str, ...]:
    c = row.candidate
    held_out = "" if math.isnan(row.held_out) else f"{row.held_out:.3f} ± {row.held_out_error:.3f}"
    what = (str(c.latent_dim), c.widths, c.noise) if c.is_dgn else ("", f"k = {row.components}", "")
    numbers = (str(row.n_parameters), f"{row.nll:.3f}", held_out, f"{row.aic:,.1f}", f"{row.bic:,.1f}")
    return (c.model + ("" if row.converged else " *"), *what, *numbers, f"{row.seconds:.1f}")
