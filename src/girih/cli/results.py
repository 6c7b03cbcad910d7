"""Results of `girih fit` and `girih select`, written into their folders in the order of their worth."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import girih
from girih._files import atomic_path, write_json, write_text
from girih._formats import FileFormat
from girih.cli.explorers import EXPLORER, explore_fit
from girih.cli.fitting import CHECKPOINT, Fitted, Settings, last_gain
from girih.cli.folder import OutputFolder
from girih.cli.tables import DATA_FILE, METRICS, MODEL, Array, has_names, is_file, plural, score_rows, write_csv
from girih.cli.terminal import Terminal
from girih.report import Page, Picture, explain, noise_text, pictures, versions

if TYPE_CHECKING:
    from girih.datasets import Dataset
    from girih.selection import Row, SelectionResult

REPORT, SCORES, CURVE = "report.html", "scores.csv", "nll_curve.csv"
PICTURES = (
    "manifold.png",
    "manifold_images.png",
    "samples.png",
    "marginal.png",
    "nll_curve.png",
    "posterior.png",
    "partition.png",
    "embedding.png",
)
FILES = (METRICS, DATA_FILE, SCORES, CURVE, REPORT, EXPLORER, CHECKPOINT, *PICTURES)

# Columns up to which the noise of each is listed in the metrics.
_LISTED = 64
TABLE, NUMBERS, PICTURE, FITS = "selection.csv", "selection.json", "selection.png", "fits"
SELECTION_FILES = (TABLE, NUMBERS, PICTURE, DATA_FILE)


def write(
    folder: OutputFolder,
    fitted: Fitted,
    dataset: Dataset,
    settings: Settings,
    terminal: Terminal,
    exploring: bool = True,
) -> dict[str, Any]:
    """Write everything, with the explorer if asked for, and return the metrics.

    Model and numbers come first: they outlive a Ctrl-C in the rest.
    """
    est = fitted.est
    start = time.perf_counter()
    scores, _ = score_rows(est.dgn_, dataset.X)
    with folder.results() as results:
        girih.save(est, results / MODEL)
        write_json(results / DATA_FILE, _notes(dataset, settings.source))
        fitted.seconds["score"] = time.perf_counter() - start
        metrics = measure(fitted, dataset, settings, scores["log_p"])
        write_json(results / METRICS, metrics)
        write_csv(results / SCORES, scores)
        write_csv(results / CURVE, {"iteration": np.arange(len(est.nll_curve_)), "nll": est.nll_curve_})
        if est.interrupted_:
            folder.keep(CHECKPOINT)
        with folder.outliving_interrupt():
            with terminal.drawing(fitted.seconds):
                drawn = pictures.draw_fit(results, est, dataset, scores["log_p"], standard_units=settings.standardize)
            metrics |= {"seconds": _rounded(fitted.seconds), "pictures": [picture.file.name for picture in drawn]}
            report = _page(folder.path, metrics, dataset, settings, drawn)
            if exploring:
                with terminal.busy("making the explorer"):
                    explore_fit(results / EXPLORER, est, dataset)
                report = report._replace(explorer=EXPLORER)
            write_text(results / REPORT, report.html())
            write_json(results / METRICS, metrics)
    return metrics


def measure(fitted: Fitted, dataset: Dataset, settings: Settings, log_p: Array) -> dict[str, Any]:
    """The numbers of a fit, for people and for programs."""
    est = fitted.est
    n, k, total = len(log_p), est.n_parameters_, float(log_p.sum())
    noise = est.dgn_.noise_covariance.detached()
    columns = noise.variances.sqrt().tolist() if noise.kind != "scalar" and noise.dim <= _LISTED else None
    return {
        "nll_per_row": -total / n,
        "entropy": dataset.entropy,
        "log_likelihood": total,
        "n_parameters": k,
        "aic": 2.0 * k - 2.0 * total,
        "bic": k * math.log(n) - 2.0 * total,
        "n_iter": est.n_iter_,
        "converged": est.converged_,
        "interrupted": est.interrupted_,
        "resumed": fitted.resumed,
        "last_gain": last_gain(est),
        "penalised_nll_per_row": float(est.nll_curve_[-1]),
        "cells": len(est.dgn_.partition),
        "noise": {
            "shape": noise.name,
            "deviation": float(noise.mean_variance.sqrt()),
            "deviation_of_columns": columns,
        },
        "data": {
            "source": settings.source,
            "name": dataset.name,
            "rows": n,
            "columns": dataset.shape[1],
            "missing": int(np.isnan(dataset.X).sum()),
        },
        "settings": asdict(settings),
        "seconds": _rounded(fitted.seconds),
        "versions": versions(),
    }


def tell(terminal: Terminal, out: Path, metrics: dict[str, Any]) -> None:
    """The last lines of `girih fit`: what came out, and where it is."""
    truth = "" if metrics["entropy"] is None else f"   (entropy of the truth: {metrics['entropy']:.4f})"
    state = "interrupted" if metrics["interrupted"] else "converged" if metrics["converged"] else "not converged"
    seconds = metrics["seconds"]
    rows = {
        "exact NLL": f"{metrics['nll_per_row']:.4f} nats per row{truth}",
        "AIC, BIC": f"{metrics['aic']:,.1f}, {metrics['bic']:,.1f}   ({metrics['n_parameters']:,} parameters)",
        "noise": f"{noise_text(metrics['noise'])} (standard deviation, {metrics['noise']['shape']})",
        "cells": str(metrics["cells"]),
        "EM": f"{metrics['n_iter']} iterations, {state}",
        "time": f"{seconds['fit']:.1f} s for the fit, {seconds['pictures']:.1f} s for the pictures",
    }
    terminal.table(rows)
    terminal.say()
    if metrics["interrupted"]:
        terminal.note("the same command goes on from here")
    terminal.say(f"Pictures: {out}/ ({', '.join(metrics['pictures'])})")
    terminal.say(f"Model:    {out / MODEL}")
    terminal.say(f"Report:   {out / REPORT}")
    if (out / EXPLORER).exists():
        terminal.say(f"Explorer: {out / EXPLORER}")
    terminal.result({"out": str(out), "report": str(out / REPORT), "model": str(out / MODEL), **metrics})


def _notes(dataset: Dataset, source: str) -> dict[str, Any]:
    """Note what later commands need to know of the data."""
    return {
        "source": source,
        "name": dataset.name,
        "columns": dataset.feature_names,
        "image_shape": dataset.image_shape,
    }


def _page(out: Path, metrics: dict[str, Any], dataset: Dataset, settings: Settings, drawn: list[Picture]) -> Page:
    options = {
        "data": settings.source,
        "rows, columns": f"{metrics['data']['rows']:,}, {metrics['data']['columns']:,}",
        "hidden layers": ", ".join(str(width) for width in settings.hidden) or "none",
        "activation": settings.activation
        + (f", slope {settings.negative_slope:g}" if settings.activation == "leaky_relu" else ""),
        "noise": settings.noise,
        "weight prior": settings.weight_prior or "none",
        "latent prior": "learned" if settings.learn_prior else "standard normal",
        "columns standardised": "yes; folded into the model" if settings.standardize else "no",
        "random starts": str(settings.n_init),
        "largest number of iterations": str(settings.max_iter),
        "tolerance": f"{settings.tol:g} nats per row",
        "acceleration": settings.acceleration,
        "rows in a batch": "all" if settings.batch_size is None else f"{settings.batch_size:,}",
        "least noise": f"{settings.noise_floor:g} of the variance of the data",
        "noise prior, kink ridge": f"{settings.noise_prior:g}, {settings.kink_ridge:g}",
        "early stopping": f"by {settings.validation_fraction:.0%} of the rows" if settings.early_stopping else "no",
        "seed": str(settings.seed),
    }
    what = dataset.description if is_file(settings.source) else f"{len(dataset):,} rows: {dataset.description}"
    latents = {1: "one latent variable", 2: "two latent variables", 3: "three latent variables"}[settings.latent_dim]
    lead = (
        f"A generator with {latents}, x = g(z) + noise, fitted by exact EM to {what}. Every number here is "
        "computed from the exact likelihood; none is estimated by sampling."
    )
    code = _code(out, dataset, settings)
    return Page(dataset.name, lead, explain(metrics), drawn, options, code, _verdict(dataset, settings))


def _verdict(dataset: Dataset, settings: Settings) -> str:
    """What the NLL does not say."""
    if settings.early_stopping:
        return (
            "The parameters were chosen by rows that were held out, but the NLL below is over all rows. "
            f"girih select {settings.source} --criterion held-out compares models on rows that they have not seen."
        )
    return (
        f"No row was held out: the NLL below says how well the model fits these {len(dataset):,} rows, and flatters it "
        f"on fresh ones. girih select {settings.source} --criterion held-out compares models, and other methods, on "
        "rows that they have not seen."
    )


def _code(out: Path, dataset: Dataset, settings: Settings) -> str:
    """A few lines of Python that load the model and use it on the same rows."""
    imports, rows = "import girih", f"girih.datasets.load({settings.source!r}, seed={settings.seed}).X"
    if is_file(settings.source):
        reading = FileFormat.of(settings.reading).code("reading")
        rows = f"girih.datasets.load({settings.source!r}{reading}).X"
        if has_names(dataset):
            rows = f"girih.datasets.load_frame({settings.source!r}{reading})[model.feature_names_in_]"
    return f"""{imports}

model = girih.load({str(out / MODEL)!r})
rows = {rows}

model.score_samples(rows)                  # exact log p(x) of each row, in nats
model.transform(rows)                      # the latent of each row: its posterior mean
model.impute(rows)                         # empty entries (NaN) filled with their expectation
model.sample(10, random_state=0)           # ten new rows
model.dgn_.posterior(rows[:3]).entropy()   # exact posteriors p(z | x)
"""


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def write_selection(folder: OutputFolder, result: SelectionResult, dataset: Dataset, data: str) -> dict[str, Any]:
    """Write the table, the best model and the picture; returns what `--json` prints."""
    est = result.estimator
    assert est is not None
    if is_file(data) and has_names(dataset):
        est.feature_names_in_ = np.array(dataset.feature_names, dtype=object)
    value = {"out": str(folder.path), "model": str(folder / MODEL), **result.as_dict()}
    with folder.results() as results:
        girih.save(est, results / MODEL)
        write_json(results / DATA_FILE, _notes(dataset, data))
        rows = result.table
        write_csv(results / TABLE, {name: [row[name] for row in rows] for name in rows[0]})
        write_json(results / NUMBERS, value)
        with atomic_path(results / PICTURE) as temporary:
            girih.plots.plot_selection(result).savefig(temporary)
    return value


def tell_selection(terminal: Terminal, out: Path, result: SelectionResult) -> None:
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
