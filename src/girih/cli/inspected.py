"""What `girih inspect` leaves in its folder: numbers, a table of the cells, pictures and the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from girih._files import write_json, write_text
from girih.cli.decoders import Decoder
from girih.cli.folder import OutputFolder
from girih.cli.tables import write_csv
from girih.cli.terminal import Terminal
from girih.geometry.priors import UniformPrior
from girih.report import Inspection, Picture, render, versions
from girih.report.inspection_facts import cell_table, facts
from girih.report.inspection_numbers import explain_inspection
from girih.report.inspection_pictures import PICTURES, draw_inspection

REPORT, NUMBERS, CELLS = "report.html", "inspection.json", "cells.csv"
FILES = (REPORT, NUMBERS, CELLS, *PICTURES)
_LISTED = 12  # layers in the table of settings


def write(
    folder: OutputFolder,
    decoder: Decoder,
    found: Inspection,
    image_shape: tuple[int, ...] | None,
    settings: dict[str, Any],
    seconds: dict[str, float],
    terminal: Terminal,
) -> dict[str, Any]:
    """Write everything and return the numbers. The numbers come first: they outlive a Ctrl-C in the pictures."""
    metrics: dict[str, Any] = facts(found)
    metrics["decoder"] = {"source": decoder.source, "name": decoder.name, **metrics["decoder"]}
    metrics["decoder"]["image_shape"] = None if image_shape is None else list(image_shape)
    metrics["settings"] = settings
    metrics["notes"] = [*decoder.notes, *([found.note] if found.note else [])]
    metrics["versions"] = versions()
    with folder.results() as results:
        write_json(results / NUMBERS, metrics)
        write_csv(results / CELLS, cell_table(found))
        with folder.outliving_interrupt():
            start = time.perf_counter()
            with terminal.busy("drawing"):
                pictures = draw_inspection(results, found, image_shape, decoder.columns, settings["seed"])
            seconds = {**seconds, "pictures": time.perf_counter() - start}
            metrics["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
            metrics["pictures"] = [picture.file.name for picture in pictures]
            write_text(results / REPORT, _page(decoder, found, metrics, pictures))
            write_json(results / NUMBERS, metrics)
    return metrics


def tell(terminal: Terminal, out: Path, metrics: dict[str, Any]) -> None:
    """The last lines of `girih inspect`: what came out, and where it is."""
    terminal.table({number.name: number.value for number in explain_inspection(metrics)})
    terminal.say()
    seconds = metrics["seconds"]
    terminal.say(f"Time:     {seconds['inspect']:.1f} s, and {seconds['pictures']:.1f} s for the pictures")
    terminal.say(f"Cells:    {out / CELLS}")
    terminal.say(f"Numbers:  {out / NUMBERS}")
    terminal.say(f"Report:   {out / REPORT}")
    terminal.result({"out": str(out), "report": str(out / REPORT), **metrics})


def _page(decoder: Decoder, found: Inspection, metrics: dict[str, Any], pictures: list[Picture]) -> str:
    settings = metrics["settings"]
    layers = metrics["decoder"]["layers"]
    shown = layers if len(layers) <= _LISTED else [*layers[:_LISTED], f"and {len(layers) - _LISTED} more"]
    shape = metrics["decoder"]["image_shape"]
    options = {
        "decoder": decoder.source,
        "layers": "; ".join(shown),
        "latent prior": _prior_text(metrics["prior"]),
        "image shape": "none" if shape is None else " x ".join(map(str, shape)),
        "cells": "all, enumerated" if found.cells.exact else f"sampled by {settings['cells']:,} prior draws",
        "seed": str(settings["seed"]),
        "time": f"{metrics['seconds']['inspect']:.1f} s, and {metrics['seconds']['pictures']:.1f} s for the pictures",
    }
    how = (
        "All its cells were enumerated: numbers are exact where they do not say otherwise."
        if found.cells.exact
        else f"Its cells were sampled by {found.cells.draws:,} prior draws: numbers come with one standard error, "
        "marked ±."
    )
    note = f" {found.note[0].upper()}{found.note[1:]}." if found.note else ""
    lead = (
        f"A decoder from {found.latent_dim} latent variable{'s' if found.latent_dim > 1 else ''} to "
        f"{found.trace.output_dim:,} output{'s' if found.trace.output_dim > 1 else ''}, piece by piece. {how}{note}"
    )
    return render(decoder.name, lead, explain_inspection(metrics), pictures, options, _code(decoder, found, settings))


def _prior_text(prior: dict[str, Any]) -> str:
    if prior["kind"] == "uniform":
        return f"uniform from {prior['low'][0]:g} to {prior['high'][0]:g} in every latent"
    covariance = np.array(prior["covariance"])
    same = np.array_equal(covariance, covariance[0, 0] * np.eye(len(covariance)))
    return f"normal with variance {covariance[0, 0]:g}" if same else "normal with the covariance of the fitted model"


def _code(decoder: Decoder, found: Inspection, settings: dict[str, Any]) -> str:
    """A few lines of Python that ask the same and more."""
    prior, S = found.cells.prior, found.latent_dim
    given = "1.0"
    if isinstance(prior, UniformPrior):
        given = f"girih.geometry.Uniform({float(prior.low[0])!r}, {float(prior.high[0])!r})"
    elif prior is not None:
        variance = float(prior.covariance[0, 0])
        plain = bool((prior.covariance == variance * torch.eye(S, dtype=torch.float64)).all())
        given = repr(variance) if plain else "model.prior.detach()"
    make = (
        f"girih.geometry.enumerate_cells(trace, prior={given})"
        if found.cells.exact
        else f"girih.geometry.sample_cells(trace, {settings['cells']}, prior={given}, seed={settings['seed']})"
    )
    lines = [
        decoder.code,
        f"cells = {make}",
        "",
        "girih.geometry.log_volume(cells).values          # log sqrt det(A^T A) of each cell",
        "girih.geometry.entropy(cells)                    # of generated points, on the manifold",
        "girih.geometry.basis(cells, index=[0])           # columns of A",
        f"trace.affine([{[0.0] * S}])  # A and b around a latent",
    ]
    if found.cells.exact:
        lines.append("cells.partition.halfspaces(0)                    # a cell: H z <= h")
    else:
        lines.append("girih.partition.walk(trace, cells.points[0])     # a cell and its neighbours, exact")
    return "import girih\n" + "\n".join(lines) + "\n"
